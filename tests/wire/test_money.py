"""Money: exact in both directions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawctl.wire.money import MAX_MONEY, MICRO, format_money, parse_money


@given(st.integers(0, MAX_MONEY - 1))
def test_what_is_written_is_read_again(micro):
    assert parse_money(format_money(micro)) == micro


@pytest.mark.parametrize(
    ("text", "micro", "shown"),
    [("12", 12 * MICRO, "12.00"), (" 0.1 ", 100_000, "0.10"), ("0.000001", 1, "0.000001")],
)
def test_amounts(text, micro, shown):
    assert parse_money(text) == micro
    assert format_money(micro) == shown


def test_debts_have_a_sign():
    assert format_money(-1_500_000) == "-1.50"


@pytest.mark.parametrize("text", ["", "-1", "1.", ".5", "1e3", "1,5", "0.0000001", "1" * 13])
def test_what_is_no_amount(text):
    with pytest.raises(ValueError, match="no amount of money"):
        parse_money(text)
