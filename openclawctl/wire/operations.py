"""Every operation of the protocol and the map it takes as `request.params`.

Owns the operations and the parameters of those that make no text. Whether a caller may use an
operation, and what the limits are, is the daemon's admission.

Invariants: `decode(encode(x)) == x`; a parameter that is left out is `None`, so that the model's
and the daemon's defaults can apply.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field, fields
from typing import Any, Final

from openclawctl.wire.completion import MAX_MODEL_NAME_CHARS, ChatParams, GenerateParams
from openclawctl.wire.errors import InvalidRequest
from openclawctl.wire.fetching import ModelFileParams, PullParams
from openclawctl.wire.fields import Fields, present, suggestion
from openclawctl.wire.framing import MAX_ITEMS
from openclawctl.wire.keys import KeyCreateParams, KeyParams, KeyRotateParams
from openclawctl.wire.labels import decode_labels
from openclawctl.wire.messages import LONGEST_S
from openclawctl.wire.sampling import Sampling
from openclawctl.wire.scheduling import decode_keep_alive_s, decode_scheduling
from openclawctl.wire.scoring import ClassifyParams, RerankParams
from openclawctl.wire.tokens import MAX_TOKEN_ID

MAX_EMBED_INPUTS: Final = 2048
MAX_AUDIT_ROWS: Final = 2000
"""A row has some 400 bytes, and 6 KiB at most: they fit into a frame of 16 MiB."""

DEFAULT_AUDIT_ROWS: Final = 100
_MAX_NAME_CHARS: Final = 256
_HEAD: Final = re.compile("[0-9]{1,18}:[0-9a-f]{64}")
USAGE_GROUPS: Final = (
    "model", "principal", "key", "app", "session", "day", "hour", "op", "tier"
)  # fmt: skip
USAGE_COLUMNS: Final = (
    "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost", "cancelled",
    "failed", "total_s", "mean_ttft_s",
)  # fmt: skip
MAX_USAGE_ROWS: Final = 10_000
"""Groups in one answer: a few megabytes."""

MAX_USAGE_PAGE: Final = 1000
"""Requests in one answer of `usage.rows`: a megabyte."""
INSIGHTS_SINCE_S: Final = 30 * 86_400.0
MAX_INSIGHTS_S: Final = 400 * 86_400.0
"""A year and a month: each day is looked at, so the time that a report takes grows with them."""


class Op(enum.Enum):
    """Every operation of the protocol."""

    PING = "ping"
    STATUS = "status"
    REQUESTS_CANCEL = "requests.cancel"
    MODELS = "models"
    LOAD = "load"
    UNLOAD = "unload"
    RELOAD = "reload"
    DRAIN = "drain"
    RESUME = "resume"
    GENERATE = "generate"
    CHAT = "chat"
    EMBED = "embed"
    CLASSIFY = "classify"
    RERANK = "rerank"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    USAGE = "usage"
    AUDIT = "audit"
    AUDIT_VERIFY = "audit.verify"
    WHOAMI = "whoami"
    KEYS_CREATE = "keys.create"
    KEYS_LIST = "keys.list"
    KEYS_SHOW = "keys.show"
    KEYS_ROTATE = "keys.rotate"
    KEYS_REVOKE = "keys.revoke"
    BUDGETS = "budgets"
    USAGE_ROWS = "usage.rows"
    LEDGER_CHECK = "ledger.check"
    LEDGER_PRUNE = "ledger.prune"
    LEDGER_BACKUP = "ledger.backup"
    INSIGHTS = "insights"
    SHOW = "show"
    WATCH = "watch"
    PULL = "pull"
    MODELS_REMOVE = "models.remove"
    MODELS_VERIFY = "models.verify"


@dataclass(frozen=True, slots=True)
class EmbedParams:
    """`embed`: one normalised vector per input, each in a delta of its own."""

    input: list[str]
    model: str | None = None
    priority: str | None = None
    deadline_s: float | None = None
    adapter: str | None = None
    app: str | None = None
    session: str | None = None
    keep_alive_s: float | None = None

    @classmethod
    def decode(cls, source: Fields) -> EmbedParams:
        texts = source.texts("input", max_items=MAX_EMBED_INPUTS)
        if not texts or not all(texts):
            raise source.fail("'input' must hold at least one text, and no empty ones")
        model = source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS)
        adapter = source.text_or_none("adapter", max_chars=MAX_MODEL_NAME_CHARS)
        others = {**decode_scheduling(source), **decode_labels(source)}
        keep_alive_s = decode_keep_alive_s(source)
        return cls(texts, model, adapter=adapter, keep_alive_s=keep_alive_s, **others)

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
    """`load`, `unload` and `show`: a model's name, never a path."""

    model: str | None = None

    @classmethod
    def decode(cls, source: Fields) -> ModelParams:
        return cls(source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS))

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class WatchParams:
    """`watch`: the models, whenever one changes, for so many times; None until it is cancelled."""

    num_updates: int | None = None

    @classmethod
    def decode(cls, source: Fields) -> WatchParams:
        return cls(source.integer_or_none("num_updates", low=1))

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class UsageParams:
    """`usage`: sums of the ledger, grouped `by`. The range is `[since, until)`, each as seconds
    before now (`_s`) or as Unix time (`_at`); None: no bound. `sort` is one of the groups or of
    `USAGE_COLUMNS`."""

    by: list[str] = field(default_factory=lambda: ["model"])
    since_s: float | None = None
    until_s: float | None = None
    since_at: float | None = None
    until_at: float | None = None
    sort: str | None = None
    limit: int | None = None

    @classmethod
    def decode(cls, source: Fields) -> UsageParams:
        by = _usage_groups(source)
        sort = source.choice("sort", (*by, *USAGE_COLUMNS), default="")
        times = {
            name: source.number_or_none(name, low=0, high=LONGEST_S)
            for name in ("since_s", "until_s", "since_at", "until_at")
        }
        for bound in ("since", "until"):
            if times[f"{bound}_s"] is not None and times[f"{bound}_at"] is not None:
                raise source.fail(f"'{bound}_s' and '{bound}_at' exclude each other")
        limit = source.integer_or_none("limit", low=1, high=MAX_USAGE_ROWS)
        return cls(by, **times, sort=sort or None, limit=limit)

    def encode(self) -> dict[str, Any]:
        return present(self)


def _usage_groups(source: Fields) -> list[str]:
    """What `usage` groups by: one name or a list of different ones; `user` is the principal."""
    if source.is_text("by"):
        names = [source.text("by", max_chars=MAX_MODEL_NAME_CHARS)]
    else:
        names = source.texts("by", max_items=len(USAGE_GROUPS)) or ["model"]
    names = ["principal" if name == "user" else name for name in names]
    for name in names:
        if name not in USAGE_GROUPS:
            raise source.fail(
                f"'by' is {name!r}; allowed: {', '.join(USAGE_GROUPS)}"
                + suggestion(name, USAGE_GROUPS)
            )
    if len(set(names)) < len(names):
        raise source.fail("'by' names the same group twice")
    return names


@dataclass(frozen=True, slots=True)
class UsageRowsParams:
    """`usage.rows`: requests that ended after the one with number `after_seq`, in the order of
    their ends."""

    after_seq: int = 0
    limit: int = MAX_USAGE_PAGE

    @classmethod
    def decode(cls, source: Fields) -> UsageRowsParams:
        limit = source.integer_or_none("limit", low=1, high=MAX_USAGE_PAGE)
        return cls(
            after_seq=source.integer_or_none("after_seq", low=0) or 0,
            limit=MAX_USAGE_PAGE if limit is None else limit,
        )

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class AuditParams:
    """`audit`: the newest `limit` rows, or the first `limit` after row `after_seq`; of the last
    `since_s` seconds, of one principal, of one action (None: all)."""

    since_s: float | None = None
    principal: str | None = None
    action: str | None = None
    limit: int = DEFAULT_AUDIT_ROWS
    after_seq: int | None = None

    @classmethod
    def decode(cls, source: Fields) -> AuditParams:
        limit = source.integer_or_none("limit", low=1, high=MAX_AUDIT_ROWS)
        return cls(
            since_s=source.number_or_none("since_s", low=0, high=LONGEST_S),
            principal=source.text_or_none("principal", max_chars=_MAX_NAME_CHARS),
            action=source.text_or_none("action", max_chars=_MAX_NAME_CHARS),
            limit=DEFAULT_AUDIT_ROWS if limit is None else limit,
            after_seq=source.integer_or_none("after_seq", low=0),
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
            principal=source.text_or_none("principal", max_chars=_MAX_NAME_CHARS),
        )

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class AuditVerifyParams:
    """`audit.verify`: is every row as it was written, and is `head` (`SEQ:MAC`, from the journal)
    one of them?"""

    head: str | None = None

    @classmethod
    def decode(cls, source: Fields) -> AuditVerifyParams:
        head = source.text_or_none("head", max_chars=_MAX_NAME_CHARS)
        if head is not None and not _HEAD.fullmatch(head):
            raise source.fail(f"'head' is {head!r}; it must be SEQ:MAC, as the journal has it")
        return cls(head)

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class PruneParams:
    """`ledger.prune`: delete what arrived more than `older_than_s` seconds ago and has ended."""

    older_than_s: float

    @classmethod
    def decode(cls, source: Fields) -> PruneParams:
        return cls(source.number("older_than_s", low=0, high=LONGEST_S))

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class StatusParams:
    """`status`: `latency` asks for the times of each model's requests, too, `requests` for those
    that are open."""

    latency: bool = False
    requests: bool = False

    @classmethod
    def decode(cls, source: Fields) -> StatusParams:
        return cls(
            latency=source.boolean("latency", default=False),
            requests=source.boolean("requests", default=False),
        )

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class RequestParams:
    """`requests.cancel`: a request by its `request_id`, on whichever connection it came."""

    request_id: str

    @classmethod
    def decode(cls, source: Fields) -> RequestParams:
        return cls(source.text("request_id", max_chars=_MAX_NAME_CHARS))

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class DrainParams:
    """`drain`: with `wait` it ends once no request is open."""

    wait: bool = False

    @classmethod
    def decode(cls, source: Fields) -> DrainParams:
        return cls(wait=source.boolean("wait", default=False))

    def encode(self) -> dict[str, Any]:
        return present(self)


@dataclass(frozen=True, slots=True)
class NoParams:
    """What takes no parameters: `ping`, `models`, `whoami`, and others."""

    @classmethod
    def decode(cls, source: Fields) -> NoParams:
        del source
        return cls()

    def encode(self) -> dict[str, Any]:
        return {}


EncodingParams = EmbedParams | ClassifyParams | RerankParams
"""What asks for vectors or scores of texts, and makes no text."""

Params = (
    NoParams
    | StatusParams
    | RequestParams
    | DrainParams
    | ModelParams
    | GenerateParams
    | ChatParams
    | EmbedParams
    | ClassifyParams
    | RerankParams
    | TokenizeParams
    | DetokenizeParams
    | UsageParams
    | AuditParams
    | AuditVerifyParams
    | KeyCreateParams
    | KeyParams
    | KeyRotateParams
    | UsageRowsParams
    | PruneParams
    | InsightsParams
    | WatchParams
    | PullParams
    | ModelFileParams
)

PARAMS: Final[dict[Op, type[Params]]] = {
    Op.PING: NoParams,
    Op.STATUS: StatusParams,
    Op.REQUESTS_CANCEL: RequestParams,
    Op.MODELS: NoParams,
    Op.LOAD: ModelParams,
    Op.UNLOAD: ModelParams,
    Op.RELOAD: NoParams,
    Op.DRAIN: DrainParams,
    Op.RESUME: NoParams,
    Op.GENERATE: GenerateParams,
    Op.CHAT: ChatParams,
    Op.EMBED: EmbedParams,
    Op.CLASSIFY: ClassifyParams,
    Op.RERANK: RerankParams,
    Op.TOKENIZE: TokenizeParams,
    Op.DETOKENIZE: DetokenizeParams,
    Op.USAGE: UsageParams,
    Op.AUDIT: AuditParams,
    Op.AUDIT_VERIFY: AuditVerifyParams,
    Op.WHOAMI: NoParams,
    Op.KEYS_CREATE: KeyCreateParams,
    Op.KEYS_LIST: NoParams,
    Op.KEYS_SHOW: KeyParams,
    Op.KEYS_ROTATE: KeyRotateParams,
    Op.KEYS_REVOKE: KeyParams,
    Op.BUDGETS: NoParams,
    Op.USAGE_ROWS: UsageRowsParams,
    Op.LEDGER_CHECK: NoParams,
    Op.LEDGER_PRUNE: PruneParams,
    Op.LEDGER_BACKUP: NoParams,
    Op.INSIGHTS: InsightsParams,
    Op.SHOW: ModelParams,
    Op.WATCH: WatchParams,
    Op.PULL: PullParams,
    Op.MODELS_REMOVE: ModelFileParams,
    Op.MODELS_VERIFY: ModelFileParams,
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
