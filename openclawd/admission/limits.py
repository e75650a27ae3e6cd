"""How many tokens a request may take and make. Pure: exact counts in, a plan or a refusal out.

Owns what a model's own limits and the rules that a request is under (`limit_rules.py`) come to
together. The strictest decides: it is the one that a refusal names, and whose `on_too_long` says
what becomes of a prompt that is too long.

Rules (design, "Names, places, defaults"): prompt + explicit `max_tokens` over the context is
refused with the numbers; an unset `max_tokens` becomes min(`max_output_tokens`, what is left).
Nothing is ever cut without a word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import LimitExceeded, PromptTooLong
from openclawctl.wire.framing import MAX_RESULT_ITEMS
from openclawd.admission.limit_rules import OnTooLong, strictest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from openclawd.admission.limit_rules import LimitRule

MAX_CUT_BYTES: Final = 4 * 1024 * 1024
"""Longest prompt that is read in order to be cut, though it can fit nowhere. Others' prompts wait
meanwhile: about 1.2 s a megabyte for the worst text (`worker/tokenizer.py`)."""

BESIDE_BYTES_PER_TOKEN: Final = 16
MIN_BESIDE_BYTES: Final = 1024 * 1024
"""What a chat may have beside its messages' content, by the model's context: four contexts full of
ordinary text, and for the smallest as much as 128 tools of 8 KiB, or 20 answers that were each
thought about for 10,000 tokens. Others' prompts wait meanwhile: two seconds a megabyte for the
worst text, one control token after the other (measured 2026-11-30)."""

_ANSWER_SHARE: Final = 4
"""A prompt that is cut leaves an answer without `max_tokens` at least this part of the room, one in
so many tokens, unless `max_output_tokens` is less."""

_OTHER_ITEMS: Final = 4096
"""Far more than a result has beside its tokens."""


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """The limits of one model. `context` is tokens per sequence, `parallel` sequences in one batch;
    None means no further limit. `on_too_long` is for prompts over these, not over a rule's."""

    model: str
    context: int
    max_input_tokens: int | None
    max_output_tokens: int
    parallel: int
    on_too_long: OnTooLong = field(default_factory=OnTooLong)


@dataclass(slots=True)  # not frozen: one is made for every request
class Asked:
    """The answer that is asked for: `n` choices of `max_tokens` each (None: as many as may be). An
    embedding asks for none, `n` is 0."""

    n: int = 1
    max_tokens: int | None = None

    @property
    def least(self) -> int:
        """Tokens of each choice for which there must be room."""
        return min(self.n, 1) if self.max_tokens is None else self.max_tokens


@dataclass(frozen=True, slots=True)
class Excess:
    """A prompt is too long. Where it is to be cut, then to at most `max_prompt_tokens`."""

    on_too_long: OnTooLong
    max_prompt_tokens: int

    @property
    def truncates(self) -> bool:
        return self.on_too_long.truncates and self.max_prompt_tokens > 0


@dataclass(slots=True)  # not frozen: making those takes three times as long, for every request
class _Room:
    """How long a prompt may be by one limit: `most` tokens, and if it is cut, `target`. The limit
    is called `name`, is that of the rule or the model `whose`, and allows `value` tokens."""

    most: int
    target: int
    on_too_long: OnTooLong
    name: str
    value: int
    whose: str

    @property
    def allows(self) -> str:
        """In words."""
        match self.name:
            case "context":
                return f"the context of model {self.whose} holds {self.value} tokens"
            case "max_input_tokens":
                return f"model {self.whose} allows {self.value} ({self.name})"
            case _:
                return f"limit {self.whose} allows {self.value} ({self.name})"


# ---- what can be said early ----


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


def check_bytes_to_cut(num_bytes: int, *, longest_token_bytes: int, limits: TokenLimits) -> None:
    """The same for a prompt that could be cut: reading it must not take too long."""
    if num_bytes > MAX_CUT_BYTES:
        check_prompt_bytes(num_bytes, longest_token_bytes=longest_token_bytes, limits=limits)


def check_bytes_beside(num_bytes: int, limits: TokenLimits) -> None:
    """Refuse a chat with too much beside its messages' content: tools, reasoning, tool calls. What
    a template may leave out says nothing of the prompt's tokens, so far more is read than could be
    in a prompt, but not without end."""
    most = max(MIN_BESIDE_BYTES, BESIDE_BYTES_PER_TOKEN * limits.context)
    if num_bytes > most:
        raise PromptTooLong(
            f"the tools, reasoning and tool calls of the chat have {num_bytes} bytes; with model "
            f"{limits.model} at most {most} are read",
            hint="leave out earlier reasoning, or send fewer or shorter tools",
        )


# ---- on exact counts ----


def excess_of(
    prompt_tokens: int, asked: Asked, limits: TokenLimits, rules: Collection[LimitRule] = ()
) -> Excess | None:
    """What the strictest limit wants to be done about a prompt that is too long; None for one that
    is not. A cut makes it short enough for all limits, and leaves room for the answer."""
    if asked.least > _most_completion(asked, limits, rules):
        return None  # it will be refused whatever is cut
    rooms = list(_rooms(asked, limits, rules))
    tightest = _tightest(rooms)
    if prompt_tokens <= tightest.most:
        return None
    return Excess(tightest.on_too_long, min(room.target for room in rooms))


def check_prompt_tokens(
    prompt_tokens: int, limits: TokenLimits, rules: Collection[LimitRule] = ()
) -> None:
    """Refuse a prompt that is too long by itself, without any answer."""
    _refuse_longer(prompt_tokens, Asked(n=0), limits, rules)


def check_total_tokens(num_tokens: int, rules: Collection[LimitRule]) -> None:
    """Refuse an embedding of several texts that together have more tokens than a rule allows."""
    if (found := strictest(rules, "max_total_tokens")) and num_tokens > found[1]:
        rule, allowed = found
        raise LimitExceeded(
            f"the texts have {num_tokens} tokens together; limit {rule.name} allows {allowed} "
            "(max_total_tokens)",
            hint="send fewer or shorter texts in one request",
        )


def plan_completion(
    prompt_tokens: int,
    asked: Asked,
    limits: TokenLimits,
    rules: Collection[LimitRule] = (),
) -> int:
    """The `max_tokens` of each choice that applies. Raises `PromptTooLong` or `LimitExceeded` with
    the limit, what was asked and what is allowed."""
    room = _tightest(_rooms(asked, limits, rules))
    if prompt_tokens > room.most:  # perhaps by itself, whatever the answer
        _refuse_longer(prompt_tokens, Asked(asked.n), limits, rules)
    _check_completion(asked, limits, rules)
    if prompt_tokens > room.most:
        raise _too_long(prompt_tokens, asked, room)
    if asked.max_tokens is not None:
        return asked.max_tokens
    left = [limits.context - prompt_tokens]
    if found := strictest(rules, "max_total_tokens"):
        left.append((found[1] - prompt_tokens) // asked.n)
    return min(_most_completion(asked, limits, rules), *left)


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


def _check_completion(asked: Asked, limits: TokenLimits, rules: Collection[LimitRule]) -> None:
    """Refuse an answer that is too long whatever the prompt is."""
    most = limits.max_output_tokens
    if asked.max_tokens is not None and asked.max_tokens > most:
        raise LimitExceeded(
            f"max_tokens is {asked.max_tokens}; model {limits.model} allows {most} "
            "(max_output_tokens)",
            hint=f"ask for at most {min(most, limits.context - 1)} tokens",
        )
    found = strictest(rules, "max_completion_tokens")
    if found is not None and asked.n * asked.least > found[1]:
        rule, allowed = found
        raise LimitExceeded(
            f"{_answer_text(asked)} asks for {asked.n * asked.least} completion tokens; limit "
            f"{rule.name} allows {allowed} (max_completion_tokens)",
            hint=f"ask for at most {allowed} tokens over all choices",
        )


def _most_completion(asked: Asked, limits: TokenLimits, rules: Collection[LimitRule]) -> int:
    """Most tokens of each choice, whatever the prompt is."""
    found = strictest(rules, "max_completion_tokens")
    if found is None or asked.n == 0:
        return limits.max_output_tokens
    return min(limits.max_output_tokens, found[1] // asked.n)


# ---- the prompt ----


def _rooms(asked: Asked, limits: TokenLimits, rules: Collection[LimitRule]) -> Iterator[_Room]:
    """What each limit leaves a prompt beside the least answer, the narrowest last resort being the
    model's context."""
    least = asked.n * asked.least
    for rule in rules:
        policy = rule.on_too_long
        if (most := rule.max_prompt_tokens) is not None:
            name = "max_prompt_tokens"
            yield _Room(most, most, policy, name, most, rule.name)
        if (total := rule.max_total_tokens) is not None and asked.n:
            name, target = "max_total_tokens", total - asked.n * _usual_answer(asked, total, limits)
            yield _Room(total - least, target, policy, name, total, rule.name)
    policy = limits.on_too_long
    if (most := limits.max_input_tokens) is not None:
        name = "max_input_tokens"
        yield _Room(most, most, policy, name, most, limits.model)
    context = limits.context
    target = context - _usual_answer(asked, context, limits)
    yield _Room(context - asked.least, target, policy, "context", context, limits.model)


def _usual_answer(asked: Asked, room: int, limits: TokenLimits) -> int:
    """Tokens of one choice for which a prompt that is cut makes room."""
    if asked.max_tokens is not None or asked.n == 0:
        return asked.least
    return max(1, min(limits.max_output_tokens, room // (_ANSWER_SHARE * asked.n)))


def _tightest(rooms: Iterable[_Room]) -> _Room:
    return min(rooms, key=lambda room: room.most)


def _refuse_longer(
    prompt_tokens: int, asked: Asked, limits: TokenLimits, rules: Collection[LimitRule]
) -> None:
    room = _tightest(_rooms(asked, limits, rules))
    if prompt_tokens > room.most:
        raise _too_long(prompt_tokens, asked, room)


def _too_long(prompt_tokens: int, asked: Asked, room: _Room) -> PromptTooLong:
    """The refusal, in words: too long by itself, without room for an answer, or for this one."""
    if prompt_tokens > room.value:
        return PromptTooLong(
            f"the prompt has {prompt_tokens} tokens; {room.allows}",
            hint=f"shorten the prompt, or ask the administrator for a larger {room.name}",
        )
    if asked.max_tokens is None:
        return PromptTooLong(
            f"the prompt has {prompt_tokens} tokens, which leave no room for an answer; "
            f"{room.allows}",
            hint="shorten the prompt",
        )
    whole = prompt_tokens + room.value - room.most
    left = (room.value - prompt_tokens) // (asked.n if room.name == "max_total_tokens" else 1)
    return PromptTooLong(
        f"{prompt_tokens} prompt tokens + {_answer_text(asked)} = {whole}; {room.allows}",
        hint=f"ask for at most {left} tokens, or leave max_tokens out",
    )


def _answer_text(asked: Asked) -> str:
    tokens = "one token" if asked.max_tokens is None else f"max_tokens {asked.max_tokens}"
    return tokens if asked.n == 1 else f"{tokens} for each of {asked.n} choices"
