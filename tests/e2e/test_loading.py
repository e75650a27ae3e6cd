"""Models that cannot load say why in one sentence: to the client, in `status`, in the log."""

from __future__ import annotations

import shutil
import struct
from typing import TYPE_CHECKING

import pytest
from harness import RawClient, running_daemon, smollm2_argument, smollm2_path, wait_until

from openclawctl import Client, ModelFailed
from openclawctl.wire.messages import Done, Error, Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def missing(path: Path) -> None:
    del path


def a_directory(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.touch()


def not_a_gguf(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + b"\0" * 10_000)


def cut(path: Path) -> None:
    with smollm2_path().open("rb") as source:
        path.write_bytes(source.read(20_000_000))


def header_only(path: Path) -> None:
    path.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 16)


def vocabulary_only(path: Path) -> None:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1))  # version 3, no tensors


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, "not exist|no such file|not there"),
        (a_directory, "no config.json"),
        (empty, "empty|not a GGUF"),
        (not_a_gguf, "not a GGUF"),
        (cut, "cut|incomplete|truncated|shorter"),
        (header_only, ""),
        (vocabulary_only, "vocabulary"),
    ],
)
def test_a_bad_file_is_named_to_client_status_and_log(
    folder: Path, spoil: Callable[[Path], None], words: str
) -> None:
    path = folder / "bad.gguf"
    spoil(path)
    with running_daemon("--models", f"bad={path}", folder=folder) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket), retries=0) as client:
            with pytest.raises(ModelFailed, match=rf"(?i)bad.*({words})") as caught:
                client.generate("x")
            (row,) = client.status()["models"]
        assert row["state"] == "failed"
        assert row["reason"] in caught.value.message
        assert str(path) in row["reason"]
        assert caught.value.hint
        wait_until(lambda: "model bad: failed" in daemon.log(), what="the log line")


def test_a_file_that_was_mended_is_tried_again_by_the_next_request(folder: Path) -> None:
    path = folder / "model.gguf"
    path.write_bytes(b"nonsense")
    with running_daemon("--models", f"m={path}", folder=folder) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket), retries=0) as client:
            with pytest.raises(ModelFailed):
                client.generate("x")
            pid_before = [row["worker_pid"] for row in client.status()["models"]]
            with pytest.raises(ModelFailed):  # unchanged: no new attempt, no new worker
                client.generate("x")
            assert [row["worker_pid"] for row in client.status()["models"]] == pid_before
            shutil.copy(smollm2_path(), path)
            assert client.generate("x", max_tokens=1).usage.completion_tokens == 1


def test_unloading_a_failed_model_forgets_the_failure_and_starts_nothing(folder: Path) -> None:
    with running_daemon("--models", f"m={folder}/nowhere.gguf", folder=folder) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket), retries=0) as client:
            assert client.unload("m")["state"] == "unloaded"
            loads_before = daemon.log().count("loads ")
            assert client.status()["models"][0]["state"] == "unloaded"
            with pytest.raises(ModelFailed):
                client.load("m")
            wait_until(lambda: daemon.log().count("loads ") == loads_before + 1, what="one load")


def test_a_required_model_that_fails_stops_the_start(folder: Path) -> None:
    config = folder / "c.yaml"
    config.write_text("models: {m: {path: /nowhere/m.gguf, preload: true, required: true}}\n")
    with running_daemon("--config", str(config), folder=folder) as daemon:
        assert daemon.process.wait(60) == 1
        assert "the required model m did not load" in daemon.log()


def test_one_bad_model_does_not_disturb_another(folder: Path) -> None:
    models = smollm2_argument("good")[1] + ",bad=/nowhere/bad.gguf"
    with running_daemon("--models", models, folder=folder) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket), retries=0) as client:
            assert client.generate("x", model="good", max_tokens=1).finish_reason
            with pytest.raises(ModelFailed):
                client.generate("x", model="bad")


def test_a_model_is_found_by_its_stem_and_loaded_on_demand(folder: Path) -> None:
    models = folder / "state" / "models"
    models.mkdir(parents=True)
    (models / "tiny.gguf").symlink_to(smollm2_path())
    with running_daemon(folder=folder) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket)) as client:
            assert [row["name"] for row in client.models()] == ["tiny"]
            events: list[str] = []
            result = client.generate(
                "x", model="tiny", max_tokens=1, on_event=lambda event: events.append(event.kind)
            )
            assert result.model == "tiny"
            assert "loading" in events


def test_an_idle_model_is_unloaded_after_its_keep_alive(folder: Path) -> None:
    config = folder / "c.yaml"
    config.write_text(f"models: {{m: {{path: {smollm2_path()}, keep_alive: 300ms}}}}\n")
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket)) as client:
            assert client.generate("x", max_tokens=1).timings.load_s > 0
            wait_until(
                lambda: client.status()["models"][0]["state"] == "unloaded", what="the unload"
            )
            assert not daemon.workers()
            assert client.generate("x", max_tokens=1).timings.load_s > 0


def test_unloading_a_model_that_failed_does_not_load_it_again(folder: Path) -> None:
    path = folder / "bad.gguf"
    path.write_bytes(b"nonsense")
    with running_daemon("--models", f"m={path}", folder=folder) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket), retries=0) as client:
            with pytest.raises(ModelFailed):
                client.load("m")
            num_loads = daemon.log().count("model m is loading")
            assert client.unload("m")["state"] == "unloaded"
            client.models()  # whatever the unload set off has begun by now
            assert client.status()["models"][0]["state"] == "unloaded"
        assert daemon.log().count("model m is loading") == num_loads


def test_an_unload_calls_a_load_off_that_nobody_waits_for(folder: Path) -> None:
    """Also one that has just begun, whose worker is not there yet."""
    config = folder / "c.yaml"
    config.write_text(f"models: {{m: {{path: {smollm2_path()}, preload: false}}}}\n")
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        with RawClient(daemon.socket) as raw, Client(socket_path=str(daemon.socket)) as client:
            client.status()
            raw.request(1, "load", model="m")
            raw.next()  # `loading`
            raw.socket.close()
            client.unload("m")
            assert client.status()["models"][0]["state"] == "unloaded"
        assert not daemon.workers()


def test_load_and_unload_in_one_write_both_end(folder: Path) -> None:
    config = folder / "c.yaml"
    config.write_text(f"models: {{m: {{path: {smollm2_path()}, preload: false}}}}\n")
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        with RawClient(daemon.socket) as raw:
            load = raw.connection.send(Request(1, "load", {"model": "m"}))
            raw.socket.sendall(load + raw.connection.send(Request(2, "unload", {"model": "m"})))
            ends = [raw.next_of_any(Done, Error), raw.next_of_any(Done, Error)]
        assert {end.type for end in ends} == {"done"}


def test_a_preload_that_is_called_off_does_not_hold_up_the_start(folder: Path) -> None:
    models = ",".join(f"m{number}={smollm2_path()}" for number in range(2))
    with running_daemon("--models", models, folder=folder) as daemon:
        daemon.wait_notification("STATUS=")
        with Client(socket_path=str(daemon.socket)) as client:
            client.unload("m0")
        daemon.wait_ready()


def test_system_prompts_outlive_a_restart_and_an_unload(folder: Path) -> None:
    system = "You are a librarian. " + "You know every book about dragons by heart. " * 8
    config = folder / "c.yaml"
    config.write_text(
        f"models: {{m: {{path: {smollm2_path()}, preload: true, system_prompts: [{system!r}]}}}}\n"
    )
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Hi!"}]
    cached = []
    for num_restored in (1, 2):
        with running_daemon("--config", str(config), folder=folder) as daemon:
            daemon.wait_ready()
            with Client(socket_path=str(daemon.socket)) as client:
                cached.append(client.chat(messages, max_tokens=1).usage.cached_tokens)
                client.unload("m")
                cached.append(client.chat(messages, max_tokens=1).usage.cached_tokens)
                assert client.models()[0]["info"]["pinned_tokens"] == cached[0] > 64
            assert daemon.terminate() == 0
        log = daemon.log()
        assert log.count("saved prefixes restored") == 2 * num_restored - 1
        assert log.count("1 of 1 new prefixes saved") == 1
        assert "dragons" not in log
    assert len(set(cached)) == 1
    assert [path.name for path in (daemon.state_dir / "prefixes").iterdir()] == ["m"]
