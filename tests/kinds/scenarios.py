"""What can happen to requests on their way, none of which may change an answer.

A scenario takes what makes an engine (with other limits, if need be), the requests, and text for
others; it gives the answers. To add one is to add a function to the table at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kinds.driver import Ask
from kinds.world import NUM_COMMON, NUM_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kinds.driver import Engine
    from kinds.world import World

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
    engine.ask(Ask((*world.asks[0].tokens[:NUM_COMMON], *world.long_ask(40).tokens[:40])), 10)
    engine.run()
    answers = _all_at_once(world, engine)
    cached = [engine.sequences[1 + rid].num_cached_tokens for rid in range(len(world.asks))]
    if world.backend.limits.num_prefix_tags:
        assert [bool(num) for num in cached] == [True, False, True, True, True, False], cached
    else:
        assert not any(cached), cached
    return answers


def behind_a_prefix_that_is_being_read(world: World) -> Answers:
    engine = world.engine(min_kept_tokens=16, kept_share=0.5, batch_tokens=8)
    engine.ask(Ask((*world.asks[0].tokens[:NUM_COMMON], *world.long_ask(40).tokens[:40])), 10)
    engine.steps(2)
    return _all_at_once(world, engine)


def evicted(world: World) -> Answers:
    """Prefixes come and go while they are wanted again and again."""
    return _evicted(world, kept_share=0.1, stowed_share=0.0)


def stowed(world: World) -> Answers:
    """They go to the host's memory, and come back from there or are forgotten."""
    return _evicted(world, kept_share=0.0, stowed_share=0.3)


def _evicted(world: World, **shares: float) -> Answers:
    engine = world.engine(min_kept_tokens=16, **shares)
    rids = []
    for turn, ask in enumerate(world.asks):
        engine.ask(world.long_ask(11 * turn), 5)
        rids.append(engine.ask(ask, NUM_TOKENS))
        engine.steps(7)
    return _finished(engine, rids)


def preempted(world: World) -> Answers:
    """Taken out of their slots while prompts are read, and while answers are written."""
    return _preempted(world, world.engine())


def preempted_and_computed_again(world: World) -> Answers:
    """The same, when there is no room in the host's memory."""
    return _preempted(world, world.engine(parked_share=0.0))


def preempted_by_higher_priorities(world: World) -> Answers:
    """Every turn some that are more urgent than all before want every slot."""
    engine = world.engine()
    rids = [engine.ask(ask, NUM_TOKENS) for ask in world.asks]
    for turn in range(1, 4):
        engine.steps(4)
        waiting = engine.scheduler.num_waiting
        for slot in range(4):
            engine.ask(world.long_ask(3 * turn + slot), 3, priority=turn)
        engine.step()
        assert engine.scheduler.num_waiting > waiting
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


def guessed_ahead(world: World) -> Answers:
    """Right guesses and wrong ones, of every length; only where a model can drop them."""
    oracle = Oracle(world)
    engine = world.engine(drafter=oracle, max_guesses=6)
    answers = _all_at_once(world, engine)
    num_accepted = sum(sequence.guessing.num_accepted for sequence in engine.sequences)
    assert bool(num_accepted) is world.backend.limits.can_drop_last
    return answers


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
    stowed,
    preempted,
    preempted_and_computed_again,
    preempted_by_higher_priorities,
    in_a_full_cache,
    beside_others_that_are_cancelled,
    resubmitted,
    of_several_choices,
    guessed_ahead,
    between_embeddings,
)


class Oracle:
    """Guesses what each request is answered alone, but for every fourth token."""

    def __init__(self, world: World) -> None:
        pairs = zip(world.asks, world.alone, strict=True)
        self._texts = [(*ask.tokens, *answer) for ask, answer in pairs]

    def propose(self, wanted: Mapping[int, tuple[list[int], int]]) -> dict[int, list[int]]:
        guesses = {slot: self._follow(tokens, length) for slot, (tokens, length) in wanted.items()}
        return {slot: tokens for slot, tokens in guesses.items() if tokens}

    def forget(self, slot: int) -> None:
        del slot

    def _follow(self, tokens: list[int], length: int) -> list[int]:
        start, end = len(tokens), len(tokens) + length
        text = next((each for each in self._texts if each[:start] == tuple(tokens)), ())
        return [token ^ (position % 4 == 3) for position, token in enumerate(text)][start:end]


def _preempted(world: World, engine: Engine) -> Answers:
    rids = [engine.ask(ask, NUM_TOKENS) for ask in world.asks]
    for num_steps in (1, 4, 1, 7, 5):
        engine.steps(num_steps)
        if engine.scheduler.num_running > 1:  # one that is alone would end
            engine.preempt()
    return _finished(engine, rids)


def _all_at_once(world: World, engine: Engine) -> Answers:
    return _finished(engine, [engine.ask(ask, NUM_TOKENS) for ask in world.asks])


def _finished(engine: Engine, rids: list[int]) -> Answers:
    engine.run()
    return [engine.answer(rid) for rid in rids]
