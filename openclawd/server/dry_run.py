"""What a request would take: `dry_run` of `generate` and `chat`.

Owns the answer. It is planned as any request is, by the same code, so that a dry run is refused for
what the request would be refused for. Nothing is computed, reserved, charged or written down; but
the model is loaded, since only it knows its tokens.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from openclawd.admission.budgets import Fallback, Wait
from openclawd.server.account import lower_maximum, need_of
from openclawd.server.deadline import Stage
from openclawd.server.fallback import use_fallback
from openclawd.server.planning import plan

if TYPE_CHECKING:
    from openclawd.admission.limit_rules import LimitRule
    from openclawd.fleet.submission import Submission
    from openclawd.server.inference import Inference

_LIMITS: Final = (
    "max_prompt_tokens",
    "max_completion_tokens",
    "max_total_tokens",
    "max_parallel",
    "max_queued",
    "max_queue_s",
)


async def foretell(inference: Inference, submission: Submission) -> dict[str, Any]:
    """Plan a request and say what it would take. Raises what it would be refused with, rate limits
    excepted: of those it says when there is room."""
    inference.stage = Stage.PREPARING
    await plan(inference, submission)
    subject, prompt_tokens = inference.subject, inference.prompt_tokens
    rates = inference.service.rates.foresee(subject, prompt_tokens)
    outcome, budgets = inference.service.budgets.foresee(
        subject, need_of(inference), is_fallback=bool(inference.fallback_from)
    )
    if isinstance(outcome, Fallback):
        use_fallback(inference, outcome.model, outcome.problem)
    if not isinstance(outcome, Wait):
        lower_maximum(inference, outcome)
    return {
        "model": inference.model.name,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": inference.reserved_completion_tokens,
        "context": inference.context(),
        "cost": _cost(inference),
        "limits": [_limit(rule) for rule in inference.rules],
        "rate_limits": [asdict(rate) for rate in rates],
        "budgets": budgets,
        "waits_for_budget": isinstance(outcome, Wait),
        "queue": asdict(inference.model.turns.standings()[inference.priority]),
    }


def _cost(inference: Inference) -> dict[str, Any] | None:
    """In millionths of the currency; None where nothing has a price."""
    prices = inference.service.prices
    if prices.currency is None:
        return None
    price = prices.of(inference.model.name)
    prompt_tokens, completion_tokens = inference.prompt_tokens, inference.reserved_completion_tokens
    return {
        "currency": prices.currency,
        "prompt": price.worst_case(prompt_tokens, 0),
        "total": price.worst_case(prompt_tokens, completion_tokens),
        "per_second": price.second,
    }


def _limit(rule: LimitRule) -> dict[str, Any]:
    values = {name: getattr(rule, name) for name in _LIMITS}
    given = {name: value for name, value in values.items() if value is not None}
    return {"name": rule.name, "per": rule.per.value, **given}
