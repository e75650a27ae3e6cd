"""Encoders on torch: sentence encoders, sequence classification, cross-encoders.

Owns one call of the model for texts of about the same length, and what becomes of what it gives.
Nothing is kept between steps: a slot is a place in a batch, and its text comes whole. How the model
is read is `torch_encoder_load.py`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from openclawd.backends.base import (
    BatchLimits,
    ChatFormat,
    DecodeFailed,
    ForwardResult,
    GrammarFailed,
    InfillTokens,
    LoadSpec,
    ModelInfo,
    go_on,
)
from openclawd.backends.encoder_groups import groups_of
from openclawd.backends.torch_encoder_load import LoadedEncoder, load_encoder
from openclawd.engine.batch import Batch, Outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from openclawd.backends.pytorch_options import Options

_CALL_TOKENS: Final = {"cpu": 48}
_CALL_TOKENS_ELSEWHERE: Final = 2048
"""What a call of a model takes beside its tokens, in tokens. A GPU is not busy with a few
hundred."""


def load(spec: LoadSpec, options: Options, on_progress: Callable[[float], bool]) -> TorchEncoder:
    """Load a folder with a transformers model. Raises `CannotLoad` and `LoadAborted`."""
    return TorchEncoder(load_encoder(spec, options, on_progress))


class TorchEncoder:
    """The `Backend` protocol (`base.py`) for models that read whole texts. Owns `loaded`."""

    def __init__(self, loaded: LoadedEncoder) -> None:
        self._loaded = loaded
        self._call_tokens = _CALL_TOKENS.get(loaded.device.type, _CALL_TOKENS_ELSEWHERE)
        tokens = loaded.tokens
        self.tokenize = tokens.tokenize
        self.detokenize = tokens.detokenize
        self.pair_format = tokens.pair_format
        self.control_texts: tuple[str, ...] = ()
        self.infill_tokens: InfillTokens | None = None
        self.max_token_bytes = 0  # a tokenizer may normalise, or put one token for a whole word
        self.chat_format = ChatFormat(
            template=None,
            bos_text="",
            eos_text="",
            adds_bos=tokens.adds_bos,
            adds_eos=tokens.adds_eos,
        )

    @property
    def info(self) -> ModelInfo:
        return self._loaded.info

    @property
    def limits(self) -> BatchLimits:
        return self._loaded.limits

    @property
    def build(self) -> str:
        return f"torch {torch.__version__}"

    def piece(self, token: int) -> bytes:
        return self.detokenize([token])

    def is_end(self, token: int) -> bool:
        """Nothing is generated."""
        del token
        return True

    def check_grammar(self, grammar: str) -> None:
        del grammar
        raise GrammarFailed("an encoder makes no text")

    def forward(self, batch: Batch, between: Callable[[], bool] = go_on) -> ForwardResult:
        """See `Backend.forward`. There are no cells to change and no slots to set up."""
        del between
        result = Outputs()
        texts = [chunk.tokens for chunk in batch.chunks]
        groups = groups_of(
            [len(text) for text in texts],
            call_tokens=self._call_tokens,
            pads=self._loaded.pads,
        )
        try:
            for group in groups:
                slots = [batch.chunks[place].slot for place in group]
                vectors = self._loaded.compute([texts[place] for place in group])
                _put(result, slots, vectors)
        except RuntimeError as error:  # out of memory, or the device is gone
            return DecodeFailed(str(error).partition("\n")[0] or type(error).__name__)
        return result

    def copy_cells_out(self, owner: int) -> bytes:
        """There are none."""
        del owner
        return b""

    def copy_cells_in(self, owner: int, data: bytes) -> bool:
        del owner, data
        return False

    def stow(self, tag: int, data: bytes) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        self._loaded.free()


def _put(result: Outputs, slots: Sequence[int], vectors: torch.Tensor) -> None:
    """The vectors of a group, one for each slot, as little-endian float32."""
    is_sound = torch.isfinite(vectors).all(dim=1).tolist()
    rows: npt.NDArray[Any] = vectors.numpy().astype("<f4", copy=False)
    for slot, row, is_good in zip(slots, rows, is_sound, strict=True):
        if is_good:
            result.vectors[slot] = row.tobytes()
        else:
            result.garbage.add(slot)
