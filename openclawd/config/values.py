"""How single values are read: sizes, durations, `auto`, and what is refused as not built yet.

Every function takes what the file holds and gives what the daemon works with, or raises
`ValueError`; the schema says in its own words what would have been allowed.
"""

from __future__ import annotations

import math
from typing import Any, Final

from openclawctl.wire.framing import HELLO_FRAME_BYTES, MOST_FRAME_BYTES
from openclawctl.wire.units import parse_duration_s, parse_size_bytes

MAX_SYSTEM_PROMPTS: Final = 32
"""Each may take two of a model's sequence ids for prefixes, of which there are 128 at most
(`MAX_PREFIX_TAGS` of the llama backend); users' own prefixes want some, too."""


class NotBuiltError(ValueError):
    """A documented key whose feature does not exist yet."""


def empty_if_nil(value: object) -> object:
    """A section whose every line is commented out reads as nil."""
    return {} if value is None else value


def empty_list_if_nil(value: object) -> object:
    """A list whose every line is commented out reads as nil."""
    return [] if value is None else value


def nothing_yet(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not a map")
    if value:
        raise NotBuiltError("the settings of this section are not built yet; leave it empty")
    return value


def system_prompts(value: list[str]) -> list[str]:
    is_fine = all(map(str.strip, value)) and len(set(value)) == len(value) <= MAX_SYSTEM_PROMPTS
    if not is_fine:
        raise ValueError("not such a list")
    return value


def adapters(value: object) -> object:
    """A path alone stands for an adapter with that path."""
    if not isinstance(value, dict):
        return empty_if_nil(value)
    return {
        name: {"path": adapter} if isinstance(adapter, str) else adapter
        for name, adapter in value.items()
    }


def off_if_false(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


def duration_s(value: object) -> float:
    if isinstance(value, str | int | float):
        return parse_duration_s(value)
    raise ValueError("not a duration")


def alert_timeout_s(value: object) -> float:
    seconds = duration_s(value)
    if not 0.001 <= seconds <= 600:
        raise ValueError("out of range")
    return seconds


def step_timeout_s(value: object) -> float:
    seconds = duration_s(value)
    if not 1 <= seconds <= 3600:
        raise ValueError("out of range")
    return seconds


def gpu_wait_s(value: object) -> float:
    seconds = duration_s(value)
    if not 0 <= seconds <= 600:
        raise ValueError("out of range")
    return seconds


def duration_or_none_s(value: object) -> float | None:
    return None if value is None else duration_s(value)


def on_too_long(value: str) -> str:
    """What becomes of a prompt that is too long; see `admission.limit_rules.OnTooLong`."""
    action, colon, model = value.partition(":")
    if action == "fallback" and model:
        return value
    if colon or action not in ("error", "truncate_head", "truncate_middle"):
        raise ValueError("not such a policy")
    return value


def keep_alive_s(value: object) -> float:
    if value in ("forever", "-1") or (value == -1 and not isinstance(value, bool)):
        return math.inf
    return duration_s(value)


def keep_s(value: object) -> float:
    """How long something is kept. Less than a day would be a slip of the pen that deletes."""
    seconds = math.inf if value == "forever" else duration_s(value)
    if seconds < 86_400:
        raise ValueError("too short")
    return seconds


def size_bytes(value: object) -> int:
    if isinstance(value, str | int):
        return parse_size_bytes(value)
    raise ValueError("not a size")


def auto_or_size(value: object) -> int | None:
    if value == "auto" or value is None:
        return None
    size = size_bytes(value)
    if size < 2**20:
        raise ValueError("less than any model takes")
    return size


def frame_bytes(value: object) -> int:
    size = size_bytes(value)
    if not HELLO_FRAME_BYTES <= size <= MOST_FRAME_BYTES:
        raise ValueError("out of range")
    return size


def auto_or_count(value: object) -> int | None:
    if value == "auto" or value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1024:
        raise ValueError("not a count")
    return value


def auto_or_threads(value: object) -> int | None:
    if value == 0:
        raise ValueError("no threads")
    return auto_or_count(value)


def auto_or_flag(value: object) -> bool | None:
    if value == "auto" or value is None:
        return None
    if isinstance(value, bool):
        return value
    raise ValueError("not a flag")


def device(value: object) -> str:
    """A GPU index, or the UUID of a GPU or MIG slice, as `CUDA_VISIBLE_DEVICES` takes them."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not (text.isdecimal() or text.startswith(("GPU-", "MIG-"))):
        raise ValueError("not a device")
    if not text.replace("-", "").replace("/", "").isalnum():
        raise ValueError("not a device")
    return text


def absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value:
        raise ValueError("not an absolute path")
    return value


def file_path(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("not a path")
    return value


def file_path_or_none(value: str | None) -> str | None:
    return None if value is None else file_path(value)
