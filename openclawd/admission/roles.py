"""What each operation needs, and which role may do what.

Owns the one table operation → permission, the built-in roles, and what a role of one's own is. A
test fails when an operation of the protocol has no permission here. Pure.

Invariants: what is in no role's operations nobody may do; each built-in role may do all that the
one before it may.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from openclawctl.wire.operations import Op

EVERYTHING: Final = ("*",)
"""The patterns that every model fits."""


class Permission(enum.Enum):
    """What an operation needs. A permission comes with those before it in the built-in roles."""

    LOOK = "look"
    COMPUTE = "compute"
    OPERATE = "operate"
    ADMINISTER = "administer"


PERMISSIONS: Final[dict[Op, Permission]] = {
    Op.PING: Permission.LOOK,
    Op.STATUS: Permission.LOOK,
    Op.MODELS: Permission.LOOK,
    Op.USAGE: Permission.LOOK,
    Op.WHOAMI: Permission.LOOK,
    Op.USAGE_ROWS: Permission.LOOK,
    Op.INSIGHTS: Permission.LOOK,
    Op.BUDGETS: Permission.LOOK,
    Op.SHOW: Permission.LOOK,
    Op.WATCH: Permission.LOOK,
    Op.GENERATE: Permission.COMPUTE,
    Op.CHAT: Permission.COMPUTE,
    Op.EMBED: Permission.COMPUTE,
    Op.CLASSIFY: Permission.COMPUTE,
    Op.RERANK: Permission.COMPUTE,
    # Of one's own, or of anybody's for who sees everybody's.
    Op.REQUESTS_CANCEL: Permission.COMPUTE,
    # These two load a model that is not loaded: more than looking.
    Op.TOKENIZE: Permission.COMPUTE,
    Op.DETOKENIZE: Permission.COMPUTE,
    Op.LOAD: Permission.OPERATE,
    Op.UNLOAD: Permission.OPERATE,
    Op.PULL: Permission.OPERATE,
    Op.MODELS_REMOVE: Permission.OPERATE,
    Op.MODELS_VERIFY: Permission.OPERATE,
    Op.RELOAD: Permission.OPERATE,
    Op.DRAIN: Permission.OPERATE,
    Op.RESUME: Permission.OPERATE,
    Op.KEYS_CREATE: Permission.ADMINISTER,
    Op.KEYS_LIST: Permission.ADMINISTER,
    Op.KEYS_SHOW: Permission.ADMINISTER,
    Op.KEYS_ROTATE: Permission.ADMINISTER,
    Op.KEYS_REVOKE: Permission.ADMINISTER,
    Op.LEDGER_CHECK: Permission.ADMINISTER,
    Op.LEDGER_PRUNE: Permission.ADMINISTER,
    Op.LEDGER_BACKUP: Permission.ADMINISTER,
    Op.AUDIT: Permission.ADMINISTER,
    Op.AUDIT_VERIFY: Permission.ADMINISTER,
}


@dataclass(frozen=True, slots=True)
class Role:
    """What its holders may do, and with which models. `sees_everybody`: other people's usage and
    every model are shown to them, too."""

    name: str
    operations: frozenset[Op]
    models: tuple[str, ...] = EVERYTHING
    sees_everybody: bool = False

    @property
    def strength(self) -> int:
        """How many operations it may do: by this roles are compared."""
        return len(self.operations)


def _built_in(name: str, last: Permission, *, sees_everybody: bool) -> Role:
    order = list(Permission)
    allowed = order[: order.index(last) + 1]
    operations = frozenset(op for op, needed in PERMISSIONS.items() if needed in allowed)
    return Role(name, operations, sees_everybody=sees_everybody)


NOBODY: Final = Role("nobody", frozenset(), ())
READER: Final = _built_in("reader", Permission.LOOK, sees_everybody=False)
USER: Final = _built_in("user", Permission.COMPUTE, sees_everybody=False)
OPERATOR: Final = _built_in("operator", Permission.OPERATE, sees_everybody=True)
ADMIN: Final = _built_in("admin", Permission.ADMINISTER, sees_everybody=True)

BUILT_IN: Final[dict[str, Role]] = {role.name: role for role in (READER, USER, OPERATOR, ADMIN)}


def needed_role(op: Op) -> str:
    """The weakest built-in role that may do it, for a refusal's sentence."""
    return next(role.name for role in BUILT_IN.values() if op in role.operations)


def fits(model: str, patterns: tuple[str, ...]) -> bool:
    """Is a model's name among the patterns? None of them: no model at all."""
    return any(fnmatchcase(model, pattern) for pattern in patterns)
