"""Text to tokens and back, with llama.cpp's tokenizer.

Owns the vocabulary of a loaded model. llama.cpp's tokenizer is thread-safe, so these methods may be
called beside a running decode.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import llama_cpp

from openclawd.backends.base import ChatFormat, InfillTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_TOKEN: Final = -1
_KEEPS_EVERY_BYTE: Final = (llama_cpp.LLAMA_VOCAB_TYPE_SPM, llama_cpp.LLAMA_VOCAB_TYPE_BPE)
_PIECE_BYTES: Final = 256
_KEEP_ALL: Final = False  # llama_detokenize(remove_special)
_SHOW_CONTROL: Final = True  # llama_detokenize(unparse_special)
_HIDE_CONTROL: Final = False  # llama_token_to_piece(special)
_PARSED_AS_SPECIAL: Final = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
"""What llama.cpp takes for plain text when special parsing is off (tokenizer_st_partition)."""


class LlamaVocab:
    """The vocabulary of a model; `model` must outlive it."""

    def __init__(self, model: Any) -> None:
        self.pointer = self._vocab = llama_cpp.llama_model_get_vocab(model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._pieces: dict[int, bytes] = {}
        self.bos: int = llama_cpp.llama_vocab_bos(self._vocab)
        self.eos: int = llama_cpp.llama_vocab_eos(self._vocab)
        self.max_token_bytes = self._read_max_token_bytes()
        self.control_texts = self._read_control_texts()
        self.end_tokens = self._read_end_tokens()
        self.infill_tokens = self._read_infill_tokens()
        self.suppressed_tokens = self._read_suppressed_tokens()
        """Those that the model's file says are never to be sampled."""
        self.chat_format = ChatFormat(
            template=_chat_template(model),
            bos_text=self._text(self.bos),
            eos_text=self._text(self.eos),
            adds_bos=llama_cpp.llama_vocab_get_add_bos(self._vocab),
            adds_eos=llama_cpp.llama_vocab_get_add_eos(self._vocab),
            tool_template=_chat_template(model, b"tool_use"),
        )

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")  # a template may make a lone surrogate
        size = len(data) + 8  # a token is a byte at least; the rest is for what add_special adds
        while True:
            tokens = (llama_cpp.llama_token * size)()
            count = llama_cpp.llama_tokenize(
                self._vocab, data, len(data), tokens, size, add_special, parse_special
            )
            if count >= 0:
                return tokens[:count]
            size = -count

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        size = 16 * len(tokens) + 16
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_detokenize(
                self._vocab, array, len(tokens), buffer, size, _KEEP_ALL, _SHOW_CONTROL
            )
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def is_end(self, token: int) -> bool:
        return token in self.end_tokens

    def _read_piece(self, token: int) -> bytes:
        size = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(
                self._vocab, token, buffer, size, 0, _HIDE_CONTROL
            )
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _text(self, token: int) -> str:
        if token == _NO_TOKEN:
            return ""
        text: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace")

    def _read_max_token_bytes(self) -> int:
        """By the vocabulary's own spelling of its tokens, which is never shorter than their bytes.
        Other kinds of tokenizer normalise text or put one token for a whole unknown word."""
        if llama_cpp.llama_vocab_type(self._vocab) not in _KEEPS_EVERY_BYTE:
            return 0
        text = llama_cpp.llama_vocab_get_text
        return max(len(text(self._vocab, token)) for token in range(self.size))

    def _read_infill_tokens(self) -> InfillTokens | None:
        prefix: int = llama_cpp.llama_vocab_fim_pre(self._vocab)
        suffix: int = llama_cpp.llama_vocab_fim_suf(self._vocab)
        middle: int = llama_cpp.llama_vocab_fim_mid(self._vocab)
        has_all = _NO_TOKEN not in (prefix, suffix, middle)
        return InfillTokens(prefix, suffix, middle) if has_all else None

    def _read_end_tokens(self) -> frozenset[int]:
        is_end = llama_cpp.llama_vocab_is_eog
        return frozenset(token for token in range(self.size) if is_end(self._vocab, token))

    def _read_suppressed_tokens(self) -> tuple[int, ...]:
        count = ctypes.c_int32()
        tokens = llama_cpp.llama_vocab_get_suppress_tokens(self._vocab, ctypes.byref(count))
        return tuple(tokens[: count.value]) if tokens else ()

    def _read_control_texts(self) -> tuple[str, ...]:
        attributes = llama_cpp.llama_vocab_get_attr
        texts = (
            self._text(token)
            for token in range(self.size)
            if attributes(self._vocab, token) & _PARSED_AS_SPECIAL
        )
        return tuple(text for text in texts if text)


def _chat_template(model: Any, name: bytes | None = None) -> str | None:
    template: bytes | None = llama_cpp.llama_model_chat_template(model, name)
    return template.decode("utf-8", "replace") if template else None
