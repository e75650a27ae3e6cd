"""Models that are configured larger than they were ever used.

The rule: of slots, context and KV cells a model needs the peak and a quarter more; what is then not
even half of what is configured is told, with the value to set.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from openclawd.ledger.insights.samples import Finding, ModelPeaks, ModelSize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HEADROOM: Final = 1.25
"""On the highest of all daily peaks: a quarter is what use may grow in a month or two."""

MIN_SAVING: Final = 2
"""Below a half, a change is not worth a restart."""

STEP_TOKENS: Final = 256
"""Suggestions are whole multiples of it: llama.cpp pads its KV cache to 256 cells."""

MIN_CONTEXT: Final = 512
MIN_REQUESTS: Final = 20


def find_oversized(
    peaks: Iterable[ModelPeaks], sizes: Mapping[str, ModelSize], requests: Mapping[str, int]
) -> list[Finding]:
    """One finding for each model that is too large. `requests` by model, in the same time."""
    return [
        _finding(peak, size, suggested, requests[peak.model])
        for peak in peaks
        if (size := sizes.get(peak.model)) is not None
        and requests.get(peak.model, 0) >= MIN_REQUESTS
        and (suggested := suggestion(peak, size))
    ]


def suggestion(peak: ModelPeaks, size: ModelSize) -> dict[str, int]:
    """The keys of the configuration that can be less than half, with the values to set."""
    if min(peak.slots, peak.context) <= 0:
        return {}  # nothing was measured
    context = max(MIN_CONTEXT, _rounded(peak.context * HEADROOM))
    parallel = math.ceil(peak.slots * HEADROOM)
    wanted = {
        "parallel": parallel,
        "context": context,
        "kv_tokens": max(context, _rounded(peak.kv_tokens * HEADROOM)),
    }
    configured = {name: getattr(size, name) for name in wanted}
    return {name: value for name, value in wanted.items() if MIN_SAVING * value <= configured[name]}


def _rounded(tokens: float) -> int:
    return math.ceil(tokens / STEP_TOKENS) * STEP_TOKENS


def _finding(
    peak: ModelPeaks, size: ModelSize, suggested: Mapping[str, int], num_requests: int
) -> Finding:
    used = {"parallel": peak.slots, "context": peak.context, "kv_tokens": peak.kv_tokens}
    configured = {name: getattr(size, name) for name in used}
    parts = [f"{name} {used[name]:,} of {configured[name]:,}" for name in suggested]
    settings = ", ".join(f"{name}: {value}" for name, value in suggested.items())
    days = f"{peak.days} day" + ("s" if peak.days != 1 else "")
    numbers: dict[str, Any] = {
        "days": peak.days,
        "requests": num_requests,
        "peak": used,
        "configured": configured,
        "suggested": dict(suggested),
    }
    return Finding(
        kind="over-configured",
        model=peak.model,
        principal="",
        seen=f"in {num_requests:,} requests on {days} at most in use: {', '.join(parts)}",
        do=f"set {settings}" + _caution(peak, suggested),
        kv_tokens=max(0, size.kv_tokens - _kv_tokens_after(size, suggested)),
        numbers=numbers,
    )


def _kv_tokens_after(size: ModelSize, suggested: Mapping[str, int]) -> int:
    """What the KV cache would hold: never less than one context, nor more than all can fill."""
    context = suggested.get("context", size.context)
    most = context * suggested.get("parallel", size.parallel)
    return max(context, min(suggested.get("kv_tokens", size.kv_tokens), most))


def _caution(peak: ModelPeaks, suggested: Mapping[str, int]) -> str:
    cautions = []
    if "context" in suggested:
        cautions.append("requests that ask for more, prompt and max_tokens together, are refused")
    if peak.days < 7:
        cautions.append("wait until a whole week was seen")
    return f" ({'; '.join(cautions)})" if cautions else ""
