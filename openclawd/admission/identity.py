"""Who is calling, and whether they may. Pure: what the kernel reported in, a principal out.

Rule until a `security:` section is built (design, "Names, places, defaults"): root and the daemon's
own user are admin, nobody else gets in.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from openclawctl.wire.errors import Denied, Unsupported


class Role(enum.Enum):
    """What a principal may do. Admins may do everything and have reserved connections."""

    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the kernel says about the other end of the socket (`SO_PEERCRED`)."""

    uid: int
    gid: int
    pid: int


@dataclass(frozen=True, slots=True)
class Principal:
    """The one identity a request runs as, e.g. `user:alice` or `key:marketing`. `groups` are names;
    `key` is the name of an API key, or empty."""

    name: str
    role: Role
    tier: str = "default"
    groups: tuple[str, ...] = ()
    key: str = ""

    @property
    def sees_everybody(self) -> bool:
        """May they see other people's requests in reports?"""
        return self.role is Role.ADMIN


def identify(caller: Credentials, *, own_uid: int, names: dict[int, str]) -> Principal:
    """The principal of a caller. `names` maps user ids to names. Raises `Denied`."""
    name = names.get(caller.uid, str(caller.uid))
    if caller.uid not in (0, own_uid):
        raise Denied(
            f"user {name} may not use this daemon, which serves root and uid {own_uid} only",
            hint="run the command as the user that the daemon runs as, or as root",
        )
    return Principal(f"user:{name}", Role.ADMIN)


def check_key(key: str | None) -> None:
    """Refuse an API key: a caller that sends one expects it to matter."""
    if key is not None:
        raise Unsupported(
            "API keys are not built yet in this version",
            hint="leave the key out; the kernel tells the daemon who is calling",
        )
