"""Budgets on disk: changed in the transactions of their requests, exact after every end."""

import sqlite3

import pytest

from openclawctl.wire.errors import Internal
from openclawd.admission.budget_rules import Alert, Amount, Charge, Measure
from openclawd.admission.windows import zone_named
from openclawd.ledger import Counts, Outcome
from openclawd.ledger.budgets import orphaned_reservations, prune_budgets, read_counters

DAY = Charge("daily", "day UTC per all", "", 86_400, 172_800)
APP = Charge("web", "month UTC per app", "web", 0, 2_678_400)
LIFE = Charge("ever", "lifetime per all", "", 0, None)
NOW = 90_000.0


@pytest.fixture
def counters(path):
    def counters(now=NOW):
        database = sqlite3.connect(path)
        try:
            return {c.charge: (c.used, c.alerted) for c in read_counters(database, now=now)}
        finally:
            database.close()

    return counters


def test_a_request_adds_to_each_of_its_counters(
    with_ledger, reservation, settlement, counters, query
):
    async def use(ledger):
        await ledger.reserve(reservation("r1", charges=[DAY, LIFE]))
        await ledger.reserve(reservation("r2", charges=[DAY, APP]))
        assert query("SELECT count(*) FROM reserved_budgets") == [(4,)]
        await ledger.settle(settlement("r1", completion=5, cost=7))
        await ledger.settle(settlement("r2", completion=10))

    with_ledger(use)
    assert counters() == {
        DAY: (Amount(35, 7), 0),
        APP: (Amount(20, 0), 0),
        LIFE: (Amount(15, 7), 0),
    }
    assert query("SELECT count(*) FROM reserved_budgets") == [(0,)]


def test_a_request_that_is_settled_twice_counts_once(
    with_ledger, reservation, settlement, counters
):
    async def use(ledger):
        await ledger.reserve(reservation("r1", charges=[DAY]))
        await ledger.settle(settlement("r1"))
        with pytest.raises(Internal):
            await ledger.settle(settlement("r1"))

    with_ledger(use)
    assert counters() == {DAY: (Amount(15), 0)}


@pytest.mark.parametrize("was_reserved", [True, False])
def test_one_that_ended_before_it_was_confirmed(
    with_ledger, reservation, settlement, counters, was_reserved
):
    async def use(ledger):
        row = reservation("r1", charges=[DAY])
        if was_reserved:
            await ledger.reserve(row)
        await ledger.record(row, settlement("r1", outcome=Outcome.CANCELLED))

    with_ledger(use)
    assert counters() == {DAY: (Amount(15), 0)}


def test_what_a_killed_daemon_left_open_counts_as_its_row_says(
    with_ledger, reservation, path, counters, query
):
    async def leave_open(ledger):
        await ledger.reserve(reservation("r1", charges=[DAY, LIFE]))
        await ledger.reserve(reservation("r2"))

    with_ledger(leave_open)  # closing writes what is waiting; it settles nothing

    async def reopen(ledger):
        assert ledger.recovered == 2
        assert [c.used for c in ledger.budget_counters(now=NOW)] == [Amount(110), Amount(110)]

    with_ledger(reopen)
    assert query("SELECT counts FROM requests WHERE request_id = 'r1'") == [
        (Counts.ESTIMATED.value,)
    ]
    assert counters() == {DAY: (Amount(110), 0), LIFE: (Amount(110), 0)}
    with sqlite3.connect(path) as database:
        assert orphaned_reservations(database) == 0
    database.close()


def test_an_alert_is_remembered_even_of_a_counter_without_usage(with_ledger, counters):
    def alert(share, charge):
        return Alert(charge, Measure.TOKENS, share, 9, 10, None, zone_named("UTC"))

    async def use(ledger):
        ledger.note_alerts([alert(800, DAY), alert(950, LIFE)])
        ledger.note_alerts([alert(500, DAY)])

    with_ledger(use)
    assert counters() == {DAY: (Amount(), 800), LIFE: (Amount(), 950)}


def test_what_counts_no_longer_is_neither_read_nor_kept_for_ever(
    with_ledger, reservation, settlement, counters, path
):
    async def use(ledger):
        await ledger.reserve(reservation("r1", charges=[DAY, LIFE]))
        await ledger.settle(settlement("r1"))

    with_ledger(use)
    day_s = 86_400
    assert DAY in counters(now=DAY.ends_at + 2 * day_s - 1)
    assert DAY not in counters(now=DAY.ends_at + 2 * day_s)
    with sqlite3.connect(path) as database:
        assert prune_budgets(database, DAY.ends_at) == 0
        assert prune_budgets(database, DAY.ends_at + 1) == 1
    database.close()
    assert list(counters()) == [LIFE]
