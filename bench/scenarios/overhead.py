"""What the protocol and the daemon cost without a model: `ping`, one at a time and pipelined.

`raw frames` writes prepared requests and only counts the answers, so that it shows the daemon
alone; the client libraries add their own time, on the same machine.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from typing import TYPE_CHECKING, Final

from live import running_daemon
from measure import Report, Row, Settings, percentile

from openclawctl import AsyncClient, Client
from openclawctl.wire.connection import Connection, Role
from openclawctl.wire.messages import PROTOCOL_VERSION, Done, Hello, Request

if TYPE_CHECKING:
    from pathlib import Path

IN_FLIGHT: Final = 64
"""Requests under way at once: well under the daemon's limit for one connection."""


def run(settings: Settings) -> Report:
    count = settings.pick(2000, 10_000)
    with running_daemon() as daemon:
        daemon.wait_ready()
        serial = _serial(daemon.socket, count=count // 2)
        rates: dict[str, list[float]] = {"AsyncClient": [], "raw frames": []}
        for _ in settings.rounds():
            rates["AsyncClient"].append(asyncio.run(_library_rate(daemon.socket, count)))
            rates["raw frames"].append(_raw_rate(daemon.socket, count))
    rows: list[Row] = [
        {"what": "ping, Client, p50", "value": statistics.median(serial) * 1e6, "unit": "µs"},
        {"what": "ping, Client, p99", "value": percentile(serial, 0.99) * 1e6, "unit": "µs"},
    ]
    for way, values in rates.items():
        what = f"ping, {IN_FLIGHT} in flight, {way}"
        rows.append({"what": what, "value": statistics.median(values), "unit": "requests/s"})
    return Report(rows, samples={"serial": serial, **rates})


def _serial(socket_path: Path, *, count: int) -> list[float]:
    times = []
    with Client(socket_path) as client:
        client.ping()
        for _ in range(count):
            start = time.perf_counter()
            client.ping()
            times.append(time.perf_counter() - start)
    return times


async def _library_rate(socket_path: Path, count: int) -> float:
    async with AsyncClient(socket_path) as client:
        await client.ping()
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(_ping_often(client, count // IN_FLIGHT))
        return count // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - start)


async def _ping_often(client: AsyncClient, count: int) -> None:
    for _ in range(count):
        await client.ping()


def _raw_rate(socket_path: Path, count: int) -> float:
    wire = Connection(Role.CLIENT)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(socket_path))
        sock.sendall(wire.send(Hello(PROTOCOL_VERSION, client="bench", key=None, app=None)))
        start, num_sent, num_done = time.perf_counter(), 0, 0
        while num_done < count:
            num_new = min(IN_FLIGHT - (num_sent - num_done), count - num_sent)
            requests = [Request(num_sent + 1 + n, "ping", {}) for n in range(num_new)]
            sock.sendall(b"".join(wire.send(request) for request in requests))
            num_sent += num_new
            wire.receive(sock.recv(1 << 16))
            num_done += sum(isinstance(message, Done) for message in wire.events())
        return count / (time.perf_counter() - start)
