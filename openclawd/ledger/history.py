"""What happened, in the order in which it became durable: every reservation and settlement.

So that it can be checked from the ledger alone that what was settled and what was reserved never
exceeded a budget together. What was pruned is no longer in it.
"""

from __future__ import annotations

import contextlib
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawd.ledger.storage import open_reader, request_id_of, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class Kind(enum.Enum):
    """What an event says: so much is held from now on, or was used in place of what was held."""

    RESERVED = "reserved"
    SETTLED = "settled"


@dataclass(frozen=True, slots=True)
class Event:
    """One step of a request. `tokens` and `cost` (micro-units) are what was reserved, or what was
    used; `reserved_at` is when it was reserved, by the wall clock, for both."""

    seq: int
    kind: Kind
    request_id: str
    principal: str
    model: str
    app: str
    key: str
    tier: str
    reserved_at: float
    tokens: int
    cost: int


def read_history(path: Path, *, after_seq: int = 0) -> Iterator[Event]:
    """Every event with a number over `after_seq`, in order. Blocks on the disk. Raises
    `Unavailable`."""
    with contextlib.closing(open_reader(path)) as database, storage_errors(path):
        for seq, kind, key, *rest in database.execute(_EVENTS, (after_seq,)):
            yield Event(seq, Kind(kind), request_id_of(key), *rest)


def peak(events: Iterable[Event]) -> int:
    """The most tokens that were settled and held together after any event of a whole history."""
    settled, held, most = 0, dict[str, int](), 0
    in_flight = 0
    for event in events:
        if event.kind is Kind.RESERVED:
            held[event.request_id] = event.tokens
            in_flight += event.tokens
        else:
            in_flight -= held.pop(event.request_id, 0)
            settled += event.tokens
        most = max(most, settled + in_flight)
    return most


_NAMES: Final = ", ".join(
    f"coalesce((SELECT name FROM names WHERE id = {column}), '')"
    for column in ("principal", "model", "app", "key", "tier")
)
_EVENTS: Final = f"""
    SELECT seq, 'reserved', request_id, {_NAMES}, reserved_ms / 1000.0,
        reserved_tokens, reserved_cost
    FROM request_rows WHERE seq > ?1
    UNION ALL
    SELECT settled_seq, 'settled', request_id, {_NAMES}, reserved_ms / 1000.0,
        prompt + coalesce(completion, 0), coalesce(cost, 0)
    FROM request_rows WHERE settled_seq > ?1
    ORDER BY 1
"""
