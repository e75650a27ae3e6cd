"""`pull`, `models.remove` and `models.verify` through a daemon that starts its own helper."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from fetch.server import Behaviour, Hub, gguf
from harness import running_daemon, smollm2_path, wait_until

from openclawctl import Client, Denied, InvalidRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Daemon
    from models.library import ModelLibrary

FILE = "tiny.gguf"


@pytest.fixture
def hub(models: ModelLibrary) -> Iterator[Hub]:
    """One with a model that loads, and with noise."""
    files = {FILE: models.tiny("full").read_bytes(), "noise.gguf": gguf(700_000)}
    server = Hub(files, Behaviour())
    yield server
    server.close()


@pytest.fixture
def fetching(folder: Path, hub: Hub) -> Iterator[Daemon]:
    file = folder / "c.yaml"
    file.write_text(f"fetch: {{endpoint: '{hub.url}', allow_loopback_http: true}}\n")
    with running_daemon("--config", str(file), folder=folder) as daemon:
        yield daemon.wait_ready()


def test_from_the_hub_to_an_answer_and_gone_again(fetching: Daemon, hub: Hub) -> None:
    seen: list[tuple[str, int, int | None]] = []
    with Client(fetching.socket, retries=0) as client:
        result = client.pull("org/model:tiny", on_progress=lambda *how_far: seen.append(how_far))
        size = len(hub.files[FILE])
        assert (result["name"], result["bytes"], result["verified"]) == ("tiny", size, True)
        assert result["path"] == str(fetching.state_dir / "models" / FILE)
        assert seen[-1] == (FILE, size, size)
        assert [row["name"] for row in client.models()] == ["tiny"]
        assert client.generate("x", model="tiny", max_tokens=1).usage.completion_tokens == 1
        assert client.verify_model("tiny")["damaged"] == []
        with pytest.raises(InvalidRequest, match="model tiny is ready") as caught:
            client.remove_model("tiny")
        assert "openclawctl unload tiny" in caught.value.hint
        client.unload("tiny")
        assert client.remove_model("tiny") == {"name": "tiny", "bytes": size}
        assert client.models() == []
        with pytest.raises(NotFound) as nothing:
            client.verify_model("tiny")
        assert nothing.value.hint == "only what is in this folder can be verified or removed"
        actions = [(row["action"], row["model"], row["code"]) for row in client.audit()["rows"]]
    assert ("pull", "", "") in actions
    assert ("models.remove", "tiny", "invalid-request") in actions
    assert ("models.remove", "tiny", "") in actions


def test_what_the_helper_refuses_is_told(fetching: Daemon) -> None:
    with Client(fetching.socket, retries=0) as client:
        with pytest.raises(InvalidRequest, match="2 files that fit"):
            client.pull("org/model")
        with pytest.raises(InvalidRequest, match="nobody says what the checksum"):
            client.pull("https://example.org/m.gguf")


def test_a_model_of_the_configuration_is_not_removed(folder: Path) -> None:
    target = folder / "state" / "models"
    target.mkdir(parents=True)
    (target / "mine.gguf").symlink_to(smollm2_path())
    file = folder / "c.yaml"
    file.write_text("models: {other: {path: mine.gguf}}\n")
    with (
        running_daemon("--config", str(file), folder=folder) as daemon,
        Client(daemon.wait_ready().socket, retries=0) as client,
        pytest.raises(InvalidRequest, match="model other of the configuration uses mine"),
    ):
        client.remove_model("mine")
    assert (target / "mine.gguf").exists()


def test_a_model_that_is_elsewhere_is_neither_verified_nor_removed(folder: Path) -> None:
    file = folder / "c.yaml"
    file.write_text("models: {m: {path: /elsewhere/m.gguf}}\n")
    with (
        running_daemon("--config", str(file), folder=folder) as daemon,
        Client(daemon.wait_ready().socket, retries=0) as client,
    ):
        for ask in (client.verify_model, client.remove_model):
            with pytest.raises(NotFound) as caught:
                ask("m")
            assert caught.value.hint == (
                "only what is in this folder can be verified or removed;"
                " the file of model m is /elsewhere/m.gguf"
            )


def test_a_caller_that_leaves_ends_the_download_and_the_next_goes_on(
    fetching: Daemon, hub: Hub
) -> None:
    hub.behaviour.cuts, hub.behaviour.stalls = [300_000], True

    class Enough(Exception):
        pass

    def leave(file: str, done: int, total: int | None) -> None:
        del file, done, total
        raise Enough

    with Client(fetching.socket, retries=0) as client:
        with pytest.raises(Enough):
            client.pull("org/model:noise", on_progress=leave)
        client.close()
        wait_until(lambda: not fetching.workers(), what="the end of the helper")
        assert client.models() == []
        client.pull("org/model:noise")
    assert hub.requests[-1][1]["Range"].startswith("bytes=")


AS_SYSTEMD_DOES = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "openclawd.fetch", *sys.argv[2:]])
"""


def test_a_helper_that_systemd_starts(fetching: Daemon, hub: Hub, folder: Path) -> None:
    """One process for each connection to `fetch.sock`, with the folder of its own unit."""
    options = ["--models-dir", str(folder / "of-unit"), "--allow-loopback-http"]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        ThreadPoolExecutor() as pool,
        Client(fetching.socket, retries=0) as client,
    ):
        listener.bind(str(folder / "fetch.sock"))
        listener.listen()
        pulled = pool.submit(client.pull, "org/model:noise")
        connection, _ = listener.accept()
        with connection:
            command = [sys.executable, "-c", AS_SYSTEMD_DOES, str(connection.fileno()), *options]
            helper = subprocess.Popen(command, pass_fds=[connection.fileno()])
        assert pulled.result()["path"] == str(folder / "of-unit" / "noise.gguf")
        assert helper.wait(20) == 0
    assert "org/model" in hub.requests[0][0]


def test_fast_storage(folder: Path, models: ModelLibrary) -> None:
    slow, fast = folder / "slow", folder / "fast"
    slow.mkdir()
    (slow / "m.gguf").write_bytes(models.tiny("full").read_bytes())
    file = folder / "c.yaml"
    file.write_text(f"model_paths: ['{slow}']\nfetch: {{copy_to: '{fast}'}}\n")
    with running_daemon("--config", str(file), folder=folder) as daemon:
        daemon.wait_ready()
        with Client(daemon.socket) as client:
            client.load("m")
            assert f"loads {fast}/m.gguf" in daemon.log()
            client.unload("m")
            (fast / "m.gguf").unlink()
            fast.joinpath("m.gguf").mkdir()  # nothing can be put there now
            client.load("m")
        wait_until(lambda: "not from a copy" in daemon.log(), what="the warning")
        assert f"loads {slow}/m.gguf" in daemon.log()


def test_the_command_line(fetching: Daemon, hub: Hub) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "openclawctl", "--socket", str(fetching.socket), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("pull", "org/model:noise.gguf")
    assert done.stdout.startswith("noise is here now (683.6 KiB, verified): /"), done
    assert "was here already" in run("pull", "org/model:noise.gguf").stdout
    assert run("models", "verify", "noise").stdout == "noise is what it was (683.6 KiB)\n"
    path = fetching.state_dir / "models" / "noise.gguf"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    answer: dict[str, Any] = json.loads(run("models", "verify", "noise", "--json").stdout)
    assert answer["sha256"] == sha256
    assert run("models", "rm", "noise").stdout == "noise is deleted: 683.6 KiB are free again\n"
    assert run("models", "rm", "noise").returncode == 4
    assert run("models").returncode == 0


def test_who_may_use_some_models_only_must_name_the_one_it_fetches(fetching: Daemon) -> None:
    with Client(fetching.socket, retries=0) as client:
        secret = client.create_key("ops", role="operator", models=["mine-*"])["secret"]
    key = fetching.folder / "key"
    key.write_text(secret)
    key.chmod(0o600)
    with Client(fetching.socket, api_key_file=key, retries=0) as client:
        with pytest.raises(Denied, match="must name the one"):
            client.pull("org/model:noise")
        with pytest.raises(Denied):
            client.pull("org/model:noise", name="theirs")
        assert client.pull("org/model:noise", name="mine-1")["name"] == "mine-1"
        with pytest.raises(Denied):
            client.remove_model("theirs")
