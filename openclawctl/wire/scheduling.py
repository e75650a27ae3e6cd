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


KEEP_FOR_EVER: Final = -1.0
"""As `keep_alive_s`: the model stays until somebody else needs its memory."""


def decode_keep_alive_s(source: Fields) -> float | None:
    """How long the model is to stay loaded after this request; None where it does not say."""
    value = source.number_or_none("keep_alive_s", low=KEEP_FOR_EVER, high=LONGEST_S)
    if value is not None and KEEP_FOR_EVER < value < 0:
        raise source.fail(f"'keep_alive_s' is {value}; allowed: seconds from 0, or -1 for ever")
    return value


def decode_scheduling(source: Fields) -> dict[str, Any]:
    """`priority` and `deadline_s`; None where the request does not say."""
    has_priority = source.has("priority")
    return {
        "priority": source.choice("priority", PRIORITIES, default="") if has_priority else None,
        "deadline_s": source.number_or_none("deadline_s", low=MIN_DEADLINE_S, high=LONGEST_S),
    }
