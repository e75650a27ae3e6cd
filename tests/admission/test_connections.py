"""How many connections and requests each caller may hold."""

from __future__ import annotations

import pytest

from openclawctl.wire.errors import Overloaded
from openclawd.admission.connections import ConnectionLimits, check_connection, check_request

LIMITS = ConnectionLimits(
    max_connections=10,
    reserved_for_admins=2,
    max_connections_per_user=6,
    max_requests_per_connection=3,
    max_requests_per_user=5,
)


def test_admins_may_use_the_reserved_connections_and_no_more() -> None:
    check_connection(10, 1, LIMITS, is_admin=True)
    with pytest.raises(Overloaded, match="limit is 10"):
        check_connection(11, 1, LIMITS, is_admin=True)
    check_connection(8, 1, LIMITS, is_admin=False)
    with pytest.raises(Overloaded, match="limit is 8"):
        check_connection(9, 1, LIMITS, is_admin=False)


def test_one_user_cannot_take_every_connection() -> None:
    check_connection(6, 6, LIMITS, is_admin=True)
    with pytest.raises(Overloaded, match="max_connections_per_user"):
        check_connection(7, 7, LIMITS, is_admin=True)


def test_requests_are_limited_per_connection_and_per_user() -> None:
    check_request(3, 5, LIMITS)
    with pytest.raises(Overloaded, match="max_requests_per_connection"):
        check_request(4, 4, LIMITS)
    with pytest.raises(Overloaded, match="max_requests_per_user"):
        check_request(1, 6, LIMITS)
