"""A Debian 12 with a real systemd, in a container that is thrown away.

Owns how its root is made (debootstrap, once) and how it is booted (systemd-nspawn, over an overlay
of that root). Needs root. Knows nothing of openclawd. As a program it tries that once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CACHE: Final = Path(__file__).parents[2] / ".cache" / "system"
PACKAGES: Final = (
    "systemd,systemd-sysv,dbus,adduser,procps,util-linux,libgomp1,libstdc++6,ca-certificates,curl,"
    "python3,python3-click,python3-msgpack,python3-rich,python3-platformdirs,prometheus"
)
"""What is there before, since nothing can be fetched later: an init, what the packages under test
depend on, what the guide uses and installs from Debian's mirror."""

TOOLS: Final = ("debootstrap", "systemd-nspawn", "nsenter", "mount", "umount")
BOOT_TIMEOUT_S: Final = 120.0
MAKE_TIMEOUT_S: Final = 900.0
"""For what debootstrap fetches: it waits for a mirror that says nothing for ever."""


def missing_tools() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def base_root() -> Path:
    """The root of a fresh Debian 12, made when it is first asked for: a minute, 300 MB."""
    root = CACHE / f"bookworm-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
    if not root.is_dir():
        unfinished = root.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        mirror = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
        urllib.request.urlopen(f"{mirror}/dists/bookworm/InRelease", timeout=30).close()
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}"]
        subprocess.run(
            [*command, "bookworm", str(unfinished), mirror],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=MAKE_TIMEOUT_S,
        )
        unfinished.rename(root)
    return root


class Machine:
    """A machine that has booted. `root` is its file system, seen from outside."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader

    def run(self, command: str, *, user: str = "", timeout_s: float = 200) -> str:
        """What a shell command prints. Raises `AssertionError` if it fails."""
        done = self.attempt(command, user=user, timeout_s=timeout_s)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def attempt(
        self, command: str, *, user: str = "", timeout_s: float = 100
    ) -> subprocess.CompletedProcess[str]:
        """A shell command, as root or as a user."""
        return subprocess.run(
            self.words(command, user=user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, command: str, *, user: str = "") -> subprocess.Popen[str]:
        """A shell command that goes on beside the test."""
        return subprocess.Popen(
            self.words(command, user=user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def words(self, command: str, *, user: str) -> Sequence[str]:
        shell = ["runuser", "-u", user, "--"] if user else []
        environ = [
            "env",
            "-i",
            "--chdir=/",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        inside = ["nsenter", "--target", str(self._leader), "--all"]
        return [*inside, *environ, *shell, "/bin/sh", "-c", command]

    def wait(self, command: str, *, timeout_s: float = 90) -> str:
        """Until a command succeeds; what it printed then."""
        deadline = time.monotonic() + timeout_s
        while (done := self.attempt(command)).returncode != 0:
            assert time.monotonic() < deadline, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def show(self, unit: str, key: str) -> str:
        """A property of a unit."""
        return self.run(f"systemctl show --property={key} --value {unit}").strip()

    def write(self, path: str, text: str) -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o644)


@contextlib.contextmanager
def booted_machine(shown: Mapping[Path, str] | None = None) -> Iterator[Machine]:
    """A fresh Debian that has booted, without a network. Gone when the block ends. `shown` are
    folders from outside that it can read, and where."""
    with fresh_root() as root, _booted(root, shown or {}) as leader:
        machine = Machine(root, leader)
        machine.wait("systemctl is-system-running --wait", timeout_s=BOOT_TIMEOUT_S)
        yield machine


@contextlib.contextmanager
def fresh_root() -> Iterator[Path]:
    """The file system of a fresh Debian, where nothing runs. Gone when the block ends."""
    base = base_root()
    folder = Path(tempfile.mkdtemp(prefix="openclawd-system-"))
    for name in ("upper", "work", "root"):
        (folder / name).mkdir()
    root = folder / "root"
    layers = f"lowerdir={base},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    try:
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(root)], check=True)
        try:
            yield root
        finally:
            subprocess.run(["umount", "--lazy", str(root)], check=True)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _booted(root: Path, shown: Mapping[Path, str]) -> Iterator[int]:
    """The process id of its init, seen from outside."""
    console = root.with_name("console")
    command = ["systemd-nspawn", "--directory", str(root), "--boot", "--register=no"]
    command += ["--keep-unit", "--private-network", "--console=read-only", "--quiet"]
    command += ["--capability=CAP_SYS_RESOURCE"]  # for OOMScoreAdjust=
    command += [f"--bind-ro={outside}:{inside}" for outside, inside in shown.items()]
    with console.open("wb") as file:
        container = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield _init_of(container, console)
    finally:
        children = psutil.Process(container.pid).children(recursive=True)
        container.terminate()
        try:
            container.wait(30)
        except subprocess.TimeoutExpired:
            container.kill()
            container.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def _init_of(container: subprocess.Popen[bytes], console: Path) -> int:
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while True:
        assert container.poll() is None, console.read_text(errors="replace")
        assert time.monotonic() < deadline, console.read_text(errors="replace")
        for child in psutil.Process(container.pid).children():
            with contextlib.suppress(psutil.Error):
                if child.name() in ("systemd", "init"):
                    return child.pid
        time.sleep(0.05)


def main() -> None:
    """Can this machine do that? Ends with an error if not."""
    with booted_machine() as machine:
        machine.run("true")


if __name__ == "__main__":
    main()
