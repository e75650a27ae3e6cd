"""The inference requests that are open now: who asked for what, how far each is, cancelling one.

Owns the one list of them, and whose requests a caller may see and cancel: its own, or everybody's
where its role sees everybody's usage. How a request that is cancelled ends is `inference.py`'s.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import Cancelled, NotFound
from openclawctl.wire.operations import Op
from openclawd.server.deadline import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openclawctl.wire.operations import RequestParams
    from openclawd.admission.identity import Principal
    from openclawd.admission.queue import Place
    from openclawd.server.inference import Inference
    from openclawd.server.peer import Exchange
    from openclawd.server.service import Service

MAX_ROWS: Final = 1000
"""Requests in one answer, the oldest first: a third of a megabyte, and a few milliseconds."""

_STATES: Final = {
    Stage.LOADING: "loading",
    Stage.PREPARING: "preparing",
    Stage.QUEUED: "queued",
    Stage.COMPUTING: "running",
}


class OpenRequests:
    """Every open inference request, in the order of their arrival."""

    def __init__(self) -> None:
        self._inferences: dict[str, Inference] = {}

    @contextlib.contextmanager
    def listed(self, inference: Inference) -> Iterator[None]:
        """A request is open for the length of the block."""
        self._inferences[inference.request_id] = inference
        try:
            yield
        finally:
            del self._inferences[inference.request_id]

    def report(self, caller: Principal) -> dict[str, Any]:
        """The requests that a caller may see, and how many more than `MAX_ROWS` there are."""
        visible = [each for each in self._inferences.values() if _may_see(caller, each)]
        shown = visible[:MAX_ROWS]
        models = {each.model for each in shown if each.stage is Stage.QUEUED}
        places = {name: place for each in models for name, place in each.turns.places().items()}
        rows = [_row(each, places.get(each.request_id)) for each in shown]
        return {"open": rows, "left_out": len(visible) - len(rows)}

    def find(self, request_id: str, caller: Principal) -> Inference:
        """An open request. Raises `NotFound`, also for one that the caller may not see."""
        inference = self._inferences.get(request_id)
        if inference is None or not _may_see(caller, inference):
            raise NotFound(
                f"there is no open request {request_id[:64]!r}",
                hint="it may have ended; `openclawctl requests` lists those that are open",
            )
        return inference


def cancel(service: Service, exchange: Exchange, params: RequestParams) -> dict[str, Any]:
    """Have a request end as if its own client had cancelled it. Raises `NotFound`."""
    caller = exchange.peer.principal
    inference = service.open_requests.find(params.request_id, caller)
    principal = inference.exchange.peer.principal.name
    row = {
        "request_id": inference.request_id,
        "principal": principal,
        "model": inference.model.name,
        "state": _STATES[inference.stage],
        "completion_tokens": inference.completion_tokens,
    }
    detail = {name: row[name] for name in ("request_id", "state")} | {"of": principal}
    action, model = Op.REQUESTS_CANCEL.value, inference.model.name
    service.audit.note(action=action, model=model, peer=exchange.peer, detail=detail)
    inference.exchange.cancel(Cancelled(f"the request was cancelled by {caller.name}"))
    return row


def _may_see(caller: Principal, inference: Inference) -> bool:
    return caller.sees_everybody or inference.exchange.peer.principal.name == caller.name


def _row(inference: Inference, place: Place | None) -> dict[str, Any]:
    """`place` is where it stands in its model's line, if it is among the first of that: then its
    client was told of it some time ago."""
    told = inference.queued if inference.stage is Stage.QUEUED else {}
    return {
        "request_id": inference.request_id,
        "op": inference.op.value,
        "principal": inference.exchange.peer.principal.name,
        "app": inference.app,
        "session": inference.params.session or "",
        "model": inference.model.name,
        "priority": inference.priority.name.lower(),
        "state": _STATES[inference.stage],
        "position": place.position if place else told.get("position"),
        "eta_s": place.eta_s if place else told.get("eta_s"),
        "rule": told.get("rule"),
        "prompt_tokens": inference.prompt_tokens,
        "completion_tokens": inference.completion_tokens,
        "max_tokens": inference.reserved_completion_tokens,
        "age_s": round(inference.elapsed_s(), 3),
    }
