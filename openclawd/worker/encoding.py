"""What a model can do with texts: generate, embed, classify, rank.

Owns the refusals of what it cannot, each with the reason and what it can do instead. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openclawctl.wire.errors import Unsupported
from openclawctl.wire.operations import EmbedParams
from openclawctl.wire.scoring import ClassifyParams

if TYPE_CHECKING:
    from openclawd.backends.base import Backend, ModelInfo, PairFormat


def check_generation(info: ModelInfo) -> None:
    """Raises `Unsupported` for a model that makes no text."""
    if not info.can_generate:
        raise Unsupported(
            f"this model is an encoder ({info.architecture}): it makes no text",
            hint=f"use {_abilities(info)}, or another model",
        )


def check_encoding(params: EmbedParams | ClassifyParams, info: ModelInfo) -> None:
    """Raises `Unsupported` for a model that cannot do it."""
    if isinstance(params, EmbedParams) and not info.can_embed:
        raise Unsupported(
            f"this model has been trained to give {_gives(info)}, not to embed",
            hint=f"use {_abilities(info)}, or an embedding model",
        )
    if isinstance(params, ClassifyParams) and not info.labels:
        raise Unsupported(
            f"this model ({info.architecture}) has no labels: it cannot classify",
            hint=f"use {_abilities(info)}, or a sequence-classification model (torch)",
        )


def pair_format_of(backend: Backend) -> PairFormat:
    """How two texts are put together for the model. Raises `Unsupported` for one that cannot
    rank."""
    info, pair = backend.info, backend.pair_format
    if info.rank_scores is not None and pair is not None:
        return pair
    reason = f"this model ({info.architecture}) compares no texts"
    if len(info.labels) > 1:
        reason = f"this model gives {_gives(info)}; a ranking needs one"
    raise Unsupported(
        f"{reason}: it cannot rank", hint=f"use {_abilities(info)}, or a cross-encoder (torch)"
    )


def _gives(info: ModelInfo) -> str:
    num_labels = len(info.labels)
    return "one score" if num_labels == 1 else f"the scores of {num_labels} labels"


def _abilities(info: ModelInfo) -> str:
    """The operations that it is for."""
    able = {
        "generate": info.can_generate,
        "embed": info.can_embed,
        "classify": bool(info.labels),
        "rerank": info.rank_scores is not None,
    }
    return " or ".join(name for name, is_able in able.items() if is_able)
