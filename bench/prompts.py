"""Prompts of an exact length that no cache knows.

Owns the words. Each is one token of SmolLM2's vocabulary, with a space before it or at the start of
a text, and its tokeniser never joins words, so a text has as many tokens as words. (Checked with
the model's own tokeniser on 2026-11-23; the scenarios check what each server counted.)
"""

from __future__ import annotations

import random
from typing import Final

_TEXT: Final = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point
home water room mother area money story fact month lot right study book eye job word business issue
side kind head house service friend father power hour game line end member law car city community
name president team minute idea kid body information back parent face others level office door
health person art war history party result change reason research girl moment air teacher force
education foot boy age policy process music market sense nation plan college interest death
experience effect use class control care field development role rate heart drug show leader light
voice wife mind price report decision son view relationship town road arm difference value building
action season tax director position player record paper space ground form event official matter
center site project activity star table court oil cost industry figure street image phone data
picture practice piece land product doctor wall patient worker news test movie north love support
technology step baby computer type attention film tree source hair window culture brother energy
period course summer plant term letter condition choice rule daughter south floor material
population call hospital church risk fire future bank west board subject rest behavior performance
top goal second bed order author blood agency nature color
"""
WORDS: Final = tuple(_TEXT.split())


class Prompts:
    """Numbered texts. Two of the same source share their first token at most."""

    def __init__(self) -> None:
        self._number = 0

    def fresh(self, num_tokens: int) -> str:
        """A text of so many tokens, at least two."""
        number, self._number = self._number, self._number + 1
        again, first = divmod(number, len(WORDS))
        rest = random.Random(number).choices(WORDS, k=num_tokens - 2)
        return " ".join([WORDS[first], WORDS[again % len(WORDS)], *rest])

    def several(self, count: int, num_tokens: int) -> list[str]:
        return [self.fresh(num_tokens) for _ in range(count)]
