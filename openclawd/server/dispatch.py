"""From a request to its handler, and from whatever the handler does to one `done` or one `error`.

Owns the table of operations, and is the one place where it is checked that the caller may use one,
and the model it names. A test fails when an operation of the protocol has no entry.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.completion import MAX_MODEL_NAME_CHARS, ChatParams, GenerateParams
from openclawctl.wire.errors import (
    Internal,
    InvalidRequest,
    LimitExceeded,
    LocalProtocolError,
    Problem,
)
from openclawctl.wire.fetching import ModelFileParams, PullParams
from openclawctl.wire.fields import suggestion
from openclawctl.wire.keys import KeyCreateParams, KeyParams, KeyRotateParams
from openclawctl.wire.operations import (
    AuditParams,
    AuditVerifyParams,
    DetokenizeParams,
    DrainParams,
    EncodingParams,
    InsightsParams,
    ModelParams,
    Op,
    Params,
    PruneParams,
    RequestParams,
    StatusParams,
    TokenizeParams,
    UsageParams,
    UsageRowsParams,
    WatchParams,
    decode_params,
)
from openclawd.admission.identity import check_operation
from openclawd.ledger.audit import AuditQuery
from openclawd.ledger.audit_key import parse_head
from openclawd.observe.logs import log_bug
from openclawd.server import fetching, keys, models_view, open_requests, upkeep
from openclawd.server.inference import ask_tokenizer, infer, tell_loading

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from openclawd.server.peer import Exchange
    from openclawd.server.service import Service

    Handler = Callable[[Service, Exchange, Params], Awaitable[dict[str, Any]]]

logger = logging.getLogger(__name__)


async def answer(service: Service, exchange: Exchange) -> None:
    """Serve one request to its one end. Never raises but for the daemon's own cancellation."""
    try:
        exchange.done(await _serve(service, exchange))
    except Problem as problem:
        service.audit.refused(exchange, problem)
        _fail(service, exchange, problem)
    except asyncio.CancelledError:
        if exchange.cancel_problem is None:
            raise
        _fail(service, exchange, exchange.cancel_problem)
    except LocalProtocolError as error:
        too_large = LimitExceeded(
            f"the result cannot be sent: {error}",
            hint="ask for less at once, or raise resource_limits.max_frame_bytes",
        )
        _fail(service, exchange, too_large)
    except Exception:
        log_bug(logger, "request %r failed on a bug", exchange.request.op)
        bug = Internal("the daemon failed on a bug", hint="see the log of the daemon")
        _fail(service, exchange, bug)


def _fail(service: Service, exchange: Exchange, problem: Problem) -> None:
    """Tell the client. What has a row of its own is counted already."""
    if not exchange.is_recorded:
        service.meters.refused(problem.code)
    exchange.error(problem)


async def _serve(service: Service, exchange: Exchange) -> dict[str, Any]:
    op = _operation(exchange.request.op)
    check_operation(exchange.peer.principal, op)
    service.check_request(exchange, op)
    params = _params(exchange, op)
    return await HANDLERS[op](service, exchange, params)


def _params(exchange: Exchange, op: Op) -> Params:
    """Those of its operation; of others the client is told, and nothing of them is kept."""
    params, unknown = decode_params(op, exchange.request.params)
    exchange.forget_params()
    for name in unknown[:16]:
        text = f"{op.value} has no parameter {name[:MAX_MODEL_NAME_CHARS]!r}; it is ignored"
        exchange.warn("unknown-parameter", text)
    return params


def _operation(name: str) -> Op:
    try:
        return Op(name)
    except ValueError:
        known = [op.value for op in Op]
        raise InvalidRequest(
            f"there is no operation {name!r}" + suggestion(name, known),
            hint=f"this daemon knows: {', '.join(known)}",
        ) from None


async def _ping(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del exchange, params
    return {"server": service.server_name}


async def _status(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, StatusParams)
    return service.status(
        exchange.peer.principal, with_latency=params.latency, with_requests=params.requests
    )


async def _cancel_request(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, RequestParams)
    return open_requests.cancel(service, exchange, params)


async def _models(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del params
    may_see = exchange.peer.principal.may_see
    rows = await service.fleet.rows_with_files()
    return {"models": [row for row in rows if may_see(row["name"])]}


async def _load(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, ModelParams)
    model = service.model_for(exchange.peer.principal, params.model)
    with service.audit.deed(exchange, model.name):
        await model.load(lambda progress: tell_loading(exchange, progress))
    return {"model": model.name, "state": model.state.value, "info": model.info}


async def _reload(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del params
    return await service.reload(exchange.peer)


async def _unload(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, ModelParams)
    model = service.model_for(exchange.peer.principal, params.model)
    with service.audit.deed(exchange, model.name):
        await model.unload()
    return {"model": model.name, "state": model.state.value}


async def _show(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, ModelParams)
    return await models_view.show(service, service.model_for(exchange.peer.principal, params.model))


async def _watch(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, WatchParams)
    return await models_view.watch(service, exchange, params)


async def _infer(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, GenerateParams | ChatParams | EncodingParams)
    service.model_for(exchange.peer.principal, params.model)
    with service.gate.passage():
        return await infer(service, exchange, params)


async def _tokenizer(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, TokenizeParams | DetokenizeParams)
    service.model_for(exchange.peer.principal, params.model)
    with service.gate.passage():
        return await ask_tokenizer(service, exchange, params)


async def _drain(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, DrainParams)
    gate = service.gate
    service.audit.note(action=Op.DRAIN.value, peer=exchange.peer)
    gate.shut(exchange.peer.principal.name)
    while params.wait and gate.state == "draining":
        exchange.event("draining", {"open": gate.num_inside})
        await gate.wait_change()
    return {"state": gate.state, "open": gate.num_inside}


async def _resume(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del params
    service.audit.note(action=Op.RESUME.value, peer=exchange.peer)
    service.gate.open()
    return {"state": service.gate.state}


async def _usage(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, UsageParams)
    return await service.usage(params, exchange.peer.principal)


async def _whoami(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del params
    return service.whoami(exchange.peer)


async def _create_key(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, KeyCreateParams)
    return await keys.create(service, exchange, params)


async def _list_keys(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del exchange, params
    return {"keys": keys.rows(service)}


async def _show_key(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del exchange
    assert isinstance(params, KeyParams)
    return keys.show(service, params)


async def _rotate_key(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, KeyRotateParams)
    return await keys.rotate(service, exchange, params)


async def _revoke_key(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, KeyParams)
    return await keys.revoke(service, exchange, params)


async def _audit(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del exchange
    assert isinstance(params, AuditParams)
    query = AuditQuery(
        limit=params.limit,
        since_s=params.since_s,
        principal=params.principal,
        action=params.action,
        after_seq=params.after_seq,
    )
    log = service.audit.log
    return {"rows": await log.read(query, now=time.time()), "head": str(log.head)}


async def _audit_verify(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    """Who asks is in the audit, too."""
    assert isinstance(params, AuditVerifyParams)
    service.audit.note(action=Op.AUDIT_VERIFY.value, peer=exchange.peer)
    log = service.audit.log
    verdict = await log.verify(parse_head(params.head) if params.head else None)
    return {
        "valid": verdict.is_valid,
        "rows": verdict.num_rows,
        "head": str(verdict.head),
        "key": log.key_origin,
        "bad_seq": verdict.bad_seq,
        "problem": verdict.problem,
        "too_old": list(verdict.too_old),
    }


async def _budgets(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del params
    return {"budgets": service.budget_rows(exchange.peer.principal)}


async def _usage_rows(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, UsageRowsParams)
    return await service.usage_rows(params, exchange.peer.principal)


async def _ledger_check(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del exchange, params
    return await upkeep.check(service.ledger)


async def _ledger_prune(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del exchange
    assert isinstance(params, PruneParams)
    return await upkeep.prune(service.ledger, params.older_than_s)


async def _ledger_backup(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del exchange, params
    return await upkeep.back_up(service.ledger)


async def _insights(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, InsightsParams)
    return await service.statistics.insights(params, exchange.peer.principal)


async def _pull(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, PullParams)
    return await fetching.pull(service, exchange, params)


async def _remove_model(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, ModelFileParams)
    return await fetching.remove(service, exchange, params)


async def _verify_model(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, ModelFileParams)
    return await fetching.verify(service, exchange, params)


HANDLERS: Final[dict[Op, Handler]] = {
    Op.PING: _ping,
    Op.STATUS: _status,
    Op.REQUESTS_CANCEL: _cancel_request,
    Op.MODELS: _models,
    Op.LOAD: _load,
    Op.UNLOAD: _unload,
    Op.RELOAD: _reload,
    Op.DRAIN: _drain,
    Op.RESUME: _resume,
    Op.GENERATE: _infer,
    Op.CHAT: _infer,
    Op.EMBED: _infer,
    Op.CLASSIFY: _infer,
    Op.RERANK: _infer,
    Op.TOKENIZE: _tokenizer,
    Op.DETOKENIZE: _tokenizer,
    Op.USAGE: _usage,
    Op.AUDIT: _audit,
    Op.AUDIT_VERIFY: _audit_verify,
    Op.WHOAMI: _whoami,
    Op.KEYS_CREATE: _create_key,
    Op.KEYS_LIST: _list_keys,
    Op.KEYS_SHOW: _show_key,
    Op.KEYS_ROTATE: _rotate_key,
    Op.KEYS_REVOKE: _revoke_key,
    Op.BUDGETS: _budgets,
    Op.USAGE_ROWS: _usage_rows,
    Op.LEDGER_CHECK: _ledger_check,
    Op.LEDGER_PRUNE: _ledger_prune,
    Op.LEDGER_BACKUP: _ledger_backup,
    Op.INSIGHTS: _insights,
    Op.SHOW: _show,
    Op.WATCH: _watch,
    Op.PULL: _pull,
    Op.MODELS_REMOVE: _remove_model,
    Op.MODELS_VERIFY: _verify_model,
}
