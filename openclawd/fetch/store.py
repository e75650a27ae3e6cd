"""The models folder: what is there under a name, what is on its way, and which checksums it has.

Owns the layout. `NAME.gguf` or the folder `NAME` is a model; `.fetch` holds what is not one yet;
`.fetch/checksums/NAME.json` says what its files were when they were verified. Everything becomes
visible by one rename, after it is on disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from openclawctl.wire.units import format_size
from openclawd.durable import sync_folder
from openclawd.fetch.checks import GGUF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HIDDEN: Final = ".fetch"
SPARE_BYTES: Final = 512 * 1024 * 1024
"""What is left free on the disk: the ledger may be on the same one."""

KEEP_PARTS_S: Final = 7 * 86_400.0
"""How long a download that was broken off can be taken up again."""

_READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """What a file was when it was verified."""

    sha256: str
    size: int
    mtime_ns: int

    def fits(self, status: os.stat_result) -> bool:
        """Is the file, by its size and time, still the one?"""
        return (self.size, self.mtime_ns) == (status.st_size, status.st_mtime_ns)

    def is_of_same_file(self, other: Record | None) -> bool:
        """Was nothing written between the two, as far as size and time say?"""
        return other is not None and (self.size, self.mtime_ns) == (other.size, other.mtime_ns)


class Store:
    """One models folder. What the disk refuses is `Unavailable`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hidden = folder / HIDDEN
        self._checksums = self._hidden / "checksums"
        with disk_errors(folder):
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._hidden.mkdir(mode=0o700, exist_ok=True)
            self._checksums.mkdir(mode=0o700, exist_ok=True)

    def path_of(self, name: str) -> Path:
        """A model that is there. Raises `NotFound`."""
        for path in (self.folder / f"{name}{GGUF}", self.folder / name):
            if os.path.lexists(path) and name != HIDDEN:
                return path
        raise NotFound(
            f"there is no model {name!r} in {self.folder}",
            hint="only what is in this folder can be verified or removed",
        )

    def check_space(self, num_bytes: int) -> None:
        """Raise `Unavailable` unless so many more fit on the disk."""
        with disk_errors(self.folder):
            free = shutil.disk_usage(self.folder).free
        if num_bytes + SPARE_BYTES > free:
            raise Unavailable(
                f"{self.folder} has {format_size(free)} free; {format_size(num_bytes)} are to come "
                f"and {format_size(SPARE_BYTES)} must stay free",
                hint="`openclawctl models rm` makes room, or set fetch.directory",
            )

    # ---- what is on its way ----

    @contextlib.contextmanager
    def staging(self, key: str) -> Iterator[Path]:
        """The hidden folder of one download, for us alone; it stays when the block fails. Raises
        `Overloaded` while somebody else has it."""
        self._sweep()
        path = self._hidden / f"{key}.part"
        with disk_errors(path), contextlib.ExitStack() as stack:
            path.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Overloaded(
                    "the same model is being fetched already", retry_after_s=60.0
                ) from None
            os.utime(path)
            yield path
            shutil.rmtree(path)

    def publish(self, staged: Path, target: str, records: dict[str, Record], source: str) -> Path:
        """Give what was verified its name, in place of what had it. It is on disk then."""
        path = self.folder / target
        with disk_errors(path):
            self.remember(target.removesuffix(GGUF), records, source)
            if path.is_dir() and not path.is_symlink():
                path.rename(staged.with_name(f"{staged.name}.old"))
            staged.rename(path)
            sync_folder(self.folder)
        return path

    def _sweep(self) -> None:
        """Remove what nobody has come back to for long."""
        oldest = time.time() - KEEP_PARTS_S
        for path in (*self._hidden.glob("*.part"), *self._hidden.glob("*.removed")):
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < oldest:
                    shutil.rmtree(path)

    # ---- what is there ----

    def remember(self, name: str, records: dict[str, Record], source: str) -> None:
        """Keep what the files of a model were when they were verified."""
        files = {path: _fields(record) for path, record in records.items()}
        text = json.dumps({"source": source, "verified_at": time.time(), "files": files})
        target = self._checksums / f"{name}.json"
        fresh = target.with_suffix(".fresh")
        with disk_errors(target), open(fresh, "w", opener=_open_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            fresh.rename(target)

    def records_of(self, name: str) -> tuple[dict[str, Record], str]:
        """What is remembered of a model's files, and where it came from; nothing, if nothing."""
        try:
            kept = json.loads((self._checksums / f"{name}.json").read_bytes())
            records = {path: Record(**fields) for path, fields in kept["files"].items()}
            return records, str(kept["source"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}, ""

    def files_of(self, path: Path) -> dict[str, Path]:
        """A model's files by their path below its folder; a single one by its name."""
        if not path.is_dir():
            return {path.name: path}
        with disk_errors(path):
            files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return {str(file.relative_to(path)): file for file in files}

    def remove(self, name: str) -> int:
        """Take a model away; how many bytes that frees. Nothing of it is visible from the first
        moment on."""
        path = self.path_of(name)
        with disk_errors(path):
            freed = sum(file.lstat().st_size for file in self.files_of(path).values())
            doomed = self._hidden / f"{os.getpid()}.removed"
            path.rename(doomed)
            sync_folder(self.folder)
            if doomed.is_dir() and not doomed.is_symlink():
                shutil.rmtree(doomed)
            else:
                doomed.unlink()
            (self._checksums / f"{name}.json").unlink(missing_ok=True)
        return freed


def hash_file(path: Path, progress: Callable[[int, int | None], object]) -> Record:
    """What a file is now. `progress` is told the bytes so far, and of how many."""
    digest, done = hashlib.sha256(), 0
    with disk_errors(path), path.open("rb") as file:
        status = os.fstat(file.fileno())
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(done, status.st_size)
    return Record(digest.hexdigest(), status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the disk says becomes `Unavailable`, with the path."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{error.filename or path}: {error.strerror}",
            hint="check the disk, and that openclawd-fetch may write there",
        ) from None


def check_absent(path: Path, *, replaces: bool) -> None:
    """Raise `InvalidRequest` if the name is taken, unless that is to be replaced."""
    if os.path.lexists(path) and not replaces:
        raise InvalidRequest(
            f"there is a model at {path} already, and it is another one",
            hint="--replace replaces it, --name gives the new one another name",
        )


def _fields(record: Record) -> dict[str, Any]:
    return {"sha256": record.sha256, "size": record.size, "mtime_ns": record.mtime_ns}


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
