"""`openclawd-metrics`: arguments, the listening socket, signals.

The socket is systemd's (`ListenStream=` of a socket unit, sd_listen_fds(3)), or one of our own at a
loopback address. With systemd's it needs no right to any network.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from openclawd.arguments import OptionParser
from openclawd.metrics.relay import Relay
from openclawd.sidecar import passed_descriptor, start_logging

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_SOCKET: Final = Path("/run/openclawd/openclawd-metrics.sock")
DEFAULT_LISTEN: Final = "127.0.0.1:9867"
EXIT_FAILED: Final = 1

_BACKLOG: Final = 16

logger = logging.getLogger("openclawd.metrics")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 ended by a signal, 1 the port cannot be had, 2 usage."""
    parser = OptionParser(
        prog="openclawd-metrics",
        description="Offer openclawd's /metrics and /health on a loopback TCP port.",
        epilog="Example: openclawd-metrics --listen 127.0.0.1:9867, and in prometheus.yml "
        "`static_configs: [{targets: ['127.0.0.1:9867']}]`.",
    )
    parser.add_argument(
        "--socket",
        type=Path,
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help=f"the daemon's metrics socket; default: {DEFAULT_SOCKET}",
    )
    parser.add_argument(
        "--listen",
        type=_loopback,
        default=DEFAULT_LISTEN,
        metavar="ADDRESS:PORT",
        help=f"a loopback address; default: {DEFAULT_LISTEN}. Ignored when systemd passes a socket",
    )
    arguments = parser.parse_args(argv)
    start_logging("openclawd-metrics")
    descriptor = passed_descriptor(os.environ)
    try:
        sock = (
            _bound_socket(*arguments.listen)
            if descriptor is None
            else socket.socket(fileno=descriptor)
        )
    except OSError as error:
        logger.error("cannot listen on %s port %d: %s", *arguments.listen, error.strerror)
        return EXIT_FAILED
    with sock:
        asyncio.run(serve(sock, arguments.socket))
    return 0


async def serve(sock: socket.socket, path: Path) -> None:
    """Until a signal comes."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sock.setblocking(False)  # noqa: FBT003 - the standard library's
    server = await asyncio.start_server(Relay(path).serve, sock=sock)
    logger.info("offering %s at %s port %d", path, *sock.getsockname()[:2])
    async with server:
        await stop.wait()


def _loopback(text: str) -> tuple[str, int]:
    """`127.0.0.1:9867` or `[::1]:9867`. Metrics have no access control but the socket's mode: other
    machines get them through a server that has some."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT with a number") from None
    if not is_loopback:
        raise argparse.ArgumentTypeError(
            f"{host} is no loopback address; put a reverse proxy with TLS and a password in front"
        )
    if not (port.isdecimal() and int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{port!r} is no port")
    return host, int(port)


def _bound_socket(host: str, port: int) -> socket.socket:
    """Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


if __name__ == "__main__":
    sys.exit(main())
