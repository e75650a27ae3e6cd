"""A database of the first schema, with rows of every kind, brought to the compact one."""

import contextlib
import sqlite3
import uuid

import pytest

from openclawd.ledger import UsageQuery
from openclawd.ledger.reports import read_usage
from openclawd.ledger.rows import settle_interrupted
from openclawd.ledger.storage import MIGRATIONS, open_database
from openclawd.ledger.upkeep import check_ledger

COLUMNS = (
    "request_id, node, principal, app, session, model, op, state, finish_reason, error_code,"
    " arrived_at, reserved_tokens, load_s, queue_s, ttft_s, total_s, counts, provider, cache"
)
UUID = "01a20922-d6d6-7088-a77f-7a73e70e37ba"
ROWS = [
    (UUID, "n", "user:alice", "crm", "s", "smollm2", "chat", "done", "stop", None,
     1_700_000_000.25, 110, 0.3, 0.1, 0.2, 0.4, "exact", "local", "none"),
    ("odd", "n", "user:bob", None, None, "big", "embed", "failed", None, "worker-died",
     1_600_000_000.0, 50, 0.0, 0.0, None, 1.5, "estimated", "cloud", "semantic"),
    ("open", "n", "user:bob", "", None, "big", "chat", "open", None, None,
     1_500_000_000.0, 300, 0.0, 0.0, None, 0.0, "exact", "local", "none"),
    ("gone", "n", "user:bob", None, None, "big", "chat", "cancelled", "cancelled", None,
     1_650_000_000.0, 70, 0.0, 0.0, 0.0, 0.0, "exact", "local", "none"),
]  # fmt: skip
TOKENS = [
    (UUID, "prompt", 10), (UUID, "cached", 4), (UUID, "completion", 7),
    ("odd", "prompt", 50), ("odd", "image", 9),
    ("open", "prompt", 20), ("open", "completion", 3),
    ("gone", "prompt", 0), ("gone", "completion", 0),
]  # fmt: skip


@pytest.fixture
def migrated(path):
    """A connection to the migrated database; it is closed afterwards."""
    old = open_database(path, MIGRATIONS[:1])
    marks = ", ".join("?" * len(ROWS[0]))
    old.executemany(f"INSERT INTO requests ({COLUMNS}) VALUES ({marks})", ROWS)
    old.executemany("INSERT INTO tokens VALUES (?, ?, ?)", TOKENS)
    old.close()
    with contextlib.closing(open_database(path)) as database:
        yield database


def test_every_value_is_kept(migrated):
    rows = migrated.execute(f"SELECT {COLUMNS} FROM requests ORDER BY arrived_at").fetchall()
    expected = sorted(ROWS, key=lambda row: row[10])
    assert rows == [tuple(None if value == "" else value for value in row) for row in expected]
    tokens = migrated.execute("SELECT request_id, kind, number FROM tokens").fetchall()
    assert sorted(tokens) == sorted(TOKENS)
    (stored,) = migrated.execute(
        "SELECT request_id FROM request_rows WHERE typeof(request_id) = 'blob'"
    ).fetchone()
    assert stored == uuid.UUID(UUID).bytes


def test_ended_requests_are_numbered_in_their_order_and_open_ones_last(migrated):
    assert migrated.execute(
        "SELECT request_id, seq, settled_seq FROM requests ORDER BY seq"
    ).fetchall() == [("odd", 1, 2), ("gone", 3, 4), (UUID, 5, 6), ("open", 7, None)]
    assert migrated.execute("SELECT seq FROM ledger_state").fetchone() == (7,)


def test_it_works_on_as_if_it_had_always_been_so(migrated, path):
    assert settle_interrupted(migrated) == 1
    assert check_ledger(path).findings == []
    assert read_usage(path, UsageQuery())["total"]["prompt_tokens"] == 80
    assert migrated.execute("PRAGMA foreign_key_check").fetchall() == []


def test_the_old_tables_are_gone_and_the_copy_has_them(migrated, path):
    tables = {name for (name,) in migrated.execute("SELECT name FROM sqlite_schema")}
    assert not {name for name in tables if "v1" in name}
    with contextlib.closing(sqlite3.connect(f"{path}.v1.bak")) as copy:
        assert copy.execute("SELECT count(*) FROM requests").fetchone() == (len(ROWS),)
