"""The operations on API keys: what is made, written down, and put into effect.

Owns the order: decide, write, and only when it is on disk let it count. A secret exists here from
its making to the result that carries it, and nowhere else: not in the ledger, not in a log line.

Invariant: what was begun is finished although its client goes away or cancels, or memory and disk
would tell two stories.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from openclawctl.wire.errors import Denied, InvalidRequest, NotFound
from openclawctl.wire.fields import suggestion
from openclawd.admission.keys import (
    PREFIX_BYTES,
    SECRET_BYTES,
    ApiKey,
    KeySecret,
    kept_of,
    make_secret,
)
from openclawd.ledger.keys import insert_key, update_key

if TYPE_CHECKING:
    from openclawctl.wire.keys import KeyCreateParams, KeyParams, KeyRotateParams
    from openclawd.admission.identity import Principal
    from openclawd.server.peer import Exchange
    from openclawd.server.service import Service

logger = logging.getLogger(__name__)


async def create(service: Service, exchange: Exchange, params: KeyCreateParams) -> dict[str, Any]:
    """Make a key. The result is the only place where its secret ever stands."""
    creator = exchange.peer.principal
    exchange.on_cancel = None
    async with service.keys_lock:
        _check_new(service, creator, params)
        now = time.time()
        secret, kept = _new_secret(service, now)
        key = ApiKey(
            params.name,
            (kept,),
            params.role,
            params.tier or "default",
            tuple(params.models or ["*"]),
            created_at=now,
            created_by=creator.name,
            expires_at=None if params.expires_s is None else now + params.expires_s,
        )
        await service.ledger.write(lambda database: insert_key(database, key))
        service.identities.keys.put(key)
    _note(service, exchange, key)
    logger.info("%s made the API key %s (%s)", creator.name, key.name, key.prefix)
    return {**_row(key, now=now), "secret": secret}


async def rotate(service: Service, exchange: Exchange, params: KeyRotateParams) -> dict[str, Any]:
    """Give a key a new secret; the one before stays good for a while, an older one does not."""
    exchange.on_cancel = None
    async with service.keys_lock:
        key, now = _usable(service, params.name), time.time()
        secret, kept = _new_secret(service, now)
        before = key.secrets[0]
        overlap = [replace(before, ends_at=now + params.overlap_s)] if params.overlap_s else []
        key = replace(
            key,
            secrets=(kept, *overlap),
            expires_at=key.expires_at if params.expires_s is None else now + params.expires_s,
        )
        await service.ledger.write(lambda database: update_key(database, key))
        service.identities.keys.put(key)
    _note(service, exchange, key)
    logger.info("%s rotated the API key %s", exchange.peer.principal.name, key.name)
    return {**_row(key, now=now), "secret": secret}


async def revoke(service: Service, exchange: Exchange, params: KeyParams) -> dict[str, Any]:
    """End a key for good, and with it every request that runs by it."""
    exchange.on_cancel = None
    async with service.keys_lock:
        key, now = _known(service, params.name), time.time()
        if key.revoked_at is None:
            key = replace(key, revoked_at=now)
            await service.ledger.write(lambda database: update_key(database, key))
            service.identities.keys.put(key)
    problem = Denied(f"the API key {key.name!r} was revoked")
    num_ended = service.cancel_of_key(key.name, problem, but=exchange)
    _note(service, exchange, key)
    revoker = exchange.peer.principal.name
    logger.info("%s revoked the API key %s; %d requests ended", revoker, key.name, num_ended)
    return _row(key, now=now)


def show(service: Service, params: KeyParams) -> dict[str, Any]:
    return _row(_known(service, params.name), now=time.time())


def rows(service: Service) -> list[dict[str, Any]]:
    """Every key, by name, the revoked ones too: their names stay taken."""
    now = time.time()
    return [_row(key, now=now) for key in service.identities.keys.all()]


def _note(service: Service, exchange: Exchange, key: ApiKey) -> None:
    """Write a change of a key into the audit; never its secret."""
    detail = {"key": key.name, "prefix": key.prefix, "role": key.role, "tier": key.tier}
    service.audit.note(action=exchange.request.op, detail=detail, peer=exchange.peer)


def _check_new(service: Service, creator: Principal, params: KeyCreateParams) -> None:
    identities = service.identities
    if identities.keys.get(params.name) is not None:
        raise InvalidRequest(
            f"there is an API key {params.name!r} already",
            hint="choose another name, since usage is counted by it; `openclawctl keys rotate` "
            "gives a key a new secret",
        )
    role = identities.policy.roles.get(params.role)
    if role is None:
        known = list(identities.policy.roles)
        raise InvalidRequest(
            f"there is no role {params.role!r}" + suggestion(params.role, known),
            hint=f"the roles are: {', '.join(known)}",
        )
    if params.tier is not None and params.tier not in identities.tiers:
        known = sorted(identities.tiers)
        raise InvalidRequest(
            f"there is no tier {params.tier!r}" + suggestion(params.tier, known),
            hint=f"the tiers are: {', '.join(known)}",
        )
    if not role.operations <= creator.role.operations:
        raise Denied(
            f"{creator.name} may not make a key with the role {role.name}, which may do more than "
            f"its own, {creator.role.name}"
        )


def _new_secret(service: Service, now: float) -> tuple[str, KeySecret]:
    """A secret, and what is kept of it. Its visible part is that of no other key."""
    taken = {secret.prefix for key in service.identities.keys.all() for secret in key.secrets}
    while True:
        text = make_secret(secrets.token_bytes(PREFIX_BYTES), secrets.token_bytes(SECRET_BYTES))
        kept = kept_of(text, now=now)
        if kept.prefix not in taken:
            return text, kept


def _known(service: Service, name: str) -> ApiKey:
    keys = service.identities.keys
    key = keys.get(name)
    if key is None:
        raise NotFound(
            f"there is no API key {name!r}" + suggestion(name, [each.name for each in keys.all()]),
            hint="`openclawctl keys list` shows those there are",
        )
    return key


def _usable(service: Service, name: str) -> ApiKey:
    key = _known(service, name)
    if key.revoked_at is not None:
        raise InvalidRequest(
            f"the API key {name!r} was revoked, and that is for good",
            hint="make another with `openclawctl keys create`",
        )
    return key


def _row(key: ApiKey, *, now: float) -> dict[str, Any]:
    """What may be shown of a key. Times are Unix time."""
    secrets_in_use = [each for each in key.secrets if each.ends_at is None or each.ends_at > now]
    return {
        "name": key.name,
        "state": key.state(now=now),
        "prefixes": [each.prefix for each in secrets_in_use],
        "role": key.role,
        "tier": key.tier,
        "models": list(key.models),
        "created_at": key.created_at,
        "created_by": key.created_by,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }
