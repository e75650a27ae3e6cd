"""Who is calling, and what they may do. Pure: what the kernel or a key says in, a principal out.

Owns which grant of the `security:` section a caller has, and the sentences of refusals. What a role
may do is `roles.py`'s, which keys there are `keys.py`'s.

Which grant: root and the daemon's own user are admins, whatever is configured. Anybody else has
their own entry under `users`, and without one the strongest of their groups' entries: that of the
role with the most operations, the first in the file of equal ones. One entry counts as a whole; two
never add up. Without any, nobody gets in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openclawctl.wire.errors import Denied
from openclawd.admission.roles import (
    ADMIN,
    BUILT_IN,
    EVERYTHING,
    NOBODY,
    Role,
    fits,
    needed_role,
)
from openclawd.admission.subjects import Subject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openclawctl.wire.operations import Op

DEFAULT_TIER = "default"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the kernel says about the other end of the socket: `SO_PEERCRED`, and the caller's
    supplementary groups, `SO_PEERGROUPS`."""

    uid: int
    gid: int
    pid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """The other end of the socket with its names. `groups` are (number, name), the primary one
    first. What has no name has its number as one."""

    uid: int
    name: str
    groups: tuple[tuple[int, str], ...] = ()

    @property
    def group_names(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.groups)


@dataclass(frozen=True, slots=True)
class Grant:
    """What one entry of `security.users`, `security.groups` or a key gives."""

    role: Role
    tier: str = DEFAULT_TIER
    models: tuple[str, ...] = EVERYTHING


@dataclass(frozen=True, slots=True)
class Policy:
    """The `security:` section. `users` and `groups` are by name, or by number in digits."""

    roles: Mapping[str, Role] = field(default_factory=lambda: dict(BUILT_IN))
    users: Mapping[str, Grant] = field(default_factory=dict)
    groups: Mapping[str, Grant] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Principal:
    """The one identity a request runs as, e.g. `user:alice` or `key:marketing`. `groups` are names;
    `key` is the name of an API key, or empty; `models` are patterns, beside those of the role."""

    name: str
    role: Role
    tier: str = DEFAULT_TIER
    groups: tuple[str, ...] = ()
    key: str = ""
    models: tuple[str, ...] = EVERYTHING

    @property
    def is_admin(self) -> bool:
        """Admins have connections that are kept for them, and manage keys."""
        return self.role == ADMIN

    @property
    def sees_everybody(self) -> bool:
        """Is other people's usage shown to it? Others see their own rows only."""
        return self.role.sees_everybody

    def subject(self, **more: str) -> Subject:
        """As rules see it. `more` is what a request adds: app, session, model, operation."""
        return Subject(self.name, self.groups, self.key, self.tier, **more)

    def may(self, op: Op) -> bool:
        return op in self.role.operations

    def may_use(self, model: str) -> bool:
        """May it compute with a model of this name (not an alias)?"""
        return fits(model, self.role.models) and fits(model, self.models)

    def may_see(self, model: str) -> bool:
        """Is a model of this name shown to it?"""
        return self.sees_everybody or self.may_use(model)


def identify(caller: Caller, policy: Policy, *, own_uid: int) -> Principal:
    """The principal of a caller without a key; one that no entry names has the role `nobody`."""
    grant = _grant_of(caller, policy)
    if caller.uid in (0, own_uid):
        grant = Grant(ADMIN, grant.tier if grant else DEFAULT_TIER)
    grant = grant or Grant(NOBODY, models=())
    return Principal(
        f"user:{caller.name}",
        grant.role,
        grant.tier,
        caller.group_names,
        models=grant.models,
    )


def _grant_of(caller: Caller, policy: Policy) -> Grant | None:
    own = _entry(policy.users, caller.uid, caller.name)
    if own is not None:
        return own
    of_groups = [_entry(policy.groups, gid, name) for gid, name in caller.groups]
    found = [grant for grant in of_groups if grant is not None]
    in_file = list(policy.groups.values())
    return max(found, key=lambda grant: (grant.role.strength, -in_file.index(grant)), default=None)


def _entry(entries: Mapping[str, Grant], number: int, name: str) -> Grant | None:
    """Digits in the configuration are a number, never the name of somebody who chose digits."""
    by_name = None if name.isdecimal() else entries.get(name)
    return by_name or entries.get(str(number))


def check_known(principal: Principal) -> None:
    """Refuse a caller whom no entry names. Raises `Denied`."""
    if principal.role == NOBODY:
        raise Denied(
            f"{principal.name.removeprefix('user:')} may not use this daemon",
            hint="an administrator can name the user or one of its groups under `security:`, or "
            "make an API key with `openclawctl keys create`",
        )


def check_operation(principal: Principal, op: Op) -> None:
    """The one place where an operation is allowed or refused. Raises `Denied`."""
    if not principal.may(op):
        raise Denied(
            f"{principal.name} may not use {op.value!r}: its role is {principal.role.name}",
            hint=f"the role {needed_role(op)} may; `openclawctl whoami` shows what you may do",
        )


def check_model(principal: Principal, model: str) -> None:
    """May it use the model of this name (not an alias), whether or not there is one? Raises
    `Denied`."""
    if not principal.may_use(model):
        raise Denied(
            f"{principal.name} may not use the model {model!r}",
            hint="`openclawctl models` lists those that you may use",
        )
