"""Since when a model is wanted."""

from __future__ import annotations

from openclawd.fleet.interest import Interest


def test_it_is_wanted_since_the_first_of_those_who_wait_came() -> None:
    interest = Interest()
    assert interest.since is None
    interest.begin_to_wait(3.0)
    interest.begin_to_wait(5.0)
    assert (interest.since, interest.is_polite) == (3.0, False)
    interest.end_to_wait()
    interest.end_to_wait()
    assert interest.since is None
    interest.begin_to_wait(9.0)
    assert interest.since == 9.0


def test_nobody_makes_way_for_a_wish_that_no_request_shares() -> None:
    interest = Interest()
    interest.wish(1.0)
    assert (interest.since, interest.is_polite, interest.has_wish) == (1.0, True, True)
    interest.begin_to_wait(2.0)
    assert (interest.since, interest.is_polite) == (1.0, False)
    interest.forget_wish()
    assert (interest.since, interest.has_wish) == (2.0, False)
