"""What the files of a torch model's folder say about the memory that it will need: `config.json`
and the headers of the safetensors files. No weight is read, and nothing but these formats.

Owns the layout of safetensors' headers and which keys of `config.json` mean sizes. The files are
hostile: whatever is read is bounded, and nothing of it is believed but that it is a number.

Source of the layout: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any, Final

from openclawd.backends.base import CannotLoad
from openclawd.worker.facts import MAX_LAYERS, Layers, ModelFacts

MAX_CONFIG_BYTES: Final = 4 * 2**20
MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of safetensors' own reader (`MAX_HEADER_SIZE`)."""

_MAX_FILES: Final = 1000
_LENGTH: Final = struct.Struct("<Q")
_BITS: Final = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
_GENERATES: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def is_model_folder(path: str) -> bool:
    return Path(path).is_dir()


def folder_facts(path: str) -> ModelFacts:
    """Raises `CannotLoad`."""
    folder = Path(path)
    try:
        config = _Config(_read_json(folder / "config.json", MAX_CONFIG_BYTES))
        files = sorted(folder.glob("*.safetensors"))[:_MAX_FILES]
        tensors = [tensor for file in files for tensor in _read_header(file)]
    except OSError as error:
        raise _bad(path, f"{error.filename} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, KeyError, TypeError, struct.error) as error:
        raise _bad(path, f"its files are damaged: {error}") from None
    if not tensors:
        raise _bad(path, "it has no weights as .safetensors")
    return config.facts(tensors)


def _bad(path: str, why: str) -> CannotLoad:
    return CannotLoad(
        f"{path} cannot be used as a torch model: {why}",
        hint="give a folder with config.json and weights as .safetensors",
        permanent=True,
    )


def _read_json(path: Path, most: int) -> dict[str, Any]:
    with path.open("rb") as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise ValueError(f"{path.name} has more than {most} bytes")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError(f"{path.name} is no map")
    return value


def _read_header(path: Path) -> list[tuple[int, int]]:
    """Bytes and bits of a number, of each tensor."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > min(MAX_HEADER_BYTES, size - _LENGTH.size):
            raise ValueError(f"{path.name} is cut off inside its header")
        header = json.loads(file.read(length))
    room = size - _LENGTH.size - length
    tensors = []
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= room:
                raise ValueError(f"a tensor of {path.name} is behind the end of the file")
            tensors.append((end - begin, _BITS.get(entry["dtype"], 0)))
    return tensors


class _Config:
    """`config.json`; what also sees or hears has its language part's keys one level down."""

    def __init__(self, values: dict[str, Any]) -> None:
        inner = values.get("text_config")
        self._values = {**values, **inner} if isinstance(inner, dict) else values
        names = values.get("architectures")
        self._names = [name for name in names if isinstance(name, str)] if names else []

    def facts(self, tensors: list[tuple[int, int]]) -> ModelFacts:
        num_layers = min(self._number("num_hidden_layers", "n_layer"), MAX_LAYERS)
        bytes_of: Counter[int] = Counter()
        for size, bits in tensors:
            bytes_of[bits] += size
        model_type = self._values.get("model_type")
        return ModelFacts(
            kind="torch",
            architecture=model_type[:64] if isinstance(model_type, str) else "",
            weights_bytes=sum(size for size, _ in tensors),
            repeating_bytes=0,
            num_layers=num_layers,
            embedding_width=self._number("hidden_size", "n_embd"),
            feed_forward_width=self._number("intermediate_size", "n_inner"),
            vocab_size=self._number("vocab_size"),
            vocab_bytes=0,
            context_train=self._number("max_position_embeddings", "n_positions"),
            num_heads=self._number("num_attention_heads", "n_head"),
            attention=self._attention(num_layers),
            is_encoder=not self._generates,
            stored_bits=max(bytes_of, key=bytes_of.__getitem__, default=0),
        )

    @property
    def _generates(self) -> bool:
        return any(name.endswith(_GENERATES) for name in self._names)

    def _attention(self, num_layers: int) -> tuple[Layers, ...]:
        if not self._generates:
            return ()
        heads = self._number("num_attention_heads", "n_head")
        each = self._number("head_dim") or self._number("hidden_size", "n_embd") // max(heads, 1)
        width = each * (self._number("num_key_value_heads") or heads)
        return (Layers(num_layers, width, width),)

    def _number(self, *names: str) -> int:
        for name in names:
            value = self._values.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
                return value
        return 0
