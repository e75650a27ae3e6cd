"""Who gets in, and how many connections and requests each may hold."""

from __future__ import annotations

import pytest

from openclawctl.wire.errors import Denied, Overloaded, Unsupported
from openclawd.admission.connections import ConnectionLimits, check_connection, check_request
from openclawd.admission.identity import Credentials, Principal, Role, check_key, identify

LIMITS = ConnectionLimits(
    max_connections=10,
    reserved_for_admins=2,
    max_connections_per_user=6,
    max_requests_per_connection=3,
    max_requests_per_user=5,
)
ADMIN = Principal("user:root", Role.ADMIN)


def test_root_and_the_daemons_own_user_are_admins() -> None:
    names = {0: "root", 1000: "alice"}
    for uid, name in names.items():
        principal = identify(Credentials(uid, uid, 1), own_uid=1000, names=names)
        assert principal == Principal(f"user:{name}", Role.ADMIN)


def test_nobody_else_gets_in() -> None:
    with pytest.raises(Denied, match="user 1001 may not"):
        identify(Credentials(1001, 1001, 1), own_uid=1000, names={})


def test_a_key_is_refused_rather_than_ignored() -> None:
    check_key(None)
    with pytest.raises(Unsupported):
        check_key("secret")


def test_admins_may_use_the_reserved_connections_and_no_more() -> None:
    check_connection(10, 1, ADMIN, LIMITS)
    with pytest.raises(Overloaded, match="limit is 10"):
        check_connection(11, 1, ADMIN, LIMITS)


def test_one_user_cannot_take_every_connection() -> None:
    check_connection(6, 6, ADMIN, LIMITS)
    with pytest.raises(Overloaded, match="max_connections_per_user"):
        check_connection(7, 7, ADMIN, LIMITS)


def test_requests_are_limited_per_connection_and_per_user() -> None:
    check_request(3, 5, LIMITS)
    with pytest.raises(Overloaded, match="max_requests_per_connection"):
        check_request(4, 4, LIMITS)
    with pytest.raises(Overloaded, match="max_requests_per_user"):
        check_request(1, 6, LIMITS)
