"""Model files from elsewhere: what `pull`, `models.remove` and `models.verify` do.

Owns who may name which model there, and that no file is taken from under a model that uses it. The
work is `openclawd-fetch`'s. Everything is in the audit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openclawctl.wire.errors import Denied, NotFound
from openclawd.admission.identity import check_model
from openclawd.admission.roles import EVERYTHING

if TYPE_CHECKING:
    from openclawctl.wire.fetching import ModelFileParams, PullParams
    from openclawd.admission.identity import Principal
    from openclawd.server.peer import Exchange
    from openclawd.server.service import Service


async def pull(service: Service, exchange: Exchange, params: PullParams) -> dict[str, Any]:
    """Get a model; `pulling` events tell how far it is. Raises `Problem`."""
    config = service.fleet.fetch_config
    detail = {"source": _shown(params.source)}
    with service.audit.deed(exchange, params.name or "", detail=detail):
        _check_name(exchange.peer.principal, params.name)
        request = {
            "type": "pull",
            "endpoint": config.endpoint,
            "max_bytes": config.max_bytes,
            **params.encode(),
        }
        result = await _ask(service, exchange, request)
    return result


async def remove(service: Service, exchange: Exchange, params: ModelFileParams) -> dict[str, Any]:
    """Take a model's file away, if no model uses it. Raises `Problem`."""
    check_model(exchange.peer.principal, params.model)
    with service.audit.deed(exchange, params.model):
        service.fleet.release_file(params.model)
        return await _ask_of_file(service, exchange, "remove", params.model)


async def verify(service: Service, exchange: Exchange, params: ModelFileParams) -> dict[str, Any]:
    """Read a model's files, and compare them with their checksums. Raises `Problem`."""
    check_model(exchange.peer.principal, params.model)
    with service.audit.deed(exchange, params.model):
        return await _ask_of_file(service, exchange, "verify", params.model)


async def _ask_of_file(
    service: Service, exchange: Exchange, kind: str, name: str
) -> dict[str, Any]:
    """Raises `NotFound` with where the model's file is, if it is in another folder."""
    try:
        return await _ask(service, exchange, {"type": kind, "name": name})
    except NotFound as problem:
        path = service.fleet.path_of(name)
        if path is not None:
            where = f"the file of model {name} is {path}"
            problem.hint = f"{problem.hint}; {where}" if problem.hint else where
        raise


async def _ask(service: Service, exchange: Exchange, request: dict[str, Any]) -> dict[str, Any]:
    def tell(file: str, done: int, total: int | None) -> None:
        exchange.event("pulling", {"file": file, "bytes": done, "total_bytes": total})

    return await service.fleet.fetcher.ask(request, tell)


def _check_name(principal: Principal, name: str | None) -> None:
    """Who may use some models only must say which one it is to be: `replace` takes one away."""
    if name is not None:
        check_model(principal, name)
    elif not (principal.role.models == principal.models == EVERYTHING):
        raise Denied(
            f"{principal.name} may use some models only, and so must name the one it fetches",
            hint="give a name that you may use with --name",
        )


def _shown(source: str) -> str:
    """A source without what may be secret in an address: a user's name, a query."""
    if "://" not in source:
        return source
    scheme, _, rest = source.partition("://")
    place = rest.partition("?")[0].partition("#")[0]
    host, slash, path = place.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
