"""Text to tokens and back for encoders, with the tokenizer in the model's folder.

Owns what stands around a text, or two. Text of users is text: nothing in it becomes a control token
(`encode_special_tokens`). Nothing is cut or padded here, whatever the tokenizer's file says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from openclawd.backends.base import PairFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

_WORD: Final = "a"


class EncoderTokens:
    """`tokenizer` is this object's own. `max_tokens` is the longest text by its files, if they say
    so."""

    def __init__(
        self, tokenizer: Tokenizer, *, max_tokens: int | None = None, lowers_case: bool = False
    ) -> None:
        self.max_tokens = max_tokens
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._lowers_case = lowers_case
        self.size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        added = tokenizer.encode(_WORD)
        is_added = [number is None for number in added.sequence_ids]
        self.adds_bos, self.adds_eos = is_added[0], is_added[-1]
        self._pair = tokenizer.encode(_WORD, _WORD)
        self.pair_format = _pair_format(self._pair)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = False) -> list[int]:
        del parse_special  # an encoder has no template whose text could hold any
        if self._lowers_case:
            text = text.lower()
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special).ids
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text.encode("utf-8", "replace")

    def num_in_first(self, tokens: Sequence[int]) -> int:
        """How many belong to the first text of a pair, with what stands after it: all, where there
        is no second. What stands between is in no text, so its first place is that."""
        between = self.pair_format.between
        if not between or between[0] not in tokens:
            return len(tokens)
        return tokens.index(between[0]) + _num_of_first(self._pair, between)

    def tells_types(self) -> bool:
        """Would `num_in_first` give the types of a pair as the tokenizer does?"""
        num_first = self.num_in_first(self._pair.ids)
        is_second = [number >= num_first for number in range(len(self._pair.ids))]
        return list(map(bool, self._pair.type_ids)) == is_second


def _pair_format(pair: Any) -> PairFormat:
    """What stands around the two words of a pair."""
    first = [place for place, number in enumerate(pair.sequence_ids) if number == 0]
    second = [place for place, number in enumerate(pair.sequence_ids) if number == 1]
    return PairFormat(
        before=tuple(pair.ids[: first[0]]),
        between=tuple(pair.ids[first[-1] + 1 : second[0]]),
        after=tuple(pair.ids[second[-1] + 1 :]),
    )


def _num_of_first(pair: Any, between: tuple[int, ...]) -> int:
    """How many tokens of those between two texts have the first one's type."""
    start = pair.ids.index(between[0])
    types = pair.type_ids[start : start + len(between)]
    return sum(kind == 0 for kind in types)
