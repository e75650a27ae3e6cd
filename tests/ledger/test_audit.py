"""The audit as the daemon uses it: in the ledger's commits, read with filters, pruned in pieces."""

import asyncio
import sqlite3

import pytest
from ledger.audit_story import KEY, START, entry, forger, verify

from openclawctl.wire.errors import Internal
from openclawd.ledger import Ledger, audit_chain, writer
from openclawd.ledger.audit import AuditQuery


@pytest.fixture
def with_audit(path):
    """Run `use(ledger)` on a loop, the ledger having its audit's key."""

    def with_audit(use):
        async def run():
            async with Ledger.open(path, node="here", audit_key=KEY) as ledger:
                return await use(ledger)

        return asyncio.run(run())

    return with_audit


async def written(ledger):
    """Until everything that was noted is on disk: what is waited for comes after it."""
    await ledger.audit.prune(0.0)


def asked(**wanted):
    return AuditQuery(**{"limit": 100, **wanted})


def test_a_row_is_on_disk_before_the_settlement_that_came_after_it(
    with_audit, path, reservation, settlement, query
):
    async def use(ledger):
        await ledger.reserve(reservation("r1"))
        ledger.audit.note(entry(1))
        await ledger.settle(settlement("r1"))
        return query("SELECT seq, action, tokens FROM audit"), ledger.audit.head

    rows, head = with_audit(use)
    assert rows == [(1, "chat", 1)]
    assert verify(path, head).is_valid


def test_a_settlement_and_its_row_are_written_together_or_not_at_all(
    with_audit, path, reservation, settlement, query
):
    async def use(ledger):
        await ledger.reserve(reservation("r1"))
        await ledger.settle(settlement("r1"), entry(1))
        with pytest.raises(Internal):  # it is settled already
            await ledger.settle(settlement("r1"), entry(2))
        await ledger.record(reservation("r2"), settlement("r2"), entry(3))
        return query("SELECT seq, tokens FROM audit"), ledger.audit.head

    rows, head = with_audit(use)
    assert rows == [(1, 1), (2, 3)]
    assert verify(path, head).is_valid


def test_rows_are_in_the_order_they_were_noted_in_whatever_their_times(with_audit):
    async def use(ledger):
        for number in (3, 1, 2):
            ledger.audit.note(entry(number))
        await written(ledger)
        return await ledger.audit.read(asked(), now=START)

    rows = with_audit(use)
    assert [(row["seq"], row["at"] - START) for row in rows] == [(1, 3), (2, 1), (3, 2)]


def test_what_a_row_says(with_audit):
    async def use(ledger):
        ledger.audit.note(entry(7))
        await written(ledger)
        return await ledger.audit.read(asked(), now=START)

    assert with_audit(use) == [
        {
            "seq": 1,
            "at": START + 7,
            "principal": "user:alice",
            "uid": 1000,
            "pid": 4711,
            "app": "crm",
            "action": "chat",
            "model": "smollm2",
            "code": "stop",
            "tokens": 7,
            "request_id": "00000000-0000-0000-0000-000000000007",
            "detail": {"n": 7},
        }
    ]


def test_filters(with_audit):
    async def use(ledger):
        for number in range(1, 11):
            bob = {"principal": "user:bob"} if number % 2 else {}
            load = {"action": "load"} if number > 7 else {}
            ledger.audit.note(entry(number, **bob, **load))
        await written(ledger)

        async def seqs(**wanted):
            rows = await ledger.audit.read(asked(**wanted), now=START + 10)
            return [row["seq"] for row in rows]

        return [
            await seqs(limit=3),
            await seqs(since_s=2),
            await seqs(principal="user:bob", limit=2),
            await seqs(action="load"),
            await seqs(after_seq=4, limit=2),
            await seqs(after_seq=10),
            await seqs(principal="nobody"),
        ]

    assert with_audit(use) == [[8, 9, 10], [8, 9, 10], [7, 9], [8, 9, 10], [5, 6], [], []]


def test_a_row_that_somebody_has_changed_can_still_be_read(with_audit, path):
    async def use(ledger):
        ledger.audit.note(entry(1))
        await written(ledger)
        with forger(path) as database:
            database.execute(
                "UPDATE audit SET detail = '{', request_id = x'01', app = CAST(x'ff' AS TEXT)"
            )
        return await ledger.audit.read(asked(), now=START), await ledger.audit.verify()

    (row,), verdict = with_audit(use)
    assert row["detail"] == {"unreadable": "{"}
    assert (row["request_id"], row["app"]) == ("01", "\ufffd")
    assert verdict.bad_seq == 1


def test_rows_that_the_disk_refuses_are_kept_and_the_chain_has_no_gap(
    with_audit, path, monkeypatch
):
    monkeypatch.setattr(writer, "RETRY_INTERVAL_S", 0.0)

    async def use(ledger):
        ledger.audit.note(entry(1))
        await written(ledger)
        head = ledger.audit.head
        with forger(path) as database:
            database.execute("ALTER TABLE audit RENAME TO hidden")
            ledger.audit.note(entry(2))
            with pytest.raises(Exception, match="no such table"):
                await written(ledger)
            assert ledger.audit.head == head
            database.execute("ALTER TABLE hidden RENAME TO audit")
        ledger.audit.note(entry(3))
        await written(ledger)

    with_audit(use)
    assert verify(path).num_rows == 3


def test_the_running_daemon_remembers_what_was_cut_and_sealed_anew(with_audit, path):
    """Somebody who kept an old copy of rows and head, while the daemon runs."""

    async def use(ledger):
        ledger.audit.note(entry(1))
        await written(ledger)
        old = ledger.audit.head
        ledger.audit.note(entry(2))
        await written(ledger)
        with forger(path) as database:
            database.execute("DELETE FROM audit WHERE seq = 2")
            database.execute(
                "UPDATE audit_head SET seq = 1, mac = ?, seal = ?", (old.mac, KEY.seal(old))
            )
        assert verify(path).is_valid
        return await ledger.audit.verify()

    verdict = with_audit(use)
    assert verdict.bad_seq == 2
    assert "the running daemon has row 2" in verdict.problem


def test_prune_in_pieces(with_audit, path, monkeypatch):
    monkeypatch.setattr(audit_chain, "PRUNE_ROWS", 4)

    async def use(ledger):
        for number in range(1, 11):
            ledger.audit.note(entry(number))
        await written(ledger)
        return [await ledger.audit.prune(START + 10), await ledger.audit.prune(START + 10)]

    assert with_audit(use) == [9, 0]
    assert verify(path).num_rows == 4  # the last row, and a checkpoint for each piece


def test_a_prune_with_a_time_to_come_ends(with_audit, path):
    async def use(ledger):
        for number in range(1, 4):
            ledger.audit.note(entry(number))
        await written(ledger)
        return await ledger.audit.prune(1e11)

    assert with_audit(use) == 3
    assert verify(path).num_rows == 1


def test_a_ledger_without_a_key_has_no_audit(with_ledger):
    async def use(ledger):
        with pytest.raises(AssertionError, match="without the audit's key"):
            _ = ledger.audit

    with_ledger(use)


def test_a_row_that_is_wrong_in_itself_fails_alone(with_audit, path, caplog):
    async def use(ledger):
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")  # so that all three share a commit
        ledger.audit.note(entry(1))
        ledger.audit.note(entry(2, detail={"x": "x" * 5000}))
        ledger.audit.note(entry(3))
        blocker.execute("ROLLBACK")
        blocker.close()
        await written(ledger)

    with_audit(use)
    assert verify(path).num_rows == 2
    assert "a ledger row was refused" in caplog.text
