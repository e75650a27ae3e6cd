"""(h) What everything around the model costs: socket, daemon, pipe and engine, in microseconds.

The model is a tiny one whose steps are made to take 5 ms (`tests/fixed_step.py`) and leave the
processor free. The text of each of its tokens is when its step began and ended, by the clock that
all processes share: so `token` is from the end of a step in the worker to the client having read
it, and `request` from the client's write to the beginning of the first step. Under load that
includes waiting for the step that is running. Beside it `ping`, which no model takes part in.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import time
from typing import TYPE_CHECKING, Final

from answers import Ask
from live import running_daemon, short_folder
from measure import Plot, Report, Row, Settings, percentile
from models.library import ModelLibrary
from prompts import Prompts
from servers import openclawd, streams_beside, traffic

from openclawctl import AsyncClient, Client
from openclawctl.wire.connection import Connection, Role
from openclawctl.wire.messages import PROTOCOL_VERSION, Done, Hello, Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from answers import Answer
    from servers import Server, Traffic

STEP_S: Final = 0.005
LOADS: Final = (0, 8, 32)
"""Streams that run beside the one that is looked at."""

NUM_TOKENS: Final = 100
PROMPT_TOKENS: Final = 8
PARALLEL: Final = 40
LOAD_TOKENS: Final = 1900
"""More than the other streams get to say: they are cut when the probe is done."""

CONTEXT: Final = 2048

IN_FLIGHT: Final = 64
"""Pings under way at once: well under the daemon's limit for one connection."""


def run(settings: Settings) -> Report:
    token_s: dict[int, list[float]] = {load: [] for load in LOADS}
    request_s: dict[int, list[float]] = {load: [] for load in LOADS}
    with _fixed_step_server() as server, traffic() as probe:
        prompts = Prompts()
        probe.ask(server, _ask(prompts, 2))  # warm-up
        for _ in settings.rounds():
            for load in LOADS:
                asks = [_ask(prompts, NUM_TOKENS)] * settings.pick(2, 5)
                asks += [_ask(prompts, 1) for _ in range(settings.pick(10, 50))]
                answers = _probe(probe, server, asks, load=load)
                token_s[load] += [delay for each in answers for delay in _delays_s(each)]
                request_s[load] += [_until_step_s(each) for each in answers]
    pings_s, rates = _pings(settings)
    rows = [_row("token", load, token_s[load]) for load in LOADS]
    rows += [_row("request", load, request_s[load]) for load in LOADS]
    rows.append(_row("ping, Client", 0, pings_s))
    remarks = [
        f"ping, {IN_FLIGHT} in flight, {way}: {statistics.median(values):,.0f} requests/s"
        for way, values in rates.items()
    ]
    samples = {f"token, {load} streams": token_s[load] for load in LOADS}
    samples |= {f"request, {load} streams": request_s[load] for load in LOADS}
    plots = [_plot(token_s, request_s)]
    return Report(rows, samples={**samples, "ping": pings_s, **rates}, remarks=remarks, plots=plots)


def _row(what: str, load: int, seconds: list[float]) -> Row:
    return {
        "what": what,
        "other streams": load,
        "p50 µs": round(statistics.median(seconds) * 1e6),
        "p95": round(percentile(seconds, 0.95) * 1e6),
        "p99": round(percentile(seconds, 0.99) * 1e6),
        "samples": len(seconds),
    }


def _plot(token_s: dict[int, list[float]], request_s: dict[int, list[float]]) -> Plot:
    """The bars are p50; their lines go to p95."""
    series: dict[str, list[list[float] | None]] = {}
    for name, found in (("end of step → client", token_s), ("request → step", request_s)):
        points = [(statistics.median(found[load]), percentile(found[load], 0.95)) for load in LOADS]
        series[name] = [[p50 * 1e6, p50 * 1e6, p95 * 1e6] for p50, p95 in points]
    labels = ["idle", *(f"{load} other streams" for load in LOADS[1:])]
    return Plot("Around a step of 5 ms: p50, and p95 as a line", "µs", labels, series)


# ---- requests to a model of fixed step time ----


@contextlib.contextmanager
def _fixed_step_server() -> Iterator[Server]:
    with (
        short_folder() as folder,
        openclawd(
            parallel=PARALLEL,
            context=CONTEXT,
            threads=1,
            path=ModelLibrary(folder).tiny("full"),
            inference_settings={"max_output_tokens": LOAD_TOKENS},
            worker_hook=f"fixed-step:{STEP_S}",
        ) as server,
    ):
        yield server


def _ask(prompts: Prompts, num_tokens: int) -> Ask:
    return Ask(max_tokens=num_tokens, prompt=prompts.fresh(PROMPT_TOKENS))


def _probe(probe: Traffic, server: Server, asks: list[Ask], *, load: int) -> list[Answer]:
    """Requests one after the other, while another process reads `load` streams."""
    if not load:
        return probe.ask(server, *asks)
    others = [Ask(max_tokens=LOAD_TOKENS, prompt=f"{number} and so on") for number in range(load)]
    with streams_beside(server, others):
        return probe.ask(server, *asks)


def _delays_s(answer: Answer) -> list[float]:
    """From the end of the step of each token to its arrival."""
    ends_s = [end_s for _, end_s in _steps_s(answer)]
    return [came - end for came, end in zip(answer.token_times_s, ends_s, strict=True)]


def _until_step_s(answer: Answer) -> float:
    return _steps_s(answer)[0][0] - answer.sent_s


def _steps_s(answer: Answer) -> list[tuple[float, float]]:
    """When the step of each token began and ended."""
    stamps = (stamp.split(":") for stamp in answer.text.split())
    return [(int(began) / 1e9, int(ended) / 1e9) for began, ended in stamps]


# ---- ping ----


def _pings(settings: Settings) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of each, one at a time; requests per second with many in flight, by way."""
    count = settings.pick(2000, 10_000)
    rates: dict[str, list[float]] = {"AsyncClient": [], "raw frames": []}
    with running_daemon() as daemon:
        daemon.wait_ready()
        serial = _serial(daemon.socket, count=count // 2)
        for _ in range(settings.num_rounds):
            rates["AsyncClient"].append(asyncio.run(_library_rate(daemon.socket, count)))
            rates["raw frames"].append(_raw_rate(daemon.socket, count))
    return serial, rates


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
    """Writes prepared requests and only counts the answers: the daemon alone."""
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
