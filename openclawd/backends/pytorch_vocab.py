"""Text to tokens and back, with the tokenizer that comes with a torch model.

Owns the vocabulary of a loaded model, as `llama_vocab.py` does for GGUF files. The tokenizers
library is thread-safe, so these methods may be called beside a running step.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from tokenizers import Tokenizer as FastTokenizer

from openclawd.backends.base import CannotLoad, ChatFormat, InfillTokens
from openclawd.backends.token_bytes import TokenBytes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

_WIDE_BAR: Final = "\uff5c"
"""In the control tokens of DeepSeek's models."""

_END_TEXTS: Final = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        f"<{_WIDE_BAR}end▁of▁sentence{_WIDE_BAR}>",
        "<end_of_utterance>",
    )
)
"""Control tokens that end a turn whatever the model's files say (llama.cpp, `llama-vocab.cpp`)."""

_INFILL_TEXTS: Final = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    tuple(f"<{_WIDE_BAR}fim▁{part}{_WIDE_BAR}>" for part in ("begin", "hole", "end")),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""As above. A model has one of these rows."""


class TorchVocab:
    """The tokenizer of a model whose vocabulary has `size` entries.

    `tokenizer` is transformers'; `end_tokens` and `suppressed_tokens` are those that the model's
    files name. Raises `CannotLoad` for a tokenizer that does not fit.
    """

    def __init__(
        self,
        tokenizer: Any,
        size: int,
        *,
        end_tokens: Collection[int] = (),
        suppressed_tokens: Collection[int] = (),
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise _unusable(
                f"its tokenizer ({type(tokenizer).__name__}) is slow and has no tokenizer.json",
                "convert it once with transformers' AutoTokenizer and save_pretrained",
            )
        self.size = size
        description = tokenizer.backend_tokenizer.to_str()
        self._parsing = _plain_tokenizer(description)
        self._quoting = _plain_tokenizer(description)
        self._quoting.encode_special_tokens = True
        self._bytes = TokenBytes(json.loads(description))
        if self._bytes.num_tokens > size:
            raise _unusable(
                f"its tokenizer has {self._bytes.num_tokens} tokens, but the model {size}",
                "get the tokenizer files that belong to these weights",
            )
        self.max_token_bytes = self._bytes.max_token_bytes
        control = self._bytes.control_tokens
        self.control_texts = tuple(control)
        known_ends = (token for text, token in control.items() if text in _END_TEXTS)
        self.end_tokens = frozenset(_within(size, [*end_tokens, *known_ends]))
        no_tokens = (token for token in range(size) if token not in self._bytes)
        self.suppressed_tokens = frozenset(_within(size, [*suppressed_tokens, *no_tokens]))
        """Those that the model's files say are never to be sampled, and rows of the model that no
        token belongs to."""
        self.infill_tokens = _infill_tokens(self._bytes.ids)
        self.chat_format = self._chat_format(tokenizer)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokenizer = self._parsing if parse_special else self._quoting
        text = text.encode("utf-8", "replace").decode()  # a template may make a lone surrogate
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=add_special).ids
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return self._bytes.text(tokens)

    def piece(self, token: int) -> bytes:
        return self._bytes.piece(token)

    def is_end(self, token: int) -> bool:
        return token in self.end_tokens

    def _chat_format(self, tokenizer: Any) -> ChatFormat:
        bos = tokenizer.bos_token or tokenizer.cls_token or ""
        eos = tokenizer.eos_token or tokenizer.sep_token or ""
        added = self.tokenize("", add_special=True, parse_special=False)
        ids = self._bytes.ids
        adds_bos = bool(added) and added[0] == ids.get(bos)
        templates = _templates(tokenizer.chat_template)
        return ChatFormat(
            template=templates.get("default"),
            bos_text=bos,
            eos_text=eos,
            adds_bos=adds_bos,
            adds_eos=len(added) > adds_bos and added[-1] == ids.get(eos),
            tool_template=templates.get("tool_use"),
        )


def _within(size: int, tokens: Iterable[int]) -> Iterator[int]:
    """Those that the model has: its files may name any."""
    return (token for token in tokens if 0 <= token < size)


def _plain_tokenizer(description: str) -> Any:
    """A copy that neither cuts nor fills up what it is given."""
    tokenizer = FastTokenizer.from_str(description)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _templates(template: Any) -> dict[str, str]:
    if isinstance(template, str):
        return {"default": template}
    return dict(template) if isinstance(template, dict) else {}


def _infill_tokens(ids: dict[str, int]) -> InfillTokens | None:
    for prefix, suffix, middle in _INFILL_TEXTS:
        if prefix in ids and suffix in ids and middle in ids:
            return InfillTokens(ids[prefix], ids[suffix], ids[middle])
    return None


def _unusable(message: str, hint: str) -> CannotLoad:
    return CannotLoad(f"this model cannot be served: {message}", hint=hint, permanent=True)
