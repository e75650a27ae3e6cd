"""What came of a check, as a sentence and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class State(enum.Enum):
    OK = "ok"
    UNKNOWN = "unknown"  # this user may not look
    WARNING = "warning"  # it works, but not as it should
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is the part of the machine, `message` says what is the case and why, `remedy` what to
    do; it is empty where nothing is to be done."""

    check: str
    state: State
    message: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "state": self.state.value,
            "message": self.message,
            "remedy": self.remedy,
        }
