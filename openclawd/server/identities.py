"""Who the daemon's callers are: the configuration's grants, the names, and the API keys.

Owns the policy and the keys in memory, how a connection becomes a principal, and whether its key is
still good. What the rules are is admission's.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from openclawctl.wire.errors import Denied
from openclawctl.wire.operations import Op
from openclawd.admission.identity import Grant, Policy, Principal, check_known, identify
from openclawd.admission.keys import KeyRegistry
from openclawd.admission.roles import BUILT_IN, NOBODY, Role
from openclawd.ledger.keys import note_key_used

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from openclawd.admission.identity import Caller
    from openclawd.admission.keys import ApiKey
    from openclawd.config import Config
    from openclawd.config.security import GrantConfig, SecurityConfig
    from openclawd.ledger import Ledger


class Identities:
    """The grants of one configuration, and the keys of one ledger. Called on the loop."""

    def __init__(self, config: Config, keys: Iterable[ApiKey], ledger: Ledger) -> None:
        self.apply(config)
        self.keys = KeyRegistry(keys)
        self._ledger = ledger
        self._own_uid = os.geteuid()

    def apply(self, config: Config) -> None:
        """These are the grants from now on. Who has a connection is to be looked at again."""
        self.policy = policy_of(config.security)
        self.tiers = frozenset(["default", *config.tiers])

    def is_surely_admin(self, uid: int) -> bool:
        """Is it root or the daemon's own user? No name has to be known for that."""
        return uid in (0, self._own_uid)

    def of_caller(self, caller: Caller) -> Principal:
        """Whom the kernel names; perhaps one that may do nothing."""
        return identify(caller, self.policy, own_uid=self._own_uid)

    def of_hello(self, known: Principal, key: str | None) -> tuple[Principal, str]:
        """Whom a connection speaks for once `hello` has come, and the prefix of its key, empty
        without one. Raises `Denied`."""
        if key is None:
            check_known(known)
            return known, ""
        now = time.time()
        prefix = self.keys.prefix_of(key, now=now)
        return self.keys.principal_of(prefix, self.policy, now=now), prefix

    def of_key(self, known: Principal, prefix: str) -> Principal:
        """Whom the key of an open connection makes of it now; perhaps one that may do nothing."""
        try:
            return self.keys.principal_of(prefix, self.policy, now=time.time())
        except Denied:
            return replace(known, role=NOBODY, models=())

    def check_key(self, prefix: str) -> None:
        """Is the key of an open connection still good? Notes that it is used. Raises `Denied`."""
        now = time.time()
        self.keys.check(prefix, now=now)
        if (name := self.keys.note_use(prefix, now=now)) is not None:
            self._ledger.write_later(lambda database: note_key_used(database, name, now))

    def whoami(self, principal: Principal, key_prefix: str) -> dict[str, Any]:
        """What an identity is and may do, for `whoami`."""
        return {
            "principal": principal.name,
            "role": principal.role.name,
            "tier": principal.tier,
            "groups": list(principal.groups),
            "operations": sorted(op.value for op in principal.role.operations),
            "everybody": principal.sees_everybody,
            "key": self._own_key(key_prefix),
        }

    def _own_key(self, prefix: str) -> dict[str, Any] | None:
        """What its holder may know of a key."""
        if not prefix:
            return None
        key = self.keys.check(prefix, now=time.time())
        return {"name": key.name, "prefix": prefix, "expires_at": key.expires_at}


def policy_of(security: SecurityConfig) -> Policy:
    """The configuration's section as admission takes it; a checked one, so every name is known."""
    roles = dict(BUILT_IN)
    for name, role in security.roles.items():
        roles[name] = Role(
            name,
            frozenset(map(Op, role.operations)),
            tuple(role.models),
            sees_everybody=role.everybody,
        )
    return Policy(roles, _grants(security.users, roles), _grants(security.groups, roles))


def _grants(entries: Mapping[str, GrantConfig], roles: Mapping[str, Role]) -> dict[str, Grant]:
    return {
        name: Grant(roles[entry.role], entry.tier, tuple(entry.models))
        for name, entry in entries.items()
    }
