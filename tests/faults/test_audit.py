"""The audit of a real daemon: what it writes, and that it verifies whatever happened to it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest
from harness import running_daemon, smollm2_argument, wait_until

from openclawctl import Client, LimitExceeded, OpenclawError, cli

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Daemon


def rows_of(client: Client, **wanted: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.audit(**wanted)["rows"]
    return rows


def told_heads(daemon: Daemon) -> list[str]:
    """What a journal would have of the chain's ends."""
    lines = [json.loads(line) for line in daemon.log().splitlines() if line.startswith("{")]
    return [line["head"] for line in lines if "head" in line]


def test_who_did_and_was_refused_what(folder: Path) -> None:
    with running_daemon(*smollm2_argument(), folder=folder) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket), app="crm", retries=0) as client:
            client.load("smollm2")
            answer = client.generate("a", max_tokens=2, ignore_eos=True, app="night")
            for _ in range(3):
                with pytest.raises(LimitExceeded):
                    client.generate("b", n=256)
            with pytest.raises(OpenclawError):  # refused on exact counts: it has its own row
                client.generate("a secret", max_tokens=100_000)
            with pytest.raises(OpenclawError):
                client.load("none")  # no refusal, a mistake
            client.unload("smollm2")
            client.generate("c", max_tokens=1)  # it is loaded again for this
        assert daemon.terminate() == 0
    with running_daemon(folder=folder) as daemon:
        daemon.wait_ready()
        with Client(socket_path=str(daemon.socket)) as client:
            rows = rows_of(client)
            assert client.audit_verify()["valid"]
    actions = [row["action"] for row in rows]
    assert actions[:4] == ["start", "config", "load", "generate"]
    assert actions[-7:-4] == ["unload", "load", "generate"]
    assert (rows[-6]["app"], rows[-6]["detail"]) == ("crm", {"for": "generate"})
    assert actions[-4:] == ["refused", "stop", "start", "config"]
    load, generate = rows[2:4]
    assert (load["model"], load["app"], load["code"]) == ("smollm2", "crm", "")
    assert load["uid"] is not None
    assert load["pid"]
    assert generate["request_id"] == answer.request_id
    assert (generate["app"], generate["code"]) == ("night", "length")
    usage = answer.usage
    assert generate["tokens"] == usage.prompt_tokens + usage.completion_tokens
    (failed,) = [row for row in rows if row["action"] == "generate" and row["code"] != "length"]
    (refused,) = [row for row in rows if row["action"] == "refused"]
    assert refused["code"] == failed["code"] == "limit-exceeded"
    assert refused["detail"]["count"] == 3
    assert refused["detail"]["operations"] == {"generate": 3}
    assert "secret" not in str(rows)
    assert rows[1]["detail"]["sha256"]


def test_sigkill_under_load_leaves_a_chain_that_verifies(folder: Path) -> None:
    answered = 0
    with running_daemon(*smollm2_argument(), folder=folder) as daemon:
        daemon.wait_ready()

        def ask() -> None:
            nonlocal answered
            with (
                contextlib.suppress(OpenclawError),
                Client(socket_path=str(daemon.socket), retries=0) as client,
            ):
                while True:
                    client.load("smollm2")
                    answered += 1

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: answered >= 1500 and told_heads(daemon), what="1,500 rows")
        daemon.kill()
        for thread in threads:
            thread.join(30)
        heads = told_heads(daemon)
    assert heads  # a thousand rows have passed
    with running_daemon(folder=folder) as again:
        again.wait_ready()
        with Client(socket_path=str(again.socket)) as client:
            for head in heads:
                verdict = client.audit_verify(head=head)
                assert verdict["valid"], verdict
            assert len(rows_of(client, action="load", limit=2000)) >= 1000


def test_rows_that_were_cut_while_the_daemon_was_down(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_daemon(folder=folder) as daemon:
        daemon.wait_ready()
        assert daemon.terminate() == 0
    database = sqlite3.connect(folder / "state" / "ledger.sqlite3")
    database.execute("DROP TRIGGER audit_is_not_cut")
    database.execute("DELETE FROM audit WHERE action = 'stop'")
    database.commit()
    database.close()
    with running_daemon(folder=folder) as again:
        again.wait_ready()
        story = "but was left with row 3 as its last"
        wait_until(lambda: story in again.log(), what="the warning")
        arguments = ["--socket", str(again.socket), "audit"]
        assert cli.run([*arguments, "verify"]) == 1
        assert capsys.readouterr().out == "row 3: row 3 is missing\n"
        assert cli.run([*arguments, "--action", "start"]) == 0
        assert "was left with row 3" in capsys.readouterr().out
