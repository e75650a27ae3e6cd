"""The engine loop around a backend that fails on command.

A real backend has no honest way to fail here; what a failure looks like is the declared seam, and
`tests/backends/conformance.py` shows that the real one gives the same results.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from openclawd.backends.base import (
    BatchLimits,
    DecodeFailed,
    ModelInfo,
    NoFreeCells,
    Stopped,
    go_on,
)
from openclawd.engine.batch import BatchKind, Outputs, ParkSlot, ResumeSlot, TokenOutput
from openclawd.engine.pace import MAX_STRETCH
from openclawd.worker.answer import AnswerMarks
from openclawd.worker.chats import AnswerReading
from openclawd.worker.loop import EXIT_MODEL_FAILED, EngineLoop
from openclawd.worker.messages import EXIT_STOPPED, Abort, Continuation, Start, Step, Stop
from openclawd.worker.tokenizer import PreparedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from openclawd.backends.base import ForwardResult
    from openclawd.engine.batch import Batch
    from openclawd.worker.messages import Ended


LONG = 99
"""A request whose prompt takes two steps."""

LONGER = 98
"""One whose prompt takes four, three of them aside."""

STEP_S = 0.010
PAUSE_S = 0.001
LONG_PAUSE_S = 0.009


class ScriptedBackend:
    """Samples token 7 for ever, except where the script says otherwise. What is aside has
    `num_pauses`. By its own clock each step takes `STEP_S`, and it is `PAUSE_S` to each pause, to
    every tenth `LONG_PAUSE_S`."""

    def __init__(self, script: list[ForwardResult | None], num_pauses: int = 0) -> None:
        self.info = ModelInfo(
            description="",
            architecture="",
            quantization="",
            parameters=1,
            size_bytes=1,
            context_train=64,
            context=64,
            parallel=2,
            kv_tokens=100,
            embedding_length=4,
            vocab_size=10,
            can_generate=True,
            can_embed=False,
            threads=1,
            gpu_layers=0,
            devices=("cpu",),
        )
        self.limits = BatchLimits(
            batch_tokens=16,
            embedding_batch_tokens=16,
            splits_prompts=True,
            aside_tokens=8 if num_pauses else None,
        )
        self.num_pauses = num_pauses
        self.now_s = 0.0
        self.began_s: list[float] = []  # of each batch
        self.next_pause_s: list[float] = []  # what was to come of the part aside, then
        self.pauses_s = [LONG_PAUSE_S if i % 10 == 9 else PAUSE_S for i in range(num_pauses)]
        self.pauses_left_s: list[float] = []
        self.script = deque(script)
        self.batches: list[Batch] = []

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [1]

    def forward(self, batch: Batch, between: Callable[[], bool] = go_on) -> ForwardResult:
        if not batch.chunks:
            return Outputs()
        self.batches.append(batch)
        self.began_s.append(self.now_s)
        self.next_pause_s.append(self.pauses_left_s[0] if self.pauses_left_s else 0.0)
        if batch.is_aside:
            self.pauses_left_s = list(self.pauses_s)
            while self.pauses_left_s:
                if not self.pause(between):
                    return Stopped()
        if not batch.is_aside:
            self.now_s += STEP_S
        planned = self.script.popleft() if self.script else None
        slots = [chunk.slot for chunk in batch.chunks if chunk.num_outputs]
        return planned or Outputs(tokens={slot: [TokenOutput(7)] for slot in slots})

    def pause(self, between: Callable[[], bool]) -> bool:
        self.now_s += self.pauses_left_s.pop(0)
        return between()

    def piece(self, token: int) -> bytes:
        return str(token).encode()

    def is_end(self, token: int) -> bool:
        return token == 0


class Prepared:
    """In the place of the tokeniser: every request is prepared, with three tokens or, if it is
    `LONG`, 20, or `LONGER`, 40. What they write could be the beginning of a mark. `on_asked` is
    called when the loop asks, after its first start, whether others are about to come."""

    def __init__(self) -> None:
        self.on_asked: Callable[[], float] = lambda: 0.0

    def soon_s(self) -> float:
        return self.on_asked()

    def take(self, rid: int) -> PreparedRequest | None:
        marks = AnswerMarks(reasoning_open="7777777", reasoning_close="8")
        reading = AnswerReading(marks, is_reasoning=False, tokens={})
        prompt = {LONG: [1] * 20, LONGER: [1] * 40}.get(rid, [1, 2, 3])
        request = PreparedRequest(BatchKind.GENERATION, [prompt], reading=reading)
        return request if rid else None


def serve(
    script: list[ForwardResult | None],
    *messages: Any,
    num_pauses: int = 0,
    then: dict[int, list[Any]] | None = None,
    soon: Sequence[Start] = (),
) -> tuple[int, list[Step], Any]:
    """Run the loop on these messages until every request has ended; `then` are more that come after
    so many steps, `soon` are read already and come one after the other."""
    backend, steps = ScriptedBackend(script, num_pauses), []
    open_rids = {message.rid for message in [*messages, *soon] if isinstance(message, Start)}
    to_come, prepared = list(soon), Prepared()

    def come() -> float:
        if not to_come:
            return 0.0
        loop.submit(to_come.pop(0))
        return 60.0

    prepared.on_asked = come

    def send(step: Step) -> None:
        steps.append(step)
        for message in then.get(len(steps), []) if then else []:
            loop.submit(message)
        open_rids.difference_update(ended.rid for ended in step.ended)
        if not open_rids:
            loop.submit(Stop())

    loop = EngineLoop(
        backend,
        prepared,  # type: ignore[arg-type]
        model="m",
        send=send,
        clock=lambda: backend.now_s,
    )
    for message in messages:
        loop.submit(message)
    return loop.run(), steps, backend


def ends(steps: list[Step]) -> dict[int, Ended]:
    return {ended.rid: ended for step in steps for ended in step.ended}


def start(rid: int, max_tokens: int = 3) -> Start:
    return Start(rid, max_tokens, {"seed": 1})


def test_each_step_is_one_frame() -> None:
    status, steps, backend = serve([], start(1), start(2))
    assert status == EXIT_STOPPED
    assert len(steps) == len(backend.batches) == 3
    assert [len(step.outputs) for step in steps] == [2, 2, 2]
    assert {ended.completion_tokens for ended in ends(steps).values()} == {3}


def test_a_burst_begins_together() -> None:
    _, steps, backend = serve([], start(1), soon=[start(2)])
    assert len(steps) == len(backend.batches) == 3
    assert [len(step.outputs) for step in steps] == [2, 2, 2]


def test_a_full_cache_makes_the_youngest_wait_and_costs_no_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, steps, backend = serve([None, NoFreeCells()], start(1), start(2))
    assert {ended.finish_reasons[0] for ended in ends(steps).values()} == {"length"}
    assert {ended.completion_tokens for ended in ends(steps).values()} == {3}
    ops = [op for batch in backend.batches for op in batch.cache_ops]
    assert [op.slot for op in ops if isinstance(op, ParkSlot | ResumeSlot)] == [1, 0]
    assert "KV cache is full" in caplog.text


def test_a_request_that_finds_no_room_alone_ends_as_failed() -> None:
    status, steps, _ = serve([NoFreeCells()], start(1))
    assert status == EXIT_STOPPED
    problem = ends(steps)[1].to_problem()
    assert problem.code == "model-failed"
    assert "no room" in problem.message


def test_a_failed_batch_ends_its_requests_and_the_worker() -> None:
    status, steps, _ = serve([None, DecodeFailed("out of order")], start(1))
    assert status == EXIT_MODEL_FAILED
    ended = ends(steps)[1]
    assert ended.finish_reasons == ["error"]
    assert (ended.prompt_tokens, ended.completion_tokens) == (3, 1)
    assert ended.to_problem().message == "the model stopped working: out of order"


def test_an_abort_for_an_unknown_request_says_nothing() -> None:
    _, steps, _ = serve([], Abort(9), start(1, max_tokens=1))
    assert len(steps) == 1


def test_a_start_without_a_prepare_is_answered() -> None:
    _, steps, _ = serve([], start(0))
    assert ends(steps)[0].to_problem().code == "internal"


def test_what_was_held_back_of_an_answer_is_told_with_its_end_and_never_again() -> None:
    _, steps, _ = serve([], replace(start(1), n=2))
    assert [output.text for output in steps[-1].outputs] == ["777", "777"]
    done = Continuation.of(0, cached_tokens=0, token_ids=[7, 7, 7])
    half = Continuation.of(1, cached_tokens=0, token_ids=[7, 7])
    _, steps, _ = serve([], replace(start(1), n=2, continuation=[done, half]))
    assert [(output.index, output.text) for output in steps[-1].outputs] == [(1, "777")]
    assert ends(steps)[1].finish_reasons == ["length", "length"]
    assert ends(steps)[1].completion_tokens == 6


def test_garbage_for_one_ends_that_one_and_says_which_model() -> None:
    mixed = Outputs(tokens={0: [TokenOutput(7)]}, garbage={1})
    status, steps, _ = serve([None, mixed], start(1), start(2))
    assert status == EXIT_STOPPED
    assert ends(steps)[1].finish_reasons == ["length"]
    problem = ends(steps)[2].to_problem()
    assert problem.code == "model-failed"
    assert "model m" in problem.message
    assert "not-a-number" in problem.message


def test_garbage_for_the_only_one_leaves_a_memory_that_is_sound_in_use() -> None:
    status, steps, backend = serve([Outputs(garbage={0})], start(1))
    assert status == EXIT_STOPPED
    assert ends(steps)[1].to_problem().code == "model-failed"
    assert len(backend.batches) == 3  # its own, and the two that ask whether all is well


def test_garbage_for_the_only_one_that_stays_in_the_memory_ends_the_worker() -> None:
    status, steps, _ = serve([Outputs(garbage={0}), Outputs(garbage={0})], start(1))
    assert status == EXIT_MODEL_FAILED
    assert ends(steps)[1].to_problem().code == "model-failed"


def test_garbage_for_all_ends_the_one_it_came_with_and_leaves_the_others_to_the_next_worker() -> (
    None
):
    status, steps, _ = serve([None, Outputs(garbage={0, 1})], start(1), start(LONG))
    assert status == EXIT_MODEL_FAILED
    assert set(ends(steps)) == {LONG}


def test_garbage_for_all_from_the_start_is_nobodys_fault_yet() -> None:
    status, steps, _ = serve([Outputs(garbage={0, 1})], start(1), start(2))
    assert status == EXIT_MODEL_FAILED
    assert not ends(steps)


def test_in_the_pauses_of_what_is_aside_the_others_go_on() -> None:
    status, steps, backend = serve([], start(1, max_tokens=9), start(LONG), num_pauses=1)
    assert status == EXIT_STOPPED
    first, aside, beside = backend.batches[:3]
    assert not first.is_aside  # nothing was running yet
    assert aside.is_aside
    assert [chunk.slot for chunk in beside.chunks] == [0]
    assert [output.rid for output in steps[1].outputs] == [1]  # it is told at once
    assert {ended.completion_tokens for ended in ends(steps).values()} == {9, 3}


def test_what_is_cancelled_within_its_prompt_costs_what_was_computed_of_it() -> None:
    _, steps, _ = serve([], start(LONG), then={1: [Abort(LONG)]})
    ended = ends(steps)[LONG]
    assert ended.finish_reasons == ["cancelled"]
    assert (ended.prompt_tokens, ended.completion_tokens) == (16, 0)  # of 20: one batch


def test_what_is_aborted_in_a_pause_of_its_own_ends_there() -> None:
    requests = start(1, max_tokens=9), start(LONG)
    status, steps, backend = serve([], *requests, num_pauses=50, then={2: [Abort(LONG)]})
    assert status == EXIT_STOPPED
    assert ends(steps)[LONG].finish_reasons == ["cancelled"]
    assert ends(steps)[1].finish_reasons == ["length"]
    assert sum(batch.is_aside for batch in backend.batches) == 1


def test_a_stop_in_a_pause_ends_the_loop() -> None:
    requests = start(1, max_tokens=9), start(LONG)
    status, steps, _ = serve([], *requests, num_pauses=50, then={2: [Stop()]})
    assert status == EXIT_STOPPED
    assert not ends(steps)


def test_a_failure_in_a_pause_ends_the_worker_and_not_what_is_aside() -> None:
    script = [None, DecodeFailed("out of order")]
    requests = start(1, max_tokens=9), start(LONG)
    status, steps, _ = serve(script, *requests, num_pauses=50)
    assert status == EXIT_MODEL_FAILED
    assert list(ends(steps)) == [1]


def test_after_garbage_aside_the_others_go_on_in_the_next_worker() -> None:
    script = [None, None, Outputs(garbage={1})]
    status, steps, _ = serve(script, start(1, max_tokens=9), start(LONG), num_pauses=1)
    assert status == EXIT_MODEL_FAILED
    assert ends(steps)[LONG].to_problem().code == "model-failed"
    assert 1 not in ends(steps)


def test_the_steps_beside_what_is_aside_come_in_the_last_pause_that_is_in_time() -> None:
    """From the second part on, when it is known how long it is to each pause."""
    _, _, backend = serve([], start(1, max_tokens=50), start(LONGER), num_pauses=150)
    aside = [number for number, batch in enumerate(backend.batches) if batch.is_aside]
    allowed_s = (MAX_STRETCH - 1) * STEP_S
    slices = [
        (backend.began_s[n] - backend.began_s[n - 1] - STEP_S, backend.next_pause_s[n])
        for n in range(aside[1] + 2, len(backend.batches))
        if backend.next_pause_s[n] and n not in aside and n - 1 not in aside
    ]
    assert len(slices) >= 15
    assert {next_s for _, next_s in slices} == {PAUSE_S, LONG_PAUSE_S}
    for slice_s, next_s in slices:
        assert slice_s <= allowed_s + 1e-9
        assert slice_s + next_s >= allowed_s - 1e-9


def test_the_end_of_a_stream_is_told_before_what_is_aside_is_done() -> None:
    """Also where both are given up in one pause, which is not time for a step."""
    requests = start(1, max_tokens=30), start(LONG)
    for more in ([Abort(1)], [Abort(1), Abort(LONG)]):
        status, steps, _ = serve([], *requests, num_pauses=99, then={3: more})
        assert status == EXIT_STOPPED
        assert ends(steps)[1].finish_reasons == ["cancelled"]
        told = next(n for n, each in enumerate(steps) if any(end.rid == 1 for end in each.ended))
        last = ends(steps)[LONG].finish_reasons
        assert told < len(steps) - 1 or last == ["cancelled"]


def test_what_finds_no_cells_aside_waits() -> None:
    script = [None, None, NoFreeCells()]
    status, steps, _ = serve(script, start(1, max_tokens=9), start(LONG), num_pauses=1)
    assert status == EXIT_STOPPED
    assert {ended.finish_reasons[0] for ended in ends(steps).values()} == {"length"}
