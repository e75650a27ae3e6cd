"""The state directory, the disk under it, the ledger in it, and the files of models."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import os
import pwd
import sqlite3
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import ModelFailed, Unavailable
from openclawctl.wire.units import format_duration, format_size
from openclawd.config import find_model_file, model_files_by_stem
from openclawd.doctor.findings import Finding, State
from openclawd.fleet.probing import probe
from openclawd.ledger.storage import MIGRATIONS, open_reader, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openclawd.config import Config

MIN_FREE_BYTES: Final = 16 * 2**20
"""The ledger's write-ahead log, a copy of its pages and the log: less is full to the daemon."""

FEW_FREE_BYTES: Final = 1 * 2**30
"""Warned of: a model of some gigabytes, or a busy day's log, does not fit any more."""

CLOCK_TOLERANCE_S: Final = 60.0
_TRIED_BYTES: Final = 64 * 1024
_MOST_MODELS: Final = 200

_HIDDEN_FROM_UNIT: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""`ProtectHome=` and `PrivateTmp=` of openclawd.service."""

_INSTALLED: Final = Path(__file__)


def check_disk(state_dir: Path) -> Finding:
    """Can the state directory be written, and how much goes into it?"""
    try:
        with tempfile.TemporaryFile(dir=state_dir) as file:  # it never has a name
            file.write(b"\0" * _TRIED_BYTES)
            file.flush()
            os.fsync(file.fileno())
        free_bytes = _free_bytes(state_dir)
    except OSError as error:
        return _cannot_write(state_dir, error)
    room = f"{format_size(free_bytes)} are free for {state_dir}"
    if free_bytes < MIN_FREE_BYTES:
        return _full(state_dir, room)
    if free_bytes < FEW_FREE_BYTES:
        return Finding("disk", State.WARNING, room, _make_room(state_dir))
    return Finding("disk", State.OK, room)


def _free_bytes(folder: Path) -> int:
    """What a user that is not root may still write."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _cannot_write(state_dir: Path, error: OSError) -> Finding:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(state_dir, f"nothing can be written to {state_dir}: {error.strerror}")
    if isinstance(error, FileNotFoundError):
        message = f"the state directory {state_dir} is missing"
        remedy = "the daemon makes it when it starts: `systemctl start openclawd`, or `openclawctl"
        return Finding("disk", State.FAILED, message, f"{remedy} daemon start`")
    if isinstance(error, PermissionError):
        return _closed(state_dir)
    message = f"nothing can be written to {state_dir}: {error.strerror}"
    remedy = "look at the disk: `dmesg | tail`, `mount | grep -w ro`"
    return Finding("disk", State.FAILED, message, remedy)


def _full(state_dir: Path, room: str) -> Finding:
    message = f"the disk is full: {room}; the ledger cannot be written, so requests are refused"
    return Finding("disk", State.FAILED, message, _make_room(state_dir))


def _make_room(state_dir: Path) -> str:
    return (
        f"look what takes it, `du -xsh {state_dir}/* | sort -h`; remove models with `openclawctl"
        " models rm`, old requests with `openclawctl ledger prune --older-than 90d`"
    )


def _closed(state_dir: Path) -> Finding:
    me = _user_name(os.geteuid())
    try:
        owner = _user_name(state_dir.stat().st_uid)
    except OSError:
        owner = "another user"
    message = f"{me} may not look into {state_dir}, which belongs to {owner}"
    if os.geteuid() == 0:  # a file system that does not know root
        return Finding("disk", State.FAILED, message, f"run this as {owner}")
    remedy = f"as root (`sudo openclawctl doctor`) more is seen; or `chown -R {me} {state_dir}`"
    return Finding("disk", State.UNKNOWN, message, f"{remedy}, if the daemon runs as {me}")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"


# ---- models ----


class Models:
    """The files of the models. `findings`, one for each with something wrong, or one for all; and
    the weights of those that could be read."""

    def __init__(self, config: Config, *, is_unit: bool) -> None:
        self.weights_bytes: dict[str, int] = {}
        self._is_unit = is_unit
        self._config = config

    def check(self) -> list[Finding]:
        files = self._files()
        wrong = [found for name, path in files.items() if (found := self._check(name, path))]
        if wrong:
            return wrong
        if not files:
            folders = " or ".join(self._config.model_paths)
            message = "there is no model"
            remedy = f"`openclawctl pull REPO`, or put a GGUF file into {folders}"
            return [Finding("models", State.WARNING, message, remedy)]
        names = ", ".join(sorted(files)[:8]) + (" …" if len(files) > 8 else "")
        return [Finding("models", State.OK, f"{len(files)} can be read and are whole: {names}")]

    def _files(self) -> dict[str, Path]:
        """Those of the configuration, and those that lie in the models' folders, each once."""
        folders = self._config.model_paths
        files = {
            name: find_model_file(model.path, folders)
            for name, model in self._config.models.items()
        }
        seen = {path.resolve() for path in files.values()}
        for name, path in list(model_files_by_stem(folders).items())[:_MOST_MODELS]:
            if path.resolve() not in seen:
                files.setdefault(name, path)
        return files

    def _check(self, name: str, path: Path) -> Finding | None:
        if (found := _check_access(name, path)) is not None:
            return found
        hidden = [place for place in _HIDDEN_FROM_UNIT if path.is_relative_to(place)]
        if self._is_unit and hidden:
            message = (
                f"model {name}: openclawd.service sees nothing of {hidden[0]}, where {path} is"
            )
            return Finding("models", State.FAILED, message, _move(path))
        try:
            facts = asyncio.run(probe(str(path)))
        except ModelFailed as problem:
            return Finding("models", State.FAILED, f"model {name}: {problem.message}", problem.hint)
        except OSError as error:
            message = f"model {name}: no process can be started to look into it: {error}"
            remedy = "can the daemon's user run its Python? `openclawctl version`"
            return Finding("models", State.FAILED, message, remedy)
        self.weights_bytes[name] = facts.weights_bytes
        return None


def _move(path: Path) -> str:
    target = "/var/lib/openclawd/models/"
    return f"`install -m 644 {path} {target}`, and correct its path in openclawd.yaml"


def _check_access(name: str, path: Path) -> Finding | None:
    """Can this user open what is there? A folder on the way may be closed to it as well."""
    me = _user_name(os.geteuid())
    for folder in reversed(path.parents):
        if folder.is_dir() and not os.access(folder, os.X_OK):
            message = f"model {name}: {me} may not go into {folder}, on the way to {path}"
            remedy = f"`chmod o+x {folder}`, or move the model into a folder of openclawd's"
            return Finding("models", State.FAILED, message, remedy)
    if not path.exists():
        message = f"model {name}: there is no {path}"
        remedy = f"put it there, or correct models.{name}.path in openclawd.yaml"
        return Finding("models", State.FAILED, message, remedy)
    files = [path, *_inside(path)]
    for file in files:
        needed = os.R_OK | (os.X_OK if file.is_dir() else 0)
        if not os.access(file, needed):
            state = file.stat()
            mode, owner = f"{state.st_mode & 0o7777:04o}", _user_name(state.st_uid)
            message = f"model {name}: {me} may not read {file} (mode {mode}, owner {owner})"
            group = _group_of(os.geteuid())
            remedy = f"`chgrp {group} {file} && chmod g+r{'x' if file.is_dir() else ''} {file}`"
            return Finding("models", State.FAILED, message, remedy)
    return None


def _inside(path: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        if path.is_dir():
            yield from sorted(path.iterdir())


def _group_of(uid: int) -> str:
    try:
        return grp.getgrgid(pwd.getpwuid(uid).pw_gid).gr_name
    except KeyError:
        return str(os.getegid())


# ---- the ledger, and the clock that its rows were dated by ----


def check_ledger(path: Path) -> Finding:
    """Its schema, without a write to it."""
    if not path.exists():
        return Finding("ledger", State.OK, f"{path} is not there yet; the daemon makes it")
    try:
        version = _ask(path, "PRAGMA user_version")
    except Unavailable as problem:
        return Finding("ledger", State.FAILED, problem.message, problem.hint)
    known = len(MIGRATIONS)
    if version == known:
        return Finding("ledger", State.OK, f"{path} has the current schema ({version})")
    if version == 0:
        message = f"{path} is no ledger of openclawd"
        remedy = "move it away: the daemon makes a new one when it starts"
        return Finding("ledger", State.FAILED, message, remedy)
    if version < known:
        message = f"{path} has schema {version}, from before an upgrade; this openclawd has {known}"
        remedy = f"restart the daemon: it copies the ledger to {path.name}.v{version}.bak, then"
        return Finding("ledger", State.WARNING, message, f"{remedy} converts it")
    message = f"{path} has schema {version}; this openclawd knows up to {known} and cannot start"
    remedy = (
        f"install the version that wrote it, or put back {path.name}.v{known}.bak, without what"
    )
    return Finding("ledger", State.FAILED, message, f"{remedy} was used since")


def check_clock(ledger: Path, *, now: float) -> Finding:
    """Does anything here come from the future? `now` is Unix time in seconds."""
    installed_at = _INSTALLED.stat().st_mtime
    if now < installed_at - 86_400:  # a copy may be dated by another time zone
        message = f"it is {_date(now)} by the clock: before openclawd was made"
        return Finding("clock", State.FAILED, message, _SET_CLOCK)
    newest = None
    if ledger.exists():
        with contextlib.suppress(Unavailable):
            newest = _ask(ledger, "SELECT max(arrived_at) FROM requests")
    if isinstance(newest, float | int) and newest > now + CLOCK_TOLERANCE_S:
        ahead = format_duration(newest - now)
        message = (
            f"the clock was set back: the ledger's newest request is of {_date(newest)}, {ahead}"
            " from now; budgets by the day and reports do not fit the time until then"
        )
        return Finding("clock", State.FAILED, message, _SET_CLOCK)
    return Finding("clock", State.OK, f"it is {_date(now)}, and nothing here is from later")


_SET_CLOCK: Final = "look at `timedatectl`, and switch on `timedatectl set-ntp true`"


def _ask(path: Path, query: str) -> Any:
    """The one value of a query. Raises `Unavailable`."""
    with storage_errors(path), contextlib.closing(open_reader(path)) as database:
        try:
            (value,) = database.execute(query).fetchone()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return None
            raise
    return value


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
