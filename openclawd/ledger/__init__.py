"""The ledger: one row per inference request, on disk before the client hears of its end.

Knows requests as names and numbers. Must not know the daemon, connections, or any text of prompts
and completions.

Invariants: whatever a future reported as written survives a crash of the process and of the machine
(WAL with `synchronous=FULL`); a request has at most one row and a row ends once; no fsync runs on
the event loop; a full or broken disk is a `Problem` for the requests concerned, never the end of
the writer.
"""

from openclawd.ledger.ledger import Ledger
from openclawd.ledger.reports import UsageQuery
from openclawd.ledger.rows import Counts, Outcome, Reservation, Settlement

__all__ = [
    "Counts",
    "Ledger",
    "Outcome",
    "Reservation",
    "Settlement",
    "UsageQuery",
]
