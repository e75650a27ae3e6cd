"""What becomes of an encoder's hidden states: pooled into a vector, or made into scores.

Owns the arithmetic of sentence-transformers' modules (modules/pooling.py, dense.py, normalize.py,
version 6.2) and of transformers' text-classification pipeline. What a model's files ask for is
`encoder_files.py`'s.

Shapes: hidden states are [texts, tokens, length], a mask [texts, tokens] with 1 for a token and 0
for padding behind the text, vectors [texts, length].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from safetensors.torch import load_file
from torch import nn

from openclawd.backends.base import CannotLoad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from openclawd.backends.base import Scoring
    from openclawd.backends.encoder_files import DenseFiles, Embedding

    Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_MODULES: Final[dict[str, type[nn.Module]]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid,
}


class EmbeddingHead:
    """Hidden states to vectors, as the model's files say. The dense layers are read here; raises
    `CannotLoad`. Vectors are float32 whatever the states are."""

    def __init__(self, embedding: Embedding, device: torch.device) -> None:
        self._pools = [_POOLS[mode] for mode in embedding.pooling]
        self._dense = [_dense(files).to(device) for files in embedding.dense]
        self._is_normalised = embedding.is_normalised

    def __call__(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        vectors = torch.cat([pool(states, mask).float() for pool in self._pools], dim=-1)
        for layer in self._dense:
            vectors = layer(vectors)
        return nn.functional.normalize(vectors, dim=-1) if self._is_normalised else vectors


def scores(logits: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """What the numbers of several labels mean; that of a single one stays as it is."""
    if logits.shape[-1] == 1:
        return logits
    match scoring:
        case "softmax":
            return logits.softmax(dim=-1)
        case "sigmoid":
            return logits.sigmoid()
        case "raw":
            return logits


# ---- pooling ----


def _first(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    del mask
    return states[:, 0]


def _last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]


def _max(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _sum(states, mask) / mask.sum(dim=1, keepdim=True)


def _mean_sqrt(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _sum(states, mask) / mask.sum(dim=1, keepdim=True).sqrt()


def _weighted_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A token counts by its place in the text, from 1."""
    weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return _sum(states, weights) / weights.sum(dim=1, keepdim=True)


def _sum(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """In 32 bits whatever the states have, as a product of matrices."""
    return torch.bmm(weights.float().unsqueeze(1), states.float()).squeeze(1)


_POOLS: Final[dict[str, Pool]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


# ---- dense layers ----


def _dense(files: DenseFiles) -> nn.Module:
    path = files.folder / "model.safetensors"
    if not path.is_file():
        raise CannotLoad(
            f"{path} does not exist, and openclawd reads no pickled weights",
            hint="save the model again with sentence-transformers 3 or later",
            permanent=True,
        )
    try:
        weights = load_file(path)
        return _linear(weights, _MODULES[files.activation]())
    except Exception as error:  # safetensors raises what it likes for what it cannot read
        raise CannotLoad(
            f"{path} holds no dense layer: {error}",
            hint="copy or download the model's folder again",
            permanent=True,
        ) from None


def _linear(weights: dict[str, torch.Tensor], activation: nn.Module) -> nn.Module:
    weight, bias = weights["linear.weight"], weights.get("linear.bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _fill(layer, (("weight", weight), ("bias", bias)))
    return nn.Sequential(layer, activation).float().eval().requires_grad_(requires_grad=False)


def _fill(layer: nn.Linear, tensors: Iterable[tuple[str, torch.Tensor | None]]) -> None:
    state = {name: tensor for name, tensor in tensors if tensor is not None}
    layer.load_state_dict(state)
