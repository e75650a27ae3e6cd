"""Requests that are open: who sees which, where they stand, and that one can be ended."""

from __future__ import annotations

import grp
from typing import TYPE_CHECKING, Any

import pytest
from callers import NOBODY, Caller, connect_as, needs_root
from harness import running_daemon, short_folder, smollm2_path

from openclawctl import Client, NotFound
from openclawctl.wire.messages import Done, Error, Event, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon

pytestmark = needs_root

ALICE, BOB, AUDITOR = 64002, 64003, 64005

CONFIG = """
models:
  smollm2: {path: %s, parallel: 1, preload: true}
security:
  users:
    "64002": {role: user}
    "64003": {role: user}
    "64005": {role: auditor}
  roles: {auditor: {operations: [status], models: [], everybody: true}}
  socket_group: %s
"""


@pytest.fixture(scope="module")
def guarded() -> Iterator[Daemon]:
    """A daemon that computes one request at a time, for users of these ids."""
    with short_folder() as folder:
        folder.chmod(0o755)
        config = folder / "c.yaml"
        config.write_text(CONFIG % (smollm2_path(), grp.getgrgid(NOBODY).gr_name))
        with running_daemon("--config", str(config), folder=folder) as daemon:
            yield daemon.wait_ready()


@pytest.fixture
def admin(guarded: Daemon) -> Iterator[Client]:
    with Client(guarded.socket, retries=0) as client:
        yield client


def caller(daemon: Daemon, uid: int) -> Caller:
    return Caller(connect_as(daemon.socket, uid, NOBODY), app="job")


def ask(client: Caller, request_id: int, *, until: str) -> Event:
    """Begin a long request, and wait for this event of it."""
    client.request(request_id, "generate", prompt="Once", max_tokens=1000, ignore_eos=True)
    while (event := client.next_of(Event, request_id)).kind != until:
        pass
    return event


def rows(end: Done | Error) -> list[dict[str, Any]]:
    assert isinstance(end, Done)
    found: list[dict[str, Any]] = end.result["requests"]["open"]
    return found


def test_everybody_sees_their_own_and_who_may_all(guarded: Daemon, admin: Client) -> None:
    with caller(guarded, ALICE) as alice, caller(guarded, BOB) as bob:
        started = ask(alice, 101, until="started")
        ask(bob, 101, until="queued")
        ask(alice, 102, until="queued")
        everything = admin.status(requests=True)["requests"]
        (first, second, third), left_out = everything["open"], everything["left_out"]
        with caller(guarded, AUDITOR) as auditor:
            assert len(rows(auditor.ask("status", requests=True))) == 3
        for client, uid, num in ((alice, ALICE, 2), (bob, BOB, 1)):
            own = rows(client.ask("status", requests=True))
            assert [row["principal"] for row in own] == [f"user:{uid}"] * num
        assert "open" not in admin.status()["requests"]
    assert left_out == 0
    assert first["request_id"] == started.data["request_id"]
    assert (first["state"], first["position"], first["max_tokens"]) == ("running", None, 1000)
    assert (first["app"], first["op"], first["model"]) == ("job", "generate", "smollm2")
    assert (second["principal"], second["state"], second["position"]) == ("user:64003", "queued", 1)
    assert (third["principal"], third["state"], third["position"]) == ("user:64002", "queued", 2)
    assert third["prompt_tokens"] == first["prompt_tokens"] > 0
    assert first["age_s"] >= third["age_s"] > 0


def test_whose_requests_may_be_cancelled(guarded: Daemon, admin: Client) -> None:
    with caller(guarded, ALICE) as alice, caller(guarded, BOB) as bob:
        request_id = ask(alice, 101, until="started").data["request_id"]
        ask(bob, 101, until="queued")
        (of_bob,) = rows(bob.ask("status", requests=True))
        for of_another in (request_id, "01a20922-none"):
            end = bob.ask("requests.cancel", request_id=of_another)
            assert isinstance(end, Error)
            assert (end.code, end.message) == (
                "not-found",
                f"there is no open request {of_another!r}",
            )
        cancelled = admin.cancel_request(of_bob["request_id"])
        assert (cancelled["principal"], cancelled["state"]) == ("user:64003", "queued")
        refused = bob.next_of(Error, 101)
        assert (refused.code, refused.message) == (
            "cancelled",
            "the request was cancelled by user:root",
        )
        alice.send(Request(1, "requests.cancel", {"request_id": request_id}))
        ends = {end.id: end for end in (alice.next_of(Done), alice.next_of(Done))}
    assert ends[1].result["state"] == "running"
    (choice,) = ends[101].result["choices"]
    assert choice["finish_reason"] == "cancelled"
    assert 0 < ends[101].result["usage"]["completion_tokens"] < 1000


def test_the_audit_has_who_cancelled_what(guarded: Daemon, admin: Client) -> None:
    with caller(guarded, ALICE) as alice:
        request_id = ask(alice, 101, until="started").data["request_id"]
        admin.cancel_request(request_id)
        alice.next_of(Done, 101)
    (row,) = admin.audit(action="requests.cancel", limit=1)["rows"]
    assert (row["principal"], row["model"]) == ("user:root", "smollm2")
    assert row["detail"] == {"request_id": request_id, "of": "user:64002", "state": "running"}
    with pytest.raises(NotFound, match="no open request"):
        admin.cancel_request(request_id)
