"""How full budgets are, in a few numbers for each, however many buckets it has. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from openclawd.admission.budget_accounts import Account
    from openclawd.admission.budget_rules import BudgetRule, Measure


@dataclass(frozen=True, slots=True)
class Standing:
    """One measure of one budget. `used` and `reserved` are those of its fullest bucket: whose that
    is, `openclawctl budgets` shows. `num_full` buckets have nothing left."""

    budget: str
    measure: Measure
    limit: int
    used: int = 0
    reserved: int = 0
    num_buckets: int = 0
    num_full: int = 0

    @property
    def used_share(self) -> float:
        """Of the limit, settled usage alone, as alerts go by it; over 1 if it was overdrawn."""
        return self.used / max(1, self.limit)

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used - self.reserved)


def standings(
    rules: Sequence[BudgetRule], accounts: Iterable[Account], now: int
) -> Iterator[Standing]:
    """Of each budget and measure; also of those in which nothing was used yet."""
    by_rule: dict[str, list[Account]] = defaultdict(list)
    for account in accounts:
        by_rule[account.rule.name].append(account)
    for rule in rules:
        for measure, limit in rule.limits:
            yield _standing(rule, measure, limit, by_rule[rule.name], now)


def _standing(
    rule: BudgetRule, measure: Measure, limit: int, accounts: list[Account], now: int
) -> Standing:
    if not accounts:
        return Standing(rule.name, measure, limit)
    used = [account.used(now).of(measure) for account in accounts]
    most = max(used)
    fullest = accounts[used.index(most)]
    return Standing(
        rule.name,
        measure,
        limit,
        used=most,
        reserved=fullest.reserved(now).of(measure),
        num_buckets=len(accounts),
        num_full=sum(each >= limit for each in used),
    )
