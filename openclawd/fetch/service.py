"""What each request does, from the request to its result.

Owns the order of the steps of a pull: plan, room, download, verify, publish. Every result and every
refusal is a dictionary or a `Problem` for the daemon.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import InvalidRequest, Unavailable, Unsupported
from openclawd.durable import sync_folder
from openclawd.fetch import hub
from openclawd.fetch.checks import GGUF
from openclawd.fetch.download import FIRST_PAUSE_S, Download, Limits
from openclawd.fetch.messages import Copy, Pull, Remove, Verify
from openclawd.fetch.store import (
    Record,
    Store,
    check_absent,
    disk_errors,
    hash_file,
)
from openclawd.fetch.transport import SILENCE_S, Interrupted, Transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.fetch.messages import Request


_COPY_BYTES: Final = 4 * 1024 * 1024
_LISTING_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """What the process was started with; no request changes it."""

    models_folder: Path
    copies_folder: Path | None = None
    token: str | None = None
    allows_loopback_http: bool = False
    silence_s: float = SILENCE_S
    first_pause_s: float = FIRST_PAUSE_S


class Service:
    """`progress` is told a file's name, its bytes so far, and of how many if that is known."""

    def __init__(
        self, settings: Settings, progress: Callable[[str, int, int | None], None]
    ) -> None:
        self._settings = settings
        self._progress = progress

    def serve(self, request: Request) -> dict[str, Any]:
        """Do it. Raises `Problem`."""
        match request:
            case Pull():
                return self._pull(request)
            case Remove(name):
                return {"name": name, "bytes": self._store().remove(name)}
            case Verify(name):
                return self._verify(name)
            case Copy(path):
                return self._copy(Path(path))

    def _store(self) -> Store:
        return Store(self._settings.models_folder)

    # ---- pull ----

    def _pull(self, pull: Pull) -> dict[str, Any]:
        settings = self._settings
        transport = Transport(
            pull.endpoint,
            token=settings.token,
            allows_loopback_http=settings.allows_loopback_http,
            silence_s=settings.silence_s,
        )
        try:
            plan = hub.plan(pull, lambda url: self._read_listing(transport, url))
            return self._carry_out(plan, pull, transport)
        finally:
            transport.close()

    def _read_listing(self, transport: Transport, url: str) -> bytes:
        for number in range(_LISTING_TRIES):
            if number:
                time.sleep(self._settings.first_pause_s)
            try:
                return transport.read(url, max_bytes=hub.LISTING_BYTES)
            except Interrupted as error:
                story = error
        raise Unavailable(f"the hub could not be asked: {story}", hint="try again later")

    def _carry_out(self, plan: hub.Plan, pull: Pull, transport: Transport) -> dict[str, Any]:
        store = self._store()
        target = store.folder / plan.target
        if self._is_there(store, plan, target):
            return self._result(plan, target, is_new=False, records=store.records_of(plan.name)[0])
        check_absent(target, replaces=pull.replaces)
        key = hashlib.sha256(f"{plan.target}\n{plan.source}".encode()).hexdigest()[:32]
        with store.staging(key) as staging:
            store.check_space(max((plan.size or 0) - _bytes_in(staging), 0))
            limits = Limits(pull.max_bytes, store.check_space, self._settings.first_pause_s)
            records = self._download(plan, limits, staging / "new", transport)
            check_absent(target, replaces=pull.replaces)  # somebody else may have been faster
            staged = staging / "new" if plan.is_folder else staging / "new" / plan.files[0].path
            store.publish(staged, plan.target, records, plan.source)
        return self._result(plan, target, is_new=True, records=records)

    def _is_there(self, store: Store, plan: hub.Plan, target: Path) -> bool:
        """Is every file of it there as it was verified, with the checksum that is wanted, or (for
        the small ones, of which the hub has another checksum) from the same commit?"""
        records, source = store.records_of(plan.name)
        for file in plan.files:
            path = target / file.path if plan.is_folder else target
            record = records.get(file.path if plan.is_folder else target.name)
            if record is None or not path.is_file() or not record.fits(path.stat()):
                return False
            if record.sha256 != file.sha256 and (file.sha256 or source != plan.source):
                return False
        return True

    def _download(
        self, plan: hub.Plan, limits: Limits, folder: Path, transport: Transport
    ) -> dict[str, Record]:
        records = {}
        for number, file in enumerate(plan.files, 1):
            label = file.path if len(plan.files) == 1 else f"{number}/{len(plan.files)} {file.path}"
            download = Download(
                file,
                folder / file.path,
                transport,
                limits=limits,
                progress=functools.partial(self._progress, label),
            )
            record = download.run()
            records[file.path if plan.is_folder else plan.target] = record
            limits = replace(limits, max_bytes=limits.max_bytes - record.size)
        return records

    def _result(
        self, plan: hub.Plan, target: Path, *, is_new: bool, records: dict[str, Record]
    ) -> dict[str, Any]:
        return {
            "name": plan.name,
            "path": str(target),
            "source": plan.source,
            **_sums(records),
            "verified": all(file.sha256 or file.git_sha1 for file in plan.files),
            "new": is_new,
        }

    # ---- verify ----

    def _verify(self, name: str) -> dict[str, Any]:
        """Read every file of a model, and compare with what is remembered; a file that is new, or
        was changed by somebody since, is remembered as it is now."""
        store = self._store()
        path = store.path_of(name)
        known, source = store.records_of(name)
        found = {
            relative: hash_file(file, functools.partial(self._progress, relative))
            for relative, file in store.files_of(path).items()
        }
        kept = [
            relative for relative in found if found[relative].is_of_same_file(known.get(relative))
        ]
        damaged = [relative for relative in kept if found[relative] != known[relative]]
        damaged += sorted(known.keys() - found.keys())
        if not damaged:
            store.remember(name, found, source)
        return {
            "name": name,
            "path": str(path),
            "source": source,
            **_sums(found),
            "damaged": damaged,
            "first_seen": [relative for relative in found if relative not in kept],
        }

    # ---- copies ----

    def _copy(self, source: Path) -> dict[str, Any]:
        """Copy a GGUF file to the folder for copies, unless it is there as it is now."""
        folder = self._settings.copies_folder
        if folder is None:
            raise Unsupported(
                "this openclawd-fetch was started without a folder for copies",
                hint="with systemd, see fetch-copies.conf in /usr/share/doc/openclawd/examples",
            )
        if source.suffix != GGUF or not source.is_absolute():
            raise InvalidRequest(f"{source} is no GGUF file with an absolute path")
        target, copies = folder / source.name, Store(folder)
        with disk_errors(source):
            status = source.stat()
        if _is_copy(target, status):
            return {"path": str(target), "new": False}
        with copies.staging(f"copy-{source.name}") as staging:
            copies.check_space(status.st_size)
            part = staging / source.name
            digest = self._copy_bytes(source, part, status)
            self._check_copy(source, digest, status)
            with disk_errors(part):
                os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
                part.rename(target)
                sync_folder(folder)
        return {"path": str(target), "new": True}

    def _copy_bytes(self, source: Path, part: Path, status: os.stat_result) -> str:
        digest, done = hashlib.sha256(), 0
        with disk_errors(source), source.open("rb") as old, part.open("wb") as new:
            while chunk := old.read(_COPY_BYTES):
                digest.update(chunk)
                new.write(chunk)
                done += len(chunk)
                self._progress(source.name, done, status.st_size)
            new.flush()
            os.fchmod(new.fileno(), 0o640)
            os.fsync(new.fileno())
        return digest.hexdigest()

    def _check_copy(self, source: Path, digest: str, status: os.stat_result) -> None:
        """Against what is remembered of the file, if it is one of ours."""
        if source.parent != self._settings.models_folder:
            return
        record = self._store().records_of(source.stem)[0].get(source.name)
        if record is not None and record.fits(status) and record.sha256 != digest:
            raise Unavailable(
                f"{source} is damaged: its SHA-256 is {digest}, and it was {record.sha256}",
                hint="fetch it again with `openclawctl pull --replace`",
            )


def _sums(records: dict[str, Record]) -> dict[str, Any]:
    """How much it is, and the checksum if it is one file."""
    sums = [record.sha256 for record in records.values()]
    return {
        "files": len(sums),
        "bytes": sum(record.size for record in records.values()),
        "sha256": sums[0] if len(sums) == 1 else None,
    }


def _is_copy(target: Path, status: os.stat_result) -> bool:
    try:
        found = target.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def _bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
