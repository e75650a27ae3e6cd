"""Is the daemon well? Not "does the process answer" but: are tokens coming, or is nothing asked.

Pure: it looks at models and says what it finds.

- `ok`: every model is loaded, or can be, and what was asked of it is being computed;
- `degraded`: a model cannot be used, or is tried again; the others can;
- `failing`: the daemon is starting, draining or drained, a worker has said nothing for half its
  `step_timeout` although it has work, no model at all can be used, or the disk refuses the ledger.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.units import format_duration
from openclawd.fleet.spec import ModelState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openclawctl.wire.errors import Problem
    from openclawd.fleet.model import Model

_STALLED_AFTER: Final = 0.5
"""Share of `step_timeout`, at whose end the worker is replaced: it is told of before."""

SERVER_STATES: Final = ("starting", "ready", "draining", "drained")

_SENTENCES: Final = {
    "drained": "the daemon is drained, and takes no new requests until `openclawctl resume`"
}

_UNUSABLE: Final = (ModelState.FAILED, ModelState.BACKOFF)


class Status(enum.Enum):
    OK = "ok"
    DEGRADED = "degraded"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Reason:
    """A sentence, and the name of the model that it is about, if it is about one."""

    sentence: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """`reasons` has the worst first, and is empty if all is well. `server` is the daemon's own
    state, `ready` in the end."""

    status: Status
    server: str
    reasons: tuple[Reason, ...]

    def story(self) -> str:
        return "; ".join(reason.sentence for reason in self.reasons)

    def as_dict(self, *, may_see: Callable[[str], bool]) -> dict[str, Any]:
        """What is told to somebody; of a model that they may not see, only that there is one."""
        return {
            "status": self.status.value,
            "server": self.server,
            "reasons": [
                {"model": reason.model, "message": reason.sentence}
                if not reason.model or may_see(reason.model)
                else {"model": "", "message": "another model has a problem"}
                for reason in self.reasons
            ],
        }


def health_of(models: Sequence[Model], *, server: str, ledger_problem: Problem | None) -> Health:
    """The daemon's health at this moment. `server` is `starting`, `ready`, `draining` or
    `drained`."""
    unusable = [model for model in models if model.state in _UNUSABLE]
    grave = [] if server == "ready" else [Reason(_SENTENCES.get(server, f"the daemon is {server}"))]
    grave += [_stalled(model) for model in models if _is_stalled(model)]
    if ledger_problem is not None:
        grave.append(Reason(f"usage cannot be recorded: {ledger_problem.message}"))
    if unusable and len(unusable) == len(models):
        grave.append(Reason("no model can be used"))
    slight = [
        Reason(f"model {model.name}: {model.state.value}: {model.reason}", model.name)
        for model in unusable
    ]
    status = Status.FAILING if grave else Status.DEGRADED if slight else Status.OK
    return Health(status, server, (*grave, *slight))


def _is_stalled(model: Model) -> bool:
    return model.stalled_s >= _STALLED_AFTER * model.step_timeout_s


def _stalled(model: Model) -> Reason:
    silence = format_duration(model.stalled_s)
    return Reason(
        f"model {model.name}: its worker (pid {model.worker_pid}) has work and has said nothing for"
        f" {silence}",
        model.name,
    )
