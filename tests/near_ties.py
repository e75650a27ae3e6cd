"""Where two answers to one prompt part, and whether it was a near tie there.

Batches of other shapes round differently, so two tokens whose logits are almost the same may change
places from one run to the next. A test that compares answers allows just that: it counts the
answers that part, and checks at each parting that the model liked both tokens almost equally. The
logits come from a context of its own, which computes the prompt and the common part in one piece
and rounds as little as llama.cpp can.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import llama_cpp
import numpy as np

from openclawd.backends import llama_log
from openclawd.backends.llama_candidates import Candidates
from openclawd.backends.llama_sampler import DrySamplers, Sampler
from openclawd.backends.llama_vocab import LlamaVocab
from openclawd.engine.batch import Opening
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

SMOLLM2_NEAR_TIE: Final = 0.6
"""The bound for SmolLM2 Q4_1. It quantises activations, too, so it rounds coarsely: of 4,000 tokens
of text that it did not write, computed one by one or 64 beside 4 of others instead of 512 at once,
the likeliest one changed at 184, where the gap was 0.46 at most (measured 2026-11-23)."""

_NUM_DRAWS: Final = 64
_NUM_SHIFTED: Final = 64
"""So many of the likeliest tokens are shifted to see whether rounding could change a draw."""


@dataclass(frozen=True, slots=True)
class Parting:
    """Two answers differ at `position`, counted from the start of the answer. There, the logit of
    the one they chose that the model likes less lies `gap` below the best of all: 0 were a tie.
    Of tokens that were drawn, or chosen by more than their logits, `gap` is by how much those must
    be shifted to get now the one, now the other.
    """

    position: int
    gap: float


@dataclass
class NearTies:
    """Compares answers of the model in a GGUF file. Close it, or use it as a context manager.

    `most_gap` is the bound for a near tie, in logits. `adapter` is a LoRA that is applied.
    """

    path: Path
    most_gap: float
    adapter: Path | None = None
    num_compared: int = 0
    partings: list[Parting] = field(default_factory=list)

    def __post_init__(self) -> None:
        llama_log.install()
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
        assert self._model, f"{self.path} does not load"
        self._vocab = LlamaVocab(self._model)
        self._dry = DrySamplers(self._vocab)
        self._candidates = Candidates(self._vocab.size)
        self._lora = None
        if self.adapter is not None:  # freed with the model
            self._lora = llama_cpp.llama_adapter_lora_init(self._model, os.fsencode(self.adapter))
            assert self._lora, f"{self.adapter} does not load"

    def __enter__(self) -> NearTies:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._dry.close()
        llama_cpp.llama_model_free(self._model)

    # ---- comparing ----

    def check(
        self,
        prompt: str | Sequence[int],
        ours: Sequence[int],
        theirs: Sequence[int],
        sampling: SamplingParams | None = None,
    ) -> None:
        """Fail if two answers part at anything but a near tie; if they part at all, count it.

        They are greedy, or drawn as `sampling` says."""
        self.num_compared += 1
        parting = self.parting(prompt, ours, theirs, sampling)
        if parting is None:
            return
        self.partings.append(parting)
        where = f"{list(ours)} and {list(theirs)} part at {parting.position}"
        assert parting.gap <= self.most_gap, f"{where}, where the gap is {parting.gap:.3f}"

    def parting(
        self,
        prompt: str | Sequence[int],
        ours: Sequence[int],
        theirs: Sequence[int],
        sampling: SamplingParams | None = None,
    ) -> Parting | None:
        """Where two answers first differ. None if they are the same; it is an error if one is only
        the beginning of the other, since the token that ends an answer belongs to it."""
        both = zip(ours, theirs, strict=False)
        position = next((i for i, (our, their) in enumerate(both) if our != their), None)
        if position is None:
            assert len(ours) == len(theirs), f"cut short: {list(ours)}, {list(theirs)}"
            return None
        tokens = self.tokens(prompt) if isinstance(prompt, str) else list(prompt)
        tokens += ours[:position]
        chosen = {ours[position], theirs[position]}
        if sampling in (None, SamplingParams(temperature=0)):
            logits = self.logits(tokens)
            gap = float(logits.max() - min(logits[list(chosen)]))
        else:
            opening = Opening(0, tuple(tokens), len(tokens) - position, sampling)
            gap = self._least_shift(opening, chosen)
        return Parting(position, gap)

    # ---- what the model says by itself ----

    def tokens(self, prompt: str) -> list[int]:
        """As `generate` makes them of a prompt."""
        return self._vocab.tokenize(prompt, add_special=True, parse_special=False)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Of the token after these, computed in one batch."""
        with self._context(len(tokens)) as context:
            return self._decode(context, tokens)

    def answer(
        self, prompt: Sequence[int], num_tokens: int, sampling: SamplingParams | None = None
    ) -> list[int]:
        """The likeliest answer, or the one that `sampling` draws, in a context of its own."""
        params = sampling or SamplingParams(temperature=0)
        sampler = self._sampler(Opening(0, tuple(prompt), len(prompt), params), params)
        answer: list[int] = []
        with self._context(len(prompt) + num_tokens) as context:
            self._decode(context, prompt)
            while len(answer) < num_tokens:
                position = len(prompt) + len(answer)
                answer.append(sampler.sample(context, -1, position=position).token)
                self._decode(context, answer[-1:])
        sampler.close()
        return answer

    def is_clear(
        self, prompt: Sequence[int], answer: Sequence[int], sampling: SamplingParams | None = None
    ) -> bool:
        """Is there no near tie in this answer? Then it can be expected word for word."""
        params = sampling or SamplingParams(temperature=0)
        tokens = [*prompt, *answer]
        with self._context(len(tokens)) as context:
            self._decode(context, prompt)
            for position in range(len(prompt), len(tokens)):
                best, second = np.sort(self._logits(context))[[-1, -2]]
                if params == SamplingParams(temperature=0):
                    is_clear = best - second > self.most_gap
                else:
                    opening = Opening(0, tuple(tokens[:position]), len(prompt), params)
                    is_clear = len(self._drawn(context, opening, self.most_gap)) == 1
                if not is_clear:
                    return False
                self._decode(context, tokens[position : position + 1])
        return True

    def _least_shift(self, opening: Opening, chosen: set[int]) -> float:
        """By how much logits must be shifted, at random, for every chosen token to be drawn."""
        with self._context(len(opening.tokens)) as context:
            self._decode(context, opening.tokens)
            for shift in self.most_gap / 8, self.most_gap / 4, self.most_gap / 2, self.most_gap:
                if chosen <= self._drawn(context, opening, shift):
                    return shift
        return float("inf")

    def _drawn(self, context: Any, opening: Opening, most_shift: float) -> set[int]:
        """What may be drawn next when logits are shifted at random."""
        likeliest = np.argsort(self._logits(context))[-_NUM_SHIFTED:]
        shifts = np.random.default_rng(1).uniform(
            -most_shift, most_shift, (_NUM_DRAWS, len(likeliest))
        )
        return {self._draw(context, opening, likeliest, each) for each in shifts}

    def _draw(
        self,
        context: Any,
        opening: Opening,
        likeliest: npt.NDArray[np.int64],
        shifts: npt.NDArray[np.float64],
    ) -> int:
        assert opening.sampling is not None
        bias = dict(opening.sampling.logit_bias)
        for token, shift in zip(likeliest.tolist(), shifts.tolist(), strict=True):
            bias[token] = bias.get(token, 0.0) + shift
        sampling = replace(opening.sampling, logit_bias=tuple(bias.items()))
        sampler = self._sampler(opening, sampling)
        token = sampler.sample(context, -1, position=len(opening.tokens)).token
        sampler.close()
        return token

    def _sampler(self, opening: Opening, sampling: SamplingParams) -> Sampler:
        return Sampler(
            opening, sampling, vocab=self._vocab, dry=self._dry, candidates=self._candidates
        )

    @contextlib.contextmanager
    def _context(self, num_tokens: int) -> Iterator[Any]:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = num_tokens
        params.n_threads = params.n_threads_batch = 1  # several wait for each other
        params.swa_full = False
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to 16 bits
        context = llama_cpp.llama_init_from_model(self._model, params)
        assert context
        if self._lora is not None:
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._lora)
            llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0))
        try:
            yield context
        finally:
            llama_cpp.llama_free(context)

    def _decode(self, context: Any, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after these tokens, which follow what the context has."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(array, len(tokens))
        assert llama_cpp.llama_decode(context, batch) == 0
        return self._logits(context)

    def _logits(self, context: Any) -> npt.NDArray[np.float32]:
        """After the last token that was decoded."""
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return np.ctypeslib.as_array(logits, shape=(self._vocab.size,)).copy()
