"""Output that must follow a grammar: which tokens may come next, by llguidance.

Owns the compiled grammars of one model, and where each constrained sequence is in its grammar.
Knows no ML library: a token is the bytes that its backend says it adds to the text. A grammar is a
text in llguidance's own form, JSON around Lark or a JSON schema.

Invariant: what may come next is decided by the grammar and the tokens sampled so far alone, so a
constraint that is built again from them goes on as the first one would have.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from openclawd.backends.base import GrammarFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from llguidance import LLMatcher, LLTokenizer

_MAX_COMPILED: Final = 16
"""Grammars kept compiled, the latest used: most take under a megabyte, an enumeration of thousands
of values ten."""

_LIMITS: Final = {
    "initial_lexer_fuel": 100_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 20_000,
    "max_items_in_row": 500,
    "verbose_errors": False,
}
"""What one grammar may cost its worker. With llguidance's own limits an ambiguous one of a line
takes 90 ms a token, with these 20; a schema of 4,000 properties 1.5 s to compile, with these it is
refused after 0.2; a regex may fill 500 MB with its states. About 120 optional properties of one
object, or 2,000 required ones, are within them (measured 2026-11-23 with 49,152 tokens)."""

_NUM_STEPS_TRIED: Final = 3

_MAX_REASON_CHARS: Final = 300
_NO_TEXT: Final = "no text follows it"
_TOO_MANY_WAYS: Final = (
    "it leaves too many ways to go on at one place, by many optional parts or by being ambiguous"
)
_WORD_BITS: Final = 32


class Vocabulary(Protocol):
    """What a backend tells of its tokens; a part of `Backend`."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...
    def detokenize(self, tokens: Sequence[int]) -> bytes: ...
    def piece(self, token: int) -> bytes: ...
    def is_end(self, token: int) -> bool: ...


class Grammars:
    """The grammars of one model. May be used from any thread.

    Its tables are made for the first grammar (0.2 s and 25 MB at 49,152 tokens, measured
    2026-11-23): most workers never see one.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._tokens: _Tokens | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def check(self, grammar: str) -> None:
        """Compile a grammar, and take the first steps on one of its ways: some have none, and some
        become too complex there. Raises `GrammarFailed`."""
        constraint = self.start(grammar, ())
        for _ in range(_NUM_STEPS_TRIED):
            allowed = constraint.allowed()
            if allowed is None:
                return
            constraint.accept(int(allowed.argmax()))

    def start(self, grammar: str, tokens: Sequence[int]) -> Constraint:
        """A new sequence, of which `tokens` were sampled before. What is wrong with the grammar is
        raised when the constraint is first asked. Raises `GrammarFailed` for a model without an
        end."""
        matcher = self._compiled_copy(grammar)
        assert self._tokens is not None
        matcher.consume_tokens(list(tokens))
        return Constraint(matcher, self._vocab_size, self._tokens.end_tokens)

    def _compiled_copy(self, grammar: str) -> LLMatcher:
        """Compiled outside the lock: another sequence must not wait for that."""
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar].deep_copy()
        matcher = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = matcher
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
            return matcher.deep_copy()

    def _compile(self, grammar: str) -> LLMatcher:
        # Imported here: it takes 30 ms that the start of a worker need not spend.
        from llguidance import LLMatcher, LLParserLimits

        if self._tokens is None:
            self._tokens = _Tokens(self._vocabulary, self._vocab_size)
        if not self._tokens.end_tokens:
            raise GrammarFailed("this model has no token that ends a text")
        limits = LLParserLimits(**_LIMITS)  # type: ignore[arg-type]
        return LLMatcher(self._tokens.tokenizer(), grammar, log_level=0, limits=limits)


class Constraint:
    """Where one sequence is in its grammar. Belongs to the thread that samples."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, end_tokens: list[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._end_tokens = end_tokens
        self._mask = np.zeros(-(-vocab_size // _WORD_BITS), dtype=np.uint32)

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """For every token, may it come next? Those that end the text only where the grammar is
        satisfied; None when nothing else may come. Raises `GrammarFailed` when the grammar is
        wrong, or has become too complex on the way."""
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise GrammarFailed(_reason(self._matcher.get_error()))
        bits = np.unpackbits(self._mask.view(np.uint8), count=self._vocab_size, bitorder="little")
        num_allowed = np.count_nonzero(bits)
        if not num_allowed:
            raise GrammarFailed(_NO_TEXT)
        has_others = num_allowed > np.count_nonzero(bits[self._end_tokens])
        return bits.view(np.bool_) if has_others else None

    @property
    def end_token(self) -> int:
        """What to take when only an end may come."""
        return self._end_tokens[0]

    def accept(self, token: int) -> None:
        """A token that was allowed has been sampled."""
        self._matcher.consume_token(token)


class _Tokens:
    """A vocabulary as llguidance asks for it (`llguidance.TokenizerWrapper`). A token that adds
    nothing to the text is special there: only a grammar that names it lets it through."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        pieces = [vocabulary.piece(token) for token in range(vocab_size)]
        self.tokens = [
            piece or vocabulary.detokenize([token]) for token, piece in enumerate(pieces)
        ]
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        self.end_tokens = [token for token in range(vocab_size) if vocabulary.is_end(token)]
        self.eos_token_id = self.end_tokens[0] if self.end_tokens else -1
        self.bos_token_id = None
        self._vocabulary = vocabulary
        self._tokenizer: LLTokenizer | None = None

    def tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        if self._tokenizer is None:
            wrapper = TokenizerWrapper(self)
            self._tokenizer = LLTokenizer(wrapper, len(self.tokens), self.end_tokens)
        return self._tokenizer

    def __call__(self, text: bytes) -> list[int]:
        plain = text.decode("utf-8", "replace")
        return self._vocabulary.tokenize(plain, add_special=False, parse_special=False)


def _reason(error: str) -> str:
    """llguidance's message as a part of a sentence. A panic of it brings a backtrace."""
    lines = [line.strip() for line in error.splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = (errors or lines or [""])[0]
    if reason.startswith("panic"):
        return "it is too large"
    if "Current row has" in reason:
        return _TOO_MANY_WAYS
    return _NO_TEXT if reason == "NoExtensionBias" else reason[:_MAX_REASON_CHARS]
