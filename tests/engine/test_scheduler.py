"""The scheduler without a model: single decisions, and a state machine over everything."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from openclawd.engine.batch import (
    Batch,
    BatchKind,
    CacheOp,
    Chunk,
    CopyCells,
    DropCells,
    ForgetParked,
    Opening,
    Outputs,
    ParkSlot,
    RestoreCells,
    ResumeSlot,
    StowCells,
    TokenOutput,
)
from openclawd.engine.limits import Limits
from openclawd.engine.pace import MAX_STRETCH, SHARED_STRETCH
from openclawd.engine.prefixes import Owner, num_same
from openclawd.engine.sampling import SamplingParams
from openclawd.engine.scheduler import NeverFits, Scheduler
from openclawd.engine.sequence import Effect, Embedded, Ended, Finish, Sampled, Sequence, State
from openclawd.engine.speculation import NgramDrafter
from openclawd.engine.stopping import OutputText

if TYPE_CHECKING:
    from collections.abc import Mapping

END = 0


class Letters:
    """Token n is the nth letter; token 0 ends."""

    def piece(self, token: int) -> bytes:
        return b"" if token == END else bytes([96 + token])

    def is_end(self, token: int) -> bool:
        return token == END


def make(**limits: Any) -> Scheduler:
    defaults = {
        "num_slots": 2,
        "kv_tokens": 100,
        "batch_tokens": 8,
        "embedding_batch_tokens": 8,
        "min_kept_tokens": 1,
        "kept_share": 1.0,
        "stowed_share": 0.0,
        "parked_share": 0.0,
        "max_skips": 0,
    }
    return Scheduler(Limits(**{**defaults, **limits}), Letters())


def generation(rid: int, num_prompt_tokens: int, max_tokens: int = 4, stop: str = "") -> Sequence:
    text = OutputText([stop] if stop else [])
    return Sequence(rid, 0, [1] * num_prompt_tokens, max_tokens, text=text)


def embedding(rid: int, num_prompt_tokens: int, index: int = 0) -> Sequence:
    return Sequence(rid, index, [1] * num_prompt_tokens, max_tokens=0)


def compute(batch: Batch, token: int = 2, *, num_right: int = 0) -> Outputs:
    """What a backend gives that samples the same token for all, after at most `num_right` guesses
    that it finds right."""
    chunks = [chunk for chunk in batch.chunks if chunk.num_outputs]
    if batch.kind is BatchKind.EMBEDDING:
        return Outputs(vectors={chunk.slot: b"vector" for chunk in chunks})
    right = {
        chunk.slot: chunk.tokens[len(chunk.tokens) - chunk.num_outputs + 1 :][:num_right]
        for chunk in chunks
    }
    return Outputs(
        tokens={
            slot: [TokenOutput(each) for each in [*guesses, token]]
            for slot, guesses in right.items()
        }
    )


def step(scheduler: Scheduler, token: int = 2) -> tuple[Batch, list[Effect]]:
    batch = scheduler.schedule()
    assert batch is not None
    effects = scheduler.update(batch, compute(batch, token))
    scheduler.check()
    return batch, effects


def run(scheduler: Scheduler) -> list[Effect]:
    effects: list[Effect] = []
    while not scheduler.is_idle:
        effects += step(scheduler)[1]
    return effects


def shape(batch: Batch) -> list[tuple[int, int]]:
    """(slot, number of tokens) of each chunk."""
    return [(chunk.slot, len(chunk.tokens)) for chunk in batch.chunks]


def test_nothing_to_do_is_no_batch() -> None:
    scheduler = make()
    assert scheduler.is_idle
    assert scheduler.schedule() is None


def test_a_sequence_is_prefilled_then_decoded_token_by_token() -> None:
    scheduler = make()
    sequence = generation(1, 3, max_tokens=2)
    scheduler.add(sequence)
    batch, effects = step(scheduler)
    assert batch.opened == [Opening(0, (1, 1, 1), 3, SamplingParams())]
    assert batch.chunks == [Chunk(0, 0, [1, 1, 1], num_outputs=1)]
    assert effects == [Sampled(sequence, TokenOutput(2), "b")]
    batch, effects = step(scheduler)
    assert batch.chunks == [Chunk(0, 3, [2], num_outputs=1)]
    assert batch.opened == []
    assert effects == [Sampled(sequence, TokenOutput(2), "b"), Ended(sequence, Finish.LENGTH)]
    assert sequence.state is State.ENDED
    assert sequence.num_completion_tokens == 2
    assert scheduler.is_idle


def test_a_stop_string_does_not_count_among_the_first_tokens() -> None:
    scheduler = make()
    sequence = generation(1, 3, max_tokens=9, stop="bb")
    sequence.sampling = SamplingParams(min_tokens=2)
    scheduler.add(sequence)
    shown = [effect.text for effect in run(scheduler) if isinstance(effect, Sampled)]
    assert shown == ["b", "b", "", ""]  # of the third and fourth token, "bb" is not shown


def test_what_mirostat_has_come_to_goes_with_a_sequence_that_is_preempted() -> None:
    scheduler = make()
    scheduler.add(generation(1, 3))
    scheduler.add(generation(2, 3))
    batch = scheduler.schedule()
    assert batch is not None
    assert [opening.mu for opening in batch.opened] == [None, None]
    outputs = {slot: [TokenOutput(2, mu=4.5 + slot)] for slot in (0, 1)}
    scheduler.update(batch, Outputs(tokens=outputs))
    scheduler.preempt()
    while not scheduler.num_waiting:
        scheduler.preempt()
    batches = []
    while not scheduler.is_idle:
        batches.append(step(scheduler)[0])
    (opened,) = [opening for batch in batches for opening in batch.opened]
    assert opened.mu == 5.5


def test_a_long_prompt_is_cut_into_chunks_that_leave_room_for_decodes() -> None:
    scheduler = make(batch_tokens=4)
    scheduler.add(generation(1, 2))
    step(scheduler)
    scheduler.add(generation(2, 7))
    assert shape(step(scheduler)[0]) == [(0, 1), (1, 3)]
    assert shape(step(scheduler)[0]) == [(0, 1), (1, 3)]
    batch, effects = step(scheduler)
    assert shape(batch) == [(0, 1), (1, 1)]
    assert [effect.sequence.rid for effect in effects if isinstance(effect, Sampled)] == [1, 2]


def test_where_a_large_mix_is_slow_decodes_and_prompts_take_turns() -> None:
    scheduler = make(num_slots=3, tile_tokens=4)
    for rid in (1, 2):
        scheduler.add(generation(rid, 1, max_tokens=9))
    step(scheduler)
    step(scheduler)
    scheduler.add(generation(3, 11))
    shapes = [shape(step(scheduler)[0]) for _ in range(4)]
    both = [(0, 1), (1, 1)]
    assert shapes == [[(2, 8)], both, [(2, 3)], [*both, (2, 1)]]


def test_no_step_is_empty_where_decodes_alone_fill_a_tile() -> None:
    scheduler = make(num_slots=2, tile_tokens=2)
    for rid in (1, 2):
        scheduler.add(generation(rid, 1, max_tokens=9))
    assert [shape(step(scheduler)[0]) for _ in range(4)] == [[(0, 1), (1, 1)]] * 4


def test_a_small_mix_is_one_step() -> None:
    scheduler = make(tile_tokens=4)
    scheduler.add(generation(1, 1))
    step(scheduler)
    scheduler.add(generation(2, 2))
    assert shape(step(scheduler)[0]) == [(0, 1), (1, 2)]


# ---- prompts that are computed aside ----


def make_aside(**limits: Any) -> Scheduler:
    """Two streams run, and what is done of a prompt aside is 4 to 8 tokens at a time."""
    scheduler = make(**{"num_slots": 5, "batch_tokens": 16, "aside_tokens": 8, **limits})
    for rid in (1, 2):
        scheduler.add(generation(rid, 1, max_tokens=20))
    step(scheduler)
    return scheduler


def schedule(scheduler: Scheduler) -> Batch:
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.check()
    return batch


def test_beside_running_streams_long_prompts_are_computed_aside() -> None:
    scheduler = make_aside()
    prompt = generation(3, 21)
    scheduler.add(prompt)
    parts = []
    while prompt.is_in_prefill:
        batch = schedule(scheduler)
        assert batch.is_aside
        parts += shape(batch)
        assert shape(step(scheduler)[0]) == [(0, 1), (1, 1)]  # the streams go on beside it
        scheduler.update(batch, compute(batch))
    assert parts == [(2, 8), (2, 8), (2, 5)]
    assert not schedule(scheduler).is_aside


def test_no_part_aside_leaves_too_few_for_another() -> None:
    scheduler = make_aside()
    scheduler.add(generation(3, 9))
    assert [shape(step(scheduler)[0]) for _ in range(2)] == [[(2, 4)], [(2, 5)]]


def test_a_prompt_is_not_aside_where_it_disturbs_nobody() -> None:
    scheduler = make_aside()
    scheduler.add(of_priority(3, 1, num_prompt_tokens=8))  # more urgent than the streams
    assert not step(scheduler)[0].is_aside
    scheduler.abort(1)
    scheduler.abort(2)
    scheduler.abort(3)
    scheduler.add(generation(4, 8))
    assert not step(scheduler)[0].is_aside


def test_short_and_urgent_prompts_pass_one_that_is_aside_and_other_long_ones_wait() -> None:
    scheduler = make_aside()
    scheduler.add(generation(3, 8))
    aside = schedule(scheduler)
    scheduler.add(generation(4, 8))
    scheduler.add(generation(5, 3))
    assert shape(step(scheduler)[0]) == [(0, 1), (1, 1), (4, 3)]
    scheduler.abort(5)
    scheduler.add(of_priority(6, 1, num_prompt_tokens=20))
    assert shape(step(scheduler)[0]) == [(4, 16)]
    assert scheduler.max_aside_s() == 0.0  # its rest is waited for
    assert shape(step(scheduler)[0]) == [(4, 4), (0, 1), (1, 1)]
    scheduler.update(aside, compute(aside))
    assert shape(schedule(scheduler)) == [(3, 8)]


def test_how_long_others_wait_for_what_is_aside_follows_from_their_own_steps() -> None:
    scheduler = make_aside()
    for _ in range(2):
        batch = schedule(scheduler)
        scheduler.update(batch, compute(batch), duration_s=0.010)
    scheduler.add(generation(3, 8))
    schedule(scheduler)
    assert scheduler.max_aside_s() == pytest.approx(0.010 * (MAX_STRETCH - 1))
    beside = schedule(scheduler)
    scheduler.update(beside, compute(beside), duration_s=0.012)  # in a pause
    assert scheduler.max_aside_s() == pytest.approx(0.010 * (MAX_STRETCH - 1))
    scheduler.add(generation(4, 3))
    schedule(scheduler)
    assert scheduler.max_aside_s() == pytest.approx(0.010 * (SHARED_STRETCH - 1))


def test_nothing_is_computed_beside_what_is_aside_when_there_is_nothing_else() -> None:
    scheduler = make_aside()
    scheduler.add(generation(3, 8))
    aside = schedule(scheduler)
    scheduler.abort(1)
    scheduler.abort(2)
    assert scheduler.schedule() is None
    scheduler.update(aside, compute(aside))
    assert shape(schedule(scheduler)) == [(2, 1)]


def test_what_is_cancelled_while_it_is_aside_ends_with_its_batch() -> None:
    scheduler = make_aside()
    prompt = generation(3, 8)
    for end in (Scheduler.stop_aside, Scheduler.update, Scheduler.fail):
        prompt = generation(3, 8)
        scheduler.add(prompt)
        aside = schedule(scheduler)
        assert scheduler.is_aside_wanted
        assert scheduler.abort(3) == []
        assert not scheduler.is_aside_wanted
        given = {Scheduler.update: (aside, compute(aside)), Scheduler.fail: (aside,)}
        assert end(scheduler, *given.get(end, ())) == [Ended(prompt, Finish.CANCELLED)]
        scheduler.check()
        assert scheduler.is_aside_wanted


def test_what_is_aside_is_given_up_for_a_higher_priority_that_needs_its_slot() -> None:
    scheduler = make_aside(num_slots=3)
    prompt = generation(3, 8)
    scheduler.add(prompt)
    schedule(scheduler)
    urgent = of_priority(4, 1)
    scheduler.add(urgent)
    step(scheduler)
    assert not scheduler.is_aside_wanted
    assert scheduler.stop_aside() == []
    assert urgent.state is State.WAITING
    step(scheduler)
    assert (urgent.state, prompt.state) == (State.RUNNING, State.WAITING)


def test_without_cells_what_is_aside_stays() -> None:
    scheduler = make_aside()
    prompt = generation(3, 8)
    scheduler.add(prompt)
    schedule(scheduler)
    schedule(scheduler)
    assert scheduler.preempt() == []
    scheduler.check()
    assert prompt.state is State.RUNNING
    assert scheduler.num_waiting == 1


def test_slots_are_opened_also_when_all_wait_for_what_is_aside() -> None:
    scheduler = make_aside()
    scheduler.add(generation(3, 8))
    schedule(scheduler)
    scheduler.abort(1)
    scheduler.abort(2)
    scheduler.add(generation(4, 8))
    batch = schedule(scheduler)
    assert (batch.chunks, [opening.slot for opening in batch.opened]) == ([], [0])
    assert scheduler.update(batch, compute(batch), duration_s=0.0) == []
    assert scheduler.schedule() is None


def test_much_that_is_cached_is_not_copied_for_a_little_that_is_new() -> None:
    scheduler = make_aside(num_prefix_tags=8, kv_tokens=200, batch_tokens=64)
    scheduler.add(chat(3, *SYSTEM, 1))
    run(scheduler)
    scheduler.add(generation(5, 1, max_tokens=9))
    step(scheduler)
    for num_new, is_aside in ((4, False), (6, True)):
        scheduler.add(chat(num_new, *SYSTEM, *[num_new] * num_new))
        assert step(scheduler)[0].is_aside is is_aside
        scheduler.abort(num_new)


def test_what_is_aside_is_not_blamed_for_garbage_in_the_others_cells() -> None:
    scheduler = make_aside()
    scheduler.add(generation(3, 8))
    schedule(scheduler)
    assert scheduler.blame("garbage") == []
    scheduler.abort(1)
    assert [ended.sequence.rid for ended in scheduler.blame("garbage")] == [2]


def test_a_more_urgent_prompt_is_read_before_anything_is_aside() -> None:
    scheduler = make_aside(batch_tokens=8)
    scheduler.add(generation(3, 8))
    scheduler.add(of_priority(4, 1, num_prompt_tokens=12))
    assert [step(scheduler)[0].is_aside for _ in range(3)] == [False, False, True]


def test_what_fails_aside_ends_and_nothing_else() -> None:
    scheduler = make_aside()
    prompt = generation(3, 8)
    scheduler.add(prompt)
    aside = schedule(scheduler)
    assert scheduler.fail(aside) == [Ended(prompt, Finish.ERROR)]
    scheduler.check()
    assert scheduler.num_running == 2


def test_decodes_come_before_a_prefill_that_was_admitted_first() -> None:
    scheduler = make(batch_tokens=3)
    scheduler.add(generation(1, 9))
    scheduler.add(generation(2, 1))
    assert shape(step(scheduler)[0]) == [(1, 1), (0, 2)]


def test_an_end_token_stops_and_is_counted() -> None:
    scheduler = make()
    sequence = generation(1, 1)
    scheduler.add(sequence)
    _, effects = step(scheduler, END)
    assert effects == [Sampled(sequence, TokenOutput(END), ""), Ended(sequence, Finish.STOP)]
    assert sequence.num_completion_tokens == 1


def test_a_stop_string_stops_and_is_not_shown() -> None:
    scheduler = make()
    sequence = generation(1, 1, stop="bb")
    scheduler.add(sequence)
    assert step(scheduler)[1] == [Sampled(sequence, TokenOutput(2), "")]
    assert step(scheduler)[1] == [
        Sampled(sequence, TokenOutput(2), ""),
        Ended(sequence, Finish.STOP),
    ]


def test_held_back_text_comes_with_the_end() -> None:
    scheduler = make()
    sequence = generation(1, 1, max_tokens=1, stop="bc")
    scheduler.add(sequence)
    assert step(scheduler)[1] == [
        Sampled(sequence, TokenOutput(2), ""),
        Ended(sequence, Finish.LENGTH, "b"),
    ]


def test_who_can_never_fit_is_refused_with_both_numbers() -> None:
    assert make(kv_tokens=10).add(generation(1, 8, max_tokens=3)) == NeverFits(11, 10)
    whole = make(splits_prompts=False)
    assert whole.add(embedding(1, 9)) == NeverFits(9, 8)
    assert whole.add(embedding(1, 8)) is None
    several = make(splits_prompts=False, embedding_batch_tokens=16, max_whole_tokens=6)
    assert several.add(embedding(1, 7)) == NeverFits(7, 6)
    assert several.add(embedding(1, 6)) is None


def test_a_step_of_an_encoder_holds_texts_of_many_requests() -> None:
    scheduler = make(
        num_slots=64,
        kv_tokens=64 * 8,
        batch_tokens=64,
        embedding_batch_tokens=64,
        splits_prompts=False,
        max_whole_tokens=8,
    )
    for rid in range(30):
        scheduler.add(embedding(rid, 2 + rid % 2))
    sizes = []
    while not scheduler.is_idle:
        batch, _ = step(scheduler)
        sizes.append(len(batch.chunks))
    assert sizes == [26, 4]  # the 26th does not fit into 64 tokens any more, the 27th does


def test_capacity_is_waited_for_in_the_order_of_arrival() -> None:
    scheduler = make(num_slots=3, kv_tokens=20)
    scheduler.add(generation(1, 4, max_tokens=6))
    scheduler.add(generation(2, 9, max_tokens=6))  # does not fit beside the first
    scheduler.add(generation(3, 1, max_tokens=1))  # would fit, but must not pass the second
    assert shape(step(scheduler)[0]) == [(0, 4)]
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
    ends = [effect for effect in run(scheduler) if isinstance(effect, Ended)]
    assert [end.sequence.rid for end in ends] == [1, 3, 2]


def test_what_failed_is_not_kept_for_others() -> None:
    scheduler = make(num_prefix_tags=4)
    scheduler.add(generation(1, 6))
    batch = scheduler.schedule()
    assert batch is not None
    (ended,) = scheduler.update(batch, Outputs(failed={0: "it broke"}))
    assert isinstance(ended, Ended)
    assert (ended.finish, ended.failure) == (Finish.ERROR, "it broke")
    assert scheduler.num_used_tokens == 0


def test_garbage_everywhere_is_blamed_on_the_one_that_nothing_sound_came_from() -> None:
    scheduler = make(batch_tokens=4)
    scheduler.add(generation(1, 2))
    scheduler.add(generation(2, 4))
    step(scheduler)  # the second is still in its prefill
    (ended,) = scheduler.blame("garbage")
    assert isinstance(ended, Ended)
    assert (ended.sequence.rid, ended.failure) == (2, "garbage")
    assert [ended.sequence.rid for ended in scheduler.blame("garbage")] == [1]  # the only one
    assert scheduler.is_idle


def test_of_two_that_may_have_brought_garbage_neither_is_blamed() -> None:
    scheduler = make()
    scheduler.add(generation(1, 2))
    scheduler.add(generation(2, 2))
    scheduler.schedule()
    assert scheduler.blame("garbage") == []
    assert scheduler.num_running == 2


def test_the_two_kinds_take_turns() -> None:
    scheduler = make(num_slots=2)
    scheduler.add(generation(1, 1, max_tokens=3))
    scheduler.add(embedding(2, 20))
    kinds = [step(scheduler)[0].kind for _ in range(4)]
    assert kinds == [
        BatchKind.GENERATION,
        BatchKind.EMBEDDING,
        BatchKind.GENERATION,
        BatchKind.EMBEDDING,
    ]


def test_many_embeddings_do_not_keep_a_generation_waiting_for_all_of_them() -> None:
    scheduler = make(num_slots=1)
    for index in range(5):
        scheduler.add(embedding(1, 2, index))
    scheduler.add(generation(2, 1, max_tokens=1))
    ends = [effect.sequence.rid for effect in run(scheduler) if isinstance(effect, Ended)]
    assert ends.index(2) <= 1


def test_an_embedding_ends_with_its_prompt() -> None:
    scheduler = make(embedding_batch_tokens=3)
    sequence = embedding(1, 5)
    scheduler.add(sequence)
    batch, effects = step(scheduler)
    assert batch.opened == [Opening(0, (1,) * 5, 5, None)]
    assert (shape(batch), effects) == ([(0, 3)], [])
    batch, effects = step(scheduler)
    assert effects == [Embedded(sequence, b"vector"), Ended(sequence, Finish.STOP)]
    assert sequence.num_completion_tokens == 0


def test_prompts_that_must_not_be_cut_come_whole() -> None:
    scheduler = make(splits_prompts=False, num_slots=3)
    for rid in range(3):
        scheduler.add(embedding(rid, 5))
    assert [shape(step(scheduler)[0]) for _ in range(3)] == [[(0, 5)], [(1, 5)], [(2, 5)]]


def test_abort_ends_running_and_waiting_sequences_with_what_was_held_back() -> None:
    scheduler = make(num_slots=1)
    running, waiting = generation(1, 1, stop="bc"), embedding(1, 1, index=1)
    scheduler.add(running)
    step(scheduler)
    scheduler.add(waiting)
    assert scheduler.abort(1) == [
        Ended(waiting, Finish.CANCELLED),
        Ended(running, Finish.CANCELLED, "b"),
    ]
    assert scheduler.is_idle
    assert scheduler.abort(1) == []
    scheduler.check()


def test_a_freed_slot_is_emptied_with_the_next_batch() -> None:
    scheduler = make()
    scheduler.add(generation(1, 1))
    step(scheduler)
    scheduler.abort(1)
    scheduler.add(generation(2, 1))
    batch = step(scheduler)[0]
    assert batch.cache_ops == [DropCells(0)]
    assert [opening.slot for opening in batch.opened] == [0]


def test_the_first_batch_empties_what_a_warm_up_left() -> None:
    scheduler = make()
    scheduler.add(generation(1, 1))
    assert step(scheduler)[0].cache_ops == [DropCells(0), DropCells(1)]


# ---- kept prefixes ----


def chat(
    rid: int, *tokens: int, domain: str | None = "", max_tokens: int = 1, adapter: str = ""
) -> Sequence:
    return Sequence(rid, 0, list(tokens), max_tokens, domain=domain, adapter=adapter)


SYSTEM = (3,) * 40


def test_a_finished_sequence_serves_a_later_one_with_the_same_beginning() -> None:
    scheduler = make(num_prefix_tags=8, batch_tokens=64)
    scheduler.add(chat(1, *SYSTEM, 1))
    run(scheduler)
    second = chat(2, *SYSTEM, 2)
    scheduler.add(second)
    batch = step(scheduler)[0]
    assert batch.chunks == [Chunk(0, 40, [2], num_outputs=1)]
    assert second.num_cached_tokens == 40


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    scheduler = make(num_prefix_tags=8, batch_tokens=64)
    for rid in (1, 2):
        scheduler.add(chat(rid, *SYSTEM))
        batches = [step(scheduler)[0]]
    assert batches[0].chunks == [Chunk(0, 39, [3], num_outputs=1)]


def test_what_another_domain_computed_is_not_found() -> None:
    scheduler = make(num_prefix_tags=8, batch_tokens=64)
    scheduler.add(chat(1, *SYSTEM, 1, domain="alice"))
    run(scheduler)
    other = chat(2, *SYSTEM, 1, domain="bob")
    scheduler.add(other)
    run(scheduler)
    assert other.num_cached_tokens == 0


def test_what_was_computed_with_another_adapter_is_not_found() -> None:
    scheduler = make(num_prefix_tags=8, batch_tokens=64, kv_tokens=400)
    scheduler.add(chat(1, *SYSTEM, domain=None))
    run(scheduler)
    for adapter, num_cached in (("", 40), ("x", 0), ("x", 41), ("y", 0), ("", 41)):
        sequence = chat(2, *SYSTEM, 1, 2, domain="alice", adapter=adapter)
        scheduler.add(sequence)
        assert step(scheduler)[0].adapter == adapter
        assert sequence.num_cached_tokens == num_cached


def test_adapters_take_turns_and_never_meet_in_a_batch() -> None:
    scheduler = make(num_slots=5, batch_tokens=64, kv_tokens=400)
    for rid, adapter in enumerate(("", "x", "", "y", "x")):
        scheduler.add(chat(rid, rid + 1, max_tokens=4, adapter=adapter))
    seen = [(batch.kind, batch.adapter, shape(batch)) for batch, _ in map(step, [scheduler] * 6)]
    texts = [("", [(0, 1), (2, 1)]), ("x", [(1, 1), (4, 1)]), ("y", [(3, 1)])]
    assert seen == [(BatchKind.GENERATION, *text) for text in texts] * 2
    run(scheduler)


def test_a_prefix_that_is_computed_with_another_adapter_is_not_waited_for() -> None:
    scheduler = make(num_slots=3, num_prefix_tags=8, batch_tokens=32, kv_tokens=400)
    for rid, adapter in ((1, ""), (2, "x")):
        scheduler.add(chat(rid, *SYSTEM, rid, adapter=adapter))
    assert shape(step(scheduler)[0]) == [(0, 32)]
    assert shape(step(scheduler)[0]) == [(1, 32)]


def test_a_pinned_prefix_serves_every_domain_and_stays() -> None:
    scheduler = make(num_slots=1, num_prefix_tags=8, batch_tokens=64, kv_tokens=100, kept_share=0)
    scheduler.add(chat(1, *SYSTEM, domain=None))
    run(scheduler)
    assert scheduler.is_pinned([*SYSTEM])
    assert not scheduler.is_pinned([*SYSTEM, 1])
    for domain in ("alice", "bob"):
        sequence = chat(2, *SYSTEM, 1, domain=domain, max_tokens=59)  # needs all that is left
        scheduler.add(sequence)
        run(scheduler)
        assert sequence.num_cached_tokens == 40
        assert scheduler.num_used_tokens == scheduler.num_kept_tokens == 40


def test_what_a_domain_adds_to_a_pinned_prefix_is_its_own() -> None:
    scheduler = make(num_prefix_tags=8, batch_tokens=64)
    scheduler.add(chat(1, *SYSTEM, domain=None))
    run(scheduler)
    for domain, num_cached in (("alice", 40), ("alice", 42), ("bob", 40)):
        sequence = chat(2, *SYSTEM, 1, 2, 1, domain=domain)
        scheduler.add(sequence)
        run(scheduler)
        assert sequence.num_cached_tokens == num_cached


def begin_and_make_way(scheduler: Scheduler, sequence: Sequence) -> None:
    """It has one step, and then a more urgent one needs its slot."""
    scheduler.add(sequence)
    step(scheduler)
    urgent = chat(3, 5)
    urgent.priority = 1
    scheduler.add(urgent)
    step(scheduler)


def test_a_sequence_that_fits_only_with_what_is_pinned_is_not_parked() -> None:
    """It would have cells of its own when it comes back, for which there is never room."""
    scheduler = make(
        num_slots=1, num_prefix_tags=8, batch_tokens=64, kv_tokens=50, parked_share=1.0
    )
    scheduler.add(chat(1, *SYSTEM, domain=None))
    run(scheduler)
    large = chat(2, *SYSTEM, 1, max_tokens=9)
    begin_and_make_way(scheduler, large)
    assert (large.state, large.parked) == (State.WAITING, None)
    run(scheduler)
    assert large.num_completion_tokens == 9


def test_what_does_not_fit_beside_pinned_prefixes_is_refused() -> None:
    scheduler = make(num_slots=1, num_prefix_tags=8, batch_tokens=64, kv_tokens=100)
    scheduler.add(chat(1, *SYSTEM, domain=None))
    run(scheduler)
    assert scheduler.add(chat(2, 1, 1, max_tokens=59)) == NeverFits(61, 60)
    assert scheduler.add(chat(3, *SYSTEM[:20], 1, max_tokens=60)) == NeverFits(81, 80)
    assert scheduler.add(embedding(4, 61)) == NeverFits(61, 60)


def test_a_sequence_that_shares_only_a_part_of_a_large_prefix_still_fits() -> None:
    """All of a kept node stays while a part of it is used, and the two together are too large."""
    scheduler = make(num_slots=1, num_prefix_tags=8, batch_tokens=64, kv_tokens=60)
    scheduler.add(chat(1, *[1] * 50))
    run(scheduler)
    large = chat(2, *[1] * 10, *[2] * 40, max_tokens=5)
    scheduler.add(large)
    run(scheduler)
    assert large.num_cached_tokens == 0


def test_a_prefix_that_is_being_computed_is_waited_for() -> None:
    scheduler = make(num_slots=3, num_prefix_tags=8, batch_tokens=32, kv_tokens=400)
    sequences = [chat(rid, *SYSTEM, rid) for rid in (1, 2)]
    for sequence in [*sequences, chat(3, 9, 9)]:
        scheduler.add(sequence)
    assert shape(step(scheduler)[0]) == [(0, 32)]
    assert shape(step(scheduler)[0]) == [(0, 9), (1, 2)]  # the third request does not wait
    assert shape(step(scheduler)[0]) == [(0, 1)]
    assert [sequence.num_cached_tokens for sequence in sequences] == [0, 40]


def test_kept_prefixes_make_room_when_it_is_needed() -> None:
    scheduler = make(num_slots=1, num_prefix_tags=8, batch_tokens=64, kv_tokens=60)
    scheduler.add(chat(1, *SYSTEM))
    run(scheduler)
    assert scheduler.num_used_tokens == 40
    scheduler.add(chat(2, *[5] * 50))
    run(scheduler)
    assert scheduler.num_used_tokens == 50
    again = chat(3, *SYSTEM)
    scheduler.add(again)
    run(scheduler)
    assert again.num_cached_tokens == 0


def test_without_cells_kept_prefixes_go_before_anybody_is_preempted() -> None:
    scheduler = make(num_prefix_tags=8, batch_tokens=64)
    scheduler.add(chat(1, *SYSTEM))
    run(scheduler)
    running = chat(2, 7, 7, max_tokens=4)
    scheduler.add(running)
    step(scheduler)
    assert scheduler.schedule() is not None
    assert scheduler.preempt() == []
    assert running.state is State.RUNNING
    assert scheduler.num_used_tokens == 2


def restored(batch: Batch) -> list[int]:
    """The tags whose cells come back with a batch."""
    return [op.tag for op in batch.cache_ops if isinstance(op, RestoreCells)]


def make_with_system_prompt_stowed(**limits: Any) -> Scheduler:
    defaults = {"num_slots": 1, "num_prefix_tags": 8, "batch_tokens": 64, "kv_tokens": 100}
    scheduler = make(**{**defaults, "kept_share": 0.0, "stowed_share": 1.0, **limits})
    scheduler.add(chat(1, *SYSTEM))
    run(scheduler)
    assert (scheduler.num_used_tokens, scheduler.num_stowed_tokens) == (0, 40)
    return scheduler


def test_a_prefix_in_the_hosts_memory_serves_like_any_other() -> None:
    scheduler = make_with_system_prompt_stowed()
    second = chat(2, *SYSTEM, 2)
    scheduler.add(second)
    batch, _ = step(scheduler)
    assert len(restored(batch)) == 1
    assert batch.chunks == [Chunk(0, 40, [2], num_outputs=1)]
    assert second.num_cached_tokens == 40


def test_a_sequence_whose_prefix_cannot_be_restored_begins_anew() -> None:
    scheduler = make_with_system_prompt_stowed(num_slots=3)
    second, other = chat(2, *SYSTEM, 2), chat(3, 7)
    for sequence in (second, other):
        scheduler.add(sequence)
    assert scheduler.preempt(restored(schedule(scheduler))) == []
    scheduler.check()
    assert (second.state, other.state) == (State.WAITING, State.RUNNING)
    assert scheduler.num_stowed_tokens == 0
    run(scheduler)
    assert second.num_cached_tokens == 0


def test_what_was_cached_of_a_sequence_stays_so_when_it_has_to_be_computed_again() -> None:
    scheduler = make_with_system_prompt_stowed()
    second = chat(2, *SYSTEM, 2, max_tokens=9)
    begin_and_make_way(scheduler, second)
    assert second.state is State.WAITING
    tags = restored(schedule(scheduler))
    assert second.num_computed_tokens == 41
    assert scheduler.preempt(tags) == []
    run(scheduler)
    assert (second.num_cached_tokens, second.num_completion_tokens) == (40, 9)


def test_what_is_needed_leaves_out_the_prefixes_that_nobody_uses() -> None:
    scheduler = make(num_prefix_tags=8, batch_tokens=64, kv_tokens=200)
    assert (scheduler.num_needed_tokens, scheduler.num_longest_tokens) == (0, 0)
    scheduler.add(chat(1, *SYSTEM))
    run(scheduler)
    assert (scheduler.num_used_tokens, scheduler.num_needed_tokens) == (40, 0)
    scheduler.add(chat(2, *SYSTEM, 1, max_tokens=9))
    step(scheduler)
    assert (scheduler.num_needed_tokens, scheduler.num_longest_tokens) == (41, 42)


def test_short_prefixes_are_neither_kept_nor_waited_for() -> None:
    scheduler = make(num_prefix_tags=8, batch_tokens=32, kv_tokens=400, min_kept_tokens=64)
    sequences = [chat(rid, *SYSTEM, rid) for rid in (1, 2)]
    for sequence in sequences:
        scheduler.add(sequence)
    run(scheduler)
    assert [sequence.num_cached_tokens for sequence in sequences] == [0, 0]
    assert scheduler.num_used_tokens == 0


def choices(rid: int, num_choices: int, *prompt: int, max_tokens: int = 4) -> list[Sequence]:
    """The sequences of one request."""
    return [Sequence(rid, index, list(prompt), max_tokens) for index in range(num_choices)]


def make_for_siblings(**limits: Any) -> Scheduler:
    defaults = {"num_slots": 4, "num_prefix_tags": 8, "batch_tokens": 64, "min_kept_tokens": 64}
    return make(**{**defaults, **limits})


def test_siblings_wait_for_the_first_and_share_its_prompt_however_short() -> None:
    scheduler = make_for_siblings()
    sequences = choices(1, 3, 5, 6, 7)
    for sequence in sequences:
        scheduler.add(sequence)
    assert shape(step(scheduler)[0]) == [(0, 3)]
    batch, _ = step(scheduler)
    assert shape(batch) == [(0, 1), (1, 1), (2, 1)]
    tag = 11
    assert CopyCells(0, tag, 0, 3) in batch.cache_ops
    for slot in (1, 2):
        assert CopyCells(tag, slot, 0, 2) in batch.cache_ops
    assert scheduler.num_used_tokens == 4 + 1 + 1  # each has its own last token, as yet
    run(scheduler)
    assert [sequence.num_cached_tokens for sequence in sequences] == [0, 2, 2]
    assert scheduler.num_used_tokens == 0


def test_the_prompt_of_a_first_that_has_ended_is_kept_for_siblings_that_wait() -> None:
    scheduler = make_for_siblings(num_slots=1)
    sequences = choices(1, 3, 5, 6, 7, max_tokens=1)
    for sequence in sequences:
        scheduler.add(sequence)
    assert [shape(step(scheduler)[0]) for _ in sequences] == [[(0, 3)], [(0, 1)], [(0, 1)]]
    assert scheduler.num_used_tokens == 0


def test_siblings_that_are_cancelled_leave_nothing() -> None:
    scheduler = make_for_siblings(num_slots=2)
    for sequence in choices(1, 4, 5, 6, 7):
        scheduler.add(sequence)
    step(scheduler)
    step(scheduler)
    assert len(scheduler.abort(1)) == 4
    assert scheduler.is_idle
    assert scheduler.num_used_tokens == 0


def test_a_prompt_of_one_token_leaves_nothing_to_wait_for() -> None:
    scheduler = make_for_siblings()
    for sequence in choices(1, 3, 5):
        scheduler.add(sequence)
    assert shape(step(scheduler)[0]) == [(0, 1), (1, 1), (2, 1)]


def test_requests_with_the_same_short_prompt_are_no_siblings() -> None:
    scheduler = make_for_siblings()
    for sequence in (*choices(1, 1, 5, 6, 7), *choices(2, 1, 5, 6, 7)):
        scheduler.add(sequence)
    assert shape(step(scheduler)[0]) == [(0, 3), (1, 3)]


def test_without_shared_cells_each_sibling_computes_its_prompt() -> None:
    scheduler = make_for_siblings(num_prefix_tags=0)
    for sequence in choices(1, 3, 5, 6, 7):
        scheduler.add(sequence)
    assert shape(step(scheduler)[0]) == [(0, 3), (1, 3), (2, 3)]


def test_kept_prefixes_that_nobody_uses_stay_within_their_share() -> None:
    scheduler = make(num_prefix_tags=8, batch_tokens=64, kv_tokens=200, kept_share=0.25)
    for rid in range(1, 4):
        scheduler.add(chat(rid, *[rid] * 30))
        run(scheduler)
        assert scheduler.num_used_tokens <= 50
    newest = chat(9, *[3] * 30)
    scheduler.add(newest)
    run(scheduler)
    assert newest.num_cached_tokens == 29


def test_a_chats_next_turn_finds_its_own_answer() -> None:
    scheduler = make(num_prefix_tags=8, batch_tokens=64)
    first = chat(1, 5, 6, max_tokens=3)
    scheduler.add(first)
    run(scheduler)
    assert first.tokens == [5, 6, 2, 2, 2]
    second = chat(2, 5, 6, 2, 2, 2, 7)
    scheduler.add(second)
    run(scheduler)
    assert second.num_cached_tokens == 4  # the last token of an answer is never computed


def test_a_batch_that_fails_ends_its_sequences_and_no_others() -> None:
    scheduler = make()
    failing, other = generation(1, 1), embedding(2, 1)
    scheduler.add(failing)
    scheduler.add(other)
    batch = scheduler.schedule()
    assert batch is not None
    assert scheduler.fail(batch) == [Ended(failing, Finish.ERROR)]
    scheduler.check()
    assert scheduler.num_running == 1


def test_a_sequence_that_cannot_go_on_ends_and_no_other() -> None:
    scheduler = make()
    failing, other = generation(1, 1), generation(2, 1)
    scheduler.add(failing)
    scheduler.add(other)
    batch = scheduler.schedule()
    assert batch is not None
    outputs = compute(batch)
    del outputs.tokens[0]
    outputs.failed[0] = "no text follows it"
    ended, sampled = scheduler.update(batch, outputs)
    scheduler.check()
    assert ended == Ended(failing, Finish.ERROR, failure="no text follows it")
    assert isinstance(sampled, Sampled)
    assert scheduler.num_running == 1


def test_preemption_takes_the_youngest_and_it_goes_on_where_it_was() -> None:
    scheduler = make()
    old, young = generation(1, 1, max_tokens=3), generation(2, 2, max_tokens=3)
    scheduler.add(old)
    scheduler.add(young)
    step(scheduler)
    assert scheduler.schedule() is not None
    assert scheduler.preempt() == []
    scheduler.check()
    assert young.state is State.WAITING
    batch = step(scheduler)[0]  # nothing is admitted before a sequence ended
    assert (shape(batch), batch.cache_ops) == ([(0, 1)], [DropCells(1)])
    step(scheduler)
    batch = step(scheduler)[0]
    assert old.state is State.ENDED
    assert batch.opened == [Opening(0, (1, 1, 2), 2, SamplingParams())]
    assert batch.chunks == [Chunk(0, 0, [1, 1, 2], num_outputs=1)]
    run(scheduler)
    assert (young.num_prompt_tokens, young.num_completion_tokens) == (2, 3)


def test_a_sequence_that_is_alone_and_finds_no_cells_ends() -> None:
    scheduler = make()
    sequence = generation(1, 1)
    scheduler.add(sequence)
    assert scheduler.schedule() is not None
    assert scheduler.preempt() == [Ended(sequence, Finish.ERROR)]
    assert scheduler.is_idle


def test_used_tokens_are_those_that_were_computed() -> None:
    scheduler = make()
    scheduler.add(generation(1, 3))
    assert scheduler.num_used_tokens == 0
    step(scheduler)
    assert scheduler.num_used_tokens == 3


@pytest.mark.parametrize(
    "limits", [{"num_slots": 9}, {"num_slots": 0}, {"embedding_batch_tokens": 0}]
)
def test_limits_that_cannot_work_are_a_bug_of_the_caller(limits: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        make(**limits)


def test_a_sequence_needs_a_token() -> None:
    with pytest.raises(AssertionError):
        generation(1, 0)


# ---- priorities ----


def of_priority(rid: int, priority: int, num_prompt_tokens: int = 2) -> Sequence:
    return Sequence(rid, 0, [1] * num_prompt_tokens, 4, priority=priority)


def test_a_higher_priority_is_admitted_first() -> None:
    scheduler = make(num_slots=1)
    for rid, priority in ((1, -1), (2, 0), (3, 1), (4, 1)):
        scheduler.add(of_priority(rid, priority))
    ends = [effect.sequence.rid for effect in run(scheduler) if isinstance(effect, Ended)]
    assert ends == [3, 4, 2, 1]


def test_a_higher_priority_takes_the_slot_of_a_lower_one_which_goes_on_where_it_was() -> None:
    scheduler = make(num_slots=1, parked_share=1.0)
    batch_work, urgent = of_priority(1, -1), of_priority(2, 0)
    scheduler.add(batch_work)
    step(scheduler)
    scheduler.add(urgent)
    batch, _ = step(scheduler)
    assert batch.cache_ops == [ParkSlot(0, 1), DropCells(0)]
    assert [opening.tokens for opening in batch.opened] == [(1, 1)]
    for _ in range(3):
        step(scheduler)
    assert urgent.state is State.ENDED
    batch, _ = step(scheduler)
    assert batch.cache_ops == [DropCells(0), ResumeSlot(1, 0)]
    assert batch.opened == []
    assert batch.chunks == [Chunk(0, 2, [2], num_outputs=1)]
    assert batch_work.num_cached_tokens == 0


def test_without_room_for_parking_a_preempted_sequence_is_computed_again() -> None:
    scheduler = make(num_slots=1)
    batch_work = of_priority(1, -1)
    scheduler.add(batch_work)
    step(scheduler)
    scheduler.add(of_priority(2, 0))
    assert step(scheduler)[0].cache_ops == [DropCells(0)]
    for _ in range(3):
        step(scheduler)
    batch, _ = step(scheduler)
    assert batch.opened == [Opening(0, (1, 1, 2), 2, SamplingParams())]
    assert batch.chunks == [Chunk(0, 0, [1, 1, 2], num_outputs=1)]


def test_equals_are_not_preempted_nor_anybody_in_vain() -> None:
    scheduler = make(num_slots=3, kv_tokens=20, batch_tokens=64)
    scheduler.add(of_priority(1, 1, num_prompt_tokens=8))
    scheduler.add(of_priority(2, -1))
    step(scheduler)
    scheduler.add(of_priority(3, 0, num_prompt_tokens=10))
    assert shape(step(scheduler)[0]) == [(0, 1), (1, 1)]  # not even without the second
    scheduler.abort(1)
    scheduler.add(of_priority(4, -1, num_prompt_tokens=3))
    assert shape(step(scheduler)[0]) == [(0, 10), (1, 1)]


def test_an_embedding_that_is_preempted_starts_again() -> None:
    scheduler = make(num_slots=1, parked_share=1.0, embedding_batch_tokens=3)
    scheduler.add(Sequence(1, 0, [1] * 5, max_tokens=0, priority=-1))
    step(scheduler)
    scheduler.add(of_priority(2, 0))
    assert step(scheduler)[0].cache_ops == [DropCells(0)]
    effects = run(scheduler)
    assert [type(effect) for effect in effects[-2:]] == [Embedded, Ended]


def test_one_that_was_given_a_lower_priority_loses_its_slot_and_not_the_newest() -> None:
    scheduler = make(parked_share=1.0)
    sequences = [of_priority(rid, 0) for rid in (1, 2, 3, 4)]

    def running() -> list[int]:
        step(scheduler)
        scheduler.check()
        return [each.rid for each in sequences if each.state is State.RUNNING]

    for sequence in sequences[:2]:
        scheduler.add(sequence)
    assert running() == [1, 2]
    scheduler.reprioritize(1, -1)
    scheduler.reprioritize(7, 5)  # there is none
    for sequence in sequences[2:]:
        scheduler.add(sequence)
    assert running() == [2, 3]
    scheduler.reprioritize(1, 0)  # it waits, and is now before those who never ran
    scheduler.abort(2)
    assert running() == [1, 3]


def test_what_is_parked_is_forgotten_when_its_request_is_aborted() -> None:
    scheduler = make(num_slots=1, parked_share=1.0)
    scheduler.add(of_priority(1, -1))
    step(scheduler)
    scheduler.add(of_priority(2, 0))
    step(scheduler)
    assert [type(effect) for effect in scheduler.abort(1)] == [Ended]
    assert step(scheduler)[0].cache_ops == [ForgetParked(1)]


def test_what_cannot_be_resumed_is_computed_again() -> None:
    scheduler = make(num_slots=2, parked_share=1.0)
    for rid in (1, 2):
        scheduler.add(of_priority(rid, -1))
    step(scheduler)
    scheduler.add(of_priority(3, 0))
    assert ParkSlot(1, 1) in step(scheduler)[0].cache_ops
    scheduler.abort(3)
    batch = scheduler.schedule()
    assert batch is not None
    assert ResumeSlot(1, 1) in batch.cache_ops
    assert scheduler.preempt(lost=[1]) == []
    scheduler.check()
    assert {end.sequence.rid for end in run(scheduler) if isinstance(end, Ended)} == {1, 2}


def test_who_waits_for_cells_is_passed_a_few_times_and_no_more() -> None:
    scheduler = make(num_slots=3, kv_tokens=20, max_skips=2)
    scheduler.add(generation(1, 10, max_tokens=6))
    scheduler.add(generation(2, 12, max_tokens=6))
    for rid in range(3, 8):
        scheduler.add(generation(rid, 1, max_tokens=1))
    ends = [effect.sequence.rid for effect in run(scheduler) if isinstance(effect, Ended)]
    assert ends == [3, 4, 1, 2, 5, 6, 7] or ends == [3, 4, 1, 5, 6, 7, 2]


# ---- keeping the pace ----


def paced(scheduler: Scheduler) -> Batch:
    """A step whose duration is told: a millisecond a token."""
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.update(batch, compute(batch), duration_s=0.001 * batch.num_tokens)
    scheduler.check()
    return batch


def test_a_prompt_is_read_in_small_parts_beside_running_streams() -> None:
    scheduler = make(num_slots=5, batch_tokens=64, kv_tokens=400)
    for rid in range(4):
        scheduler.add(generation(rid, 2, max_tokens=40))
    paced(scheduler)
    paced(scheduler)
    scheduler.add(generation(9, 60, max_tokens=40))
    parts = [paced(scheduler).num_tokens - 4 for _ in range(6)]
    assert parts == [8] * 6  # 4 decodes take 4 ms; with 8 prompt tokens 12, 3 times as long


def test_a_prompt_of_higher_priority_is_read_at_once() -> None:
    scheduler = make(num_slots=5, batch_tokens=64, kv_tokens=400)
    for rid in range(4):
        scheduler.add(generation(rid, 2, max_tokens=40))
    paced(scheduler)
    paced(scheduler)
    scheduler.add(of_priority(9, 1, num_prompt_tokens=60))
    assert shape(paced(scheduler))[0] == (4, 60)


def a_burst(num_prompt_tokens: list[int]) -> Scheduler:
    """Two streams that know how long their steps take, then prompts that all come at once."""
    scheduler = make(num_slots=8, batch_tokens=64, kv_tokens=800, tile_tokens=32)
    for rid in range(2):
        scheduler.add(generation(rid, 2, max_tokens=3))
    while not scheduler.is_idle:
        paced(scheduler)
    for rid, num_tokens in enumerate(num_prompt_tokens):
        scheduler.add(generation(rid, num_tokens, max_tokens=40))
    return scheduler


def test_the_rest_of_a_burst_is_read_before_its_first_streams_go_on() -> None:
    scheduler = a_burst([30, 30, 20, 20])
    assert shape(paced(scheduler)) == [(0, 30), (1, 30), (2, 4)]
    assert shape(paced(scheduler)) == [(2, 16), (3, 20)]
    assert shape(paced(scheduler)) == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_what_comes_after_a_first_token_is_part_of_the_burst() -> None:
    scheduler = a_burst([30])
    paced(scheduler)
    for rid in range(1, 3):
        scheduler.add(generation(rid, 30, max_tokens=40))
    assert shape(paced(scheduler)) == [(1, 30), (2, 30)]


def test_what_comes_after_a_second_token_is_no_part_of_the_burst() -> None:
    scheduler = a_burst([30, 30])
    paced(scheduler)
    paced(scheduler)
    scheduler.add(generation(9, 30, max_tokens=40))
    num_beside = [
        sum(count for slot, count in shape(paced(scheduler)) if slot == 2) for _ in range(3)
    ]
    assert 0 < max(num_beside) < 30


def test_the_first_streams_of_a_burst_have_a_step_between_its_batches() -> None:
    scheduler = a_burst([32] * 6)
    assert shape(paced(scheduler)) == [(0, 32), (1, 32)]
    assert shape(paced(scheduler)) == [(0, 1), (1, 1)]
    assert shape(paced(scheduler)) == [(2, 32), (3, 32)]
    assert shape(paced(scheduler)) == [(4, 32), (5, 32)]
    assert shape(paced(scheduler)) == [(slot, 1) for slot in range(6)]


def test_a_long_rest_of_a_burst_keeps_to_the_pace() -> None:
    scheduler = a_burst([30, 30, 300])
    paced(scheduler)
    batches = [shape(paced(scheduler)) for _ in range(3)]
    assert all(batch[:2] == [(0, 1), (1, 1)] for batch in batches)


def test_an_embedding_beside_running_streams_is_read_in_small_parts() -> None:
    scheduler = make(num_slots=3, batch_tokens=64, embedding_batch_tokens=64, kv_tokens=400)
    for rid in range(2):
        scheduler.add(generation(rid, 2, max_tokens=40))
    paced(scheduler)
    paced(scheduler)
    scheduler.add(embedding(9, 60))
    assert [shape(paced(scheduler)) for _ in range(2)] == [[(2, 4)], [(0, 1), (1, 1)]]


# ---- guessing ----


class Foreseer:
    """Guesses the same tokens for every slot."""

    def __init__(self, *guesses: int) -> None:
        self.guesses = list(guesses)

    def propose(self, wanted: Mapping[int, tuple[list[int], int]]) -> dict[int, list[int]]:
        return {slot: self.guesses[:length] for slot, (_, length) in wanted.items()}

    def forget(self, slot: int) -> None:
        del slot


def make_guessing(*guesses: int, **limits: Any) -> Scheduler:
    defaults = {"num_slots": 2, "kv_tokens": 100, "batch_tokens": 8, "embedding_batch_tokens": 8}
    defaults |= {"num_prefix_tags": 8, "max_guesses": 4, "can_drop_last": True}
    return Scheduler(Limits(**{**defaults, **limits}), Letters(), Foreseer(*guesses))


def test_guesses_are_checked_in_one_step_and_wrong_ones_are_dropped() -> None:
    scheduler = make_guessing(3, 4)
    sequence = generation(1, 3, max_tokens=9)
    scheduler.add(sequence)
    step(scheduler)
    batch = scheduler.schedule()
    assert batch is not None
    assert batch.chunks == [Chunk(0, 3, [2, 3, 4], num_outputs=3)]
    outputs = Outputs(tokens={0: [TokenOutput(3), TokenOutput(5)]})
    effects = scheduler.update(batch, outputs)
    assert effects == [
        Sampled(sequence, TokenOutput(3), "c"),
        Sampled(sequence, TokenOutput(5), "e"),
    ]
    scheduler.check()
    batch = step(scheduler)[0]
    assert batch.cache_ops == [DropCells(0, 5, 6)]
    assert batch.chunks[0].position == 5
    # One right guess of two is no gain: the next step has none.
    assert (sequence.guessing.num_proposed, sequence.guessing.num_accepted) == (2, 1)


def test_what_was_guessed_beyond_an_end_is_not_delivered() -> None:
    scheduler = make_guessing(END, 4)
    sequence = generation(1, 3, max_tokens=9)
    scheduler.add(sequence)
    step(scheduler)
    batch = scheduler.schedule()
    assert batch is not None
    outputs = Outputs(tokens={0: [TokenOutput(END), TokenOutput(4), TokenOutput(2)]})
    assert scheduler.update(batch, outputs) == [
        Sampled(sequence, TokenOutput(END), ""),
        Ended(sequence, Finish.STOP),
    ]
    scheduler.check()
    assert sequence.num_completion_tokens == 2


def test_no_more_is_guessed_than_may_come() -> None:
    scheduler = make_guessing(3, 4, batch_tokens=3, num_slots=1)
    scheduler.add(generation(1, 3, max_tokens=3))
    step(scheduler)
    assert shape(step(scheduler)[0]) == [(0, 2)]
    assert shape(step(scheduler)[0]) == [(0, 1)]
    assert scheduler.is_idle


def test_nothing_is_guessed_where_it_cannot_be_taken_back() -> None:
    scheduler = make_guessing(3, 4, can_drop_last=False)
    scheduler.add(generation(1, 3, max_tokens=3))
    step(scheduler)
    assert shape(step(scheduler)[0]) == [(0, 1)]


class Cells:
    """What a backend's unified KV cache holds: cells with a position and everyone who has them."""

    def __init__(self, most: int, most_stowed: int) -> None:
        self.most, self.most_stowed = most, most_stowed
        # position, whose, token, the slots and tags that have it
        self.cells: list[tuple[int, Owner, int, set[int]]] = []
        self.parked: dict[int, list[tuple[int, Owner, int]]] = {}
        self.stowed: dict[int, list[tuple[int, Owner, int]]] = {}  # by tag

    def change(self, ops: list[CacheOp]) -> None:
        for op in ops:
            match op:
                case ParkSlot(slot, key):
                    self.parked[key] = [cell[:3] for cell in self.cells if slot in cell[3]]
                case ResumeSlot(key, slot):
                    assert not any(slot in cell[3] for cell in self.cells)
                    self.cells += [(*cell, {slot}) for cell in self.parked.pop(key)]
                case ForgetParked(key):
                    del self.parked[key]
                case StowCells(tag):
                    assert all(cell[3] == {tag} for cell in self.cells if tag in cell[3])
                    self.stowed[tag] = [cell[:3] for cell in self.cells if tag in cell[3]]
                    assert self.stowed[tag]
                    self.cells = [cell for cell in self.cells if tag not in cell[3]]
                case RestoreCells(tag):
                    self.cells += [(*cell, {tag}) for cell in self.stowed.pop(tag)]
                case CopyCells() | DropCells():
                    self._share(op)
            assert len(self.cells) <= self.most, "there is no room for this, now"
            assert self.num_stowed <= self.most_stowed

    def _share(self, op: CopyCells | DropCells) -> None:
        if isinstance(op, DropCells) and op.end < 0:
            self.stowed.pop(op.owner, None)
        for position, _, _, owners in self.cells:
            match op:
                case CopyCells(source, target, start, end):
                    if source in owners and start <= position < end:
                        owners.add(target)
                case DropCells(owner, start, end):
                    if end < 0 or start <= position < end:
                        owners.discard(owner)
        self.cells = [cell for cell in self.cells if cell[3]]

    def compute(self, chunk: Chunk, owner: Owner) -> None:
        for offset, token in enumerate(chunk.tokens):
            self.cells.append((chunk.position + offset, owner, token, {chunk.slot}))

    def of(self, slot: int, owner: Owner) -> list[int]:
        """What a slot has, by position: each position once, from 0 on; none of it is another
        domain's, or was computed with another adapter."""
        mine = [cell for cell in self.cells if slot in cell[3]]
        assert {whose for _, whose, _, _ in mine} <= {owner, owner.everybody()}
        by_position = {position: token for position, _, token, _ in mine}
        assert sorted(by_position) == list(range(len(mine)))
        return [by_position[position] for position in range(len(mine))]

    def under(self, tag: int) -> list[int]:
        """The tokens whose cells a tag has, by position, in the cache or stowed."""
        mine = [(position, token) for position, _, token, owners in self.cells if tag in owners]
        mine += [(position, token) for position, _, token in self.stowed.get(tag, [])]
        return [token for _, token in sorted(mine)]

    @property
    def num_stowed(self) -> int:
        return sum(map(len, self.stowed.values()))


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of events keeps every invariant, and every sequence ends once."""

    @initialize(
        num_slots=st.integers(1, 4),
        kv_tokens=st.integers(1, 60),
        spare=st.integers(0, 12),
        embedding_batch_tokens=st.integers(1, 12),
        splits_prompts=st.booleans(),
        num_prefix_tags=st.integers(0, 6),
        min_kept_tokens=st.integers(1, 12),
        kept_share=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
        pins=st.lists(
            st.tuples(st.integers(0, 30), st.lists(st.integers(1, 3), min_size=1, max_size=4)),
            max_size=3,
        ),
        stowed_share=st.sampled_from([0.0, 0.3, 0.8, 2.0]),
        parked_share=st.sampled_from([0.0, 0.5]),
        max_skips=st.integers(0, 2),
        max_guesses=st.sampled_from([0, 3]),
        can_drop_last=st.booleans(),
        aside_tokens=st.sampled_from([None, 4, 8]),
    )
    def start(
        self, num_slots: int, spare: int, pins: list[tuple[int, list[int]]], **limits: Any
    ) -> None:
        self.limits = Limits(num_slots=num_slots, batch_tokens=num_slots + spare, **limits)
        self.scheduler = Scheduler(self.limits, Letters(), NgramDrafter())
        self.next_rid = 0
        self.added: list[Sequence] = []
        self.ends: Counter[Sequence] = Counter()
        self.cells = self.no_cells()
        self.opened: dict[int, Sequence] = {}  # by slot, for whom it was set up
        self.aside: Batch | None = None
        prompts = [[1] * num_alike + rest for num_alike, rest in pins]
        for prompt in prompts:
            self.add_sequence(prompt, 1, domain=None)
            self.run_out()
        self.pinned = [prompt for prompt in prompts if self.scheduler.is_pinned(prompt)]

    @rule(
        num_alike=st.integers(0, 50),
        rest=st.lists(st.integers(1, 3), min_size=1, max_size=8),
        max_tokens=st.integers(0, 8),
        others=st.fixed_dictionaries(
            {
                "domain": st.sampled_from("ab"),
                "adapter": st.sampled_from(["", "", "x", "y"]),
                "priority": st.integers(-1, 1),
            }
        ),
    )
    def add(self, num_alike: int, rest: list[int], max_tokens: int, others: dict[str, Any]) -> None:
        self.add_sequence([1] * num_alike + rest, max_tokens, **others)

    @precondition(lambda self: self.added)
    @rule(data=st.data(), rest=st.lists(st.integers(1, 3), min_size=1, max_size=3))
    def ask_again(self, data: st.DataObject, rest: list[int]) -> None:
        """What began another one, as far as it came, and then something of its own."""
        other = data.draw(st.sampled_from(self.added))
        start = other.tokens[: data.draw(st.integers(0, len(other.tokens)))]
        domain, adapter = other.domain or "a", other.adapter
        self.add_sequence(start + rest, 2, domain=domain, adapter=adapter)
        if data.draw(st.booleans()):
            self.run_out()

    @rule(
        tokens=st.lists(st.integers(1, 3), min_size=1, max_size=20),
        max_tokens=st.integers(1, 4),
        num_choices=st.integers(2, 4),
    )
    def add_siblings(self, tokens: list[int], max_tokens: int, num_choices: int) -> None:
        for index in range(num_choices):
            self.add_sequence(list(tokens), max_tokens, domain="a", index=index)
            self.next_rid -= 1
        self.next_rid += 1

    def add_sequence(
        self, tokens: list[int], max_tokens: int, *, index: int = 0, **others: Any
    ) -> None:
        text = OutputText(["bc", "cb"])
        sequence = Sequence(self.next_rid, index, tokens, max_tokens, text=text, **others)
        self.next_rid += 1
        refusal = self.scheduler.add(sequence)
        if refusal is None:
            self.added.append(sequence)
        else:
            assert refusal.num_tokens_needed > refusal.num_tokens_allowed

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        rid = data.draw(st.integers(0, self.next_rid))
        self.count(self.scheduler.abort(rid))

    @rule(data=st.data(), priority=st.integers(-2, 2))
    def reprioritize(self, data: st.DataObject, priority: int) -> None:
        rid = data.draw(st.integers(0, self.next_rid))
        self.scheduler.reprioritize(rid, priority)
        mine = [each for each in self.added if each.rid == rid and each.state is not State.ENDED]
        assert all(each.priority == priority for each in mine)

    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        batch = self.schedule()
        if batch is None:
            return
        if batch.is_aside:
            self.aside = batch
            return
        token = data.draw(st.integers(0, 4))
        num_right = data.draw(st.integers(0, 3))
        self.update(batch, token, num_right=num_right)

    @precondition(lambda self: self.aside is not None)
    @rule(how=st.sampled_from(["done", "done", "stopped", "failed", "no cells"]))
    def end_aside(self, how: str) -> None:
        assert self.aside is not None
        batch, self.aside = self.aside, None
        match how if self.scheduler.is_aside_wanted else "stopped":
            case "done":
                self.update(batch, 2)
            case "stopped":
                self.count(self.scheduler.stop_aside())
            case "failed":
                self.count(self.scheduler.fail(batch))
            case "no cells":
                self.count(self.scheduler.stop_aside())
                self.count(self.scheduler.preempt())

    @rule(data=st.data())
    def no_free_cells(self, data: st.DataObject) -> None:
        """Sometimes because what was parked or stowed did not fit any more."""
        batch = self.schedule()
        if batch is None:
            return
        put_back = [op.slot for op in batch.cache_ops if isinstance(op, ResumeSlot)]
        put_back += [op.tag for op in batch.cache_ops if isinstance(op, RestoreCells)]
        lost = data.draw(st.lists(st.sampled_from(put_back), unique=True)) if put_back else []
        self.cells.change([DropCells(owner) for owner in lost])
        if batch.is_aside:
            self.count(self.scheduler.stop_aside())
        self.count(self.scheduler.preempt(lost))

    @rule()
    def decode_fails(self) -> None:
        batch = self.schedule()
        if batch is not None:
            effects = self.scheduler.fail(batch)
            assert len(effects) == len(batch.chunks)
            self.count(effects)

    @precondition(lambda self: not self.scheduler.is_idle)
    @rule()
    def run_out(self) -> None:
        """Whatever happened, computing on ends everything in bounded time."""
        for _ in range(sum(sequence.num_cells_needed for sequence in self.added) + 1):
            if self.aside:
                self.end_aside("done")
            if self.scheduler.is_idle:
                break
            batch = self.schedule()
            assert batch is not None
            self.update(batch, 2)
        assert self.scheduler.is_idle

    @rule(is_lost=st.booleans())
    def restart(self, is_lost: bool) -> None:
        """Another process gets the kept prefixes; of one, the cells get lost on the way."""
        self.run_out()
        batch, kept = self.scheduler.kept_prefixes()
        self.cells.change(batch.cache_ops)
        assert len(self.cells.cells) == self.scheduler.num_used_tokens
        assert self.cells.num_stowed == self.scheduler.num_stowed_tokens
        self.scheduler, cells = Scheduler(self.limits, Letters()), self.no_cells()
        for prefix in kept:
            tokens = list(prefix.tokens)
            tag = self.scheduler.adopt(prefix.owner, tokens, prefix.start)
            if tag is not None and is_lost:
                self.scheduler.disown(tag)
                is_lost = False
            elif tag is not None:
                assert self.cells.under(prefix.tag) == tokens[prefix.start :]
                positions = range(prefix.start, len(tokens))
                mine = [(position, prefix.owner, tokens[position]) for position in positions]
                if prefix.owner.is_everybody:
                    cells.cells += [(*cell, {tag}) for cell in mine]
                else:
                    cells.stowed[tag] = mine
            self.scheduler.check()
        self.cells = cells
        assert len(self.cells.cells) == self.scheduler.num_used_tokens
        assert self.cells.num_stowed == self.scheduler.num_stowed_tokens
        self.pinned = [prompt for prompt in self.pinned if self.scheduler.is_pinned(prompt)]

    def no_cells(self) -> Cells:
        limits = self.limits
        return Cells(limits.kv_tokens, round(limits.stowed_share * limits.kv_tokens))

    @precondition(lambda self: self.scheduler.is_idle)
    @rule()
    def settle(self) -> None:
        batch = self.scheduler.settle()
        if batch is not None:
            self.cells.change(batch.cache_ops)
            assert self.cells.num_stowed == self.scheduler.num_stowed_tokens

    def schedule(self) -> Batch | None:
        """The next batch, checked as a backend would see it."""
        batch = self.scheduler.schedule()
        if batch is None:
            assert self.aside or self.scheduler.num_running == 0
            return None
        self.cells.change(batch.cache_ops)
        slots = [chunk.slot for chunk in batch.chunks]
        assert len(set(slots)) == len(slots)
        resumed = [op.slot for op in batch.cache_ops if isinstance(op, ResumeSlot)]
        new = [opening.slot for opening in batch.opened]
        running = {s.slot: s for s in self.added if s.state is State.RUNNING}
        for slot, sequence in running.items():
            known = sequence.tokens[: sequence.num_computed_tokens]
            assert self.cells.of(slot, sequence.owner) == known
        self.opened |= {slot: running[slot] for slot in (*new, *resumed)}
        assert all(self.opened[slot] is running[slot] for slot in slots)
        if not slots:
            assert self.aside
            assert batch.opened
            return batch
        assert {running[slot].group for slot in slots} == {(batch.kind, batch.adapter)}
        assert len(self.cells.cells) == self.scheduler.num_used_tokens
        num_aside = self.aside.num_tokens if self.aside else 0
        assert len(self.cells.cells) + num_aside + batch.num_tokens <= self.limits.kv_tokens
        assert not (batch.is_aside and self.aside)
        is_embedding = batch.kind is BatchKind.EMBEDDING
        limits = self.limits
        budget = limits.embedding_batch_tokens if is_embedding else limits.batch_tokens
        if batch.is_aside:
            assert limits.aside_tokens is not None
            budget = limits.aside_tokens
        assert 0 < batch.num_tokens <= budget
        return batch

    def update(self, batch: Batch, token: int, *, num_right: int = 0) -> None:
        running = {s.slot: s for s in self.added if s.state is State.RUNNING}
        for chunk in batch.chunks:
            self.cells.compute(chunk, running[chunk.slot].owner)
        outputs = compute(batch, token, num_right=num_right)
        self.count(self.scheduler.update(batch, outputs, duration_s=0.001 * batch.num_tokens))

    def count(self, effects: list[Effect]) -> None:
        self.ends.update(e.sequence for e in effects if isinstance(e, Ended))

    @invariant()
    def everything_adds_up(self) -> None:
        self.scheduler.check()
        assert all(count == 1 for count in self.ends.values())
        assert all(map(self.scheduler.is_pinned, self.pinned))
        for sequence in self.added:
            assert sequence.num_cached_tokens in (None, *range(self.least_cached(sequence), 99))
            assert (sequence.state is State.ENDED) == (sequence in self.ends)
        open_ones = [s for s in self.added if s.state is not State.ENDED]
        assert self.scheduler.num_running + self.scheduler.num_waiting == len(open_ones)

    def least_cached(self, sequence: Sequence) -> int:
        """What is pinned of a prompt is never computed again."""
        if not sequence.shares_prefix or sequence.domain is None or sequence.adapter:
            return 0
        prompt = sequence.tokens[: sequence.num_prompt_tokens - 1]
        return max((num_same(pin, prompt, offset=0) for pin in self.pinned), default=0)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, derandomize=True
)
