"""`security:`: which users and groups may do what, with which models, and own roles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator, StringConstraints

from openclawctl.wire.fields import suggestion
from openclawctl.wire.operations import Op
from openclawd.config import values
from openclawd.config.errors import shown
from openclawd.config.keys import Section, key
from openclawd.config.matching import Patterns  # noqa: TC001 - pydantic looks it up

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

DEFAULT_TIER: Final = "default"
BUILT_IN_ROLES: Final = ("reader", "user", "operator", "admin")
RESERVED_ROLES: Final = (*BUILT_IN_ROLES, "nobody")
DEFAULT_SOCKET_GROUP: Final = "openclaw"
_ONLY_ADMINS: Final = "keys."
"""Beginning of the operations that no own role may have: who makes keys can make an admin's."""

RoleName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$", max_length=256)
]
Account = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _models(meaning: str) -> Any:
    return key(
        ["*"],
        meaning=meaning,
        allowed="a pattern such as smollm2 or qwen*, or a list of patterns; an empty list is none",
        default_text="all",
    )


class GrantConfig(Section):
    """What one user, or the members of one group, may do."""

    role: str = key(
        ...,
        meaning="What they may do.",
        allowed="reader, user, operator, admin, or a name of security.roles",
        default_text="(required)",
    )
    tier: str = key(
        DEFAULT_TIER,
        meaning="How urgent their requests are: a name of `tiers`.",
        allowed="default, or a name of tiers",
    )
    models: Patterns = _models("Models that they may use, by their own names, not by aliases.")


class RoleConfig(Section):
    """A role beside the built-in ones."""

    operations: list[str] = key(
        ...,
        meaning="What its holders may do. The operations on API keys are for admins alone.",
        allowed="a list of operations of docs/protocol.md, such as [ping, status, usage]",
        default_text="(required)",
    )
    models: Patterns = _models("Models that they may use; their own entry may allow fewer.")
    everybody: bool = key(
        default=False,
        meaning="Show them everybody's usage and all models, and not only their own.",
        allowed="true or false",
    )


_ACCOUNTS: Final = "a map of names, or of numeric ids in quotes, to grants"


class SecurityConfig(Section):
    """Who may do what. Root and the daemon's own user are admins in any case."""

    users: Annotated[dict[Account, GrantConfig], BeforeValidator(values.empty_if_nil)] = key(
        {},
        meaning="Users by name. A user's own entry counts instead of those of their groups.",
        allowed=_ACCOUNTS,
    )
    groups: Annotated[dict[Account, GrantConfig], BeforeValidator(values.empty_if_nil)] = key(
        {},
        meaning="Groups by name. Of several, the one counts whose role has the most operations.",
        allowed=_ACCOUNTS,
    )
    roles: Annotated[dict[RoleName, RoleConfig], BeforeValidator(values.empty_if_nil)] = key(
        {}, meaning="Roles of your own.", allowed="a map of names to roles"
    )
    socket_group: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = key(
        None,
        meaning="The group that may connect to the socket, whose mode is 0660.",
        allowed="the name of a group",
        default_text="`openclaw` if there is such a group and this section sets anything",
    )

    def wanted_socket_group(self) -> tuple[str, bool]:
        """The group of the socket, empty to leave it, and whether the daemon may do without."""
        if self.socket_group is not None:
            return self.socket_group, False
        return (DEFAULT_SOCKET_GROUP if self.model_fields_set else ""), True

    def mistakes(
        self, *, tiers: Collection[str], aliases: Mapping[str, str]
    ) -> Iterator[tuple[tuple[str, ...], str]]:
        """What single keys cannot show, with its path below `security`."""
        for name, role in self.roles.items():
            yield from ((("roles", name, *key), why) for key, why in _wrong_role(name, role))
        roles = [*BUILT_IN_ROLES, *self.roles]
        known_tiers = list(dict.fromkeys([DEFAULT_TIER, *tiers]))
        lists = [(("roles", name), role.models) for name, role in self.roles.items()]
        for section, entries in (("users", self.users), ("groups", self.groups)):
            for name, grant in entries.items():
                lists.append(((section, name), grant.models))
                if grant.role not in roles:
                    yield (section, name, "role"), _unknown("role", grant.role, roles)
                if grant.tier not in known_tiers:
                    yield (section, name, "tier"), _unknown("tier", grant.tier, known_tiers)
        for path, patterns in lists:
            yield from (
                (
                    (*path, "models"),
                    f"found the alias {shown(each)}; name the model, {aliases[each]}",
                )
                for each in patterns
                if each in aliases
            )
        for name in {"root", "0"} & self.users.keys():
            if self.users[name].role != "admin":
                yield ("users", name, "role"), "root is an admin in any case; write admin"


def _wrong_role(name: str, role: RoleConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    if name in RESERVED_ROLES:
        yield (), "this is the name of a built-in role; choose another"
    known = [op.value for op in Op if not op.value.startswith(_ONLY_ADMINS)]
    for operation in role.operations:
        if operation.startswith(_ONLY_ADMINS):
            yield ("operations",), f"found {shown(operation)}, which is for admins alone"
        elif operation not in known:
            yield ("operations",), _unknown("operation", operation, known)


def _unknown(what: str, name: str, known: list[str]) -> str:
    return f"found {shown(name)}, which is no {what}; allowed: {', '.join(known)}" + suggestion(
        name, known
    )
