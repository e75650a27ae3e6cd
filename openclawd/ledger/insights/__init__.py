"""What the ledger's numbers mean: trends, spikes, wasteful prompts, models of the wrong size.

Owns the rules by which something is worth telling, and their thresholds. All modules but `reader`
are pure: samples in, findings out; no SQL, no clock, no configuration. Knows no text of prompts,
only keyed hashes of what they begin with.

Invariants: no input raises; the order of samples does not matter; multiplying all tokens by one
number changes no verdict of `spikes` and `trends`.
"""

from openclawd.ledger.insights.report import Insights, analyse
from openclawd.ledger.insights.samples import Finding, ModelPeaks, ModelSize, PrefixSums, Sample

__all__ = [
    "Finding",
    "Insights",
    "ModelPeaks",
    "ModelSize",
    "PrefixSums",
    "Sample",
    "analyse",
]
