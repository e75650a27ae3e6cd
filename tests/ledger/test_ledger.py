"""What the daemon relies on: durable before a future ends, one row a request, sums that add up."""

import asyncio
import sqlite3
import threading

import pytest

from openclawctl.wire.errors import Internal
from openclawd.ledger import Counts, Ledger, Outcome, UsageQuery
from openclawd.ledger.rows import MOST_TOKENS_PER_INTERVAL
from openclawd.ledger.writer import Writer


def test_a_settled_request_is_one_row_with_its_counts(with_ledger, query, reservation, settlement):
    async def use(ledger):
        await ledger.reserve(reservation("r1", app="crm", session="s"))
        await ledger.settle(settlement("r1", 7, queue_s=0.1, ttft_s=0.2, load_s=0.3, total_s=0.4))

    with_ledger(use)
    assert query(
        "SELECT request_id, node, principal, app, session, model, op, state, finish_reason,"
        " error_code, arrived_at, reserved_tokens, load_s, queue_s, ttft_s, total_s, counts,"
        " provider, cache FROM requests"
    ) == [
        ("r1", "here", "user:alice", "crm", "s", "smollm2", "chat", "done", "stop", None,
         1_700_000_000.0, 110, 0.3, 0.1, 0.2, 0.4, "exact", "local", "none")
    ]  # fmt: skip
    assert query("SELECT kind, number FROM tokens ORDER BY kind") == [
        ("cached", 4), ("completion", 7), ("prompt", 10)
    ]  # fmt: skip


def test_a_future_ends_only_when_the_row_is_on_disk(with_ledger, query, reservation, settlement):
    async def use(ledger):
        await ledger.reserve(reservation("r1"))
        assert query("SELECT state FROM requests") == [("open",)]
        await ledger.settle(settlement("r1"))
        assert query("SELECT state FROM requests") == [("done",)]

    with_ledger(use)


def test_a_request_that_ended_before_its_reservation_is_recorded_in_one_go(
    with_ledger, query, reservation, settlement
):
    async def use(ledger):
        refused = settlement(
            "r1", outcome=Outcome.FAILED, error_code="prompt-too-long", tokens={"completion": 0}
        )
        await ledger.record(reservation("r1"), refused)

    with_ledger(use)
    assert query("SELECT state, error_code FROM requests") == [("failed", "prompt-too-long")]


def test_a_request_cancelled_while_it_is_reserved_is_closed(
    with_ledger, query, reservation, settlement
):
    async def use(ledger):
        ledger.reserve(reservation("r1")).cancel()
        await ledger.record(reservation("r1"), settlement("r1", outcome=Outcome.CANCELLED))

    with_ledger(use)
    assert query("SELECT state FROM requests") == [("cancelled",)]


def test_writes_go_on_when_their_waiter_is_cancelled(with_ledger, query, reservation, settlement):
    async def use(ledger):
        await ledger.reserve(reservation("r1"))
        ledger.settle(settlement("r1")).cancel()

    with_ledger(use)
    assert query("SELECT state FROM requests") == [("done",)]


def test_what_was_asked_during_a_commit_shares_the_next_one(path, reservation):
    async def use():
        loop = asyncio.get_running_loop()
        num_posts = 0

        def post(resolve):
            nonlocal num_posts
            num_posts += 1
            loop.call_soon_threadsafe(resolve)

        async with Ledger.open(path, post=post) as ledger:
            blocker = sqlite3.connect(path, isolation_level=None)
            blocker.execute("BEGIN IMMEDIATE")  # the first commit waits for this
            waiting = [ledger.reserve(reservation(f"r{i}")) for i in range(100)]
            blocker.execute("ROLLBACK")
            blocker.close()
            await asyncio.gather(*waiting)
        return num_posts

    assert asyncio.run(use()) <= 3


def test_a_wrong_row_fails_alone(with_ledger, query, reservation, settlement, caplog):
    async def use(ledger):
        await ledger.reserve(reservation("r1"))
        outcomes = await asyncio.gather(
            ledger.reserve(reservation("r2")),
            ledger.reserve(reservation("r1")),
            ledger.settle(settlement("nobody")),
            ledger.reserve(reservation("r3")),
            return_exceptions=True,
        )
        return [type(outcome) for outcome in outcomes]

    none = type(None)
    assert with_ledger(use) == [none, Internal, Internal, none]
    assert query("SELECT count(*) FROM requests") == [(3,)]
    assert "a ledger row was refused" in caplog.text


def test_a_row_ends_once(with_ledger, query, reservation, settlement):
    async def use(ledger):
        await ledger.reserve(reservation("r1"))
        await ledger.settle(settlement("r1", 5))
        with pytest.raises(Internal, match="no open row"):
            await ledger.settle(settlement("r1", 6))

    with_ledger(use)
    assert query("SELECT number FROM tokens WHERE kind = 'completion'") == [(5,)]


def test_what_a_killed_daemon_left_open_is_settled_as_estimated(with_ledger, query, reservation):
    async def die_with_open_rows(ledger):
        await ledger.reserve(reservation("early"))
        await ledger.reserve(reservation("half", reserved_tokens=1_000_000))
        await ledger.reserve(reservation("late", reserved_tokens=60))
        await ledger.reserve(reservation("three", reserved_tokens=1_000_000, num_sequences=3))
        await ledger.reserve(reservation("embed", reserved_tokens=10))
        ledger.progress("half", 3)
        ledger.progress("half", 40)
        ledger.progress("late", 45)

    with_ledger(die_with_open_rows)

    async def recovered(ledger):
        return ledger.recovered

    assert with_ledger(recovered) == 5
    assert with_ledger(recovered) == 0
    rows = query(
        "SELECT request_id, number, counts, state, error_code FROM requests"
        " JOIN tokens USING (request_id) WHERE kind = 'completion' ORDER BY number"
    )
    ends = ("estimated", "failed", "internal")
    assert rows == [
        ("embed", 0, *ends),
        ("late", 50, *ends),
        ("early", 100, *ends),
        ("half", 40 + MOST_TOKENS_PER_INTERVAL, *ends),
        ("three", 3 * MOST_TOKENS_PER_INTERVAL, *ends),
    ]


def test_everything_else_that_is_known_of_a_request(with_ledger, query, reservation, settlement):
    async def use(ledger):
        asked = reservation(
            "r1", key="crm", tier="gold", adapter="formal", asked_model="big", reserved_cost=90,
            prompt_cost=10, currency="EUR", truncation="truncate_head", dropped_tokens=7,
            limit_hit="short", reserved_at=1_700_000_001.5,
        )  # fmt: skip
        await ledger.reserve(asked)
        await ledger.settle(
            settlement(
                "r1", cost=42, worker_restarts=2, provider="cloud", cache="exact", ttft_s=0.1,
                tokens={"prompt": 10, "completion": 5, "reasoning": 3},
            )
        )  # fmt: skip
        await ledger.record(reservation("r2"), settlement("r2", limit_hit="rate"))

    with_ledger(use)
    columns = (
        "key, tier, adapter, asked_model, reserved_cost, prompt_cost, currency, truncation,"
        " dropped_tokens, limit_hit, reserved_at, cost, worker_restarts, provider, cache,"
        " tokens_per_s"
    )
    assert query(f"SELECT {columns} FROM requests ORDER BY seq") == [
        ("crm", "gold", "formal", "big", 90, 10, "EUR", "truncate_head", 7, "short",
         1_700_000_001.5, 42, 2, "cloud", "exact", 10.0),
        (None, None, None, None, 0, 0, None, None, 0, "rate",
         1_700_000_000.0, 0, 0, "local", "none", None),
    ]  # fmt: skip
    others = "SELECT request_id, number FROM tokens WHERE kind = 'reasoning'"
    assert query(others) == [("r1", 3)]


def test_what_a_killed_daemon_left_open_costs_its_share(with_ledger, query, reservation):
    async def die_with_open_rows(ledger):
        row = {"prompt_tokens": 10, "reserved_cost": 1010, "prompt_cost": 10, "currency": "EUR"}
        await ledger.reserve(reservation("half", reserved_tokens=1010, **row))
        await ledger.reserve(reservation("whole", reserved_tokens=60, **row))
        await ledger.reserve(reservation("embed", reserved_tokens=10, **row))
        ledger.progress("half", 250)

    with_ledger(die_with_open_rows)

    async def nothing(ledger):
        pass

    with_ledger(nothing)
    rows = query("SELECT request_id, cost, counts FROM requests ORDER BY seq")
    assert rows == [(name, cost, "estimated") for name, cost in
                    (("half", 510), ("whole", 1010), ("embed", 1010))]  # fmt: skip


def test_progress_never_changes_a_settled_row(with_ledger, query, reservation, settlement):
    async def use(ledger):
        await ledger.reserve(reservation("r1"))
        ledger.progress("r1", 3)
        await ledger.settle(settlement("r1", 5))
        ledger.progress("r1", 4)
        ledger.progress("never-reserved", 4)

    with_ledger(use)
    assert query("SELECT number FROM tokens WHERE kind = 'completion'") == [(5,)]


def test_progress_is_written_without_being_asked_again(with_ledger, query, reservation):
    async def use(ledger):
        await ledger.reserve(reservation("r1"))
        ledger.progress("r1", 3)
        while not query("SELECT number FROM tokens WHERE kind = 'completion'"):  # noqa: ASYNC110
            await asyncio.sleep(0)  # the writer's clock decides; bounded by the time limit

    with_ledger(use)


def test_usage_sums_by_every_key(with_ledger, reservation, settlement):
    async def use(ledger):
        await ledger.record(reservation("r1", app="crm"), settlement("r1", 5))
        await ledger.record(reservation("r2", model="big"), settlement("r2", 50))
        await ledger.record(
            reservation("r3", arrived_at=1_700_000_000.0 + 86_400, op="generate"),
            settlement("r3", 1, outcome=Outcome.CANCELLED, finish_reason="cancelled"),
        )
        await ledger.record(
            reservation("r4", principal="user:bob"),
            settlement("r4", 0, outcome=Outcome.FAILED, counts=Counts.ESTIMATED),
        )
        await ledger.reserve(reservation("open"))
        groups = ("model", "principal", "app", "op", "day")
        now = 1_700_000_000.0 + 86_500
        all_time = {by: await ledger.usage(UsageQuery(by=[by])) for by in groups}
        return all_time, await ledger.usage(UsageQuery(since=now - 86_400))

    all_time, last_day = with_ledger(use)
    by_model = all_time["model"]
    assert by_model["by"] == "model"
    assert by_model["since"] is None
    assert by_model["left_out"] == 0
    assert [
        (row["key"], row["requests"], row["completion_tokens"]) for row in by_model["rows"]
    ] == [
        ("big", 1, 50),
        ("smollm2", 3, 6),
    ]
    assert by_model["total"] == {
        "requests": 4,
        "prompt_tokens": 40,
        "cached_tokens": 16,
        "completion_tokens": 56,
        "cost": 0,
        "cancelled": 1,
        "failed": 1,
        "total_s": 2.0,
        "mean_ttft_s": None,
    }
    assert [row["key"] for row in all_time["principal"]["rows"]] == ["user:alice", "user:bob"]
    assert {row["key"] for row in all_time["app"]["rows"]} == {"crm", ""}
    assert {row["key"] for row in all_time["op"]["rows"]} == {"chat", "generate"}
    days = [row["key"] for row in all_time["day"]["rows"]]
    assert len(days) == 2
    assert days == sorted(days)
    assert last_day["total"]["requests"] == 1
    assert all(report["total"] == by_model["total"] for report in all_time.values())


def test_usage_of_an_empty_ledger_is_all_zero(with_ledger):
    async def use(ledger):
        return await ledger.usage(UsageQuery(since=60))

    report = with_ledger(use)
    assert report["rows"] == []
    assert set(report["total"].values()) == {0, None}


def test_a_loop_that_has_ended_does_not_stop_the_writer(path, query, reservation, settlement):
    def post(resolve):
        raise RuntimeError("Event loop is closed")

    async def use():
        async with Ledger.open(path, post=post) as ledger:
            ledger.reserve(reservation("r1"))
            ledger.settle(settlement("r1"))

    asyncio.run(use())
    assert query("SELECT state FROM requests") == [("done",)]


def test_closing_ends_the_thread(with_ledger):
    async def use(ledger):
        assert "ledger" in {thread.name for thread in threading.enumerate()}

    with_ledger(use)
    assert "ledger" not in {thread.name for thread in threading.enumerate()}


def test_an_idle_writer_waits_for_ever(with_ledger):
    async def use(ledger):
        writer = ledger._writer
        assert isinstance(writer, Writer)
        return writer._idle_s()

    assert with_ledger(use) is None
