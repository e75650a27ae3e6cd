"""How many deliveries there are at once, when one is tried again, and how they end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from openclawd.notify.delivery import MAX_AT_ONCE, MAX_OPEN, Deliveries, Delivery, Failed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest


def run(use: Callable[[Deliveries], Awaitable[None]], *, grace_s: float = 30.0) -> None:
    async def serve() -> None:
        deliveries = Deliveries(first_retry_s=0.0)
        await use(deliveries)
        await deliveries.close(grace_s)

    asyncio.run(serve())


def test_so_many_run_at_once_and_too_many_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    running, most, total = 0, 0, 0

    async def attempt() -> None:
        nonlocal running, most, total
        running, total = running + 1, total + 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async def use(deliveries: Deliveries) -> None:
        for _ in range(MAX_OPEN + 3):
            deliveries.put(Delivery("x", attempt, 0))

    run(use)
    assert (most, total) == (MAX_AT_ONCE, MAX_OPEN)
    assert caplog.text.count("x is dropped: 200 are under way already") == 3


def test_it_is_tried_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    attempts = 0
    done = asyncio.Event()

    async def attempt() -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise Failed("not yet")
        done.set()

    async def use(deliveries: Deliveries) -> None:
        deliveries.put(Delivery("x", attempt, 5))
        await done.wait()

    run(use)
    assert attempts == 3
    assert caplog.text.count("x failed and is tried again: not yet") == 2


def test_what_cannot_work_is_not_tried_again() -> None:
    attempts = 0

    async def attempt() -> None:
        nonlocal attempts
        attempts += 1
        raise Failed("never", is_final=True)

    async def use(deliveries: Deliveries) -> None:
        deliveries.put(Delivery("x", attempt, 5))

    run(use)
    assert attempts == 1


def test_at_the_end_nothing_is_tried_again_and_what_hangs_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = 0

    async def fail() -> None:
        nonlocal attempts
        attempts += 1
        raise Failed("no")

    async def hang() -> None:
        await asyncio.Event().wait()

    async def use(deliveries: Deliveries) -> None:
        deliveries.put(Delivery("failing", fail, 5))
        deliveries.put(Delivery("hanging", hang, 5))

    run(use, grace_s=0.0)
    assert attempts <= 1
    assert "1 alerts are given up" in caplog.text or "2 alerts are given up" in caplog.text
