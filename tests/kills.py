"""Daemons and workers that are killed at random moments under load, and what must be true after.

Owns the load (clients of all kinds that note what they were told), the moments of the kills, and
the questions that are put to every daemon after one. `tests/faults/test_chaos.py` and
`bench/chaos.py` say how many. The load, the order of the kills and how far each request is at its
kill are drawn from one seed; the machine's own timing is not.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sqlite3
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import psutil
from harness import running_daemon, smollm2_path, wait_until

from openclawctl import Client, OpenclawError
from openclawctl.wire.errors import BudgetExceeded, DaemonUnreachable, RateLimited, WorkerDied
from openclawd.ledger.history import peak, read_history
from openclawd.ledger.rows import MOST_TOKENS_PER_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Daemon

    from openclawctl.wire.messages import Event
    from openclawctl.wire.results import Usage

NUM_CLIENTS: Final = 6
SHARED_LIMIT: Final = 200_000
APP_LIMIT: Final = 900
MOST_TOKENS_BEFORE_KILL: Final = 90
"""Over all clients, from the last kill on: about a second of two cores."""
MOST_PAUSE_S: Final = 0.3
"""Between those tokens and the kill: longer than the ledger's interval, so that kills meet any part
of it, and requests in any stage."""
WORDS: Final = ("the sea", "a fox", "old maps", "bread", "a train", "winter", "music", "stones")

CONFIG: Final[dict[str, Any]] = {
    "models": {"smollm2": {"path": str(smollm2_path()), "preload": True, "parallel": 4}},
    "default_model": "smollm2",
    "budgets": [
        {"name": "shared", "tokens": SHARED_LIMIT, "window": "lifetime", "max_wait": "5s"},
        {"name": "each", "match": {"app": "tight*"}, "tokens": APP_LIMIT, "window": "lifetime",
         "per": "app", "max_wait": "1s"},
    ],
    "rate_limits": [
        {"name": "queued", "match": {"app": "tight0-*"}, "per": "app", "requests": 8,
         "window": "1s", "on_exceed": "queue", "max_wait": "5s"},
        {"name": "rejected", "per": "principal", "tokens": 4000, "window": "1s"},
    ],
    "prices": {"smollm2": {"prompt": "0.10", "cached": "0.01", "completion": "0.40"}},
}  # fmt: skip
"""Two budgets, one of which is used up again and again (each round has apps of its own)."""


@dataclass(slots=True, eq=False)
class Asked:
    """One request as its client saw it. `num_seen` are completion tokens; `usage` came with its
    `done`, and is None if that never did."""

    app: str
    request_id: str = ""
    num_sequences: int = 1
    num_seen: int = 0
    usage: Usage | None = None
    error_code: str = ""

    def on_event(self, event: Event) -> None:
        if event.kind == "started":
            self.request_id = event.data["request_id"]


@dataclass(slots=True)
class Load:
    """Clients that ask without a break. What they asked is in `asked`, in no order."""

    daemon: Daemon
    apps: list[str]
    seed: str
    asked: list[Asked] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _kills_at_done: threading.Event = field(default_factory=threading.Event)
    _failures: list[BaseException] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(each.num_seen for each in list(self.asked))

    def kill_at_done(self) -> None:
        """Kill the daemon as soon as a client is told of an end, which must be on disk by then."""
        self._kills_at_done.set()
        self.daemon.process.wait(60)

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        """For the length of a block, at whose end the daemon is gone."""
        threads = [
            threading.Thread(target=self._keep_asking, args=(n,)) for n in range(NUM_CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join(60)
        assert not self._failures, self._failures

    def _keep_asking(self, number: int) -> None:
        draw = random.Random(f"{self.seed}-{number}")
        app = self.apps[number % len(self.apps)]
        with Client(socket_path=str(self.daemon.socket), app=app, retries=0) as client:
            while not self._over.is_set():
                try:
                    ask_one(client, draw, self._note(Asked(app)))
                    if self._kills_at_done.is_set():
                        self.daemon.process.kill()
                except (BudgetExceeded, RateLimited, WorkerDied):
                    self._over.wait(0.05)
                except DaemonUnreachable:
                    return
                except BaseException as failure:
                    self._failures.append(failure)
                    raise

    def _note(self, asked: Asked) -> Asked:
        self.asked.append(asked)
        return asked


def ask_one(client: Client, draw: random.Random, asked: Asked) -> None:
    """One request of some kind, to its end. Raises what it ended with."""
    kind = draw.choice(("stream", "stream", "stream", "chat", "choices", "cancel", "embed"))
    prompt = f"Tell me about {draw.choice(WORDS)} and {draw.choice(WORDS)} {draw.randrange(1000)}:"
    options: dict[str, Any] = {"seed": draw.randrange(1000), "on_event": asked.on_event}
    try:
        if kind == "embed":
            vectors = client.embed([prompt] * draw.randint(1, 3))
            asked.request_id, asked.usage = vectors.request_id, vectors.usage
            return
        options["max_tokens"] = draw.choice((1, 8, 24, 60, 400))
        options["ignore_eos"] = draw.random() < 0.5
        if kind == "chat":
            stream = client.chat([{"role": "user", "content": prompt}], stream=True, **options)
        else:
            n = asked.num_sequences = draw.randint(2, 3) if kind == "choices" else 1
            stream = client.generate(prompt, n=n, stream=True, **options)
        most = draw.randrange(20) if kind == "cancel" else 10_000
        with stream:
            for delta in stream:
                asked.num_seen += len(delta.token_ids)
                if asked.num_seen >= most:
                    stream.cancel()
        asked.request_id, asked.usage = stream.result.request_id, stream.result.usage
    except OpenclawError as problem:
        asked.error_code = problem.code
        raise


@dataclass(slots=True)
class Chaos:
    """One state directory, and all that was ever asked of the daemons in it."""

    folder: Path
    seed: int
    asked: list[Asked] = field(default_factory=list)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    _next_seq: int = 0
    _head: str = ""

    def __post_init__(self) -> None:
        (self.folder / "c.json").write_text(json.dumps(CONFIG))

    def run(self, *, num_rounds: int) -> None:
        """So many times: start, load, kill the worker, load, kill the daemon; and a last start."""
        draw = random.Random(self.seed)
        for number in range(num_rounds):
            with self._started() as daemon:
                self._check(daemon)
                self._one_round(daemon, draw, number)
        with self._started() as daemon:
            self._check(daemon)
            assert daemon.terminate() == 0

    @contextlib.contextmanager
    def _started(self) -> Iterator[Daemon]:
        arguments = ("--config", str(self.folder / "c.json"))
        with running_daemon(*arguments, folder=self.folder) as daemon:
            yield daemon.wait_ready()

    def _one_round(self, daemon: Daemon, draw: random.Random, number: int) -> None:
        # Every second round goes on with the budgets of the one before.
        apps = [f"{name}-{number // 2}" for name in ("tight0", "tight1", "free")]
        load = Load(daemon, apps, f"{self.seed}-{number}")
        with load.running():
            try:
                wait_moment(load, draw)
                self._kill_worker(daemon)
                workers = daemon.workers()
                if number % 2:
                    wait_moment(load, draw)
                else:
                    load.kill_at_done()
            finally:
                daemon.process.kill()
                daemon.process.wait()
            self.counts["daemon kills"] += 1
            assert not psutil.wait_procs(workers, timeout=10)[1], "workers outlived their daemon"
        self.asked += load.asked

    def _kill_worker(self, daemon: Daemon) -> None:
        """And see that the daemon's books are in order when another one has come."""
        with Client(socket_path=str(daemon.socket), retries=0) as client:
            pid = worker_pid(client)
            (worker,) = [each for each in daemon.workers() if each.pid == pid]
            worker.send_signal(signal.SIGKILL)
            self.counts["worker kills"] += 1
            wait_until(lambda: worker_pid(client) not in (None, pid), what="another worker")
            assert client.check_ledger()["findings"] == []
            assert client.audit_verify()["valid"]

    # ---- the questions ----

    def _check(self, daemon: Daemon) -> None:
        """Everything that must be true of a daemon that has just started."""
        path = daemon.state_dir / "ledger.sqlite3"
        with Client(socket_path=str(daemon.socket), retries=0) as client:
            report = client.check_ledger()
            assert (report["findings"], report["open"]) == ([], 0)
            assert num_held(path) == 0
            self._read_rows(client)
            self._check_requests()
            self._check_budgets(client, path)
            self._check_audit(client)

    def _read_rows(self, client: Client) -> None:
        while True:
            page = client.usage_rows(after_seq=self._next_seq)
            self._next_seq = page["next_seq"]
            for row in page["rows"]:
                assert row["request_id"] not in self.rows, "a request was settled twice"
                self.rows[row["request_id"]] = row
            if not page["has_more"]:
                return

    def _check_requests(self) -> None:
        """What clients saw, against the rows."""
        for asked in self.asked:
            if not asked.request_id:
                continue  # it was never started, as far as its client knows
            row = self.rows[asked.request_id]
            if asked.usage is not None:
                self._check_done(asked, row)
            elif row["counts"] == "exact":
                assert row["completion_tokens"] >= asked.num_seen, (asked, row)
                self.counts["ended, but its client was not told"] += not asked.error_code
            else:
                self._check_estimate(asked, row)
            assert row["prompt_tokens"] + row["completion_tokens"] <= row["reserved_tokens"]
        interrupted = [row for row in self.rows.values() if row["error_code"] == "internal"]
        assert all(row["counts"] == "estimated" for row in interrupted)

    def _check_done(self, asked: Asked, row: dict[str, Any]) -> None:
        assert asked.usage is not None
        assert row["state"] in ("done", "cancelled"), (asked, row)
        assert row["counts"] == "exact"
        assert row["prompt_tokens"] == asked.usage.prompt_tokens
        assert row["completion_tokens"] == asked.usage.completion_tokens == asked.num_seen

    def _check_estimate(self, asked: Asked, row: dict[str, Any]) -> None:
        assert row["state"] == "failed"
        assert row["counts"] == "estimated"
        too_many = row["completion_tokens"] - asked.num_seen
        assert 0 <= too_many <= asked.num_sequences * MOST_TOKENS_PER_INTERVAL, (asked, row)

    def _check_budgets(self, client: Client, path: Path) -> None:
        """By the ledger's history, its counters, and what the daemon says."""
        used: dict[str, int] = defaultdict(int)
        for row in self.rows.values():
            used[row["app"]] += row["prompt_tokens"] + row["completion_tokens"]
        events = list(read_history(path))
        assert peak(events) <= SHARED_LIMIT
        tight = {app: tokens for app, tokens in used.items() if app.startswith("tight")}
        for app in tight:
            assert peak(event for event in events if event.app == app) <= APP_LIMIT, app
        expected = {("each", app): tokens for app, tokens in tight.items()}
        expected["shared", ""] = sum(used.values())
        for row in client.budgets():
            tokens = row["tokens"]
            assert tokens["reserved"] == 0
            assert tokens["used"] == expected.get((row["name"], row["bucket"]), 0), row
            assert tokens["used"] <= tokens["limit"]
        assert counters(path) == {key: tokens for key, tokens in expected.items() if tokens}

    def _check_audit(self, client: Client) -> None:
        """It verifies, also from the head that was known before the kill, and has every end that
        a client was told."""
        verdict = client.audit_verify(head=self._head or None)
        assert verdict["valid"], verdict
        self._head = verdict["head"]
        audited, after_seq = set[str](), 0
        while page := client.audit(limit=1000, after_seq=after_seq)["rows"]:
            audited |= {row["request_id"] for row in page}
            after_seq = page[-1]["seq"]
        assert {each.request_id for each in self.asked if each.usage is not None} <= audited

    def summary(self) -> dict[str, Any]:
        """What happened in all, for people."""
        estimated = [row for row in self.rows.values() if row["counts"] == "estimated"]
        seen = {each.request_id: each.num_seen for each in self.asked if each.request_id}
        over = [r["completion_tokens"] - seen.get(r["request_id"], 0) for r in estimated]
        refusals = Counter(each.error_code for each in self.asked if each.error_code)
        return {
            **self.counts,
            "asked": len(self.asked),
            "rows": len(self.rows),
            "done seen": sum(each.usage is not None for each in self.asked),
            "outlived a worker": sum(row["worker_restarts"] > 0 for row in self.rows.values()),
            "estimated": len(estimated),
            "most charged beyond what was seen": max(over, default=0),
            "tokens": sum(seen.values()),
            "errors": dict(refusals),
        }


def wait_moment(load: Load, draw: random.Random) -> None:
    """Until so many tokens more have come, and then any part of an interval."""
    goal = load.num_tokens + draw.randrange(MOST_TOKENS_BEFORE_KILL)
    wait_until(lambda: load.num_tokens >= goal, timeout_s=60, what="tokens")
    threading.Event().wait(draw.uniform(0, MOST_PAUSE_S))


def worker_pid(client: Client) -> int | None:
    """Of the worker that is ready; None while there is none."""
    (row,) = client.status()["models"]
    return row["worker_pid"] if row["state"] == "ready" else None


def num_held(path: Path) -> int:
    """Counters of budgets that a request still holds something in."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        ((number,),) = database.execute("SELECT count(*) FROM reserved_budgets")
    return int(number)


def counters(path: Path) -> dict[tuple[str, str], int]:
    """Tokens of every budget and bucket, as they are on disk."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT budget, bucket, tokens FROM budget_usage WHERE tokens > 0")
        return {(budget, bucket): tokens for budget, bucket, tokens in rows}
