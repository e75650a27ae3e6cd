"""The load process: asks a server as many clients at once would, and says what came when.

    traffic.py      one plan a line on standard input, its answers in one line back (JSON)

Owns the connections and the clock. One thread and no libraries between it and the sockets, so that
asking costs every server the same, and little: while a plan runs, what comes is only kept.

A plan has scripts; a script is one client with requests one after the other, each on a connection
of its own, since llama-server closes one after an answer that was streamed. Background scripts are
begun first; once they have been answered `gate_reads` times (about as many tokens of all together)
the gate opens: the others begin, `at_s` after that. When those have ended, and the gate has been
open for `hold_s`, the background is cut.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from answers import Answer, Ask
from dialects import Exchange, LlamaServerExchange, OpenclawdExchange, PythonServerExchange

if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES: Final = 1 << 16

EXCHANGES: Final[dict[str, Callable[[Ask], Exchange]]] = {
    "openclawd": OpenclawdExchange,
    "llama-server": LlamaServerExchange,
    "python-server": PythonServerExchange,
}


@dataclass(frozen=True, slots=True)
class Script:
    """Requests of one client, each sent when the one before has ended."""

    asks: list[Ask]
    at_s: float = 0.0
    is_background: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """`address` is the path of a Unix socket, or a port on the loopback interface. What has not
    ended after `limit_s` has failed."""

    dialect: str
    address: str | int
    scripts: list[Script]
    gate_reads: int = 0
    hold_s: float = 0.0
    limit_s: float = 300.0

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Plan:
        scripts = [
            Script(**{**script, "asks": [Ask(**ask) for ask in script["asks"]]})
            for script in raw["scripts"]
        ]
        return cls(**{**raw, "scripts": scripts})


@dataclass(slots=True)
class Line:
    """A script under way: one client, and its connection of the moment."""

    script: Script
    plan: Plan
    sock: socket.socket | None = None
    exchange: Exchange | None = None
    num_reads: int = 0
    is_ended: bool = False
    answers: list[Answer] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)

    def connect(self) -> None:
        address = self.plan.address
        if isinstance(address, int):
            self.sock = socket.create_connection(("127.0.0.1", address))
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(address)

    def send_next(self) -> None:
        """Ask the next question, or end."""
        if len(self.answers) == len(self.script.asks):
            self.close()
            return
        assert self.sock is not None
        self.exchange = EXCHANGES[self.plan.dialect](self.script.asks[len(self.answers)])
        self.exchanges.append(self.exchange)
        data = self.exchange.request()
        self.answers.append(Answer(sent_s=time.monotonic()))
        self.sock.sendall(data)

    def receive(self) -> None:
        """Take what has come. At the end of an answer the connection is closed, and another opened
        for the next question."""
        assert self.sock is not None
        assert self.exchange is not None
        data = self.sock.recv(READ_BYTES)
        now_s = time.monotonic()
        self.num_reads += 1
        answer = self.answers[-1]
        if not data:
            answer.error = "the server closed the connection"
            self.close()
        elif self.exchange.feed(now_s, data):
            answer.end_s = now_s
            self.sock.close()
            if len(self.answers) < len(self.script.asks):
                self.connect()
            self.send_next()

    def cut(self) -> None:
        """Leave in the middle."""
        if not self.is_ended:
            if self.answers and not self.answers[-1].end_s:
                self.answers[-1].is_cut = True
            self.close()

    def close(self) -> None:
        self.is_ended = True
        if self.sock is not None:
            self.sock.close()

    def read(self) -> list[Answer]:
        for exchange, answer in zip(self.exchanges, self.answers, strict=True):
            exchange.read_into(answer)
        return self.answers


class Run:
    """One plan, from the first connection to the last answer."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._selector = selectors.DefaultSelector()
        self._lines = [Line(script, plan) for script in plan.scripts]
        self._background = [line for line in self._lines if line.script.is_background]
        self._foreground = [line for line in self._lines if not line.script.is_background]
        self._waiting = sorted(self._foreground, key=lambda line: line.script.at_s)
        self._deadline_s = time.monotonic() + plan.limit_s
        self._gate_s: float | None = None
        self.end_s = 0.0

    def run(self) -> None:
        at_once = [line for line in self._waiting if line.script.at_s == 0]
        for line in (*self._background, *(() if self._background else at_once)):
            self._connect(line)  # before any clock starts
        for line in self._background:
            line.send_next()
        while self._goes_on():
            self._begin_what_is_due()
            for key, _ in self._selector.select(self._wait_s()):
                self._serve(key.data)
        self.end_s = time.monotonic()
        for line in self._lines:
            line.cut()
        self._selector.close()

    def answers(self) -> list[list[Answer]]:
        """Of each script. Background requests that were cut have what came until then."""
        for line in self._foreground:
            for answer in line.answers:
                if answer.is_cut:
                    answer.error = f"not done after {self._plan.limit_s:g} s"
        return [line.read() for line in self._lines]

    @property
    def gate_s(self) -> float:
        """When the gate opened; the end if it never did."""
        return self.end_s if self._gate_s is None else self._gate_s

    def _goes_on(self) -> bool:
        now_s = time.monotonic()
        if now_s > self._deadline_s:
            return False
        is_held = self._gate_s is None or now_s < self._gate_s + self._plan.hold_s
        return is_held or not all(line.is_ended for line in self._foreground)

    def _serve(self, line: Line) -> None:
        sock = line.sock
        assert sock is not None
        line.receive()
        if line.is_ended:
            self._selector.unregister(sock)
        elif line.sock is not sock:
            self._selector.unregister(sock)
            self._register(line)

    def _begin_what_is_due(self) -> None:
        if self._gate_s is None:
            if sum(line.num_reads for line in self._background) < self._plan.gate_reads:
                return
            self._gate_s = time.monotonic()
        while self._waiting and time.monotonic() >= self._gate_s + self._waiting[0].script.at_s:
            line = self._waiting.pop(0)
            if line.sock is None:
                self._connect(line)
            line.send_next()

    def _wait_s(self) -> float:
        due_s = self._deadline_s
        if self._gate_s is not None and self._waiting:
            due_s = min(due_s, self._gate_s + self._waiting[0].script.at_s)
        if self._gate_s is not None and time.monotonic() < self._gate_s + self._plan.hold_s:
            due_s = min(due_s, self._gate_s + self._plan.hold_s)
        return max(0.0, due_s - time.monotonic())

    def _connect(self, line: Line) -> None:
        line.connect()
        self._register(line)

    def _register(self, line: Line) -> None:
        assert line.sock is not None
        self._selector.register(line.sock, selectors.EVENT_READ, line)


def main() -> None:
    print(json.dumps({"ready": True}), flush=True)
    for text in sys.stdin:
        run = Run(Plan.from_dict(json.loads(text)))
        run.run()
        scripts = [[asdict(answer) for answer in answers] for answers in run.answers()]
        times = {"gate_s": run.gate_s, "end_s": run.end_s}
        print(json.dumps({"scripts": scripts, **times}), flush=True)


if __name__ == "__main__":
    main()
