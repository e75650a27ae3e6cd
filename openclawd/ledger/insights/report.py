"""Everything that is found, in the order of what it is worth."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openclawd.ledger.insights.prompts import prompt_findings
from openclawd.ledger.insights.series import series_of
from openclawd.ledger.insights.sizing import find_oversized
from openclawd.ledger.insights.spikes import find_spikes
from openclawd.ledger.insights.trends import Trend, trend_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openclawd.ledger.insights.samples import (
        Finding,
        ModelPeaks,
        ModelSize,
        PrefixSums,
        Sample,
    )


@dataclass(frozen=True, slots=True)
class Insights:
    """A report: what to act on, and where each principal's use of each model is going."""

    findings: list[Finding]
    trends: list[Trend]

    def as_dict(self) -> dict[str, Any]:
        """`findings` and `trends` of the operation's result."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "trends": [trend.as_dict() for trend in self.trends],
        }


def analyse(
    samples: Sequence[Sample],
    prefixes: Sequence[PrefixSums],
    peaks: Sequence[ModelPeaks],
    sizes: Sequence[ModelSize],
    *,
    now_hour: int,
) -> Insights:
    """The report on what was seen until `now_hour` (see `Sample.hour`)."""
    series = series_of(samples, now_hour=now_hour)
    size_of = {size.model: size for size in sizes}
    requests = Counter[str]()
    for sample in samples:
        requests[sample.model] += sample.requests
    findings = [
        *find_spikes(series),
        *prompt_findings(samples, prefixes, size_of),
        *find_oversized(peaks, size_of, requests),
    ]
    findings.sort(key=lambda found: (*found.order, found.kind, found.model, found.principal))
    return Insights(findings, [trend_of(one) for one in series])
