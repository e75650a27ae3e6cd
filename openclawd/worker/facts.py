"""What a probe worker says of a model's files: sizes and shapes, no more.

Owns the fields, and their check: whoever said it has read a hostile file, so the daemon believes
nothing of it but that a number is in its range.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from openclawctl.wire.errors import RemoteProtocolError
from openclawctl.wire.fields import Fields

MAX_LAYERS: Final = 4096
"""More than any model has; llama.cpp takes 512 (LLAMA_MAX_LAYERS)."""

_MAX_NAME_CHARS: Final = 64
_MAX_BYTES: Final = 2**50
_MAX_WIDTH: Final = 2**31


@dataclass(frozen=True, slots=True)
class Layers:
    """`count` layers of one kind: each keeps `key_width` and `value_width` numbers of every token,
    of the last `window` tokens only unless that is 0."""

    count: int
    key_width: int
    value_width: int
    window: int = 0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`weights_bytes` are those of all tensors as they are stored, `repeating_bytes` those of the
    layers alone, `packed_bytes` those of the copies that this machine's CPU computes from, where it
    has a layout of its own for them. `state_width` is how many numbers of 32 bits all recurrent
    layers together keep of one sequence. `vocab_bytes` is the length of all tokens' texts,
    `stored_bits` those of most of the weights (safetensors)."""

    kind: str
    architecture: str
    weights_bytes: int
    repeating_bytes: int
    num_layers: int
    embedding_width: int
    feed_forward_width: int
    vocab_size: int
    vocab_bytes: int
    context_train: int
    num_heads: int
    attention: tuple[Layers, ...] = ()
    packed_bytes: int = 0
    state_width: int = 0
    is_encoder: bool = False
    stored_bits: int = 0

    def encode(self) -> dict[str, Any]:
        return {**asdict(self), "attention": [asdict(layers) for layers in self.attention]}


def decode_facts(payload: dict[str, Any]) -> ModelFacts:
    """Raises `RemoteProtocolError`."""
    source = Fields(payload, where="probe", error=RemoteProtocolError)
    widths = ("embedding_width", "feed_forward_width", "vocab_size", "context_train", "num_heads")
    sizes = ("weights_bytes", "repeating_bytes", "packed_bytes", "vocab_bytes", "state_width")
    return ModelFacts(
        kind=source.choice("kind", ("gguf", "torch"), default="gguf"),
        architecture=source.text("architecture", max_chars=_MAX_NAME_CHARS),
        num_layers=source.integer("num_layers", low=0, high=MAX_LAYERS),
        attention=tuple(
            _layers(source.nested(value, "layers"))
            for value in source.items("attention", max_items=MAX_LAYERS)
        ),
        is_encoder=source.boolean("is_encoder", default=False),
        stored_bits=source.integer("stored_bits", low=0, high=64),
        **{name: source.integer(name, low=0, high=_MAX_WIDTH) for name in widths},
        **{name: source.integer(name, low=0, high=_MAX_BYTES) for name in sizes},
    )


def _layers(source: Fields) -> Layers:
    return Layers(
        count=source.integer("count", low=0, high=MAX_LAYERS),
        key_width=source.integer("key_width", low=0, high=_MAX_WIDTH),
        value_width=source.integer("value_width", low=0, high=_MAX_WIDTH),
        window=source.integer("window", low=0, high=_MAX_WIDTH),
    )
