"""Whatever happens to requests on their way, each gets the answer that plain llama.cpp gives to it
alone: with models of every memory kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from kinds.scenarios import NUM_TOKENS, SCENARIOS, World
from models.tiny import WRITERS
from near_ties import NearTies

from openclawd.backends import llama
from openclawd.backends.base import LoadSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from models.library import ModelLibrary

TEXT = """
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
NEAR_TIE = 0.05
MOST_PARTINGS = 1
"""Of the answers of a scenario. None to three of all the answers of a kind part (2026-11-23)."""


@dataclass(frozen=True)
class Kind:
    world: World
    judge: NearTies
    alone: list[list[int]]


@pytest.fixture(scope="module", params=WRITERS)
def kind(request: pytest.FixtureRequest, models: ModelLibrary) -> Iterator[Kind]:
    """A backend whose cells for windows are fewer than its cells, and a batch smaller than most
    prompts."""
    path = models.tiny(request.param)
    spec = LoadSpec(str(path), parallel=4, context=512, kv_tokens=1024, batch_tokens=64, threads=1)
    backend = llama.load(spec, lambda _: True)
    with NearTies(path, NEAR_TIE) as judge:
        world = World.of(backend, judge.tokens(TEXT))
        alone = [judge.answer(ask.tokens, NUM_TOKENS, ask.sampling) for ask in world.asks]
        yield Kind(world, judge, alone)
    backend.close()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_answers_are_those_of_each_alone(
    kind: Kind, scenario: Callable[[World], list[list[int]]]
) -> None:
    answers, num_before = scenario(kind.world), len(kind.judge.partings)
    for ask, ours, alone in zip(kind.world.asks, answers, kind.alone, strict=True):
        kind.judge.check(ask.tokens, ours, alone, ask.sampling)
    assert len(kind.judge.partings) - num_before <= MOST_PARTINGS
