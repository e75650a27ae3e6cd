"""What models really took, kept for the next time they are loaded.

Owns the file `footprints.json` in the state directory: for each model with its settings the most
that one worker of it had. It holds no names and no paths, only hashes and sizes. A file that is
damaged is begun anew: all that is lost is that estimates are computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    from openclawd.worker.messages import Load

logger = logging.getLogger(__name__)

MAX_ENTRIES: Final = 1000
_MAX_FILE_BYTES: Final = 1024 * 1024
_NOT_MEMORY: Final = frozenset(
    {"name", "prefix_folder", "persist_prefixes", "max_prefix_age_s", "prefix_key", "max_skips"}
)
"""What of a `Load` makes no difference to what it takes."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The most that one worker had: `own_bytes` alone, `pss_bytes` with its share of others'.
    `is_used`: it had answered requests by then."""

    own_bytes: int
    pss_bytes: int
    is_used: bool
    at: float


def fingerprint(load: Load, files: Any, version: str) -> str:
    """What tells one load from another whose memory may differ: `files` are the signatures of the
    model's files, `version` that of the daemon, whose libraries come with it."""
    settings = {name: getattr(load, name) for name in load.__slots__ if name not in _NOT_MEMORY}
    text = json.dumps([settings, files, version], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Footprints:
    """The file, as it was read at the start and is written at each news. `path` None keeps nothing
    beyond the daemon's life. `note` and `find` are the loop's, `write` belongs on a thread."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries = _read(path) if path else {}

    def find(self, key: str) -> Measured | None:
        return self._entries.get(key)

    def note(self, key: str, *, own_bytes: int, pss_bytes: int, is_used: bool) -> bool:
        """Keep the most that was seen; whether that is news worth writing."""
        known = self._entries.get(key)
        fresh = Measured(own_bytes, pss_bytes, is_used, time.time())
        if known is not None:
            fresh = Measured(
                max(own_bytes, known.own_bytes),
                max(pss_bytes, known.pss_bytes),
                is_used or known.is_used,
                fresh.at,
            )
            if fresh == replace(known, at=fresh.at):
                return False
        self._entries[key] = fresh
        for old in sorted(self._entries, key=lambda k: self._entries[k].at)[:-MAX_ENTRIES]:
            del self._entries[old]
        return True

    def snapshot(self) -> dict[str, Any]:
        """What `write` is given."""
        return {
            key: {**asdict(measured), "at": round(measured.at)}
            for key, measured in self._entries.items()
        }

    def write(self, snapshot: dict[str, Any]) -> None:
        """Replace the file at once and whole. What cannot be written is logged, and no more."""
        if self._path is None:
            return
        fresh = self._path.with_suffix(".new")
        try:
            with open(fresh, "w", opener=_private) as file:
                json.dump(snapshot, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            logger.warning("the models' footprints cannot be kept in %s: %s", self._path, error)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read(path: Path) -> dict[str, Measured]:
    with contextlib.suppress(FileNotFoundError):
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise ValueError("too large")
            entries = json.loads(path.read_text())
            return {
                str(key): Measured(
                    int(entry["own_bytes"]),
                    int(entry["pss_bytes"]),
                    bool(entry["is_used"]),
                    float(entry["at"]),
                )
                for key, entry in entries.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("the models' footprints in %s are begun anew: %s", path, error)
    return {}
