"""Checking finds what was planted, pruning keeps what is open and gives space back, copies open."""

import asyncio
import contextlib
import sqlite3
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openclawctl.wire.errors import Unavailable
from openclawd.ledger import Ledger, UsageQuery, upkeep
from openclawd.ledger.history import Kind, peak, read_history
from openclawd.ledger.storage import open_database
from openclawd.ledger.upkeep import check_ledger

OTHER_INDEX = """
    PRAGMA writable_schema = ON;
    UPDATE sqlite_schema SET sql = replace(sql, 'IS NULL', 'IS NOT NULL')
    WHERE name = 'request_rows_open'
"""
HELD_BY_NOBODY = """
    INSERT INTO budget_usage (budget, shape, bucket, slot) VALUES ('b', 's', '', 0);
    INSERT INTO reserved_budgets SELECT request_id, 1 FROM request_rows WHERE seq = 1;
"""
OLD, NEW = 1_700_000_000.0, 1_800_000_000.0


async def fill(ledger, reservation, settlement, *, number=4, **changes):
    """Half of them old, all ended."""
    writes = []
    for i in range(number):
        arrived_at = OLD if i % 2 else NEW
        row = reservation(f"r{i}", arrived_at=arrived_at, session=f"s{i}", **changes)
        writes += [ledger.reserve(row), ledger.settle(settlement(f"r{i}"))]
    await asyncio.gather(*writes)


def test_a_sound_ledger(with_ledger, reservation, settlement):
    async def use(ledger):
        await fill(ledger, reservation, settlement)
        await ledger.reserve(reservation("open"))
        return await ledger.check()

    report = with_ledger(use)
    assert report.findings == []
    assert (report.num_rows, report.seq, report.open_ids) == (5, 9, ["open"])


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("DELETE FROM request_rows WHERE seq = 3", "2 of the numbers after 0 are missing"),
        ("UPDATE ledger_state SET seq = 5", "a row has number 8, but only 5 numbers"),
        ("UPDATE request_rows SET settled_seq = 5 WHERE seq = 3", "stand at two"),
        ("UPDATE request_rows SET model = 999 WHERE seq = 1", "1 rows have a model that is not"),
        ("UPDATE request_rows SET cached = 99 WHERE seq = 1", "r0 has more cached than prompt"),
        ("UPDATE request_rows SET completion = 999", "used more tokens than were reserved"),
        ("UPDATE request_rows SET cost = NULL, currency = 1", "ended without a cost"),
        ("UPDATE request_rows SET settled_seq = 0 WHERE seq = 1", "ended before it was reserved"),
        ("INSERT INTO token_counts VALUES (77, 1, 1)", "row None of token_counts refers to"),
        (HELD_BY_NOBODY, "1 counters of budgets are held by requests that have ended"),
        (OTHER_INDEX, "SQLite says: "),
    ],
)  # fmt: skip
def test_what_is_planted_is_found(path, with_ledger, reservation, settlement, damage, finding):
    with_ledger(lambda ledger: fill(ledger, reservation, settlement))
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(damage)
    findings = check_ledger(path).findings
    assert any(finding in text for text in findings), findings


def test_an_open_row_of_a_request_that_has_ended(with_ledger, query, reservation, settlement):
    async def use(ledger):
        await ledger.reserve(reservation("lost"))
        await ledger.reserve(reservation("open"))
        ledger._open.discard("lost")  # as if its settlement had got lost
        on_its_way = ledger.reserve(reservation("ended"))
        await on_its_way
        ledger.settle(settlement("ended"))
        return await ledger.check()

    assert with_ledger(use).findings == ["request lost has ended, but its row is open"]


def test_pruning_deletes_what_is_old_and_has_ended(with_ledger, query, reservation, settlement):
    async def use(ledger):
        await fill(ledger, reservation, settlement)
        await ledger.reserve(reservation("open", arrived_at=OLD))
        assert await ledger.prune(NEW) == 2
        assert (await ledger.check()).findings == []
        await ledger.settle(settlement("open"))
        assert (await ledger.check()).findings == []
        return (await ledger.usage(UsageQuery()))["total"]["requests"]

    assert with_ledger(use) == 3
    names = {name for (name,) in query("SELECT name FROM names")}
    assert {"s0", "s2", "user:alice"} <= names
    assert not names & {"s1", "s3"}


def test_names_taken_up_again_while_pruning_looks_for_them_stay(path, reservation, settlement):
    async def use():
        async with Ledger.open(path) as ledger:
            await fill(ledger, reservation, settlement)
            numbers, seq = upkeep.unused_names(path)
            assert numbers == []
            await ledger._ask(lambda database: upkeep.prune_rows(database, NEW))
            numbers, seq = upkeep.unused_names(path)
            assert len(numbers) == 2
            await ledger.reserve(reservation("late", session="s1"))
            await ledger._ask(lambda database: upkeep.drop_names(database, numbers, seq))
            return await ledger.check()

    assert asyncio.run(use()).findings == []
    with contextlib.closing(sqlite3.connect(path)) as database:
        names = {name for (name,) in database.execute("SELECT name FROM names")}
    assert "s1" in names
    assert "s3" not in names


def test_pruning_gives_the_space_back_and_lets_others_write(
    path, with_ledger, reservation, settlement, monkeypatch
):
    monkeypatch.setattr(upkeep, "PRUNE_ROWS", 50)
    monkeypatch.setattr(upkeep, "VACUUM_PAGES", 4)

    async def use(ledger):
        await fill(ledger, reservation, settlement, number=1000, app="x" * 200)
        upkeep.checkpoint(path)
        full = path.stat().st_size
        pruning = asyncio.create_task(ledger.prune(NEW + 1))
        steps = 0
        while not pruning.done():
            await ledger._submit(lambda _: None)
            steps += 1
        assert await pruning == 1000
        assert steps > 5
        return full

    full = with_ledger(use)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA freelist_count").fetchone() == (0,)
    assert path.stat().st_size < full / 2  # what is left are the empty tables
    assert check_ledger(path).findings == []


def test_a_step_of_giving_space_back_has_its_size(path, with_ledger, reservation, settlement):
    async def use(ledger):
        await fill(ledger, reservation, settlement, number=400)
        while await ledger._ask(lambda database: upkeep.prune_rows(database, NEW + 1)):
            pass
        before = await ledger._ask(upkeep._free_pages)
        wanted = min(upkeep.VACUUM_PAGES, before)
        return before - await ledger._ask(upkeep.vacuum_some), wanted

    freed, expected = with_ledger(use)
    assert freed == expected > 3


def test_a_copy_is_whole_private_and_never_half_there(path, with_ledger, reservation, settlement):
    async def use(ledger):
        await fill(ledger, reservation, settlement)
        first = await ledger.back_up(now=OLD)
        second = await ledger.back_up(now=OLD)
        await ledger.reserve(reservation("later"))
        return first, second

    first, second = with_ledger(use)
    assert first == path.parent / "backups" / "ledger-20231114T221320Z.sqlite3"
    assert second.name == "ledger-20231114T221320Z-2.sqlite3"
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    assert {file.name for file in first.parent.iterdir()} == {first.name, second.name}
    assert check_ledger(first).num_rows == 4
    with contextlib.closing(open_database(first)) as database:  # it can take the ledger's place
        assert database.execute("SELECT count(*) FROM requests").fetchone() == (4,)


def test_a_copy_that_cannot_be_made_leaves_nothing(path, with_ledger):
    (path.parent / "backups").write_text("in the way")

    async def use(ledger):
        with pytest.raises(Unavailable):
            await ledger.back_up()

    with_ledger(use)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100)), max_size=20))
def test_the_history_is_what_happened(path, reservation, settlement, steps):
    """Each step reserves the request with its number or, if it is open, settles it."""
    path.unlink(missing_ok=True)
    expected, open_now, count = [], {}, 0

    async def use():
        nonlocal count
        async with Ledger.open(path) as ledger:
            for number, tokens in steps:
                if number in open_now:
                    name, reserved = open_now.pop(number)
                    used = min(tokens, reserved)
                    ends = {"prompt": 0, "completion": used}
                    ledger.settle(settlement(name, tokens=ends, cost=used))
                    expected.append((Kind.SETTLED, name, used))
                else:
                    count += 1
                    name = open_now[number] = (f"r{count}", tokens)
                    row = reservation(name[0], reserved_tokens=tokens, reserved_cost=tokens)
                    ledger.reserve(row)
                    expected.append((Kind.RESERVED, name[0], tokens))
            await ledger._submit(lambda database: None)
            return list(read_history(path)), await ledger.check()

    events, report = asyncio.run(use())
    assert report.findings == []
    assert [(event.kind, event.request_id, event.tokens) for event in events] == expected
    assert [event.cost for event in events] == [tokens for _, _, tokens in expected]
    assert [event.seq for event in events] == list(range(1, len(expected) + 1))
    held, settled, most = {}, 0, 0
    for kind, name, tokens in expected:
        settled += tokens if kind is Kind.SETTLED else 0
        held[name] = tokens if kind is Kind.RESERVED else 0
        most = max(most, settled + sum(held.values()))
    assert peak(events) == most


def test_a_request_that_was_never_reserved_held_nothing(with_ledger, path, reservation, settlement):
    async def use(ledger):
        await ledger.record(reservation("r1", reserved_tokens=10**9), settlement("r1", 5, cost=3))

    with_ledger(use)
    assert peak(read_history(path)) == 15
