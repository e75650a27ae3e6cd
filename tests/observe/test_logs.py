"""Where records go: stderr, the journal, a file, syslog; and never in the caller's way."""

import asyncio
import contextlib
import json
import logging
import os
import resource
import socket
import stat
import sys
import threading

import pytest

from openclawctl.wire.errors import Unavailable
from openclawd.config import LoggingConfig
from openclawd.observe import logs, targets

logger = logging.getLogger("openclawd.test")


class Captured:
    """What went to stderr in this test."""

    def __init__(self, capsys):
        self._capsys = capsys
        self._text = ""

    def getvalue(self):
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys):
    return Captured(capsys)


def config(**settings):
    return LoggingConfig.model_validate(settings)


def test_the_level_decides(stderr):
    with logs.configured(config(level="warning")):
        logger.info("quiet")
        logger.warning("loud")
    assert "loud" in stderr.getvalue()
    assert "quiet" not in stderr.getvalue()


def test_the_previous_handlers_come_back(stderr):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    with logs.configured(config()):
        assert root.handlers != before[0]
    assert (root.handlers, root.level) == before
    assert "log" not in {thread.name for thread in threading.enumerate()}


def test_fields_of_the_record_and_of_the_task(stderr):
    async def task(model):
        with logs.bound(model=model):
            await asyncio.sleep(0)
            with logs.bound(step=1):
                logger.info("inner", extra=logs.fields(n=2))
            logger.info("outer")

    async def both():
        await asyncio.gather(task("a"), task("b"))

    with logs.configured(config(format="json")):
        asyncio.run(both())
    entries = [json.loads(line) for line in stderr.getvalue().splitlines()]
    seen = {(e["message"], e["model"], e.get("step"), e.get("n")) for e in entries}
    assert seen == {("inner", m, 1, 2) for m in "ab"} | {("outer", m, None, None) for m in "ab"}


def test_the_line_of_a_request(stderr):
    with logs.configured(config(format="json")):
        logs.log_request(
            request_id="r1",
            principal="user:alice",
            app="",
            model="m",
            op="chat",
            prompt_tokens=5,
            completion_tokens=7,
            ttft_s=0.25,
            total_s=1.0,
            finish_reason="stop",
        )
    entry = json.loads(stderr.getvalue())
    del entry["time"]
    assert entry == {
        "level": "info",
        "logger": "openclawd.requests",
        "message": "request finished",
        "request_id": "r1",
        "principal": "user:alice",
        "model": "m",
        "op": "chat",
        "prompt_tokens": 5,
        "cached_tokens": 0,
        "completion_tokens": 7,
        "load_s": 0.0,
        "queue_s": 0.0,
        "ttft_s": 0.25,
        "total_s": 1.0,
        "finish_reason": "stop",
    }


@pytest.mark.parametrize(
    ("code", "level"),
    [
        (None, "info"),
        ("cancelled", "info"),
        ("prompt-too-long", "info"),
        ("worker-died", "warning"),
        ("internal", "warning"),
    ],
)
def test_only_our_own_failures_are_warnings(stderr, code, level):
    with logs.configured(config(format="json")):
        logs.log_request(request_id="r", principal="p", model="m", op="chat", error_code=code)
    entry = json.loads(stderr.getvalue())
    assert (entry["level"], entry.get("error_code")) == (level, code)


def test_what_an_argument_was_when_it_was_logged(stderr):
    values = [1]
    with logs.configured(config()):
        logger.info("values %s", values)
        values.append(2)
        logger.info("only %d", 1, exc_info=True)
    assert "values [1]" in stderr.getvalue()
    assert "Traceback" not in stderr.getvalue()


def test_a_bad_log_call_is_shown_not_raised(stderr):
    with logs.configured(config()):
        logger.info("%d of %d", 1)
    assert "bad log call: not enough arguments" in stderr.getvalue()


def test_an_exception_is_logged_with_its_story(stderr):
    with logs.configured(config()):
        try:
            raise OSError("gone")
        except OSError:
            logger.exception("it failed")
    assert "    OSError: gone" in stderr.getvalue()


@contextlib.contextmanager
def piped_stderr():
    """A stderr that goes into a pipe. Gives the reading end, from which nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w") as stream, contextlib.redirect_stderr(stream):
        yield reading
    os.close(reading)


def drain(reading):
    """What is in the pipe now."""
    text = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(reading, 65_536):
            text += chunk
    return text.decode()


def test_a_stuck_reader_delays_nobody_and_losses_are_counted(monkeypatch):
    monkeypatch.setattr(targets, "MAX_WAITING_RECORDS", 50)
    monkeypatch.setattr(targets, "CLOSE_TIMEOUT_S", 0.0)
    with piped_stderr() as reading:
        with logs.configured(config()):
            for number in range(5000):
                logger.info("%d %s", number, "x" * 1000)
        text = ""
        while any(thread.name == "log" for thread in threading.enumerate()):
            text += drain(reading)
        lines = (text + drain(reading)).splitlines()
    numbers = [int(line.split("test: ")[1].split()[0]) for line in lines if "xxx" in line]
    lost = [line for line in lines if "log messages were lost" in line]
    num_lost = sum(int(line.split("targets: ")[1].split()[0]) for line in lost)
    assert numbers == sorted(numbers)
    assert num_lost > 0
    assert len(numbers) + num_lost == 5000


def test_a_target_that_fails_leaves_the_others_alone(stderr):
    with logs.configured(config(file="/dev/full")):
        logger.info("one")
        logger.info("two", extra=logs.fields(odd=Textless()))
        logger.info("three")
    assert "test: one" in stderr.getvalue()
    assert "test: three" in stderr.getvalue()
    assert "log messages were lost" in stderr.getvalue()


def test_a_line_cut_by_a_full_disk_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "log"
    target = targets.FileTarget(path)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    record = logging.LogRecord("n", logging.INFO, "f", 1, "x" * 100, None, None)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(OSError, match="No space left"):
            target.emit(record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    target.emit(record)
    target.close()
    cut, whole = path.read_text().splitlines()
    assert len(cut) == 50
    assert json.loads(whole)["message"] == "x" * 100


class Textless:
    """A value that cannot even be written."""

    def __str__(self):
        raise RuntimeError("no text")


# ---- file ----


def test_the_file_holds_json_and_is_not_for_everyone(stderr, tmp_path):
    path = tmp_path / "openclawd.log"
    previous = os.umask(0)
    try:
        with logs.configured(config(file=str(path))):
            logger.info("one")
    finally:
        os.umask(previous)
    assert json.loads(path.read_text())["message"] == "one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert "one" in stderr.getvalue()


def test_the_file_is_opened_anew_when_asked(stderr, tmp_path):
    path = tmp_path / "openclawd.log"
    with logs.configured(config(file=str(path))):
        logger.info("one")
        while not path.read_text():
            pass  # the writer's thread decides; bounded by the test's time limit
        path.rename(tmp_path / "openclawd.log.1")
        logs.reopen()
        logger.info("two")
    assert "one" in (tmp_path / "openclawd.log.1").read_text()
    assert "two" in path.read_text()
    assert "one" not in path.read_text()


def test_a_file_that_cannot_be_opened_anew_is_kept(stderr, tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "openclawd.log"
    with logs.configured(config(file=str(path))):
        folder.rename(tmp_path / "moved")
        logs.reopen()
        logger.info("two")
    assert "cannot be reopened: No such file or directory" in stderr.getvalue()
    assert "two" in (tmp_path / "moved" / "openclawd.log").read_text()


def test_reopening_without_logging_does_nothing():
    logs.reopen()


def test_a_file_that_cannot_be_opened_is_refused(stderr, tmp_path):
    path = tmp_path / "none" / "openclawd.log"
    with pytest.raises(Unavailable) as caught, logs.configured(config(file=str(path))):
        pytest.fail("it was configured")
    assert f"the log file {path} cannot be opened: No such file" in caught.value.message


# ---- journal and syslog ----


@pytest.fixture
def datagrams(folder):
    """A datagram socket as journald and syslog have one: its path, and what arrived."""
    path = folder / "socket"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    listener.settimeout(10)
    yield path, listener
    listener.close()


def test_the_journal_gets_fields(datagrams, monkeypatch, stderr):
    path, listener = datagrams
    monkeypatch.setattr(targets, "JOURNAL_SOCKET", path)
    with logs.configured(config(format="journald")):
        logger.warning("hello", extra=logs.fields(request_id="r1"))
        entry = listener.recv(65_536).decode().splitlines()
    assert "MESSAGE=test: hello request_id=r1" in entry
    assert "REQUEST_ID=r1" in entry
    assert "PRIORITY=4" in entry
    assert stderr.getvalue() == ""


def test_the_journal_gets_a_traceback_as_one_entry(datagrams, monkeypatch, stderr):
    path, listener = datagrams
    monkeypatch.setattr(targets, "JOURNAL_SOCKET", path)
    with logs.configured(config(format="journald")):
        try:
            raise OSError("gone\nPRIORITY=0")
        except OSError:
            logger.exception("it failed")
        entry = listener.recv(65_536)
    name, _, rest = entry.partition(b"\n")
    assert name == b"MESSAGE"  # the binary form: a length, so that no line can be a field
    length = int.from_bytes(rest[:8], "little")
    assert rest[8 : 8 + length].endswith(b"\n    PRIORITY=0")


def test_a_journal_that_is_away_is_replaced_by_stderr(tmp_path, monkeypatch, stderr):
    monkeypatch.setattr(targets, "JOURNAL_SOCKET", tmp_path / "none")
    with logs.configured(config(format="journald")):
        logger.info("still here")
    assert "test: still here" in stderr.getvalue()


def test_auto_is_the_journal_when_stderr_is(monkeypatch):
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert targets.is_stderr_the_journal()
    (target,) = targets.targets_for(config())
    assert isinstance(target, targets.JournalTarget)
    target.close()


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense"])
def test_auto_is_the_console_otherwise(monkeypatch, stream):
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    (target,) = targets.targets_for(config())
    assert not isinstance(target, targets.JournalTarget)


def test_without_stderr_there_is_no_journal():
    script = "from openclawd.observe.targets import is_stderr_the_journal as f; print(f())"
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", f"import os; os.close(2); {script}; assert not f()"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)],
    )
    assert os.waitpid(pid, 0)[1] == 0


def test_syslog(datagrams, monkeypatch, stderr):
    path, listener = datagrams
    monkeypatch.setattr(targets, "SYSLOG_SOCKET", path)
    with logs.configured(config(syslog=True)):
        logger.error("hello", extra=logs.fields(model="m"))
        message = listener.recv(65_536)
    facility_daemon, severity_error = 3, 3
    start = f"<{facility_daemon * 8 + severity_error}>openclawd[{os.getpid()}]: "
    assert message.decode().rstrip("\0") == f"{start}test: hello model=m"


def test_syslog_that_is_not_there(tmp_path, monkeypatch, stderr):
    monkeypatch.setattr(targets, "SYSLOG_SOCKET", tmp_path / "none")
    with (
        pytest.raises(Unavailable, match="no syslog service at"),
        logs.configured(config(syslog=True)),
    ):
        pytest.fail("it was configured")


def test_a_syslog_that_went_away_loses_lines_not_the_daemon(datagrams, monkeypatch, stderr):
    path, listener = datagrams
    monkeypatch.setattr(targets, "SYSLOG_SOCKET", path)
    with logs.configured(config(syslog=True)):
        listener.close()
        path.unlink()
        logger.error("hello")
    assert "test: hello" in stderr.getvalue()
    assert "1 log messages were lost" in stderr.getvalue()
    assert "Traceback" not in stderr.getvalue()
