"""From a request to its handler, and from whatever the handler does to one `done` or one `error`.

Owns the table of operations. A test fails when an operation of the protocol has no entry.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.completion import MAX_MODEL_NAME_CHARS, ChatParams, GenerateParams
from openclawctl.wire.errors import (
    Internal,
    InvalidRequest,
    LimitExceeded,
    LocalProtocolError,
    Problem,
)
from openclawctl.wire.fields import suggestion
from openclawctl.wire.operations import (
    DetokenizeParams,
    EmbedParams,
    ModelParams,
    Op,
    Params,
    PruneParams,
    TokenizeParams,
    UsageParams,
    UsageRowsParams,
    decode_params,
)
from openclawd.server import upkeep
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
        exchange.error(problem)
    except asyncio.CancelledError:
        if exchange.cancel_problem is None:
            raise
        exchange.error(exchange.cancel_problem)
    except LocalProtocolError as error:
        exchange.error(
            LimitExceeded(
                f"the result cannot be sent: {error}",
                hint="ask for less at once, or raise resource_limits.max_frame_bytes",
            )
        )
    except Exception:
        logger.exception("request %r failed on a bug", exchange.request.op)
        exchange.error(Internal("the daemon failed on a bug", hint="see the log of the daemon"))


async def _serve(service: Service, exchange: Exchange) -> dict[str, Any]:
    op = _operation(exchange.request.op)
    service.check_request(exchange, op)
    params, unknown = decode_params(op, exchange.request.params)
    for name in unknown[:16]:
        text = f"{op.value} has no parameter {name[:MAX_MODEL_NAME_CHARS]!r}; it is ignored"
        exchange.warn("unknown-parameter", text)
    return await HANDLERS[op](service, exchange, params)


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
    del params
    return service.status(exchange.peer.principal)


async def _models(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del exchange, params
    return {"models": await service.fleet.rows_with_files()}


async def _load(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, ModelParams)
    model = service.fleet.resolve(params.model)
    await model.load(lambda progress: tell_loading(exchange, progress))
    return {"model": model.name, "state": model.state.value, "info": model.info}


async def _unload(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    del exchange
    assert isinstance(params, ModelParams)
    model = service.fleet.resolve(params.model)
    await model.unload()
    return {"model": model.name, "state": model.state.value}


async def _infer(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, GenerateParams | ChatParams | EmbedParams)
    return await infer(service, exchange, params)


async def _tokenizer(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, TokenizeParams | DetokenizeParams)
    return await ask_tokenizer(service, exchange, params)


async def _usage(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, UsageParams)
    return await service.usage(params, exchange.peer.principal)


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


HANDLERS: Final[dict[Op, Handler]] = {
    Op.PING: _ping,
    Op.STATUS: _status,
    Op.MODELS: _models,
    Op.LOAD: _load,
    Op.UNLOAD: _unload,
    Op.GENERATE: _infer,
    Op.CHAT: _infer,
    Op.EMBED: _infer,
    Op.TOKENIZE: _tokenizer,
    Op.DETOKENIZE: _tokenizer,
    Op.USAGE: _usage,
    Op.USAGE_ROWS: _usage_rows,
    Op.LEDGER_CHECK: _ledger_check,
    Op.LEDGER_PRUNE: _ledger_prune,
    Op.LEDGER_BACKUP: _ledger_backup,
}
