"""Writes a tiny generating model of each memory kind, and LoRA adapters: real architectures and
tokeniser, random weights, 3 MB, a tenth of a second.

The tokeniser is SmolLM2's, cut to its first tokens. Weights are float32 and large enough that an
answer depends on everything before it, that the two best tokens rarely come near each other, and
that rounding moves them little. No model ever ends an answer by itself.

Source of the keys and tensors: llama.cpp, `src/models/*.cpp`, by the names of the architectures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from harness import smollm2_path
from models.gguf_writer import read_keys, write_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from models.gguf_writer import Value

NUM_TOKENS: Final = 4096
CONTEXT: Final = 2048
WINDOW: Final = 32
LENGTH: Final = 64
NUM_LAYERS: Final = 4
HEAD_LENGTH: Final = 16
NUM_HEADS: Final = 4
NUM_KV_HEADS: Final = 2
KV_LENGTH: Final = NUM_KV_HEADS * HEAD_LENGTH

EXACT: Final = {"flash_attn": False, "cache_type_k": "f32", "cache_type_v": "f32"}
"""Options to load them with. Flash attention and cells of 16 bits, which are the default, round so
that logits, which are 6 or so, move by a tenth. Without them it is 0.003 at most (200 tokens one by
one, in fives and in 64s against all at once, 2026-11-23): answers are the same word for word."""

NEAR_TIE: Final = 0.01
"""With these options."""

_ARCHITECTURES: Final = {
    "full": "llama",
    "window": "gemma3",
    "recurrent": "mamba",
    "hybrid": "jamba",
}
_NUM_CONTROL_TOKENS: Final = 17
_FEED_FORWARD: Final = 128
_LOGIT_SCALE: Final = 6.0
_CONVOLUTION: Final = 4
_STATE: Final = 16
_TIME_RANK: Final = 4
_INNER: Final = 2 * LENGTH
_EPSILON: Final = 1e-5


def write_full(
    path: Path,
    *,
    seed: int = 1,
    noise: float = 0.0,
    suppressed: Sequence[int] = (),
    broken: Sequence[int] = (),
) -> None:
    """Full attention: a llama. With the same seed and a little noise it is a draft model of
    itself, which mostly agrees. `suppressed` tokens are never to be sampled; `broken` ones make
    not-a-number of whatever follows them, and are never the best."""
    weights = _Weights(_ARCHITECTURES["full"], seed, noise=noise)
    weights.tensors["token_embd.weight"][list(broken)] = np.nan
    weights.tensors["output.weight"][list(broken)] = 0
    weights.keys["rope.dimension_count"] = HEAD_LENGTH
    for layer in range(NUM_LAYERS):
        weights.add_attention(layer)
        weights.add_feed_forward(layer)
    more = {"tokenizer.ggml.suppress_tokens": list(suppressed)} if suppressed else {}
    weights.write(path, more)


def write_window(path: Path) -> None:
    """A sliding window in every other layer: a gemma3."""
    weights = _Weights(_ARCHITECTURES["window"], seed=2, embedding_scale=LENGTH**-0.5)
    weights.keys |= {
        "attention.key_length": HEAD_LENGTH,
        "attention.value_length": HEAD_LENGTH,
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": 2,
    }
    for layer in range(NUM_LAYERS):
        weights.add_attention(layer)
        weights.add_feed_forward(layer)
        for name in ("attn_q_norm", "attn_k_norm"):
            # Normalised queries and keys are too much alike to choose between tokens.
            weights.tensors[f"blk.{layer}.{name}.weight"] = np.full(HEAD_LENGTH, 1.5, "<f4")
        weights.add_norms(layer, "post_attention_norm", "post_ffw_norm")
    weights.write(path)


def write_recurrent(path: Path) -> None:
    """A state and no cells: a mamba."""
    weights = _Weights(_ARCHITECTURES["recurrent"], seed=3)
    weights.keys |= _STATE_KEYS | {"feed_forward_length": 0, "attention.head_count": 0}
    for layer in range(NUM_LAYERS):
        weights.add_state(layer)
    weights.write(path)


def write_hybrid(path: Path) -> None:
    """States and cells by turns: a jamba."""
    weights = _Weights(_ARCHITECTURES["hybrid"], seed=4)
    is_attention = [layer % 2 == 1 for layer in range(NUM_LAYERS)]
    weights.keys |= _STATE_KEYS
    weights.keys["attention.head_count_kv"] = [NUM_KV_HEADS * each for each in is_attention]
    for layer, has_cells in enumerate(is_attention):
        if has_cells:
            weights.add_attention(layer)
        else:
            weights.add_state(layer)
            for name, length in (("dt", _TIME_RANK), ("b", _STATE), ("c", _STATE)):
                weights.tensors[f"blk.{layer}.ssm_{name}_norm.weight"] = np.ones(length, "<f4")
        weights.add_feed_forward(layer)
    weights.write(path)


WRITERS: Final[dict[str, Callable[[Path], None]]] = {
    "full": write_full,
    "window": write_window,
    "recurrent": write_recurrent,
    "hybrid": write_hybrid,
}
"""By the name of the kind."""


def write_adapter(path: Path, kind: str, *, seed: int) -> None:
    """A random LoRA for a tiny model, on queries, values and outputs of its attention and on what
    goes into its states: strong enough that a greedy answer is another one within a few tokens."""
    is_attention = {"full": [True], "window": [True], "recurrent": [False], "hybrid": [False, True]}
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(NUM_LAYERS):
        if is_attention[kind][layer % len(is_attention[kind])]:
            shapes |= _attention_shapes(layer, length=LENGTH, kv_length=KV_LENGTH)
        else:
            shapes[f"blk.{layer}.ssm_in"] = 2 * _INNER, LENGTH
    _write_lora(path, _ARCHITECTURES[kind], shapes, seed=seed, strength=1.0)


def write_smollm2_adapter(path: Path, *, seed: int) -> None:
    """A random LoRA for SmolLM2-135M; any stronger, and it only stammers."""
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(30):
        shapes |= _attention_shapes(layer, length=576, kv_length=192)
    _write_lora(path, "llama", shapes, seed=seed, strength=0.6)


def _attention_shapes(layer: int, *, length: int, kv_length: int) -> dict[str, tuple[int, int]]:
    lengths = {"q": length, "v": kv_length, "output": length}
    return {f"blk.{layer}.attn_{name}": (num_out, length) for name, num_out in lengths.items()}


def _write_lora(
    path: Path,
    architecture: str,
    shapes: dict[str, tuple[int, int]],
    *,
    seed: int,
    strength: float,
) -> None:
    """Of rank 4. `shapes`: what comes out of each tensor, and what goes in."""
    random = np.random.default_rng(seed)
    rank, tensors = 4, {}
    for stem, (num_out, num_in) in shapes.items():
        tensors[f"{stem}.weight.lora_a"] = _normal(random, rank, num_in) * num_in**-0.5
        tensors[f"{stem}.weight.lora_b"] = _normal(random, num_out, rank) * rank**-0.5
    keys: dict[str, Value] = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "general.name": f"tiny-adapter-{seed}",
        "adapter.type": "lora",
        "adapter.lora.alpha": rank * strength,
    }
    write_gguf(path, keys, {name: values.astype("<f4") for name, values in tensors.items()})


_STATE_KEYS: Final[dict[str, Any]] = {
    "ssm.conv_kernel": _CONVOLUTION,
    "ssm.inner_size": _INNER,
    "ssm.state_size": _STATE,
    "ssm.time_step_rank": _TIME_RANK,
}


@dataclass
class _Weights:
    """The keys (without the architecture in front) and tensors of a model that is being made."""

    architecture: str
    seed: int
    noise: float = 0.0
    embedding_scale: float = 1.0
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._noise = np.random.default_rng(self.seed + 1000)
        self.keys |= {
            "block_count": NUM_LAYERS,
            "context_length": CONTEXT,
            "embedding_length": LENGTH,
            "feed_forward_length": _FEED_FORWARD,
            "attention.head_count": NUM_HEADS,
            "attention.head_count_kv": NUM_KV_HEADS,
            "attention.layer_norm_rms_epsilon": _EPSILON,
            "vocab_size": NUM_TOKENS,
        }
        output = _normal(self._random, NUM_TOKENS, LENGTH) * _LOGIT_SCALE * LENGTH**-0.5
        output[:_NUM_CONTROL_TOKENS] = 0  # never the best: no answer ends by itself
        self.tensors |= {
            "token_embd.weight": _normal(self._random, NUM_TOKENS, LENGTH) * self.embedding_scale,
            "output_norm.weight": np.ones(LENGTH, "<f4"),
            "output.weight": output,
        }

    def add_matrix(self, layer: int, name: str, shape: tuple[int, int], *, gain: float) -> None:
        """`gain` is how much larger what comes out is than what goes in."""
        values = _normal(self._random, *shape) + self.noise * _normal(self._noise, *shape)
        self.tensors[f"blk.{layer}.{name}.weight"] = values * (gain * shape[1] ** -0.5)

    def add_norms(self, layer: int, *names: str) -> None:
        for name in names:
            self.tensors[f"blk.{layer}.{name}.weight"] = np.ones(LENGTH, "<f4")

    def add_attention(self, layer: int) -> None:
        """Sharp enough to choose single tokens, and to outweigh the token it starts from."""
        self.add_norms(layer, "attn_norm")
        self.add_matrix(layer, "attn_q", (LENGTH, LENGTH), gain=1.5)
        self.add_matrix(layer, "attn_k", (KV_LENGTH, LENGTH), gain=1.5)
        self.add_matrix(layer, "attn_v", (KV_LENGTH, LENGTH), gain=2)
        self.add_matrix(layer, "attn_output", (LENGTH, LENGTH), gain=2)

    def add_feed_forward(self, layer: int) -> None:
        self.add_norms(layer, "ffn_norm")
        self.add_matrix(layer, "ffn_gate", (_FEED_FORWARD, LENGTH), gain=1)
        self.add_matrix(layer, "ffn_up", (_FEED_FORWARD, LENGTH), gain=1)
        self.add_matrix(layer, "ffn_down", (LENGTH, _FEED_FORWARD), gain=1)

    def add_state(self, layer: int) -> None:
        """A mamba's layer. Its parts forget within ten to some thousand tokens (Gu and Dao,
        "Mamba", 2023, 3.6: A = -1 … -N, time steps of 0.001 to 0.1)."""
        self.add_norms(layer, "attn_norm")
        self.add_matrix(layer, "ssm_in", (2 * _INNER, LENGTH), gain=1)
        self.add_matrix(layer, "ssm_conv1d", (_INNER, _CONVOLUTION), gain=2)
        self.add_matrix(layer, "ssm_x", (_TIME_RANK + 2 * _STATE, _INNER), gain=3)
        self.add_matrix(layer, "ssm_dt", (_INNER, _TIME_RANK), gain=0.5)
        self.add_matrix(layer, "ssm_out", (LENGTH, _INNER), gain=3)
        steps = 10 ** self._random.uniform(-3, -1, _INNER)
        stem = f"blk.{layer}"
        self.tensors[f"{stem}.ssm_conv1d.bias"] = np.zeros(_INNER, "<f4")
        self.tensors[f"{stem}.ssm_dt.bias"] = np.log(np.expm1(steps))
        self.tensors[f"{stem}.ssm_a"] = np.tile(-np.arange(1.0, _STATE + 1), (_INNER, 1))
        self.tensors[f"{stem}.ssm_d"] = np.ones(_INNER, "<f4")

    def write(self, path: Path, more: Mapping[str, Any] | None = None) -> None:
        keys = {f"{self.architecture}.{name}": value for name, value in self.keys.items()}
        general = {"general.architecture": self.architecture, "general.name": f"tiny-{path.stem}"}
        tensors = {name: values.astype("<f4") for name, values in self.tensors.items()}
        write_gguf(path, general | keys | _tokenizer_keys() | dict(more or {}), tensors)


def _tokenizer_keys() -> dict[str, Any]:
    """SmolLM2's tokeniser with its first tokens only. The merges stand in the order of the tokens
    they make, so the first ones make just these."""
    keys = read_keys(smollm2_path())
    tokenizer = {name: value for name, value in keys.items() if name.startswith("tokenizer.")}
    num_unmerged = len(tokenizer["tokenizer.ggml.tokens"]) - len(tokenizer["tokenizer.ggml.merges"])
    lengths = {"tokens": NUM_TOKENS, "token_type": NUM_TOKENS, "merges": NUM_TOKENS - num_unmerged}
    for name, length in lengths.items():
        tokenizer[f"tokenizer.ggml.{name}"] = tokenizer[f"tokenizer.ggml.{name}"][:length]
    return tokenizer


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape)
