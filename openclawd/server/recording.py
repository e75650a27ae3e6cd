"""What is written down about an inference request: its ledger row, the running sums, its log line.

Owns how a request's state becomes a reservation, a settlement and one canonical log line. Never
sees a prompt or a completion.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from openclawctl.wire.errors import Code
from openclawctl.wire.results import FinishReason
from openclawd.ledger import Counts, Outcome, Reservation, Settlement
from openclawd.ledger.prefix_use import PrefixUse
from openclawd.observe.logs import log_request
from openclawd.server.auditing import row_of
from openclawd.server.deadline import Stage

if TYPE_CHECKING:
    from openclawctl.wire.errors import Problem
    from openclawctl.wire.results import Timings, Usage
    from openclawd.server.inference import Inference


async def reserve(inference: Inference) -> None:
    """Put the request's row on disk before anything is computed. Raises `Unavailable`."""
    await inference.service.ledger.reserve(_reservation(inference))


async def settle(inference: Inference, problem: Problem | None) -> None:
    """Put the request's end on disk, count it and log it. `problem` is why it failed, if it did.

    Raises `Unavailable`; the ledger keeps what it could not write and tries again.
    """
    settlement = _settlement(inference, problem)
    _count(inference, settlement)
    _log(inference, settlement)
    _note_prompt(inference, settlement)
    inference.exchange.is_recorded = True
    audit = row_of(inference, settlement)
    ledger = inference.service.ledger
    try:
        if inference.is_reserved:
            await ledger.settle(settlement, audit)
        else:
            await ledger.record(_reservation(inference), settlement, audit)
    finally:  # however the disk is: the ledger keeps what it could not write
        tokens = settlement.tokens
        inference.account.settle(
            tokens=tokens["prompt"] + tokens["completion"], money=settlement.cost
        )


def _reservation(inference: Inference) -> Reservation:
    peer, reservation = inference.exchange.peer, inference.account.reservation
    prices = inference.service.prices
    price = prices.of(inference.model.name)
    completion_tokens = inference.reserved_completion_tokens
    return Reservation(
        request_id=inference.request_id,
        principal=peer.principal.name,
        model=inference.model.name,
        op=inference.op.value,
        arrived_at=time.time() - inference.elapsed_s(),
        prompt_tokens=inference.prompt_tokens,
        reserved_tokens=inference.prompt_tokens + completion_tokens,
        app=inference.app or None,
        session=inference.params.session,
        charges=reservation.charges if reservation else (),
        reserved_at=time.time(),
        key=peer.principal.key or None,
        tier=peer.principal.tier,
        adapter=inference.params.adapter,
        reserved_cost=price.worst_case(inference.prompt_tokens, completion_tokens),
        prompt_cost=price.worst_case(inference.prompt_tokens, 0),
        currency=prices.currency,
        asked_model=inference.fallback_from or None,
        truncation=inference.truncation or None,
        dropped_tokens=inference.dropped_tokens,
        num_sequences=inference.num_choices,
        limit_hit=reservation.shrunk_by or None if reservation else None,
    )


def _settlement(inference: Inference, problem: Problem | None) -> Settlement:
    usage, timings = inference.usage, inference.timings
    return Settlement(
        request_id=inference.request_id,
        outcome=_outcome(inference.finish_reason, problem),
        tokens={
            "prompt": usage.prompt_tokens,
            "cached": usage.cached_tokens,
            "completion": usage.completion_tokens,
        },
        finish_reason=inference.finish_reason,
        error_code=problem.code if problem else None,
        counts=Counts(usage.counts),
        load_s=timings.load_s,
        queue_s=timings.queue_s,
        ttft_s=timings.ttft_s,
        total_s=timings.total_s,
        cost=_cost(inference, usage, timings),
        worker_restarts=inference.num_outlived,
    )


def _cost(inference: Inference, usage: Usage, timings: Timings) -> int:
    """What it costs, by what was computed; the time is that from its start to its end."""
    price = inference.service.prices.of(inference.model.name)
    was_started = inference.stage is Stage.COMPUTING
    compute_s = timings.total_s - inference.queued_at_s - timings.queue_s if was_started else 0.0
    return price.cost(
        usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, max(0.0, compute_s)
    )


def _outcome(finish_reason: str | None, problem: Problem | None) -> Outcome:
    if problem is not None and problem.code != Code.CANCELLED.value:
        return Outcome.FAILED
    is_whole = problem is None and finish_reason != FinishReason.CANCELLED.value
    return Outcome.DONE if is_whole else Outcome.CANCELLED


def _count(inference: Inference, settlement: Settlement) -> None:
    totals = inference.service.totals
    totals.prompt_tokens += settlement.tokens["prompt"]
    if settlement.outcome is Outcome.FAILED:
        totals.num_failed += 1
    else:
        totals.num_finished += 1
    inference.service.meters.finished(inference, settlement)


def _note_prompt(inference: Inference, settlement: Settlement) -> None:
    """For `insights`. What was not computed is no example of anything."""
    if inference.prefixes and inference.ttft_s is not None:
        inference.service.statistics.note_prompt(
            PrefixUse(
                model=inference.model.name,
                principal=inference.exchange.peer.principal.name,
                prefixes=inference.prefixes,
                prompt_tokens=settlement.tokens["prompt"],
                cached_tokens=settlement.tokens["cached"],
                completion_tokens=settlement.tokens["completion"],
                is_cut=settlement.finish_reason == FinishReason.LENGTH.value,
            )
        )


def _log(inference: Inference, settlement: Settlement) -> None:
    peer = inference.exchange.peer
    log_request(
        request_id=inference.request_id,
        principal=peer.principal.name,
        app=inference.app,
        model=inference.model.name,
        op=inference.op.value,
        prompt_tokens=settlement.tokens["prompt"],
        cached_tokens=settlement.tokens["cached"],
        completion_tokens=settlement.tokens["completion"],
        load_s=settlement.load_s,
        queue_s=settlement.queue_s,
        ttft_s=settlement.ttft_s,
        total_s=settlement.total_s,
        finish_reason=settlement.finish_reason,
        error_code=settlement.error_code,
    )
