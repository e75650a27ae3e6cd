"""What steps are expected to take, from those that were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.engine.pace import MAX_STRETCH, MIN_CHUNK, PAUSE_SLOWNESS, Pace


def learned(*, fixed_s: float, decode_s: float, prefill_s: float, num_decodes: int) -> Pace:
    """A pace that has seen steps of a machine with these costs."""
    pace = Pace()
    for _ in range(30):
        pace.note(num_decodes, 0, fixed_s + num_decodes * decode_s)
    for _ in range(30):
        chunk = pace.max_prefill_tokens(num_decodes) or 64
        duration_s = fixed_s + num_decodes * decode_s + chunk * prefill_s
        pace.note(num_decodes, chunk, duration_s)
    return pace


def test_nothing_is_forbidden_before_anything_is_known() -> None:
    pace = Pace()
    assert pace.max_prefill_tokens(4) is None
    assert pace.decode_step_s(4) is None
    assert pace.a_guess_pays(4)
    pace.note(4, 0, 0.02)
    assert pace.max_prefill_tokens(4) is None
    assert pace.a_guess_pays(4)


@given(
    fixed_s=st.floats(0, 0.02),
    decode_s=st.floats(0.001, 0.1),
    prefill_s=st.floats(0.0001, 0.1),
    num_decodes=st.integers(1, 64),
)
def test_a_step_with_a_chunk_takes_no_longer_than_promised(
    fixed_s: float, decode_s: float, prefill_s: float, num_decodes: int
) -> None:
    pace = learned(fixed_s=fixed_s, decode_s=decode_s, prefill_s=prefill_s, num_decodes=num_decodes)
    chunk = pace.max_prefill_tokens(num_decodes)
    assert chunk is not None
    without_s = fixed_s + num_decodes * decode_s
    with_s = without_s + chunk * prefill_s
    stretch = MAX_STRETCH * (4 if num_decodes == 1 else 1)
    assert chunk == MIN_CHUNK or with_s <= (stretch + 0.05) * without_s


def test_more_prompts_than_streams_may_take_longer() -> None:
    pace = learned(fixed_s=0, decode_s=0.005, prefill_s=0.003, num_decodes=4)
    half, as_many, far_more = (pace.max_prefill_tokens(4, prompts) for prompts in (2, 4, 40))
    assert half == pace.max_prefill_tokens(4)
    assert as_many == pytest.approx((4 * MAX_STRETCH - 1) * 0.020 / 0.003, abs=1)
    assert far_more == pytest.approx((400 * MAX_STRETCH - 1) * 0.020 / 0.003, abs=1)


def test_a_slow_step_does_not_stop_a_prefill() -> None:
    pace = learned(fixed_s=0, decode_s=0.005, prefill_s=0.003, num_decodes=4)
    pace.note(4, 10, 10.0)
    assert pace.max_prefill_tokens(4) == MIN_CHUNK


def test_a_step_in_a_pause_that_is_somewhat_slower_is_no_news() -> None:
    pace = Pace()
    pace.note(4, 0, 0.020)
    pace.note(4, 0, 0.020 * PAUSE_SLOWNESS, in_pause=True)
    assert pace.decode_step_s(4) == 0.020


@pytest.mark.parametrize("first_s", [0.150, 0.002])
def test_a_wrong_idea_of_the_pace_is_put_right_in_pauses_too(first_s: float) -> None:
    """Prompts may be computed aside one after the other, without a step between them."""
    pace = Pace()
    pace.note(4, 0, first_s, in_pause=True)
    assert pace.decode_step_s(4) == first_s
    for _ in range(60):
        pace.note(4, 0, 0.025, in_pause=True)
    known_s = pace.decode_step_s(4)
    assert known_s is not None
    assert 0.025 / PAUSE_SLOWNESS * 0.99 < known_s < 0.025 * 1.01


def test_steps_that_never_were_are_guessed_from_the_nearest() -> None:
    pace = Pace()
    pace.note(4, 0, 0.020)
    pace.note(8, 0, 0.030)
    assert pace.decode_step_s(4) == 0.020
    assert pace.decode_step_s(6) == pytest.approx(0.030)
    assert pace.decode_step_s(16) == pytest.approx(0.060)
    assert pace.decode_step_s(2) == 0.020


def test_a_guess_pays_while_a_step_costs_more_than_its_tokens() -> None:
    pace = learned(fixed_s=0.005, decode_s=0.004, prefill_s=0.003, num_decodes=1)
    pace.note(16, 0, 0.005 + 16 * 0.004)
    assert pace.a_guess_pays(1)
    assert not pace.a_guess_pays(16)
