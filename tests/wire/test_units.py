"""Sizes and durations, read and written."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawctl.wire.units import (
    format_duration,
    format_size,
    parse_duration_s,
    parse_size_bytes,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90),
        (1.5, 1.5),
        ("90", 90),
        ("0", 0),
        ("250ms", 0.25),
        ("5m", 300),
        ("1.5h", 5400),
        ("1h30m", 5400),
        (" 1h 30m ", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
    ],
)
def test_durations(text, seconds):
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "m", "-1", -1, "5x", "5M", "5m5", "5 5", "1.5.2h", "٣m", True, "1e3", float("nan"),
     float("inf"), "9" * 400, 10**400, "5m!"],
)  # fmt: skip
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        ("1048576", 2**20),
        ("4GiB", 4 * 2**30),
        ("1.5 KiB", 1536),
        ("500MB", 500_000_000),
        ("2TiB", 2 * 2**40),
    ],
)
def test_sizes(text, size):
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "-1", -1, True, "4G", "4gib", "GiB", "1GiB2", "9" * 400, "9999999TiB"]
)
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match=r"is not a size|more than any machine has"):
        parse_size_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (973 * 1024, "973.0 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**30, "1.0 GiB"),
        (5 * 2**50, "5120.0 TiB"),
    ],
)
def test_sizes_are_written_in_the_largest_unit(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.035, "35ms"),
        (0.9996, "1.0s"),
        (8.21, "8.2s"),
        (59.96, "1m"),
        (60, "1m"),
        (312, "5m 12s"),
        (3600, "1h"),
        (3599.7, "1h"),
        (5400, "1h 30m"),
        (273_600, "3d 4h"),
        (86_400, "1d"),
    ],
)
def test_durations_are_written_in_two_units(seconds, text):
    assert format_duration(seconds) == text


@given(st.floats(0, 1e9))
def test_a_written_duration_reads_as_about_the_same(seconds):
    assert abs(parse_duration_s(format_duration(seconds)) - seconds) <= max(0.05, seconds * 0.05)


@given(st.text(max_size=20))
def test_any_text_is_a_quantity_or_a_value_error(text):
    for parse in (parse_duration_s, parse_size_bytes):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0
