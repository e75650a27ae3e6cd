"""The two files of `generate --batch`: the requests, one JSON object a line, and their answers.

Owns what a line may hold, and what makes a line that was answered once not be asked again. Each
answer is in the file as soon as it is there, so that a batch which was cut off can go on.

Invariants: the file of answers holds answers only, each a line, each whole; a half line at its end,
of a program or a machine that died, is taken away.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, cast

import click

from openclawctl.cli.answer import chat_of
from openclawctl.cli.inputs import MAX_INPUT_BYTES
from openclawctl.options import chat_params, generate_params
from openclawctl.wire.errors import InvalidRequest, OpenclawError
from openclawctl.wire.fields import suggestion
from openclawctl.wire.operations import Op, param_names
from openclawctl.wire.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from openclawctl.options import ChatOptions, GenerateOptions

_NOT_A_LINES: Final = frozenset({"app", "session", "stream", "dry_run", "on_event"})
"""What a line may not say: labels are the batch's, and its answers come whole."""


_BEGINNING: Final = b'{"line": '
"""Of every answer."""

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC

_NAMELESS: Final = "stdin"
"""What a batch from a pipe is called, whichever descriptor it comes by."""

MAX_PIPED_BYTES: Final = 1024 * 1024 * 1024
"""Of requests that come through a pipe: their copy must not fill the disk for a program that never
stops writing. A file may be of any size."""


@dataclass(frozen=True, slots=True)
class Job:
    """One line: a prompt, or the messages of a chat, with the options of its request. `name` is
    what the line calls itself (`id`), `digest` tells it from another line in its place."""

    line: int
    name: Any
    prompt: Any
    messages: list[dict[str, Any]] | None
    options: dict[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class BadLine:
    line: int
    reason: str


class Requests(NamedTuple):
    """The file of requests, which can be read twice, and what the batch is called after it."""

    file: BinaryIO
    name: str


@contextmanager
def open_requests(path: str) -> Iterator[Requests]:
    """`-` is standard input. What can be read only once, as a pipe, is kept in a temporary file,
    which has no name. Raises `OpenclawError` when it cannot be read or kept."""
    if path == "-":
        with _kept(sys.stdin.buffer) as copy:
            yield Requests(copy, _NAMELESS)
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise OpenclawError(f"cannot read {path}: {error.strerror}") from None
    with file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            name = "".join(char if char.isprintable() else "?" for char in Path(path).name)
            yield Requests(file, name)
        else:
            with _kept(file) as copy:
                yield Requests(copy, _NAMELESS)


@contextmanager
def _kept(pipe: BinaryIO) -> Iterator[BinaryIO]:
    try:
        copy = _copied(pipe)
    except OSError as error:
        raise OpenclawError(
            f"cannot keep the requests in a temporary file: {error.strerror}",
            hint="name a file with --batch, or with TMPDIR a folder that has room for them",
        ) from None
    with copy:
        yield cast("BinaryIO", copy)


def _copied(pipe: BinaryIO) -> IO[bytes]:
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        _copy(pipe, copy)
        copy.flush()
    except BaseException:
        with suppress(OSError):  # what a full disk did not take is tried once more
            copy.close()
        raise
    return copy


def _copy(pipe: BinaryIO, copy: IO[bytes]) -> None:
    """Up to a line that is too long, which whoever reads the copy names."""
    num_bytes = 0
    for line in _lines(pipe):
        num_bytes += len(line)
        if num_bytes > MAX_PIPED_BYTES:
            raise OpenclawError(
                f"more than {format_size(MAX_PIPED_BYTES)} of requests come through a pipe",
                hint="write them to a file and name that with --batch",
            )
        copy.write(line)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Up to one that is longer than `MAX_INPUT_BYTES`, of which the beginning comes last."""
    line = b"\n"
    while line and len(line) <= MAX_INPUT_BYTES:
        try:
            line = file.readline(MAX_INPUT_BYTES + 1)
        except OSError as error:
            raise OpenclawError(f"cannot read the requests: {error.strerror}") from None
        if line:
            yield line


def read_jobs(
    file: BinaryIO, defaults: dict[str, Any], *, system: str | None
) -> Iterator[Job | BadLine]:
    """The lines that are not empty, in their order, from the file's beginning. `defaults` are the
    options of those that do not say otherwise; with `system` a prompt is a user's message after
    this system message."""
    file.seek(0)
    for number, line in enumerate(_lines(file), 1):
        if len(line) > MAX_INPUT_BYTES:
            size = format_size(MAX_INPUT_BYTES)
            yield BadLine(number, f"it has more than {size}; what follows was not read")
        elif line.strip():
            try:
                yield _job(number, line, defaults, system)
            except (OpenclawError, TypeError, ValueError) as error:
                yield BadLine(number, getattr(error, "message", str(error)))


def _job(number: int, line: bytes, defaults: dict[str, Any], system: str | None) -> Job:
    """Raises `InvalidRequest`, `TypeError` or `ValueError` with what is wrong."""
    given = _parse(line)
    if forbidden := sorted(given.keys() & _NOT_A_LINES):
        raise ValueError(f"{forbidden[0]!r} is an option of the whole batch, not of a line")
    name, prompt, messages = (given.pop(key, None) for key in ("id", "prompt", "messages"))
    if (prompt is None) is (messages is None):
        raise ValueError("a line has either a 'prompt' or 'messages'")
    known = param_names(Op.GENERATE if messages is None else Op.CHAT)
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"there is no option {unknown[0]!r}{suggestion(unknown[0], known)}")
    options = {**defaults, **given}
    if isinstance(bias := options.get("logit_bias"), dict):
        options["logit_bias"] = {int(token): value for token, value in bias.items()}
    if messages is None and system is not None:
        messages = chat_of(system, [{"role": "user", "content": prompt}])
    params = _check(prompt, messages, options)
    text = json.dumps(params, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
    return Job(number, name, prompt, messages, options, digest)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        given = json.loads(line.strip())
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at character {error.colno}") from None
    except RecursionError:
        raise ValueError("its lists and maps are nested too deeply") from None
    if not isinstance(given, dict):
        raise ValueError("it is not a JSON object")
    return given


def _check(prompt: Any, messages: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The parameters as they will be sent, judged by the daemon's own decoder."""
    if messages is None:
        return generate_params(prompt, cast("GenerateOptions", options), is_streamed=False)
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise InvalidRequest("'messages' must be a list of maps")
    return chat_params(messages, cast("ChatOptions", options), is_streamed=False)


def check_out(path: str) -> None:
    """Raises a usage error for what can be no file of answers: that is read again, to go on where a
    batch ended, so it must be a regular file, and nothing else may be written to it."""
    if path == "-":
        raise _no_file("--out - names no file")
    try:
        found = os.stat(path)
    except OSError:
        return  # there is none yet, or opening it tells why not
    if not stat.S_ISREG(found.st_mode):
        raise _no_file(f"{path} is no regular file")
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or no file
            if os.path.samestat(found, os.fstat(stream.fileno())):
                raise _no_file(f"{path} is where standard output or error goes")


def _no_file(reason: str) -> click.UsageError:
    return click.UsageError(
        f"{reason}; the answers are read again when a batch goes on, so name a file for them, "
        "old or new"
    )


class Answers:
    """The file of answers, made if it is not there. Nobody else writes it meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digests: dict[int, str] = {}

    def __enter__(self) -> Self:
        """Raises `OpenclawError` for a file that cannot be written, or is no file of answers."""
        try:
            self._file = os.open(self._path, _FLAGS, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise OpenclawError(f"another batch writes {self._path} just now") from None
        except OSError as error:
            raise OpenclawError(f"cannot write {self._path}: {error.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):  # since it was looked at
                raise _no_file(f"{self._path} is no regular file")
            self._read()
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def _read(self) -> None:
        whole = 0
        with open(self._file, "rb", closefd=False) as file:
            if file.peek(1)[:1] not in (b"", b"{"):
                raise self._foreign(1)  # now: another file may be one endless line
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and _may_be_ours(line):
                    break
                self._note(number, line)
                whole += len(line)
        os.ftruncate(self._file, whole)

    def _note(self, number: int, line: bytes) -> None:
        try:
            answer = json.loads(line)
            self._digests[int(answer["line"])] = str(answer["digest"])
        except (ValueError, KeyError, TypeError):
            raise self._foreign(number) from None

    def _foreign(self, number: int) -> OpenclawError:
        return OpenclawError(
            f"{self._path}:{number}: this is no answer of a batch",
            hint="give another file with --out, or remove this one",
        )

    def check(self, digests: Mapping[int, str]) -> None:
        """Raises `OpenclawError` when something else than one of these lines was answered."""
        for line, digest in self._digests.items():
            if digests.get(line) != digest:
                raise OpenclawError(
                    f"{self._path} has an answer to another line {line}: the requests or the "
                    "options have been changed since",
                    hint="give another file with --out, or the same requests and options as before",
                )

    def has(self, job: Job) -> bool:
        return job.line in self._digests

    def add(self, job: Job, answer: dict[str, Any]) -> None:
        """Raises `OpenclawError` when the disk does not take it."""
        entry = {"line": job.line, "digest": job.digest, "id": job.name, **answer}
        text = json.dumps(entry, ensure_ascii=False, default=str) + "\n"
        data = text.encode(errors="replace")
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise OpenclawError(f"cannot write {self._path}: {error.strerror}") from None
        self._digests[job.line] = job.digest


def _may_be_ours(line: bytes) -> bool:
    """Could it be the first part of an answer? Anything else is not ours to take away."""
    return line.startswith(_BEGINNING[: len(line)])
