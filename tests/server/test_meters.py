"""What is counted, and that nothing anybody names makes it grow without end."""

from __future__ import annotations

from openclawctl.wire.errors import CODES, Kind
from openclawd.observe.exposition import OTHER
from openclawd.server.meters import MAX_MODELS, Meters


def test_an_error_counts_by_its_code_and_kind():
    meters = Meters()
    meters.refused("not-found")
    meters.refused("what-a-worker-made-up")
    assert dict(meters.errors.samples()) == {
        ("", "not-found", "request"): 1,
        ("", OTHER, OTHER): 1,
    }


def test_failures_begin_at_nothing():
    meters = Meters()
    meters.expect("m")
    assert {value for _, value in meters.errors.samples()} == {0}
    kinds = {kind for (_, _, kind), _ in meters.errors.samples()}
    assert kinds == {Kind.FAILED.value, Kind.BUG.value}


def test_every_kind_of_error_is_an_outcome():
    assert {info.kind for info in CODES.values()} == set(Kind)


def test_too_many_models_share_their_times():
    meters = Meters()
    for number in range(MAX_MODELS + 5):
        meters.times_of(f"m{number}").total.histogram.observe(1.0)
    assert len(meters.times) == MAX_MODELS + 1
    assert meters.times_of("one more") is meters.times[OTHER]
    assert meters.latency("m0")["total"]["all"]["count"] == 1
    assert meters.latency("never used") is None
