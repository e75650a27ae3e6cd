"""The daemon's end of the socketpair to one worker.

Owns which requests a worker holds, and gives each of them what the worker says about it. Knows
worker messages; knows nothing of clients, of processes, or of why a worker ended.

Invariants: every call ends exactly once, with `Ended` or with a problem; delivery never waits, so
one slow reader can never hold up the link. When the link is lost, every open call ends with the
problem that `close()` was given.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, assert_never

from openclawctl.wire.errors import (
    Internal,
    ModelFailed,
    Problem,
    RemoteProtocolError,
    WorkerDied,
)
from openclawctl.wire.framing import MAX_RESULT_ITEMS, FrameReader, encode_frame
from openclawd.fleet.router import Beginnings
from openclawd.fleet.tempo import Tempo
from openclawd.observe import message_ids
from openclawd.observe.logs import fields
from openclawd.outbox import Outbox
from openclawd.worker.messages import (
    FROM_WORKER_FRAME_BYTES,
    TO_WORKER_FRAME_BYTES,
    Abort,
    Answer,
    Drop,
    Ended,
    FromWorker,
    Loaded,
    LoadFailed,
    Loading,
    Output,
    Prepare,
    Prepared,
    Refused,
    Reprioritize,
    Start,
    Step,
    ToWorker,
    decode_from_worker,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.fleet.spec import Files

logger = logging.getLogger(__name__)

PREPARE_TIMEOUT_S = 120.0
"""Far beyond what honest prompts need, even in line behind others: the worst text takes about 1.2 s
a megabyte to tokenise (measured 2026-11-23), and the longest contexts are about one."""

_READ_BYTES: Final = 64 * 1024


@dataclass(slots=True, eq=False)
class Call:
    """One request inside one worker. The owner awaits `prepared`, then maybe `ended`."""

    rid: int
    prepared: asyncio.Future[Prepared | Answer]
    ended: asyncio.Future[Ended]
    asked_at: float
    """When the worker was last asked for something, by the monotonic clock."""
    on_output: Callable[[Output], None] | None = None
    is_started: bool = field(default=False)
    has_output: bool = field(default=False)
    is_survivor: bool = field(default=False)
    """It was in flight when the worker before this one died, too."""
    num_sequences: int = field(default=0)
    """Slots it takes from its start on."""
    is_only_suspect: bool = field(default=False)
    """When this worker died, it was the one survivor that had got nothing here, either."""

    @property
    def is_suspect(self) -> bool:
        """Would its worker's death be the second one in a row, with nothing in between?"""
        is_in_flight = self.is_started or not self.prepared.done()
        return self.is_survivor and is_in_flight and not self.has_output

    def fail(self, problem: Problem) -> None:
        """End the call with a problem, wherever it is."""
        for future in (self.prepared, self.ended):
            if not future.done():
                future.set_exception(problem)
                future.exception()  # whoever awaits it is told; nobody having to is no warning


class Link(asyncio.BufferedProtocol):
    """A connected worker. `on_load_message` gets what is about the model and not about a request;
    `on_lost` is called once when the pipe has closed, `on_step` with the gauges of each step.
    `files` tells what the model's files were when the worker was started."""

    def __init__(
        self,
        *,
        on_load_message: Callable[[Loading | Loaded | LoadFailed], None],
        on_lost: Callable[[], None],
        on_step: Callable[[dict[str, int]], None] = lambda gauges: None,
        files: Files = (),
    ) -> None:
        self._on_load_message = on_load_message
        self._on_lost = on_lost
        self._on_step = on_step
        self._reader = FrameReader(max_bytes=FROM_WORKER_FRAME_BYTES, max_items=MAX_RESULT_ITEMS)
        self._read_buffer = memoryview(bytearray(_READ_BYTES))
        self._outbox: Outbox | None = None
        self.is_closed = False
        self.has_delivered = False
        self.files = files
        self.context: int | None = None
        """Tokens that a sequence may have, once the worker is ready and says so."""
        self.beginnings = Beginnings()
        self._calls: dict[int, Call] = {}
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._next_rid = 1
        self.gauges: dict[str, int] = {}
        self.num_steps = 0
        self.tempo = Tempo()
        self.is_loaded = False
        self.load_at = self._step_at = self._read_at = time.monotonic()

    # ---- what the daemon asks ----

    @property
    def num_calls(self) -> int:
        return len(self._calls)

    def stalled_s(self, now: float) -> float:
        """How long the worker has owed a sign of progress: of its load, then a step while it has
        something to compute, or a prompt read while there is one to read. 0 when it is idle. What
        counts are the frames of the threads that do the work. `now` is `time.monotonic()`."""
        if not self.is_loaded:
            return now - self.load_at
        calls = self._calls.values()
        computed = min((call.asked_at for call in calls if call.is_started), default=now)
        read = min((call.asked_at for call in calls if not call.prepared.done()), default=now)
        since = min(max(computed, self._step_at), max(read, self._read_at))
        return max(0.0, now - since)

    @property
    def num_sequences(self) -> int:
        """What it computes, or is to compute as soon as it has a slot."""
        return sum(call.num_sequences for call in self._calls.values())

    async def wait_idle(self) -> None:
        """Until the worker has no call."""
        await self._is_idle.wait()

    def send(self, message: ToWorker) -> None:
        """Queue a message for the worker; nothing happens when the link is closed already."""
        if self._outbox is not None:
            self._outbox.put(encode_frame(encode(message), max_bytes=TO_WORKER_FRAME_BYTES))

    def prepare(
        self,
        op: str,
        params: dict[str, Any],
        *,
        max_prompt_tokens: int = 0,
        truncation: str = "",
    ) -> Call:
        """Have a request tokenised, and cut if it is too long (`Prepare`). `call.prepared` gets the
        exact counts, or a problem.

        `params` are decoded and encoded again: what a client added to them would make the frame
        larger than its own, and a frame that is too large ends the worker.
        """
        loop = asyncio.get_running_loop()
        call = Call(
            self._next_rid,
            loop.create_future(),
            loop.create_future(),
            asked_at=time.monotonic(),
        )
        self._next_rid += 1
        self._calls[call.rid] = call
        self._is_idle.clear()
        self.send(Prepare(call.rid, op, params, max_prompt_tokens, truncation))
        return call

    async def wait_prepared(self, call: Call) -> Prepared | Answer:
        """What became of `prepare`. Raises the worker's problem with it, or `WorkerDied`.

        A worker that says nothing for `PREPARE_TIMEOUT_S` is stuck (a hostile chat template, a
        stopped process) and is given up: closing its pipe gets it killed and replaced. Prompts are
        read in turn, so the first that has waited too long is the one it is stuck on: that one gets
        `ModelFailed`.
        """
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT_S):
                return await call.prepared
        except TimeoutError:
            problem = ModelFailed(
                f"the model's worker did not read the prompt within {PREPARE_TIMEOUT_S:.0f} s and "
                "is replaced",
                hint="see the log of the daemon; if it happens again, try another model file",
            )
            logger.error(
                "a worker is stuck and is killed: %s",
                problem.message,
                extra=fields(message_id=message_ids.WORKER_STUCK),
            )
            self.close(WorkerDied("the model's worker was stuck and is replaced"))
            raise problem from None

    def start(self, call: Call, start: Start, on_output: Callable[[Output], None]) -> None:
        """Compute a prepared request. `on_output` is called for every step that adds to it, and
        must neither wait nor raise."""
        call.on_output = on_output
        call.is_started = True
        call.asked_at = time.monotonic()
        call.num_sequences = start.n
        self.send(start)

    def reprioritize(self, call: Call, priority: int) -> None:
        """Have the engine order a started call by another number."""
        if call.is_started and call.rid in self._calls:
            self.send(Reprioritize(call.rid, priority))

    def abort(self, call: Call) -> None:
        """Stop computing at the next step; `call.ended` then gets the exact usage."""
        if call.is_started and call.rid in self._calls:
            self.send(Abort(call.rid))

    def drop(self, call: Call) -> None:
        """Forget a call that will not be started (or was answered). Harmless after its end."""
        if self._pop(call.rid) is not None and not call.is_started:
            self.send(Drop(call.rid))

    def close(self, problem: Problem) -> None:
        """End every open call with `problem` and close the pipe."""
        self.is_closed = True
        calls, self._calls = self._calls, {}
        self._is_idle.set()
        suspects = [call for call in calls.values() if call.is_suspect]
        for call in calls.values():
            call.is_only_suspect = suspects == [call]
            call.fail(problem)
        if self._outbox is not None:
            self._outbox.close()

    # ---- asyncio.BufferedProtocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._outbox = Outbox(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.feed(self._read_buffer[:nbytes])
        try:
            for payload in self._reader.payloads():
                self._handle(decode_from_worker(payload))
        except RemoteProtocolError as error:
            logger.error("a worker broke its protocol and is stopped: %s", error)
            self.close(WorkerDied("the model's worker broke its protocol", hint="see the log"))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # a reset pipe and a closed one mean the same: the worker is gone
        self._outbox = None
        self._on_lost()

    # ---- what the worker says ----

    def _handle(self, message: FromWorker) -> None:
        match message:
            case Step():
                self._take_step(message)
            case Prepared(rid=rid) | Answer(rid=rid):
                self._read_at = time.monotonic()
                if (call := self._calls.get(rid)) and not call.prepared.done():
                    call.prepared.set_result(message)
            case Refused(rid=rid):
                self._read_at = time.monotonic()
                if call := self._pop(rid):
                    call.fail(message.to_problem())
            case Loading() | Loaded() | LoadFailed():
                self.load_at = time.monotonic()
                self.is_loaded = isinstance(message, Loaded)
                self._on_load_message(message)
            case _:
                assert_never(message)

    def _take_step(self, step: Step) -> None:
        self.num_steps += 1
        self._step_at = now = time.monotonic()  # the loop's clock, too
        self.gauges = step.gauges
        num_tokens = sum(len(output.token_ids) for output in step.outputs)
        self.tempo.note(num_tokens, now)
        self._on_step(step.gauges)
        for output in step.outputs:
            if call := self._calls.get(output.rid):
                self._deliver(call, output)
        for ended in step.ended:
            if (call := self._pop(ended.rid)) and not call.ended.done():
                call.ended.set_result(ended)

    def _pop(self, rid: int) -> Call | None:
        """The worker has it no more."""
        call = self._calls.pop(rid, None)
        if not self._calls:
            self._is_idle.set()
        return call

    def _deliver(self, call: Call, output: Output) -> None:
        """Hand over one output. A bug in one request's delivery ends that request alone."""
        if call.on_output is None:
            return
        self.has_delivered = call.has_output = True
        try:
            call.on_output(output)
        except Exception:
            logger.exception("delivering output of call %d failed; the call is ended", call.rid)
            call.on_output = None
            self.abort(call)
            call.fail(Internal("delivering the result failed", hint="see the log of the daemon"))
