"""What the daemon and a worker say to each other over their socketpair.

Owns the fields of every message of that link; framing is the wire's. The worker may have read a
hostile model file, so what it sends is checked like a client's bytes; what the daemon sends is not.

`rid` is the daemon's integer for one request in one worker. A request has one or more sequences,
told apart by `index` (the choices of a `generate` or `chat`, the inputs of an `embed`).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Final

from openclawctl.wire.errors import (
    Code,
    ModelFailed,
    Problem,
    RemoteProtocolError,
    problem_from_wire,
)
from openclawctl.wire.fields import Fields
from openclawctl.wire.framing import MAX_FRAME_BYTES, MAX_ITEMS, MOST_FRAME_BYTES
from openclawctl.wire.messages import LONGEST_S
from openclawctl.wire.tokens import TokenLogprob, decode_logprobs
from openclawctl.wire.tools import ToolCall, decode_tool_calls
from openclawd.worker.quoting import MAX_MESSAGE_CHARS, shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_WRAPPING_BYTES: Final = 64 * 1024

TO_WORKER_FRAME_BYTES: Final = MOST_FRAME_BYTES + _WRAPPING_BYTES
"""Largest frame to a worker: the largest request that a daemon can be configured to take, with what
it wraps around it. A smaller limit would let one client's request end the worker of everybody."""

FROM_WORKER_FRAME_BYTES: Final = MAX_FRAME_BYTES + _WRAPPING_BYTES
"""Largest frame from a worker. The largest is an answer to `detokenize` (`worker/tokenizer.py`)."""

EXIT_STOPPED: Final = 0
EXIT_LOAD_FAILED: Final = 70
"""The model cannot load until its file or the configuration changes (EX_SOFTWARE in sysexits.h)."""
EXIT_LOAD_FAILED_FOR_NOW: Final = 75
"""The model could not load for want of memory or a device (EX_TEMPFAIL in sysexits.h)."""

PREFIX_LENGTHS: Final = (64, 256, 1024, 4096)
"""The beginnings of a prompt, in tokens, of which the daemon gets a hash each. A common prefix is
noticed at the longest of these that it reaches."""

HASH_BYTES: Final = 16

SAVE_S: Final = 10.0
"""How long a worker that is stopped may write prefixes before it ends."""

_MAX_ID: Final = 2**63 - 1
_MAX_TOKEN: Final = 2**31 - 1
_MAX_MU: Final = 1e12
"""Far more than `mirostat_tau` times the tokens of any answer."""


# ---- daemon → worker ----


@dataclass(frozen=True, slots=True)
class Load:
    """The first message: which model, with what. `backend` is llama, torch, or auto: by what is at
    `path`. `threads` and `gpu_layers` None mean automatic.

    `context` is tokens per sequence, `kv_tokens` for all together; `batch_tokens` bounds one step.
    `system_prompts` are computed before it is ready, and shared by all. `guess_method` is off,
    ngram or draft, which needs `draft_path`; `max_guesses` bounds what is guessed for one step. A
    sequence that waits for KV cells is passed `max_skips` times at most. `adapters` are LoRAs by
    name, each with `path` and `scale`. Unless it `shares_prefixes`, every sequence has KV cells of
    its own. `computes_aside`: long prompts have a context of their own where that is of use.
    `gpu_budgets` are bytes on each GPU that it can see, in that order (none: all there is), for
    automatic `gpu_layers`; a model that `needs_gpu` does not load without.

    The cells of system prompts, with `persist_prefixes` "all" those of users' prefixes too, are
    restored from `prefix_folder` and saved there on `stop`; "off" removes what is there, and no
    folder leaves everything alone. `prefix_key` is for the hashes of `Prepared`; none makes none.
    """

    type: ClassVar[str] = "load"
    name: str
    path: str
    parallel: int
    context: int
    kv_tokens: int
    batch_tokens: int
    backend: str = "auto"
    threads: int | None = None
    gpu_layers: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, Any] = field(default_factory=dict)
    system_prompts: list[str] = field(default_factory=list)
    guess_method: str = "off"
    max_guesses: int = 0
    draft_path: str = ""
    max_skips: int = 0
    prefix_folder: str = ""
    shares_prefixes: bool = True
    computes_aside: bool = False
    persist_prefixes: str = "off"
    max_prefix_age_s: float = 0.0
    prefix_key: bytes = field(default=b"", repr=False)
    gpu_budgets: list[int] = field(default_factory=list)
    needs_gpu: bool = False


@dataclass(frozen=True, slots=True)
class Prepare:
    """Tokenise a request. `op` and `params` as on the wire (`openclawctl.wire.operations`). A
    prompt of more than `max_prompt_tokens` (0: none is) is cut as `truncation` says,
    `truncate_head` or `truncate_middle`."""

    type: ClassVar[str] = "prepare"
    rid: int
    op: str
    params: dict[str, Any]
    max_prompt_tokens: int = 0
    truncation: str = ""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a worker that died had told of one sequence: its tokens, or (`token_ids` empty) its
    vector. `token_ids` are packed, for a long answer has more of them than a frame may have items.
    `mu` is the last `Output.mu` of it.
    """

    index: int
    cached_tokens: int
    token_ids: bytes
    mu: float | None = None

    @classmethod
    def of(
        cls, index: int, *, cached_tokens: int, token_ids: Iterable[int], mu: float | None = None
    ) -> Continuation:
        return cls(index, cached_tokens, packed(token_ids).tobytes(), mu)

    def tokens(self) -> array[int]:
        tokens = packed()
        tokens.frombytes(self.token_ids)
        return tokens


@dataclass(frozen=True, slots=True)
class Start:
    """Compute a prepared request. `sampling` has no None left; `max_tokens` is 0 for `embed`.
    A generation has `n` sequences of the one prompt. Prefixes are shared with requests of the same
    `domain` only. `continuation`: go on where a worker that died was; sequences that are not in it
    begin afresh."""

    type: ClassVar[str] = "start"
    rid: int
    max_tokens: int
    sampling: dict[str, Any]
    stop: list[str] = field(default_factory=list)
    priority: int = 0
    domain: str = ""
    adapter: str = ""
    continuation: list[Continuation] = field(default_factory=list)
    n: int = 1


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a prepared request that will not start."""

    type: ClassVar[str] = "drop"
    rid: int


@dataclass(frozen=True, slots=True)
class Reprioritize:
    """Order a started request by another number from now on."""

    type: ClassVar[str] = "reprioritize"
    rid: int
    priority: int


@dataclass(frozen=True, slots=True)
class Abort:
    """End a started request at the next step. Answered by its `ended` like any other end."""

    type: ClassVar[str] = "abort"
    rid: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Exit now with status 0."""

    type: ClassVar[str] = "stop"


# ---- worker → daemon ----


@dataclass(frozen=True, slots=True)
class Loading:
    """How far a load is: `phase` is `read`, `warm-up` or `system prompts`, `fraction` 0 to 1 within
    it."""

    type: ClassVar[str] = "loading"
    phase: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model answered a warm-up call. `info` is what `models` and `status` show of it."""

    type: ClassVar[str] = "loaded"
    info: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model did not load; the worker exits next. `permanent`: trying again cannot help."""

    type: ClassVar[str] = "load-failed"
    message: str
    hint: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """Exact prompt tokens of a request, over all its prompts. Nothing is computed yet. `text` is
    that of a prompt given in tokens, where the answer is to begin with it.

    `prompt_tokens_in` came, `dropped` of them were cut. A prompt of which no more may be cut can
    still have more tokens than `Prepare` allowed. `prefix_hashes` are
    keyed hashes of what the prompt of a generation begins with, one for each of `PREFIX_LENGTHS`
    that it reaches, one after the other."""

    type: ClassVar[str] = "prepared"
    rid: int
    prompt_tokens: int
    longest: int = 0
    text: str | None = None
    prompt_tokens_in: int = 0
    dropped: int = 0
    prefix_hashes: bytes = b""

    @property
    def prefixes(self) -> list[tuple[int, bytes]]:
        """Lengths with their hashes, the shortest first."""
        starts = range(0, len(self.prefix_hashes), HASH_BYTES)
        hashes = [self.prefix_hashes[start : start + HASH_BYTES] for start in starts]
        return list(zip(PREFIX_LENGTHS, hashes, strict=False))


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole result of `tokenize` (`tokens`) or `detokenize` (`text`)."""

    type: ClassVar[str] = "answer"
    rid: int
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that cannot be prepared, with the fields of an `error` message."""

    type: ClassVar[str] = "refused"
    rid: int
    error: dict[str, Any]

    def to_problem(self) -> Problem:
        source = Fields(self.error, where="refused", error=RemoteProtocolError)
        return problem_from_wire(
            source.text("code"),
            source.text("kind"),
            source.text("message"),
            hint=source.text("hint"),
            retry_after_s=source.number_or_none("retry_after_s", low=0, high=LONGEST_S),
        )


@dataclass(slots=True)  # not frozen: one is made for every token, which takes half as long
class Output:
    """What one step added to one sequence: sampled tokens, or the vector of an embedding.

    `logprobs` has a record of each token, where they were asked for. Of a chat, `text` is what the
    answer says, `reasoning` what comes before it, and `tool_calls` are whole.
    `cached_tokens` of its prompt were not computed, in the first worker that had it. `mu` is what
    mirostat has come to, which another worker needs to go on from here.
    """

    rid: int
    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    embedding: bytes | None = None
    cached_tokens: int = 0
    logprobs: list[TokenLogprob] | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    mu: float | None = None

    def encode(self) -> dict[str, Any]:
        """Its map, without what there is nothing of: of most there is a text and one token."""
        values: dict[str, Any] = {"rid": self.rid, "index": self.index}
        for name in _MAYBE_NOTHING:
            if value := getattr(self, name):
                values[name] = value
        if self.logprobs:
            values["logprobs"] = [_plain(each) for each in self.logprobs]
        if self.tool_calls:
            values["tool_calls"] = [each.encode() for each in self.tool_calls]
        if self.mu is not None:
            values["mu"] = self.mu
        return values


_MAYBE_NOTHING: Final = ("text", "token_ids", "embedding", "cached_tokens", "reasoning")


@dataclass(frozen=True, slots=True)
class Ended:
    """A request's end: a finish reason per sequence, and exact usage over all of them, whichever
    worker computed what. Of `guessed_tokens`, `accepted_tokens` were right; in this worker only.

    `error` holds the fields of an `error` message when the finish reason is `error`.
    """

    rid: int
    finish_reasons: list[str]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    error: dict[str, Any] | None = None
    guessed_tokens: int = 0
    accepted_tokens: int = 0

    def to_problem(self) -> Problem:
        if self.error is None:
            return ModelFailed("the model failed without saying why")
        return Refused(self.rid, self.error).to_problem()


@dataclass(frozen=True, slots=True)
class Step:
    """Everything one engine step produced, in one frame. `gauges` are the engine's counters."""

    type: ClassVar[str] = "step"
    outputs: list[Output] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    gauges: dict[str, int] = field(default_factory=dict)


ToWorker = Load | Prepare | Start | Drop | Reprioritize | Abort | Stop
FromWorker = Loading | Loaded | LoadFailed | Prepared | Answer | Refused | Step

_TO_WORKER: Final[dict[str, type[ToWorker]]] = {
    cls.type: cls for cls in (Load, Prepare, Start, Drop, Reprioritize, Abort, Stop)
}


def packed(token_ids: Iterable[int] = ()) -> array[int]:
    """Tokens in 32 bits each."""
    return array("I", token_ids)


def encode(message: ToWorker | FromWorker) -> dict[str, Any]:
    """The map of a message."""
    return {"type": message.type, **_plain(message)}


def decode_to_worker(payload: dict[str, Any]) -> ToWorker:
    """What the daemon sent; both sides are the same release, so nothing is checked twice."""
    name = payload.pop("type")
    if name == Start.type:
        payload["continuation"] = [Continuation(**part) for part in payload["continuation"]]
    return _TO_WORKER[name](**payload)


def decode_from_worker(payload: dict[str, Any]) -> FromWorker:
    """What a worker sent. Raises `RemoteProtocolError` for anything that is not a message."""
    source = Fields(payload, where="worker message", error=RemoteProtocolError)
    decoder = _FROM_WORKER.get(source.text("type"))
    if decoder is None:
        raise RemoteProtocolError("unknown worker message type")
    return decoder(source)


def error_fields(problem: Problem) -> dict[str, Any]:
    """`Refused.error` and `Ended.error` for a problem, whatever it quotes."""
    assert problem.code in {code.value for code in Code}
    return {**problem.as_dict(), "message": shortened(problem.message, MAX_MESSAGE_CHARS)}


def _plain(record: Any) -> dict[str, Any]:
    """A dataclass as a map, lists of dataclasses included. `dataclasses.asdict` copies deeply,
    which costs more than the rest of a step's bookkeeping together."""
    result = {}
    for entry in fields(record):
        value = getattr(record, entry.name)
        if isinstance(value, list) and value and hasattr(value[0], "__dataclass_fields__"):
            value = [_item(item) for item in value]
        result[entry.name] = value
    return result


def _item(record: Any) -> dict[str, Any]:
    return record.encode() if isinstance(record, Output) else _plain(record)


def _loading(source: Fields) -> Loading:
    return Loading(source.text("phase"), source.number("fraction", low=0, high=1))


def _loaded(source: Fields) -> Loaded:
    return Loaded(source.mapping("info"))


def _load_failed(source: Fields) -> LoadFailed:
    return LoadFailed(
        message=source.text("message"),
        hint=source.text("hint"),
        permanent=source.boolean("permanent", default=True),
    )


def _prepared(source: Fields) -> Prepared:
    return Prepared(
        rid=_count(source, "rid"),
        prompt_tokens=_count(source, "prompt_tokens"),
        longest=_count(source, "longest"),
        text=source.text_or_none("text"),
        prompt_tokens_in=_count(source, "prompt_tokens_in"),
        dropped=_count(source, "dropped"),
        prefix_hashes=_hashes(source),
    )


def _hashes(source: Fields) -> bytes:
    hashes = source.binary_or_none("prefix_hashes") or b""
    if len(hashes) % HASH_BYTES or len(hashes) > HASH_BYTES * len(PREFIX_LENGTHS):
        raise source.fail("'prefix_hashes' are not hashes")
    return hashes


def _answer(source: Fields) -> Answer:
    return Answer(_count(source, "rid"), source.mapping("result"))


def _refused(source: Fields) -> Refused:
    return Refused(_count(source, "rid"), source.mapping("error"))


def _step(source: Fields) -> Step:
    return Step(
        outputs=[
            _plain_output(value) or _output(source.nested(value, "output"))
            for value in source.items("outputs", max_items=MAX_ITEMS)
        ],
        ended=[
            _ended(source.nested(value, "ended"))
            for value in source.items("ended", max_items=MAX_ITEMS)
        ],
        gauges=source.mapping("gauges"),
    )


def _plain_output(value: Any) -> Output | None:
    """What nearly every output is, one token and its text, in a quarter of the time that `_output`
    takes. None for whatever that has to judge."""
    try:
        rid, index, text, (token,) = value["rid"], value["index"], value["text"], value["token_ids"]
    except (KeyError, TypeError, ValueError):
        return None
    numbers = rid, index, token
    if len(value) > _NUM_PLAIN or type(text) is not str or set(map(type, numbers)) != {int}:
        return None
    is_right = 0 <= rid <= _MAX_ID and 0 <= index <= _MAX_ID and 0 <= token <= _MAX_TOKEN
    return Output(rid, index, text, [token]) if is_right else None


_NUM_PLAIN: Final = 4
"""Fields of a plain output."""


def _output(source: Fields) -> Output:
    return Output(
        rid=_count(source, "rid"),
        index=_count(source, "index"),
        text=source.text_or_none("text") or "",
        token_ids=source.integers("token_ids", max_items=MAX_ITEMS, low=0, high=_MAX_TOKEN),
        embedding=source.binary_or_none("embedding"),
        cached_tokens=source.integer_or_none("cached_tokens", low=0, high=_MAX_ID) or 0,
        logprobs=decode_logprobs(source),
        reasoning=source.text_or_none("reasoning") or "",
        tool_calls=decode_tool_calls(source),
        mu=source.number_or_none("mu", low=-_MAX_MU, high=_MAX_MU),
    )


def _ended(source: Fields) -> Ended:
    return Ended(
        rid=_count(source, "rid"),
        finish_reasons=source.texts("finish_reasons", max_items=MAX_ITEMS),
        prompt_tokens=_count(source, "prompt_tokens"),
        cached_tokens=_count(source, "cached_tokens"),
        completion_tokens=_count(source, "completion_tokens"),
        error=source.mapping("error") or None,
        guessed_tokens=_count(source, "guessed_tokens"),
        accepted_tokens=_count(source, "accepted_tokens"),
    )


def _count(source: Fields, name: str) -> int:
    return source.integer(name, low=0, high=_MAX_ID)


_FROM_WORKER: Final[dict[str, Callable[[Fields], FromWorker]]] = {
    Loading.type: _loading,
    Loaded.type: _loaded,
    LoadFailed.type: _load_failed,
    Prepared.type: _prepared,
    Answer.type: _answer,
    Refused.type: _refused,
    Step.type: _step,
}
