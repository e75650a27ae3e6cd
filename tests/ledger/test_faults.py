"""A full disk, a locked database, SIGKILL: nothing that was acknowledged is lost, nothing hangs."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from openclawctl.wire.errors import Unavailable
from openclawd.ledger import Ledger, UsageQuery, storage, writer
from openclawd.ledger.history import read_history
from openclawd.ledger.upkeep import check_ledger

CHILD_IMPORTS = """
import asyncio, os, pathlib, resource, sys
from openclawctl.wire.errors import Unavailable
from openclawd.ledger import Ledger, Outcome, Reservation, Settlement

def reservation(request_id):
    return Reservation(request_id=request_id, principal="p", model="m", op="chat", arrived_at=0.0,
                       prompt_tokens=1, reserved_tokens=10)

def settlement(request_id):
    return Settlement(request_id=request_id, outcome=Outcome.DONE, tokens={"completion": 5})
"""

SETTLE_FOR_EVER = """
async def serve(ledger, number):
    count = 0
    while True:
        request_id = f"{number}-{count}"
        await ledger.reserve(reservation(request_id))
        await ledger.settle(settlement(request_id))
        os.write(1, f"{request_id}\\n".encode())
        count += 1

async def main():
    ledger = Ledger.open(pathlib.Path(sys.argv[1]))
    await asyncio.gather(*(serve(ledger, number) for number in range(16)))

asyncio.run(main())
"""

FILE_SIZE_LIMIT = """
async def main():
    async with Ledger.open(pathlib.Path(sys.argv[1])) as ledger:
        for i in range(20):
            await ledger.reserve(reservation(f"r{i}"))
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            await ledger.settle(settlement("r0"))
        except Unavailable as problem:
            print(problem.code, problem, problem is not None and ledger.problem is not None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await ledger.settle(settlement("r1"))
        print(ledger.problem)

asyncio.run(main())
"""


def run_child(script, path, **options):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD_IMPORTS + script, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def test_sigkill_loses_no_acknowledged_row(path, query):
    with run_child(SETTLE_FOR_EVER, path) as child:
        acknowledged = [child.stdout.readline() for _ in range(500)]
        child.send_signal(signal.SIGKILL)
        acknowledged += child.stdout.readlines()
    # A line that the kill cut short was not read by anyone as an acknowledgement.
    promised = {line.strip() for line in acknowledged if line.endswith("\n")}

    async def recover():
        async with Ledger.open(path) as ledger:
            return ledger.recovered

    num_recovered = asyncio.run(recover())
    done = {row[0] for row in query("SELECT request_id FROM requests WHERE state = 'done'")}
    assert promised <= done
    assert num_recovered <= 16
    assert query("SELECT count(*) FROM requests WHERE state = 'open'") == [(0,)]
    assert check_ledger(path).findings == []


def test_a_disk_that_refuses_to_grow_a_file(path, query):
    with run_child(FILE_SIZE_LIMIT, path, stderr=subprocess.PIPE) as child:
        output, log = child.communicate(timeout=60)
    assert child.returncode == 0, log
    refused, recovered = output.splitlines()
    assert refused.startswith(f"unavailable the ledger {path} cannot be used: ")
    assert refused.endswith("True")
    assert recovered == "None"
    # What the disk refused was kept and written once it could be.
    done = query("SELECT request_id FROM requests WHERE state = 'done' ORDER BY 1")
    assert done == [("r0",), ("r1",)]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount_point)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield mount_point
    subprocess.run(["umount", str(mount_point)], check=True)


def fill(path):
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


async def reserve_each(ledger, rows):
    for row in rows:
        await ledger.reserve(row)


def test_a_full_disk(small_disk, reservation, settlement):
    path = small_disk / "ledger.sqlite3"
    filler = small_disk / "filler"

    async def use():
        async with Ledger.open(path) as ledger:
            await ledger.reserve(reservation("r1"))
            fill(filler)
            rows = [reservation(f"more{i}") for i in range(1000)]
            with pytest.raises(Unavailable, match="disk") as caught:
                await reserve_each(ledger, rows)
            assert caught.value.hint == "free some space on that file system"
            with pytest.raises(Unavailable):
                await ledger.settle(settlement("r1"))
            assert ledger.problem is not None
            assert await ledger.usage(UsageQuery())  # reading still works
            filler.unlink()
            await ledger.reserve(reservation("r2"))
            assert ledger.problem is None
        async with Ledger.open(path) as ledger:
            return ledger.recovered, await ledger.usage(UsageQuery())

    _, report = asyncio.run(use())
    assert report["total"]["completion_tokens"] >= 5
    assert report["total"]["requests"] - report["total"]["failed"] == 1  # r1, kept and written


def test_a_database_held_by_another_process_does_not_hang(
    path, reservation, settlement, monkeypatch, caplog
):
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.02)

    async def use():
        async with Ledger.open(path) as ledger:
            await ledger.reserve(reservation("r1"))
            holder = sqlite3.connect(path, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match="locked") as caught:
                await ledger.settle(settlement("r1"))
            assert "another process holds it" in caught.value.hint
            ledger.progress("r1", 3)
            with pytest.raises(Unavailable):
                await ledger.reserve(reservation("r2"))
            holder.execute("ROLLBACK")
            holder.close()
            await ledger.reserve(reservation("r3"))
        async with Ledger.open(path) as ledger:
            return ledger.recovered

    assert asyncio.run(use()) == 1  # r3; r1 was kept and settled
    assert caplog.text.count("cannot be used") == 1  # said once, not for every request
    assert "can be written again" in caplog.text


def test_what_ended_while_the_disk_refused_stands_before_what_began_afterwards(
    path, reservation, settlement, monkeypatch
):
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.02)

    async def use():
        async with Ledger.open(path) as ledger:
            await asyncio.gather(*(ledger.reserve(reservation(f"r{i}")) for i in range(3)))
            holder = sqlite3.connect(path, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            ends = [ledger.settle(settlement(f"r{i}")) for i in range(3)]
            assert all(await asyncio.gather(*ends, return_exceptions=True))
            with pytest.raises(Unavailable):
                await ledger.reserve(reservation("refused"))
            holder.execute("ROLLBACK")
            holder.close()
            await ledger.reserve(reservation("later"))

    asyncio.run(use())
    events = [(event.kind.value, event.request_id) for event in read_history(path)]
    assert sorted(events[3:6]) == [("settled", f"r{i}") for i in range(3)]
    assert events[6:] == [("reserved", "later")]
    assert check_ledger(path).findings == []


def test_refused_rows_are_tried_again_by_themselves(
    path, reservation, settlement, query, monkeypatch
):
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.02)
    monkeypatch.setattr(writer, "RETRY_INTERVAL_S", 0.02)

    async def use():
        async with Ledger.open(path) as ledger:
            await ledger.reserve(reservation("r1"))
            holder = sqlite3.connect(path, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable):
                await ledger.settle(settlement("r1"))
            holder.execute("ROLLBACK")
            holder.close()
            while query("SELECT state FROM requests") == [("open",)]:  # noqa: ASYNC110
                await asyncio.sleep(0)  # the writer's clock decides; bounded by the time limit

    asyncio.run(use())


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_ledger_that_is_not_there_any_more_takes_nothing(
    path, reservation, settlement, query, monkeypatch, is_replaced
):
    monkeypatch.setattr(writer, "RETRY_INTERVAL_S", 0.02)
    aside = path.with_name("aside")

    async def use():
        async with Ledger.open(path) as ledger:
            await ledger.reserve(reservation("r1"))
            path.rename(aside)
            if is_replaced:
                path.write_bytes(aside.read_bytes())
            what = "was replaced by another file" if is_replaced else "was deleted"
            with pytest.raises(Unavailable, match=what):
                await ledger.reserve(reservation("r2"))
            with pytest.raises(Unavailable, match=what):
                await ledger.settle(settlement("r1"))
            assert what in str(ledger.problem)
            aside.rename(path)
            while ledger.problem is not None:  # noqa: ASYNC110
                await asyncio.sleep(0)  # the writer's clock decides; bounded by the time limit

    asyncio.run(use())
    assert query("SELECT request_id, state FROM requests") == [("r1", "done")]


def test_rows_that_can_never_be_written_are_counted_in_the_log(
    path, reservation, settlement, monkeypatch, caplog
):
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.02)
    monkeypatch.setattr(writer, "_MAX_KEPT", 2)

    async def use(holder):
        async with Ledger.open(path) as ledger:
            for i in range(4):
                await ledger.reserve(reservation(f"r{i}"))
            await ledger.reserve(reservation("r9"))
            holder.execute("BEGIN IMMEDIATE")
            ledger.progress("r9", 1)
            ends = [ledger.settle(settlement(f"r{i}")) for i in range(4)]
            assert all(await asyncio.gather(*ends, return_exceptions=True))

    storage.open_database(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    asyncio.run(use(holder))
    holder.close()
    assert "are given up" in caplog.text
    assert "2 rows could not be written" in caplog.text


def test_what_was_refused_is_given_up_before_what_was_served(
    path, reservation, settlement, query, monkeypatch, caplog
):
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.02)
    monkeypatch.setattr(writer, "_MAX_KEPT", 4)
    monkeypatch.setattr(writer, "_MAX_KEPT_IF_ROOM", 2)

    async def use(holder):
        async with Ledger.open(path) as ledger:
            await asyncio.gather(*(ledger.reserve(reservation(f"r{i}")) for i in range(3)))
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable):
                await ledger.settle(settlement("r0"))
            for i in range(10):
                with pytest.raises(Unavailable):
                    await ledger.record(reservation(f"no{i}"), settlement(f"no{i}"))
            ends = [ledger.settle(settlement(f"r{i}")) for i in (1, 2)]
            assert all(await asyncio.gather(*ends, return_exceptions=True))
            holder.execute("ROLLBACK")

    storage.open_database(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    asyncio.run(use(holder))
    holder.close()
    done = query("SELECT request_id FROM requests WHERE state = 'done' ORDER BY 1")
    assert done == [("no0",), ("r0",), ("r1",), ("r2",)]
    assert "1 rows of the ledger are given up" in caplog.text


def test_recovery_that_cannot_write_refuses_to_open(path, monkeypatch):
    storage.open_database(path).close()
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.02)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    async def use():
        with pytest.raises(Unavailable, match="locked"):
            Ledger.open(path)

    asyncio.run(use())
    holder.close()


def test_a_ledger_that_cannot_be_recovered_is_closed_again(path, reservation):
    async def use():
        async with Ledger.open(path) as ledger:
            await ledger.reserve(reservation("r1"))
        database = sqlite3.connect(path)
        database.execute(
            "CREATE TRIGGER t BEFORE UPDATE ON request_rows BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        database.close()
        with pytest.raises(sqlite3.IntegrityError):
            Ledger.open(path)

    asyncio.run(use())
