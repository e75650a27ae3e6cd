"""The most that was in use of each model on each day: the table `model_peaks`. Owns its SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawd.ledger.insights.samples import ModelPeaks

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

CREATE: Final = (
    """CREATE TABLE model_peaks (
        day            INTEGER NOT NULL,
        model          TEXT NOT NULL,
        peak_slots     INTEGER NOT NULL,
        peak_context   INTEGER NOT NULL,
        peak_kv_tokens INTEGER NOT NULL,
        PRIMARY KEY (day, model)
    ) STRICT, WITHOUT ROWID""",
)
"""`day` counts from 1970-01-01, in UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """Of one model, since they were last taken: sequences at once, tokens of the longest one, and
    KV cells that running sequences needed together."""

    model: str
    slots: int
    context: int
    kv_tokens: int


def write_peaks(database: sqlite3.Connection, peaks: Iterable[Peaks], *, day: int) -> None:
    """Raise the peaks of a day."""
    database.executemany(
        "INSERT INTO model_peaks VALUES (?, ?, ?, ?, ?) ON CONFLICT (day, model) DO UPDATE SET"
        " peak_slots = max(peak_slots, excluded.peak_slots),"
        " peak_context = max(peak_context, excluded.peak_context),"
        " peak_kv_tokens = max(peak_kv_tokens, excluded.peak_kv_tokens)",
        [(day, peak.model, peak.slots, peak.context, peak.kv_tokens) for peak in peaks],
    )


def prune_peaks(database: sqlite3.Connection, *, before_day: int) -> None:
    """Forget the days before one."""
    database.execute("DELETE FROM model_peaks WHERE day < ?", (before_day,))


def read_peaks(
    database: sqlite3.Connection, *, since_day: int, model: str | None
) -> list[ModelPeaks]:
    """The highest of the days from `since_day` on; None stands for every model."""
    cursor = database.execute(
        "SELECT model, count(*), max(peak_slots), max(peak_context), max(peak_kv_tokens)"
        " FROM model_peaks WHERE day >= ?1 AND (?2 IS NULL OR model = ?2) GROUP BY model",
        (since_day, model),
    )
    return [
        ModelPeaks(model=name, days=days, slots=slots, context=context, kv_tokens=kv_tokens)
        for name, days, slots, context, kv_tokens in cursor
    ]
