"""The one thread that writes the ledger, with group commit.

Everything that was asked for while a commit was under way goes into the next one, so the disk is
synchronised once for many requests. Futures are resolved on the loop, with one call per commit.

A write that the disk refuses fails its future. One that must not be lost (the end of a request) is
also kept, and tried again until it is on disk or the process ends.
"""

from __future__ import annotations

import enum
import logging
import sqlite3
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from openclawctl.wire.errors import Internal, Problem, Unavailable
from openclawd.ledger.rows import PROGRESS_INTERVAL_S, RowError, note_progress
from openclawd.ledger.storage import (
    check_identity,
    identity_of,
    storage_errors,
    transaction,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

logger = logging.getLogger(__name__)

Post: TypeAlias = "Callable[[Callable[[], None]], object]"
"""Runs a callable on the loop; called from the writer's thread."""

Transact: TypeAlias = "Callable[[sqlite3.Connection], AbstractContextManager[None]]"
"""A transaction: everything inside, or nothing. What else goes with it, such as the audit's end, is
the business of whoever made it."""

RETRY_INTERVAL_S: Final = 5.0
"""How often writes that the disk refused are tried again."""

_MAX_KEPT: Final = 10_000
"""Most refused writes that are kept, about 5 MB. Past that the oldest are given up and logged."""

_MAX_KEPT_IF_ROOM: Final = _MAX_KEPT // 2
"""Of those that would be a pity, none is kept beside so many: however many clients ask in vain
while the disk is full, what was computed for others before is not given up for that."""


class Loss(enum.Enum):
    """How bad it is if the disk refuses a write."""

    TOLD = "told"
    """Whoever asked for it hears of it and goes on from there."""
    PITY = "pity"
    """Kept and tried again, if there is room."""
    NEVER = "never"
    """Kept and tried again."""


@dataclass(frozen=True, slots=True)
class Write:
    """One thing to write. `future` is resolved on the loop once it is durable."""

    apply: Callable[[sqlite3.Connection], None]
    future: asyncio.Future[None] | None
    loss: Loss


class Writer:
    """Owns the writing connection from its thread's start to `close`."""

    def __init__(
        self,
        database: sqlite3.Connection,
        path: Path,
        post: Post,
        *,
        transact: Transact = transaction,
    ) -> None:
        self._database = database
        self._path = path
        self._identity = identity_of(path)
        self._post = post
        self._transact = transact
        self._changed = threading.Condition()
        self._queue: list[Write] = []
        self._progress: dict[str, int] = {}
        self._progress_due_at = 0.0
        self._kept: deque[Write] = deque(maxlen=_MAX_KEPT)
        self._retry_at = 0.0
        self._is_closing = False
        self.problem: Unavailable | None = None
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    # ---- called from any thread; never block on the disk ----

    def submit(self, write: Write) -> None:
        with self._changed:
            assert not self._is_closing, "the ledger is closed"
            self._queue.append(write)
            self._changed.notify()

    def note_progress(self, request_id: str, completion_tokens: int) -> None:
        with self._changed:
            if not self._progress:
                self._progress_due_at = time.monotonic() + PROGRESS_INTERVAL_S
                self._changed.notify()
            self._progress[request_id] = completion_tokens

    def forget_progress(self, request_id: str) -> None:
        with self._changed:
            self._progress.pop(request_id, None)

    def close(self) -> None:
        """Write what is waiting and end the thread. Blocks."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()
        self._database.close()

    # ---- the thread ----

    def _run(self) -> None:
        is_closing = False
        while not is_closing:
            writes, progress, is_closing = self._wait_for_work()
            if progress:
                self._write_progress(progress)
            self._write(writes)
        if self._kept:
            logger.error(
                "%d rows could not be written to the ledger %s", len(self._kept), self._path
            )

    def _wait_for_work(self) -> tuple[list[Write], dict[str, int], bool]:
        """Everything that is to be written now."""
        with self._changed:
            while (wait_s := self._idle_s()) is None or wait_s > 0:
                self._changed.wait(wait_s)
            writes, self._queue = self._queue, []
            progress: dict[str, int] = {}
            if self._progress and (self._is_closing or time.monotonic() >= self._progress_due_at):
                progress, self._progress = self._progress, {}
            return writes, progress, self._is_closing

    def _idle_s(self) -> float | None:
        """Seconds until there is something to do; None: until something is asked for."""
        if self._queue or self._is_closing:
            return 0
        due = [self._progress_due_at] if self._progress else []
        if self._kept:
            due.append(self._retry_at)
        return min(due) - time.monotonic() if due else None

    def _write_progress(self, progress: dict[str, int]) -> None:
        """A failure is not passed on: the next interval writes newer numbers."""
        try:
            with storage_errors(self._path), transaction(self._database):
                note_progress(self._database, progress.items())
        except Unavailable as problem:
            self._note_failure(problem)

    def _write(self, writes: Sequence[Write]) -> None:
        """Commit the kept writes, then these: rows are numbered in the order of their commits, and
        what ended before a request was let in must stand before it."""
        is_due = self._is_closing or bool(writes) or time.monotonic() >= self._retry_at
        if self._kept and is_due and not self._write_kept():
            self._refuse(writes)
        elif writes:
            self._commit_batch(writes)

    def _write_kept(self) -> bool:
        """Try the first of the kept writes, and then the others. Did the disk take them?"""
        if not self._commit_batch([self._kept.popleft()]):
            return False
        kept = list(self._kept)
        self._kept.clear()
        return not kept or self._commit_batch(kept)

    def _refuse(self, writes: Sequence[Write]) -> None:
        """The disk still takes nothing: these need not be tried."""
        self._keep(writes)
        self._resolve([(write, self.problem) for write in writes])

    def _commit_batch(self, batch: Sequence[Write]) -> bool:
        """Write a batch and tell those who wait. Did the disk take it?"""
        outcome = self._commit(batch)
        if outcome is None or isinstance(outcome, Unavailable) or len(batch) == 1:
            outcomes = [(write, outcome) for write in batch]
        else:  # one of them is wrong in itself: let it fail alone
            outcomes = [(write, self._commit([write])) for write in batch]
        refused = [write for write, outcome in outcomes if isinstance(outcome, Unavailable)]
        if refused:
            self._keep(refused)
        self._resolve(outcomes)
        return not refused

    def _commit(self, batch: Sequence[Write]) -> Problem | None:
        """Write a batch in one transaction. Returns why it did not go, None when it is durable."""
        try:
            with storage_errors(self._path):
                check_identity(self._path, self._identity)
                with self._transact(self._database):
                    for write in batch:
                        write.apply(self._database)
        except Unavailable as problem:
            self._note_failure(problem)
            return problem
        except (sqlite3.Error, RowError) as error:
            logger.exception("a ledger row was refused")
            return Internal(f"the ledger refused a row: {error}")
        if self.problem is not None:
            logger.warning("the ledger %s can be written again", self._path)
            self.problem = None
        return None

    def _note_failure(self, problem: Unavailable) -> None:
        if self.problem is None:
            logger.error("%s", problem)
        self.problem = problem

    def _keep(self, writes: Sequence[Write]) -> None:
        most_pities = max(0, _MAX_KEPT_IF_ROOM - len(self._kept))
        wanted: list[Write] = []
        num_pities = 0
        for write in writes:
            num_pities += write.loss is Loss.PITY
            if write.loss is Loss.NEVER or (write.loss is Loss.PITY and num_pities <= most_pities):
                wanted.append(write)
        lost = max(0, num_pities - most_pities)
        if lost := lost + max(0, len(self._kept) + len(wanted) - _MAX_KEPT):
            logger.error("%d rows of the ledger are given up: the disk still refuses them", lost)
        # The futures of kept writes fail now; later attempts concern the file alone.
        self._kept.extend(Write(write.apply, None, write.loss) for write in wanted)
        self._retry_at = time.monotonic() + RETRY_INTERVAL_S

    def _resolve(self, outcomes: Sequence[tuple[Write, Problem | None]]) -> None:
        waiting = [(write.future, outcome) for write, outcome in outcomes if write.future]
        if not waiting:
            return
        try:
            self._post(lambda: _resolve_all(waiting))
        except RuntimeError:
            logger.debug("the loop ended before %d ledger writes were reported", len(waiting))


def _resolve_all(waiting: Sequence[tuple[asyncio.Future[None], Problem | None]]) -> None:
    """Runs on the loop. A future whose waiter was cancelled is left alone."""
    for future, problem in waiting:
        if future.done():
            continue
        if problem is None:
            future.set_result(None)
        else:
            future.set_exception(problem)
