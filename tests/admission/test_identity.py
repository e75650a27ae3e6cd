"""Which grant a caller has, and what they may see and use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawctl.wire.errors import Denied
from openclawctl.wire.operations import Op
from openclawd.admission.identity import (
    Caller,
    Grant,
    Policy,
    check_known,
    check_model,
    identify,
)
from openclawd.admission.roles import ADMIN, NOBODY, OPERATOR, READER, USER, Role

OWN_UID = 900
AUDITOR = Role("auditor", frozenset({Op.USAGE}), ())


def caller(uid: int = 1000, name: str = "alice", *groups: tuple[int, str]) -> Caller:
    return Caller(uid, name, groups)


def role_of(who: Caller, policy: Policy) -> Role:
    return identify(who, policy, own_uid=OWN_UID).role


def test_without_a_section_root_and_the_daemons_own_user_are_admins_and_nobody_else() -> None:
    assert role_of(caller(0, "root"), Policy()) == ADMIN
    assert role_of(caller(OWN_UID, "openclawd"), Policy()) == ADMIN
    stranger = identify(caller(), Policy(), own_uid=OWN_UID)
    assert stranger.role == NOBODY
    with pytest.raises(Denied, match=r"^alice may not use this daemon"):
        check_known(stranger)


def test_root_stays_admin_of_all_models_and_may_have_a_tier() -> None:
    policy = Policy(users={"root": Grant(READER, "gold", ("a",)), "900": Grant(READER)})
    root = identify(caller(0, "root"), policy, own_uid=OWN_UID)
    assert (root.role, root.tier, root.models) == (ADMIN, "gold", ("*",))
    assert role_of(caller(OWN_UID, "openclawd"), policy) == ADMIN


def test_an_own_entry_counts_and_not_the_groups() -> None:
    policy = Policy(
        users={"alice": Grant(READER, "slow", ("a",))}, groups={"wheel": Grant(ADMIN, "gold")}
    )
    alice = identify(caller(1000, "alice", (10, "wheel")), policy, own_uid=OWN_UID)
    assert (alice.role, alice.tier, alice.models) == (READER, "slow", ("a",))
    assert role_of(caller(1001, "bob", (10, "wheel")), policy) == ADMIN


def test_of_several_groups_the_strongest_role_counts_whole() -> None:
    policy = Policy(
        groups={
            "audit": Grant(AUDITOR, "gold"),
            "staff": Grant(USER, "silver", ("a",)),
            "guests": Grant(USER, "bronze"),
            "look": Grant(READER),
        }
    )
    everything = ((4, "look"), (3, "guests"), (1, "audit"), (2, "staff"))
    alice = identify(caller(1000, "alice", *everything), policy, own_uid=OWN_UID)
    assert (alice.role, alice.tier, alice.models) == (USER, "silver", ("a",))  # first in the file
    assert alice.groups == ("look", "guests", "audit", "staff")


def test_numbers_name_ids_and_nobody_takes_them_by_name() -> None:
    policy = Policy(users={"1000": Grant(USER)}, groups={"50": Grant(OPERATOR)})
    assert role_of(caller(1000, "alice"), policy) == USER
    assert role_of(caller(1001, "1000"), policy) == NOBODY
    assert role_of(caller(1001, "bob", (50, "ops")), policy) == OPERATOR
    assert role_of(caller(1001, "bob", (51, "50")), policy) == NOBODY


@given(st.permutations([(1, "a"), (2, "b"), (3, "c"), (4, "d")]))
def test_the_order_of_a_callers_groups_changes_nothing(groups: list[tuple[int, str]]) -> None:
    roles = [READER, OPERATOR, USER, OPERATOR]
    entries = {name: Grant(role, name) for name, role in zip("abcd", roles, strict=True)}
    alice = identify(caller(1000, "alice", *groups), Policy(groups=entries), own_uid=OWN_UID)
    assert (alice.role, alice.tier) == (OPERATOR, "b")


def test_models_must_fit_the_grant_and_the_role() -> None:
    small = Role("small", frozenset({Op.CHAT}), ("small-*",))
    policy = Policy(users={"alice": Grant(small, models=("*-1", "big-2"))})
    alice = identify(caller(), policy, own_uid=OWN_UID)
    check_model(alice, "small-1")
    for name in ("small-2", "big-1", "big-2"):
        with pytest.raises(Denied, match=f"may not use the model '{name}'"):
            check_model(alice, name)


def test_operators_see_every_model_and_others_their_own() -> None:
    grants = {"op": Grant(OPERATOR, models=("a",)), "us": Grant(USER, models=("a",))}
    policy = Policy(users=grants)
    operator, user = (
        identify(caller(uid, name), policy, own_uid=OWN_UID) for uid, name in ((1, "op"), (2, "us"))
    )
    assert (operator.may_see("b"), operator.may_use("b")) == (True, False)
    assert (user.may_see("a"), user.may_see("b")) == (True, False)
    assert (operator.sees_everybody, user.sees_everybody) == (True, False)
