"""What admission adds to a request: limits, lanes, rate limits and budgets, in the daemon's code.

The calls of `openclawd.server.inference` from `check_size` to what is settled, with the daemon's
real service, in one process: without a worker, and without waiting for the disk (what that costs is
in `overhead`). 32 requests of 100 principals are open at any time. The garbage collector runs, as
it does in the daemon. Once without a rule, and once with three of each kind, which nearly all fit.
CPU time is judged, for what others do on the machine is no cost of this; the clock's is beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from measure import Report, Row, Settings, Target, percentile

from openclawctl.wire.completion import GenerateParams
from openclawctl.wire.messages import Request
from openclawctl.wire.operations import Op
from openclawd.admission.identity import Principal
from openclawd.admission.roles import BUILT_IN
from openclawd.config import load_config
from openclawd.fleet.registry import Fleet
from openclawd.ledger import Ledger
from openclawd.ledger.audit_key import load_audit_key
from openclawd.observe.alerts import AlertSender, AlertTarget
from openclawd.server.identities import Identities
from openclawd.server.inference import Inference
from openclawd.server.names import Names
from openclawd.server.peer import Exchange
from openclawd.server.planning import check_size, plan
from openclawd.server.service import Service
from openclawd.worker.messages import Prepared

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from openclawd.fleet.submission import Submission
    from openclawd.server.lanes import Slot
    from openclawd.server.peer import Peer

NUM_REQUESTS: Final = 20_000
QUICK_REQUESTS: Final = 4_000
NUM_PRINCIPALS: Final = 100
NUM_OPEN: Final = 32
PROMPT: Final = "What is the capital of France, and since when? " * 8
PROMPT_TOKENS: Final = 88
ANSWER_TOKENS: Final = 64
MAX_P99_US: Final = 200

RULES: Final = """
limits:
  - {name: all, max_total_tokens: 8000, max_parallel: 64, max_queued: 100}
  - name: users
    match: {principal: "user:*", group: [staff, "open*"]}
    max_prompt_tokens: 4000
    max_queue_time: 1h
  - name: busy
    match: {tier: default, model: "m*"}
    when: {queue_depth_over: 20, budget_left_below: 0.1}
    max_completion_tokens: 200
rate_limits:
  - {name: each, match: {principal: "user:*"}, tokens: 1000000000, requests: 1000000, window: 1m}
  - name: apps
    match: {group: [staff, "open*"]}
    per: app
    tokens: 1000000000
    window: 1h
    on_exceed: queue
  - {name: all, per: all, tokens: 1000000000, window: 1s}
budgets:
  - {name: each, match: {principal: "user:*"}, per: principal, tokens: 1000000000000, window: day}
  - {name: group, match: {group: [staff, "open*"]}, tokens: 1000000000000, window: 24h}
  - {name: money, per: app, money: "1000000", window: month, on_short: reject}
prices:
  m: {prompt: "0.10", cached: "0.01", completion: "0.40"}
"""


def run(settings: Settings) -> Report:
    num_requests = settings.pick(QUICK_REQUESTS, NUM_REQUESTS)
    rounds = [
        {name: asyncio.run(_measure(rules, num_requests)) for name, rules in _CASES.items()}
        for _ in settings.rounds()
    ]
    rows = [_row(name, [each[name] for each in rounds]) for name in _CASES]
    p99s = {name: [percentile(each[name].cpu_us, 0.99) for each in rounds] for name in _CASES}
    targets = [
        Target.of_rounds(f"admission p99, {name}, µs of CPU", p99s[name], at_most=MAX_P99_US)
        for name in _CASES
    ]
    return Report(rows, targets, p99s)


_CASES: Final = {"no rules": "", "three of each kind": RULES}


@dataclass
class _Times:
    """Microseconds of each request, by the clock and of the CPU; and of each answer's token."""

    us: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    token_us: list[float] = field(default_factory=list)


def _row(name: str, rounds: list[_Times]) -> Row:
    us = [value for each in rounds for value in each.us]
    cpu_us = [value for each in rounds for value in each.cpu_us]
    token_us = [value for each in rounds for value in each.token_us]
    return {
        "what": name,
        "p50 µs": round(percentile(us, 0.5), 1),
        "p99 µs": round(percentile(us, 0.99), 1),
        "p50 CPU µs": round(percentile(cpu_us, 0.5), 1),
        "p99 CPU µs": round(percentile(cpu_us, 0.99), 1),
        "p50 µs a token": round(percentile(token_us, 0.5), 2),
    }


async def _measure(rules: str, num_requests: int) -> _Times:
    times = _Times()
    async with _service(rules) as service:
        requests = _requests(service)
        for _ in range(NUM_PRINCIPALS):  # everybody has been here before
            one = next(requests)
            await one.begin()
            await one.end()
        opened: deque[_Request] = deque()
        for request in itertools.islice(requests, num_requests):
            if len(opened) == NUM_OPEN:
                await _end(opened.popleft(), times)
            await request.begin()
            opened.append(request)
        for request in opened:
            await _end(request, times)
    return times


async def _end(request: _Request, times: _Times) -> None:
    started = time.perf_counter_ns()
    for _ in range(ANSWER_TOKENS):
        request.inference.account.completion(1)
    times.token_us.append((time.perf_counter_ns() - started) / 1000 / ANSWER_TOKENS)
    await request.end()
    times.us.append(request.us)
    times.cpu_us.append(request.cpu_us)


class _Request:
    """One request, and the time that admission has taken for it."""

    def __init__(self, inference: Inference) -> None:
        self.inference = inference
        self.us = 0.0
        self.cpu_us = 0.0
        self._slot: Slot

    async def begin(self) -> None:
        """As `openclawd.server.inference` does it, up to the reservation's row."""
        inference, service = self.inference, self.inference.service
        started = _now()
        check_size(inference)
        await plan(inference, cast("Submission", _Tokenised()))
        self._slot = service.lanes.take(
            inference.rules, inference.subject, print, give_up=inference.exchange.cancel
        )
        await self._slot.__aenter__()
        await inference.account.take(inference, self._slot)
        self._slot.start()
        self._add(started)

    async def end(self) -> None:
        started = _now()
        await self._slot.__aexit__(None, None, None)
        self.inference.account.settle(tokens=PROMPT_TOKENS + ANSWER_TOKENS, money=50)
        self._add(started)

    def _add(self, started: tuple[int, int]) -> None:
        now = _now()
        self.us += (now[0] - started[0]) / 1000
        self.cpu_us += (now[1] - started[1]) / 1000


def _now() -> tuple[int, int]:
    """The clock, and the CPU time of this thread, in nanoseconds."""
    return time.perf_counter_ns(), time.thread_time_ns()


class _Tokenised:
    """In place of a submission: the worker's answer is there."""

    _answer = Prepared(1, PROMPT_TOKENS, PROMPT_TOKENS, prompt_tokens_in=PROMPT_TOKENS)

    async def prepare(self, **_: Any) -> Prepared:
        return self._answer


def _requests(service: Service) -> Iterator[_Request]:
    model = service.fleet.resolve("m")
    for number in itertools.count():
        name = f"user:u{number % NUM_PRINCIPALS}"
        principal = Principal(name, BUILT_IN["user"], groups=("users", "openclaw"))
        peer = SimpleNamespace(principal=principal, app=f"app{number % 20}", send=print)
        exchange = Exchange(cast("Peer", peer), Request(1, Op.GENERATE.value, {}), service.now())
        params = GenerateParams(model="m", prompt=PROMPT, max_tokens=256)
        yield _Request(Inference(service, exchange, params, model))


@contextlib.asynccontextmanager
async def _service(rules: str) -> AsyncIterator[Service]:
    """The daemon's service, without sockets and with a model that is never loaded."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="openclawd-bench-")))
        (folder / "m.gguf").write_bytes(b"GGUF")
        (folder / "c.yaml").write_text(f"models: {{m: {{path: {folder}/m.gguf}}}}\n{rules}")
        config = load_config(folder / "c.yaml")
        post = asyncio.get_running_loop().call_soon_threadsafe
        audit_key = load_audit_key({}, folder)
        ledger = stack.enter_context(
            contextlib.closing(Ledger.open(folder / "ledger.sqlite3", audit_key=audit_key))
        )
        names = stack.enter_context(contextlib.closing(Names(post)))
        alerts = AlertSender(AlertTarget(), folder / "alerts")
        stack.enter_context(contextlib.closing(alerts))
        fleet = Fleet(
            config,
            prefix_dir=folder / "prefixes",
            on_change=lambda model: None,
            fetcher=cast("Any", None),
        )
        async with asyncio.TaskGroup() as tasks:
            fleet.start(tasks)
            yield Service(
                config,
                fleet,
                ledger,
                answer=cast("Any", None),
                version="bench",
                socket_path=folder / "s",
                alerts=alerts,
                identities=Identities(config, [], ledger),
                names=names,
            )
            await fleet.stop()
