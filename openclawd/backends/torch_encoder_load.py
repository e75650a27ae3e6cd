"""Reading an encoder's folder into torch: the transformer, its tokenizer, its head.

Owns how long a text may be, what the model turns out to be, and one call of it. How transformers is
called to read it is `pytorch_load.py`'s.
"""

from __future__ import annotations

import inspect
import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers

from openclawd.backends.base import BatchLimits, CannotLoad, LoadSpec, ModelInfo
from openclawd.backends.encoder_files import EncoderFiles, Labelling, read_encoder_files
from openclawd.backends.encoder_tokens import EncoderTokens
from openclawd.backends.pytorch_load import load_config, load_tokenizer, load_weights
from openclawd.backends.torch_heads import EmbeddingHead, scores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openclawd.backends.pytorch_options import Options

MAX_SLOTS: Final = 256
"""Texts in one step. They take no memory between steps, so they are not counted by `parallel`."""

STEP_BUDGETS: Final = 2
"""What a step may have, in `batch_tokens`: those keep the pace of streams, and there are none.
Twice as large, it computed texts of 34 tokens 12 % faster; four times as large, 13 %
(all-MiniLM-L6-v2 on two cores of an EPYC, 2026-11-30)."""

_UNBOUNDED: Final = 10**9
"""What tokenizers say who know no longest text is above this."""

_NO_TOKEN: Final = -1
_NOBODY: Final = -1
_TRIAL: Final = ("a", "a text of a few more words")

_SAME: Final = 1e-3
"""The most that padding or others in a row may change of a number. Without any reason to, they do
by 1e-6."""


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """A model that is ready. `pads`: may texts of different lengths be computed together? `packs`:
    may they stand in one row? Positions begin at `first_position`."""

    model: Any
    head: Callable[[Any, torch.Tensor], torch.Tensor]
    tokens: EncoderTokens
    device: torch.device
    info: ModelInfo
    limits: BatchLimits
    takes_types: bool
    first_position: int
    pads: bool = False
    packs: bool = False

    def compute(self, rows: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
        """A vector for each text of each row, on the CPU as float32. Raises `RuntimeError` for what
        the device cannot do."""
        texts = [text for row in rows for text in row]
        length = max(map(len, texts))
        lengths = torch.tensor(list(map(len, texts))).unsqueeze(1)
        mask = (torch.arange(length) < lengths).long().to(self.device)
        with torch.inference_mode():
            if len(texts) == len(rows):
                output = self._padded(texts, mask)
            else:
                output = self._packed(rows, length)
            return self.head(output, mask).float().cpu()

    def _padded(self, texts: Sequence[Sequence[int]], mask: torch.Tensor) -> Any:
        """What the model says of texts that have a row each."""
        length = mask.shape[1]
        given = {
            "input_ids": self._filled(texts, length, max(self.model.config.pad_token_id or 0, 0))
        }
        if length * len(texts) > sum(map(len, texts)):
            given["attention_mask"] = mask
        if self.takes_types:
            firsts = torch.tensor([self.tokens.num_in_first(text) for text in texts]).unsqueeze(1)
            given["token_type_ids"] = (torch.arange(length) >= firsts).long().to(self.device)
        return self.model(**given)

    def _packed(self, rows: Sequence[Sequence[Sequence[int]]], length: int) -> Any:
        """The same of texts that share rows, each as if it had its own: a token sees those of its
        text, and its position is that in its text."""
        width = max(sum(map(len, row)) for row in rows)
        tokens = [[token for text in row for token in text] for row in rows]
        places = [[place for text in row for place in range(len(text))] for row in rows]
        owners = [[number for number, text in enumerate(row) for _ in text] for row in rows]
        owner = self._filled(owners, width, _NOBODY)
        is_foreign = owner.unsqueeze(2) != owner.unsqueeze(1)
        mask = torch.zeros(is_foreign.shape, dtype=self.model.dtype, device=self.device)
        mask.masked_fill_(is_foreign, torch.finfo(self.model.dtype).min)
        ids = self._filled(tokens, width, 0)
        given = {"input_ids": ids, "attention_mask": mask.unsqueeze(1)}
        given["position_ids"] = self._filled(places, width, 0) + self.first_position
        if self.takes_types:
            given["token_type_ids"] = torch.zeros_like(ids)
        output = self.model(**given)
        output.last_hidden_state = _unpacked(output.last_hidden_state, rows, length)
        return output

    def _filled(self, rows: Sequence[Sequence[int]], width: int, filler: int) -> torch.Tensor:
        filled = [[*row, *[filler] * (width - len(row))] for row in rows]
        return torch.tensor(filled, device=self.device)

    def free(self) -> None:
        """Python's reference counts free the tensors with the model."""


def _unpacked(
    states: torch.Tensor, rows: Sequence[Sequence[Sequence[int]]], length: int
) -> torch.Tensor:
    """Of hidden states [rows, tokens, size], those of each text: [texts, `length` tokens, size],
    where anything may stand behind a text."""
    width = states.shape[1]
    starts = [
        number * width + start
        for number, row in enumerate(rows)
        for start in itertools.accumulate(map(len, row[:-1]), initial=0)
    ]
    flat = states.flatten(0, 1)
    places = torch.tensor(starts, device=flat.device).unsqueeze(1)
    places = places + torch.arange(length, device=flat.device)
    return flat[places.clamp_(max=len(flat) - 1)]


def keeps_nothing(config: Any) -> bool:
    """Does a model of transformers leave itself as it was when it is called? Not one whose
    frequencies follow the length of its input (`dynamic_rope_update`), nor BigBird, which changes
    its attention for short ones."""
    rope = repr(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    follows_length = "dynamic" in rope or "longrope" in rope
    return not follows_length and getattr(config, "attention_type", "") != "block_sparse"


def load_encoder(
    spec: LoadSpec, options: Options, on_progress: Callable[[float], bool]
) -> LoadedEncoder:
    """Raises `CannotLoad` and `LoadAborted`."""
    files = read_encoder_files(Path(spec.path))
    config = load_config(spec, options)
    if getattr(config, "is_encoder_decoder", False):
        raise _unusable(files, f"{files.architecture} is an encoder with a decoder")
    torch.set_num_threads(spec.threads or len(os.sched_getaffinity(0)))
    model = _read_model(spec, options, files, config, on_progress)
    return _checked(spec, files, model, _read_tokens(spec, options, files, config), options.device)


def _read_model(
    spec: LoadSpec,
    options: Options,
    files: EncoderFiles,
    config: Any,
    on_progress: Callable[[float], bool],
) -> Any:
    """BERT's pooler is a part of the way to labels, and of no use for anything else."""
    if isinstance(files.head, Labelling):
        auto = transformers.AutoModelForSequenceClassification
        return load_weights(spec, options, config, auto, on_progress)
    auto = transformers.AutoModel
    return load_weights(spec, options, config, auto, on_progress, optional="pooler.")


def _read_tokens(
    spec: LoadSpec, options: Options, files: EncoderFiles, config: Any
) -> EncoderTokens:
    tokenizer = load_tokenizer(spec, options, config)
    if not getattr(tokenizer, "is_fast", False):
        raise _unusable(
            files,
            f"its tokenizer ({type(tokenizer).__name__}) is slow and has no tokenizer.json",
        )
    longest = tokenizer.model_max_length
    return EncoderTokens(
        tokenizer.backend_tokenizer,
        max_tokens=longest if longest < _UNBOUNDED else None,
        lowers_case=files.lowers_case,
    )


# ---- what it is ----


def _checked(
    spec: LoadSpec, files: EncoderFiles, model: Any, tokens: EncoderTokens, device: torch.device
) -> LoadedEncoder:
    context = _context(spec, files, model, tokens)
    budget = max(context, STEP_BUDGETS * spec.batch_tokens)
    slots = max(spec.parallel, min(MAX_SLOTS, budget))
    takes_types = _takes_types(model)
    may_rank = tokens.tells_types() or not takes_types
    loaded = LoadedEncoder(
        model=model,
        head=_head(files, device),
        tokens=tokens,
        device=device,
        info=_describe(spec, files, model, tokens, context=context, slots=slots, may_rank=may_rank),
        limits=BatchLimits(
            batch_tokens=max(budget, slots), embedding_batch_tokens=budget, splits_prompts=False
        ),
        takes_types=takes_types and may_rank,
        first_position=_first_position(model),
    )
    return _tried(files, loaded)


def _head(files: EncoderFiles, device: torch.device) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    match files.head:
        case Labelling(label_scores=scoring):
            return lambda output, mask: scores(output.logits.float(), scoring)
        case embedding:
            pool = EmbeddingHead(embedding, device)
            return lambda output, mask: pool(output.last_hidden_state, mask)


def _context(spec: LoadSpec, files: EncoderFiles, model: Any, tokens: EncoderTokens) -> int:
    """The longest text: the least that the configuration, the model's files and its positions
    allow."""
    bounds = [files.max_tokens, tokens.max_tokens, _num_positions(model)]
    return min(spec.context, *(bound for bound in bounds if bound is not None))


def _num_positions(model: Any) -> int | None:
    """None where positions are not counted in a table."""
    if (table := _position_table(model)) is not None:
        size: int = table.num_embeddings
        return size - _first_position(model)
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def _first_position(model: Any) -> int:
    """Some tables begin behind their padding."""
    table = _position_table(model)
    padding: int | None = None if table is None else table.padding_idx
    return 0 if padding is None else padding + 1


def _position_table(model: Any) -> torch.nn.Embedding | None:
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module
    return None


def _takes_types(model: Any) -> bool:
    """Does it tell the second of two texts from the first?"""
    has_types = (getattr(model.config, "type_vocab_size", None) or 0) > 1
    return has_types and "token_type_ids" in inspect.signature(model.forward).parameters


def _describe(
    spec: LoadSpec,
    files: EncoderFiles,
    model: Any,
    tokens: EncoderTokens,
    *,
    context: int,
    slots: int,
    may_rank: bool,
) -> ModelInfo:
    weights = list(model.parameters())
    about: dict[str, Any] = {}
    match files.head:
        case Labelling(labels, label_scores, rank_scores):
            about = {"labels": labels, "label_scores": label_scores}
            about["rank_scores"] = rank_scores if may_rank else None
        case embedding:
            about = {"pooling": " + ".join(embedding.pooling)}
            about["is_normalised"] = embedding.is_normalised
    positions = _num_positions(model) or context
    return ModelInfo(
        description=f"{files.architecture} {str(model.dtype).removeprefix('torch.')}",
        architecture=files.architecture,
        quantization=str(model.dtype).removeprefix("torch."),
        parameters=sum(weight.numel() for weight in weights),
        size_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        context_train=positions,
        context=context,
        parallel=slots,
        kv_tokens=slots * context,
        embedding_length=0,
        vocab_size=tokens.size,
        can_generate=False,
        can_embed=not isinstance(files.head, Labelling),
        threads=torch.get_num_threads(),
        gpu_layers=0,
        devices=(model.device.type,),
        warnings=(*files.warnings, *_cut_warnings(spec, context)),
        **about,
    )


def _cut_warnings(spec: LoadSpec, context: int) -> tuple[str, ...]:
    if context == spec.context:
        return ()
    return (f"context {spec.context} is cut to {context}, the most there is for a text",)


# ---- does it work ----


def _tried(files: EncoderFiles, loaded: LoadedEncoder) -> LoadedEncoder:
    """With what a call of it shows: how long its vectors are, whether padding changes them (it does
    where the model looks for the last token by itself), and whether sharing a row does (where it
    takes no mask of pairs, or makes its own). Raises `CannotLoad`."""
    config = loaded.model.config
    if config.pad_token_id is None and loaded.info.labels:
        config.pad_token_id = _NO_TOKEN  # else transformers takes one text at a time
    texts = [loaded.tokens.tokenize(text, add_special=True) for text in _TRIAL]
    texts = [text[: loaded.info.context] for text in texts]
    try:
        alone = torch.cat([loaded.compute([[text]]) for text in texts])
    except Exception as error:  # a model's own code computes it
        raise _unusable(files, f"it cannot be computed: {_first_line(error)}") from None
    length = alone.shape[1]
    if loaded.info.labels and length != len(loaded.info.labels):
        named = len(loaded.info.labels)
        raise _unusable(files, f"it gives {length} scores, but config.json names {named} labels")
    info = replace(loaded.info, embedding_length=length)
    pads = _is_same(loaded, [[text] for text in texts], alone)
    packs = pads and loaded.info.can_embed and _is_same(loaded, [texts], alone)
    return replace(loaded, info=info, pads=pads, packs=packs)


def _is_same(
    loaded: LoadedEncoder, rows: Sequence[Sequence[Sequence[int]]], alone: torch.Tensor
) -> bool:
    try:
        together = loaded.compute(rows)
    except Exception:  # a model's own code computes it
        return False
    is_same: bool = torch.allclose(together, alone, rtol=_SAME, atol=_SAME)
    return is_same


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _unusable(files: EncoderFiles, reason: str) -> CannotLoad:
    return CannotLoad(
        f"{files.folder} cannot be used: {reason}",
        hint="copy or download the model's folder again, or use another model",
        permanent=True,
    )
