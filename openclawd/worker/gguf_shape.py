"""What the metadata of a GGUF file says about the memory that its model will need.

Owns which keys mean that. Follows llama.cpp of llama-cpp-python 0.3.36:
`llama_model::load_hparams`, `llama_hparams::n_embd_r` and `n_embd_s`, and `load_swa_pattern` of
`src/models/`. What it does not know it takes for a plain model with full attention, which needs
most: a hybrid of tomorrow is estimated too large, and measured once it was loaded.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from openclawd.observe.cpu import cpu_flags
from openclawd.worker.cpu_layouts import packed_bytes
from openclawd.worker.facts import MAX_LAYERS, Layers, ModelFacts
from openclawd.worker.gguf_metadata import read_gguf_metadata

if TYPE_CHECKING:
    from openclawd.worker.gguf_metadata import GgufMetadata, Tensor

_RECURRENT: Final = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
_ENCODERS: Final = frozenset(
    {
        "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert",
        "modern-bert", "eurobert", "gemma-embedding",
    }
)  # fmt: skip
_BOTH_IN_EACH: Final = frozenset({"falcon-h1"})
"""Architectures whose layers have attention and a state."""

_WINDOW_PERIODS: Final = {  # (period, whether the full layer comes first)
    "afmoe": (4, False), "cohere2": (4, False), "exaone4": (4, False), "exaone-moe": (4, False),
    "gemma-embedding": (6, False), "gemma2": (2, False), "gemma3": (6, False),
    "gemma3n": (5, False), "gpt-oss": (2, False), "llama4": (4, False), "modern-bert": (3, True),
    "olmo2": (4, False), "phi3": (1, False), "smallthinker": (4, True),
}  # fmt: skip
_FULL_ATTENTION_INTERVALS: Final = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
_SPLIT: Final = re.compile(r"-00001-of-(\d{5})\.gguf$")
_LAYER: Final = re.compile(r"blk\.\d+\.")


def gguf_facts(path: str) -> ModelFacts:
    """Raises `CannotLoad`."""
    metadata = read_gguf_metadata(path)
    tensors = dict(metadata.tensors)
    for further in _further_parts(path):
        tensors.update(read_gguf_metadata(further).tensors)
    return _Shape(metadata).facts(tensors)


def _further_parts(path: str) -> list[str]:
    """The other files of a model that is in several."""
    match = _SPLIT.search(path)
    if match is None:
        return []
    names = [
        f"{path[: match.start()]}-{number:05}-of-{match[1]}.gguf"
        for number in range(2, min(int(match[1]), MAX_LAYERS) + 1)
    ]
    return [name for name in names if os.path.exists(name)]


class _Shape:
    """The keys of one architecture."""

    def __init__(self, metadata: GgufMetadata) -> None:
        self._metadata = metadata
        name = metadata.values.get("general.architecture")
        self.architecture = name if isinstance(name, str) else ""
        self._num_layers = min(self._number("block_count"), MAX_LAYERS)
        self._width = self._number("embedding_length")
        self._heads = self._per_layer("attention.head_count", [0] * self._num_layers)
        self._kv_heads = self._per_layer("attention.head_count_kv", self._heads)

    def facts(self, tensors: dict[str, Tensor]) -> ModelFacts:
        values, texts = self._metadata.values, self._metadata.text_bytes
        vocab_size = values.get("tokenizer.ggml.tokens", 0)
        return ModelFacts(
            kind="gguf",
            architecture=self.architecture[:64],
            weights_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
            repeating_bytes=sum(t.num_bytes for name, t in tensors.items() if _LAYER.match(name)),
            packed_bytes=packed_bytes(tensors, cpu_flags()),
            num_layers=self._num_layers,
            embedding_width=self._width,
            feed_forward_width=max(self._per_layer("feed_forward_length", [0]), default=0),
            vocab_size=vocab_size if isinstance(vocab_size, int) else len(vocab_size),
            vocab_bytes=texts.get("tokenizer.ggml.tokens", 0)
            + texts.get("tokenizer.ggml.merges", 0),
            context_train=self._number("context_length"),
            num_heads=max(self._heads, default=0),
            attention=self._attention(),
            state_width=self._state_width() * sum(self._has_state()),
            is_encoder=self.architecture in _ENCODERS,
        )

    def _attention(self) -> tuple[Layers, ...]:
        """Of the layers that have any, those of one kind together."""
        if self.architecture in _RECURRENT or self.architecture in _ENCODERS:
            return ()
        windows = self._windows()
        states = self._has_state()
        has_both = self.architecture in _BOTH_IN_EACH
        kinds = Counter(
            self._widths(layer, window)
            for layer, window in enumerate(windows)
            if self._kv_heads[layer] and (has_both or not states[layer])
        )
        return tuple(Layers(count, *kind) for kind, count in sorted(kinds.items()))

    def _widths(self, layer: int, window: int) -> tuple[int, int, int]:
        heads = self._kv_heads[layer]
        each = self._width // self._heads[layer] if self._heads[layer] else 0
        key = self._number("attention.key_length", each)
        value = self._number("attention.value_length", each)
        if window:
            key = self._number("attention.key_length_swa", key)
            value = self._number("attention.value_length_swa", value)
        if self._has("attention.key_length_mla"):  # keys and values are one, compressed
            value = 0
        return heads * key, heads * value, window

    def _windows(self) -> list[int]:
        """The window of each layer, 0 for full attention."""
        window = self._number("attention.sliding_window")
        pattern = self._values("attention.sliding_window_pattern")
        if isinstance(pattern, list) and len(pattern) >= self._num_layers:
            return [window if flag else 0 for flag in pattern[: self._num_layers]]
        period, is_full_first = _WINDOW_PERIODS.get(self.architecture, (0, False))
        if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
            period = pattern
        if not window or period < 1:
            return [0] * self._num_layers
        full = 0 if is_full_first else period - 1
        is_always = self.architecture == "phi3"  # a period of 1 would have no windows
        return [
            window if is_always or layer % period != full else 0
            for layer in range(self._num_layers)
        ]

    def _has_state(self) -> list[bool]:
        """Which layers keep a recurrent state."""
        if self.architecture in _RECURRENT or self.architecture in _BOTH_IN_EACH:
            return [True] * self._num_layers
        if self.architecture in _FULL_ATTENTION_INTERVALS:
            default = _FULL_ATTENTION_INTERVALS[self.architecture]
            interval = max(self._number("full_attention_interval", default), 1)
            return [(layer + 1) % interval != 0 for layer in range(self._num_layers)]
        if not self._state_width():
            return [False] * self._num_layers
        only_feed = self._per_layer("feed_forward_length", [0] * self._num_layers)
        is_nemotron = self.architecture.startswith("nemotron_h")
        return [
            heads == 0 and not (is_nemotron and only_feed[layer])
            for layer, heads in enumerate(self._kv_heads)
        ]

    def _state_width(self) -> int:
        """Numbers of 32 bits that one layer keeps of one sequence (`n_embd_r` and `n_embd_s`)."""
        if self._has("wkv.head_size"):
            shifts = self._number("token_shift_count", 2)
            return self._width * (shifts + self._number("wkv.head_size"))
        if self._has("shortconv.l_cache"):
            return self._width * max(self._number("shortconv.l_cache") - 1, 0)
        kernel, inner, state, groups = (
            self._number(f"ssm.{name}")
            for name in ("conv_kernel", "inner_size", "state_size", "group_count")
        )
        return max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner

    # ---- values, of which nothing is believed but that they are numbers ----

    def _values(self, name: str) -> Any:
        return self._metadata.values.get(f"{self.architecture}.{name}")

    def _has(self, name: str) -> bool:
        return self._values(name) is not None

    def _number(self, name: str, default: int = 0) -> int:
        value = self._values(name)
        if isinstance(value, list):
            value = max((v for v in value if _is_count(v)), default=None)
        return value if _is_count(value) else default

    def _per_layer(self, name: str, default: list[int]) -> list[int]:
        """One number for all layers, or one for each."""
        value = self._values(name)
        if _is_count(value):
            return [value] * self._num_layers
        if isinstance(value, list) and len(value) >= self._num_layers:
            return [v if _is_count(v) else 0 for v in value[: self._num_layers]]
        return default


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
