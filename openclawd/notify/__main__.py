"""`openclawd-notify`: takes alerts from a socket until it ends, and delivers them.

The socket is systemd's (`ListenDatagram=`, sd_listen_fds(3)), or one end of a pair whose other end
the daemon has (`--fd`): then the daemon's end is ours.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

from openclawd.arguments import OptionParser
from openclawd.notify.command import run_command
from openclawd.notify.delivery import FIRST_RETRY_S, Deliveries, Delivery
from openclawd.notify.messages import MAX_MESSAGE_BYTES, Alert, MessageError, decode_alert
from openclawd.notify.webhook import post_webhook, shown
from openclawd.sidecar import passed_descriptor, start_logging

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GRACE_S: Final = 5.0
"""How long attempts that run at the end may go on."""

_MESSAGES_AT_A_TIME: Final = 64

logger = logging.getLogger("openclawd.notify")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 ended, 2 there is no socket."""
    parser = OptionParser(
        prog="openclawd-notify",
        description="Run alert commands and webhooks for openclawd. Started by systemd or by it.",
    )
    parser.add_argument("--fd", type=int, metavar="N", help="the socket, inherited")
    parser.add_argument(
        "--first-retry", type=float, default=FIRST_RETRY_S, metavar="SECONDS", help="default: 1"
    )
    arguments = parser.parse_args(argv)
    start_logging("openclawd-notify")
    descriptor = arguments.fd if arguments.fd is not None else passed_descriptor(os.environ)
    if descriptor is None:
        parser.error("no socket was passed: enable openclawd-notify.socket, or let openclawd start")
    with socket.socket(fileno=descriptor) as sock:
        asyncio.run(serve(sock, first_retry_s=arguments.first_retry))
    return 0


async def serve(sock: socket.socket, *, first_retry_s: float) -> None:
    """Deliver what comes, until the other end has closed or a signal comes."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    deliveries = Deliveries(first_retry_s=first_retry_s)
    sock.settimeout(0)  # asyncio reads it
    loop.add_reader(sock, _receive, sock, deliveries, stop)
    await stop.wait()
    loop.remove_reader(sock)
    await deliveries.close(GRACE_S)


def _receive(sock: socket.socket, deliveries: Deliveries, stop: asyncio.Event) -> None:
    """Take in what has come, a bounded number at a time."""
    for _ in range(_MESSAGES_AT_A_TIME):
        try:
            data = sock.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            logger.error("the socket cannot be read: %s", error.strerror)
            stop.set()
            return
        if not data and sock.type == socket.SOCK_SEQPACKET:  # a datagram may be empty
            stop.set()
            return
        try:
            for delivery in _deliveries_of(decode_alert(data)):
                deliveries.put(delivery)
        except MessageError as error:
            logger.error("a message of %d bytes is no alert: %s", len(data), error)


def _deliveries_of(alert: Alert) -> Iterator[Delivery]:
    subject = f"the alert of {str(alert.facts.get('budget', '(no budget)'))!r}"
    if alert.command:
        what = f"{subject} by command {alert.command[0]!r}"
        yield Delivery(what, functools.partial(run_command, alert), alert.retries)
    if alert.webhook is not None:
        what = f"{subject} by webhook {shown(alert.webhook)}"
        yield Delivery(what, functools.partial(post_webhook, alert), alert.retries)


if __name__ == "__main__":
    sys.exit(main())
