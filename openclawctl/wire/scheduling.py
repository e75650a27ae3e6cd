"""When a request is to be served: how urgent it is, and until when its answer is of use.

Owns the parameters of that, which every operation that computes has. In which order requests are
served is the daemon's admission.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.messages import LONGEST_S

if TYPE_CHECKING:
    from openclawctl.wire.fields import Fields

PRIORITIES: Final = ("batch", "normal", "interactive")
"""The least urgent first."""

MIN_DEADLINE_S: Final = 0.001
"""A deadline of nothing would be a mistake for none."""


def decode_scheduling(source: Fields) -> dict[str, Any]:
    """`priority` and `deadline_s`; None where the request does not say."""
    has_priority = source.has("priority")
    return {
        "priority": source.choice("priority", PRIORITIES, default="") if has_priority else None,
        "deadline_s": source.number_or_none("deadline_s", low=MIN_DEADLINE_S, high=LONGEST_S),
    }
