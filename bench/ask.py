"""The shortest script that asks the daemon: `ask.py SOCKET MODEL PROMPT`.

Prints when the first token came (monotonic clock). A process of its own, because its start is part
of what is measured.
"""

from __future__ import annotations

import sys
import time

from openclawctl import Client

socket_path, model, prompt = sys.argv[1:]
with (
    Client(socket_path, app="script") as client,
    client.generate(prompt, model=model, max_tokens=1, temperature=0, stream=True) as stream,
):
    next(stream)
    print(time.monotonic())
    list(stream)  # to its end: leaving it would count as cancelled
