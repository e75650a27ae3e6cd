"""Going on with another model when a limit or a budget keeps a request from its own.

Owns the signal, and the rule that it is followed once. Whether a caller may use the other model is
identity's to say (`Principal.may_use`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from openclawctl.wire.errors import Problem
    from openclawd.server.inference import Inference


class UseFallback(Exception):
    """The request is to be served by another model. `problem` is what it would end with otherwise.

    Raised before anything of the request was written down or reserved, and caught by `infer`.
    """

    def __init__(self, model: str, problem: Problem) -> None:
        super().__init__(f"fall back to {model}: {problem.message}")
        self.model = model
        self.problem = problem


def use_fallback(inference: Inference, name: str, problem: Problem) -> NoReturn:
    """Raise `UseFallback`; or the problem itself for a request that has fallen back already, whose
    own model this is, or whose caller may not use it."""
    service = inference.service
    model = service.fleet.resolve(name)
    if inference.fallback_from or model is inference.model:
        raise problem
    if not inference.exchange.peer.principal.may_use(model.name):
        raise problem
    raise UseFallback(model.name, problem)
