"""The way from the daemon to `openclawd-fetch`, which gets, checks, copies and removes models.

Owns where the helper is and how it is started when systemd does not. One connection is one request;
closing it ends the helper, whatever it does. What the helper says is checked like anybody's bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import Internal, Unavailable, problem_from_wire
from openclawctl.wire.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from openclawctl.wire.errors import Problem

END_TIMEOUT_S: Final = 5.0
"""How long a helper that we started may take to end once its socket is closed."""

_MESSAGE_BYTES: Final = 64 * 1024
_KEPT_VARIABLES: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "JOURNAL_STREAM", "PYTHONPATH"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"),
    *("NO_PROXY", "no_proxy"),
)
"""What of our environment the helper gets: no credentials but those of a proxy."""

logger = logging.getLogger(__name__)


class Fetcher:
    """Asks the helper behind the socket at `path`, or one of our own where there is none.
    `arguments` are for that: its folders and what it may do."""

    def __init__(self, path: Path, arguments: Sequence[str]) -> None:
        self._path = path
        self._arguments = arguments

    async def ask(
        self,
        request: dict[str, Any],
        on_progress: Callable[[str, int, int | None], object],
    ) -> dict[str, Any]:
        """One request to its result. `on_progress` is told a file, its bytes so far, and of how
        many if that is known. Raises `Problem`."""
        async with contextlib.AsyncExitStack() as stack:
            sock = await self._open(stack)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, json.dumps(request).encode())
            while data := await _receive(sock):
                reply = _reply(data)
                if reply is None:
                    raise Internal("openclawd-fetch said something that is no reply")
                kind, fields = reply
                if kind == "done":
                    return fields.mapping("result")
                if kind == "error":
                    raise _problem(fields)
                if kind == "progress":
                    total = fields.integer_or_none("total_bytes", low=0)
                    on_progress(fields.text("file"), fields.integer("bytes", low=0), total)
        raise Unavailable(
            "openclawd-fetch ended without an answer",
            hint="see the log; what came so far is kept, and the same command goes on from there",
        )

    async def _open(self, stack: contextlib.AsyncExitStack) -> socket.socket:
        try:
            if self._path.is_socket():
                return await self._connect(stack)
            return await self._start(stack)
        except OSError as error:
            raise Unavailable(
                f"openclawd-fetch cannot be reached: {error.strerror}",
                hint=f"check openclawd-fetch.socket, if systemd is to start it ({self._path})",
            ) from None

    async def _connect(self, stack: contextlib.AsyncExitStack) -> socket.socket:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sock.settimeout(0)
        await asyncio.get_running_loop().sock_connect(sock, str(self._path))
        return sock

    async def _start(self, stack: contextlib.AsyncExitStack) -> socket.socket:
        """A helper that ends with our end of the pair."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as on_failure:
            on_failure.callback(ours.close)
            ours.settimeout(0)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "openclawd.fetch", "--fd", str(theirs.fileno()), *self._arguments),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                start_new_session=True,  # Ctrl-C on a terminal is for the daemon
            )
            on_failure.pop_all()
        stack.push_async_callback(_wait_end, process)
        return stack.enter_context(ours)  # closed before that is waited for


async def _wait_end(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


async def _receive(sock: socket.socket) -> bytes:
    """Empty when the helper has gone."""
    try:
        return await asyncio.get_running_loop().sock_recv(sock, _MESSAGE_BYTES)
    except OSError:
        return b""


def _reply(data: bytes) -> tuple[str, Fields] | None:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict):
        return None
    fields = Fields(message, where="openclawd-fetch", error=Internal)
    return fields.text("type"), fields


def _problem(fields: Fields) -> Problem:
    return problem_from_wire(
        code=fields.text("code"),
        kind=fields.text("kind"),
        message=fields.text("message"),
        hint=fields.text("hint"),
        retry_after_s=fields.number_or_none("retry_after_s", low=0, high=1e9),
    )
