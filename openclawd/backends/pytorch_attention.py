"""Attention over a pool of KV cells, as transformers' models call it.

Owns the pool, and what one step is to each layer: which cells its tokens' keys and values go to,
and over which cells each token looks back. The tokens of all sequences lie one after the other in
one row, so nothing is padded but the cells of sequences that decode together.

Invariant: a sequence is computed from its own cells alone. What fills up a row of cells is the
sequence's own first cell, so that one sequence's not-a-number is nobody else's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

NAME: Final = "openclawd"
"""Of this attention, among those that transformers knows."""

_LAYER: Final = "_openclawd_layer"

_MOST_PADDING: Final = 2.0
"""Sequences decode together if the longest has at most so many times the cells of the shortest
(and `_SPARE_CELLS` more)."""

_SPARE_CELLS: Final = 64


class KvPool:
    """The keys and values of every cell. Their sizes are the model's secret until it computes
    something, so the first step makes room for each layer; `num_cells` are then there for good."""

    def __init__(self, num_cells: int, device: torch.device) -> None:
        self.num_cells = num_cells
        self.device = device
        self.rows: dict[int, torch.Tensor] = {}
        self.step = Step()

    @property
    def num_bytes(self) -> int:
        return sum(rows.nbytes for rows in self.rows.values())

    def attach(self, model: torch.nn.Module) -> None:
        """Let every layer of a model find this pool."""
        for module in model.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, _LAYER, (self, module.layer_idx))

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Keep the step's keys and values, [tokens, width] each; all rows of the layer."""
        width = keys.shape[1]
        rows = self.rows.get(layer)
        if rows is None:
            shape = (self.num_cells, width + values.shape[1])
            rows = torch.zeros(shape, dtype=keys.dtype, device=self.device)
            self.rows[layer] = rows
        rows[:, :width].index_copy_(0, self.step.cells, keys)
        rows[:, width:].index_copy_(0, self.step.cells, values)
        return rows


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens `[start, end)` of the step, in `num_rows` sequences of as many tokens each, and the
    cells that these look back over: as many for each, filled up where it has fewer.

    `last` are the positions of the tokens, [rows, tokens]. `is_whole`: one sequence from its first
    token on. `needs_mask` is False where every token looks over all cells."""

    start: int
    end: int
    num_rows: int
    cells: torch.Tensor
    last: torch.Tensor
    is_whole: bool
    needs_mask: bool
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def queries(self, query: torch.Tensor) -> torch.Tensor:
        """Of these tokens, [rows, heads, tokens, width], from those of the step."""
        own = query[0, :, self.start : self.end]
        return own.unflatten(1, (self.num_rows, -1)).transpose(0, 1)

    def looked_at(
        self, rows: torch.Tensor, num_heads: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys, of this width, and the values: [rows, heads, cells, width] each."""
        gathered = rows.index_select(0, self.cells).unflatten(0, (self.num_rows, -1))
        split = num_heads * width
        keys = gathered[..., :split].unflatten(2, (num_heads, -1))
        values = gathered[..., split:].unflatten(2, (num_heads, -1))
        return keys.transpose(1, 2), values.transpose(1, 2)

    def mask(self, window: int | None) -> torch.Tensor | None:
        """Which cells a token looks at: [rows, 1, tokens, cells]. Made once for all layers with the
        same window."""
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int | None) -> torch.Tensor | None:
        num_cells = self.cells.numel() // self.num_rows
        if not self.needs_mask and (window is None or num_cells <= window):
            return None
        positions = torch.arange(num_cells, device=self.last.device)
        last = self.last[:, :, None]
        mask = positions <= last
        if window is not None:
            mask &= positions > last - window
        return mask[:, None]


@dataclass(frozen=True, slots=True)
class Step:
    """`cells` are those of the step's tokens, in their order."""

    cells: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    parts: tuple[Part, ...] = ()


def decoding_groups(lengths: Sequence[int]) -> list[range]:
    """Sequences that decode together, in ascending order of their lengths: those whose lengths are
    alike enough for the shorter ones' cells to be filled up."""
    groups, start = [], 0
    for end in range(1, len(lengths) + 1):
        is_last = end == len(lengths)
        if is_last or lengths[end] > _MOST_PADDING * lengths[start] + _SPARE_CELLS:
            groups.append(range(start, end))
            start = end
    return groups


def decoding_part(
    start: int, tables: Sequence[npt.NDArray[np.int64]], device: torch.device
) -> Part:
    """One token each of sequences that have the cells of `tables`."""
    lengths = np.array([len(table) for table in tables], dtype=np.int64)
    cells = np.empty((len(tables), lengths.max()), dtype=np.int64)
    for row, table in zip(cells, tables, strict=True):
        row[: len(table)] = table
        row[len(table) :] = table[0]
    return Part(
        start=start,
        end=start + len(tables),
        num_rows=len(tables),
        cells=torch.from_numpy(cells.reshape(-1)).to(device),
        last=torch.from_numpy(lengths[:, None] - 1).to(device),
        is_whole=False,
        needs_mask=bool((lengths != lengths[0]).any()),
    )


def prompt_part(
    start: int, num_tokens: int, table: npt.NDArray[np.int64], device: torch.device
) -> Part:
    """The last `num_tokens` of a sequence that has the cells of `table`."""
    first = len(table) - num_tokens
    return Part(
        start=start,
        end=start + num_tokens,
        num_rows=1,
        cells=torch.from_numpy(table.copy()).to(device),
        last=torch.arange(first, len(table), device=device)[None],
        is_whole=first == 0,
        needs_mask=True,
    )


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: [1, heads, tokens, width] in, [1, tokens, heads, width]
    out. The mask of a model that knows no sequences is not looked at."""
    del attention_mask
    pool, layer = getattr(module, _LAYER)
    rows = pool.write(layer, _flat(key), _flat(value))
    num_heads, width = key.shape[1], key.shape[3]
    window = sliding_window or getattr(module, "sliding_window", None)
    compute: Callable[..., torch.Tensor] = _fused
    if softcap is not None or s_aux is not None:
        compute = functools.partial(_capped, softcap=softcap, sinks=s_aux)
    output = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    for part in pool.step.parts:
        attended = compute(
            part.queries(query),
            *part.looked_at(rows, num_heads, width),
            part=part,
            window=window,
            scaling=scaling,
        )
        output[part.start : part.end] = attended.transpose(1, 2).flatten(0, 1)
    return output[None], None


def _flat(heads: torch.Tensor) -> torch.Tensor:
    """[1, heads, tokens, width] as [tokens, heads times width]."""
    return heads[0].transpose(0, 1).reshape(heads.shape[2], -1)


def _fused(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    part: Part,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    """torch's own: [rows, heads, tokens, width] of each."""
    num_kv_heads, num_tokens = keys.shape[1], queries.shape[2]
    group = queries.shape[1] // num_kv_heads
    is_causal = part.is_whole and (window is None or num_tokens <= window)
    mask = None if is_causal else part.mask(window)
    if num_tokens == 1:  # heads that share keys are as many tokens to it
        queries = queries.reshape(part.num_rows, num_kv_heads, group, -1)
    elif group > 1:
        keys, values = (each.repeat_interleave(group, dim=1) for each in (keys, values))
    output = functional.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=is_causal and num_tokens > 1,
        scale=scaling,
    )
    return output.reshape(part.num_rows, -1, num_tokens, values.shape[-1])


def _capped(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    part: Part,
    window: int | None,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Step by step, for models whose scores are capped (Gemma 2) or that may look at nothing
    (gpt-oss: `sinks` is a score for that, one for each head)."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = (each.repeat_interleave(group, dim=1) for each in (keys, values))
    scores = (queries @ keys.transpose(2, 3)).float() * (scaling or queries.shape[-1] ** -0.5)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    mask = part.mask(window)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        nothing = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, nothing], dim=-1)
    shares = scores.softmax(dim=-1)
    if sinks is not None:
        shares = shares[..., :-1]
    return shares.to(values.dtype) @ values


AttentionInterface.register(NAME, _attend)
