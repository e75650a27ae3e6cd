"""The table of the design, row by row, and that no code is without a class."""

import pytest

from openclawctl.wire import errors
from openclawctl.wire.errors import (
    CODES,
    EXIT_BY_KIND,
    Code,
    FailedProblem,
    Kind,
    OpenclawError,
    Problem,
    problem_from_wire,
)

NO, YES, RESET = "no", "yes", "after the reset"
TABLE = {
    "invalid-request": ("request", 2, NO),
    "unsupported": ("request", 1, NO),
    "not-found": ("request", 4, NO),
    "prompt-too-long": ("limit", 5, NO),
    "limit-exceeded": ("limit", 5, NO),
    "budget-exceeded": ("limit", 5, RESET),
    "denied": ("denied", 5, NO),
    "rate-limited": ("busy", 6, YES),
    "overloaded": ("busy", 6, YES),
    "model-loading": ("busy", 6, YES),
    "no-memory": ("busy", 6, YES),
    "shutting-down": ("busy", 6, YES),
    "draining": ("busy", 6, YES),
    "deadline-exceeded": ("timeout", 7, NO),
    "cancelled": ("cancelled", 130, NO),
    "model-failed": ("failed", 1, NO),
    "slow-consumer": ("failed", 1, NO),
    "unavailable": ("failed", 1, NO),
    "worker-died": ("failed", 1, YES),
    "protocol-error": ("bug", 1, NO),
    "internal": ("bug", 1, NO),
}


def test_the_table_is_the_designs():
    found = {
        code.value: (info.kind.value, info.exit_status, info.retry.value)
        for code, info in CODES.items()
    }
    assert found == TABLE
    assert set(CODES) == set(Code)


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_class_of_its_name(code):
    problem = problem_from_wire(code.value, CODES[code].kind.value, "why")
    cls = type(problem)
    name = "".join(part.capitalize() for part in code.value.split("-"))
    assert cls.__name__ == name
    assert getattr(errors, name) is cls
    assert problem.code == code.value
    assert problem.kind is CODES[code].kind
    assert problem.exit_status == CODES[code].exit_status
    assert problem.retryable is (CODES[code].retry.value == YES)
    assert isinstance(problem, OpenclawError)


@pytest.mark.parametrize("kind", list(Kind))
def test_an_unknown_code_becomes_the_class_of_its_kind(kind):
    problem = problem_from_wire("from-the-future", kind.value, "why", hint="what", retry_after_s=1)
    assert type(problem).__name__ == f"{kind.value.capitalize()}Problem"
    assert problem.code == "from-the-future"
    assert problem.kind is kind
    assert problem.exit_status == EXIT_BY_KIND[kind]
    assert problem.retry_after_s == 1


def test_an_unknown_kind_counts_as_failed():
    problem = problem_from_wire("from-the-future", "weird", "why")
    assert type(problem) is FailedProblem
    assert problem.as_dict()["code"] == "from-the-future"


def test_the_text_of_a_problem():
    assert str(Problem("it broke")) == "it broke"
    assert str(Problem("it broke", hint="mend it")) == "it broke (mend it)"


def test_the_fields_of_a_problem():
    problem = errors.Overloaded("full", hint="wait", retry_after_s=0.5)
    assert problem.as_dict() == {
        "code": "overloaded",
        "kind": "busy",
        "message": "full",
        "hint": "wait",
        "retry_after_s": 0.5,
    }
    assert "retry_after_s" not in errors.Denied("no").as_dict()


def test_an_unreachable_daemon_is_the_clients_own_error():
    assert errors.DaemonUnreachable("no socket").exit_status == 3
    assert errors.DaemonUnreachable.code not in TABLE
    assert not issubclass(errors.DaemonUnreachable, Problem)
