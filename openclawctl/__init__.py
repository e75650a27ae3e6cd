"""Client library and command line of openclawd.

    from openclawctl import Client, AsyncClient, OpenclawError

Owns what `openclawctl` exports. Importing it loads nothing yet: each name brings its own module
when it is first used, so that a script pays neither for asyncio nor for the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from openclawctl.aio import AsyncClient, AsyncStream
    from openclawctl.calls import ConnectionLost
    from openclawctl.client import Client, Stream
    from openclawctl.paths import ConfigError
    from openclawctl.results import Choice, Classifications, Completion, Embeddings, Ranking
    from openclawctl.wire.errors import (
        BudgetExceeded,
        BugProblem,
        BusyProblem,
        Cancelled,
        CancelledProblem,
        DaemonUnreachable,
        DeadlineExceeded,
        Denied,
        DeniedProblem,
        Draining,
        FailedProblem,
        Internal,
        InvalidRequest,
        LimitExceeded,
        LimitProblem,
        ModelFailed,
        ModelLoading,
        NoMemory,
        NotFound,
        OpenclawError,
        Overloaded,
        Problem,
        PromptTooLong,
        ProtocolError,
        RateLimited,
        RequestProblem,
        ShuttingDown,
        SlowConsumer,
        TimeoutProblem,
        Unavailable,
        Unsupported,
        WorkerDied,
    )
    from openclawctl.wire.messages import Delta, Event
    from openclawctl.wire.results import Timings, Usage
    from openclawctl.wire.scoring import LabelScore, Ranked
    from openclawctl.wire.tokens import TokenLogprob
    from openclawctl.wire.tools import ToolCall

__version__: Final = "0.1.0"

_ERRORS: Final = (
    "BudgetExceeded BugProblem BusyProblem Cancelled CancelledProblem DaemonUnreachable "
    "DeadlineExceeded Denied DeniedProblem Draining FailedProblem Internal InvalidRequest "
    "LimitExceeded LimitProblem ModelFailed ModelLoading NoMemory NotFound OpenclawError "
    "Overloaded Problem "
    "PromptTooLong ProtocolError RateLimited RequestProblem ShuttingDown SlowConsumer "
    "TimeoutProblem Unavailable Unsupported WorkerDied"
)
_HOME: Final = {
    "AsyncClient": "openclawctl.aio",
    "AsyncStream": "openclawctl.aio",
    "Choice": "openclawctl.results",
    "Classifications": "openclawctl.results",
    "Client": "openclawctl.client",
    "Completion": "openclawctl.results",
    "ConfigError": "openclawctl.paths",
    "ConnectionLost": "openclawctl.calls",
    "Delta": "openclawctl.wire.messages",
    "Embeddings": "openclawctl.results",
    "Event": "openclawctl.wire.messages",
    "LabelScore": "openclawctl.wire.scoring",
    "Ranked": "openclawctl.wire.scoring",
    "Ranking": "openclawctl.results",
    "Stream": "openclawctl.client",
    "Timings": "openclawctl.wire.results",
    "ToolCall": "openclawctl.wire.tools",
    "TokenLogprob": "openclawctl.wire.tokens",
    "Usage": "openclawctl.wire.results",
    **dict.fromkeys(_ERRORS.split(), "openclawctl.wire.errors"),
}
"""Which module each exported name comes from."""

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "BudgetExceeded",
    "BugProblem",
    "BusyProblem",
    "Cancelled",
    "CancelledProblem",
    "Choice",
    "Classifications",
    "Client",
    "Completion",
    "ConfigError",
    "ConnectionLost",
    "DaemonUnreachable",
    "DeadlineExceeded",
    "Delta",
    "Denied",
    "DeniedProblem",
    "Draining",
    "Embeddings",
    "Event",
    "FailedProblem",
    "Internal",
    "InvalidRequest",
    "LabelScore",
    "LimitExceeded",
    "LimitProblem",
    "ModelFailed",
    "ModelLoading",
    "NoMemory",
    "NotFound",
    "OpenclawError",
    "Overloaded",
    "Problem",
    "PromptTooLong",
    "ProtocolError",
    "Ranked",
    "Ranking",
    "RateLimited",
    "RequestProblem",
    "ShuttingDown",
    "SlowConsumer",
    "Stream",
    "TimeoutProblem",
    "Timings",
    "TokenLogprob",
    "ToolCall",
    "Unavailable",
    "Unsupported",
    "Usage",
    "WorkerDied",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
