"""The tokeniser thread: requests become tokens beside the running batch.

Owns the requests that are prepared and not started. Knows the backend's tokenizer and the chat
template; computes nothing. How long a prompt may be is the daemon's admission.

Invariant: every `prepare` gets exactly one answer: `prepared`, `answer` or `refused`.
"""

from __future__ import annotations

import logging
import queue
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

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
from openclawd.backends.base import GrammarFailed
from openclawd.engine.batch import BatchKind
from openclawd.engine.prefixes import num_same
from openclawd.worker.chats import AnswerReading, Chats
from openclawd.worker.grammar import grammar_of, refused
from openclawd.worker.messages import Answer, Drop, Prepare, Prepared, Refused, error_fields
from openclawd.worker.prefix_hashes import prefix_hashes
from openclawd.worker.template import ChatTemplate, Span

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.backends.base import Backend
    from openclawd.worker.messages import FromWorker

MAX_ANSWER_TOKENS: Final = 60_000
"""Most tokens in an answer to `tokenize`: a frame holds 65,536 items (`wire/framing.py`)."""

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
    answers of a chat are read."""

    kind: BatchKind
    prompts: list[list[int]]
    grammar: str = ""
    text: str | None = None
    reading: AnswerReading | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


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
        self.template = ChatTemplate(backend.chat_format, backend.control_texts)
        self._chats = Chats(self.template, backend)

    def submit(self, message: Prepare | Drop) -> None:
        self._inbox.put(message)

    def take(self, rid: int) -> PreparedRequest | None:
        """A prepared request, which is forgotten here. None if there is none of that id."""
        return self._prepared.pop(rid, None)

    def run(self) -> None:
        """Serve for ever. Raises `DaemonGone` when nobody listens any more."""
        while True:
            match self._inbox.get():
                case Drop(rid):
                    self._prepared.pop(rid, None)
                case Prepare(rid, op, params):
                    self._send(self._answer(rid, op, params))

    def _answer(self, rid: int, op: str, params: dict[str, Any]) -> FromWorker:
        try:
            return self._prepare(rid, op, params)
        except Problem as problem:
            return Refused(rid, error_fields(problem))
        except Exception:  # a bug ends the smallest scope, and that is this request
            _log.exception("a %s request could not be prepared", op)
            return Refused(rid, error_fields(Internal("the worker failed to prepare the request")))

    def _prepare(self, rid: int, op: str, params: dict[str, Any]) -> FromWorker:
        decoded, _ = decode_params(Op(op), params)
        match decoded:
            case TokenizeParams():
                return Answer(rid, {"tokens": self._tokenize(decoded)})
            case DetokenizeParams():
                return Answer(rid, {"text": self._detokenize(decoded.tokens)})
            case GenerateParams():
                request = self._generate(decoded)
            case ChatParams():
                request = self._chat(decoded)
            case EmbedParams():
                request = self._embed(decoded)
            case _:
                raise Unsupported(f"{op} is not an operation of a model")
        self._prepared[rid] = request
        longest = max(map(len, request.prompts))
        hashes = b""
        if request.kind is BatchKind.GENERATION:
            adapter = decoded.adapter or ""
            hashes = prefix_hashes(request.prompts[0], self._prefix_key, adapter=adapter)
        return Prepared(rid, request.num_prompt_tokens, longest, request.text, hashes)

    # ---- operations ----

    def _generate(self, params: GenerateParams) -> PreparedRequest:
        self._check_generation(params)
        text = None
        if not isinstance(params.prompt, str):
            self._check_token_ids(params.prompt)
            text = self._detokenize(params.prompt) if params.echo else None
        return replace(self._generation(self._prompt_of(params), params), text=text)

    def _chat(self, params: ChatParams) -> PreparedRequest:
        self._check_generation(params)
        spans, reading = self._chats.render(params)
        prepared = self._generation(self._tokens_of(spans), params, reading.before)
        if reading.calls:
            prepared = replace(prepared, grammar=self._checked(reading.calls, "tools"))
        return replace(prepared, reading=reading)

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

    def _embed(self, params: EmbedParams) -> PreparedRequest:
        if not self._backend.info.can_embed:
            raise Unsupported("this model cannot embed", hint="use an embedding model")
        prompts = [self._plain(text) for text in params.input]
        if not all(prompts):
            raise InvalidRequest("an input has no tokens", hint="leave it out")
        return PreparedRequest(BatchKind.EMBEDDING, prompts)

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

    def _prompt_of(self, params: GenerateParams) -> list[int]:
        if params.suffix is None:
            prompt = params.prompt
            return self._plain(prompt) if isinstance(prompt, str) else prompt
        return self._with_gap(params.prompt, params.suffix)

    def _with_gap(self, prompt: str | list[int], suffix: str) -> list[int]:
        """What precedes a gap and what follows it, in the order that llama.cpp's server uses."""
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
        tokens = [infill.prefix, *before, infill.suffix, *after, infill.middle]
        return self._with_added(tokens)

    def _plain(self, text: str) -> list[int]:
        """A prompt of a user: nothing in it becomes a control token."""
        return self._backend.tokenize(text, add_special=True, parse_special=False)

    def _tokens_of(self, spans: list[Span]) -> list[int]:
        """A rendered chat. Cut in several spans only where users wrote control tokens' texts."""
        tokenize = self._backend.tokenize
        if len(spans) == 1 and spans[0].is_template:
            return tokenize(spans[0].text, add_special=True, parse_special=True)
        tokens: list[int] = []
        for span in spans:
            tokens += tokenize(span.text, add_special=False, parse_special=span.is_template)
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
        if not self._backend.info.can_generate:
            raise Unsupported(
                "this model is an encoder: it makes embeddings, not text",
                hint="use embed, or another model",
            )
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
