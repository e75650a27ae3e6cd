"""The engine thread: drain the inbox, schedule, compute, update, say what came of it.

Owns the scheduler and is the only caller of the backend's `forward`. Exactly one frame per step
goes to the daemon. It waits for the inbox only when there is nothing to compute.
"""

from __future__ import annotations

import logging
import queue
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, assert_never

from openclawctl.wire.errors import Internal, InvalidRequest, Problem, PromptTooLong
from openclawctl.wire.fields import Fields
from openclawctl.wire.sampling import Sampling
from openclawd.backends.base import DecodeFailed, NoFreeCells, Stopped
from openclawd.engine.batch import Batch, BatchKind, Outputs
from openclawd.engine.limits import Limits
from openclawd.engine.sampling import SamplingParams, seed_of
from openclawd.engine.scheduler import Scheduler
from openclawd.engine.sequence import Effect, Ended, Sequence, State
from openclawd.engine.stopping import OutputText
from openclawd.worker.messages import (
    EXIT_STOPPED,
    Abort,
    Continuation,
    Reprioritize,
    Start,
    Step,
    Stop,
)
from openclawd.worker.messages import Ended as RequestEnded
from openclawd.worker.pauses import Pauses
from openclawd.worker.requests import Requests, refused
from openclawd.worker.warm_up import GARBAGE, trouble_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from openclawd.backends.base import Backend
    from openclawd.engine.speculation import Drafter
    from openclawd.worker.answer import AnswerParser
    from openclawd.worker.tokenizer import PreparedRequest, Tokenizer

EXIT_MODEL_FAILED: Final = 1
"""The model stopped working; a fresh worker may do better. Any status that is not a load's."""

_NO_CELLS: Final = "the KV cache has no room for this request, although room was reserved for it"

_NOT_PLAIN: Final = ("logit_bias", "logprobs", "top_logprobs")
"""The wire's sampling parameters that the engine has in another form; the names of all others are
the same."""

_KEPT_SHARE: Final = 0.25
_SCANNED_SHARE: Final = 0.0625
"""Where every step passes over every cell."""

_NO_SAMPLING: Final = SamplingParams()
"""Of texts that are only read."""

_log = logging.getLogger(__name__)

ToEngine = Start | Reprioritize | Abort | Stop


class EngineLoop:
    """`submit` may be called from any thread; `run` is the engine thread."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        *,
        model: str,
        send: Callable[[Step], None],
        drafter: Drafter | None = None,
        clock: Callable[[], float] = time.perf_counter,
        **limits: int,
    ) -> None:
        """`model` is its name, for messages; `limits` are those of `Limits` that the backend does
        not know."""
        self._model = model
        self._backend = backend
        self._tokenizer = tokenizer
        self._send = send
        self._scheduler = Scheduler(_limits(backend, limits), backend, drafter)
        self._requests = Requests(backend)
        self._inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._effects: list[Effect] = []  # of events since the last step
        self._refused: list[RequestEnded] = []
        self._failure = ""
        self._is_stopped = False
        self._clock = clock
        self._step_ended_s = 0.0
        self._pauses = Pauses()

    @property
    def scheduler(self) -> Scheduler:
        """For what is to be computed before `run`."""
        return self._scheduler

    def submit(self, message: ToEngine) -> None:
        self._inbox.put(message)

    def run(self) -> int:
        """Serve until `stop` or until the model fails; the exit status of the process."""
        while self._drain():
            self._step()
            if self._failure:
                _log.error("%s", self._failure)
                return EXIT_MODEL_FAILED
        return EXIT_STOPPED

    # ---- the inbox ----

    def _drain(self) -> bool:
        """Take every message that has come, waiting for one when idle. False to stop."""
        if self._is_stopped:
            return False
        if self._scheduler.is_idle:
            if batch := self._scheduler.settle():
                self._backend.forward(batch)
            if not (self._take(self._inbox.get()) and self._gather()):
                return False
        while True:
            try:
                message = self._inbox.get_nowait()
            except queue.Empty:
                return True
            if not self._take(message):
                return False

    def _gather(self) -> bool:
        """After the first start of a burst, wait a moment for the others: a step for one of them
        costs all of them more. False to stop."""
        while left_s := self._tokenizer.soon_s():
            try:
                message = self._inbox.get(timeout=left_s)
            except queue.Empty:
                break
            if not self._take(message):
                return False
        return True

    def _take(self, message: ToEngine) -> bool:
        match message:
            case Stop():
                self._is_stopped = True
                return False
            case Abort(rid):
                self._effects += self._scheduler.abort(rid)
            case Reprioritize(rid, priority):
                self._scheduler.reprioritize(rid, priority)
            case Start():
                self._start(message)
            case _:
                assert_never(message)
        return True

    def _start(self, start: Start) -> None:
        prepared = self._tokenizer.take(start.rid)
        if prepared is None:
            problem: Problem = Internal("a request was started that was never prepared")
            self._refused.append(refused(start.rid, problem))
            return
        try:
            sequences = _sequences(start, prepared)
            reading = prepared.reading
            parsers = [reading.parser() if reading else None for _ in sequences]
            done = self._resume(sequences, start.continuation, parsers)
            self._add(sequence for sequence in sequences if sequence.state is not State.ENDED)
        except Problem as refusal:
            ended = refused(start.rid, refusal, num_sequences=len(prepared.prompts) * start.n)
            self._refused.append(ended)
            return
        self._requests.open(start.rid, sequences, parsers)
        self._effects += done

    def _resume(
        self,
        sequences: list[Sequence],
        parts: list[Continuation],
        parsers: list[AnswerParser | None],
    ) -> list[Ended]:
        """Bring sequences to where another worker had them; the ends of those that were done."""
        ends = []
        for part in parts:
            sequence = sequences[part.index]
            sequence.num_cached_tokens = part.cached_tokens
            sequence.mu = part.mu
            parser = parsers[part.index]
            on_text = parser.feed if parser else None
            if ended := sequence.resume(part.tokens(), self._backend, on_text=on_text):
                ends.append(ended)
                parsers[part.index] = None  # what it had held back was told with the end
        return ends

    def _add(self, sequences: Iterable[Sequence]) -> None:
        """All sequences of a request, or none. Raises `PromptTooLong`."""
        for sequence in sequences:
            if never_fits := self._scheduler.add(sequence):
                self._scheduler.abort(sequence.rid)
                raise PromptTooLong(
                    f"the request needs {never_fits.num_tokens_needed} tokens, prompt and answer"
                    f" together; the model has {never_fits.num_tokens_allowed}",
                    hint="shorten the prompt or lower max_tokens",
                )

    # ---- one step ----

    def _step(self) -> None:
        started_s = self._clock()
        batch = self._scheduler.schedule()
        load = self._load(batch)  # what ends in this step is in use until then
        computed = self._compute(batch) if batch is not None else []
        effects, self._effects = self._effects + computed, []  # pauses have told of some already
        step = self._requests.apply(effects, failure=self._failure or _NO_CELLS)
        ended, self._refused = step.ended + self._refused, []
        if batch is None and not step.outputs and not ended:
            return  # an abort for a request that had ended already
        gauges = {**self._gauges(batch, started_s=started_s), **load}
        self._send(Step(outputs=list(step.outputs.values()), ended=ended, gauges=gauges))

    def _compute(self, batch: Batch) -> list[Effect]:
        started_s = self._clock()
        if batch.is_aside:
            self._pauses.begin()
        result = self._backend.forward(batch, self._between)
        if not batch.is_aside:
            self._step_ended_s = self._clock()
        match result:
            case Outputs():
                duration_s = None if batch.is_aside else self._step_ended_s - started_s
                return self._take_outputs(batch, result, duration_s)
            case NoFreeCells(lost):
                _log.warning("the KV cache is full; the youngest sequence goes on later")
                ended = self._scheduler.stop_aside() if batch.is_aside else []
                return ended + self._scheduler.preempt(lost)
            case DecodeFailed(message):
                self._failure = f"the model stopped working: {message}"
                return self._scheduler.fail(batch)
            case Stopped():
                return self._scheduler.stop_aside()

    def _between(self) -> bool:
        """In a pause of what is computed aside: the others' next step, if it would come too late in
        the next pause. Is what is computed aside to go on?"""
        now_s = self._clock()
        next_s = now_s + self._pauses.reached(now_s)
        if not self._drain():
            return False
        if next_s - self._step_ended_s >= self._scheduler.max_aside_s():
            self._step()
            self._step_ended_s = self._clock()
        self._pauses.left(self._clock())
        return self._scheduler.is_aside_wanted and not self._failure

    def _take_outputs(
        self, batch: Batch, outputs: Outputs, duration_s: float | None
    ) -> list[Effect]:
        """Who gets garbage ends; whether the others can go on here depends on where it is. With a
        KV cache for all and no flash attention, one sequence's not-a-number makes not-a-number of
        every other's attention, at once and for good (seen with llama.cpp 0.3.36 on a CPU). And
        with it, tiles of prompts take in what stands in free cells: so after garbage aside, all of
        which is in the main cache, the worker ends."""
        if not outputs.garbage:
            return self._scheduler.update(batch, outputs, duration_s=duration_s)
        sentence = f"model {self._model} computed garbage for this request: {GARBAGE}"
        _log.error("%s", sentence)
        is_mixed = bool(outputs.tokens or outputs.vectors or outputs.failed)
        if not (is_mixed or batch.is_aside) and self._scheduler.num_running > 1:
            self._failure = f"model {self._model} computed garbage for all there was"
            return self._scheduler.blame(sentence)
        outputs.failed.update(dict.fromkeys(outputs.garbage, sentence))
        effects = self._scheduler.update(batch, outputs, duration_s=duration_s)
        if batch.is_aside:
            self._failure = f"the KV cache of model {self._model} has garbage in it"
        elif not is_mixed and (trouble := trouble_of(self._backend)):
            self._failure = f"model {self._model} does not work any more: {trouble}"
        return effects

    def _load(self, batch: Batch | None) -> dict[str, int]:
        """What a step needs while it is computed."""
        scheduler = self._scheduler
        num_new = batch.num_tokens if batch else 0
        return {
            "step_slots": scheduler.num_running,
            "step_context_tokens": scheduler.num_longest_tokens,
            "step_kv_tokens": scheduler.num_needed_tokens + num_new,
        }

    def _gauges(self, batch: Batch | None, *, started_s: float) -> dict[str, int]:
        scheduler = self._scheduler
        return {
            "running": scheduler.num_running,
            "waiting": scheduler.num_waiting,
            "kv_used_tokens": scheduler.num_used_tokens,
            "kv_kept_tokens": scheduler.num_kept_tokens,
            "kv_stowed_tokens": scheduler.num_stowed_tokens,
            "kv_total_tokens": self._backend.info.kv_tokens,
            "preemptions": scheduler.num_preemptions,
            "batch_tokens": batch.num_tokens if batch else 0,
            "step_us": round((self._clock() - started_s) * 1e6),
        }


def _limits(backend: Backend, limits: dict[str, int]) -> Limits:
    return Limits(
        num_slots=backend.info.parallel,
        kv_tokens=backend.info.kv_tokens,
        batch_tokens=backend.limits.batch_tokens,
        embedding_batch_tokens=backend.limits.embedding_batch_tokens,
        splits_prompts=backend.limits.splits_prompts,
        max_whole_tokens=None if backend.limits.splits_prompts else backend.info.context,
        num_prefix_tags=backend.limits.num_prefix_tags,
        kept_share=_SCANNED_SHARE if backend.limits.scans_all_cells else _KEPT_SHARE,
        can_drop_last=backend.limits.can_drop_last,
        tile_tokens=backend.limits.tile_tokens,
        aside_tokens=backend.limits.aside_tokens,
        **limits,
    )


def _sequences(start: Start, prepared: PreparedRequest) -> list[Sequence]:
    is_generation = prepared.kind is BatchKind.GENERATION
    if is_generation and start.max_tokens < 1:
        raise InvalidRequest("max_tokens must be at least 1")
    sampling = _sampling(start.sampling, grammar=prepared.grammar) if is_generation else None
    return [
        Sequence(
            start.rid,
            index,
            tokens=list(tokens),
            max_tokens=start.max_tokens if is_generation else 0,
            sampling=_of_choice(sampling, index) if sampling else _NO_SAMPLING,
            text=OutputText(start.stop),
            shown=prepared.reading.shown if prepared.reading else {},
            priority=start.priority,
            domain=start.domain,
            adapter=start.adapter,
        )
        for index, tokens in enumerate(prepared.prompts * start.n)
    ]


def _of_choice(sampling: SamplingParams, index: int) -> SamplingParams:
    return replace(sampling, seed=seed_of(sampling.seed, index)) if index else sampling


def _sampling(values: dict[str, Any], *, grammar: str) -> SamplingParams:
    """The engine's parameters from the wire's; what is left out keeps the engine's default."""
    wire = Sampling.decode(Fields(values, where="sampling", error=InvalidRequest))
    given = {
        name: getattr(wire, name)
        for name in Sampling.__dataclass_fields__
        if name not in _NOT_PLAIN and getattr(wire, name) is not None
    }
    bias = tuple((wire.logit_bias or {}).items())
    num_top = (wire.top_logprobs or 0) if wire.logprobs else None
    return SamplingParams(logit_bias=bias, num_top=num_top, grammar=grammar, **given)
