"""A real worker process, driven as the daemon drives it: messages over a socketpair."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from openclawctl.wire.framing import MAX_FRAME_BYTES, FrameReader, encode_frame
from openclawd.worker.messages import (
    Answer,
    Ended,
    FromWorker,
    Load,
    Loaded,
    LoadFailed,
    Prepare,
    Prepared,
    Refused,
    Start,
    Step,
    Stop,
    ToWorker,
    decode_from_worker,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GREEDY = {"temperature": 0, "seed": 1}
TIMEOUT_S = 60

AnyMessage = TypeVar("AnyMessage", bound=FromWorker)


@dataclass
class Outcome:
    """What became of one request."""

    texts: dict[int, str] = field(default_factory=dict)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    vectors: dict[int, bytes] = field(default_factory=dict)
    pieces: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    ended: Ended | None = None

    @property
    def text(self) -> str:
        return self.texts.get(0, "")

    @property
    def reasoning(self) -> str:
        steps = (output for step in self.steps for output in step.outputs)
        return "".join(output.reasoning for output in steps if output.index == 0)

    @property
    def end(self) -> Ended:
        assert self.ended is not None
        return self.ended

    def take(self, rid: int, step: Step) -> None:
        self.steps.append(step)
        for output in step.outputs:
            if output.rid != rid:
                continue
            assert self.ended is None
            self.pieces.append(output.text)
            self.texts[output.index] = self.texts.get(output.index, "") + output.text
            self.token_ids.setdefault(output.index, []).extend(output.token_ids)
            if output.embedding is not None:
                self.vectors[output.index] = output.embedding
        for ended in step.ended:
            if ended.rid == rid:
                assert self.ended is None, "a request ended twice"
                self.ended = ended


class WorkerProcess:
    """`process` and the daemon's end of its pipe. Use `running_worker`."""

    def __init__(self, log_file: Path) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "openclawd.worker", "--fd", str(theirs.fileno())]
        self.log_file = log_file
        with theirs, log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=log
            )
        self.connection = ours
        self.connection.settimeout(TIMEOUT_S)
        self._reader = FrameReader(max_bytes=2 * MAX_FRAME_BYTES)
        self._next_rid = 1

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def send(self, *messages: ToWorker) -> None:
        self.connection.sendall(b"".join(encode_frame(encode(message)) for message in messages))

    def receive(self) -> FromWorker:
        """The next message. Raises `EOFError` when the worker is gone."""
        while (payload := self._reader.next_payload()) is None:
            data = self.connection.recv(1 << 20)
            if not data:
                raise EOFError(self.log)
            self._reader.feed(data)
        return decode_from_worker(payload)

    def receive_until(self, wanted: type[AnyMessage]) -> AnyMessage:
        """The next message of a type; others before it are dropped."""
        while not isinstance(message := self.receive(), wanted):
            pass
        return message

    def load(self, path: Path, **values: Any) -> Loaded | LoadFailed:
        """Load with small defaults. One thread: several wait for each other at every step, which
        takes long when other tests want the CPUs."""
        defaults = {
            "parallel": 4,
            "context": 512,
            "kv_tokens": 1024,
            "batch_tokens": 256,
            "threads": 1,
        }
        self.send(Load("m", str(path), **{**defaults, **values}))
        while True:
            message = self.receive()
            if isinstance(message, Loaded | LoadFailed):
                return message

    def ask(self, op: str, **params: Any) -> tuple[int, Prepared | Answer | Refused]:
        """Send `prepare`; its id and its answer."""
        rid = self._next_rid
        self._next_rid += 1
        self.send(Prepare(rid, op, params))
        while True:
            message = self.receive()
            if isinstance(message, Prepared | Answer | Refused):
                assert message.rid == rid
                return rid, message

    def prepare(self, op: str, **params: Any) -> int:
        rid, answer = self.ask(op, **params)
        assert isinstance(answer, Prepared), answer
        return rid

    def refusal(self, op: str, **params: Any) -> dict[str, Any]:
        """The error of a request that is not prepared."""
        _, answer = self.ask(op, **params)
        assert isinstance(answer, Refused), answer
        return answer.error

    def answer(self, op: str, **params: Any) -> dict[str, Any]:
        _, answer = self.ask(op, **params)
        assert isinstance(answer, Answer), answer
        return answer.result

    def finish(self, *rids: int) -> list[Outcome]:
        """Take steps until all these requests have ended."""
        outcomes = {rid: Outcome() for rid in rids}
        while any(outcome.ended is None for outcome in outcomes.values()):
            step = self.receive_until(Step)
            for rid, outcome in outcomes.items():
                outcome.take(rid, step)
        return list(outcomes.values())

    def run(
        self,
        op: str,
        *,
        max_tokens: int = 16,
        sampling: dict[str, Any] | None = None,
        stop: list[str] | None = None,
        **params: Any,
    ) -> Outcome:
        """Prepare, start and finish one request."""
        rid = self.prepare(op, **params)
        self.send(Start(rid, max_tokens, GREEDY | (sampling or {}), stop or []))
        return self.finish(rid)[0]

    def wait_exit(self) -> int:
        """The exit status, once the process has ended by itself."""
        return self.process.wait(TIMEOUT_S)


@contextlib.contextmanager
def running_worker(folder: Path) -> Iterator[WorkerProcess]:
    """A worker that has been told nothing yet; stopped at the end."""
    worker = WorkerProcess(folder / "worker.log")
    try:
        yield worker
    finally:
        with contextlib.suppress(OSError):
            worker.send(Stop())
        worker.connection.close()
        try:
            worker.process.wait(10)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
            raise
