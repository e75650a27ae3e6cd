"""Names of users and groups: from the cache at once, or from a thread."""

from __future__ import annotations

import pwd
import queue
import threading
from typing import TYPE_CHECKING, Any

import pytest

from openclawd.admission.identity import Caller, Credentials
from openclawd.server import names as names_module
from openclawd.server.names import Names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Credentials(uid=0, gid=0, pid=1, groups=(0, 999_999))
EXPECTED = Caller(0, "root", ((0, "root"), (999_999, "999999")))


@pytest.fixture
def posted() -> queue.SimpleQueue[Callable[[], object]]:
    """What the thread gives to the loop."""
    return queue.SimpleQueue()


@pytest.fixture
def names(posted: queue.SimpleQueue[Any]) -> Iterator[Names]:
    made = Names(posted.put)
    yield made
    made.close()


def looked_up(names: Names, posted: queue.SimpleQueue[Any], credentials: Credentials) -> Caller:
    found: list[Caller] = []
    names.look_up(credentials, found.append)
    posted.get(timeout=10)()
    return found[0]


def test_what_is_not_known_is_looked_up_once(
    names: Names, posted: queue.SimpleQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names.known(ROOT) is None
    assert looked_up(names, posted, ROOT) == EXPECTED
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pytest.fail("it is known"))
    assert names.known(ROOT) == EXPECTED
    assert looked_up(names, posted, ROOT) == EXPECTED


def test_a_directory_that_hangs_holds_up_new_faces_only(
    names: Names, posted: queue.SimpleQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is libc's, and no test can slow that down: so here it is this event."""
    looked_up(names, posted, ROOT)
    answers = threading.Event()
    asked = threading.Event()

    def slow(uid: int) -> pwd.struct_passwd:
        asked.set()
        answers.wait(10)
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", slow)
    stranger = Credentials(uid=64001, gid=0, pid=1)
    found: list[Caller] = []
    names.look_up(stranger, found.append)
    assert asked.wait(10)
    assert names.known(stranger) is None
    assert names.known(ROOT) == EXPECTED
    answers.set()
    posted.get(timeout=10)()
    assert found == [Caller(64001, "64001", ((0, "root"),))]


def test_an_old_name_is_given_out_while_a_new_one_is_looked_up(
    names: Names, posted: queue.SimpleQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = Credentials(uid=0, gid=0, pid=1)
    looked_up(names, posted, credentials)
    renamed = pwd.struct_passwd(("toor", "x", 0, 0, "", "/", ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: renamed)
    monkeypatch.setattr(names_module, "FRESH_S", -1.0)
    stale = names.known(credentials)
    assert stale is not None
    assert stale.name == "root"
    posted.get(timeout=10)()
    fresh = names.known(credentials)
    assert fresh is not None
    assert fresh.name == "toor"


def test_an_id_without_a_name_is_asked_for_again(
    names: Names, posted: queue.SimpleQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert looked_up(names, posted, ROOT) == EXPECTED
    assert names.known(ROOT) == EXPECTED
    monkeypatch.setattr(names_module, "NAMELESS_S", -1.0)
    assert names.known(ROOT) is None


def test_it_ends_although_the_loop_has_ended() -> None:
    def ended(_: object) -> None:
        raise RuntimeError("the loop is closed")

    names = Names(ended)
    names.look_up(ROOT, lambda caller: pytest.fail("nobody runs this"))
    names.close()
    assert not any(thread.name == "names" for thread in threading.enumerate())
