"""The bytes of tokens, however a tokenizer spells them."""

from __future__ import annotations

from typing import Any

import pytest

from openclawd.backends.token_bytes import TokenBytes

END = {"id": 9, "content": "<end>", "special": True}
CALL = {"id": 8, "content": "<call>", "special": False}


def described(vocab: Any, *, decoder: str, normalizer: Any = None, **model: Any) -> dict[str, Any]:
    decoders = [{"type": "Replace"}, {"type": decoder}]
    return {
        "model": {"vocab": vocab, **model},
        "added_tokens": [CALL, END],
        "decoder": {"type": "Sequence", "decoders": decoders},
        "normalizer": normalizer,
    }


def test_gpt2_spells_each_byte_with_a_character():
    tokens = TokenBytes(described({"Ġhi": 0, "Ã": 1, "Ċ": 2, "¼": 3}, decoder="ByteLevel"))
    assert [tokens.piece(token) for token in range(4)] == [b" hi", b"\xc3", b"\n", b"\xbc"]
    assert tokens.text([1, 3]).decode() == "ü"
    assert tokens.max_token_bytes == len("<call>")
    assert tokens.num_tokens == 10


def test_sentencepiece_spells_spaces_and_single_bytes():
    vocab = [["<unk>", 0], ["▁hi", -1], ["<0xC3>", -2], ["<0x0A>", -2]]
    steps = [{"type": "Prepend"}, {"type": "Replace"}]
    tokens = TokenBytes(
        described(
            vocab,
            decoder="Strip",
            byte_fallback=True,
            normalizer={"type": "Sequence", "normalizers": steps},
        )
    )
    assert [tokens.piece(token) for token in range(1, 4)] == [b" hi", b"\xc3", b"\n"]
    assert tokens.text([1, 1]) == b"hi hi"
    assert tokens.max_token_bytes == len("<call>")


def test_control_tokens_add_nothing_but_are_told_when_asked_for():
    tokens = TokenBytes(described({"a": 0}, decoder="ByteLevel"))
    assert tokens.control_tokens == {"<end>": 9}
    assert tokens.piece(9) == b""
    assert tokens.piece(8) == b"<call>"
    assert tokens.text([0, 9, 5]) == b"a<end>[unused5]"
    assert 5 not in tokens


@pytest.mark.parametrize(
    ("normalizer", "most"),
    [({"type": "NFC"}, 3 * len("<call>")), ({"type": "Lowercase"}, 0), ({"type": "NFKC"}, 0)],
)
def test_how_far_a_text_may_shrink(normalizer, most):
    tokens = TokenBytes(described({"a": 0}, decoder="ByteLevel", normalizer=normalizer))
    assert tokens.max_token_bytes == most


def test_a_vocabulary_of_words_promises_nothing():
    assert TokenBytes(described({"a": 0, "##b": 1}, decoder="WordPiece")).max_token_bytes == 0
