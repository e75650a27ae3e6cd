"""One file from a server to a hidden place on disk, whole and verified, over any number of tries.

Owns resuming. A part is what came so far, and beside it stands what the server called the whole
(its ETag); a part of something else is begun anew. It may be killed at any moment: what is on disk
is read again before it is gone on with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import LimitExceeded, Unavailable
from openclawctl.wire.units import format_size
from openclawd.fetch.checks import HEAD_BYTES, check_head
from openclawd.fetch.store import Record, disk_errors
from openclawd.fetch.transport import Interrupted, shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from openclawd.fetch.hub import RemoteFile
    from openclawd.fetch.transport import Answer, Transport

MAX_TRIES: Final = 5
"""In a row without `_WORTH_BYTES` of news."""

FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_WORTH_BYTES: Final = 1024 * 1024
_LOOK_BYTES: Final = 64 * 1024 * 1024
_READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_bytes` of this file; `check_room` raises `Unavailable` unless so many bytes more fit on
    the disk; `first_pause_s` between tries, twice as long each time."""

    max_bytes: int
    check_room: Callable[[int], None]
    first_pause_s: float = FIRST_PAUSE_S


class Download:
    """`target` appears when the file is whole; until then there is `target` with `.part`."""

    def __init__(
        self,
        file: RemoteFile,
        target: Path,
        transport: Transport,
        *,
        limits: Limits,
        progress: Callable[[int, int | None], None],
    ) -> None:
        self._file = file
        self._target = target
        self._part = target.with_name(f"{target.name}.part")
        self._about = target.with_name(f"{target.name}.about")
        self._transport = transport
        self._limits = limits
        self._progress = progress
        self._size = 0
        self._total = file.size
        self._etag: str | None = None
        self._sha256 = hashlib.sha256()
        self._head = b""
        self._next_look = 0
        """At which size the disk is looked at again."""

    def run(self) -> Record:
        """Get it, or what is left of it. Returns when it is on disk under its own name. Raises
        `Problem`."""
        if self._total is not None:
            self._check_limit(self._total)
        with disk_errors(self._part):
            self._target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            if self._target.exists():  # an earlier try had got so far, and was killed then
                self._target.rename(self._part)
                self._write_about()
            was_resumed = self._take_up()
            self._get()
            if was_resumed and not self._is_right():  # it may have changed between the two halves
                self._begin_anew()
                self._get()
            return self._finish()

    # ---- what is there already ----

    def _take_up(self) -> bool:
        """Read what an earlier try has left; whether there was anything."""
        about = _read_json(self._about)
        if about.get("file") != self._identity() or not self._part.exists():
            self._begin_anew()
            return False
        self._etag = about.get("etag")
        self._read_part()
        return self._size > 0

    def _read_part(self) -> None:
        with self._part.open("rb") as part:
            while chunk := part.read(_READ_BYTES):
                self._note(chunk)

    def _begin_anew(self) -> None:
        self._size, self._etag, self._head = 0, None, b""
        self._sha256 = hashlib.sha256()
        self._part.unlink(missing_ok=True)
        self._part.touch(mode=0o640)
        self._write_about()

    def _write_about(self) -> None:
        fresh = self._about.with_name(f"{self._about.name}.fresh")
        fresh.write_text(json.dumps({"file": self._identity(), "etag": self._etag}))
        fresh.rename(self._about)

    def _identity(self) -> dict[str, Any]:
        file = self._file
        return {"url": shown(file.url), "size": file.size, "sha256": file.sha256}

    def _note(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._size += len(chunk)
        if len(self._head) < HEAD_BYTES:
            self._head = (self._head + chunk)[:HEAD_BYTES]
            if len(self._head) == HEAD_BYTES:
                self._check_head()

    def _check_head(self) -> None:
        """As early as it can be known: a wrong file of 40 GB need not come."""
        whole = self._total if self._total is not None else self._limits.max_bytes
        try:
            check_head(self._file.path, self._head, whole)
        except Unavailable:
            self._part.unlink(missing_ok=True)
            raise

    # ---- what is to come ----

    def _get(self) -> None:
        """Ask until it is whole."""
        tries, size_before = 0, self._size
        while not self._is_whole():
            try:
                self._ask()
            except Interrupted as story:
                if self._size - size_before >= _WORTH_BYTES:
                    tries = 0
                tries, size_before = tries + 1, self._size
                if tries >= MAX_TRIES:
                    raise self._given_up(str(story)) from None
                pause_s = self._limits.first_pause_s * 2 ** (tries - 1)
                time.sleep(min(pause_s, _LONGEST_PAUSE_S))

    def _is_whole(self) -> bool:
        return self._total is not None and self._size == self._total

    def _ask(self) -> None:
        with self._transport.open(self._file.url, start=self._size, etag=self._etag) as answer:
            if answer.start != self._size:
                self._begin_anew()
            self._check_answer(answer)
            with self._part.open("ab") as part:
                for chunk in answer.chunks:
                    self._check_limit(self._size + len(chunk))
                    self._check_room()
                    part.write(chunk)
                    part.flush()
                    self._note(chunk)
                    self._progress(self._size, self._total)
        if self._total is None:  # the server did not say, and closed in good order
            self._total = self._size
        if self._size < self._total:
            raise Interrupted("the server ended early")

    def _check_answer(self, answer: Answer) -> None:
        """Is it, as far as the server says, what the hub promised and we have a part of?"""
        if answer.total is not None:
            self._check_limit(answer.total)
            if self._total is not None and answer.total != self._total:
                raise self._not_as_announced(str(answer.total), self._total)
            self._total = answer.total
        if answer.etag != self._etag:
            self._etag = answer.etag
            self._write_about()

    def _check_limit(self, size: int) -> None:
        most, announced = self._limits.max_bytes, self._file.size
        if size > most:
            self._part.unlink(missing_ok=True)
            raise LimitExceeded(
                f"{self._file.path} is to have {format_size(size)} or more, and what is left of "
                f"fetch.max_size is {format_size(most)}",
                hint="raise fetch.max_size if you want so large a model",
            )
        if announced is not None and size > announced:
            raise self._not_as_announced(f"more than {announced}", announced)

    def _check_room(self) -> None:
        """Others may fill the disk meanwhile, and not every server says how much is to come."""
        if self._size >= self._next_look:
            self._limits.check_room(max((self._total or 0) - self._size, 0))
            self._next_look = self._size + _LOOK_BYTES

    def _not_as_announced(self, found: str, announced: int) -> Unavailable:
        self._part.unlink(missing_ok=True)
        return Unavailable(
            f"{shown(self._file.url)} has {found} bytes, and {announced} were announced",
            hint="try again later; if it stays so, the repository is not sound",
        )

    def _given_up(self, story: str) -> Unavailable:
        whole = "" if self._total is None else f" of {format_size(self._total)}"
        return Unavailable(
            f"{self._file.path} could not be fetched: {story}; {format_size(self._size)}{whole} "
            "are there",
            hint="the same command goes on from there, within a week",
        )

    # ---- the end ----

    def _is_right(self) -> bool:
        if self._file.sha256 is not None:
            return self._sha256.hexdigest() == self._file.sha256
        if self._file.git_sha1 is not None:
            return self._git_sha1() == self._file.git_sha1
        return True

    def _git_sha1(self) -> str:
        """As git names a blob (git-hash-object(1)). Such files are small."""
        digest = hashlib.sha1(b"blob %d\0" % self._size, usedforsecurity=False)
        with self._part.open("rb") as part:
            while chunk := part.read(_READ_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def _finish(self) -> Record:
        if len(self._head) < HEAD_BYTES:
            self._check_head()
        if not self._is_right():
            self._part.unlink(missing_ok=True)
            wanted = self._file.sha256 or self._file.git_sha1
            raise Unavailable(
                f"{self._file.path} came whole and is not what was announced: its SHA-256 is "
                f"{self._sha256.hexdigest()}, announced was {wanted}; it was removed",
                hint="try again; if it stays so, do not trust the server",
            )
        with self._part.open("rb") as part:
            os.fsync(part.fileno())
            status = os.fstat(part.fileno())
        self._part.rename(self._target)
        with contextlib.suppress(FileNotFoundError):
            self._about.unlink()
        return Record(self._sha256.hexdigest(), status.st_size, status.st_mtime_ns)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
