"""A worker that hangs looks alive. It is noticed by what it does not say, and replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from harness import running_daemon, wait_until
from models.tiny import CONTEXT

from openclawctl import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness import Daemon
    from models.library import ModelLibrary

NUM_TOKENS = 1500
"""They take the tiny model about a second."""

SPIN = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef int compute(void *, void *);

int ggml_backend_sched_graph_compute_async(void *sched, void *graph) {
    char path[4096];
    snprintf(path, sizeof path, "%s/spin-%d", getenv("SPIN_FOLDER"), getpid());
    while (access(path, F_OK) == 0) {}
    void *ggml = dlopen("libggml-base.so.0", RTLD_NOW | RTLD_NOLOAD);
    return ((compute *)dlsym(ggml, __func__))(sched, graph);
}
"""
"""Stands before the function of this name, in which llama.cpp does all its computing."""


def spin_library(folder: Path) -> Path:
    source, library = folder / "spin.c", folder / "spin.so"
    source.write_text(SPIN)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return library


@contextlib.contextmanager
def two_models(
    folder: Path, file: Path, environ: dict[str, str]
) -> Iterator[tuple[Daemon, Client]]:
    """A tiny model twice in one daemon, where a worker may stall for two seconds: thousands of its
    steps, however busy the machine is."""
    config = folder / "openclawd.yaml"
    config.write_text(
        "resource_limits: {step_timeout: 2s, cpu_cores_per_worker: 1}\n"
        "inference_settings: {max_output_tokens: 100000}\n"
        "models:\n"
        f"  one: {{path: {file}, preload: true, context: {CONTEXT}}}\n"
        f"  other: {{path: {file}, preload: true}}\n"
    )
    with (
        running_daemon("--config", str(config), folder=folder, environ=environ) as daemon,
        Client(socket_path=str(daemon.wait_ready().socket), retries=0) as client,
    ):
        yield daemon, client


def row_of(client: Client, name: str) -> dict[str, Any]:
    (row,) = [row for row in client.status()["models"] if row["name"] == name]
    return dict(row)


def stop(folder: Path, pid: int) -> None:
    del folder
    os.kill(pid, signal.SIGSTOP)


def spin(folder: Path, pid: int) -> None:
    (folder / f"spin-{pid}").touch()


@pytest.mark.parametrize("hang", [stop, spin])
def test_a_worker_that_hangs_is_replaced_and_its_request_goes_on(
    folder: Path, models: ModelLibrary, hang: Callable[[Path, int], None]
) -> None:
    environ = {"LD_PRELOAD": str(spin_library(folder)), "SPIN_FOLDER": str(folder)}
    with two_models(folder, models.tiny("full"), environ) as (daemon, client):
        pid, pid_of_other = (row_of(client, name)["worker_pid"] for name in ("one", "other"))
        with (
            Client(socket_path=str(daemon.socket), retries=0) as asker,
            asker.generate(
                "a b c", model="one", max_tokens=NUM_TOKENS, ignore_eos=True, stream=True
            ) as stream,
        ):
            next(stream)
            hang(folder, pid)
            wait_until(lambda: row_of(client, "one")["stalled_s"] > 0.5, what="the stall")
            assert client.generate("a b", model="other", max_tokens=4).usage.completion_tokens
            for _ in stream:
                pass
            assert stream.result.usage.completion_tokens == NUM_TOKENS
        assert row_of(client, "one")["worker_pid"] != pid
        assert row_of(client, "other")["worker_pid"] == pid_of_other
        assert f"worker {pid} has made no step" in daemon.log()


def test_a_worker_that_was_stopped_while_idle_is_replaced_when_it_is_needed(
    folder: Path, models: ModelLibrary
) -> None:
    with two_models(folder, models.tiny("full"), {}) as (daemon, client):
        pid = row_of(client, "other")["worker_pid"]
        os.kill(pid, signal.SIGSTOP)
        assert row_of(client, "other")["stalled_s"] == 0  # nothing is asked of it
        assert client.generate("a b", model="other", max_tokens=4).usage.completion_tokens
        assert row_of(client, "other")["worker_pid"] != pid
        assert "stopped by a signal" in daemon.log()
