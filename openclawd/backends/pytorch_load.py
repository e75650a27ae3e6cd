"""Reading a model's folder with transformers: configuration, tokenizer, weights, and one sentence
when it fails.

Owns how transformers is called and what it may do: read local files, safetensors only, and run no
code that comes with a model unless its configuration allows that. What is computed with what is
read here belongs to the modules of the kinds of models.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

# Before transformers is imported: nothing in a worker looks for anything outside this machine.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import torch
import transformers
from safetensors import SafetensorError

from openclawd.backends.base import CannotLoad, LoadAborted
from openclawd.backends.pytorch_vocab import TorchVocab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openclawd.backends.base import LoadSpec
    from openclawd.backends.pytorch_options import Options

_MAX_REASON_CHARS: Final = 300
_TOO_NEW: Final = ("does not recognize this architecture", "Unrecognized")
_NO_MEMORY: Final = ("out of memory", "can't allocate", "not enough memory", "cannot allocate")


def load_config(spec: LoadSpec, options: Options) -> Any:
    """What config.json says the model is. Raises `CannotLoad`."""
    transformers.logging.set_verbosity_error()
    return _guarded(
        spec,
        lambda: transformers.AutoConfig.from_pretrained(spec.path, **_safely(options)),
    )


def load_vocab(spec: LoadSpec, options: Options, config: Any, *, size: int) -> TorchVocab:
    """The tokenizer, for a model with `size` tokens. Raises `CannotLoad`."""
    tokenizer = load_tokenizer(spec, options, config)
    generation = _generation_config(spec, config)
    return TorchVocab(
        tokenizer,
        size,
        end_tokens={
            *_tokens(generation.eos_token_id),
            *_tokens(tokenizer.eos_token_id),
        },
        suppressed_tokens=_tokens(generation.suppress_tokens),
    )


def load_tokenizer(spec: LoadSpec, options: Options, config: Any) -> Any:
    """Transformers' own object. Raises `CannotLoad`."""
    return _guarded(
        spec,
        lambda: transformers.AutoTokenizer.from_pretrained(
            spec.path, config=config, **_safely(options)
        ),
    )


def load_weights(
    spec: LoadSpec,
    options: Options,
    config: Any,
    model_class: Any,
    on_progress: Callable[[float], bool],
    *,
    optional: str = "",
    **more: Any,
) -> Any:
    """A model of `model_class` on its device, ready to compute. `more` is for its
    `from_pretrained`. Tensors whose names hold `optional` may be missing. Raises `CannotLoad` and
    `LoadAborted`."""
    if options.quantize != "off":
        more["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=options.quantize == "8bit", load_in_4bit=options.quantize == "4bit"
        )
    if options.device.type != "cpu" or options.quantize != "off":
        more["device_map"] = {"": options.device}
    hook = transformers.logging.set_tqdm_hook(
        lambda factory, args, kwargs: _Bar(on_progress, *args, **kwargs)
    )
    try:
        model, told = _guarded(
            spec,
            lambda: model_class.from_pretrained(
                spec.path,
                config=config,
                dtype=options.dtype or "auto",
                use_safetensors=True,
                output_loading_info=True,
                **_safely(options),
                **more,
            ),
        )
    finally:
        transformers.logging.set_tqdm_hook(hook)
    _check_complete(
        spec, [name for name in told["missing_keys"] if not (optional and optional in name)]
    )
    model.requires_grad_(requires_grad=False)
    return model.eval()


def no_memory(spec: LoadSpec) -> CannotLoad:
    return CannotLoad(
        f"not enough memory for {spec.path} with {spec.kv_tokens} KV tokens"
        f" ({spec.parallel} sequences, context {spec.context})",
        hint="lower context or parallel of the model, choose dtype: bfloat16, or unload another"
        " model",
        permanent=False,
    )


class _Bar:
    """Stands in for the progress bars of transformers: each thing that is done is told, and may be
    the last. Raises `LoadAborted` then, through transformers."""

    def __init__(
        self,
        on_progress: Callable[[float], bool],
        iterable: Any = None,
        *,
        total: float | None = None,
        **_: Any,
    ) -> None:
        self._on_progress = on_progress
        self._items = iterable
        self._total = total or (len(iterable) if hasattr(iterable, "__len__") else 0)
        self._num_done = 0.0

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield item
            self.update()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        """What else is told to a bar: how it is to look."""
        return lambda *_, **__: None

    def update(self, count: float = 1) -> None:
        self._num_done += count
        if self._total and not self._on_progress(min(self._num_done / self._total, 1.0)):
            raise LoadAborted


def _check_complete(spec: LoadSpec, missing: list[str]) -> None:
    """Transformers makes up what is missing, at random."""
    if missing:
        raise CannotLoad(
            f"{spec.path} lacks {len(missing)} tensors of its model, such as {min(missing)}",
            hint="compare the folder with its source, or try another model",
            permanent=True,
        )


def _safely(options: Options) -> dict[str, Any]:
    return {"local_files_only": True, "trust_remote_code": options.trust_remote_code}


def _generation_config(spec: LoadSpec, config: Any) -> Any:
    """What the model's files say about generating, which not all have."""
    if os.path.exists(os.path.join(spec.path, "generation_config.json")):
        return _guarded(
            spec,
            lambda: transformers.GenerationConfig.from_pretrained(spec.path, local_files_only=True),
        )
    return transformers.GenerationConfig.from_model_config(config)


def _tokens(value: Any) -> list[int]:
    """One token, several or none."""
    if value is None:
        return []
    return [int(each) for each in value] if isinstance(value, list | tuple) else [int(value)]


def _guarded(spec: LoadSpec, read: Callable[[], Any]) -> Any:
    """Transformers takes a hostile file apart here: whatever it raises is about that file."""
    try:
        return read()
    except (CannotLoad, LoadAborted):
        raise
    except (MemoryError, torch.OutOfMemoryError):
        raise no_memory(spec) from None
    except Exception as error:
        raise _explained(spec, error) from None


def _explained(spec: LoadSpec, error: Exception) -> CannotLoad:
    said = " ".join(str(error).split())
    reason = said[:_MAX_REASON_CHARS] or type(error).__name__
    if any(words in said.lower() for words in _NO_MEMORY):
        return no_memory(spec)
    if isinstance(error, SafetensorError):
        return CannotLoad(
            f"{spec.path} has weights that are cut off or damaged: {reason}",
            hint="copy or download the folder again and compare the checksums",
            permanent=True,
        )
    if "trust_remote_code" in said:
        return CannotLoad(
            f"{spec.path} needs Python code that comes with it, which is not run",
            hint="read that code; options: {trust_remote_code: true} of this model then runs it as"
            " the daemon's user",
            permanent=True,
        )
    if any(words in said for words in _TOO_NEW):
        return CannotLoad(
            f"{spec.path} has an architecture that transformers {transformers.__version__} does not"
            " know",
            hint="upgrade transformers, or use another model",
            permanent=True,
        )
    return CannotLoad(
        f"transformers cannot load {spec.path}: {reason}",
        hint="compare the folder with its source, or try another model",
        permanent=True,
    )
