"""The ledger with a million requests: writing, size, reports, checking, copying, pruning.

Requests of 50 users, 5 models and 20 applications over 30 days, every one with a session of its
own, are reserved and settled through the same functions and in the same kind of transactions as in
the daemon, 32 of them open at any time, so that rows grow and pages split as they do there. Without
waiting for the disk; what a commit costs is in `overhead`.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from measure import Report, Row, Settings, Target

from openclawd.ledger import Ledger, Outcome, Reservation, Settlement, UsageQuery
from openclawd.ledger.reports import read_usage
from openclawd.ledger.rows import insert_reservation, settle_row
from openclawd.ledger.storage import open_database, transaction
from openclawd.ledger.upkeep import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_ROWS: Final = 1_000_000
QUICK_ROWS: Final = 100_000
NUM_OPEN: Final = 32
ROWS_PER_COMMIT: Final = 8
SPAN_S: Final = 30 * 86_400
MAX_BYTES_PER_ROW: Final = 400
DAY_MODEL: Final = UsageQuery(by=("day", "model"), since=0, currency="USD")


def run(settings: Settings) -> Report:
    num_rows = settings.pick(QUICK_ROWS, NUM_ROWS)
    with tempfile.TemporaryDirectory(prefix="openclawd-bench-") as folder:
        path = Path(folder) / "ledger.sqlite3"
        write_s = _seconds(lambda: _write(path, num_rows, now=time.time()))
        checkpoint(path)
        num_bytes = path.stat().st_size
        rows: list[Row] = [_row(f"write {num_rows:,} requests", write_s, num_rows)]
        reports = [_seconds(lambda: read_usage(path, DAY_MODEL)) for _ in settings.rounds()]
        rows.append(_row("usage --by day,model --since 30d", min(reports), num_rows))
        for by in (["model"], ["day"], ["hour"], ["principal", "model"], ["principal", "app"]):
            seconds = _seconds(lambda by=by: read_usage(path, UsageQuery(by=by)))  # type: ignore[misc]
            rows.append(_row(f"usage --by {','.join(by)}", seconds, num_rows))
        rows += asyncio.run(_upkeep(path, num_rows))
        left = path.stat().st_size
    per_row = num_bytes / num_rows
    remarks = [f"{per_row:.0f} bytes a request; {left:,} bytes after everything was deleted"]
    targets = [
        Target("bytes a request", per_row, at_most=MAX_BYTES_PER_ROW),
        Target.of_rounds("usage --by day,model of all, s", reports, at_most=1),
        Target("bytes after prune ÷ before", left / num_bytes, at_most=0.01),
    ]
    return Report(rows, targets, {"usage by day,model": reports}, remarks)


async def _upkeep(path: Path, num_rows: int) -> list[Row]:
    """Through the daemon's own `Ledger`, with its thread."""
    async with Ledger.open(path, node="bench") as ledger:
        rows = []
        for name, step in (
            ("check", ledger.check),
            ("backup", ledger.back_up),
            ("prune everything", lambda: ledger.prune(time.time() + 1)),
        ):
            started = time.monotonic()
            await step()  # type: ignore[no-untyped-call]
            rows.append(_row(name, time.monotonic() - started, num_rows))
    return rows


def _write(path: Path, num_rows: int, *, now: float) -> None:
    source = random.Random(1)
    database = open_database(path)
    database.execute("PRAGMA synchronous = OFF")
    open_now: list[Reservation] = []
    for first in range(0, num_rows, ROWS_PER_COMMIT):
        with transaction(database):
            for number in range(first, min(first + ROWS_PER_COMMIT, num_rows)):
                row = _reservation(source, now - SPAN_S * (1 - number / num_rows))
                insert_reservation(database, "bench", row)
                open_now.append(row)
                if len(open_now) > NUM_OPEN:
                    index = source.randrange(len(open_now))
                    settle_row(database, _settlement(source, open_now.pop(index)))
    with transaction(database):
        for row in open_now:
            settle_row(database, _settlement(source, row))
    database.close()


def _reservation(source: random.Random, arrived_at: float) -> Reservation:
    prompt_tokens = source.randrange(1, 2000)
    return Reservation(
        request_id=str(uuid.UUID(int=int(arrived_at * 1000) << 80 | source.getrandbits(80))),
        principal=f"user:user{source.randrange(50)}",
        model=f"model{source.randrange(5)}",
        op=source.choice(["generate", "chat", "embed"]),
        arrived_at=arrived_at,
        prompt_tokens=prompt_tokens,
        reserved_tokens=prompt_tokens + 1024,
        app=f"app{source.randrange(20)}",
        session=f"session-{source.getrandbits(64):016x}",
        tier=source.choice(["gold", "default"]),
        reserved_cost=source.randrange(10_000),
        prompt_cost=source.randrange(1000),
        currency="USD",
    )


def _settlement(source: random.Random, row: Reservation) -> Settlement:
    total_s = source.random() * 20
    return Settlement(
        request_id=row.request_id,
        outcome=Outcome.DONE,
        tokens={
            "prompt": row.prompt_tokens,
            "cached": source.randrange(row.prompt_tokens + 1),
            "completion": source.randrange(1024),
        },
        finish_reason="stop",
        queue_s=source.random(),
        ttft_s=total_s / 4,
        total_s=total_s,
        cost=source.randrange(10_000),
    )


def _seconds(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def _row(what: str, seconds: float, num_rows: int) -> Row:
    return {"what": what, "s": seconds, "requests per s": num_rows / seconds}
