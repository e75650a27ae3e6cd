"""The bytes of each token of a tokenizer.json.

Owns how the two ways of spelling bytes in a vocabulary are read: those of GPT-2 (each byte a
printable character) and those of SentencePiece (▁ for a space, <0x0A> for a byte). Knows no
library: it takes the parsed file.

A decoder of the tokenizers library gives text, not bytes, and only of whole sequences; a stream
needs the bytes of one token, which may be a part of a character.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE: Final = "▁"
_MOST_NFC_SHRINKAGE: Final = 3
"""Of bytes, when characters are composed: three of three bytes each may become one of three
(Hangul syllables)."""

_KEEPING: Final = frozenset(("Prepend", "Replace"))
"""Normalizers that make a text no shorter: SentencePiece's, which write ▁ for a space."""


class TokenBytes:
    """Of the tokenizer that `description` (a parsed tokenizer.json) describes.

    `ids` are the tokens by their spelling, `control_tokens` those of them that must never come from
    a user's text.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        model, added = description["model"], description["added_tokens"]
        parts = [part["type"] for part in _parts(description.get("decoder"))]
        self._is_byte_level = "ByteLevel" in parts
        self._strips_first = "Strip" in parts or "Metaspace" in parts
        self.ids: dict[str, int] = dict(_spellings(model["vocab"]))
        self.ids |= {token["content"]: token["id"] for token in added}
        self.control_tokens = {t["content"]: t["id"] for t in added if t["special"]}
        texts = {token["id"]: token["content"].encode() for token in added}
        self._texts = {
            token: texts[token] if token in texts else self._read(spelling, parts)
            for spelling, token in self.ids.items()
        }
        self._control = frozenset(self.control_tokens.values())
        self.num_tokens = max(self._texts, default=-1) + 1
        self.max_token_bytes = self._read_max_token_bytes(description)

    def __contains__(self, token: int) -> bool:
        return token in self._texts

    def piece(self, token: int) -> bytes:
        """What a sampled token adds to the text; nothing for control tokens and those that do not
        exist."""
        return b"" if token in self._control else self._texts.get(token, b"")

    def text(self, tokens: Sequence[int]) -> bytes:
        """Of all of these, control tokens included."""
        text = b"".join(self._texts.get(token, b"[unused%d]" % token) for token in tokens)
        return text.removeprefix(b" ") if self._strips_first else text

    def _read(self, spelling: str, decoder: list[str]) -> bytes:
        if self._is_byte_level:
            return b"".join(_BYTES[each] if each in _BYTES else each.encode() for each in spelling)
        if match := _BYTE.fullmatch(spelling):
            return bytes([int(match[1], 16)])
        if "WordPiece" in decoder:
            is_rest = spelling.startswith("##")
            return (spelling[2:] if is_rest else f" {spelling}").encode()
        return spelling.replace(_SPACE, " ").encode()

    def _read_max_token_bytes(self, description: dict[str, Any]) -> int:
        """0 where a text may shrink by more than can be told, or where one token may stand for a
        whole unknown word."""
        keeps_bytes = self._is_byte_level or description["model"].get("byte_fallback", False)
        longest = max(map(len, self._texts.values()), default=0)
        kinds = {part["type"] for part in _parts(description.get("normalizer"))}
        if not keeps_bytes or kinds - _KEEPING - {"NFC"}:
            return 0
        return longest * (_MOST_NFC_SHRINKAGE if "NFC" in kinds else 1)


def _parts(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A normalizer or decoder, or those that it is made of."""
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for part in step.get("decoders") or step.get("normalizers") or ():
        yield from _parts(part)


def _spellings(vocab: Any) -> Iterator[tuple[str, int]]:
    """A Unigram model lists its tokens with their scores, the others name their numbers."""
    if isinstance(vocab, dict):
        yield from vocab.items()
    else:
        yield from ((entry[0], token) for token, entry in enumerate(vocab))


def _bytes_by_character() -> dict[str, bytes]:
    """GPT-2's: printable bytes stand for themselves, the others for characters from 256 on (Radford
    and others, `encoder.py` of the gpt-2 repository, 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): bytes([byte]) for byte in printable}
    return characters | {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}


_BYTES: Final = _bytes_by_character()
