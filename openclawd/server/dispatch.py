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
    InsightsParams,
    ModelParams,
    Op,
    Params,
    TokenizeParams,
    UsageParams,
    decode_params,
)
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
    del exchange
    assert isinstance(params, UsageParams)
    return await service.usage(params)


async def _insights(service: Service, exchange: Exchange, params: Params) -> dict[str, Any]:
    assert isinstance(params, InsightsParams)
    return await service.statistics.insights(params, exchange.peer.principal)


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
    Op.INSIGHTS: _insights,
}
