"""Every operation of the protocol and the map it takes as `request.params`.

Owns the operations and the parameters of those that make no text. Whether a caller may use an
operation, and what the limits are, is the daemon's admission.

Invariants: `decode(encode(x)) == x`; a parameter that is left out is `None`, so that the model's
and the daemon's defaults can apply.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import Any, Final

from openclawctl.wire.completion import MAX_MODEL_NAME_CHARS, ChatParams, GenerateParams
from openclawctl.wire.errors import InvalidRequest
from openclawctl.wire.fields import Fields, present
from openclawctl.wire.framing import MAX_ITEMS
from openclawctl.wire.messages import LONGEST_S
from openclawctl.wire.sampling import Sampling
from openclawctl.wire.scheduling import decode_scheduling
from openclawctl.wire.tokens import MAX_TOKEN_ID

MAX_EMBED_INPUTS: Final = 2048
INSIGHTS_SINCE_S: Final = 30 * 86_400.0
MAX_INSIGHTS_S: Final = 400 * 86_400.0
"""A year and a month: each day is looked at, so the time that a report takes grows with them."""

MAX_PRINCIPAL_CHARS: Final = 256
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
    INSIGHTS = "insights"


@dataclass(frozen=True, slots=True)
class EmbedParams:
    """`embed`: one normalised vector per input, each in a delta of its own."""

    input: list[str]
    model: str | None = None
    priority: str | None = None
    deadline_s: float | None = None
    adapter: str | None = None

    @classmethod
    def decode(cls, source: Fields) -> EmbedParams:
        texts = source.texts("input", max_items=MAX_EMBED_INPUTS)
        if not texts or not all(texts):
            raise source.fail("'input' must hold at least one text, and no empty ones")
        model = source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS)
        adapter = source.text_or_none("adapter", max_chars=MAX_MODEL_NAME_CHARS)
        return cls(texts, model, adapter=adapter, **decode_scheduling(source))

    def encode(self) -> dict[str, Any]:
        return present(self)


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
        return present(self)


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
        return present(self)


@dataclass(frozen=True, slots=True)
class ModelParams:
    """`load` and `unload`: a model's name, never a path."""

    model: str | None = None

    @classmethod
    def decode(cls, source: Fields) -> ModelParams:
        return cls(source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS))

    def encode(self) -> dict[str, Any]:
        return present(self)


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
        return present(self)


@dataclass(frozen=True, slots=True)
class InsightsParams:
    """`insights`: what the ledger's last `since_s` seconds mean. None: every model, every principal
    that the caller may see."""

    since_s: float = INSIGHTS_SINCE_S
    model: str | None = None
    principal: str | None = None

    @classmethod
    def decode(cls, source: Fields) -> InsightsParams:
        since_s = source.number_or_none("since_s", low=0, high=MAX_INSIGHTS_S)
        return cls(
            since_s=INSIGHTS_SINCE_S if since_s is None else since_s,
            model=source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS),
            principal=source.text_or_none("principal", max_chars=MAX_PRINCIPAL_CHARS),
        )

    def encode(self) -> dict[str, Any]:
        return present(self)


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
    | InsightsParams
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
    Op.INSIGHTS: InsightsParams,
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
