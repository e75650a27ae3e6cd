"""How often prompts begin alike: counted in memory, written once a minute, bounded everywhere.

Owns the table `prefix_use` and which prefixes are worth a row. A prefix is known by a keyed hash
that a worker made of its tokens; no text and no tokens come here. What is lost when the daemon is
killed is one minute of statistics, never an account.

Invariants: the counts in memory are at most `MAX_COUNTED`; only a prefix that was seen twice gets a
row; a day has at most `MAX_ROWS_PER_DAY` of them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawd.ledger.insights.samples import PrefixSums

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

DAY_S: Final = 86_400

MAX_COUNTED: Final = 4_096
"""Prefixes in memory, about 400 bytes each. The least recently seen go first. A prompt unlike all
others takes one place, since a longer prefix is counted only once the shorter one is known; so a
prefix is noticed that comes back within about 4,000 other prompts."""

MAX_ROWS_PER_DAY: Final = 2_000
KEEP_DAYS: Final = 90

CREATE: Final = (
    """CREATE TABLE prefix_use (
        day               INTEGER NOT NULL,
        model             TEXT NOT NULL,
        principal         TEXT NOT NULL,
        hash              BLOB NOT NULL,
        parent            BLOB NOT NULL,
        length            INTEGER NOT NULL,
        requests          INTEGER NOT NULL,
        computed_tokens   INTEGER NOT NULL,
        prompt_tokens     INTEGER NOT NULL,
        cached_tokens     INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cut_answers       INTEGER NOT NULL,
        PRIMARY KEY (day, model, principal, hash)
    ) STRICT, WITHOUT ROWID""",
)
"""`day` counts from 1970-01-01, in UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixUse:
    """One ended request. `prefixes` are the lengths that its prompt reaches, in tokens and rising,
    each with its hash; `is_cut`: the finish reason was `length`."""

    model: str
    principal: str
    prefixes: Sequence[tuple[int, bytes]]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    is_cut: bool


_COUNTS: Final = (
    "requests",
    "computed_tokens",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cut_answers",
)


@dataclass(slots=True)
class _Counts:
    """Of one prefix since it was last written. `is_known`: it was seen before that, too."""

    parent: bytes
    length: int
    requests: int = 0
    computed_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cut_answers: int = 0
    is_known: bool = False

    @property
    def is_repeated(self) -> bool:
        return self.is_known or self.requests > 1

    def add(self, use: PrefixUse) -> None:
        self.requests += 1
        self.computed_tokens += max(0, self.length - use.cached_tokens)
        self.prompt_tokens += use.prompt_tokens
        self.cached_tokens += use.cached_tokens
        self.completion_tokens += use.completion_tokens
        self.cut_answers += use.is_cut

    def clear(self) -> None:
        for name in _COUNTS:
            setattr(self, name, 0)
        self.is_known = True


_Key = tuple[str, str, bytes]
Row = tuple[str | bytes | int, ...]
"""model, principal, hash, parent, length and the counts."""


class PrefixCounts:
    """`note` for each request, `take` for what is to be written. Never blocks."""

    def __init__(self) -> None:
        self._counts: OrderedDict[_Key, _Counts] = OrderedDict()
        self._day = 0
        self._rows_of_day: set[_Key] = set()

    def __len__(self) -> int:
        return len(self._counts)

    def note(self, use: PrefixUse) -> None:
        """Count a request, up to the first length at which it is like none before."""
        parent = b""
        for length, digest in use.prefixes:
            key = (use.model, use.principal, digest)
            counts = self._counts.get(key)
            is_new = counts is None
            if counts is None:
                counts = self._counts[key] = _Counts(parent, length)
            counts.add(use)
            self._counts.move_to_end(key)
            if is_new:
                break
            parent = digest
        while len(self._counts) > MAX_COUNTED:
            self._counts.popitem(last=False)

    def take(self, *, day: int) -> list[Row]:
        """Rows to add to those of `day`; what they hold is not given again."""
        if day != self._day:
            self._day, self._rows_of_day = day, set()
        rows: list[Row] = []
        for key, counts in self._counts.items():
            if counts.requests and counts.is_repeated and self._may_write(key):
                numbers = [getattr(counts, name) for name in _COUNTS]
                rows.append((*key, counts.parent, counts.length, *numbers))
                counts.clear()
        return rows

    def _may_write(self, key: _Key) -> bool:
        if key not in self._rows_of_day and len(self._rows_of_day) >= MAX_ROWS_PER_DAY:
            return False
        self._rows_of_day.add(key)
        return True


def write_prefix_use(database: sqlite3.Connection, rows: Iterable[Row], *, day: int) -> None:
    """Add counts to the rows of a day."""
    sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in _COUNTS)
    database.executemany(
        "INSERT INTO prefix_use"
        f" (day, model, principal, hash, parent, length, {', '.join(_COUNTS)})"
        f" VALUES ({day:d}{', ?' * 11})"
        f" ON CONFLICT (day, model, principal, hash) DO UPDATE SET {sums}",
        rows,
    )


def prune_prefix_use(database: sqlite3.Connection, *, before_day: int) -> None:
    """Forget the days before one."""
    database.execute("DELETE FROM prefix_use WHERE day < ?", (before_day,))


def read_prefix_use(
    database: sqlite3.Connection, *, since_day: int, principal: str | None, model: str | None
) -> list[PrefixSums]:
    """Sums over the days from `since_day` on; None stands for all."""
    sums = ", ".join(f"sum({name}) AS {name}" for name in _COUNTS)
    cursor = database.execute(
        f"SELECT model, principal, hex(hash), hex(max(parent)), max(length), {sums}"
        " FROM prefix_use WHERE day >= ?1 AND (?2 IS NULL OR principal = ?2)"
        " AND (?3 IS NULL OR model = ?3) GROUP BY model, principal, hash",
        (since_day, principal, model),
    )
    names = ("model", "principal", "digest", "parent", "length", *_COUNTS)
    return [_prefix_sums(dict(zip(names, row, strict=True))) for row in cursor]


def _prefix_sums(row: dict[str, str | int]) -> PrefixSums:
    row["digest"], row["parent"] = str(row["digest"]).lower(), str(row["parent"]).lower()
    return PrefixSums(**row)  # type: ignore[arg-type]  # STRICT columns have these types
