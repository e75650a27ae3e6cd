"""Encoders on torch: sentence encoders, sequence classification, cross-encoders.

Owns the calls of the model for texts of about the same length, and what becomes of what they give.
Nothing is kept between steps: a slot is a place in a batch, and its text comes whole. How the model
is read is `torch_encoder_load.py`'s.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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
from openclawd.backends.encoder_groups import groups_of, rows_of, shared_out
from openclawd.backends.torch_encoder_load import LoadedEncoder, keeps_nothing, load_encoder
from openclawd.engine.batch import Batch, Outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from openclawd.backends.pytorch_options import Options
    from openclawd.engine.batch import Chunk

_CALL_TOKENS: Final = {"cpu": 48}
_CALL_TOKENS_ELSEWHERE: Final = 2048
"""What a call of a model takes beside its tokens, in tokens. A GPU is not busy with a few
hundred."""


def load(spec: LoadSpec, options: Options, on_progress: Callable[[float], bool]) -> TorchEncoder:
    """Load a folder with a transformers model. Raises `CannotLoad` and `LoadAborted`."""
    loaded = load_encoder(spec, options, on_progress)
    is_on_cpu = loaded.device.type == "cpu"
    is_reentrant = not options.trust_remote_code and keeps_nothing(loaded.model.config)
    pool = _one_each(loaded.info.threads) if is_on_cpu and is_reentrant else None
    return TorchEncoder(loaded, pool=pool)


class TorchEncoder:
    """The `Backend` protocol (`base.py`) for models that read whole texts. Owns `loaded` and
    `pool`, whose threads may call the model at the same time."""

    def __init__(self, loaded: LoadedEncoder, *, pool: ThreadPoolExecutor | None) -> None:
        self._loaded = loaded
        self._pool = pool
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

    @property
    def packs(self) -> bool:
        """Do short texts share rows?"""
        return self._loaded.packs

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
        rows = self._rows(batch.chunks)
        groups = groups_of(
            [sum(len(chunk.tokens) for chunk in row) for row in rows],
            call_tokens=self._call_tokens,
            pads=self._loaded.pads,
        )
        each_of: Callable[..., Iterable[torch.Tensor]] = map
        if self._pool is not None and len(rows) >= self.info.threads:
            groups, each_of = shared_out(groups, self.info.threads), self._pool.map
        calls = [[rows[number] for number in group] for group in groups]
        inputs = [[[chunk.tokens for chunk in row] for row in call] for call in calls]
        try:
            for call, vectors in zip(calls, each_of(self._loaded.compute, inputs), strict=True):
                _put(result, [chunk.slot for row in call for chunk in row], vectors)
        except RuntimeError as error:  # out of memory, or the device is gone
            return DecodeFailed(str(error).partition("\n")[0] or type(error).__name__)
        return result

    def _rows(self, chunks: Sequence[Chunk]) -> list[list[Chunk]]:
        if not self.packs:
            return [[chunk] for chunk in chunks]
        places = rows_of([len(chunk.tokens) for chunk in chunks])
        return [[chunks[place] for place in row] for row in places]

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
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._loaded.free()


def _one_each(num_threads: int) -> ThreadPoolExecutor | None:
    """Threads of which each computes texts of its own: a call that all of them share stands still
    when one of them has to wait for its core. None where there is but one."""
    if num_threads < 2:
        return None
    return ThreadPoolExecutor(num_threads, "encoder", torch.set_num_threads, (1,))


def _put(result: Outputs, slots: Sequence[int], vectors: torch.Tensor) -> None:
    """The vectors of a group, one for each slot, as little-endian float32."""
    is_sound = torch.isfinite(vectors).all(dim=1).tolist()
    rows: npt.NDArray[Any] = vectors.numpy().astype("<f4", copy=False)
    for slot, row, is_good in zip(slots, rows, is_sound, strict=True):
        if is_good:
            result.vectors[slot] = row.tobytes()
        else:
            result.garbage.add(slot)
