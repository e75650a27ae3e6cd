"""How many connections and requests a caller may hold. Pure: counts in, a refusal out."""

from __future__ import annotations

from dataclasses import dataclass

from openclawctl.wire.errors import Overloaded

RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`reserved_for_admins` of the `max_connections` are kept for admins, so that one who wants to
    look can still get in when a program has used up the rest."""

    max_connections: int
    reserved_for_admins: int
    max_connections_per_user: int
    max_requests_per_connection: int
    max_requests_per_user: int


def check_connection(
    num_connections: int, num_of_user: int, limits: ConnectionLimits, *, is_admin: bool
) -> None:
    """May one more connection stay? Both numbers count it already. Raises `Overloaded`."""
    allowed = limits.max_connections - (0 if is_admin else limits.reserved_for_admins)
    if num_connections > allowed:
        raise Overloaded(
            f"the daemon holds {num_connections - 1} connections; the limit is {allowed}",
            hint="close connections that are not used, or raise resource_limits.max_connections",
            retry_after_s=RETRY_AFTER_S,
        )
    if num_of_user > limits.max_connections_per_user:
        raise Overloaded(
            f"you hold {num_of_user - 1} connections; the limit is "
            f"{limits.max_connections_per_user} (resource_limits.max_connections_per_user)",
            hint="send many requests over one connection; the client library does",
            retry_after_s=RETRY_AFTER_S,
        )


def check_request(num_on_connection: int, num_of_user: int, limits: ConnectionLimits) -> None:
    """May one more request be open? Both numbers count it already."""
    if num_on_connection > limits.max_requests_per_connection:
        raise Overloaded(
            f"this connection has {num_on_connection - 1} open requests; the limit is "
            f"{limits.max_requests_per_connection} (resource_limits.max_requests_per_connection)",
            hint="wait for some to end",
            retry_after_s=RETRY_AFTER_S,
        )
    if num_of_user > limits.max_requests_per_user:
        raise Overloaded(
            f"you have {num_of_user - 1} open requests; the limit is "
            f"{limits.max_requests_per_user} (resource_limits.max_requests_per_user)",
            hint="wait for some to end",
            retry_after_s=RETRY_AFTER_S,
        )
