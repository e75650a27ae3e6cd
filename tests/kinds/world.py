"""A loaded backend, requests to it, and the answers that they must get whatever happens."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from kinds.driver import Ask, Engine
from models.tiny import EXACT, NEAR_TIE
from near_ties import NearTies

from openclawd.backends import llama
from openclawd.backends.base import AdapterSpec, LoadSpec
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from models.library import ModelLibrary

    from openclawd.backends.base import Backend

NUM_TOKENS: Final = 24
"""Of each answer."""

NUM_COMMON: Final = 60
"""Most requests begin alike for so long, beyond a window."""

ADAPTER: Final = "other"

_TEXT: Final = """
A lighthouse stands where the river meets the sea. Its keeper, an old woman who had been a captain,
writes down each evening what has passed: ships and their names, birds, the colour of the water. In
the winter of the long storm she wrote nothing for nine days, and people in the village said that
the light had gone out. It had not. She had run out of ink, and after that of paper, and so she kept
the book in her head, one line for every hour, and when spring came she dictated the whole of it to
a boy who had learned to write at school. He asked why she wanted to remember hours in which there
was only wind. "Because," she said, "I have been asked to say what was there, not what I liked." The
book is kept in the town hall now. Visitors may read it if their hands are clean. Most of them look
for the nine days, and find the same words again and again, with small changes, as the sea has them.
"""


@contextlib.contextmanager
def open_world(models: ModelLibrary, kind: str, *, shares: bool = True) -> Iterator[World]:
    """With a tiny model. The cells for windows are fewer than the other cells, and a batch is
    smaller than most prompts. Unless it `shares`, every slot has cells of its own."""
    path, adapter = models.tiny(kind), models.tiny_adapter(1, kind)
    spec = LoadSpec(
        str(path),
        parallel=4,
        context=512,
        kv_tokens=1024 if shares else 4 * 512,
        batch_tokens=64,
        threads=1,
        options=EXACT,
        adapters={ADAPTER: AdapterSpec(str(adapter))},
        shares_cells=shares,
    )
    backend = llama.load(spec, lambda _: True)
    with NearTies(path, NEAR_TIE) as plain, NearTies(path, NEAR_TIE, adapter=adapter) as adapted:
        yield World(backend, {"": plain, ADAPTER: adapted})
    backend.close()


class World:
    """A loaded backend, `asks`, and what plain llama.cpp answers to each `alone`. `judges`: of the
    model without an adapter ("") and with `ADAPTER`."""

    def __init__(self, backend: Backend, judges: Mapping[str, NearTies]) -> None:
        """Requests short and longer than a window, with a common beginning; one of them is drawn,
        and one is for the adapter."""
        self.backend = backend
        self._judges = judges
        self._text = tuple(judges[""].tokens(_TEXT))
        self.asks: list[Ask] = []
        self.alone: list[list[int]] = []
        text, common = self._text, self._text[:NUM_COMMON]
        self._add(lambda offset: Ask((*common, *text[150 + offset : 160 + offset])))
        self._add(lambda offset: Ask(text[100 + offset : 105 + offset]))
        self._add(lambda offset: Ask((*common, *text[180 + offset : 250 + offset])))
        self._add(lambda offset: Ask(common[: NUM_COMMON - offset]))
        drawn = SamplingParams(temperature=0.8, top_k=20)
        tail = text[120:150]
        self._add(lambda offset: Ask((*common, *tail), replace(drawn, seed=offset)))
        tail = text[90:120]
        self._add(lambda offset: Ask((*common, *tail[offset:]), adapter=ADAPTER))

    def _add(self, make: Callable[[int], Ask]) -> None:
        """A request to whose answer no near tie belongs, so that it is the same word for word."""
        for offset in range(NUM_COMMON // 2):
            ask = make(offset)
            judge = self._judges[ask.adapter]
            answer = judge.answer(ask.tokens, NUM_TOKENS, ask.sampling)
            if judge.is_clear(ask.tokens, answer, ask.sampling):
                self.asks.append(ask)
                self.alone.append(answer)
                return
        raise AssertionError("near ties in every answer")

    def engine(self, **values: Any) -> Engine:
        return Engine(self.backend, **values)

    def long_ask(self, start: int) -> Ask:
        """Another request; 250 tokens, unlike those of `asks` from the first one on."""
        return Ask(self._text[1 + start : 251 + start])
