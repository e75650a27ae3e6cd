"""How full budgets are, in numbers that do not grow with their users."""

from __future__ import annotations

from admission.test_budgets import NOW, budget, need

from openclawd.admission.budget_rules import Amount, Measure
from openclawd.admission.budgets import Budgets, Reserved
from openclawd.admission.subjects import Per, Subject


def use(budgets, principal, used, *, now=NOW):
    _, reserved = budgets.ask(Subject(principal, model="m"), need(0, used), now=now)
    assert isinstance(reserved, Reserved)
    budgets.settle(reserved, Amount(used), now=now)


def test_a_budget_that_nobody_has_used():
    (standing,) = Budgets([budget(tokens=500)]).standings(NOW)
    assert (standing.limit, standing.used, standing.left, standing.used_share) == (500, 0, 500, 0.0)
    assert standing.num_buckets == 0


def test_the_fullest_bucket_counts():
    budgets = Budgets([budget(per=Per.PRINCIPAL, tokens=1000)])
    for principal, used in (("user:a", 10), ("user:b", 900), ("user:c", 1000), ("user:d", 1000)):
        use(budgets, principal, used)
    (standing,) = budgets.standings(NOW)
    assert (standing.used, standing.left, standing.used_share) == (1000, 0, 1.0)
    assert (standing.num_buckets, standing.num_full) == (4, 2)


def test_reservations_are_not_left():
    budgets = Budgets([budget(tokens=1000)])
    use(budgets, "user:a", 300)
    budgets.ask(Subject("user:a", model="m"), need(50, 150), now=NOW)
    (standing,) = budgets.standings(NOW)
    assert (standing.used, standing.reserved, standing.left) == (300, 200, 500)


def test_each_measure_of_each_budget():
    budgets = Budgets([budget("a", money=5), budget("b", tokens=None, money=7)])
    found = [(each.budget, each.measure, each.limit) for each in budgets.standings(NOW)]
    assert found == [
        ("a", Measure.TOKENS, 1000),
        ("a", Measure.MONEY, 5),
        ("b", Measure.MONEY, 7),
    ]
