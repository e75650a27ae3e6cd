"""System prompts are computed when the model is loaded, and their KV cells stay for everybody.

Owns which tokens a system prompt stands for, whether there is room for all of them, and their
computing before the first request. Knows no files; that the cells stay is the engine's.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import Problem
from openclawd.backends.base import CannotLoad
from openclawd.engine.batch import Outputs
from openclawd.engine.prefixes import num_same
from openclawd.engine.sampling import SamplingParams
from openclawd.engine.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from openclawd.backends.base import Backend
    from openclawd.engine.scheduler import Scheduler
    from openclawd.worker.tokenizer import Tokenizer

_NO_RID: Final = 0
"""The daemon's begin at 1."""


def tokens_of_system_prompts(
    prompts: Iterable[str], backend: Backend, tokenizer: Tokenizer
) -> list[list[int]]:
    """What requests with each begin with. Raises `CannotLoad` for one that none can begin with."""
    if not backend.info.can_generate:
        raise _refused("this model is an encoder, which has no use for system_prompts")
    return [_tokens_of(number, prompt, tokenizer) for number, prompt in enumerate(prompts, start=1)]


def check_room(prompts: list[list[int]], backend: Backend) -> None:
    """Raises `CannotLoad` if a whole context does not fit beside them: then some of the requests
    that the model promises to take could never run."""
    info = backend.info
    for number, tokens in enumerate(prompts, start=1):
        if len(tokens) >= info.context:
            raise _refused(
                f"system prompt {number} has {len(tokens)} tokens, and a sequence of this model"
                f" {info.context} (context)"
            )
    num_pinned = num_distinct(prompts)
    if num_pinned + info.context > info.kv_tokens:
        raise CannotLoad(
            f"the system prompts take {num_pinned} of the {info.kv_tokens} KV tokens of the model,"
            f" and beside them there is no room for a sequence of {info.context} (context)",
            hint=f"set kv_tokens to {num_pinned + info.context} or more, or shorten system_prompts",
            permanent=True,
        )


def num_distinct(prompts: Iterable[list[int]]) -> int:
    """How many cells they take, when a common beginning has its cells once."""
    ordered = sorted(prompts)
    num_shared = sum(num_same(before, prompt, offset=0) for before, prompt in pairwise(ordered))
    return sum(map(len, ordered)) - num_shared


def pin(
    prompts: list[list[int]],
    backend: Backend,
    scheduler: Scheduler,
    on_progress: Callable[[float], None],
) -> None:
    """Compute what is not there yet of each. Blocks; `on_progress` gets the fraction that is done,
    and what it raises ends it. Raises `CannotLoad`."""
    num_tokens = sum(map(len, prompts)) or 1
    num_done = 0
    for number, tokens in enumerate(prompts, start=1):
        sequence = Sequence(
            _NO_RID, number, [*tokens], 1, sampling=SamplingParams(temperature=0), domain=None
        )
        refusal = scheduler.add(sequence)
        assert refusal is None, "check_room comes first"
        while not scheduler.is_idle:
            _step(backend, scheduler)
            on_progress((num_done + min(sequence.num_computed_tokens, len(tokens))) / num_tokens)
        num_done += len(tokens)
        if not scheduler.is_pinned(tokens):
            raise CannotLoad(
                f"system prompt {number} cannot be kept: llama.cpp has too few sequence ids left"
                f" beside parallel = {backend.info.parallel}",
                hint="lower parallel, or have fewer system_prompts",
                permanent=True,
            )


def _step(backend: Backend, scheduler: Scheduler) -> None:
    batch = scheduler.schedule()
    assert batch is not None, "there is room for it, and nothing else runs"
    result = backend.forward(batch)
    if not isinstance(result, Outputs) or result.garbage:
        raise CannotLoad(
            "the model was read, but its system prompts cannot be computed",
            hint="see the worker's log lines before this one",
            permanent=False,
        )
    scheduler.update(batch, result)


def _tokens_of(number: int, prompt: str, tokenizer: Tokenizer) -> list[int]:
    try:
        return tokenizer.beginning(prompt)
    except Problem as problem:
        raise _refused(
            f"system prompt {number} cannot begin a chat with this model: {problem.message}"
        ) from None


def _refused(message: str) -> CannotLoad:
    return CannotLoad(
        message,
        hint="change system_prompts of the model in the configuration",
        permanent=True,
    )
