"""The tokeniser thread: requests become tokens beside the running batch.

Owns the requests that are prepared and not started. Knows the backend's tokenizer and the chat
template; computes nothing. How long a prompt may be is the daemon's admission.

Invariant: every `prepare` gets exactly one answer: `prepared`, `answer` or `refused`.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from openclawctl.wire.chat import ChatMessage
from openclawctl.wire.completion import ChatParams, GenerateParams
from openclawctl.wire.errors import (
    Internal,
    InvalidRequest,
    LimitExceeded,
    Problem,
    Unsupported,
)
from openclawctl.wire.operations import (
    DetokenizeParams,
    EmbedParams,
    Op,
    TokenizeParams,
    decode_params,
)
from openclawctl.wire.scoring import ClassifyParams, RerankParams
from openclawd.backends.base import GrammarFailed
from openclawd.engine.batch import BatchKind
from openclawd.engine.prefixes import num_same
from openclawd.worker.chats import AnswerReading, Chats
from openclawd.worker.encoding import check_encoding, check_generation, pair_format_of
from openclawd.worker.grammar import grammar_of, refused
from openclawd.worker.messages import Answer, Drop, Prepare, Prepared, Refused, error_fields
from openclawd.worker.prefix_hashes import prefix_hashes
from openclawd.worker.template import ChatTemplate, Span
from openclawd.worker.truncation import (
    cut_around_gap,
    cut_tokens,
    droppable_turns,
    fewest,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from openclawd.backends.base import Backend
    from openclawd.worker.messages import FromWorker

MAX_ANSWER_TOKENS: Final = 60_000
"""Most tokens in an answer to `tokenize`: a frame holds 65,536 items (`wire/framing.py`)."""

START_S: Final = 0.015
"""In so much time after it was read a request is usually started: what the daemon does between is
a commit to the ledger. With a burst it is two, of which the first has few of its requests."""

MAX_TOKENIZE_BYTES: Final = 1024 * 1024
"""Longest text for `tokenize`. Other requests wait meanwhile: about a second for the worst text of
this length (measured 2026-11-23: 8 MB of spaces take 9.7 s)."""

MAX_ANSWER_CHARS: Final = 4 * 1024 * 1024
"""Longest answer to `detokenize`: in UTF-8 it may take four times as many bytes, a whole frame."""

_UNLIKE: Final = ("a", "1")
"""Two answers to a system prompt that have nothing in common: what the chats with both begin with,
they begin with whatever the user says."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """The tokens of each prompt of a request, and the grammar that the answers follow. `text` is
    that of a prompt given in tokens, where the answer is to begin with it. `reading` is how the
    answers of a chat are read. `num_dropped` tokens were cut."""

    kind: BatchKind
    prompts: list[list[int]]
    grammar: str = ""
    text: str | None = None
    reading: AnswerReading | None = None
    num_dropped: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A chat as tokens, and how the answers to it are read."""

    tokens: list[int]
    reading: AnswerReading


@dataclass(frozen=True, slots=True)
class _Cut:
    """A prompt of more than `most` tokens is cut by this policy; an empty one cuts nothing."""

    most: int
    policy: str

    def applies(self, num_tokens: int) -> bool:
        return bool(self.policy) and num_tokens > self.most


class Tokenizer:
    """`submit` and `take` may be called from any thread; `run` is the tokeniser thread."""

    def __init__(
        self, backend: Backend, send: Callable[[FromWorker], None], *, prefix_key: bytes = b""
    ) -> None:
        self._backend = backend
        self._send = send
        self._prefix_key = prefix_key
        self._inbox: queue.SimpleQueue[Prepare | Drop] = queue.SimpleQueue()
        self._prepared: dict[int, PreparedRequest] = {}
        self._read_at = -math.inf
        self.template = ChatTemplate(backend.chat_format, backend.control_texts)
        self._chats = Chats(self.template, backend)

    def submit(self, message: Prepare | Drop) -> None:
        self._inbox.put(message)

    def soon_s(self) -> float:
        """For how long it may pay to wait for another start: requests that have just been read are
        started soon, unless they have to wait in the daemon. 0 if there are none."""
        if not self._prepared and self._inbox.empty():
            return 0.0
        return max(0.0, self._read_at + START_S - time.monotonic())

    def take(self, rid: int) -> PreparedRequest | None:
        """A prepared request, which is forgotten here. None if there is none of that id."""
        return self._prepared.pop(rid, None)

    def run(self) -> None:
        """Serve for ever. Raises `DaemonGone` when nobody listens any more."""
        while True:
            match self._inbox.get():
                case Drop(rid):
                    self._prepared.pop(rid, None)
                case Prepare() as message:
                    self._send(self._answer(message))

    def _answer(self, message: Prepare) -> FromWorker:
        rid = message.rid
        try:
            return self._prepare(message)
        except Problem as problem:
            return Refused(rid, error_fields(problem))
        except Exception:  # a bug ends the smallest scope, and that is this request
            _log.exception("a %s request could not be prepared", message.op)
            return Refused(rid, error_fields(Internal("the worker failed to prepare the request")))

    def _prepare(self, message: Prepare) -> FromWorker:
        rid, op = message.rid, message.op
        cut = _Cut(message.max_prompt_tokens, message.truncation)
        decoded, _ = decode_params(Op(op), message.params)
        match decoded:
            case TokenizeParams():
                return Answer(rid, {"tokens": self._tokenize(decoded)})
            case DetokenizeParams():
                return Answer(rid, {"text": self._detokenize(decoded.tokens)})
            case GenerateParams():
                request = self._generate(decoded, cut)
            case ChatParams():
                request = self._chat(decoded, cut)
            case EmbedParams() | ClassifyParams():
                request = self._encode(decoded, cut)
            case RerankParams():
                request = self._rerank(decoded, cut)
            case _:
                raise Unsupported(f"{op} is not an operation of a model")
        self._prepared[rid] = request
        self._read_at = time.monotonic()
        hashes = b""
        if request.kind is BatchKind.GENERATION:
            adapter = decoded.adapter or ""
            hashes = prefix_hashes(request.prompts[0], self._prefix_key, adapter=adapter)
        return Prepared(
            rid,
            request.num_prompt_tokens,
            longest=max(map(len, request.prompts)),
            text=request.text,
            prompt_tokens_in=request.num_prompt_tokens + request.num_dropped,
            dropped=request.num_dropped,
            prefix_hashes=hashes,
        )

    # ---- operations ----

    def _generate(self, params: GenerateParams, cut: _Cut) -> PreparedRequest:
        self._check_generation(params)
        text = None
        if not isinstance(params.prompt, str):
            self._check_token_ids(params.prompt)
            text = self._detokenize(params.prompt) if params.echo else None
        tokens, num_dropped = self._prompt_of(params, cut)
        return replace(self._generation(tokens, params), text=text, num_dropped=num_dropped)

    def _chat(self, params: ChatParams, cut: _Cut) -> PreparedRequest:
        self._check_generation(params)
        whole = self._rendered(params)
        chat = self._cut_chat(params, whole, cut) if cut.applies(len(whole.tokens)) else whole
        reading, num_dropped = chat.reading, len(whole.tokens) - len(chat.tokens)
        prepared = self._generation(chat.tokens, params, reading.before)
        if reading.calls:
            prepared = replace(prepared, grammar=self._checked(reading.calls, "tools"))
        return replace(prepared, reading=reading, num_dropped=num_dropped)

    def _rendered(self, params: ChatParams) -> _Rendered:
        spans, reading = self._chats.render(params)
        return _Rendered(self._tokens_of(spans), reading)

    def _cut_chat(self, params: ChatParams, whole: _Rendered, cut: _Cut) -> _Rendered:
        """Without as few turns as will do, or without all that may go. Each try renders and
        tokenises what is left anew: what a template makes of it is nowhere to be read off."""
        turns = droppable_turns(params.messages, cut.policy)
        best = whole

        def fits(number: int) -> bool:
            nonlocal best
            kept = replace(params, messages=without(params.messages, turns[:number]))
            is_last_resort = number == len(turns)
            contents = (message.content for message in kept.messages)
            if number == 0 or not (is_last_resort or self._may_fit(contents, cut)):
                return False
            spans, reading = self._chats.render(kept)
            # Reasoning, tools and their calls, of which the template may have left out any.
            if not (is_last_resort or self._may_fit((span.text for span in spans), cut)):
                return False
            rendered = _Rendered(self._tokens_of(spans), reading)
            is_short_enough = len(rendered.tokens) <= cut.most
            if is_short_enough or is_last_resort:
                best = rendered
            return is_short_enough

        fewest(len(turns), fits)
        return best

    def _may_fit(self, texts: Iterable[str], cut: _Cut) -> bool:
        """False where the number of bytes says that there are too many tokens: that is not worth
        tokenising."""
        num_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
        return num_bytes <= cut.most * (self._backend.max_token_bytes or num_bytes)

    def _generation(
        self, tokens: list[int], params: GenerateParams | ChatParams, before: str = ""
    ) -> PreparedRequest:
        if not tokens:
            raise InvalidRequest("the prompt is empty", hint="give at least one word")
        grammar = ""
        if params.format is not None:
            grammar = self._checked(grammar_of(params.format, before=before), "format")
        return PreparedRequest(BatchKind.GENERATION, [tokens], grammar)

    def _checked(self, grammar: str, field: str) -> str:
        """What is wrong with a grammar is said before the request is queued."""
        try:
            self._backend.check_grammar(grammar)
        except GrammarFailed as failure:
            raise refused(str(failure), field=field) from None
        return grammar

    def _encode(self, params: EmbedParams | ClassifyParams, cut: _Cut) -> PreparedRequest:
        check_encoding(params, self._backend.info)
        prompts = [self._plain(text) for text in params.input]
        if not all(prompts):
            raise InvalidRequest("an input has no tokens", hint="leave it out")
        pieces = [self._cut_plain(prompt, cut) for prompt in prompts]
        return _encoding(pieces, prompts)

    def _rerank(self, params: RerankParams, cut: _Cut) -> PreparedRequest:
        """Of a pair that is too long, the document is cut."""
        pair = pair_format_of(self._backend)
        texts = [self._bare(text) for text in params.documents]
        first = [*pair.before, *self._bare(params.query), *pair.between]
        prompts = [[*first, *text, *pair.after] for text in texts]
        pieces = [
            cut_tokens(prompt, cut.most, policy=cut.policy, num_kept_first=len(first))
            if cut.applies(len(prompt))
            else prompt
            for prompt in prompts
        ]
        return _encoding(pieces, prompts)

    def _tokenize(self, params: TokenizeParams) -> list[int]:
        text, add_special = params.text, params.add_special
        if (num_bytes := len(text.encode("utf-8", "replace"))) > MAX_TOKENIZE_BYTES:
            raise LimitExceeded(
                f"the text has {num_bytes} bytes; tokenize takes {MAX_TOKENIZE_BYTES} at most",
                hint="send the text in parts",
            )
        tokens = self._backend.tokenize(text, add_special=add_special, parse_special=False)
        if len(tokens) > MAX_ANSWER_TOKENS:
            raise LimitExceeded(
                f"the text has {len(tokens)} tokens; an answer holds {MAX_ANSWER_TOKENS} at most",
                hint="send the text in parts",
            )
        return tokens

    def _detokenize(self, tokens: list[int]) -> str:
        self._check_token_ids(tokens)
        text = self._backend.detokenize(tokens).decode("utf-8", "replace")
        if len(text) > MAX_ANSWER_CHARS:
            raise LimitExceeded(
                f"the text has {len(text)} characters; an answer holds {MAX_ANSWER_CHARS} at most",
                hint="send the tokens in parts",
            )
        return text

    # ---- tokens ----

    def beginning(self, system_prompt: str) -> list[int]:
        """What every chat with a system prompt begins with; without a chat template, the tokens of
        its text. Raises a `Problem` for one that no chat can begin with."""
        if self._backend.chat_format.template is None:
            tokens = self._plain(system_prompt)
            return tokens[:-1] if self._backend.chat_format.adds_eos else tokens
        system = ChatMessage("system", system_prompt)
        first, second = (
            self._tokens_of(self.template.render([system, ChatMessage("user", words)]))
            for words in _UNLIKE
        )
        return first[: num_same(first, second, offset=0)]

    def _prompt_of(self, params: GenerateParams, cut: _Cut) -> tuple[list[int], int]:
        """The prompt's tokens, and how many were cut from it."""
        if params.suffix is not None:
            return self._with_gap(params.prompt, params.suffix, cut)
        prompt = params.prompt
        whole = self._plain(prompt) if isinstance(prompt, str) else prompt
        tokens = self._cut_plain(whole, cut)
        return tokens, len(whole) - len(tokens)

    def _cut_plain(self, tokens: list[int], cut: _Cut) -> list[int]:
        """Token ids of a client's are cut like a text's: the token in front stays if it is the one
        that the tokenizer puts there."""
        if not cut.applies(len(tokens)):
            return tokens
        front = self._with_added([])[:1] if self._backend.chat_format.adds_bos else []
        num_kept_first = len(front) if tokens[: len(front)] == front else 0
        return cut_tokens(tokens, cut.most, policy=cut.policy, num_kept_first=num_kept_first)

    def _with_gap(self, prompt: str | list[int], suffix: str, cut: _Cut) -> tuple[list[int], int]:
        """What precedes a gap and what follows it, in the order that llama.cpp's server uses, and
        how many tokens were cut from it."""
        infill = self._backend.infill_tokens
        if infill is None:
            raise Unsupported(
                "this model cannot fill in a gap: its vocabulary has no tokens for it",
                hint="leave out 'suffix', or use a model for code that can",
            )
        before, after = (
            self._backend.tokenize(text, add_special=False, parse_special=False)
            if isinstance(text, str)
            else text
            for text in (prompt, suffix)
        )
        frame = self._with_added([infill.prefix, infill.suffix, infill.middle])
        num_text = len(before) + len(after)
        if cut.applies(len(frame) + num_text):
            before, after = cut_around_gap(before, after, max(0, cut.most - len(frame)))
        tokens = [infill.prefix, *before, infill.suffix, *after, infill.middle]
        return self._with_added(tokens), num_text - len(before) - len(after)

    def _plain(self, text: str) -> list[int]:
        """A prompt of a user: nothing in it becomes a control token."""
        return self._backend.tokenize(text, add_special=True, parse_special=False)

    def _bare(self, text: str) -> list[int]:
        return self._backend.tokenize(text, add_special=False, parse_special=False)

    def _tokens_of(self, spans: list[Span]) -> list[int]:
        """A rendered chat. Cut in several spans only where users wrote control tokens' texts.
        These come again and again, and each call of the tokenizer costs as much as 70 bytes of
        text (16 µs, measured 2026-11-30), so that of spans that are alike one is tokenised."""
        tokenize = self._backend.tokenize
        if len(spans) == 1 and spans[0].is_template:
            return tokenize(spans[0].text, add_special=True, parse_special=True)
        of_text: dict[Span, list[int]] = {}
        tokens: list[int] = []
        for span in spans:
            if span not in of_text:
                of_text[span] = tokenize(
                    span.text, add_special=False, parse_special=span.is_template
                )
            tokens += of_text[span]
        return self._with_added(tokens)

    def _with_added(self, tokens: list[int]) -> list[int]:
        """What the tokenizer adds around every prompt."""
        added = self._backend.tokenize("", add_special=True, parse_special=False)
        chat_format = self._backend.chat_format
        bos = added[:1] if chat_format.adds_bos else []
        eos = added[-1:] if chat_format.adds_eos else []
        return bos + tokens + eos

    # ---- checks ----

    def _check_generation(self, params: GenerateParams | ChatParams) -> None:
        check_generation(self._backend.info)
        if params.sampling.logit_bias:
            self._check_token_ids(list(params.sampling.logit_bias))

    def _check_token_ids(self, tokens: list[int]) -> None:
        vocab_size = self._backend.info.vocab_size
        unknown = [token for token in tokens if token >= vocab_size]
        if unknown:
            raise InvalidRequest(
                f"token {unknown[0]} does not exist; this model has tokens 0 to {vocab_size - 1}",
                hint="take token ids from tokenize with the same model",
            )


def _encoding(pieces: list[list[int]], prompts: list[list[int]]) -> PreparedRequest:
    """What is to be encoded, and how much of it was cut."""
    num_dropped = sum(map(len, prompts)) - sum(map(len, pieces))
    return PreparedRequest(BatchKind.EMBEDDING, pieces, num_dropped=num_dropped)
