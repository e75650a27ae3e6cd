"""Any history of requests, cancels, preemptions and embeddings, with models of every memory kind:
each request that is not cancelled gets the answer that plain llama.cpp gives to it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from kinds.world import NUM_TOKENS

from openclawd.engine.sequence import Finish

if TYPE_CHECKING:
    from kinds.world import World

numbers = st.integers(0, 1000)
events = st.one_of(
    st.tuples(st.just("ask"), numbers),
    st.tuples(st.just("ask"), numbers),
    st.tuples(st.just("other"), numbers),
    st.tuples(st.just("embed"), numbers),
    st.tuples(st.just("abort"), numbers),
    st.tuples(st.just("preempt"), numbers),
    st.tuples(st.just("step"), st.integers(1, 12)),
    st.tuples(st.just("step"), st.integers(1, 12)),
)
limits = st.fixed_dictionaries(
    {
        "batch_tokens": st.sampled_from([5, 16, 64]),
        "min_kept_tokens": st.sampled_from([8, 60, 256]),
        "kept_share": st.sampled_from([0.0, 0.1, 0.5]),
        "stowed_share": st.sampled_from([0.0, 0.3]),
        "parked_share": st.sampled_from([0.0, 0.5]),
    }
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(limits, st.lists(events, min_size=5, max_size=40))
def test_no_history_changes_an_answer(
    world: World, limits: dict[str, float], history: list[tuple[str, int]]
) -> None:
    engine = world.engine(**limits)
    asked: dict[int, int] = {}  # numbers of world.asks, by rid
    for event, number in history:
        match event:
            case "ask":
                number %= len(world.asks)
                asked[engine.ask(world.asks[number], NUM_TOKENS, priority=number % 2)] = number
            case "other":
                engine.ask(world.long_ask(number % 100), 20)
            case "embed":
                engine.embed(world.long_ask(number % 100))
            case "abort" if engine.sequences:
                engine.abort(number % len(engine.sequences))
            case "preempt" if engine.scheduler.num_running > 1:  # one that is alone would end
                engine.preempt()
            case "step":
                engine.steps(number)
    engine.run()
    for rid, number in asked.items():
        if engine.finishes[rid] is Finish.LENGTH:
            assert engine.answer(rid) == world.alone[number]
        else:
            assert engine.answer(rid) == world.alone[number][: len(engine.answer(rid))]
