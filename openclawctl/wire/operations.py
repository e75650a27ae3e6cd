"""What each operation takes and gives: the maps inside `request.params` and `done.result`.

Owns the names, types and ranges of parameters and results, for client and daemon alike. Whether a
caller may use an operation, and what the limits are, is the daemon's admission.

Invariants: `decode(encode(x)) == x`; a parameter that is left out is `None`, so that the model's
and the daemon's defaults can apply.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import Any, Final

from openclawctl.wire.errors import InvalidRequest, Unsupported
from openclawctl.wire.fields import Fields
from openclawctl.wire.framing import MAX_ITEMS
from openclawctl.wire.messages import LONGEST_S, MAX_TOKEN_ID

MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 256
"""Longest stop string: this many characters may be held back from a stream while they could still
become one."""

MAX_EMBED_INPUTS: Final = 2048
MAX_CHAT_MESSAGES: Final = 4096
MAX_LOGIT_BIASES: Final = 1024
MAX_TOKENS: Final = 2**31 - 1
MAX_SEED: Final = 2**63 - 1
MAX_MODEL_NAME_CHARS: Final = 256
MAX_PART_TYPE_CHARS: Final = 64

CHAT_ROLES: Final = ("system", "user", "assistant", "tool")
USAGE_GROUPS: Final = ("model", "principal", "app", "day", "op")


class Op(enum.Enum):
    """Every operation of the protocol."""

    PING = "ping"
    STATUS = "status"
    MODELS = "models"
    LOAD = "load"
    UNLOAD = "unload"
    GENERATE = "generate"
    CHAT = "chat"
    EMBED = "embed"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    USAGE = "usage"


SAMPLING_RANGES: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0, 100),
    "top_k": (0, MAX_TOKEN_ID),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_penalty": (0.01, 10),
    "repeat_last_n": (0, 65_536),
    "frequency_penalty": (-10, 10),
    "presence_penalty": (-10, 10),
    "seed": (0, MAX_SEED),
}
"""Lowest and highest value of each sampling parameter, for requests and configuration alike."""


class FinishReason(enum.Enum):
    """Why a result ended. `length`: `max_tokens` or the context is used up."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 always takes the likeliest one.

    The filters apply in the order logit bias, penalties, `top_k`, `top_p`, `min_p`, temperature.
    Off are: `top_k` 0, `top_p` 1, `min_p` 0, penalties 1 (repeat) and 0 (frequency, presence).
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[int, float] | None = None

    @classmethod
    def decode(cls, source: Fields) -> Sampling:
        return cls(
            temperature=_sampling_number(source, "temperature"),
            top_k=_sampling_integer(source, "top_k"),
            top_p=_sampling_number(source, "top_p"),
            min_p=_sampling_number(source, "min_p"),
            repeat_penalty=_sampling_number(source, "repeat_penalty"),
            repeat_last_n=_sampling_integer(source, "repeat_last_n"),
            frequency_penalty=_sampling_number(source, "frequency_penalty"),
            presence_penalty=_sampling_number(source, "presence_penalty"),
            seed=_sampling_integer(source, "seed"),
            logit_bias=_decode_logit_bias(source) if source.has("logit_bias") else None,
        )

    def encode(self) -> dict[str, Any]:
        params = _present(self)
        if self.logit_bias is not None:  # pairs, because map keys on the wire are strings
            params["logit_bias"] = [[token, bias] for token, bias in self.logit_bias.items()]
        return params

    def over(self, defaults: Sampling) -> Sampling:
        """These values, and `defaults` where they are None."""
        return Sampling(**{**_present(defaults), **_present(self)})


def _sampling_number(source: Fields, name: str) -> float | None:
    low, high = SAMPLING_RANGES[name]
    return source.number_or_none(name, low=low, high=high)


def _sampling_integer(source: Fields, name: str) -> int | None:
    low, high = SAMPLING_RANGES[name]
    return source.integer_or_none(name, low=int(low), high=int(high))


def _decode_logit_bias(source: Fields) -> dict[int, float]:
    biases: dict[int, float] = {}
    for pair in source.items("logit_bias", max_items=MAX_LOGIT_BIASES):
        if not isinstance(pair, list) or len(pair) != 2:
            raise source.fail("'logit_bias' must be a list of [token_id, bias] pairs")
        entry = source.nested(dict(zip(("token_id", "bias"), pair, strict=True)), "logit_bias")
        token_id = entry.integer("token_id", low=0, high=MAX_TOKEN_ID)
        biases[token_id] = entry.number("bias", low=-1000, high=1000)
    return biases


@dataclass(frozen=True, slots=True)
class GenerateParams:
    """`generate`: continue a prompt as it stands, without a chat template."""

    prompt: str
    model: str | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    stream: bool = False
    sampling: Sampling = field(default_factory=Sampling)

    @classmethod
    def decode(cls, source: Fields) -> GenerateParams:
        return cls(prompt=source.text("prompt"), **_decode_completion(source))

    def encode(self) -> dict[str, Any]:
        return {"prompt": self.prompt, **_encode_completion(self)}


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a chat. Typed text parts were joined when it was decoded."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatParams:
    """`chat`: the assistant's next turn, through the model's own chat template."""

    messages: list[ChatMessage]
    model: str | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    stream: bool = False
    sampling: Sampling = field(default_factory=Sampling)

    @classmethod
    def decode(cls, source: Fields) -> ChatParams:
        values = source.items("messages", max_items=MAX_CHAT_MESSAGES)
        if not values:
            raise source.fail("'messages' is empty; a chat needs at least one message")
        messages = [
            _decode_chat_message(source.nested(value, f"messages[{number}]"))
            for number, value in enumerate(values)
        ]
        return cls(messages=messages, **_decode_completion(source))

    def encode(self) -> dict[str, Any]:
        messages = [{"role": turn.role, "content": turn.content} for turn in self.messages]
        return {"messages": messages, **_encode_completion(self)}


def _decode_chat_message(source: Fields) -> ChatMessage:
    role = source.choice("role", CHAT_ROLES, default="")
    if not role:
        raise source.fail(f"'role' is missing; allowed: {', '.join(CHAT_ROLES)}")
    return ChatMessage(role=role, content=_decode_content(source))


def _decode_content(source: Fields) -> str:
    """A string, or typed parts of which only text is built."""
    if not source.is_list("content"):
        return source.text("content")
    texts = []
    for number, value in enumerate(source.items("content", max_items=MAX_CHAT_MESSAGES)):
        part = source.nested(value, f"content[{number}]")
        if (kind := part.text("type", max_chars=MAX_PART_TYPE_CHARS)) != "text":
            raise Unsupported(
                f"content[{number}] is of type {kind!r}; this version takes text only",
                hint="send the text parts alone",
            )
        texts.append(part.text("text"))
    return "".join(texts)


def _decode_completion(source: Fields) -> dict[str, Any]:
    stop = source.texts("stop", max_items=MAX_STOP_STRINGS)
    if any(not 0 < len(text) <= MAX_STOP_CHARS for text in stop):
        raise source.fail(f"each 'stop' string must have 1 to {MAX_STOP_CHARS} characters")
    return {
        "model": source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS),
        "max_tokens": source.integer_or_none("max_tokens", low=1, high=MAX_TOKENS),
        "stop": stop,
        "stream": source.boolean("stream", default=False),
        "sampling": Sampling.decode(source),
    }


def _encode_completion(params: GenerateParams | ChatParams) -> dict[str, Any]:
    encoded = {"stream": params.stream, **params.sampling.encode()}
    if params.model is not None:
        encoded["model"] = params.model
    if params.max_tokens is not None:
        encoded["max_tokens"] = params.max_tokens
    if params.stop:
        encoded["stop"] = params.stop
    return encoded


@dataclass(frozen=True, slots=True)
class EmbedParams:
    """`embed`: one normalised vector per input, each in a delta of its own."""

    input: list[str]
    model: str | None = None

    @classmethod
    def decode(cls, source: Fields) -> EmbedParams:
        texts = source.texts("input", max_items=MAX_EMBED_INPUTS)
        if not texts or not all(texts):
            raise source.fail("'input' must hold at least one text, and no empty ones")
        return cls(texts, source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS))

    def encode(self) -> dict[str, Any]:
        return _present(self)


@dataclass(frozen=True, slots=True)
class TokenizeParams:
    """`tokenize`: the token ids of a text. `add_special` adds what the model wants in front."""

    text: str
    model: str | None = None
    add_special: bool = False

    @classmethod
    def decode(cls, source: Fields) -> TokenizeParams:
        return cls(
            text=source.text("text"),
            model=source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS),
            add_special=source.boolean("add_special", default=False),
        )

    def encode(self) -> dict[str, Any]:
        return _present(self)


@dataclass(frozen=True, slots=True)
class DetokenizeParams:
    """`detokenize`: the text of token ids; bytes that are not UTF-8 become U+FFFD."""

    tokens: list[int]
    model: str | None = None

    @classmethod
    def decode(cls, source: Fields) -> DetokenizeParams:
        return cls(
            tokens=source.integers("tokens", max_items=MAX_ITEMS, low=0, high=MAX_TOKEN_ID),
            model=source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS),
        )

    def encode(self) -> dict[str, Any]:
        return _present(self)


@dataclass(frozen=True, slots=True)
class ModelParams:
    """`load` and `unload`: a model's name, never a path."""

    model: str | None = None

    @classmethod
    def decode(cls, source: Fields) -> ModelParams:
        return cls(source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS))

    def encode(self) -> dict[str, Any]:
        return _present(self)


@dataclass(frozen=True, slots=True)
class UsageParams:
    """`usage`: sums of the ledger, grouped `by`, over the last `since_s` seconds (None: all)."""

    by: str = "model"
    since_s: float | None = None

    @classmethod
    def decode(cls, source: Fields) -> UsageParams:
        return cls(
            by=source.choice("by", USAGE_GROUPS, default="model"),
            since_s=source.number_or_none("since_s", low=0, high=LONGEST_S),
        )

    def encode(self) -> dict[str, Any]:
        return _present(self)


@dataclass(frozen=True, slots=True)
class NoParams:
    """`ping`, `status`, `models`."""

    @classmethod
    def decode(cls, source: Fields) -> NoParams:
        del source
        return cls()

    def encode(self) -> dict[str, Any]:
        return {}


Params = (
    NoParams
    | ModelParams
    | GenerateParams
    | ChatParams
    | EmbedParams
    | TokenizeParams
    | DetokenizeParams
    | UsageParams
)

PARAMS: Final[dict[Op, type[Params]]] = {
    Op.PING: NoParams,
    Op.STATUS: NoParams,
    Op.MODELS: NoParams,
    Op.LOAD: ModelParams,
    Op.UNLOAD: ModelParams,
    Op.GENERATE: GenerateParams,
    Op.CHAT: ChatParams,
    Op.EMBED: EmbedParams,
    Op.TOKENIZE: TokenizeParams,
    Op.DETOKENIZE: DetokenizeParams,
    Op.USAGE: UsageParams,
}


def param_names(op: Op) -> frozenset[str]:
    """Every parameter of an operation. Those of `Sampling` stand beside the others."""
    names = {f.name for f in fields(PARAMS[op])}
    if "sampling" in names:
        names = names - {"sampling"} | {f.name for f in fields(Sampling)}
    return frozenset(names)


_NAMES: Final = {op: param_names(op) for op in Op}


def decode_params(op: Op, params: dict[str, Any]) -> tuple[Params, list[str]]:
    """An operation's parameters, and the names of those it does not know.

    Raises `InvalidRequest` or `Unsupported`. Unknown names are ignored, as the protocol promises,
    but never silently: the daemon answers each with a `warning` event.
    """
    source = Fields(params, where=op.value, error=InvalidRequest)
    return PARAMS[op].decode(source), source.unknown(_NAMES[op])


@dataclass(frozen=True, slots=True)
class Usage:
    """Exact token counts. `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    counts: str = "exact"

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def decode(cls, source: Fields) -> Usage:
        return cls(
            prompt_tokens=source.integer("prompt_tokens", low=0),
            cached_tokens=source.integer("cached_tokens", low=0),
            completion_tokens=source.integer("completion_tokens", low=0),
            counts=source.text("counts"),
        )

    def encode(self) -> dict[str, Any]:
        return _present(self)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds by the daemon's monotonic clock, from the request's arrival.

    `load_s` and `queue_s` are what it waited for its model and for its turn; `ttft_s` is the time
    to the first token (None when there was none); `total_s` ends with the last token.
    """

    load_s: float = 0.0
    queue_s: float = 0.0
    ttft_s: float | None = None
    total_s: float = 0.0

    @classmethod
    def decode(cls, source: Fields) -> Timings:
        return cls(
            load_s=source.number("load_s", low=0, high=LONGEST_S),
            queue_s=source.number("queue_s", low=0, high=LONGEST_S),
            ttft_s=source.number_or_none("ttft_s", low=0, high=LONGEST_S),
            total_s=source.number("total_s", low=0, high=LONGEST_S),
        )

    def encode(self) -> dict[str, Any]:
        return _present(self)


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `generate` fills `text`, `chat` fills `message`."""

    index: int
    finish_reason: str
    text: str | None = None
    message: dict[str, Any] | None = None

    @classmethod
    def decode(cls, source: Fields) -> Choice:
        return cls(
            index=source.integer("index", low=0),
            finish_reason=source.text("finish_reason"),
            text=source.text_or_none("text"),
            message=source.mapping("message") or None,
        )


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """The result of `generate`, `chat` and `embed` (which has no choices).

    `model` is the one that really answered. `context` says what became of the prompt: `policy`,
    `prompt_tokens_in`, `dropped` (tokens) and the `max_tokens` that applied.
    """

    request_id: str
    model: str
    usage: Usage
    timings: Timings
    choices: list[Choice] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def decode(cls, source: Fields) -> InferenceResult:
        return cls(
            request_id=source.text("request_id"),
            model=source.text("model"),
            usage=Usage.decode(source.nested(source.mapping("usage"), "usage")),
            timings=Timings.decode(source.nested(source.mapping("timings"), "timings")),
            choices=[
                Choice.decode(source.nested(value, "choices"))
                for value in source.items("choices", max_items=MAX_ITEMS)
            ],
            context=source.mapping("context"),
        )

    def encode(self) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "model": self.model,
            "choices": [_present(choice) for choice in self.choices],
            "usage": self.usage.encode(),
            "timings": self.timings.encode(),
            "context": self.context,
        }


def _present(record: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not None."""
    values = ((f.name, getattr(record, f.name)) for f in fields(record))
    return {name: value for name, value in values if value is not None}
