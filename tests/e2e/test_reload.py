"""`reload` and SIGHUP apply a changed configuration; nothing fails, and a wrong one is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness import (
    Daemon,
    RawClient,
    running_daemon,
    short_folder,
    smollm2_path,
    wait_until,
)
from steady_load import Load

from openclawctl import Client, InvalidRequest, NotFound, PromptTooLong
from openclawctl.wire.messages import Done, Error, Hello

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from models.library import ModelLibrary

MODEL = {"path": str(smollm2_path()), "preload": True, "parallel": 2, "context": 512}


class Editor:
    """A daemon and its configuration file."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.file = daemon.folder / "c.json"

    def write(self, **config: Any) -> None:
        self.file.write_text(json.dumps({"models": {"m": MODEL}, **config}, indent=1))

    def reload(self, **config: Any) -> dict[str, Any]:
        self.write(**config)
        with self.client() as client:
            return client.reload()

    def client(self) -> Client:
        return Client(socket_path=str(self.daemon.socket), retries=0)

    def row(self, name: str = "m") -> dict[str, Any]:
        with self.client() as client:
            return next((row for row in client.models() if row["name"] == name), {})

    def wait_settled(self, *, parallel: int = 2, workers: int = 1) -> None:
        """Until only workers with these settings are there, all of them ready."""

        def is_settled() -> bool:
            found = [(each["state"], each["slots"]) for each in self.row()["workers"]]
            return found == [("ready", parallel)] * workers

        wait_until(is_settled, what=f"{workers} workers of {parallel} slots")


@pytest.fixture(scope="module")
def running() -> Iterator[Editor]:
    with short_folder() as folder:
        (folder / "c.json").write_text(json.dumps({"models": {"m": MODEL}}))
        with running_daemon("--config", str(folder / "c.json"), folder=folder) as daemon:
            yield Editor(daemon.wait_ready())


@pytest.fixture
def editor(running: Editor) -> Iterator[Editor]:
    """As the daemon was started; the next test finds it so, too."""
    yield running
    running.reload()
    running.wait_settled()


def test_a_model_is_changed_under_load_and_no_request_fails(editor: Editor) -> None:
    old_pid = editor.row()["worker_pid"]
    with Load(editor.daemon, num_clients=4) as load:
        load.wait_more(2)
        changed = editor.reload(models={"m": {**MODEL, "parallel": 3, "context": 400}})
        assert (changed["changed"], changed["warnings"]) == (["m"], [])
        editor.wait_settled(parallel=3)
        load.wait_more(4)
        more = editor.reload(models={"m": {**MODEL, "parallel": 3, "context": 400, "workers": 2}})
        assert more["changed"] == ["m"]
        editor.wait_settled(parallel=3, workers=2)
        load.wait_more(4)
    row = editor.row()
    assert old_pid not in [worker["pid"] for worker in row["workers"]]
    assert (row["slots"], row["context"]) == (6, 400)
    assert len(editor.daemon.workers()) == 2


def test_a_wrong_configuration_changes_nothing_and_is_told_with_file_and_line(
    editor: Editor,
) -> None:
    pid = editor.row()["worker_pid"]
    editor.write(models={"m": {**MODEL, "parallel": 4}}, aliases={"x": "y"}, default_model=3)
    with editor.client() as client:
        with pytest.raises(InvalidRequest, match="nothing has changed") as refusal:
            client.reload()
        lines = refusal.value.message.splitlines()[1:]
        text = editor.file.read_text().splitlines()
        wrong = text.index(' "default_model": 3') + 1
        assert lines == [
            f"{editor.file}:{wrong}: default_model: found 3; allowed: a name of models or aliases"
        ]
        assert f"`openclawctl config check {editor.file}` checks it" in refusal.value.hint
        assert client.generate("hi", max_tokens=1, model="m").usage.completion_tokens == 1
        last = client.audit(limit=1, action="config")["rows"][0]
    assert last["code"] == "invalid-request"
    assert "default_model" in last["detail"]["problem"]
    assert (editor.row()["worker_pid"], editor.row()["parallel"]) == (pid, 2)


HALF_CHARACTER = "\ud800"


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"models": {"m": {**MODEL, "system_prompts": [HALF_CHARACTER]}}}, "models.m.system_"),
        ({"models": {"m": {**MODEL, "path": HALF_CHARACTER}}}, "models.m.path"),
        ({"notify": {"command": ["/bin/true", HALF_CHARACTER]}}, "notify.command[1]"),
        ({"resource_limits": {"max_connections": 10**4000}}, "resource_limits.max_connections"),
    ],
)
def test_what_no_text_can_hold_is_refused_and_changes_nothing(
    editor: Editor, config: dict[str, Any], place: str
) -> None:
    pid = editor.row()["worker_pid"]
    with pytest.raises(InvalidRequest, match=re.escape(place)):
        editor.reload(**config)
    seen = len(editor.daemon.log())
    editor.daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: place in editor.daemon.log()[seen:], what="the mistake in the log")
    assert editor.row()["worker_pid"] == pid


def test_the_command_says_it_and_exits_with_an_error(editor: Editor) -> None:
    def ctl(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "openclawctl", "--socket", str(editor.daemon.socket)]
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False)

    editor.write(nonesuch=1)
    answer = ctl("reload")
    assert answer.returncode == 2
    assert f"{editor.file}:" in answer.stderr
    assert "nonesuch: unknown key" in answer.stderr
    editor.write(aliases={"chat": "m"})
    answer = ctl("reload")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == "the configuration is applied; models: as before\n"


def test_models_come_and_go_and_whoever_has_one_keeps_it(editor: Editor) -> None:
    with editor.client() as client:
        editor.reload(models={"m": MODEL, "old": {**MODEL, "preload": False}})
        with client.generate(
            "Once", model="old", stream=True, max_tokens=120, ignore_eos=True
        ) as stream:
            next(iter(stream))
            answer = editor.reload(models={"m": MODEL, "new": {**MODEL, "preload": False}})
            assert (answer["added"], answer["removed"]) == (["new"], ["old"])
            with pytest.raises(NotFound):
                client.generate("x", model="old")
            assert editor.row("old")["state"] in ("ready", "draining")
            for _ in stream:
                pass
            assert stream.result.usage.completion_tokens == 120
        wait_until(lambda: not editor.row("old"), what="the end of the removed model")
        assert client.generate("x", model="new", max_tokens=1).model == "new"


def test_new_settings_that_do_not_load_leave_the_old_worker(editor: Editor) -> None:
    pid = editor.row()["worker_pid"]
    bad = editor.daemon.folder / "bad.gguf"
    bad.write_bytes(b"GGUF, not")
    editor.reload(models={"m": {**MODEL, "path": str(bad)}})
    wait_until(lambda: "the old ones stay" in editor.row()["reason"], what="the failure")
    row = editor.row()
    assert (row["state"], row["worker_pid"]) == ("ready", pid)
    with editor.client() as client:
        assert client.generate("x", max_tokens=1).usage.completion_tokens == 1
    editor.reload()
    wait_until(lambda: editor.row()["reason"] == "", what="the end of the failure")
    assert editor.row()["worker_pid"] == pid, "it has the settings that are wanted again"


def test_names_limits_and_defaults_change_at_once(editor: Editor) -> None:
    pid = editor.row()["worker_pid"]
    with editor.client() as client:
        answer = editor.reload(
            aliases={"chat": "m"},
            default_model="chat",
            inference_settings={"max_output_tokens": 3},
            limits=[{"name": "short", "max_prompt_tokens": 5, "match": {"app": "tight"}}],
            budgets=[{"name": "b", "tokens": 1000, "window": "lifetime"}],
            rate_limits=[{"name": "r", "requests": 100, "window": "1h"}],
            prices={"m": {"prompt": "1", "completion": "1"}},
            tiers={"gold": {"weight": 5}},
        )
        assert (answer["changed"], answer["warnings"]) == ([], [])
        result = client.generate("Once upon a time", model="chat", ignore_eos=True)
        assert (result.model, result.usage.completion_tokens) == ("m", 3)
        with pytest.raises(PromptTooLong):
            client.generate("one two three four five six seven", app="tight")
        (budget,) = client.budgets()
        assert budget["tokens"]["used"] == result.usage.prompt_tokens + 3
        assert client.whoami()["left"]["rate_limits"][0]["rule"] == "r"
        editor.reload(budgets=[{"name": "b", "tokens": 2000, "window": "lifetime"}])
        (budget,) = client.budgets()
        assert budget["tokens"]["limit"] == 2000
        assert budget["tokens"]["used"] > 0, "what was used counts under the new limit"
        with pytest.raises(NotFound):
            client.generate("x", model="chat")
    assert editor.row()["worker_pid"] == pid


def test_rights_change_on_open_connections(editor: Editor) -> None:
    def with_role(*operations: str) -> dict[str, Any]:
        return {"roles": {"own": {"operations": list(operations)}}, "socket_group": None}

    editor.reload(security=with_role("ping", "whoami"))
    with editor.client() as admin:
        secret = admin.create_key("k", role="own")["secret"]
    with RawClient(editor.daemon.socket, hello=False) as caller:
        caller.send(Hello(version=1, client="test", key=secret))
        caller.next()
        caller.request(1, "ping")
        assert isinstance(caller.next_of_any(Done, Error), Done)
        editor.reload(security=with_role("whoami"))
        caller.request(2, "ping")
        refused = caller.next_of_any(Done, Error)
        assert isinstance(refused, Error)
        assert refused.code == "denied"
        editor.reload()
        caller.request(3, "whoami")
        refused = caller.next_of_any(Done, Error)
        assert isinstance(refused, Error)
        assert "its role is nobody" in refused.message


def test_what_needs_a_restart_is_said_by_name(editor: Editor) -> None:
    answer = editor.reload(logging={"file": str(editor.daemon.folder / "f"), "level": "debug"})
    assert answer["warnings"] == ["logging.file takes effect when the daemon is started again"]
    assert not (editor.daemon.folder / "f").exists()


def test_sighup_does_the_same_and_tells_the_log(editor: Editor) -> None:
    editor.write(aliases={"signalled": "m"})
    editor.daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: editor.row()["aliases"] == ["signalled"], what="the alias")
    editor.write(aliases={"signalled": "nobody"})
    editor.daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "'nobody', which is no model" in editor.daemon.log(), what="the mistake")
    assert editor.row()["aliases"] == ["signalled"]


def test_the_old_file_is_replaced_by_another_of_the_same_name(editor: Editor) -> None:
    """The path is the same; what it leads to is not."""
    link = editor.daemon.folder / "model.gguf"
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.write_bytes(smollm2_path().read_bytes())
    models = {"m": {**MODEL, "path": str(link)}}
    editor.reload(models=models)
    editor.wait_settled()
    pid = editor.row()["worker_pid"]
    assert editor.reload(models=models)["changed"] == []
    os.utime(link, (1, 1))
    assert editor.reload(models=models)["changed"] == ["m"]
    wait_until(lambda: editor.row()["worker_pid"] not in (None, pid), what="another worker")


def test_what_a_reload_cannot_read_again_of_the_command_line(
    folder: Path, models: ModelLibrary
) -> None:
    file = folder / "state" / "models" / "m.gguf"
    file.parent.mkdir(parents=True)
    file.symlink_to(models.tiny("full"))
    with (
        running_daemon("--models", "m", folder=folder) as daemon,
        Client(daemon.wait_ready().socket, retries=0) as client,
    ):
        file.unlink()
        with pytest.raises(InvalidRequest, match="--models: m: no file") as refusal:
            client.reload()
    assert "put the file there, or start the daemon again" in refusal.value.hint
