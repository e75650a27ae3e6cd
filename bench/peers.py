"""The programs openclawd is compared with, built from the source archive of llama-cpp-python.

    python bench/peers.py        build what is missing (about six minutes on two cores, once)

Owns what is built, from what, and where it lies: `.cache/peers` of the repository, which git
ignores. The scenarios build what they need themselves; this is for doing it beforehand.

- The archive is the one that `requirements/runtime.lock` names by its hash, so llama-server,
  llama-batched-bench and the daemon's llama-cpp-python are the same llama.cpp commit.
- cmake gets what llama-cpp-python's own build gets (Release, shared libraries, no curl, everything
  else at its default, `GGML_NATIVE=ON` included), so both use the same kernels.
- `python -m llama_cpp.server` runs in an environment of its own, since its web framework is none of
  ours (`requirements/peers.lock`). llama_cpp itself it takes from the environment of the benchmark,
  so that it is not another build.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Final

from live import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGE: Final = "llama-cpp-python"
FOLDER: Final = ROOT / ".cache" / "peers"
CMAKE_OPTIONS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",  # the folder may be moved
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
)
PROGRAMS: Final = ("llama-server", "llama-batched-bench")


class CannotBuild(RuntimeError):
    """A peer could not be built. The message says which step failed, and why."""


def program(name: str) -> Path:
    """One of `PROGRAMS`, built if it is not there. Raises `CannotBuild`."""
    path = _build_folder() / "bin" / name
    if not path.exists():
        _build_programs()
    return path


def server_python() -> Path:
    """The interpreter for `python -m llama_cpp.server`. Raises `CannotBuild`."""
    folder = FOLDER / f"venv-{version()}-python{sysconfig.get_python_version()}"
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists():
        _say(f"installing {PACKAGE}'s server into {folder.relative_to(ROOT)}")
        venv.create(folder, clear=True, with_pip=True)
        lock = str(ROOT / "requirements" / "peers.lock")
        _run(python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", lock)
        packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
        # Ours come after its own; only what its lock does not have is taken from them.
        Path(packages, "llama_cpp_of_the_benchmark.pth").write_text(sysconfig.get_path("purelib"))
        done.touch()
    return python


def version() -> str:
    """Of the installed llama-cpp-python, which is the one that the daemon uses."""
    return importlib.metadata.version(PACKAGE)


# ---- building ----


def _build_folder() -> Path:
    return FOLDER / f"build-{version()}"


def _build_programs() -> None:
    source = _source() / "vendor" / "llama.cpp"
    folder = str(_build_folder())
    _say(f"building {' and '.join(PROGRAMS)} in {_build_folder().relative_to(ROOT)}")
    flags = _run(ROOT / "requirements" / "cxxflags.sh").strip()  # as `make` builds llama-cpp-python
    _run("cmake", "-S", str(source), "-B", folder, f"-DCMAKE_CXX_FLAGS={flags}", *CMAKE_OPTIONS)
    _run("nice", "-n", "19", "cmake", "--build", folder, "-j2", "--target", *PROGRAMS)


def _source() -> Path:
    folder = FOLDER / f"llama_cpp_python-{version()}"
    if not folder.exists():
        with tarfile.open(_archive()) as archive:
            archive.extractall(FOLDER, filter="data")
    return folder


def _archive() -> Path:
    """The source archive: the one that is there if it is the right one, else downloaded."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"llama_cpp_python-{version()}.tar.gz"
    requirement = FOLDER / "requirement.txt"
    requirement.write_text(f"{PACKAGE}=={version()} --hash=sha256:{_locked_hash()}\n")
    if not path.exists():
        _say(f"downloading {path.name}")
        # The hash in the lock is of the source archive, so pip takes no wheel instead.
        download = ("download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest")
        _run(sys.executable, "-m", "pip", *download, str(FOLDER), "-r", str(requirement))
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != _locked_hash():
            raise CannotBuild(f"{path} is not what requirements/runtime.lock names; remove it")
    return path


def _locked_hash() -> str:
    lock = (ROOT / "requirements" / "runtime.lock").read_text(encoding="utf-8")
    entry = re.search(rf"{PACKAGE}=={re.escape(version())} \\\s+--hash=sha256:(\w+)", lock)
    if entry is None:
        raise CannotBuild(f"requirements/runtime.lock does not name {PACKAGE} {version()}")
    return entry[1]


def _run(*command: str | Path) -> str:
    """What it printed. Raises `CannotBuild`."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip().splitlines()[-20:]
        shown = " ".join(map(str, command[:6]))
        raise CannotBuild("\n".join([f"{shown} … failed:", *output]))
    return done.stdout


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    assert not arguments, "this takes no arguments"
    try:
        for name in PROGRAMS:
            print(program(name))
        print(server_python())
    except CannotBuild as problem:
        _say(str(problem))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
