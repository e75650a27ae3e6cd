"""What of the daemon's doings is written into the audit, and told to the journal.

Owns which refusals count, how they are put together and when they are written. Never sees a prompt
or a completion.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.completion import MAX_MODEL_NAME_CHARS
from openclawctl.wire.errors import CODES, Code, Kind, Problem
from openclawd.admission.refusals import Refusal, Refusals, Refused
from openclawd.ledger.audit_chain import AuditEntry
from openclawd.observe import message_ids
from openclawd.observe.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openclawd.admission.identity import Credentials
    from openclawd.ledger.audit import AuditLog
    from openclawd.ledger.audit_key import Head
    from openclawd.ledger.rows import Settlement
    from openclawd.server.inference import Inference
    from openclawd.server.peer import Exchange, Peer

MAX_REFUSED_KEYS: Final = 1000
"""Principals and codes whose refusals are told apart within a minute."""

TELL_HEAD_EVERY_S: Final = 3600.0

REFUSALS: Final = frozenset(
    code.value for code, info in CODES.items() if info.kind in (Kind.LIMIT, Kind.DENIED)
) | {Code.RATE_LIMITED.value, Code.OVERLOADED.value}
"""The codes that mean: you may not, or not so much. Others are mistakes and failures."""

logger = logging.getLogger("openclawd.audit")
logger.setLevel(logging.INFO)  # whatever `logging.level` says: what is left out here is never told


class Auditing:
    """The daemon's way into the audit. Everything is called on the loop, and nothing waits."""

    def __init__(self, log: AuditLog) -> None:
        self.log = log
        self._refusals = Refusals(max_keys=MAX_REFUSED_KEYS)
        self._refusal_timer: asyncio.TimerHandle | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Tell the journal of the chain's end now and then, until `stop`."""
        self.log.tell_head()
        loop = asyncio.get_running_loop()
        self._head_timer = loop.call_later(TELL_HEAD_EVERY_S, self.start)

    def stop(self) -> None:
        """Write the refusals of the minutes that are not over. None may come after it."""
        for timer in (self._head_timer, self._refusal_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._refusal_timer = None
        self._write(self._refusals.take_all())

    # ---- what happened ----

    def note(
        self,
        *,
        action: str,
        principal: str = "",
        model: str = "",
        code: str = "",
        detail: dict[str, Any] | None = None,
        peer: Peer | None = None,
    ) -> None:
        """Write that somebody did something. `peer` is whose connection it came by: it says who, if
        `principal` does not. Without either it was the daemon itself."""
        self._put(
            AuditEntry(
                at=time.time(),
                action=action,
                principal=principal or (peer.principal.name if peer else ""),
                uid=peer.credentials.uid if peer else None,
                pid=peer.credentials.pid if peer else None,
                app=peer.app if peer else "",
                model=model,
                code=code,
                detail=detail or {},
            )
        )

    @contextlib.contextmanager
    def deed(
        self, exchange: Exchange, model: str, *, detail: dict[str, Any] | None = None
    ) -> Iterator[None]:
        """Write that a caller did in this block what it asked for to a model, and how it ended."""
        code = Code.CANCELLED.value
        try:
            yield
            code = ""
        except Problem as problem:
            code = problem.code
            raise
        finally:
            action, peer = exchange.request.op, exchange.peer
            self.note(action=action, model=model, code=code, peer=peer, detail=detail)

    def refused(self, exchange: Exchange, problem: Problem) -> None:
        """Count a request that ended so, if it was refused and has no row of its own."""
        if problem.code in REFUSALS and not exchange.is_recorded:
            model = exchange.request.params.get("model")
            peer = exchange.peer
            self._count(
                Refusal(
                    at=time.time(),
                    principal=peer.principal.name,
                    code=problem.code,
                    operation=exchange.request.op[:MAX_MODEL_NAME_CHARS],
                    model=model[:MAX_MODEL_NAME_CHARS] if isinstance(model, str) else "",
                    app=peer.app,
                    uid=peer.credentials.uid,
                    pid=peer.credentials.pid,
                )
            )

    def refused_connection(self, caller: Credentials, problem: Problem, *, app: str = "") -> None:
        """Count a connection that was refused: an unknown user, a wrong key, too many."""
        if problem.code in REFUSALS:
            self._count(
                Refusal(
                    at=time.time(),
                    principal=f"uid:{caller.uid}",
                    code=problem.code,
                    app=app,
                    uid=caller.uid,
                    pid=caller.pid,
                )
            )

    # ---- refusals ----

    def _count(self, refusal: Refusal) -> None:
        self._refusals.note(refusal, now=asyncio.get_running_loop().time())
        if self._refusal_timer is None:
            self._set_timer()

    def _set_timer(self) -> None:
        due_at = self._refusals.due_at()
        loop = asyncio.get_running_loop()
        self._refusal_timer = loop.call_at(due_at, self._write_due) if due_at is not None else None

    def _write_due(self) -> None:
        self._write(self._refusals.take(now=asyncio.get_running_loop().time()))
        self._set_timer()

    def _write(self, refused: list[Refused]) -> None:
        for each in refused:
            self._put(_entry(each))

    def _put(self, entry: AuditEntry) -> None:
        self.log.note(entry)
        values = {name: getattr(entry, name) for name in _JOURNAL_FIELDS}
        told = {name: value for name, value in values.items() if value not in ("", 0, None)}
        told |= {f"audit_{name}": value for name, value in entry.detail.items()}
        extra = fields(message_id=message_ids.AUDIT, **told)
        logger.info("audit: %s", entry.action, extra=extra)


_JOURNAL_FIELDS: Final = ("action", "principal", "uid", "pid", "app", "model", "code", "tokens")


def _entry(refused: Refused) -> AuditEntry:
    first = refused.first
    detail: dict[str, Any] = {"count": refused.count, "last_at": round(refused.last_at, 3)}
    if refused.operations:
        detail["operations"] = dict(refused.operations)
    if len(refused.models) > 1:
        detail["models"] = dict(refused.models)
    return AuditEntry(
        at=first.at,
        action="refused",
        principal=first.principal,
        uid=first.uid,
        pid=first.pid,
        app=first.app,
        model=first.model if len(refused.models) == 1 else "",
        code=first.code,
        detail=detail,
    )


def tell_head(head: Head) -> None:
    """Put the chain's end into the journal, out of reach of whoever may write the database."""
    logger.info(
        "the audit ends with row %d; for `openclawctl audit verify --head`",
        head.seq,
        extra=fields(
            message_id=message_ids.AUDIT_HEAD, head=str(head), rows=head.seq - head.pruned_through
        ),
    )


def tell_mismatch(story: str) -> None:
    """The end of the audit was not as it had been left."""
    logger.error(
        "%s; see `openclawctl audit verify`",
        story,
        extra=fields(message_id=message_ids.AUDIT_BROKEN),
    )


def row_of(inference: Inference, settlement: Settlement) -> AuditEntry:
    """Of an inference request that reached `prepare`: written with its settlement. The journal has
    its canonical line."""
    peer, tokens = inference.exchange.peer, settlement.tokens
    return AuditEntry(
        at=time.time(),
        action=inference.op.value,
        principal=peer.principal.name,
        uid=peer.credentials.uid,
        pid=peer.credentials.pid,
        app=inference.app,
        model=inference.model.name,
        code=settlement.error_code or settlement.finish_reason or "",
        tokens=tokens.get("prompt", 0) + tokens.get("completion", 0),
        request_id=settlement.request_id,
    )
