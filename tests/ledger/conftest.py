"""Rows to write, and a way to run a coroutine with an open ledger."""

import asyncio
import sqlite3

import pytest

from openclawd.ledger import Ledger, Outcome, Reservation, Settlement

ARRIVED_AT = 1_700_000_000.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite3"


@pytest.fixture
def reservation():
    def reservation(request_id, **changes):
        values = {
            "principal": "user:alice",
            "model": "smollm2",
            "op": "chat",
            "arrived_at": ARRIVED_AT,
            "prompt_tokens": 10,
            "reserved_tokens": 110,
        }
        return Reservation(request_id=request_id, **{**values, **changes})

    return reservation


@pytest.fixture
def settlement():
    def settlement(request_id, completion=5, **changes):
        values = {
            "outcome": Outcome.DONE,
            "tokens": {"prompt": 10, "cached": 4, "completion": completion},
            "finish_reason": "stop",
            "total_s": 0.5,
        }
        return Settlement(request_id=request_id, **{**values, **changes})

    return settlement


@pytest.fixture
def with_ledger(path):
    """Run `use(ledger)` on a loop; the ledger is closed afterwards."""

    def with_ledger(use):
        async def run():
            async with Ledger.open(path, node="here") as ledger:
                return await use(ledger)

        return asyncio.run(run())

    return with_ledger


@pytest.fixture
def query(path):
    """All rows of a query, through a connection of its own."""

    def query(sql, *arguments):
        database = sqlite3.connect(path)
        try:
            return database.execute(sql, arguments).fetchall()
        finally:
            database.close()

    return query
