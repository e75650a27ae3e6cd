"""The closed table of error codes and the exception classes made from it.

Owns: every code that may stand in an `error` message, its kind, its exit status and whether asking
again can help. The same classes are raised in the daemon, carried over the wire, and raised again
in the client, so nothing is translated twice. `docs/protocol.md` prints this table; a test
compares.

Invariants: one class per code; a code this side does not know becomes the class of its kind.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, ClassVar, Final


class Kind(enum.Enum):
    """What sort of failure a code is: what a program goes by when it does not know the code."""

    REQUEST = "request"
    LIMIT = "limit"
    DENIED = "denied"
    BUSY = "busy"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    FAILED = "failed"
    BUG = "bug"


class Code(enum.Enum):
    """Every error code of protocol version 1."""

    INVALID_REQUEST = "invalid-request"
    UNSUPPORTED = "unsupported"
    NOT_FOUND = "not-found"
    PROMPT_TOO_LONG = "prompt-too-long"
    LIMIT_EXCEEDED = "limit-exceeded"
    BUDGET_EXCEEDED = "budget-exceeded"
    DENIED = "denied"
    RATE_LIMITED = "rate-limited"
    OVERLOADED = "overloaded"
    MODEL_LOADING = "model-loading"
    NO_MEMORY = "no-memory"
    SHUTTING_DOWN = "shutting-down"
    DRAINING = "draining"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    CANCELLED = "cancelled"
    MODEL_FAILED = "model-failed"
    SLOW_CONSUMER = "slow-consumer"
    UNAVAILABLE = "unavailable"
    WORKER_DIED = "worker-died"
    PROTOCOL_ERROR = "protocol-error"
    INTERNAL = "internal"


class Retry(enum.Enum):
    """May a client send the same request again by itself?"""

    NO = "no"
    AFTER_RESET = "after the reset"
    YES = "yes"


@dataclass(frozen=True, slots=True)
class CodeInfo:
    """One row of the table. `exit_status` is what `openclawctl` exits with."""

    kind: Kind
    exit_status: int
    retry: Retry


CODES: Final[dict[Code, CodeInfo]] = {
    Code.INVALID_REQUEST: CodeInfo(Kind.REQUEST, 2, Retry.NO),
    Code.UNSUPPORTED: CodeInfo(Kind.REQUEST, 1, Retry.NO),
    Code.NOT_FOUND: CodeInfo(Kind.REQUEST, 4, Retry.NO),
    Code.PROMPT_TOO_LONG: CodeInfo(Kind.LIMIT, 5, Retry.NO),
    Code.LIMIT_EXCEEDED: CodeInfo(Kind.LIMIT, 5, Retry.NO),
    Code.BUDGET_EXCEEDED: CodeInfo(Kind.LIMIT, 5, Retry.AFTER_RESET),
    Code.DENIED: CodeInfo(Kind.DENIED, 5, Retry.NO),
    Code.RATE_LIMITED: CodeInfo(Kind.BUSY, 6, Retry.YES),
    Code.OVERLOADED: CodeInfo(Kind.BUSY, 6, Retry.YES),
    Code.MODEL_LOADING: CodeInfo(Kind.BUSY, 6, Retry.YES),
    Code.NO_MEMORY: CodeInfo(Kind.BUSY, 6, Retry.YES),
    Code.SHUTTING_DOWN: CodeInfo(Kind.BUSY, 6, Retry.YES),
    Code.DRAINING: CodeInfo(Kind.BUSY, 6, Retry.YES),
    Code.DEADLINE_EXCEEDED: CodeInfo(Kind.TIMEOUT, 7, Retry.NO),
    Code.CANCELLED: CodeInfo(Kind.CANCELLED, 130, Retry.NO),
    Code.MODEL_FAILED: CodeInfo(Kind.FAILED, 1, Retry.NO),
    Code.SLOW_CONSUMER: CodeInfo(Kind.FAILED, 1, Retry.NO),
    Code.UNAVAILABLE: CodeInfo(Kind.FAILED, 1, Retry.NO),
    Code.WORKER_DIED: CodeInfo(Kind.FAILED, 1, Retry.YES),
    Code.PROTOCOL_ERROR: CodeInfo(Kind.BUG, 1, Retry.NO),
    Code.INTERNAL: CodeInfo(Kind.BUG, 1, Retry.NO),
}

EXIT_BY_KIND: Final[dict[Kind, int]] = {
    Kind.REQUEST: 2,
    Kind.LIMIT: 5,
    Kind.DENIED: 5,
    Kind.BUSY: 6,
    Kind.TIMEOUT: 7,
    Kind.CANCELLED: 130,
    Kind.FAILED: 1,
    Kind.BUG: 1,
}
EXIT_FAILED: Final = EXIT_BY_KIND[Kind.FAILED]
EXIT_USAGE: Final = EXIT_BY_KIND[Kind.REQUEST]
EXIT_INTERRUPTED: Final = EXIT_BY_KIND[Kind.CANCELLED]
EXIT_UNREACHABLE: Final = 3


class OpenclawError(Exception):
    """Everything the client library raises on purpose, and every refusal of the daemon.

    `code` is the string of the wire, `message` says what happened to which model or request,
    `hint` what to do next (may be empty), `retry_after_s` when asking again makes sense (or None).
    """

    code: str = "internal"
    kind: Kind = Kind.BUG
    exit_status: int = 1

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def as_dict(self) -> dict[str, Any]:
        """The fields of an `error` message, as `--json` output and the wire show them."""
        fields: dict[str, Any] = {
            "code": self.code,
            "kind": self.kind.value,
            "message": self.message,
            "hint": self.hint,
        }
        if self.retry_after_s is not None:
            fields["retry_after_s"] = self.retry_after_s
        return fields


class DaemonUnreachable(OpenclawError):
    """No connection to the daemon: the client's own failure, so its code is never on the wire."""

    code = "unreachable"
    kind = Kind.FAILED
    exit_status = EXIT_UNREACHABLE


class Problem(OpenclawError):
    """An expected failure with a code of the table; this is what an `error` message carries."""

    retryable: bool = False


class RequestProblem(Problem):
    """The request cannot be served as it was written."""

    kind = Kind.REQUEST
    exit_status = EXIT_BY_KIND[Kind.REQUEST]


class LimitProblem(Problem):
    """A limit stands in the way; the message names it, the value asked and the value allowed."""

    kind = Kind.LIMIT
    exit_status = EXIT_BY_KIND[Kind.LIMIT]


class DeniedProblem(Problem):
    """The caller may not do this."""

    kind = Kind.DENIED
    exit_status = EXIT_BY_KIND[Kind.DENIED]


class BusyProblem(Problem):
    """Not now: the same request may succeed after `retry_after_s`."""

    kind = Kind.BUSY
    exit_status = EXIT_BY_KIND[Kind.BUSY]
    retryable = True


class TimeoutProblem(Problem):
    """The time the request was given is over."""

    kind = Kind.TIMEOUT
    exit_status = EXIT_BY_KIND[Kind.TIMEOUT]


class CancelledProblem(Problem):
    """The request was cancelled before it produced anything."""

    kind = Kind.CANCELLED
    exit_status = EXIT_BY_KIND[Kind.CANCELLED]


class FailedProblem(Problem):
    """The daemon, a worker or the disk failed; the request itself was fine."""

    kind = Kind.FAILED
    exit_status = EXIT_BY_KIND[Kind.FAILED]


class BugProblem(Problem):
    """One side broke the protocol or its own invariants. Worth a report."""

    kind = Kind.BUG
    exit_status = EXIT_BY_KIND[Kind.BUG]


class _Coded:
    """Mixin that fills `code`, `kind`, `exit_status` and `retryable` from the table."""

    CODE: ClassVar[Code]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        info = CODES[cls.CODE]
        assert issubclass(cls, Problem)
        assert cls.kind is info.kind, f"{cls.__name__} derives from the wrong kind"
        cls.code = cls.CODE.value
        cls.exit_status = info.exit_status
        cls.retryable = info.retry is Retry.YES
        _BY_CODE[cls.code] = cls


_BY_CODE: dict[str, type[Problem]] = {}
_BY_KIND: Final[dict[str, type[Problem]]] = {
    cls.kind.value: cls
    for cls in (
        RequestProblem,
        LimitProblem,
        DeniedProblem,
        BusyProblem,
        TimeoutProblem,
        CancelledProblem,
        FailedProblem,
        BugProblem,
    )
}


class InvalidRequest(_Coded, RequestProblem):
    CODE = Code.INVALID_REQUEST


class Unsupported(_Coded, RequestProblem):
    CODE = Code.UNSUPPORTED


class NotFound(_Coded, RequestProblem):
    CODE = Code.NOT_FOUND


class PromptTooLong(_Coded, LimitProblem):
    CODE = Code.PROMPT_TOO_LONG


class LimitExceeded(_Coded, LimitProblem):
    CODE = Code.LIMIT_EXCEEDED


class BudgetExceeded(_Coded, LimitProblem):
    CODE = Code.BUDGET_EXCEEDED


class Denied(_Coded, DeniedProblem):
    CODE = Code.DENIED


class RateLimited(_Coded, BusyProblem):
    CODE = Code.RATE_LIMITED


class Overloaded(_Coded, BusyProblem):
    CODE = Code.OVERLOADED


class ModelLoading(_Coded, BusyProblem):
    CODE = Code.MODEL_LOADING


class NoMemory(_Coded, BusyProblem):
    CODE = Code.NO_MEMORY


class ShuttingDown(_Coded, BusyProblem):
    CODE = Code.SHUTTING_DOWN


class Draining(_Coded, BusyProblem):
    CODE = Code.DRAINING


class DeadlineExceeded(_Coded, TimeoutProblem):
    CODE = Code.DEADLINE_EXCEEDED


class Cancelled(_Coded, CancelledProblem):
    CODE = Code.CANCELLED


class ModelFailed(_Coded, FailedProblem):
    CODE = Code.MODEL_FAILED


class SlowConsumer(_Coded, FailedProblem):
    CODE = Code.SLOW_CONSUMER


class Unavailable(_Coded, FailedProblem):
    CODE = Code.UNAVAILABLE


class WorkerDied(_Coded, FailedProblem):
    CODE = Code.WORKER_DIED


class ProtocolError(_Coded, BugProblem):
    CODE = Code.PROTOCOL_ERROR


class Internal(_Coded, BugProblem):
    CODE = Code.INTERNAL


def problem_from_wire(
    code: str, kind: str, message: str, *, hint: str = "", retry_after_s: float | None = None
) -> Problem:
    """The exception for an `error` message. Unknown codes become their kind's class, unknown kinds
    count as `failed`; the code on the wire is kept."""
    cls = _BY_CODE.get(code) or _BY_KIND.get(kind, FailedProblem)
    problem = cls(message, hint=hint, retry_after_s=retry_after_s)
    problem.code = code
    return problem


class LocalProtocolError(Exception):
    """Our own side used the connection against its rules: a bug here, never the peer's doing."""


class RemoteProtocolError(Exception):
    """The peer broke the protocol. The only exception that received bytes can cause."""
