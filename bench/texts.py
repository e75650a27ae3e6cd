"""Texts that a person might write, for scenarios in which it matters what the model says.

Written for this benchmark; the openings are to be continued.
"""

from __future__ import annotations

from typing import Final

_PASSAGES: Final = """
The harbour of Lowmoor was built in 1842, when the first steamers came up the river. Its two piers
are made of granite from the hills behind the town, and the lighthouse at the end of the northern
one still works. Every spring the fishing boats are painted white and blue.

Please water the plants in the kitchen twice a week and those in the hall only on Sunday. The key of
the shed hangs behind the door, next to the calendar. If the alarm rings, call Mrs. Palmer on the
second floor; she knows the code and has a list of all our numbers.

The committee met on the third of March to discuss the new timetable. Eleven members were present.
It was agreed that the first bus should leave at half past five instead of six, and that the stop in
Mill Lane should be moved to the other side of the bridge.

To replace the filter, switch the machine off and wait until it has cooled down. Open the cover at
the back, turn the grey handle to the left, and pull the old filter out. Put the new one in with the
arrow pointing upwards, turn the handle back, and close the cover.

Our grandmother kept bees for forty years. She wore an old straw hat with a veil and never any
gloves, because she said that bees dislike a careful person. In September she took the honey from
nine of the twelve hives, and left the other three for the winter.

The second engine failed shortly after noon, about ninety miles west of the islands. The captain
reduced the speed to six knots and informed the harbour office by radio. A tug was sent out at four
o'clock and reached the ship before it was dark.
"""

_OPENINGS: Final = """
My first day at the new school began with
The difference between a lake and a pond is
When the train finally arrived, the passengers
A good way to learn a language is
The old man opened the letter and
In the north of the country, winters are
To make a simple soup you need
The scientists were surprised because
Dear Sir or Madam, I am writing to you about
The main reason for the war was
She had always wanted to visit
The museum on the market square shows
Most people believe that birds
After the storm had passed, the village
"""

PASSAGES: Final = tuple(" ".join(text.split()) for text in _PASSAGES.split("\n\n"))
OPENINGS: Final = tuple(_OPENINGS.strip().splitlines())
