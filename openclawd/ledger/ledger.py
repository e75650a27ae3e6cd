"""The ledger as the daemon uses it: reserve, note progress, settle, report."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any

from openclawd.ledger.insights.reader import read_insights
from openclawd.ledger.model_peaks import prune_peaks, write_peaks
from openclawd.ledger.prefix_use import KEEP_DAYS, prune_prefix_use, write_prefix_use
from openclawd.ledger.reports import read_usage
from openclawd.ledger.rows import has_row, insert_reservation, settle_interrupted, settle_row
from openclawd.ledger.storage import open_database, storage_errors, transaction
from openclawd.ledger.writer import Post, Write, Writer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from openclawctl.wire.errors import Unavailable
    from openclawd.ledger.insights import Insights, ModelSize
    from openclawd.ledger.model_peaks import Peaks
    from openclawd.ledger.prefix_use import Row
    from openclawd.ledger.rows import Reservation, Settlement


class Ledger:
    """One open ledger. All but `open`, `close` and `recovered` are called on the loop.

    The futures end once the write is on disk, or with `Unavailable` when it could not be. A write
    goes on when its future is cancelled.
    """

    def __init__(self, path: Path, node: str, *, writer: Writer, recovered: int) -> None:
        self.path = path
        self.recovered = recovered
        """Requests that a killed daemon had left open; they are settled now, as estimated."""
        self._node = node
        self._writer = writer

    @classmethod
    def open(cls, path: Path, *, node: str = "", post: Post | None = None) -> Ledger:
        """Open or create the ledger. The caller holds the state directory's lock.

        `node` is this machine's name in the rows (default: the host name). `post` runs a callable
        on the loop, from any thread (default: the running loop's `call_soon_threadsafe`).
        Blocks on the disk. Raises `Unavailable`.
        """
        post = post or asyncio.get_running_loop().call_soon_threadsafe
        database = open_database(path)
        try:
            with storage_errors(path), transaction(database):
                recovered = settle_interrupted(database)
        except BaseException:
            database.close()
            raise
        writer = Writer(database, path, post)
        return cls(path, node or socket.gethostname(), writer=writer, recovered=recovered)

    async def __aenter__(self) -> Ledger:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.close)

    @property
    def problem(self) -> Unavailable | None:
        """Why the last write failed; None while all is well."""
        return self._writer.problem

    def reserve(self, row: Reservation) -> asyncio.Future[None]:
        """Write down a request before it is queued."""
        return self._submit(lambda database: insert_reservation(database, self._node, row))

    def progress(self, request_id: str, completion_tokens: int) -> None:
        """Note how far an open request is. Written within the progress interval; never waits."""
        self._writer.note_progress(request_id, completion_tokens)

    def settle(self, end: Settlement) -> asyncio.Future[None]:
        """Write down how a reserved request ended. Kept and tried again if the disk refuses it."""
        self._writer.forget_progress(end.request_id)
        return self._submit(lambda database: settle_row(database, end), must_not_be_lost=True)

    def record(self, row: Reservation, end: Settlement) -> asyncio.Future[None]:
        """Write down a request that ended before its reservation was confirmed, in one go. The
        reservation may be there all the same: a write goes on when its waiter is cancelled."""

        def insert_and_settle(database: sqlite3.Connection) -> None:
            if not has_row(database, row.request_id):
                insert_reservation(database, self._node, row)
            settle_row(database, end)

        return self._submit(insert_and_settle, must_not_be_lost=True)

    async def usage(
        self, by: str, since_s: float | None, *, now: float | None = None
    ) -> dict[str, Any]:
        """The result of the `usage` operation; `now` is Unix time. Raises `Unavailable`."""
        now = time.time() if now is None else now
        report = await asyncio.to_thread(read_usage, self.path, by, since_s=since_s, now=now)
        return report.as_dict()

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
        self, apply: Callable[[sqlite3.Connection], None], *, must_not_be_lost: bool = False
    ) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        self._writer.submit(Write(apply, future, must_not_be_lost))
        return future
