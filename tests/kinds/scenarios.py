"""What can happen to requests on their way, none of which may change an answer.

A scenario takes what makes an engine (with other limits, if need be), the requests, and text for
others; it gives the answers. To add one is to add a function to the table at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kinds.driver import Ask, Engine

from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.backends.base import Backend

NUM_TOKENS: Final = 24
"""Of each answer."""

NUM_COMMON: Final = 60
"""Most requests begin alike for so long, beyond a window."""


@dataclass(frozen=True)
class World:
    """A loaded backend, `asks` to answer, and `text`: some hundred tokens to make others of."""

    backend: Backend
    asks: list[Ask]
    text: tuple[int, ...]

    @classmethod
    def of(cls, backend: Backend, text: list[int]) -> World:
        """Short and longer than a window, with a common beginning, one of them drawn."""
        common = text[:NUM_COMMON]
        drawn = SamplingParams(temperature=1.0, top_k=20, seed=3)
        asks = [
            Ask((*common, *text[150:160])),
            Ask(tuple(text[100:105])),
            Ask((*common, *text[200:270])),
            Ask(tuple(common)),
            Ask((*common, *text[120:150]), drawn),
        ]
        return cls(backend, asks, tuple(text))

    def engine(self, **limits: object) -> Engine:
        return Engine(self.backend, **limits)

    def long_ask(self, start: int) -> Ask:
        """Another request; 250 tokens, unlike those of `asks` from the first one on."""
        return Ask(self.text[start : start + 250])


Answers = list[list[int]]


def one_by_one(world: World) -> Answers:
    """Every time in the slot, and over the cells, of the one before."""
    engine, answers = world.engine(), []
    for ask in world.asks:
        rid = engine.ask(ask, NUM_TOKENS)
        engine.run()
        answers.append(engine.answer(rid))
    return answers


def together(world: World) -> Answers:
    return _all_at_once(world, world.engine())


def in_small_pieces(world: World) -> Answers:
    return _all_at_once(world, world.engine(batch_tokens=7))


def one_after_another(world: World) -> Answers:
    """Prompts are read while others are being answered."""
    engine, rids = world.engine(), []
    for ask in world.asks:
        rids.append(engine.ask(ask, NUM_TOKENS))
        engine.steps(3)
    return _finished(engine, rids)


def beside_a_long_prompt(world: World) -> Answers:
    engine = world.engine()
    rids = [engine.ask(ask, NUM_TOKENS) for ask in world.asks[:3]]
    engine.steps(6)
    engine.ask(world.long_ask(20), 40)
    rids += [engine.ask(ask, NUM_TOKENS) for ask in world.asks[3:]]
    return _finished(engine, rids)


def in_used_slots(world: World) -> Answers:
    """Long requests were in every slot before, some to the end and some cut off."""
    engine = world.engine()
    cut = [engine.ask(world.long_ask(7 * slot), 40) for slot in range(4)]
    engine.steps(12)
    for rid in cut[1:3]:
        engine.abort(rid)
    engine.steps(1)
    return _all_at_once(world, engine)


def behind_a_kept_prefix(world: World) -> Answers:
    """What the requests have in common was computed for another before."""
    engine = world.engine(min_kept_tokens=16, kept_share=0.5)
    engine.ask(Ask((*world.asks[0].tokens[:NUM_COMMON], *world.text[40:80])), 10)
    engine.run()
    answers = _all_at_once(world, engine)
    cached = [engine.sequences[1 + rid].num_cached_tokens for rid in range(len(world.asks))]
    if world.backend.limits.num_prefix_tags:
        assert [bool(num) for num in cached] == [True, False, True, True, True], cached
    else:
        assert not any(cached), cached
    return answers


def behind_a_prefix_that_is_being_read(world: World) -> Answers:
    engine = world.engine(min_kept_tokens=16, kept_share=0.5, batch_tokens=8)
    engine.ask(Ask((*world.asks[0].tokens[:NUM_COMMON], *world.text[40:80])), 10)
    engine.steps(2)
    return _all_at_once(world, engine)


def evicted(world: World) -> Answers:
    """Prefixes come and go while they are wanted again and again."""
    engine = world.engine(min_kept_tokens=16, kept_share=0.1)
    rids = []
    for turn, ask in enumerate(world.asks):
        engine.ask(world.long_ask(11 * turn), 5)
        rids.append(engine.ask(ask, NUM_TOKENS))
        engine.steps(7)
    return _finished(engine, rids)


def preempted(world: World) -> Answers:
    """Taken out of their slots while prompts are read, and while answers are written."""
    engine = world.engine()
    rids = [engine.ask(ask, NUM_TOKENS) for ask in world.asks]
    for num_steps in (1, 4, 1, 7, 5):
        engine.steps(num_steps)
        if engine.scheduler.num_running > 1:  # one that is alone would end
            engine.preempt()
    return _finished(engine, rids)


def in_a_full_cache(world: World) -> Answers:
    """More is admitted than the backend has cells for, so that it says so in the middle."""
    engine = world.engine(kv_tokens=10 * world.backend.info.kv_tokens)
    for slot in range(2):
        engine.ask(world.long_ask(5 * slot), world.backend.info.kv_tokens // 2)
    return _all_at_once(world, engine)


def beside_others_that_are_cancelled(world: World) -> Answers:
    engine, rids = world.engine(), []
    for turn, ask in enumerate(world.asks):
        other = engine.ask(world.long_ask(13 * turn), 40)
        rids.append(engine.ask(ask, NUM_TOKENS))
        engine.steps(1 + 2 * turn)
        engine.abort(other)
        engine.steps(1)
    return _finished(engine, rids)


def resubmitted(world: World) -> Answers:
    """Each begun by one engine and finished by another, as when a worker dies."""
    first = world.engine()
    for ask in world.asks:
        first.ask(ask, NUM_TOKENS)
    first.steps(15)
    so_far = [first.answer(rid) for rid in range(len(world.asks))]
    assert any(so_far)
    second = world.engine()
    rids = [
        second.ask(ask, NUM_TOKENS, so_far=tokens)
        for ask, tokens in zip(world.asks, so_far, strict=True)
    ]
    return _finished(second, rids)


def of_several_choices(world: World) -> Answers:
    """The last of three answers to each prompt; they share it, where they can, and what was there
    of it before the first one began."""
    engine, rids = world.engine(), []
    for ask in world.asks:
        rids.append(engine.ask(ask, NUM_TOKENS))
        for index in (1, 2):
            engine.add_choice(rids[-1], index)
    engine.steps(9)
    engine.preempt()
    engine.run()
    assert engine.scheduler.num_used_tokens == 0
    if world.backend.limits.num_prefix_tags:
        for rid, ask in enumerate(world.asks):
            assert engine.siblings[rid, 2].num_cached_tokens == len(ask.tokens) - 1
    return [engine.answer(rid, 2) for rid in rids]


def between_embeddings(world: World) -> Answers:
    engine, rids = world.engine(), []
    for turn, ask in enumerate(world.asks):
        engine.embed(world.long_ask(17 * turn))
        rids.append(engine.ask(ask, NUM_TOKENS))
        engine.steps(2)
    return _finished(engine, rids)


SCENARIOS: Final[tuple[Callable[[World], Answers], ...]] = (
    one_by_one,
    together,
    in_small_pieces,
    one_after_another,
    beside_a_long_prompt,
    in_used_slots,
    behind_a_kept_prefix,
    behind_a_prefix_that_is_being_read,
    evicted,
    preempted,
    in_a_full_cache,
    beside_others_that_are_cancelled,
    resubmitted,
    of_several_choices,
    between_embeddings,
)


def _all_at_once(world: World, engine: Engine) -> Answers:
    return _finished(engine, [engine.ask(ask, NUM_TOKENS) for ask in world.asks])


def _finished(engine: Engine, rids: list[int]) -> Answers:
    engine.run()
    return [engine.answer(rid) for rid in rids]
