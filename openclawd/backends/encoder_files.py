"""What the files of an encoder's folder say: what it gives, and how that comes from its layers.

Owns the reading of `modules.json` and what it points to (the layout of sentence-transformers), and
of the labels in `config.json`. The files are hostile input: JSON alone is read, of a bounded size,
in the model's own folder. Knows no ML library.

Rules: with `modules.json` a model embeds as its modules say. Without, a model for sequence
classification gives the scores of its labels, and any other one the normalised mean of its tokens'
vectors.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from openclawd.backends.base import CannotLoad, Scoring

if TYPE_CHECKING:
    from collections.abc import Iterator

POOLING_MODES: Final = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""In the order in which several are put together (sentence-transformers' modules/pooling.py)."""

ACTIVATIONS: Final = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid")
"""Of torch.nn: what may follow a dense layer."""

MAX_LABELS: Final = 10_000
_MAX_LABEL_CHARS: Final = 256
_MAX_JSON_BYTES: Final = 4 * 1024 * 1024
"""Far more than configurations have; of 10,000 labels, 400 bytes each."""

_CLASSIFIES: Final = "ForSequenceClassification"
_ENCODES: Final = ("Model", "ForMaskedLM", "ForPreTraining", _CLASSIFIES)
_GENERATES: Final = "LMHeadModel"
_FLAGS: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How `pooling_mode` was written until sentence-transformers 5."""


@dataclass(frozen=True, slots=True)
class DenseFiles:
    """A linear layer behind the pooling: its folder, and what follows it (`ACTIVATIONS`)."""

    folder: Path
    activation: str


@dataclass(frozen=True, slots=True)
class Embedding:
    """How a vector comes from those of the tokens: pooled, through the dense layers, normalised."""

    pooling: tuple[str, ...]
    dense: tuple[DenseFiles, ...]
    is_normalised: bool


@dataclass(frozen=True, slots=True)
class Labelling:
    """What the numbers of a model for sequence classification are."""

    labels: tuple[str, ...]
    label_scores: Scoring
    rank_scores: Scoring | None


@dataclass(frozen=True, slots=True)
class EncoderFiles:
    """`folder` holds the transformer itself. `max_tokens` is the longest input that the files
    allow, None where they do not say. `warnings` are what they ask for and is not done."""

    folder: Path
    architecture: str
    head: Embedding | Labelling
    max_tokens: int | None
    lowers_case: bool
    warnings: tuple[str, ...] = ()


def is_encoder(folder: Path) -> bool:
    """Is it a model of vectors or scores? Raises `CannotLoad` where its files cannot be read."""
    if (folder / "modules.json").is_file():
        return True
    architecture = _architecture(folder, _read_object(folder / "config.json"))
    return architecture.endswith(_ENCODES) and not architecture.endswith(_GENERATES)


def read_encoder_files(folder: Path) -> EncoderFiles:
    """Raises `CannotLoad`."""
    modules = folder / "modules.json"
    if modules.is_file():
        return _sentence_encoder(folder, _read(modules, list))
    config = _read_object(folder / "config.json")
    architecture = _architecture(folder, config)
    head: Embedding | Labelling = Embedding(("mean",), (), is_normalised=True)
    if architecture.endswith(_CLASSIFIES):
        head = _labelling(folder, config)
    return EncoderFiles(folder, architecture, head, max_tokens=None, lowers_case=False)


# ---- sentence encoders ----


def _sentence_encoder(folder: Path, modules: list[Any]) -> EncoderFiles:
    kinds = [(_module_kind(folder, each), _module_folder(folder, each)) for each in modules]
    if not kinds or kinds[0][0] != "Transformer":
        raise _unusable(folder / "modules.json", "its first module is not a Transformer")
    transformer = kinds[0][1]
    config = _read_object(transformer / "config.json")
    settings = _settings(transformer)
    return EncoderFiles(
        folder=transformer,
        architecture=_architecture(transformer, config),
        head=_embedding(folder, kinds[1:]),
        max_tokens=_integer(settings.get("max_seq_length")),
        lowers_case=settings.get("do_lower_case") is True,
        warnings=tuple(_warnings(folder)),
    )


def _embedding(folder: Path, modules: list[tuple[str, Path]]) -> Embedding:
    """Pooling, then dense layers, then maybe normalising; nothing else."""
    pooling: tuple[str, ...] = ()
    dense: list[DenseFiles] = []
    is_normalised = False
    for kind, path in modules:
        if is_normalised or (kind == "Pooling") is bool(pooling):
            raise _unusable(folder / "modules.json", f"its module {kind} stands in a wrong place")
        match kind:
            case "Pooling":
                pooling = _pooling(path / "config.json")
            case "Dense":
                dense.append(_dense(path))
            case "Normalize":
                is_normalised = True
            case "Dropout":  # does nothing but in training
                pass
            case _:
                raise _unusable(folder / "modules.json", f"openclawd cannot compute module {kind}")
    if not pooling:
        raise _unusable(folder / "modules.json", "it has no Pooling")
    return Embedding(pooling, tuple(dense), is_normalised)


def _module_kind(folder: Path, module: Any) -> str:
    """The class of a module: the last part of its name, for the packages in front have changed."""
    if not isinstance(module, dict) or not isinstance(module.get("type"), str):
        raise _unusable(folder / "modules.json", "it is no list of modules")
    return str(module["type"]).rpartition(".")[2]


def _module_folder(folder: Path, module: dict[str, Any]) -> Path:
    path = module.get("path", "")
    if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
        raise _unusable(folder / "modules.json", "the path of a module leaves the model's folder")
    return folder / path


def _settings(folder: Path) -> dict[str, Any]:
    """`sentence_bert_config.json`; older models have one by another name."""
    for path in sorted(folder.glob("sentence_*_config.json")):
        return _read_object(path)
    return {}


def _pooling(path: Path) -> tuple[str, ...]:
    config = _read_object(path)
    named = config.get("pooling_mode")
    if named is None:
        named = [mode for flag, mode in _FLAGS.items() if config.get(flag) is True] or ["mean"]
    modes = (named,) if isinstance(named, str) else tuple(named) if isinstance(named, list) else ()
    unknown = [mode for mode in modes if mode not in POOLING_MODES]
    if unknown or not modes:
        raise _unusable(path, f"openclawd cannot pool by {(unknown or [named])[0]!r}")
    return modes


def _dense(folder: Path) -> DenseFiles:
    path = folder / "config.json"
    config = _read_object(path)
    activation = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise _unusable(path, f"openclawd does not know the activation {activation[:64]!r}")
    is_plain = config.get("module_input_name", "sentence_embedding") == "sentence_embedding"
    if config.get("use_residual") or not is_plain or config.get("module_output_name"):
        raise _unusable(path, "openclawd computes plain dense layers only")
    return DenseFiles(folder, activation)


def _warnings(folder: Path) -> Iterator[str]:
    path = folder / "config_sentence_transformers.json"
    name = _read_object(path).get("default_prompt_name") if path.is_file() else None
    if name:
        yield (
            f"the model's files name a default prompt ({str(name)[:64]!r}); openclawd puts nothing"
            " before a text: send the prompt with it"
        )


# ---- models for sequence classification ----


def _labelling(folder: Path, config: dict[str, Any]) -> Labelling:
    labels = _labels(folder, config)
    return Labelling(labels, _label_scores(config, labels), _rank_scores(config, labels))


def _labels(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """By number. transformers has two, LABEL_0 and LABEL_1, where a model names none."""
    named = config.get("id2label")
    if named is None:
        number = _integer(config.get("num_labels")) or 2
        named = {str(index): f"LABEL_{index}" for index in range(min(number, MAX_LABELS + 1))}
    if not isinstance(named, dict) or not 1 <= len(named) <= MAX_LABELS:
        raise _unusable(folder / "config.json", f"id2label must name 1 to {MAX_LABELS} labels")
    try:
        return tuple(str(named[str(index)])[:_MAX_LABEL_CHARS] for index in range(len(named)))
    except KeyError as missing:
        reason = f"id2label has no label {missing}"
        raise _unusable(folder / "config.json", reason) from None


def _label_scores(config: dict[str, Any], labels: tuple[str, ...]) -> Scoring:
    """As transformers' text-classification pipeline has it (pipelines/text_classification.py)."""
    match config.get("problem_type"):
        case "regression":
            return "raw"
        case "multi_label_classification":
            return "sigmoid"
        case _:
            return "softmax" if len(labels) > 1 else "sigmoid"


def _rank_scores(config: dict[str, Any], labels: tuple[str, ...]) -> Scoring | None:
    """As sentence-transformers' CrossEncoder has it (`get_default_activation_fn`)."""
    if len(labels) != 1:
        return None
    settings = config.get("sentence_transformers")
    name = settings.get("activation_fn") if isinstance(settings, dict) else None
    name = name or config.get("sbert_ce_default_activation_function")
    return "raw" if str(name).endswith(".Identity") else "sigmoid"


# ---- files ----


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise _unusable(folder / "config.json", "it names neither architectures nor a model_type")
    return kind


def _integer(value: Any) -> int | None:
    """Some files have floats there."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and math.isfinite(value) and value >= 1 else None


def _read_object(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = _read(path, dict)
    return content


def _read(path: Path, kind: type) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON_BYTES + 1)
        if len(data) > _MAX_JSON_BYTES:
            raise _unusable(path, f"it has more than {_MAX_JSON_BYTES} bytes")
        content = json.loads(data)
    except OSError as error:
        raise _unusable(path, error.strerror or "it cannot be read") from None
    except (ValueError, RecursionError):
        raise _unusable(path, "it is not JSON") from None
    if not isinstance(content, kind):
        raise _unusable(path, f"it holds no {'map' if kind is dict else 'list'}")
    return content


def _unusable(path: Path, reason: str) -> CannotLoad:
    return CannotLoad(
        f"{path} cannot be used: {reason}",
        hint="copy or download the model's folder again, or use another model",
        permanent=True,
    )
