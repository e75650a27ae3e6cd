"""Waiting for a rate limit's room: admission's pure lines, with somebody at each ticket.

Owns the futures of those who wait, the one timer that wakes them, and when they hear of their
position. Who may go on and when is `RateLimiter`'s; time is the loop's monotonic clock, so what
becomes of the wall clock has no effect.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openclawctl.wire.errors import RateLimited
from openclawd.admission.rates import (
    Grant,
    OnExceed,
    RateLimiter,
    RatePlace,
    RateRule,
    RateStanding,
)
from openclawd.admission.subjects import Match, Per

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from openclawd.admission.subjects import Subject
    from openclawd.config.rates import RateLimitConfig


def rules_of(configs: Iterable[RateLimitConfig]) -> list[RateRule]:
    """The rules of a configuration."""
    return [
        RateRule(
            name=config.name,
            match=Match(**config.match.patterns()),
            per=Per(config.per),
            tokens=config.tokens,
            requests=config.requests,
            window_s=config.window_s,
            on_exceed=OnExceed(config.on_exceed),
            max_wait_s=config.max_wait_s,
            max_waiting=config.max_waiting,
        )
        for config in configs
    ]


@dataclass(slots=True, eq=False)
class _Waiter:
    """One who asks. `told` is the last position it heard of, and of which rule."""

    on_queued: Callable[[RatePlace], None]
    told: RatePlace | None = None
    _ends: asyncio.Future[Grant | RateLimited] | None = None

    @property
    def ends(self) -> asyncio.Future[Grant | RateLimited]:
        """What becomes of it; made when it is first asked for, since most need not wait."""
        if self._ends is None:
            self._ends = asyncio.get_running_loop().create_future()
        return self._ends


class Charge:
    """What one admitted request has taken, and goes on to take."""

    def __init__(self, rates: Rates, grant: Grant) -> None:
        self._rates = rates
        self._grant = grant

    def completion(self, num_tokens: int) -> None:
        """Completion tokens have come. Never refuses; later requests wait for them."""
        self._rates.charge(self._grant, num_tokens)

    def refund(self) -> None:
        """The request ended before it was computed: its prompt tokens are given back. Once only."""
        self._rates.refund(self._grant)

    def undo(self) -> None:
        """The request goes on as another one: it is given back whole. Once only, as `refund`."""
        self._rates.undo(self._grant)


class Rates:
    """All rate limits of the daemon. Lives in one event loop."""

    def __init__(self, rules: Sequence[RateRule]) -> None:
        self._limiter: RateLimiter[_Waiter] = RateLimiter(rules)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_waiting(self) -> int:
        return self._limiter.num_waiting

    def standing(self, subject: Subject) -> list[RateStanding]:
        """Every count that a request of this subject would be in."""
        return self._limiter.standing(subject, now=_now())

    def foresee(self, subject: Subject, prompt_tokens: int) -> list[RateStanding]:
        """The same for a prompt of so many tokens. Raises `LimitExceeded`."""
        return self._limiter.foresee(subject, prompt_tokens=prompt_tokens, now=_now())

    def replace_rules(self, rules: Sequence[RateRule]) -> None:
        """Other rules from now on; see `RateLimiter.replace_rules`."""
        self._limiter.replace_rules(rules, now=_now())
        self._wake()

    async def admit(
        self, subject: Subject, prompt_tokens: int, *, on_queued: Callable[[RatePlace], None]
    ) -> Charge:
        """Take one request and its prompt tokens of every rule that fits, waiting if that is what
        the rules say. One that is cancelled meanwhile has taken nothing.

        `on_queued` is called if it has to wait, and again when its position in line has halved or
        it waits for another rule. Raises `RateLimited` and `LimitExceeded`.
        """
        waiter = _Waiter(on_queued)
        grant = self._limiter.ask(waiter, subject, prompt_tokens=prompt_tokens, now=_now())
        return Charge(self, grant if grant is not None else await self._wait(waiter))

    async def _wait(self, waiter: _Waiter) -> Grant:
        try:
            self._tell(waiter)
            self._set_timer()
            outcome = await waiter.ends
        except BaseException:
            self._give_up(waiter)
            raise
        if isinstance(outcome, RateLimited):
            raise outcome
        return outcome

    def charge(self, grant: Grant, num_tokens: int) -> None:
        """Use `Charge.completion`."""
        self._limiter.charge(grant, num_tokens, now=_now())

    def refund(self, grant: Grant) -> None:
        """Use `Charge.refund`."""
        self._limiter.refund(grant, now=_now())
        self._wake()

    def undo(self, grant: Grant) -> None:
        """Use `Charge.undo`."""
        self._limiter.undo(grant, now=_now())
        self._wake()

    # ---- those who wait ----

    def _give_up(self, waiter: _Waiter) -> None:
        """It was cancelled: while it waited, or when it was told and had not run since."""
        if self._limiter.is_waiting(waiter):
            self._limiter.leave(waiter, now=_now())
            self._wake()
        elif not waiter.ends.cancelled() and isinstance(grant := waiter.ends.result(), Grant):
            self.refund(grant)

    def _wake(self) -> None:
        """Tell all those whose wait is over, and see when to look again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter, outcome in self._limiter.wake(_now()):
            if not waiter.ends.done():
                waiter.ends.set_result(outcome)
            elif isinstance(outcome, Grant):  # it was cancelled, and has not run since
                self._limiter.refund(outcome, now=_now())
        self._set_timer()
        self._tell_who_moved_up()

    def _set_timer(self) -> None:
        at = self._limiter.next_at()
        if self._timer is not None:
            if self._timer.when() == at:
                return
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer = asyncio.get_running_loop().call_at(at, self._wake)

    def _tell_who_moved_up(self) -> None:
        for rule, line in self._limiter.pop_changed_lines():
            for position, waiter in enumerate(line, 1):
                told = waiter.told
                if told is not None and (told.rule != rule or position <= told.position // 2):
                    self._tell(waiter)

    def _tell(self, waiter: _Waiter) -> None:
        waiter.told = self._limiter.place(waiter, now=_now())
        waiter.on_queued(waiter.told)


def _now() -> float:
    return asyncio.get_running_loop().time()
