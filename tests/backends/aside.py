"""What a backend must do that computes prompts aside, as tests. One joins by a subclass with an
`aside_backend` fixture, which has room for 512 tokens of a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from backends.conformance import GREEDY, PROMPTS, forward, fresh, generate, prompt_tokens, sampled

from openclawd.backends.base import Stopped, go_on
from openclawd.engine.batch import Batch, BatchKind, Chunk, CopyCells, DropCells, Opening, Outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.backends.base import Backend, ForwardResult

NUM_TOKENS = 8
PARTS = (0, 150, 330)
"""Where the parts of the long prompt begin; the last is a small one."""


def long_prompt(backend: Backend) -> list[int]:
    tokens = prompt_tokens(backend, " ".join(PROMPTS * 20))
    return tokens[:400]


def aside(
    backend: Backend,
    tokens: list[int],
    start: int,
    end: int,
    between: Callable[[], bool] = go_on,
    *,
    slot: int = 1,
) -> ForwardResult:
    """Compute a part of a prompt, the first of which opens the slot."""
    chunk = Chunk(slot, start, tokens[start:end], num_outputs=int(end == len(tokens)))
    opened = [] if start else [Opening(slot, tuple(tokens), len(tokens), GREEDY)]
    ops = fresh(opened)
    return backend.forward(
        Batch(BatchKind.GENERATION, [chunk], opened, ops, is_aside=True), between
    )


def parts(tokens: list[int]) -> list[tuple[int, int]]:
    return list(zip(PARTS, [*PARTS[1:], len(tokens)], strict=True))


def go_on_from(backend: Backend, tokens: list[int], first: Outputs, slot: int = 1) -> list[int]:
    """What follows, with the usual batches."""
    found = sampled(first, slot)
    for position in range(len(tokens), len(tokens) + NUM_TOKENS - 1):
        found += sampled(forward(backend, [Chunk(slot, position, [found[-1]], 1)]), slot)
    return found


class AsideConformance:
    def test_nothing_depends_on_where_a_prompt_is_computed(self, aside_backend: Backend) -> None:
        """Others are computed in the pauses, and that does not matter to either."""
        prompt = long_prompt(aside_backend)
        expected = generate(aside_backend, prompt, NUM_TOKENS, chunk_tokens=64)
        short = prompt_tokens(aside_backend, PROMPTS[1])
        alone = generate(aside_backend, short, 3 * NUM_TOKENS)
        opened = [Opening(0, tuple(short), len(short), GREEDY)]
        first = forward(aside_backend, [Chunk(0, 0, short, 1)], opened=opened)
        beside, num_pauses = sampled(first, 0), 0

        def decode() -> bool:
            nonlocal num_pauses
            num_pauses += 1
            if num_pauses % 9 == 0 and len(beside) < len(alone):
                chunk = Chunk(0, len(short) + len(beside) - 1, [beside[-1]], 1)
                beside.extend(sampled(forward(aside_backend, [chunk]), 0))
            return True

        for start, end in parts(prompt):
            result = aside(aside_backend, prompt, start, end, decode)
            assert isinstance(result, Outputs)
        assert go_on_from(aside_backend, prompt, result) == expected
        assert beside == alone[: len(beside)]
        assert len(beside) > NUM_TOKENS

    def test_a_prompt_goes_on_aside_from_shared_cells(self, aside_backend: Backend) -> None:
        prompt = long_prompt(aside_backend)
        expected = generate(aside_backend, prompt, NUM_TOKENS, chunk_tokens=100)
        ops = [DropCells(1), CopyCells(0, 1, 0, 100), DropCells(0)]
        opened = [Opening(1, tuple(prompt), len(prompt), GREEDY)]
        aside_backend.forward(Batch(BatchKind.GENERATION, [], opened, [*ops]))
        for start, end in ((100, 250), (250, 400)):
            result = aside(aside_backend, prompt, start, end)
            assert isinstance(result, Outputs)
        assert go_on_from(aside_backend, prompt, result) == expected

    def test_what_was_given_up_can_be_computed_again(self, aside_backend: Backend) -> None:
        prompt = long_prompt(aside_backend)
        expected = generate(aside_backend, prompt, NUM_TOKENS, chunk_tokens=100)
        assert isinstance(aside(aside_backend, prompt, 0, 150), Outputs)
        assert aside(aside_backend, prompt, 150, 400, lambda: False) == Stopped()
        result = forward(aside_backend, [Chunk(1, 150, prompt[150:], 1)])
        assert go_on_from(aside_backend, prompt, result) == expected

    def test_the_cells_of_another_prompt_in_the_slot_do_not_matter(
        self, aside_backend: Backend
    ) -> None:
        prompt = long_prompt(aside_backend)
        other = prompt[7:]
        expected = generate(aside_backend, other, NUM_TOKENS, chunk_tokens=100)
        aside(aside_backend, prompt, 0, 150)
        opened = [Opening(1, tuple(other), len(other), GREEDY)]
        forward(aside_backend, [Chunk(1, 0, other[:150], 0)], opened=opened)
        result = aside(aside_backend, other, 150, len(other))
        assert isinstance(result, Outputs)
        assert go_on_from(aside_backend, other, result) == expected

    def test_what_is_raised_in_a_pause_is_raised_here(self, aside_backend: Backend) -> None:
        prompt = long_prompt(aside_backend)
        expected = generate(aside_backend, prompt, NUM_TOKENS, chunk_tokens=100)

        def fail() -> bool:
            raise EOFError

        with pytest.raises(EOFError):
            aside(aside_backend, prompt, 0, 150, fail)
        for start, end in parts(prompt):
            result = aside(aside_backend, prompt, start, end)
            assert isinstance(result, Outputs)
        assert go_on_from(aside_backend, prompt, result) == expected
