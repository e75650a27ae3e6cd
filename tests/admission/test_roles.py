"""The table operation → permission, and what the built-in roles may do."""

from __future__ import annotations

from itertools import pairwise

import pytest

from openclawctl.wire.errors import Denied
from openclawctl.wire.operations import Op
from openclawd.admission.identity import Principal, check_operation
from openclawd.admission.roles import (
    ADMIN,
    BUILT_IN,
    NOBODY,
    OPERATOR,
    PERMISSIONS,
    READER,
    USER,
    Role,
    fits,
    needed_role,
)

LEAST_ROLE = {
    "ping": "reader",
    "status": "reader",
    "models": "reader",
    "usage": "reader",
    "whoami": "reader",
    "budgets": "reader",
    "generate": "user",
    "chat": "user",
    "embed": "user",
    "classify": "user",
    "rerank": "user",
    "requests.cancel": "user",
    "tokenize": "user",
    "detokenize": "user",
    "load": "operator",
    "unload": "operator",
    "pull": "operator",
    "models.remove": "operator",
    "models.verify": "operator",
    "reload": "operator",
    "drain": "operator",
    "resume": "operator",
    "keys.create": "admin",
    "keys.list": "admin",
    "keys.show": "admin",
    "keys.rotate": "admin",
    "keys.revoke": "admin",
    "usage.rows": "reader",
    "insights": "reader",
    "show": "reader",
    "watch": "reader",
    "ledger.check": "admin",
    "ledger.prune": "admin",
    "ledger.backup": "admin",
    "audit": "admin",
    "audit.verify": "admin",
}
"""Written out once more: a slip in the table of the code is noticed here."""

ORDER = [NOBODY, READER, USER, OPERATOR, ADMIN]


def test_every_operation_has_a_permission_and_is_in_this_table() -> None:
    assert set(PERMISSIONS) == set(Op)
    assert set(LEAST_ROLE) == {op.value for op in Op}


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("role", ORDER, ids=lambda role: role.name)
def test_every_operation_with_every_role(op: Op, role: Role) -> None:
    names = [each.name for each in ORDER]
    is_allowed = names.index(role.name) >= names.index(LEAST_ROLE[op.value])
    principal = Principal("user:alice", role)
    assert principal.may(op) is is_allowed
    if is_allowed:
        check_operation(principal, op)
    else:
        with pytest.raises(Denied, match=f"'{op.value}': its role is {role.name}") as caught:
            check_operation(principal, op)
        assert f"the role {LEAST_ROLE[op.value]} may" in caught.value.hint


def test_each_role_includes_the_one_before() -> None:
    for weaker, stronger in pairwise(ORDER):
        assert weaker.operations < stronger.operations
        assert weaker.strength < stronger.strength
    assert list(BUILT_IN) == [role.name for role in ORDER[1:]]
    assert {op: needed_role(op) for op in Op} == {Op(k): v for k, v in LEAST_ROLE.items()}


def test_whose_usage_each_role_sees() -> None:
    assert [role.name for role in ORDER if role.sees_everybody] == ["operator", "admin"]


def test_patterns_of_models() -> None:
    assert fits("qwen3-8b", ("smollm2", "qwen*"))
    assert not fits("qwen3-8b", ("smollm2",))
    assert not fits("QWEN", ("qwen*",))
    assert fits("anything", ("*",))
    assert not fits("anything", ())
