"""What is counted of inference requests for `/metrics` and `status --latency`.

Owns the counters and histograms; how they are shown is `metrics.py`'s. Everything is called on the
loop. What a request is counted with is what the ledger is given (`recording.py`), so that both
agree to the token.

Bounded: models and tiers are configured names, principals count by their class, outcomes and codes
are closed lists; what a worker names otherwise counts as `(other)`, and so does what would be too
many (`Tally`, `MAX_MODELS`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import CODES, Kind
from openclawctl.wire.results import FinishReason
from openclawd.ledger import Outcome
from openclawd.observe.exposition import OTHER, Tally
from openclawd.observe.histogram import MAX_RELATIVE_ERROR, Histogram, Recent

if TYPE_CHECKING:
    from openclawd.admission.identity import Principal
    from openclawd.ledger import Settlement
    from openclawd.server.inference import Inference

MAX_MODELS: Final = 200
"""Of which times are kept: 20 KiB for each."""

ROTATE_EVERY_S: Final = 60.0
KEPT_ROTATIONS: Final = 5
"""`status --latency` tells of the last five minutes, and up to one more."""

_WHO: Final = ("model", "tier", "principal_class")
_KINDS: Final = {code.value: info.kind.value for code, info in CODES.items()}
_FINISH_REASONS: Final = frozenset(reason.value for reason in FinishReason)


@dataclass(slots=True)
class ModelTimes:
    """Durations of one model's requests, in seconds. `ttft`, `inter_token` and `total` are kept
    with their past."""

    ttft: Recent = field(default_factory=Recent)
    inter_token: Recent = field(default_factory=Recent)
    total: Recent = field(default_factory=Recent)
    queue: Histogram = field(default_factory=Histogram)
    prefill: Histogram = field(default_factory=Histogram)
    decode: Histogram = field(default_factory=Histogram)

    def note_first_token(self, inference: Inference, ttft_s: float) -> None:
        """Told when it comes, not when the request ends. Without a load: what the prompt took."""
        self.ttft.histogram.observe(ttft_s)
        self.prefill.observe(ttft_s - inference.queued_at_s - inference.queue_s)

    def rotate(self) -> None:
        for recent in (self.ttft, self.inter_token, self.total):
            recent.rotate(keep=KEPT_ROTATIONS)

    def summaries(self) -> dict[str, Any]:
        """What `status` shows of a model."""
        return {
            "ttft": self.ttft.summaries(),
            "inter_token": self.inter_token.summaries(),
            "total": self.total.summaries(),
            "window_s": KEPT_ROTATIONS * ROTATE_EVERY_S,
            "relative_error": MAX_RELATIVE_ERROR,
        }


class Meters:
    """Everything that is counted, since the daemon's start."""

    def __init__(self) -> None:
        self.requests = Tally(*_WHO, "outcome")
        self.prompt_tokens = Tally(*_WHO)
        self.cached_tokens = Tally(*_WHO)
        self.completion_tokens = Tally(*_WHO)
        self.cost = Tally(*_WHO)
        self.finish_reasons = Tally("model", "reason")
        self.errors = Tally("model", "code", "kind")
        self.prefix_hits = Tally("model")
        self.guessed_tokens = Tally("model")
        self.accepted_tokens = Tally("model")
        self.times: dict[str, ModelTimes] = {}

    def expect(self, model: str) -> None:
        """Begin the failures of a model at 0, so that the first one is an increase."""
        for code, info in CODES.items():
            if info.kind in (Kind.FAILED, Kind.BUG):
                self.errors.add(model, code.value, info.kind.value, amount=0)

    def times_of(self, model: str) -> ModelTimes:
        """Those of one model; of all others together, once there are too many."""
        times = self.times.get(model)
        if times is None:
            name = model if len(self.times) < MAX_MODELS else OTHER
            times = self.times.setdefault(name, ModelTimes())
        return times

    def latency(self, model: str) -> dict[str, Any] | None:
        """What `status` shows of a model; None before it was used."""
        times = self.times.get(model)
        return times.summaries() if times else None

    def rotate(self) -> None:
        for times in self.times.values():
            times.rotate()

    def finished(self, inference: Inference, settlement: Settlement) -> None:
        """An inference request ends with a row in the ledger, this one."""
        model, tokens = inference.model.name, settlement.tokens
        who = (model, inference.tier.name, class_of(inference.exchange.peer.principal))
        self.requests.add(*who, _outcome(settlement))
        self.prompt_tokens.add(*who, amount=tokens["prompt"])
        self.cached_tokens.add(*who, amount=tokens["cached"])
        self.completion_tokens.add(*who, amount=tokens["completion"])
        if settlement.cost:
            self.cost.add(*who, amount=settlement.cost)
        if tokens["cached"]:
            self.prefix_hits.add(model)
        self._note_end(model, settlement)
        self._note_guesses(inference)
        self._note_times(inference)

    def refused(self, code: str) -> None:
        """A request ends with an error and without a row; its model may be anything."""
        self._note_error("", code)

    def _note_end(self, model: str, settlement: Settlement) -> None:
        if code := settlement.error_code:
            self._note_error(model, code)
        elif reason := settlement.finish_reason:
            self.finish_reasons.add(model, reason if reason in _FINISH_REASONS else OTHER)

    def _note_error(self, model: str, code: str) -> None:
        known = code if code in _KINDS else OTHER
        self.errors.add(model, known, _kind_of(code))

    def _note_guesses(self, inference: Inference) -> None:
        timings = inference.timings
        if timings.guessed_tokens:
            self.guessed_tokens.add(inference.model.name, amount=timings.guessed_tokens)
            self.accepted_tokens.add(inference.model.name, amount=timings.accepted_tokens)

    def _note_times(self, inference: Inference) -> None:
        times = inference.times
        times.total.histogram.observe(inference.total_s)
        times.queue.observe(inference.queue_s)
        if inference.ttft_s is not None and inference.completion_tokens:
            times.decode.observe(inference.total_s - inference.ttft_s)


def _outcome(settlement: Settlement) -> str:
    """`done`, `cancelled`, or the kind of the error: `limit` is no failure of ours, `failed` is."""
    if settlement.outcome is Outcome.FAILED and settlement.error_code:
        return _kind_of(settlement.error_code)
    return settlement.outcome.value


def _kind_of(code: str) -> str:
    return _KINDS.get(code, OTHER)


def class_of(principal: Principal) -> str:
    """How a principal is known: `user`, by the kernel, or `key`. There are few of these."""
    return "key" if principal.key else "user"
