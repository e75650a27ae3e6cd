"""What a request may take, from its prompt's bytes and then from its exact tokens.

Owns which limits a request is under, and what becomes of a prompt that is too long: an error, a
cut, or another model. What the limits come to is admission's, the cutting is the worker's.

Invariant: a prompt that was cut is never served without a word (`truncated`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from openclawctl.wire.completion import ChatParams, GenerateParams
from openclawctl.wire.errors import Internal, PromptTooLong
from openclawctl.wire.fields import texts_in
from openclawctl.wire.operations import EmbedParams, EncodingParams
from openclawctl.wire.scoring import ClassifyParams, RerankParams
from openclawd.admission.limit_rules import Situation
from openclawd.admission.limits import (
    Asked,
    check_answer_tokens,
    check_bytes_beside,
    check_bytes_to_cut,
    check_choices,
    check_min_tokens,
    check_prompt_bytes,
    check_prompt_tokens,
    check_total_tokens,
    excess_of,
    plan_completion,
)
from openclawd.server.fallback import use_fallback
from openclawd.worker.messages import Prepared

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openclawd.admission.limits import Excess, TokenLimits
    from openclawd.admission.subjects import Subject
    from openclawd.fleet.submission import Submission
    from openclawd.server.inference import Inference, InferenceParams

LONGEST_TOKEN_BYTES: Final = 1024
"""No vocabulary in use has longer tokens (the longest seen are runs of 128 spaces or dashes)."""


def check_size(inference: Inference) -> None:
    """Refuse what cannot fit before time is spent on it. Raises `PromptTooLong`, and
    `LimitExceeded` for more choices than can be computed together."""
    limits, params = inference.limits, inference.params
    check_choices(inference.num_choices, limits)
    may_be_cut = limits.on_too_long.serves or inference.fitting.serves_too_long
    if isinstance(params, GenerateParams) and not (may_be_cut or isinstance(params.prompt, str)):
        check_prompt_tokens(len(params.prompt), limits)
    longest = inference.model.info.get("max_token_bytes") or LONGEST_TOKEN_BYTES
    check = check_bytes_to_cut if may_be_cut else check_prompt_bytes
    num_bytes = _num_bytes(_longest_inputs(params))
    check(num_bytes, longest_token_bytes=longest, limits=limits)
    if isinstance(params, ChatParams):
        turns = [message.encode() for message in params.messages]
        told = texts_in([*turns, *(tool.encode() for tool in params.tools)])
        check_bytes_beside(_num_bytes(told) - num_bytes, limits)


async def plan(inference: Inference, submission: Submission) -> None:
    """Decide on exact counts whether the request may run, and how far. A prompt that is too long is
    cut, or goes to another model (`UseFallback`), where its strictest limit says so."""
    prepared = await _count(inference, submission)
    inference.rules = inference.fitting.applying(situation_of(inference, prepared.prompt_tokens))
    asked, limits = _asked(inference.params), inference.limits
    try:
        _check_counts(inference, prepared, asked, limits)
    except PromptTooLong as problem:
        excess = excess_of(prepared.longest, asked, limits, inference.rules)
        if excess is None:
            raise
        if excess.on_too_long.model:
            use_fallback(inference, excess.on_too_long.model, problem)
        if not excess.truncates:
            raise
        await _cut(inference, submission, excess)


async def _cut(inference: Inference, submission: Submission, excess: Excess) -> None:
    """Shorten the prompt, and tell the client so."""
    inference.truncation = excess.on_too_long.action.value
    prepared = await _count(inference, submission, excess.max_prompt_tokens)
    _check_counts(inference, prepared, _asked(inference.params), inference.limits)
    inference.exchange.warn(
        "truncated",
        f"the prompt had {prepared.prompt_tokens_in} tokens, of which {prepared.dropped} were "
        f"dropped ({inference.truncation})",
    )


def subject_of(inference: Inference) -> Subject:
    """The request as rules see it; use `Inference.subject`."""
    peer, params = inference.exchange.peer, inference.params
    return peer.principal.subject(
        app=inference.app,
        session=params.session or "",
        model=inference.model.name,
        operation=inference.op.value,
    )


def situation_of(inference: Inference, prompt_tokens: int) -> Situation:
    """How things are for a request that asks with so many tokens. What is left of budgets is looked
    up where a rule asks for it."""
    budgets = inference.service.budgets
    return Situation(
        inference.model.turns.num_waiting,
        budget_left=lambda: budgets.share_left(inference.subject),
        prompt_tokens=prompt_tokens,
    )


async def _count(
    inference: Inference, submission: Submission, max_prompt_tokens: int = 0
) -> Prepared:
    """Have the prompt tokenised, and cut to so many tokens by the policy that was chosen."""
    prepared = await submission.prepare(
        max_prompt_tokens=max_prompt_tokens, truncation=inference.truncation
    )
    if not isinstance(prepared, Prepared):
        raise Internal(f"the worker of model {inference.model.name} did not count the prompt")
    inference.prompt_tokens = prepared.prompt_tokens
    inference.dropped_tokens = prepared.dropped
    inference.prompt_text = prepared.text
    inference.prefixes = prepared.prefixes
    return prepared


def _check_counts(
    inference: Inference, prepared: Prepared, asked: Asked, limits: TokenLimits
) -> None:
    params, rules = inference.params, inference.rules
    if isinstance(params, EncodingParams):
        check_prompt_tokens(prepared.longest, limits, rules)
        check_total_tokens(prepared.prompt_tokens, rules)
        return
    inference.max_tokens = plan_completion(prepared.prompt_tokens, asked, limits, rules)
    check_min_tokens(params.sampling.min_tokens or 0, inference.max_tokens)
    check_answer_tokens(inference.reserved_completion_tokens)


def _asked(params: InferenceParams) -> Asked:
    return Asked(0) if isinstance(params, EncodingParams) else Asked(params.n, params.max_tokens)


def _num_bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode(errors="replace")) for text in texts)


def _longest_inputs(params: InferenceParams) -> list[str]:
    """The texts that share one context, or the longest of those that do not."""
    match params:
        case GenerateParams(prompt=prompt, suffix=suffix):
            return [text for text in (prompt, suffix) if isinstance(text, str)]
        case ChatParams(messages=messages):
            return [message.content for message in messages]
        case RerankParams(query=query, documents=documents):
            return [query, max(documents, key=len)]
        case EmbedParams(input=texts) | ClassifyParams(input=texts):
            return [max(texts, key=len)]
