"""Prefixes and peaks on disk: what is counted, what is bounded, and what `insights` reads of it."""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING, Any

import pytest

from openclawctl.wire.errors import Unavailable
from openclawd.ledger import Ledger, Outcome, Reservation, Settlement
from openclawd.ledger.insights import ModelSize
from openclawd.ledger.insights.reader import local_hour, read_insights
from openclawd.ledger.model_peaks import Peaks, read_peaks
from openclawd.ledger.prefix_key import KEY_BYTES, read_or_create_key
from openclawd.ledger.prefix_use import (
    KEEP_DAYS,
    MAX_COUNTED,
    MAX_ROWS_PER_DAY,
    PrefixCounts,
    PrefixUse,
    read_prefix_use,
)
from openclawd.ledger.storage import open_database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

DAY = 20_000
NOW = DAY * 86_400 + 43_200.0


def use(*prefixes: tuple[int, bytes], cached: int = 0, principal: str = "user:a") -> PrefixUse:
    return PrefixUse(
        model="m",
        principal=principal,
        prefixes=prefixes,
        prompt_tokens=300,
        cached_tokens=cached,
        completion_tokens=20,
        is_cut=True,
    )


@pytest.fixture
def database(path: Path) -> Iterator[sqlite3.Connection]:
    connection = open_database(path)
    yield connection
    connection.close()


def written(path: Path, *batches: tuple[Any, Any, int]) -> None:
    async def run() -> None:
        async with Ledger.open(path, node="here") as ledger:
            for prefixes, peaks, day in batches:
                await ledger.note_statistics(prefixes, peaks, day=day)

    asyncio.run(run())


LONG = ((64, b"a" * 16), (256, b"b" * 16))


def test_a_prefix_is_counted_from_its_second_request_on() -> None:
    counts = PrefixCounts()
    counts.note(use(*LONG))
    assert counts.take(day=DAY) == []
    counts.note(use(*LONG, cached=100))
    (row,) = counts.take(day=DAY)
    # Of the first 64 tokens the first request computed all, the second one none.
    assert row == ("m", "user:a", b"a" * 16, b"", 64, 2, 64, 600, 100, 40, 2)
    assert counts.take(day=DAY) == []
    counts.note(use(*LONG, cached=100))
    shorter, longer = counts.take(day=DAY)
    assert shorter[:6] == ("m", "user:a", b"a" * 16, b"", 64, 1)
    assert longer[:7] == ("m", "user:a", b"b" * 16, b"a" * 16, 256, 2, 2 * 156)


def test_prompts_unlike_all_others_take_one_place_each_and_no_row() -> None:
    counts = PrefixCounts()
    for number in range(3 * MAX_COUNTED):
        counts.note(use((64, b"%016d" % number), (256, b"%015dx" % number)))
    assert len(counts) == MAX_COUNTED
    assert counts.take(day=DAY) == []


def test_a_day_has_a_bounded_number_of_rows() -> None:
    counts = PrefixCounts()

    def note_twice(start: int) -> None:
        for number in range(start, start + MAX_ROWS_PER_DAY):
            for _ in range(2):
                counts.note(use((64, b"%016d" % number)))

    note_twice(0)
    assert len(counts.take(day=DAY)) == MAX_ROWS_PER_DAY
    note_twice(MAX_ROWS_PER_DAY)
    assert counts.take(day=DAY) == []
    assert len(counts.take(day=DAY + 1)) == MAX_ROWS_PER_DAY


def test_counts_of_a_day_add_up_on_disk(path: Path, database: sqlite3.Connection) -> None:
    counts = PrefixCounts()
    batches = []
    for cached in (0, 0, 64):
        counts.note(use(LONG[0], cached=cached))
        batches.append((counts.take(day=DAY), [], DAY))
    written(path, *batches)
    (sums,) = read_prefix_use(database, since_day=DAY, principal=None, model=None)
    assert (sums.requests, sums.computed_tokens, sums.cut_answers) == (3, 128, 3)
    assert (sums.digest, sums.parent, sums.length) == (b"a".hex() * 16, "", 64)
    assert not read_prefix_use(database, since_day=DAY, principal="user:b", model=None)
    assert not read_prefix_use(database, since_day=DAY, principal=None, model="n")
    assert not read_prefix_use(database, since_day=DAY + 1, principal=None, model=None)


def test_peaks_only_rise_and_old_days_go(path: Path, database: sqlite3.Connection) -> None:
    high, low = (
        Peaks(model="m", slots=slots, context=context, kv_tokens=kv_tokens)
        for slots, context, kv_tokens in ((3, 100, 300), (1, 200, 50))
    )
    written(path, ([], [high], DAY), ([], [low], DAY), ([], [low], DAY + 1))
    (peaks,) = read_peaks(database, since_day=DAY, model=None)
    assert (peaks.days, peaks.slots, peaks.context, peaks.kv_tokens) == (2, 3, 200, 300)
    written(path, ([], [low], DAY + 1 + KEEP_DAYS))
    (peaks,) = read_peaks(database, since_day=0, model=None)
    assert (peaks.days, peaks.slots) == (2, 1)


def ended(number: int, at: float, **tokens: int) -> tuple[Reservation, Settlement]:
    row = Reservation(
        request_id=f"r{number}",
        principal="user:a",
        model="m",
        op="chat",
        arrived_at=at,
        prompt_tokens=tokens["prompt"],
        reserved_tokens=5000,
    )
    end = Settlement(
        request_id=row.request_id, outcome=Outcome.DONE, tokens=tokens, finish_reason="length"
    )
    return row, end


def test_a_report_from_the_file(path: Path) -> None:
    """Requests, prefixes and peaks, as the daemon writes them; half an hour apart over 10 days."""

    async def run() -> None:
        async with Ledger.open(path, node="here") as ledger:
            counts = PrefixCounts()
            for number in range(400):
                at = NOW - number * 1800
                await_all.append(
                    ledger.record(*ended(number, at, prompt=300, cached=0, completion=20))
                )
                counts.note(use(*LONG))
            await asyncio.gather(*await_all)
            peak = Peaks(model="m", slots=1, context=320, kv_tokens=320)
            await ledger.note_statistics(counts.take(day=DAY), [peak], day=DAY)

    await_all: list[asyncio.Future[None]] = []
    asyncio.run(run())
    size = ModelSize(model="m", parallel=8, context=4096, kv_tokens=32_768)

    def report(**changes: Any) -> Any:
        wanted = {"since_s": 30 * 86_400.0, "principal": None, "model": None, "now": NOW}
        return read_insights(path, [size], **{**wanted, **changes})

    found = {one.kind: one for one in report().findings}
    assert set(found) == {"repeated-prefix", "over-configured"}  # 8,000 tokens cut off are few
    assert found["repeated-prefix"].numbers["times_computed"] == 399
    assert found["over-configured"].numbers["suggested"]["context"] == 512
    (trend,) = report().trends
    assert trend.tokens == 400 * 320
    assert report(model="n").findings == report(principal="user:b").findings == []
    kinds = [one.kind for one in report(principal="user:a").findings]
    assert kinds == ["repeated-prefix"]  # how models are configured is not a user's business
    (trend,) = report(since_s=86_400.0).trends
    assert trend.tokens < 100 * 320


def test_hours_are_those_of_a_clock_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert local_hour(0) == 1
        summer = 1_718_000_000 // 3600
        assert local_hour(summer) == summer + 2
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "prefix.key"
    key = read_or_create_key(path)
    assert (len(key), read_or_create_key(path)) == (KEY_BYTES, key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"short")
    other = read_or_create_key(path)
    assert len(other) == KEY_BYTES
    assert other != key


def test_a_key_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"x" * KEY_BYTES)
    (tmp_path / "prefix.key").symlink_to(tmp_path / "other")
    with pytest.raises(Unavailable):
        read_or_create_key(tmp_path / "prefix.key")
