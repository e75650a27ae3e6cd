"""Budgets with somebody waiting: the pure decisions of admission, futures, alerts, the clock.

Owns who is woken when, and what is told of an alert. Whether there is room is `Budgets`'.

A reservation is settled after its request's end is on disk, not before: else what it gives back
could be reserved by another while the ledger still holds both, and a crash would charge for both.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openclawd.admission.budget_rules import NOTHING, Amount, BudgetRule, OnShort
from openclawd.admission.budgets import Budgets, Fallback, Refused, Reserved, Wait
from openclawd.admission.subjects import Match, Per
from openclawd.admission.windows import Calendar, Lifetime, Rolling, Unit, Window, zone_named
from openclawd.observe import message_ids
from openclawd.observe.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from openclawd.admission.budget_rules import Alert, Charge, Counter, Need
    from openclawd.admission.budget_standings import Standing
    from openclawd.admission.budgets import Claim, Decision
    from openclawd.admission.subjects import Subject

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Reservation:
    """What a request holds in its budgets until it ends. Exactly one of `settle` and `release` must
    come, the last of all that is done for the request; `release` after `settle` does nothing."""

    budgets: BudgetDesk
    reserved: Reserved
    is_ended: bool = field(default=False, init=False)

    @property
    def max_completion(self) -> int:
        """The maximum of completion tokens that is paid for."""
        return self.reserved.max_completion

    @property
    def shrunk_by(self) -> str:
        """The budget that lowered it; empty if none did."""
        return self.reserved.shrunk_by

    @property
    def amount(self) -> Amount:
        """The worst case."""
        return self.reserved.amount

    @property
    def charges(self) -> Sequence[Charge]:
        """For the request's row in the ledger."""
        return self.reserved.charges

    def settle(self, used: Amount) -> None:
        """The request has ended and its end is on disk."""
        assert not self.is_ended, "a reservation ends once"
        self.is_ended = True
        self.budgets.settle(self.reserved, used)

    def release(self) -> None:
        """Nothing was computed, or the reservation was settled."""
        if not self.is_ended:
            self.settle(NOTHING)


@dataclass(slots=True, eq=False)
class _Waiter:
    wakes: asyncio.Future[None]
    decision: Decision | None = None


class BudgetDesk:
    """Where requests reserve. Used on one loop only.

    `note_alerts` writes alerts down; `on_alert` is told of each, after the log. `wall` is the wall
    clock in Unix seconds.
    """

    def __init__(
        self,
        rules: Sequence[BudgetRule],
        counters: Iterable[Counter] = (),
        *,
        note_alerts: Callable[[Sequence[Alert]], None],
        on_alert: Callable[[Alert], object],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.budgets = Budgets(rules)
        self.budgets.restore(counters)
        self._note_alerts = note_alerts
        self._on_alert = on_alert
        self._wall = wall
        self._waiters: dict[Claim, _Waiter] = {}

    def replace_rules(self, rules: Sequence[BudgetRule], counters: Iterable[Counter]) -> None:
        """Other budgets from now on; see `Budgets.replace_rules`."""
        self.budgets.replace_rules(rules, counters)
        self._advance()

    def say_due_alerts(self) -> None:
        """At start: what a killed daemon did not come to say."""
        self._say(self.budgets.due_alerts(self._now()))

    async def reserve(
        self,
        subject: Subject,
        need: Need,
        *,
        on_queued: Callable[[int], object],
        is_fallback: bool = False,
    ) -> Reservation | Fallback:
        """Hold the worst case in every budget of the request. With `Fallback`, ask again for the
        model that it names, with `is_fallback`.

        Waits while only open reservations are in the way; `on_queued` then hears its position.
        Whoever is cancelled leaves nothing behind. Raises `BudgetExceeded`.
        """
        claim, outcome = self.budgets.ask(subject, need, now=self._now(), is_fallback=is_fallback)
        if isinstance(outcome, Wait):
            position = outcome.position
            decision = await self._wait(claim, lambda: on_queued(position))
        else:
            decision = outcome
            self._say_of(decision)
        match decision:
            case Reserved():
                return Reservation(self, decision)
            case Fallback():
                return decision
            case Refused():
                raise decision.problem

    def foresee(
        self, subject: Subject, need: Need, *, is_fallback: bool = False
    ) -> tuple[Reserved | Wait | Fallback, list[dict[str, Any]]]:
        """What would become of such a request, and its budgets' rows with what would be left
        (`left_after`). Changes nothing. Raises `BudgetExceeded`."""
        now = self._now()
        accounts, outcome = self.budgets.foresee(subject, need, now=now, is_fallback=is_fallback)
        if isinstance(outcome, Refused):
            raise outcome.problem
        most = outcome.amount if isinstance(outcome, Reserved) else need.worst(need.max_completion)
        return outcome, [each.row_after(most, now) for each in accounts]

    def settle(self, reserved: Reserved, used: Amount) -> None:
        """For `Reservation`."""
        self._say(self.budgets.settle(reserved, used, now=self._now()))
        self._advance()

    def share_left(self, subject: Subject) -> float:
        """The smallest share that is left of a budget of this request, in [0, 1]."""
        return self.budgets.share_left(subject, self._now())

    def rows(self, caller: Subject | None) -> list[dict[str, Any]]:
        """What `budgets` answers to a caller, or to somebody who sees everybody (None)."""
        return self.budgets.rows(caller, self._now())

    def standings(self) -> list[Standing]:
        """How full each budget is."""
        return self.budgets.standings(self._now())

    # ---- waiting ----

    async def _wait(self, claim: Claim, on_queued: Callable[[], object]) -> Decision:
        waiter = self._waiters[claim] = _Waiter(asyncio.get_running_loop().create_future())
        try:
            on_queued()
            async with asyncio.timeout(claim.max_wait_s):
                await waiter.wakes
        except TimeoutError:
            self._advance()  # a new window may have begun
        except BaseException:
            self._abandon(claim, waiter)
            raise
        finally:
            del self._waiters[claim]
        if waiter.decision is None:
            waiter.decision = self.budgets.give_up(claim, now=self._now())
            self._advance()
        return waiter.decision

    def _abandon(self, claim: Claim, waiter: _Waiter) -> None:
        """Undo what became of one whose task was cancelled."""
        if waiter.decision is None:
            self._leave(claim)
        elif isinstance(waiter.decision, Reserved):
            self.settle(waiter.decision, NOTHING)

    def _leave(self, claim: Claim) -> None:
        self.budgets.leave(claim)
        self._advance()

    def _advance(self) -> None:
        """Wake those who have an answer now."""
        for claim, decision in self.budgets.advance(self._now()):
            waiter = self._waiters[claim]
            waiter.decision = decision
            self._say_of(decision)
            if not waiter.wakes.done():  # it may have been cancelled, and leaves soon
                waiter.wakes.set_result(None)

    # ---- alerts ----

    def _say_of(self, decision: Decision) -> None:
        if not isinstance(decision, Reserved):
            self._say(decision.alerts)

    def _say(self, alerts: Sequence[Alert]) -> None:
        if not alerts:
            return
        for alert in alerts:
            logger.warning(
                "%s", alert, extra=fields(message_id=message_ids.ALERT, **alert.as_dict())
            )
            self._on_alert(alert)
        self._note_alerts(alerts)

    def _now(self) -> int:
        return int(self._wall())


def rule_from(plain: dict[str, Any]) -> BudgetRule:
    """A budget from the plain values of its configuration (`BudgetConfig.plain`)."""
    zone = zone_named(plain["time_zone"])
    return BudgetRule(
        name=plain["name"],
        match=Match(**plain["match"]),
        per=Per(plain["per"]),
        tokens=plain["tokens"],
        money=plain["money"],
        window=_window(plain["window"], plain["time_zone"]),
        zone=zone,
        on_short=OnShort(plain["on_short"]),
        fallback=plain["fallback"],
        alerts=tuple(plain["alerts"]),
        max_wait_s=plain["max_wait_s"],
    )


def _window(window: str | int, time_zone: str) -> Window:
    """`lifetime`, a calendar unit, or the seconds of a rolling window."""
    if isinstance(window, int):
        return Rolling(window)
    return Lifetime() if window == "lifetime" else Calendar(Unit(window), zone_named(time_zone))
