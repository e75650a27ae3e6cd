"""How many tokens a request may take and make. Pure: exact counts in, a plan or a refusal out.

Rules (design, "Names, places, defaults"): prompt + explicit `max_tokens` over the context is
refused with the numbers; an unset `max_tokens` becomes min(`max_output_tokens`, what is left).
Nothing is ever cut without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from openclawctl.wire.errors import LimitExceeded, PromptTooLong
from openclawctl.wire.framing import MAX_RESULT_ITEMS

_OTHER_ITEMS: Final = 4096
"""Far more than a result has beside its tokens."""


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """The limits of one model. `context` is tokens per sequence, `parallel` sequences in one batch;
    None means no further limit."""

    model: str
    context: int
    max_input_tokens: int | None
    max_output_tokens: int
    parallel: int


def check_choices(n: int, limits: TokenLimits) -> None:
    """Refuse more answers to one prompt than a batch has sequences."""
    if n > limits.parallel:
        raise LimitExceeded(
            f"n is {n}; model {limits.model} computes {limits.parallel} sequences at once "
            "(parallel)",
            hint=f"ask for at most {limits.parallel} choices, or send several requests",
        )


def check_prompt_bytes(num_bytes: int, *, longest_token_bytes: int, limits: TokenLimits) -> None:
    """Refuse a prompt that must be too long before anything is loaded or tokenised: no token is
    longer than `longest_token_bytes`, so this many bytes are at least so many tokens."""
    at_least = num_bytes // longest_token_bytes
    if at_least > limits.context:
        raise PromptTooLong(
            f"the prompt has {num_bytes} bytes, so at least {at_least} tokens; the context "
            f"of model {limits.model} holds {limits.context} tokens",
            hint="shorten the prompt",
        )


def check_prompt_tokens(prompt_tokens: int, limits: TokenLimits) -> None:
    """Refuse a prompt over `max_input_tokens` or one that leaves the context no room to answer."""
    if limits.max_input_tokens is not None and prompt_tokens > limits.max_input_tokens:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens; model {limits.model} allows "
            f"{limits.max_input_tokens} (max_input_tokens)",
            hint="shorten the prompt, or ask the administrator to raise max_input_tokens",
        )
    if prompt_tokens > limits.context:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens; the context of model {limits.model} holds "
            f"{limits.context} tokens",
            hint="shorten the prompt, or ask the administrator for a larger context",
        )


def plan_completion(prompt_tokens: int, asked: int | None, limits: TokenLimits) -> int:
    """The `max_tokens` that applies. Raises `PromptTooLong` or `LimitExceeded` with the numbers."""
    check_prompt_tokens(prompt_tokens, limits)
    left = limits.context - prompt_tokens
    if left < 1:
        raise PromptTooLong(
            f"the prompt's {prompt_tokens} tokens fill the context of model {limits.model} "
            f"({limits.context} tokens), so that there is no room for an answer",
            hint="shorten the prompt",
        )
    if asked is None:
        return min(limits.max_output_tokens, left)
    if asked > limits.max_output_tokens:
        raise LimitExceeded(
            f"max_tokens is {asked}; model {limits.model} allows {limits.max_output_tokens} "
            "(max_output_tokens)",
            hint=f"ask for at most {limits.max_output_tokens} tokens",
        )
    if asked > left:
        raise PromptTooLong(
            f"{prompt_tokens} prompt tokens + max_tokens {asked} = {prompt_tokens + asked}; "
            f"the context of model {limits.model} holds {limits.context} tokens",
            hint=f"ask for at most {left} tokens, or leave max_tokens out",
        )
    return asked


def check_min_tokens(min_tokens: int, max_tokens: int) -> None:
    """Refuse a `min_tokens` that the planned `max_tokens` cannot reach."""
    if min_tokens > max_tokens:
        raise LimitExceeded(
            f"min_tokens is {min_tokens}, but the answer can have {max_tokens} tokens at most",
            hint=f"ask for at most {max_tokens}, raise max_tokens, or shorten the prompt",
        )


def check_answer_tokens(num_tokens: int) -> None:
    """Refuse an answer, of all choices together, of more tokens than one result can hold."""
    most = MAX_RESULT_ITEMS - _OTHER_ITEMS
    if num_tokens > most:
        raise LimitExceeded(
            f"the answer may have {num_tokens} tokens; one result holds {most} at most",
            hint="ask for fewer tokens (max_tokens) or choices (n)",
        )
