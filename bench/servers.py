"""The servers that are compared: started with the same model, threads and context, asked alike.

Owns how each is started and when it is ready, and the way from a plan to its answers. The peers run
as their users would run them; what differs from their defaults is said where it is set.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import peers
from answers import Answer, Ask
from children import Child, ChildFailed, child
from live import serving, short_folder, smollm2_path
from traffic import Plan, Script

from openclawctl import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from live import Daemon

HTTP_THREADS: Final = 40
"""For llama-server: with fewer than it has clients it drops connections."""

_START_TIMEOUT_S: Final = 60
_STOP_TIMEOUT_S: Final = 10
_IDLE_TIMEOUT_S: Final = 60
_POLL_S: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Server:
    """A running server that the load process can ask. `num_requests` asks it how many requests it
    has."""

    name: str
    dialect: str
    address: str | int
    num_requests: Callable[[], int]

    def wait_idle(self) -> None:
        """Until it has noticed that clients have left. Raises `ChildFailed` if it does not."""
        self.wait_running(0)

    def wait_running(self, count: int) -> None:
        """Until it has so many requests. Raises `ChildFailed` if it never does."""
        deadline_s = time.monotonic() + _IDLE_TIMEOUT_S
        while self.num_requests() != count:
            if time.monotonic() > deadline_s:
                raise ChildFailed(f"{self.name} has {self.num_requests()} requests, not {count}")
            time.sleep(_POLL_S)


@dataclass(frozen=True, slots=True)
class Ran:
    """The answers of each script, when the gate opened, and when the background was cut."""

    scripts: list[list[Answer]]
    gate_s: float
    end_s: float


class Traffic:
    """The load process (`traffic.py`)."""

    def __init__(self, process: Child) -> None:
        self._process = process

    def run(
        self,
        server: Server,
        scripts: Sequence[Script],
        *,
        gate_reads: int = 0,
        hold_s: float = 0,
        limit_s: float = 300,
    ) -> Ran:
        """A plan (`traffic.py`). Raises `ChildFailed` when a request failed."""
        plan = Plan(server.dialect, server.address, list(scripts), gate_reads, hold_s, limit_s)
        raw = self._process.ask(**asdict(plan))
        answers = [[Answer(**each) for each in script] for script in raw["scripts"]]
        for each in itertools.chain.from_iterable(answers):
            if each.error is not None:
                raise ChildFailed(f"{server.name}: {each.error}")
        return Ran(answers, raw["gate_s"], raw["end_s"])

    def ask(self, server: Server, *asks: Ask) -> list[Answer]:
        """Requests one after the other."""
        (answers,) = self.run(server, [Script(list(asks))]).scripts
        return answers

    def burst(self, server: Server, asks: Sequence[Ask]) -> list[Answer]:
        """All at once, each on a connection of its own."""
        scripts = self.run(server, [Script([ask]) for ask in asks]).scripts
        return [answers[0] for answers in scripts]


@contextlib.contextmanager
def streams_beside(server: Server, asks: Sequence[Ask]) -> Iterator[None]:
    """Another load process that has one of these streams on each of its connections, until it is
    left, which cuts them."""
    with child("traffic.py") as process:
        process.answer()
        plan = Plan(server.dialect, server.address, [Script([ask]) for ask in asks])
        process.tell(**asdict(plan))
        server.wait_running(len(asks))
        yield
    server.wait_idle()


@contextlib.contextmanager
def traffic() -> Iterator[Traffic]:
    with child("traffic.py") as process:
        process.answer()
        yield Traffic(process)


# ---- the servers ----


@contextlib.contextmanager
def openclawd(
    *,
    parallel: int,
    context: int,
    threads: int,
    path: Path | None = None,
    worker_hook: str | None = None,
    sections: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Server]:
    """`settings` are more keys of the model's configuration; for the others see `live.serving`."""
    with serving(
        parallel=parallel,
        context=context,
        threads=threads,
        settings=settings,
        path=path,
        worker_hook=worker_hook,
        sections=sections,
    ) as daemon:
        yield as_server(daemon)


def as_server(daemon: Daemon) -> Server:
    return Server("openclawd", "openclawd", str(daemon.socket), lambda: _num_requests(daemon))


def _num_requests(daemon: Daemon) -> int:
    with Client(daemon.socket) as client:
        requests = client.status()["requests"]
    return int(requests["running"] + requests["queued"])


@contextlib.contextmanager
def llama_server(
    *, parallel: int, context: int, threads: int, http_threads: int = HTTP_THREADS
) -> Iterator[Server]:
    """llama.cpp's own server. `context` is tokens per sequence, as everywhere here; its `-c` is for
    all of them. Its prompt caches are as they come."""
    command = [peers.program("llama-server"), "--model", smollm2_path(), "--host", "127.0.0.1"]
    command += ["--threads", threads, "--threads-http", http_threads]
    command += ["--parallel", parallel, "--ctx-size", parallel * context]
    with _http_server(command, health="/health") as port:
        yield Server("llama-server", "llama-server", port, lambda: _num_tasks(port))


def _num_tasks(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/slots", timeout=60) as answer:
        return sum(slot["is_processing"] for slot in json.load(answer))


@contextlib.contextmanager
def python_server(*, context: int, threads: int) -> Iterator[Server]:
    """`python -m llama_cpp.server`. By default a new request would end the running one, and logits
    of every prompt token would be kept; neither is wanted."""
    command = [peers.server_python(), "-P", "-m", "llama_cpp.server", "--model", smollm2_path()]
    command += ["--host", "127.0.0.1", "--n_ctx", context]
    command += ["--n_threads", threads, "--n_threads_batch", threads]
    command += ["--interrupt_requests", "false", "--logits_all", "false", "--verbose", "false"]
    with _http_server(command, health="/v1/models") as port:
        yield Server("llama_cpp.server", "python-server", port, lambda: 0)


def batched_bench(*, streams: int, prompt_tokens: int, tokens: int, threads: int) -> float:
    """Seconds in which llama.cpp's loop, with nothing around it, reads and continues so many
    prompts: what the machine can do at best. A lone stream goes first, for the threads to start."""
    counts = f"1,{streams}" if streams > 1 else 1
    command = [peers.program("llama-batched-bench"), "--model", smollm2_path(), "-c", 8192]
    command += ["-b", 512, "-t", threads, "-npp", prompt_tokens, "-ntg", tokens, "-npl", counts]
    command += ["--output-format", "jsonl"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not results:
        raise ChildFailed(f"llama-batched-bench failed:\n{done.stderr[-2000:]}")
    return float(results[-1]["t_pp"] + results[-1]["t_tg"])


# ---- starting ----


@contextlib.contextmanager
def _http_server(command: Sequence[object], *, health: str) -> Iterator[int]:
    """A server on a free port of the loopback interface, from ready to stopped."""
    port = _free_port()
    with short_folder() as folder:
        log = folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*map(str, command), "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        try:
            _wait_healthy(process, f"http://127.0.0.1:{port}{health}", log)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:  # not listening yet, or still loading (503)
            time.sleep(_POLL_S)
    end = log.read_text(errors="replace")[-2000:]
    raise ChildFailed(f"{process.args[0]} did not become ready:\n{end}")


def _die_with_parent() -> None:
    """In the child, before the server: have the kernel end it with the benchmark."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:
        os._exit(1)
