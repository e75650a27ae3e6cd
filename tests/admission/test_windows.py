"""Windows of time: every moment is in one slot, whatever clocks do."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.admission.windows import (
    HOUR_S,
    Calendar,
    Lifetime,
    Rolling,
    Span,
    Unit,
    local_time,
    zone_named,
)

ZONES = ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia"]
DAY_S = 24 * HOUR_S

moments = st.integers(int(dt.datetime(1990, 1, 1, tzinfo=dt.UTC).timestamp()), 4_000_000_000)
calendars = st.builds(Calendar, st.sampled_from(Unit), st.sampled_from(ZONES).map(zone_named))
rolling = st.builds(Rolling, st.integers(1, 400 * 24).map(lambda hours: hours * HOUR_S))


def unix(text, zone):
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=zone_named(zone)).timestamp())


@given(calendars, moments)
def test_a_moment_is_in_its_window(window, now):
    slot = window.slot(now)
    assert slot <= now < window.ends_at(slot)
    assert window.slot(slot) == slot
    assert window.counted(now) == Span(slot, slot)
    assert window.next_slot(slot) == window.ends_at(slot)


@given(calendars, moments)
def test_the_next_window_begins_where_one_ends(window, now):
    slot = window.slot(now)
    end = window.ends_at(slot)
    assert window.slot(end) == end
    assert window.slot(end - 1) == slot


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe"])
def test_two_years_of_hours_have_no_gap_and_no_overlap(zone, unit):
    window = Calendar(unit, zone_named(zone))
    start = unix("2017-01-01T00:00", zone)  # São Paulo still changed its clocks, at midnight
    seen, slot = [], window.slot(start)
    while slot < start + 731 * DAY_S:
        seen.append(slot)
        slot = window.ends_at(slot)
    for now in range(start, start + 730 * DAY_S, HOUR_S):
        assert window.slot(now) == max(s for s in seen[-1:] + near(seen, now) if s <= now)


def near(slots, now):
    import bisect

    return slots[max(0, bisect.bisect_right(slots, now) - 1) :][:1]


@pytest.mark.parametrize(
    ("unit", "zone", "moment", "start", "hours"),
    [
        (Unit.DAY, "Europe/Berlin", "2026-03-29T12:00", "2026-03-29T00:00", 23),
        (Unit.DAY, "Europe/Berlin", "2026-10-25T12:00", "2026-10-25T00:00", 25),
        (Unit.WEEK, "Europe/Berlin", "2027-01-01T12:00", "2026-12-28T00:00", 168),
        (Unit.MONTH, "Europe/Berlin", "2026-10-31T12:00", "2026-10-01T00:00", 31 * 24 + 1),
        (Unit.MONTH, "UTC", "2028-02-29T12:00", "2028-02-01T00:00", 29 * 24),
        (Unit.HOUR, "Europe/Berlin", "2026-10-25T02:30", "2026-10-25T02:00", 1),
        (Unit.HOUR, "Australia/Lord_Howe", "2026-04-05T01:15", "2026-04-05T01:00", 1.5),
        (Unit.HOUR, "Australia/Lord_Howe", "2026-10-04T02:45", "2026-10-04T02:30", 0.5),
        # Clocks went from 24:00 to 01:00: the day begins there.
        (Unit.DAY, "America/Sao_Paulo", "2017-10-15T12:00", "2017-10-15T01:00", 23),
        (Unit.DAY, "America/Sao_Paulo", "2018-02-17T12:00", "2018-02-17T00:00", 25),
        # A day that never was: the International Date Line moved.
        (Unit.DAY, "Pacific/Apia", "2011-12-29T12:00", "2011-12-29T00:00", 24),
    ],
)
def test_days_hours_and_months_with_changing_clocks(unit, zone, moment, start, hours):
    window = Calendar(unit, zone_named(zone))
    slot = window.slot(unix(moment, zone))
    assert local_time(slot, window.zone)[:16] == start
    assert window.ends_at(slot) - slot == hours * HOUR_S


def test_the_hour_that_comes_twice_is_two_windows():
    window = Calendar(Unit.HOUR, zone_named("Europe/Berlin"))
    first = unix("2026-10-25T02:30", "Europe/Berlin")
    assert window.slot(first + HOUR_S) == window.slot(first) + HOUR_S
    assert local_time(first, window.zone)[:16] == local_time(first + HOUR_S, window.zone)[:16]


@given(rolling, moments, st.integers(0, 401 * DAY_S))
def test_a_rolling_window_forgets_no_younger_usage(window, now, age):
    is_counted = window.slot(now - age) in window.counted(now)
    if age <= window.length_s:
        assert is_counted
    if age > window.length_s + window.slot_s:
        assert not is_counted


@given(rolling, moments)
def test_a_slot_of_a_rolling_window_counts_until_its_end(window, now):
    slot = window.slot(now)
    assert slot <= now < window.next_slot(slot)
    assert window.counted(slot) == window.counted(window.next_slot(slot) - 1)
    assert slot in window.counted(window.ends_at(slot) - 1)
    assert slot not in window.counted(window.ends_at(slot))


@given(rolling, moments, st.integers(0, 400 * DAY_S))
def test_a_clock_that_is_set_back_finds_what_was_used(window, now, back):
    is_found = window.slot(now) in window.counted(now - back)
    assert is_found or back > window.length_s


def test_a_lifetime_has_one_slot():
    assert Lifetime().slot(5) in Lifetime().counted(4_000_000_000)
    assert Lifetime().ends_at(0) is None


def test_names():
    assert [Rolling(hours * HOUR_S).name for hours in (1, 24, 36, 168)] == ["1h", "1d", "36h", "7d"]
    assert Calendar(Unit.MONTH, zone_named("Europe/Berlin")).name == "month Europe/Berlin"
    assert Calendar(Unit.DAY, zone_named("UTC")).name == "day UTC"


@pytest.mark.parametrize("name", ["Mars/Base", "Europe", "../etc/passwd", ""])
def test_what_is_no_zone(name):
    with pytest.raises((ValueError, KeyError, OSError)):
        zone_named(name)
