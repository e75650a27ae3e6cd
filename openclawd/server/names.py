"""The names of users and groups, looked up without holding the loop up.

A directory service (LDAP, SSSD) may take seconds for a name, or never answer. So names come from a
cache, and what is not in it is looked up by a thread that belongs to nobody else: one that hangs
holds up new faces alone, not those who were here before and not the disk.

Invariants: `known` never waits; a name that was there and is old is given out while it is looked up
anew; an id without a name stands for itself, and is asked for again soon, since users are made.
"""

from __future__ import annotations

import contextlib
import functools
import grp
import pwd
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawd.admission.identity import Caller

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.admission.identity import Credentials

    Post = Callable[[Callable[[], object]], object]
    OnFound = Callable[[Caller], object]

FRESH_S: Final = 300.0
"""How long a name is believed. Renaming a user takes effect after that at the latest."""

NAMELESS_S: Final = 10.0
"""How long it is believed that an id has no name."""

_MAX_CACHED: Final = 20_000
"""Names that are kept of each kind: a large site's users. Past that the cache starts anew."""


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    has_name: bool
    at_s: float

    def age_s(self) -> float:
        return time.monotonic() - self.at_s


class _Cache:
    """Names by id of one kind. The thread writes, the loop reads."""

    def __init__(self, look_up: Callable[[int], str]) -> None:
        self._look_up = look_up
        self._found: dict[int, _Found] = {}

    def get(self, number: int) -> _Found | None:
        """What is known of an id; None when it has to be looked up first."""
        found = self._found.get(number)
        if found is None or (not found.has_name and found.age_s() > NAMELESS_S):
            return None
        return found

    def fill(self, number: int) -> str:
        """The name, looked up unless it is fresh. Blocks."""
        found = self.get(number)
        if found is not None and found.age_s() <= FRESH_S:
            return found.name
        try:
            name, has_name = self._look_up(number), True
        except KeyError:  # also when the directory cannot be reached
            name, has_name = str(number), False
        if len(self._found) >= _MAX_CACHED:
            self._found.clear()
        self._found[number] = _Found(name, has_name, time.monotonic())
        return name


class Names:
    """Names of callers. `post` runs a callable on the loop, from any thread."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._users = _Cache(lambda uid: pwd.getpwuid(uid).pw_name)
        self._groups = _Cache(lambda gid: grp.getgrgid(gid).gr_name)
        self._asked: queue.SimpleQueue[tuple[Credentials, OnFound] | None] = queue.SimpleQueue()
        self._refreshing: set[int] = set()
        # A daemon thread: one that hangs in a directory service does not keep the process.
        self._thread = threading.Thread(target=self._run, name="names", daemon=True)
        self._thread.start()

    def known(self, credentials: Credentials) -> Caller | None:
        """The caller with names, if all are known. Never waits."""
        user = self._users.get(credentials.uid)
        groups = [(gid, self._groups.get(gid)) for gid in _group_ids(credentials)]
        named = [(gid, found.name) for gid, found in groups if found is not None]
        if user is None or len(named) < len(groups):
            return None
        ages = [user.age_s(), *(found.age_s() for _, found in groups if found is not None)]
        if max(ages) > FRESH_S:
            self._refresh(credentials)
        return Caller(credentials.uid, user.name, tuple(named))

    def look_up(self, credentials: Credentials, on_found: OnFound) -> None:
        """Have the names looked up; `on_found` is called on the loop, if that comes to an end."""
        self._asked.put((credentials, on_found))

    def close(self) -> None:
        """End the thread, unless it hangs."""
        self._asked.put(None)
        self._thread.join(timeout=0.5)

    def _refresh(self, credentials: Credentials) -> None:
        if credentials.uid not in self._refreshing:
            self._refreshing.add(credentials.uid)
            self.look_up(credentials, lambda caller: self._refreshing.discard(caller.uid))

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            credentials, on_found = asked
            caller = self._fill(credentials)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._post(functools.partial(on_found, caller))

    def _fill(self, credentials: Credentials) -> Caller:
        groups = tuple((gid, self._groups.fill(gid)) for gid in _group_ids(credentials))
        return Caller(credentials.uid, self._users.fill(credentials.uid), groups)


def _group_ids(credentials: Credentials) -> list[int]:
    """The primary group and the others, each once."""
    return list(dict.fromkeys([credentials.gid, *credentials.groups]))
