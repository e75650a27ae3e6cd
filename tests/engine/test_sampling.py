"""Sampling parameters, and the random bits of a position."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openclawd.engine.sampling import SamplingParams, seed_at, seed_of

SEEDS = st.integers(0, 2**63 - 1)
POSITIONS = st.integers(0, 2**31 - 1)


@given(SEEDS, POSITIONS)
def test_the_bits_of_a_position_fit_in_32_bits_and_never_change(seed: int, position: int) -> None:
    assert 0 <= seed_at(seed, position) < 2**32
    assert seed_at(seed, position) == seed_at(seed, position)


def test_neighbours_share_no_bits() -> None:
    bits = [seed_at(seed, position) for seed in range(100) for position in range(100)]
    assert len(set(bits)) > 9_990  # of 10,000 draws from 2**32, one pair is expected to collide
    assert 0.48 < sum(value.bit_count() for value in bits) / (32 * len(bits)) < 0.52


def test_the_values_stay_what_they_are_so_that_a_resumed_stream_goes_on_after_an_upgrade() -> None:
    assert [seed_at(1, position) for position in range(3)] == [
        1_581_361_928,
        3_925_696_585,
        3_168_394_164,
    ]


def test_temperature_zero_is_greedy() -> None:
    assert SamplingParams(temperature=0).is_greedy
    assert SamplingParams(temperature=1e-38).is_greedy  # dividing by it would overflow
    assert not SamplingParams(temperature=0.8).is_greedy


def test_an_end_is_forbidden_for_good_or_for_a_time() -> None:
    assert not SamplingParams().forbids_end(0)
    assert SamplingParams(min_tokens=2).forbids_end(1)
    assert not SamplingParams(min_tokens=2).forbids_end(2)
    assert SamplingParams(ignore_eos=True).forbids_end(10_000)


def test_penalties_are_off_by_default_and_without_tokens_to_look_back_on() -> None:
    assert not SamplingParams().has_penalties
    assert not SamplingParams(repeat_penalty=1.1, repeat_last_n=0).has_penalties
    assert SamplingParams(repeat_penalty=1.1).has_penalties
    assert SamplingParams(frequency_penalty=-1).has_penalties
    assert SamplingParams(presence_penalty=0.5).has_penalties


def test_dry_and_xtc_are_off_by_default_and_where_they_could_do_nothing() -> None:
    assert not SamplingParams().has_dry
    assert not SamplingParams(dry_multiplier=1.0, dry_penalty_last_n=0).has_dry
    assert SamplingParams(dry_multiplier=1.0).has_dry
    assert not SamplingParams().has_xtc
    assert not SamplingParams(xtc_probability=1.0, xtc_threshold=0.6).has_xtc
    assert SamplingParams(xtc_probability=0.5).has_xtc


@given(SEEDS)
def test_the_sequences_of_a_request_have_seeds_of_their_own(seed: int) -> None:
    seeds = [seed_of(seed, index) for index in range(50)]
    assert seeds[0] == seed
    assert all(0 <= each < 2**63 for each in seeds)
    assert len(set(seeds)) == len(seeds)
