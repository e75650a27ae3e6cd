"""Is the audit as it was written? Reads every row and computes the chain anew.

Owns what counts as a finding and how it is told. The first one is told, with the row where it is:
behind it nothing can be said. What cannot be found with the database alone, such as an older copy
of all of it, is found by comparing with a head from elsewhere (`claims`).
"""

from __future__ import annotations

import contextlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawd.ledger.audit_chain import CHECKPOINT, COLUMNS, read_head
from openclawd.ledger.audit_key import Head
from openclawd.ledger.storage import open_reader, storage_errors

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path

    from openclawd.ledger.audit_key import AuditKey

_ROWS_AT_A_TIME: Final = 100
_PAUSE_S: Final = 0.0002
"""After so many rows, about 1 ms, this thread lets go of the interpreter for good: the event loop
would otherwise wait for it 5 ms each time that it has something to do."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A head that somebody holds to be one of this chain; `source` says who."""

    head: Head
    source: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a verification. `bad_seq` is the first row that is not as it was written, or
    the first that is missing; `problem` a sentence about it. `too_old` are the sources of claims
    about rows that prune has cut, which cannot be compared any more."""

    num_rows: int
    head: Head
    bad_seq: int | None = None
    problem: str | None = None
    too_old: tuple[str, ...] = ()

    @property
    def is_valid(self) -> bool:
        return self.problem is None


class _Finding(Exception):
    """Ends the verification: what is wrong, and from which row on."""

    def __init__(self, seq: int, problem: str) -> None:
        super().__init__(problem)
        self.seq = seq


def verify_audit(path: Path, key: AuditKey, claims: Sequence[Claim] = ()) -> Verdict:
    """Verify every row, the head and the claims. Blocks on the disk, about 20 s for a million
    rows. Raises `Unavailable`."""
    with contextlib.closing(open_reader(path)) as database, storage_errors(path):
        database.text_factory = _text
        database.execute("BEGIN")  # one state, whatever is written meanwhile
        walk = _Walk(key, _beginning(database, key), claims)
        try:
            walk.over(database)
            walk.check_end(*read_head(database, key))
        except _Finding as finding:
            return Verdict(walk.num_rows, walk.head, finding.seq, str(finding), walk.too_old)
        return Verdict(walk.num_rows, walk.head, too_old=walk.too_old)


def _text(raw: bytes) -> str:
    """Text that somebody made no UTF-8 is a changed row, and no failure of the reader."""
    return raw.decode(errors="surrogateescape")


def _beginning(database: sqlite3.Connection, key: AuditKey) -> Head:
    """The end of what prune has cut, by the last checkpoint; that is a row of the chain like any
    other, and so is verified when its turn comes."""
    found = database.execute(
        "SELECT detail FROM audit WHERE action = ? ORDER BY seq DESC LIMIT 1", (CHECKPOINT,)
    ).fetchone()
    if found is None:
        return Head(0, key.beginning)
    try:
        cut = json.loads(found[0])
        return Head(int(cut["pruned_through"]), bytes.fromhex(cut["mac"]))
    except (ValueError, KeyError, TypeError):
        return Head(0, key.beginning)  # somebody changed it: no row will fit


class _Walk:
    """Goes over the rows in order. `head` is the end of what has been found good."""

    def __init__(self, key: AuditKey, beginning: Head, claims: Sequence[Claim]) -> None:
        self._key = key
        self.head = beginning
        self.num_rows = 0
        self.too_old = tuple(c.source for c in claims if c.head.seq < beginning.seq)
        self._claims: dict[int, list[Claim]] = {}
        for claim in claims:
            if claim.head.seq >= beginning.seq:
                self._claims.setdefault(claim.head.seq, []).append(claim)
        self._check_claims()

    def over(self, database: sqlite3.Connection) -> None:
        rows = database.execute(f"SELECT {COLUMNS}, mac FROM audit ORDER BY seq")
        while some := rows.fetchmany(_ROWS_AT_A_TIME):
            for row in some:
                self._take(row)
            time.sleep(_PAUSE_S)

    def _take(self, row: tuple[Any, ...]) -> None:
        seq, expected = row[0], self.head.seq + 1
        if seq > expected:
            raise _Finding(expected, f"{_rows(expected, seq - 1)} missing")
        if seq < expected:
            raise _Finding(seq, f"row {seq} is there again, which prune had cut")
        mac = self._key.mac(self.head.mac, row[:-1])
        if not _is_same(mac, row[-1]):
            raise _Finding(seq, f"row {seq} is not as it was written, or not in its place")
        self.head = Head(seq, mac)
        self.num_rows += 1
        self._check_claims()

    def _check_claims(self) -> None:
        seq = self.head.seq
        for claim in self._claims.pop(seq, ()):
            if not _is_same(claim.head.mac, self.head.mac):
                raise _Finding(seq, f"row {seq} is another one than {claim.source} has")

    def check_end(self, stored: Head | None, is_sealed: bool) -> None:  # noqa: FBT001 - from read_head
        """Nothing may have been known that is not there, and the head must be this end's."""
        missing = self.head.seq + 1
        for seq in sorted(self._claims):
            source = self._claims[seq][0].source
            raise _Finding(missing, f"{_rows(missing, seq)} cut off: {source} has row {seq}")
        if stored is None:
            if self.num_rows:
                raise _Finding(missing, "the head is missing, so rows may have been cut off")
            return
        if not is_sealed:
            raise _Finding(missing, "the head is not as it was written")
        if stored.seq > self.head.seq:
            raise _Finding(missing, f"{_rows(missing, stored.seq)} cut off, by the head")
        if (stored.seq, stored.mac) != (self.head.seq, self.head.mac):
            raise _Finding(stored.seq, "the head is an older one, or another chain's")


def _is_same(mac: bytes, found: object) -> bool:
    return isinstance(found, bytes) and hmac.compare_digest(mac, found)


def _rows(first: int, last: int) -> str:
    return f"row {first} is" if first == last else f"rows {first} to {last} are"
