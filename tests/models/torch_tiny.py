"""Writes tiny torch models of several architectures: real code of transformers, random weights.

The tokeniser is SmolLM2's, cut to its first tokens as in `tiny.py`. Weights are large enough that
an answer depends on everything before it, and that rounding moves the logits little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from harness import smollm2_path
from models.gguf_writer import read_keys
from models.tiny import NUM_TOKENS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT: Final = 512
WINDOW: Final = 24
NUM_LAYERS: Final = 3
_NUM_CONTROL_TOKENS: Final = 17
_SPREAD: Final = 0.3
_LOGIT_SCALE: Final = 4.0

_COMMON: Final[dict[str, Any]] = {
    "vocab_size": NUM_TOKENS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "initializer_range": _SPREAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}

CONFIGS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma2": (
        "Gemma2Config",
        {"sliding_window": WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
    ),
    "qwen3": ("Qwen3Config", {}),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 64, "n_layer": NUM_LAYERS, "n_head": 4, "n_positions": CONTEXT},
    ),
    "mamba": ("MambaConfig", {"state_size": 8}),
}
"""The class of each and what differs: full attention, a sliding window in all layers, one in every
other with capped scores, normalised queries, learned positions; a state and no attention."""


def write_tiny_torch(path: Path, kind: str) -> None:
    name, differs = CONFIGS[kind]
    config = getattr(transformers, name)(**{**_COMMON, **differs})
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(_LOGIT_SCALE)
    model.save_pretrained(path)
    _tokenizer().save_pretrained(path)


def _tokenizer() -> Any:
    keys = read_keys(smollm2_path())
    tokens, merges = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.merges"]
    num_unmerged = len(tokens) - len(merges)
    vocab = {token: number for number, token in enumerate(tokens[:NUM_TOKENS])}
    pairs = [tuple(merge.split(" ")) for merge in merges[: NUM_TOKENS - num_unmerged]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = tokens[:_NUM_CONTROL_TOKENS]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in control])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[1],
        eos_token=tokens[2],
        pad_token=tokens[0],
        chat_template=keys["tokenizer.chat_template"],
    )
