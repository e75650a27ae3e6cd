"""How many layers of a model fit on its GPUs, and which on which. Pure arithmetic.

llama.cpp puts the last layers on the GPUs, the output counted as the last of all
(`llama_model::load_tensors`, `i_gpu_start`), and spreads those over several GPUs in order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Offload:
    """`num_layers` from the end, the output counted as one; `counts` of them on each GPU."""

    num_layers: int
    counts: tuple[int, ...]


def fit_layers(
    layers: Sequence[int], budgets: Sequence[int], shares: Sequence[float] | None = None
) -> Offload:
    """The most layers that fit. `layers` are bytes from the first one to the output, with their
    part of the cache; `budgets` are bytes on each GPU. With `shares` the GPUs get as many of them
    as these say, else by their budgets, or else one GPU is filled after the other."""
    weights = list(shares) if shares is not None else [float(budget) for budget in budgets]
    for num_layers in range(len(layers), 0, -1):
        last = layers[len(layers) - num_layers :]
        counts = _by_shares(num_layers, weights[: len(budgets)])
        if _fits(last, counts, budgets):
            return Offload(num_layers, tuple(counts))
        counts = _one_after_the_other(last, budgets)
        if shares is None and sum(counts) == num_layers:
            return Offload(num_layers, tuple(counts))
    return Offload(0, (0,) * len(budgets))


def _by_shares(num_layers: int, shares: Sequence[float]) -> list[int]:
    """As llama.cpp does with its `tensor_split`: layer i goes to the first GPU whose cumulated
    share is above i / num_layers."""
    total = sum(shares)
    if not total:
        return [0] * len(shares)
    ends = [sum(shares[: index + 1]) / total for index in range(len(shares))]
    counts = [0] * len(shares)
    for layer in range(num_layers):
        counts[next(i for i, end in enumerate(ends) if end > layer / num_layers)] += 1
    return counts


def _one_after_the_other(layers: Sequence[int], budgets: Sequence[int]) -> list[int]:
    left, counts, gpu = list(budgets), [0] * len(budgets), 0
    for size in layers:
        while gpu < len(left) and left[gpu] < size:
            gpu += 1
        if gpu == len(left):
            break
        left[gpu] -= size
        counts[gpu] += 1
    return counts


def _fits(layers: Sequence[int], counts: Sequence[int], budgets: Sequence[int]) -> bool:
    rest = iter(layers)
    parts = [sum(itertools.islice(rest, count)) for count in counts]
    return sum(counts) == len(layers) and all(
        part <= budget for part, budget in zip(parts, budgets, strict=True)
    )
