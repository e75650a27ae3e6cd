"""The ledger as the daemon uses it: reserve, note progress, settle, report, keep in order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from typing import TYPE_CHECKING, Any, TypeVar

from openclawd.ledger import upkeep
from openclawd.ledger.audit import AuditLog
from openclawd.ledger.audit_chain import AuditChain
from openclawd.ledger.budgets import note_alerts, read_counters
from openclawd.ledger.insights.reader import read_insights
from openclawd.ledger.model_peaks import prune_peaks, write_peaks
from openclawd.ledger.prefix_use import KEEP_DAYS, prune_prefix_use, write_prefix_use
from openclawd.ledger.reports import read_rows, read_usage
from openclawd.ledger.rows import insert_reservation, record_row, settle_interrupted, settle_row
from openclawd.ledger.storage import open_database, open_reader, storage_errors, transaction
from openclawd.ledger.writer import Loss, Post, Write, Writer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from openclawctl.wire.errors import Unavailable
    from openclawd.admission.budget_rules import Alert, Counter
    from openclawd.ledger.audit_chain import AuditEntry
    from openclawd.ledger.audit_key import AuditKey, Head
    from openclawd.ledger.insights import Insights, ModelSize
    from openclawd.ledger.model_peaks import Peaks
    from openclawd.ledger.prefix_use import Row
    from openclawd.ledger.reports import UsageQuery
    from openclawd.ledger.rows import Reservation, Settlement
    from openclawd.ledger.upkeep import CheckReport

_T = TypeVar("_T")


class Ledger:
    """One open ledger. All but `open`, `close` and `recovered` are called on the loop.

    The futures end once the write is on disk, or with `Unavailable` when it could not be. A write
    goes on when its future is cancelled.
    """

    def __init__(
        self, path: Path, node: str, *, writer: Writer, recovered: int, audit: AuditLog | None
    ) -> None:
        self.path = path
        self._audit = audit
        self.recovered = recovered
        """Requests that a killed daemon had left open; they are settled now, as estimated."""
        self._node = node
        self._writer = writer
        self._open: set[str] = set()
        """Requests that were reserved and not settled, as the loop knows it."""
        self._pruning = asyncio.Lock()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        node: str = "",
        post: Post | None = None,
        audit_key: AuditKey | None = None,
        tell_head: Callable[[Head], object] = lambda head: None,
    ) -> Ledger:
        """Open or create the ledger. The caller holds the state directory's lock.

        `node` is this machine's name in the rows (default: the host name). `post` runs a callable
        on the loop, from any thread (default: the running loop's `call_soon_threadsafe`).
        Without `audit_key` there is no `audit`; `tell_head` is told its end now and then, from the
        writer's thread.
        Blocks on the disk. Raises `Unavailable`.
        """
        post = post or asyncio.get_running_loop().call_soon_threadsafe
        database = open_database(path)
        try:
            with storage_errors(path), transaction(database):
                recovered = settle_interrupted(database)
                chain = AuditChain(database, audit_key, tell_head) if audit_key else None
        except BaseException:
            database.close()
            raise
        transact = chain.transaction if chain else transaction
        writer = Writer(database, path, post, transact=transact)
        audit = None
        if audit_key and chain:
            audit = AuditLog(path, audit_key, chain=chain, writer=writer)
        node = node or socket.gethostname()
        return cls(path, node, writer=writer, recovered=recovered, audit=audit)

    async def __aenter__(self) -> Ledger:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.close)

    @property
    def audit(self) -> AuditLog:
        assert self._audit is not None, "the ledger was opened without the audit's key"
        return self._audit

    @property
    def problem(self) -> Unavailable | None:
        """Why the last write failed; None while all is well."""
        return self._writer.problem

    def reserve(self, row: Reservation) -> asyncio.Future[None]:
        """Write down a request before it is queued."""
        self._open.add(row.request_id)
        return self._submit(lambda database: insert_reservation(database, self._node, row))

    def progress(self, request_id: str, completion_tokens: int) -> None:
        """Note how far an open request is. Written within the progress interval; never waits."""
        self._writer.note_progress(request_id, completion_tokens)

    def settle(self, end: Settlement, audit: AuditEntry | None = None) -> asyncio.Future[None]:
        """Write down how a reserved request ended, in one transaction with its audit row. Kept and
        tried again if the disk refuses it."""
        self._open.discard(end.request_id)
        self._writer.forget_progress(end.request_id)

        def apply(database: sqlite3.Connection) -> None:
            settle_row(database, end)
            if audit is not None:
                self.audit.append(database, audit)

        return self._submit(apply, loss=Loss.NEVER)

    def record(
        self, row: Reservation, end: Settlement, audit: AuditEntry | None = None
    ) -> asyncio.Future[None]:
        """Write down a request that ended before its reservation was confirmed, in one go. The
        reservation may be there all the same: a write goes on when its waiter is cancelled."""
        self._open.discard(end.request_id)

        def apply(database: sqlite3.Connection) -> None:
            record_row(database, self._node, row, end)
            if audit is not None:
                self.audit.append(database, audit)

        return self._submit(apply, loss=Loss.PITY)

    # ---- reports ----

    async def usage(self, query: UsageQuery) -> dict[str, Any]:
        """The result of the `usage` operation. Raises `Unavailable`."""
        return await asyncio.to_thread(read_usage, self.path, query)

    def note_alerts(self, alerts: Sequence[Alert]) -> None:
        """Remember that budget alerts were said. Never waits; tried again if the disk refuses."""
        apply = functools.partial(note_alerts, alerts=alerts)
        self._writer.submit(Write(apply, None, Loss.NEVER))

    def budget_counters(self, *, now: float) -> list[Counter]:
        """What is used of budgets, for the start. Blocks on the disk. Raises `Unavailable`."""
        with contextlib.closing(open_reader(self.path)) as database, storage_errors(self.path):
            return list(read_counters(database, now=now))

    async def rows(
        self, *, after_seq: int, limit: int, principal: str | None = None
    ) -> dict[str, Any]:
        """Ended requests one by one: the result of `usage.rows`. Raises `Unavailable`."""
        return await asyncio.to_thread(
            read_rows, self.path, after_seq=after_seq, limit=limit, principal=principal
        )

    # ---- upkeep ----

    async def check(self) -> CheckReport:
        """What is wrong with the ledger, also by what the loop knows. Raises `Unavailable`."""
        report = await asyncio.to_thread(upkeep.check_ledger, self.path)
        suspects = [name for name in report.open_ids if name not in self._open]
        if suspects:  # their ends may have been on their way to the disk
            await self._submit(lambda database: None)
            still_open = await asyncio.to_thread(upkeep.open_ids, self.path)
            report.findings.extend(
                f"request {name} has ended, but its row is open"
                for name in suspects
                if name in still_open
            )
        return report

    async def prune(self, before: float) -> int:
        """Delete what arrived before `before` (Unix time) and has ended, and give its space back to
        the file system, in steps between which others write. Returns the number of requests.
        Raises `Unavailable`."""
        num_rows = 0
        async with self._pruning:
            while some := await self._ask(functools.partial(upkeep.prune_rows, before=before)):
                num_rows += some
            if num_rows:
                await self._drop_unused_names()
            left = await self._ask(upkeep.vacuum_some)
            while 0 < (now_left := await self._ask(upkeep.vacuum_some)) < left:
                left = now_left
            await asyncio.to_thread(upkeep.checkpoint, self.path)
        return num_rows

    async def back_up(self, *, now: float | None = None) -> Path:
        """A copy of the ledger in the folder `backups` beside it. Raises `Unavailable`."""
        now = time.time() if now is None else now
        folder = self.path.with_name("backups")
        return await asyncio.to_thread(upkeep.back_up, self.path, folder, now=now)

    async def _ask(self, step: Callable[[sqlite3.Connection], _T]) -> _T:
        """What `step` returned, in the transaction that was committed."""
        answers: list[_T] = []  # more than one if others in its commit made it try again
        await self._submit(lambda database: answers.append(step(database)))
        return answers[-1]

    async def _drop_unused_names(self) -> None:
        numbers, seq = await asyncio.to_thread(upkeep.unused_names, self.path)
        for start in range(0, len(numbers), upkeep.PRUNE_ROWS):
            some = numbers[start : start + upkeep.PRUNE_ROWS]
            await self._submit(functools.partial(upkeep.drop_names, numbers=some, as_of_seq=seq))

    def write(self, apply: Callable[[sqlite3.Connection], None]) -> asyncio.Future[None]:
        """Write anything else, such as a key: one of the functions of this package."""
        return self._submit(apply)

    def write_later(self, apply: Callable[[sqlite3.Connection], None]) -> None:
        """The same for what is no loss if the disk refuses it. Nobody waits for it."""
        self._writer.submit(Write(apply, None, Loss.TOLD))

    async def insights(
        self,
        sizes: Sequence[ModelSize],
        *,
        since_s: float,
        principal: str | None,
        model: str | None,
    ) -> Insights:
        """The report on the last `since_s` seconds; see `read_insights`."""
        return await asyncio.to_thread(
            read_insights,
            self.path,
            sizes,
            since_s=since_s,
            principal=principal,
            model=model,
            now=time.time(),
        )

    def note_statistics(
        self, prefixes: Sequence[Row], peaks: Sequence[Peaks], *, day: int
    ) -> asyncio.Future[None]:
        """Add to the statistics of a day (since 1970, UTC), and forget those that are too old."""

        def write(database: sqlite3.Connection) -> None:
            write_prefix_use(database, prefixes, day=day)
            write_peaks(database, peaks, day=day)
            prune_prefix_use(database, before_day=day - KEEP_DAYS)
            prune_peaks(database, before_day=day - KEEP_DAYS)

        return self._submit(write)

    def close(self) -> None:
        """Write what is waiting, then close. Blocks on the disk; nothing may be asked after it."""
        self._writer.close()

    def _submit(
        self, apply: Callable[[sqlite3.Connection], None], *, loss: Loss = Loss.TOLD
    ) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        self._writer.submit(Write(apply, future, loss))
        return future
