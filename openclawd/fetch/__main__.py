"""`openclawd-fetch`: serves one request of the daemon on a socket, then ends.

The socket is systemd's (`ListenSequentialPacket=` with `Accept=yes`, sd_listen_fds(3)), or one end
of a pair whose other end the daemon has (`--fd`). When the daemon closes its end, nobody wants the
answer any more, and the process ends at once, whatever it was doing: everything it does can be cut
off anywhere.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import Internal, Problem
from openclawd.arguments import OptionParser
from openclawd.fetch.messages import MAX_MESSAGE_BYTES, decode_request, encode
from openclawd.fetch.service import Service, Settings
from openclawd.fetch.transport import SILENCE_S
from openclawd.sidecar import passed_descriptor, start_logging

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

_PROGRESS_S: Final = 0.2
"""At most five progress messages a second."""

_TOKEN_CREDENTIAL: Final = "hub-token"
_MAX_TOKEN_CHARS: Final = 4096

logger = logging.getLogger("openclawd.fetch")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 served, 1 a bug, 2 there is no socket or a setting is wrong."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    start_logging("openclawd-fetch")
    # httpx tells the whole address of every request, with what may be secret in it.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    descriptor = arguments.fd if arguments.fd is not None else passed_descriptor(os.environ)
    if descriptor is None:
        parser.error("no socket was passed: enable openclawd-fetch.socket, or let openclawd start")
    try:
        settings = Settings(
            models_folder=arguments.models_dir,
            copies_folder=arguments.copy_dir,
            token=_token(arguments.token_file, os.environ),
            allows_loopback_http=arguments.allow_loopback_http,
            silence_s=arguments.silence,
            first_pause_s=arguments.first_pause,
        )
    except OSError as error:
        parser.error(f"the token cannot be read: {error.filename}: {error.strerror}")
    with socket.socket(fileno=descriptor) as sock:
        return _serve(_Connection(sock), settings)


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="openclawd-fetch",
        description="Fetch models for openclawd. Started by systemd or by it.",
    )
    add = parser.add_argument
    add("--fd", type=int, metavar="N", help="the socket, inherited")
    add("--models-dir", type=Path, required=True, metavar="DIR", help="where models are kept")
    add("--copy-dir", type=Path, metavar="DIR", help="where they may be copied to")
    add("--token-file", type=Path, metavar="FILE", help="the hub's token, for models with a login")
    add(
        "--allow-loopback-http",
        action="store_true",
        help="take http from this machine, too (for tests)",
    )
    add("--silence", type=float, default=SILENCE_S, metavar="SECONDS", help="default: 30")
    add("--first-pause", type=float, default=1.0, metavar="SECONDS", help="default: 1")
    return parser


def _token(file: Path | None, environ: Mapping[str, str]) -> str | None:
    """From the file that was named, or the credential that systemd passes. Raises `OSError`."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if file is None and folder is not None:
        credential = Path(folder) / _TOKEN_CREDENTIAL
        file = credential if credential.exists() else None
    return file.read_text()[:_MAX_TOKEN_CHARS].strip() or None if file is not None else None


class _Connection:
    """Our end of the socket. Progress that the daemon does not take in time is left out."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._next_progress_s = 0.0

    def receive(self) -> bytes:
        return self._socket.recv(MAX_MESSAGE_BYTES)

    def end_with_the_daemon(self) -> None:
        """End the process when the other end is closed. Nothing else comes after the request."""

        def wait() -> None:
            try:
                while self._socket.recv(MAX_MESSAGE_BYTES):
                    pass
            except OSError:  # the other end is gone, or we are at our own end
                pass
            os._exit(0)

        threading.Thread(target=wait, name="watch", daemon=True).start()

    def progress(self, file: str, done: int, total: int | None) -> None:
        now_s = time.monotonic()
        if now_s < self._next_progress_s and done != total:
            return
        self._next_progress_s = now_s + _PROGRESS_S
        message = encode("progress", file=file, bytes=done, total_bytes=total)
        try:
            self._socket.send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except OSError:
            os._exit(0)

    def send(self, kind: str, /, **fields: Any) -> None:
        self._socket.send(encode(kind, **fields))


def _serve(connection: _Connection, settings: Settings) -> int:
    data = connection.receive()
    if not data:
        return 0
    connection.end_with_the_daemon()
    try:
        result = Service(settings, connection.progress).serve(decode_request(data))
        connection.send("done", result=result)
    except Problem as problem:
        logger.warning("%s", problem)
        connection.send("error", **problem.as_dict())
    except BrokenPipeError:
        return 0
    except Exception:
        logger.exception("a request failed on a bug")
        connection.send("error", **Internal("openclawd-fetch failed on a bug").as_dict())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
