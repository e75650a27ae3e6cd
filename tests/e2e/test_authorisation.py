"""A real daemon and callers of real other users: every operation with every role, whose rows and
models they see, keys from their making to their end, and that no key is left lying about."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import re
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest
from callers import NOBODY, Caller, connect_as, needs_root
from harness import running_daemon, short_folder, wait_until

from openclawctl import Client, Denied, InvalidRequest, NotFound
from openclawctl.wire.messages import Done, Error, Welcome
from openclawctl.wire.operations import Op
from openclawd.ledger import Ledger, Outcome, Reservation, Settlement

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Daemon

pytestmark = needs_root

UIDS = {"nobody": 64000, "reader": 64001, "user": 64002, "operator": 64003, "admin": 64004}
AUDITOR, BY_GROUP = 64005, 64006
GROUP = 64100

CONFIG = """
models:
  mine-1: {path: /nonexistent/mine.gguf}
  theirs: {path: /nonexistent/theirs.gguf}
aliases: {alias: theirs}
default_model: mine-1
security:
  users:
    "64001": {role: reader, models: ["mine-*"]}
    "64002": {role: user, models: ["mine-*"]}
    "64003": {role: operator, models: ["mine-*"]}
    "64004": {role: admin}
    "64005": {role: auditor}
  groups: {"64100": {role: user}}
  roles: {auditor: {operations: [usage, whoami], models: [], everybody: true}}
  socket_group: %s
"""

LEAST = {
    "ping": "reader",
    "status": "reader",
    "models": "reader",
    "usage": "reader",
    "whoami": "reader",
    "budgets": "reader",
    "generate": "user",
    "chat": "user",
    "embed": "user",
    "classify": "user",
    "rerank": "user",
    "requests.cancel": "user",
    "tokenize": "user",
    "detokenize": "user",
    "load": "operator",
    "unload": "operator",
    "pull": "operator",
    "models.remove": "operator",
    "models.verify": "operator",
    "reload": "operator",
    "drain": "operator",
    "resume": "operator",
    "keys.create": "admin",
    "keys.list": "admin",
    "keys.show": "admin",
    "keys.rotate": "admin",
    "keys.revoke": "admin",
    "usage.rows": "reader",
    "insights": "reader",
    "show": "reader",
    "watch": "reader",
    "ledger.check": "admin",
    "ledger.prune": "admin",
    "ledger.backup": "admin",
    "audit": "admin",
    "audit.verify": "admin",
}
"""Who may do what, written out once more. Nothing here asks the table of the code."""

COMPUTING = ["generate", "chat", "embed", "classify", "rerank", "tokenize", "detokenize"]

PARAMS: dict[str, dict[str, object]] = {
    "generate": {"prompt": "x"},
    "chat": {"messages": [{"role": "user", "content": "x"}]},
    "embed": {"input": ["x"]},
    "classify": {"input": ["x"]},
    "rerank": {"query": "x", "documents": ["x"]},
    "tokenize": {"text": "x"},
    "watch": {"num_updates": 1},
    "requests.cancel": {"request_id": "none"},
    "pull": {"source": "none", "name": "mine-2"},
    "models.remove": {"model": "mine-2"},
    "models.verify": {"model": "mine-2"},
    "keys.create": {"name": "none", "role": "none"},
    "keys.show": {"name": "none"},
    "keys.rotate": {"name": "none"},
    "keys.revoke": {"name": "none"},
}
"""What gets past the check and then no further: no model here has a file, no key this name."""


async def _write_rows(path: Path) -> None:
    async with Ledger.open(path, node="here") as ledger:
        for number, uid in enumerate((64001, 64002, 64002)):
            request_id = f"r{number}"
            row = Reservation(
                request_id=request_id,
                principal=f"user:{uid}",
                model="mine-1",
                op="chat",
                arrived_at=time.time() - 60,
                prompt_tokens=10,
                reserved_tokens=20,
            )
            end = Settlement(
                request_id=request_id, outcome=Outcome.DONE, tokens={"prompt": 10, "completion": 1}
            )
            await ledger.record(row, end)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Daemon]:
    """A daemon whose users are the ids above; its ledger has rows of two of them."""
    with short_folder() as folder:
        folder.chmod(0o755)
        config = folder / "c.yaml"
        config.write_text(CONFIG % grp.getgrgid(NOBODY).gr_name)
        (folder / "state").mkdir(mode=0o700)
        asyncio.run(_write_rows(folder / "state" / "ledger.sqlite3"))
        options = ("--config", str(config), "--log-level", "debug")
        with running_daemon(*options, folder=folder) as daemon:
            yield daemon.wait_ready()


def caller(daemon: Daemon, uid: int, *groups: int, key: str | None = None) -> Caller:
    return Caller(connect_as(daemon.socket, uid, NOBODY, groups), key=key)


@pytest.fixture
def admin(guarded: Daemon) -> Iterator[Client]:
    with Client(guarded.socket, retries=0) as client:
        yield client


# ---- roles ----


def test_the_table_is_complete() -> None:
    assert set(LEAST) == {op.value for op in Op}


@pytest.mark.parametrize("role", ["reader", "user", "operator", "admin"])
def test_every_operation_with_every_role(guarded: Daemon, role: str) -> None:
    order = list(UIDS)
    with caller(guarded, UIDS[role]) as client:
        assert isinstance(client.first, Welcome)
        answers = {name: client.ask(name, **PARAMS.get(name, {})) for name in LEAST}
        me = client.ask("whoami")
    denied = {name for name, end in answers.items() if getattr(end, "code", "") == "denied"}
    assert denied == {n for n, least in LEAST.items() if order.index(role) < order.index(least)}
    assert isinstance(me, Done)
    assert set(me.result["operations"]) == set(LEAST) - denied
    assert (me.result["role"], me.result["groups"]) == (role, [grp.getgrgid(NOBODY).gr_name])


def test_who_is_named_nowhere_reaches_nothing(guarded: Daemon) -> None:
    with caller(guarded, UIDS["nobody"]) as client:
        assert isinstance(client.first, Error)
        assert (client.first.code, client.first.id) == ("denied", None)
        assert "64000 may not use this daemon" in client.first.message
        assert client.next() is None


def test_without_any_key_a_stranger_is_refused_before_it_says_anything(folder: Path) -> None:
    folder.chmod(0o755)
    config = folder / "c.yaml"
    config.write_text(f"security: {{socket_group: {grp.getgrgid(NOBODY).gr_name}}}\n")
    with running_daemon("--config", str(config), folder=folder) as daemon:
        daemon.wait_ready()
        with connect_as(daemon.socket, UIDS["nobody"], NOBODY) as sock:
            sock.settimeout(30)
            assert b"may not use this daemon" in sock.recv(65536)


def test_a_group_that_only_the_kernel_knows_of_lets_its_members_in(guarded: Daemon) -> None:
    with caller(guarded, BY_GROUP, 1, GROUP, 2) as client:
        me = client.ask("whoami")
    assert isinstance(me, Done)
    assert (me.result["principal"], me.result["role"]) == (f"user:{BY_GROUP}", "user")
    with caller(guarded, BY_GROUP, 1, 2) as client:
        assert isinstance(client.first, Error)


def test_an_own_role_has_its_operations_and_no_other(guarded: Daemon) -> None:
    with caller(guarded, AUDITOR) as client:
        answers = {name: client.ask(name, **PARAMS.get(name, {})) for name in LEAST}
    allowed = {name for name, end in answers.items() if isinstance(end, Done)}
    assert allowed == {"usage", "whoami"}
    assert {end.code for end in answers.values() if isinstance(end, Error)} == {"denied"}


# ---- own and foreign ----


@pytest.mark.parametrize(
    ("uid", "keys", "num_requests"),
    [
        (UIDS["reader"], {"user:64001"}, 1),
        (UIDS["user"], {"user:64002"}, 2),
        (UIDS["operator"], {"user:64001", "user:64002"}, 3),
        (UIDS["admin"], {"user:64001", "user:64002"}, 3),
        (AUDITOR, {"user:64001", "user:64002"}, 3),
        (BY_GROUP, set(), 0),
    ],
)
def test_whose_usage_is_shown(guarded: Daemon, uid: int, keys: set[str], num_requests: int) -> None:
    with caller(guarded, uid, GROUP) as client:
        end = client.ask("usage", by="principal")
    assert isinstance(end, Done)
    assert {row["key"] for row in end.result["rows"]} == keys
    assert end.result["total"]["requests"] == num_requests


@pytest.mark.parametrize("op", COMPUTING)
def test_a_foreign_model_is_refused_whether_or_not_it_exists(guarded: Daemon, op: str) -> None:
    with caller(guarded, UIDS["user"]) as client:
        for model in ("theirs", "alias", "nonesuch", "../theirs"):
            end = client.ask(op, model=model, **PARAMS.get(op, {}))
            assert isinstance(end, Error)
            assert end.code == "denied"
            assert "may not use the model" in end.message
        for model in ("mine-1", "mine-2", None):
            end = client.ask(op, model=model, **PARAMS.get(op, {}))
            assert isinstance(end, Error)
            assert end.code in ("model-failed", "not-found")
            assert "theirs" not in f"{end.message} {end.hint}"


def test_insights_of_a_foreign_model_are_those_of_none(guarded: Daemon) -> None:
    with caller(guarded, UIDS["user"]) as client:
        for model in ("theirs", "alias", "nonesuch"):
            end = client.ask("insights", model=model)
            assert isinstance(end, Error)
            assert (end.code, end.message) == ("not-found", f"there is no model {model!r}")
        assert isinstance(client.ask("insights", model="mine-1"), Done)


@pytest.mark.parametrize("op", ["load", "unload"])
def test_operators_load_their_own_models_only(guarded: Daemon, op: str) -> None:
    with caller(guarded, UIDS["operator"]) as client:
        end = client.ask(op, model="theirs")
    assert isinstance(end, Error)
    assert end.code == "denied"


def test_whose_models_are_shown(guarded: Daemon) -> None:
    for role, names in (("user", ["mine-1"]), ("operator", ["mine-1", "theirs"])):
        with caller(guarded, UIDS[role]) as client:
            for op in ("models", "status"):
                end = client.ask(op)
                assert isinstance(end, Done)
                assert [row["name"] for row in end.result["models"]] == names
            me = client.ask("whoami")
        assert isinstance(me, Done)
        assert me.result["models"] == ["mine-1"]


# ---- keys ----


def test_a_key_from_its_making_to_its_end(guarded: Daemon, admin: Client) -> None:
    made = admin.create_key("life", role="user", models="mine-*", expires="90d")
    secret = made.pop("secret")
    assert re.fullmatch(r"ocl_[a-z2-7]{8}_[A-Za-z0-9_-]{43}", secret)
    assert made["prefixes"] == [secret[:12]]
    assert (made["state"], made["created_by"]) == ("valid", "user:root")
    assert made["expires_at"] - made["created_at"] == 90 * 86_400
    assert admin.show_key("life") == made
    assert made in admin.list_keys()
    with caller(guarded, UIDS["nobody"], key=secret) as client:
        assert isinstance(client.first, Welcome)
        assert client.first.principal == "key:life"
        me = client.ask("whoami")
        assert isinstance(me, Done)
        assert me.result["key"] == {
            "name": "life",
            "prefix": secret[:12],
            "expires_at": made["expires_at"],
        }
        assert (me.result["role"], me.result["groups"]) == ("user", [])
        assert admin.show_key("life")["last_used_at"] is not None
        rotated = admin.rotate_key("life", overlap=60)
        assert len(rotated["prefixes"]) == 2
        assert isinstance(client.ask("ping"), Done)  # the old one still is good
        admin.rotate_key("life", overlap=0)
        end = client.ask("ping")
        assert isinstance(end, Error)
        assert (end.code, "replaced by a newer one" in end.message) == ("denied", True)
    newest = admin.rotate_key("life", overlap=0)["secret"]
    with caller(guarded, UIDS["admin"], key=newest) as client:
        assert isinstance(client.first, Welcome)
        assert isinstance(client.ask("load"), Error)  # the key's role counts, not the user's
        assert admin.revoke_key("life")["state"] == "revoked"
        end = client.ask("ping")
        assert isinstance(end, Error)
        assert "'life' was revoked" in end.message
    with caller(guarded, UIDS["admin"], key=newest) as client:
        assert isinstance(client.first, Error)
        assert "'life' was revoked" in client.first.message


def test_a_wrong_key_is_not_saved_by_who_sends_it(guarded: Daemon, admin: Client) -> None:
    secret = admin.create_key("wrong", role="user")["secret"]
    flipped = secret[:-2] + ("AA" if not secret.endswith("AA") else "BB")
    for text in (flipped, "", "ocl_aaaaaaaa_" + "A" * 43, "no key at all"):
        with caller(guarded, UIDS["admin"], key=text) as client:
            assert isinstance(client.first, Error)
            assert client.first.message == "the API key is not accepted"
            assert client.first.code == "denied"


def test_keys_survive_a_restart_and_what_is_refused(admin: Client) -> None:
    admin.create_key("taken", role="reader")
    with pytest.raises(InvalidRequest, match="there is an API key 'taken' already"):
        admin.create_key("taken", role="reader")
    with pytest.raises(InvalidRequest, match="no role 'usr'; did you mean 'user'"):
        admin.create_key("other", role="usr")
    with pytest.raises(InvalidRequest, match="no tier 'platin'"):
        admin.create_key("other", role="user", tier="platin")
    with pytest.raises(NotFound, match="no API key 'takn'; did you mean 'taken'"):
        admin.show_key("takn")
    admin.revoke_key("taken")
    with pytest.raises(InvalidRequest, match="was revoked, and that is for good"):
        admin.rotate_key("taken")


def test_keys_are_there_after_a_restart(folder: Path) -> None:
    with running_daemon(folder=folder) as daemon:
        daemon.wait_ready()
        with Client(daemon.socket) as client:
            secret = client.create_key("kept", role="operator")["secret"]
            gone = client.create_key("gone", role="operator")["secret"]
            client.revoke_key("gone")
            before = client.list_keys()
        daemon.kill()
    with running_daemon(folder=folder) as daemon:
        daemon.wait_ready()
        (folder / "k").write_text(secret + "\n")
        with Client(daemon.socket) as client, Client(daemon.socket, api_key_file=folder / "k") as k:
            assert client.list_keys() == before
            assert k.whoami()["principal"] == "key:kept"
            with pytest.raises(Denied, match="role is operator"):
                k.list_keys()
        (folder / "k").write_text(gone)
        with (
            Client(daemon.socket, api_key_file=folder / "k") as k,
            pytest.raises(Denied, match="was revoked"),
        ):
            k.ping()


# ---- secrecy ----


def test_no_key_is_left_lying_about(guarded: Daemon, admin: Client, folder: Path) -> None:
    """At debug level, after a good one, a wrong one, a rotation, a request that fails."""
    out = folder / "ci.key"
    env = {**os.environ, "OPENCLAWD_SOCKET": str(guarded.socket)}
    program = [sys.executable, "-m", "openclawctl"]
    command = [*program, "keys", "create", "--name", "ci", "--role", "user", "--out", str(out)]
    made = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    secret = out.read_text().strip()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    again = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
    assert out.read_text().strip() == secret
    newer = admin.rotate_key("ci")["secret"]
    errors = [again.stderr, made.stdout, made.stderr, json.dumps(admin.list_keys())]
    for key in (secret, newer, secret[:-1], newer + "x"):
        with caller(guarded, UIDS["nobody"], key=key) as client:
            if isinstance(client.first, Welcome):
                errors += map(repr, (client.ask("load"), client.ask("generate", prompt=1)))
            errors.append(repr(client.first))
    named = [*program, "--api-key-file", str(out)]
    with Client(guarded.socket, api_key_file=out) as client:
        client.ping()
        command_lines = "\n".join(
            " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
        )
    subprocess.run([*named, "ping"], env=env, check=True, capture_output=True, timeout=60)
    wait_until(lambda: "made the API key ci" in guarded.log(), what="the log")
    stored = b"".join(p.read_bytes() for p in guarded.state_dir.rglob("*") if p.is_file())
    assert secret[:12].encode() in stored
    for hidden in (secret[13:], newer[13:]):
        assert hidden not in guarded.log()
        assert hidden not in "\n".join(errors)
        assert hidden not in command_lines
        assert hidden.encode() not in stored


def test_the_daemon_leaves_no_core_file(folder: Path) -> None:
    """Not even when its limit is raised from outside, as a piped `core_pattern` ignores it."""
    with running_daemon(folder=folder) as daemon:
        daemon.wait_ready()
        assert resource.prlimit(daemon.pid, resource.RLIMIT_CORE) == (0, 0)
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        with contextlib.suppress(PermissionError):  # not even root may, in some containers
            resource.prlimit(daemon.pid, resource.RLIMIT_CORE, unlimited)
        daemon.process.send_signal(signal.SIGABRT)
        _, status = os.waitpid(daemon.pid, 0)
        daemon.process.returncode = -signal.SIGABRT  # `waitpid` took what it would have seen
        assert os.WIFSIGNALED(status)
        assert not os.WCOREDUMP(status)


@pytest.mark.parametrize(
    "function",
    [
        "from openclawd.daemon import _keep_memory_private as keep",
        "from openclawctl.cli.secrecy import keep_memory_private as keep",
    ],
)
def test_who_holds_a_key_cannot_be_looked_into(function: str) -> None:
    program = f"""
import ctypes, resource
{function}
before = ctypes.CDLL(None).prctl(3)  # PR_GET_DUMPABLE
keep()
print(before, ctypes.CDLL(None).prctl(3), *resource.getrlimit(resource.RLIMIT_CORE))
"""
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.split() == ["1", "0", "0", "0"]


def test_the_command_line_shuts_itself_up_when_it_holds_a_key(
    guarded: Daemon, folder: Path
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("no core file could be written in any case")
    (folder / "k").write_text("ocl_some_key")
    command = [sys.executable, "-m", "openclawctl", "--api-key-file", str(folder / "k"), "chat"]
    env = {**os.environ, "OPENCLAWD_SOCKET": str(guarded.socket)}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE) as process:  # it waits for input
        wait_until(
            lambda: resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0),
            what="the limit of core files",
        )
        process.kill()


# ---- requests that run ----


def test_a_revoked_key_ends_what_runs_by_it(own_daemon: Daemon, folder: Path) -> None:
    with Client(own_daemon.socket) as admin:
        secret = admin.create_key("runner", role="user")["secret"]
        (folder / "k").write_text(secret)
        with Client(own_daemon.socket, api_key_file=folder / "k", app="nightly") as client:
            options = {"max_tokens": 1000, "ignore_eos": True, "session": "job 7"}
            with client.generate("Once upon a time", stream=True, **options) as stream:
                next(stream)
                admin.revoke_key("runner")
                with pytest.raises(Denied, match="'runner' was revoked"):
                    list(stream)
        assert [row["key"] for row in admin.usage(by="principal")["rows"]] == ["key:runner"]
        admin.generate("x", max_tokens=1, app="billing", session="s1")
    own_daemon.terminate()
    with contextlib.closing(sqlite3.connect(own_daemon.state_dir / "ledger.sqlite3")) as ledger:
        rows = ledger.execute("SELECT principal, app, session FROM requests ORDER BY arrived_at")
        assert rows.fetchall() == [
            ("key:runner", "nightly", "job 7"),
            ("user:root", "billing", "s1"),
        ]


# ---- the socket ----


def test_the_socket_is_its_groups_and_nobody_elses(guarded: Daemon) -> None:
    status = guarded.socket.stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == NOBODY
    with pytest.raises(subprocess.CalledProcessError):
        connect_as(guarded.socket, 64001, 64001)


def test_a_group_that_does_not_exist_stops_the_start(folder: Path) -> None:
    (folder / "c.yaml").write_text("security: {socket_group: no-such-group}\n")
    with running_daemon("--config", str(folder / "c.yaml"), folder=folder) as daemon:
        assert daemon.process.wait(30) == 1
        assert "there is no group 'no-such-group'" in daemon.log()
        assert "groupadd --system no-such-group" in daemon.log()
