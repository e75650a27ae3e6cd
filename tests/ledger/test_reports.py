"""Reports against sums in plain Python; days that have no 24 hours; rows one by one."""

import contextlib
import os
import time
from collections import defaultdict
from datetime import datetime

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from openclawctl.wire.errors import LimitExceeded
from openclawctl.wire.operations import UsageParams
from openclawd.ledger import Counts, Outcome, Reservation, Settlement, UsageQuery, reports
from openclawd.ledger.calendar import day_of, hour_of
from openclawd.ledger.reports import read_rows, read_usage
from openclawd.ledger.rows import insert_reservation, settle_row
from openclawd.ledger.storage import open_database, transaction

BERLIN_BACK = 1_792_890_000  # 2026-10-25 03:00 CEST, when it becomes 02:00 CET
GROUPS = ("model", "principal", "key", "app", "session", "op", "tier", "day", "hour")


@pytest.fixture(params=["Europe/Berlin", "Asia/Kathmandu", "UTC"])
def zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@st.composite
def requests(draw, number):
    names = st.sampled_from(["a", "b", None])
    at = BERLIN_BACK + draw(st.integers(-100_000, 100_000)) + draw(st.sampled_from([0, 0.25]))
    tokens = {
        "prompt": draw(st.integers(0, 50)),
        "cached": draw(st.integers(0, 50)),
        "completion": draw(st.integers(0, 50)),
    }
    row = Reservation(
        request_id=f"r{number}", principal=draw(st.sampled_from(["user:a", "user:b"])),
        model=draw(st.sampled_from(["m1", "m2"])), op="chat", arrived_at=at, prompt_tokens=1,
        reserved_tokens=100, app=draw(names), session=draw(names), key=draw(names),
        tier=draw(names), currency=draw(st.sampled_from(["EUR", "USD", None])),
    )  # fmt: skip
    end = Settlement(
        request_id=f"r{number}", outcome=draw(st.sampled_from(Outcome)), tokens=tokens,
        cost=draw(st.integers(0, 10**12)), total_s=draw(st.integers(0, 10**7)) / 10**6,
        ttft_s=draw(st.sampled_from([None, 0.25, 0.5])), counts=draw(st.sampled_from(Counts)),
    )  # fmt: skip
    return row, end, draw(st.booleans())


@st.composite
def ledgers(draw):
    return [draw(requests(number)) for number in range(draw(st.integers(0, 12)))]


moments = st.none() | st.integers(BERLIN_BACK - 90_000, BERLIN_BACK + 90_000)
queries = st.builds(
    UsageQuery,
    by=st.lists(st.sampled_from(GROUPS), min_size=1, max_size=4, unique=True),
    since=moments,
    until=moments,
    principal=st.none() | st.sampled_from(["user:a", "user:nobody"]),
    currency=st.sampled_from(["EUR", None]),
)


def fill(path, rows):
    path.unlink(missing_ok=True)
    with contextlib.closing(open_database(path)) as database, transaction(database):
        for row, _, _ in rows:
            insert_reservation(database, "node", row)
        for _, end, has_ended in rows:
            if has_ended:
                settle_row(database, end)


def group_of(row, by):
    """The value that a request has in a group, by the standard library's own calendar."""
    local = datetime.fromtimestamp(row.arrived_at).astimezone()
    if by == "day":
        return local.date().isoformat()
    if by == "hour":
        return local.replace(minute=0, second=0, microsecond=0).isoformat(timespec="minutes")
    return getattr(row, by) or ""


def model(rows, query):
    """What the report should say, in plain Python."""
    sums = defaultdict(lambda: defaultdict(int))
    for row, end, has_ended in rows:
        is_in = (query.since is None or row.arrived_at >= query.since) and (
            query.until is None or row.arrived_at < query.until
        )
        if not has_ended or not is_in or query.principal not in (None, row.principal):
            continue
        group = sums[tuple(group_of(row, by) for by in query.by)]
        group["requests"] += 1
        for kind, number in end.tokens.items():
            group[f"{kind}_tokens"] += number
        group["cost"] += end.cost if row.currency == query.currency else 0
        group["cancelled"] += end.outcome is Outcome.CANCELLED
        group["failed"] += end.outcome is Outcome.FAILED
        group["total_us"] += round(end.total_s * 10**6)
        group["ttft_ms"] += int((end.ttft_s or 0) * 1000)
        group["num_ttft"] += end.ttft_s is not None
    return sums


def flat(row):
    mean_ttft_s = row["ttft_ms"] / 1000 / row["num_ttft"] if row["num_ttft"] else None
    names = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost")
    numbers = {name: row[name] for name in (*names, "cancelled", "failed")}
    return {**numbers, "total_s": row["total_us"] / 10**6, "mean_ttft_s": mean_ttft_s}


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=ledgers(), query=queries)
@example(rows=[], query=UsageQuery(by=["day", "hour"]))
def test_sums_are_those_of_a_plain_model(path, zone, rows, query):
    fill(path, rows)
    report = read_usage(path, query)
    found = {}
    for row in report["rows"]:
        groups = row.pop("groups")
        keys = tuple(groups[by] for by in query.by)
        assert row.pop("key") == " ".join(keys)
        found[keys] = row
    expected = model(rows, query)
    assert found == {keys: flat(sums) for keys, sums in expected.items()}
    for name in ("requests", "cost", "completion_tokens", "failed"):
        assert report["total"][name] == sum(row[name] for row in expected.values())


@given(at=st.integers(1_700_000_000, 1_900_000_000))
def test_spans_hold_their_moment_and_join(at):
    for span_of, longest in ((day_of, 25), (hour_of, 1)):
        span = span_of(at)
        assert span.start <= at < span.end <= span.start + longest * 3600
        assert span_of(span.start) == span
        assert span_of(span.end).start == span.end
        assert span_of(span.end - 1) == span


def test_days_when_clocks_change(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert day_of(BERLIN_BACK).label == "2026-10-25"
        assert day_of(BERLIN_BACK).end - day_of(BERLIN_BACK).start == 25 * 3600
        assert hour_of(BERLIN_BACK - 1).label == "2026-10-25T02:00+02:00"
        assert hour_of(BERLIN_BACK).label == "2026-10-25T02:00+01:00"
        forward = day_of(datetime(2026, 3, 29, 12).timestamp())  # noqa: DTZ001
        assert forward.end - forward.start == 23 * 3600
    finally:
        monkeypatch.undo()
        time.tzset()
    assert os.environ.get("TZ") != "Europe/Berlin"


def test_sorting_and_the_limit(path, reservation, settlement):
    rows = [
        (reservation(name, model=name), settlement(name, completion, cost=cost), True)
        for name, completion, cost in (("a", 5, 1), ("b", 9, 7), ("c", 5, 3))
    ]
    fill(path, [(row, end, ended) for row, end, ended in rows])

    def keys(**changes):
        return [row["key"] for row in read_usage(path, UsageQuery(**changes))["rows"]]

    assert keys() == ["b", "a", "c"]
    assert keys(sort="model") == ["a", "b", "c"]
    assert keys(sort="total_s") == ["a", "b", "c"]
    report = read_usage(path, UsageQuery(limit=1))
    assert [row["key"] for row in report["rows"]] == ["b"]
    assert report["left_out"] == 2
    assert report["total"]["completion_tokens"] == 19  # of all, shown or not


def test_more_groups_than_fit_into_memory(path, reservation, settlement, monkeypatch):
    monkeypatch.setattr(reports, "MAX_GROUPS", 2)
    fill(path, [(reservation(f"r{i}", session=f"s{i}"), settlement(f"r{i}"), True) for i in "abc"])
    with pytest.raises(LimitExceeded, match="usage by session has more than 2 groups"):
        read_usage(path, UsageQuery(by=["session"]))
    assert read_usage(path, UsageQuery(by=["model"]))["total"]["requests"] == 3


def test_a_query_from_parameters():
    params = UsageParams(["day"], since_s=60, until_at=5.0, sort="cost", limit=3)
    query = UsageQuery.of(params, now=100, principal="user:a", currency="EUR")
    assert (query.since, query.until, query.limit) == (40, 5.0, 3)
    assert (query.principal, query.currency, query.sort) == ("user:a", "EUR", "cost")


def test_rows_one_by_one_in_the_order_of_their_ends(path, reservation, settlement):
    rows = [(reservation(f"r{i}", app="crm"), settlement(f"r{i}"), i != 1) for i in range(4)]
    rows[3] = (reservation("r3", principal="user:bob"), settlement("r3"), True)
    fill(path, rows)

    def page(**changes):
        found = read_rows(path, **{"after_seq": 0, "limit": 2, **changes})
        return [row["request_id"] for row in found["rows"]], found["next_seq"], found["has_more"]

    assert page() == (["r0", "r2"], 6, True)
    assert page(after_seq=6) == (["r3"], 7, False)
    assert page(after_seq=7) == ([], 7, False)
    assert page(after_seq=99) == ([], 99, False)
    assert page(principal="user:bob") == (["r3"], 7, False)
    assert page(principal="user:nobody") == ([], 7, False)
    (row, _) = read_rows(path, after_seq=0, limit=2)["rows"]
    assert (row["app"], row["state"], row["completion_tokens"]) == ("crm", "done", 5)
