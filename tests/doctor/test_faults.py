"""Planted faults: each is really there, and `openclawctl doctor` names its cause and what to do.

The unit that is dead is planted where there is a systemd: `tests/system/test_boot.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from openclawd.doctor.findings import State
from openclawd.doctor.machine import BuildUnknown, check_cpu, check_gpu, check_memory, read_build
from openclawd.ledger import Ledger, Reservation
from openclawd.ledger.storage import MIGRATIONS, open_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from models.library import ModelLibrary

NOBODY = 65_534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Diagnosis:
    def __init__(self, status: int, output: str) -> None:
        self.status = status
        self.findings: list[dict[str, str]] = json.loads(output)["findings"]

    def one(self, check: str, state: str) -> dict[str, str]:
        """The finding of a check that came out so."""
        found = [f for f in self.findings if f["check"] == check and f["state"] == state]
        assert len(found) == 1, self.findings
        return found[0]


@pytest.fixture
def site(folder: Path, models: ModelLibrary) -> Path:
    """A healthy place for a daemon that does not run: a configuration, a state directory and a
    model, which any user can get at."""
    folder.chmod(0o755)
    (folder / "state").mkdir()
    shutil.copy(models.tiny("full"), folder / "m.gguf")
    (folder / "m.gguf").chmod(0o644)
    (folder / "c.yaml").write_text(f"models: {{m: {{path: {folder}/m.gguf}}}}\n")
    return folder


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def diagnose(site: Path, *, prefix: tuple[str, ...] = (), port: int | None = None) -> Diagnosis:
    command = [*prefix, sys.executable, "-m", "openclawctl", "--socket", str(site / "s"), "doctor"]
    command += ["--json", "--config", str(site / "c.yaml"), "--state-dir", str(site / "state")]
    command += ["--metrics-port", str(port or free_port())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return Diagnosis(done.returncode, done.stdout)


@pytest.fixture
def in_public(folder: Path) -> tuple[str, ...]:
    """What a command begins with to let any user run this very Python, which may be in somebody's
    closed home: a view of the file system in which it is not."""
    place = Path(sys.base_prefix)
    closed = [str(above) for above in reversed(place.parents) if not above.stat().st_mode & 0o001]
    if not closed:
        return ()
    (folder / "python").mkdir()
    script = """
        mount --bind "$2" "$3"; mount -t tmpfs -o mode=755 none "$1"
        mkdir -p "$2"; mount --bind "$3" "$2"; shift 3; exec "$@"
    """
    view = ("unshare", "--mount", "sh", "-ec", script, "sh", closed[0], str(place))
    return (*view, str(folder / "python"))


@contextlib.contextmanager
def listening(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        sock.listen()
        yield


# ---- who may connect, and to what ----


@needs_root
def test_wrong_group(site: Path, in_public: tuple[str, ...]) -> None:
    caller = (*in_public, "setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    with listening(site / "s"):
        os.chown(site / "s", 0, grp.getgrnam("games").gr_gid)
        (site / "s").chmod(0o660)
        found = diagnose(site, prefix=caller).one("socket", "failed")
    assert found["message"] == f"no permission to use the socket {site}/s"
    assert "it belongs to group games: `sudo usermod -aG games nobody`" in found["remedy"]


def test_missing_socket_directory(site: Path) -> None:
    (site / "c.yaml").rename(site / "state" / "c.yaml")
    command = [sys.executable, "-m", "openclawctl", "--socket", str(site / "run" / "s"), "doctor"]
    command += ["--json", "--config", str(site / "state" / "c.yaml")]
    command += ["--state-dir", str(site / "state")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = Diagnosis(done.returncode, done.stdout).one("socket", "failed")
    assert found["message"] == f"the folder {site}/run is missing, so there can be no socket s"
    assert f"`mkdir -p {site}/run`, then `openclawctl daemon start`" in found["remedy"]


def test_nothing_listens_any_more(site: Path) -> None:
    with listening(site / "s"):
        pass
    found = diagnose(site).one("socket", "failed")
    assert "the daemon that made this socket is gone" in found["message"]
    assert "systemctl start openclawd" in found["remedy"]


# ---- models ----


@needs_root
def test_unreadable_model(site: Path, in_public: tuple[str, ...]) -> None:
    """Root could read it; the daemon's user, who owns the state directory, cannot."""
    os.chown(site / "state", NOBODY, NOBODY)
    (site / "m.gguf").chmod(0o600)
    diagnosis = diagnose(site, prefix=in_public)
    found = diagnosis.one("models", "failed")
    assert diagnosis.status == 1
    assert found["message"] == (
        f"model m: nobody may not read {site}/m.gguf (mode 0600, owner root)"
    )
    assert found["remedy"] == f"`chgrp nogroup {site}/m.gguf && chmod g+r {site}/m.gguf`"


@needs_root
def test_model_in_a_folder_that_is_closed(site: Path, in_public: tuple[str, ...]) -> None:
    os.chown(site / "state", NOBODY, NOBODY)
    (site / "closed").mkdir(mode=0o700)
    (site / "c.yaml").write_text(f"models: {{m: {{path: {site}/closed/m.gguf}}}}\n")
    found = diagnose(site, prefix=in_public).one("models", "failed")
    assert f"nobody may not go into {site}/closed" in found["message"]
    assert f"chmod o+x {site}/closed" in found["remedy"]


def test_missing_model(site: Path) -> None:
    (site / "m.gguf").unlink()
    found = diagnose(site).one("models", "failed")
    assert found["message"] == f"model m: there is no {site}/m.gguf"
    assert "models.m.path" in found["remedy"]


@pytest.mark.parametrize("missing_bytes", [1, 100])
def test_cut_gguf(site: Path, missing_bytes: int) -> None:
    file = site / "m.gguf"
    os.truncate(file, file.stat().st_size - missing_bytes)
    found = diagnose(site).one("models", "failed")
    assert found["message"] == (
        f"model m: {file} is cut off: its last {missing_bytes} bytes are missing"
    )
    assert "download the file again" in found["remedy"]


# ---- the port, the disk, the configuration ----


def test_port_taken(site: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        found = diagnose(site, port=port).one("port", "warning")
    assert found["message"].startswith(f"port {port} is taken by python")
    assert f"(pid {os.getpid()}): openclawd-metrics cannot have it" in found["message"]
    assert "--listen 127.0.0.1:PORT" in found["remedy"]


@pytest.fixture
def disk(site: Path) -> Iterator[Path]:
    """A file system of 64 MiB, for the state directory."""
    mount_point = site / "state"
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount_point)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield mount_point
    subprocess.run(["umount", str(mount_point)], check=True)


def fill(disk: Path, *, leave_bytes: int) -> None:
    state = os.statvfs(disk)
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - leave_bytes)


def test_disk_full(site: Path, disk: Path) -> None:
    before = diagnose(site).one("disk", "warning")
    assert before["message"].endswith(f"are free for {disk}")
    fill(disk, leave_bytes=0)
    diagnosis = diagnose(site)
    found = diagnosis.one("disk", "failed")
    assert diagnosis.status == 1
    assert found["message"].startswith("the disk is full: nothing can be written to")
    assert "requests are refused" in found["message"]
    assert "openclawctl ledger prune" in found["remedy"]


def test_disk_nearly_full(site: Path, disk: Path) -> None:
    fill(disk, leave_bytes=2**20)
    found = diagnose(site).one("disk", "failed")
    assert "1.0 MiB are free" in found["message"]


def test_wrong_config_key(site: Path) -> None:
    with (site / "c.yaml").open("a") as file:
        file.write("logging: {levle: debug}\n")
    diagnosis = diagnose(site)
    found = diagnosis.one("config", "failed")
    assert diagnosis.status == 1
    assert found["message"] == (
        f"{site}/c.yaml:2: logging.levle: unknown key; did you mean 'level'?"
    )
    command = f"openclawctl config check {site}/c.yaml && openclawctl reload"
    assert found["remedy"] == f"correct it, then `{command}`"


# ---- the ledger and the clock ----


def test_old_schema(site: Path) -> None:
    open_database(site / "state" / "ledger.sqlite3", MIGRATIONS[:1]).close()
    found = diagnose(site).one("ledger", "warning")
    assert (
        f"has schema 1, from before an upgrade; this openclawd has {len(MIGRATIONS)}"
        in (found["message"])
    )
    assert found["remedy"].startswith("restart the daemon")


def test_schema_of_a_newer_version(site: Path) -> None:
    newer = (*MIGRATIONS, ("CREATE TABLE of_tomorrow (a INTEGER)",))
    open_database(site / "state" / "ledger.sqlite3", newer).close()
    diagnosis = diagnose(site)
    assert f"knows up to {len(MIGRATIONS)}" in diagnosis.one("ledger", "failed")["message"]
    assert diagnosis.status == 1


def test_no_ledger_at_all(site: Path) -> None:
    (site / "state" / "ledger.sqlite3").write_text("this is no database, but a note to self")
    found = diagnose(site).one("ledger", "failed")
    assert "file is not a database" in found["message"]
    assert "restore a backup" in found["remedy"]


def write_request(ledger: Path, arrived_at: float) -> None:
    async def write() -> None:
        async with Ledger.open(ledger, node="here") as opened:
            await opened.reserve(
                Reservation(
                    request_id="a",
                    principal="user:alice",
                    model="m",
                    op="chat",
                    arrived_at=arrived_at,
                    prompt_tokens=1,
                    reserved_tokens=2,
                )
            )

    asyncio.run(write())


def test_clock_jump(site: Path) -> None:
    """A request was dated by a clock that has been set back by two hours since."""
    write_request(site / "state" / "ledger.sqlite3", time.time() + 7200)
    diagnosis = diagnose(site)
    found = diagnosis.one("clock", "failed")
    assert found["message"].startswith("the clock was set back: the ledger's newest request is of")
    assert "timedatectl" in found["remedy"]
    assert diagnosis.one("ledger", "ok")


# ---- hardware: what the kernel shows, under a root of its own ----


def write(root: Path, path: str, text: str = "") -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_cpu_without_avx2(tmp_path: Path) -> None:
    """The library that is installed here, on the CPU of an older machine."""
    build = read_build()
    if "AVX2" not in build:
        pytest.skip("llama.cpp was built without AVX2 here")
    write(tmp_path, "proc/cpuinfo", "flags\t\t: fpu sse4_2 ssse3 avx\n")
    found = check_cpu(tmp_path, build)
    assert found.state is State.FAILED
    assert "AVX2" in found.message
    assert "workers die of SIGILL" in found.message
    wanted = f"--no-binary llama-cpp-python llama-cpp-python=={version('llama-cpp-python')}`"
    assert wanted in found.remedy


def test_no_avx2_build(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "flags\t\t: fpu sse4_2 ssse3 avx f16c fma avx2 bmi2\n")
    found = check_cpu(tmp_path, frozenset({"SSE3", "SSSE3", "AVX", "OPENMP", "REPACK"}))
    assert found.state is State.WARNING
    assert "built without AVX2, which this CPU has" in found.message
    assert "build it on this machine" in found.remedy
    assert check_cpu(tmp_path, frozenset({"AVX2"})).state is State.OK


def test_library_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that was built for another machine."""
    write(tmp_path, "llama_cpp/__init__.py", "import os, signal\nos.kill(os.getpid(), 4)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(BuildUnknown, match="dies of SIGILL") as caught:
        read_build()
    assert check_cpu(tmp_path, caught.value).state is State.FAILED


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A machine with an NVIDIA card whose driver is loaded."""
    write(tmp_path, "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    write(tmp_path, "sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    write(tmp_path, "sys/bus/pci/devices/0000:02:00.0/vendor", "0x8086\n")
    write(tmp_path, "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Kernel Module\n")
    information = "Model: \t\t NVIDIA H200\nDevice Minor: \t 0\n"
    write(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information", information)
    for node in ("nvidiactl", "nvidia-uvm", "nvidia0"):
        write(tmp_path, f"dev/{node}")
    return tmp_path


def test_card_that_is_well(card: Path) -> None:
    found = check_gpu(card)
    assert (found.state, found.message) == (
        State.OK,
        "an NVIDIA card with its driver and device nodes",
    )


def test_missing_driver_node(card: Path) -> None:
    (card / "dev" / "nvidia-uvm").unlink()
    found = check_gpu(card)
    assert found.state is State.FAILED
    assert found.message == "the NVIDIA driver is loaded, but /dev/nvidia-uvm is not there"
    assert "nvidia-modprobe -c 0 -u" in found.remedy


def test_card_without_driver(card: Path) -> None:
    shutil.rmtree(card / "proc")
    found = check_gpu(card)
    assert found.state is State.WARNING
    assert "its driver is not loaded" in found.message
    assert "modprobe nvidia" in found.remedy


@needs_root
def test_nodes_of_another_group(card: Path) -> None:
    card.chmod(0o755)
    (card / "dev" / "nvidia0").chmod(0o660)
    found = as_nobody(lambda: check_gpu(card).as_dict(), card)
    assert found["state"] == "failed"
    assert found["message"] == "openclawd's user may not use /dev/nvidia0"


def as_nobody(look: Callable[[], dict[str, Any]], card: Path) -> dict[str, Any]:
    """What a process of another user finds."""
    for parent in card.parents:
        if parent.stat().st_uid == os.geteuid() and str(parent) != "/":
            parent.chmod(parent.stat().st_mode | 0o011)
    (card / "dev" / "nvidiactl").chmod(0o666)
    (card / "dev" / "nvidia-uvm").chmod(0o666)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.write(writer, json.dumps(look()).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        answer = file.read()
    os.waitpid(pid, 0)
    result: dict[str, Any] = json.loads(answer)
    return result


def test_memory(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    assert check_memory(tmp_path, {"m": 2**30}).state is State.OK
    found = check_memory(tmp_path, {"m": 2**30, "huge": 9 * 2**30})
    assert found.state is State.WARNING
    assert "the weights of huge alone are 9.0 GiB" in found.message
    write(tmp_path, "proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 100000 kB\n")
    assert "nearly used up" in check_memory(tmp_path, {}).message


# ---- and a machine without a fault ----


def test_nothing_is_wrong(site: Path) -> None:
    diagnosis = diagnose(site)
    states = {found["check"]: found["state"] for found in diagnosis.findings}
    assert states.pop("disk") in ("ok", "warning")  # of whoever runs the tests
    states.pop("memory")
    assert states == {
        "socket": "failed",  # none runs
        "port": "ok",
        "ledger": "ok",
        "clock": "ok",
        "config": "ok",
        "models": "ok",
        "cpu": "ok",
        "gpu": states["gpu"],
    }
    assert not list((site / "state").iterdir()), "it left something behind"
