"""Costs against fractions in plain Python: exact, rounded up once, never under a reservation."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.admission.prices import FREE, Price, Prices

rates = st.integers(0, 10**12)
prices = st.builds(Price, prompt=rates, cached=rates, completion=rates, second=rates)
tokens = st.integers(0, 2**24)
seconds = st.integers(0, 10**12).map(lambda microseconds: microseconds / 10**6)


@given(price=prices, prompt=tokens, cached=tokens, completion=tokens, compute_s=seconds)
def test_the_cost_is_exact_and_rounded_up_once(price, prompt, cached, completion, compute_s):
    cached = min(cached, prompt)
    exact = (
        Fraction((prompt - cached) * price.prompt, 10**6)
        + Fraction(cached * price.cached, 10**6)
        + Fraction(completion * price.completion, 10**6)
        + Fraction(round(compute_s * 10**6) * price.second, 10**6)
    )
    assert price.cost(prompt, cached, completion, compute_s) == ceil(exact)


@given(price=prices, prompt=tokens, completion=tokens, data=st.data())
def test_the_worst_case_is_never_less_than_what_comes(price, prompt, completion, data):
    used_prompt = data.draw(st.integers(0, prompt))
    cached = data.draw(st.integers(0, used_prompt))
    used = data.draw(st.integers(0, completion))
    assert price.cost(used_prompt, cached, used, 2.5) <= price.worst_case(prompt, completion, 2.5)


@given(
    price=st.builds(Price, prompt=rates, completion=rates), prompt=tokens, completion=tokens,
    data=st.data(),
)  # fmt: skip
def test_a_killed_request_is_charged_what_its_tokens_would_have_cost(
    price, prompt, completion, data
):
    from openclawd.ledger.rows import share_of_cost

    used = data.draw(st.integers(0, completion))
    whole, of_prompt = price.worst_case(prompt, completion), price.worst_case(prompt, 0)
    share = share_of_cost(whole, of_prompt, tokens=used, of_tokens=completion)
    assert price.cost(prompt, 0, used) - 1 <= share <= price.cost(prompt, 0, used) + 1
    assert share <= whole


@pytest.mark.parametrize(
    ("counts", "cost"),
    [((1, 0, 0), 1), ((0, 0, 0), 0), ((10_000_000, 0, 0), 1_000_000), ((3, 3, 0), 1),
     ((1_000_000, 500_000, 1_000_000), 455_000)],
)  # fmt: skip
def test_tenths_of_a_dollar_for_a_million(counts, cost):
    assert Price(prompt=100_000, cached=10_000, completion=400_000).cost(*counts) == cost


def test_prices_by_name():
    prices = Prices("EUR", {"m": Price(second=1)})
    assert prices.of("m").cost(0, 0, 0, 1.5) == 2
    assert prices.of("other") is FREE
    assert prices.currency == "EUR"
    assert Prices("EUR").currency is None
    assert FREE.is_free
    assert not prices.of("m").is_free
