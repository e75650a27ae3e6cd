"""What a scrape of `/metrics` is answered.

Owns the names of the metrics: Prometheus' conventions (prometheus.io/docs/practices/naming), and
vLLM's words where it has the same thing. docs/monitoring.md lists them; a test compares. Counts
nothing itself: everything is read from where it is kept anyway, when somebody asks.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from importlib import metadata
from typing import TYPE_CHECKING, Final

from openclawd.observe.exposition import Exposition
from openclawd.observe.histogram import round_bounds
from openclawd.observe.processes import ProcessReader
from openclawd.server import machine_metrics, model_metrics
from openclawd.server.health import SERVER_STATES, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openclawd.admission.budget_standings import Standing
    from openclawd.fleet.model import Model
    from openclawd.observe.gpus import Gpu
    from openclawd.observe.histogram import Histogram
    from openclawd.observe.pressure import Pressure
    from openclawd.server.meters import Meters, ModelTimes
    from openclawd.server.service import Service

_REQUEST_S: Final = round_bounds(0.01, 500)
_PART_S: Final = round_bounds(0.001, 100)
_TOKEN_S: Final = round_bounds(0.001, 5)
_MICRO: Final = 1e6


class Metrics:
    """Answers scrapes. `render` takes a few milliseconds of the loop (bench/scrape.py)."""

    def __init__(
        self,
        service: Service,
        pressure: Pressure,
        *,
        read_gpus: Callable[[], Sequence[Gpu]],
    ) -> None:
        self._service = service
        self._pressure = pressure
        self._read_gpus = read_gpus
        self._processes = ProcessReader()
        self._build = _build_labels(service.version)
        self._last_s: float | None = None

    def render(self) -> bytes:
        started_at = time.perf_counter()
        body = self._text().encode()
        self._last_s = time.perf_counter() - started_at
        return body

    def _text(self) -> Exposition:
        service = self._service
        models = list(service.fleet.models)
        text = Exposition()
        self._server(text)
        _requests(text, service.meters)
        _times(text, service.meters)
        model_metrics.write(text, models)
        _budgets(text, service.budgets.standings())
        self._workers(text, models)
        self._own_process(text)
        machine_metrics.write(text, self._pressure, self._read_gpus())
        text.gauge(
            "openclawd_scrape_seconds", "What the scrape before this one took.", self._last_s
        )
        return text

    # ---- the daemon ----

    def _server(self, text: Exposition) -> None:
        service = self._service
        health = service.health()
        text.family(
            "openclawd_build_info",
            "gauge",
            "Always 1; the labels say what this daemon is.",
            ("version", "python", "llama_cpp_python"),
            [(self._build, 1)],
        )
        text.gauge(
            "openclawd_healthy",
            "1 while /health says ok or degraded: tokens are coming, or nothing is asked.",
            health.status is not Status.FAILING,
        )
        text.family(
            "openclawd_server_state",
            "gauge",
            "1 for the state that the daemon is in.",
            ("state",),
            [((state,), health.server == state) for state in SERVER_STATES],
        )
        text.gauge("openclawd_connections", "Open connections.", service.num_connections)
        text.gauge(
            "openclawd_connections_limit",
            "resource_limits.max_connections.",
            service.max_connections,
        )
        text.counter(
            "openclawd_socket_received_bytes_total",
            "Bytes of frames that clients sent.",
            service.traffic.received_bytes,
        )
        text.counter(
            "openclawd_socket_sent_bytes_total",
            "Bytes of frames that were sent to clients.",
            service.traffic.sent_bytes,
        )
        text.gauge(
            "openclawd_ledger_writable",
            "0 while the disk refuses the ledger, and requests are refused for that.",
            service.ledger.problem is None,
        )
        text.family(
            "openclawd_num_requests_held_back",
            "gauge",
            "Requests that wait for something else than a model: max_parallel, a rate limit, or a"
            " budget that open requests have reserved.",
            ("by",),
            [
                (("max_parallel",), service.lanes.num_waiting),
                (("rate_limit",), service.rates.num_waiting),
                (("budget",), service.budgets.budgets.num_waiting),
            ],
        )

    def _own_process(self, text: Exposition) -> None:
        """By the names that every program has them under."""
        reading = self._processes.read(os.getpid())
        if reading is None:
            return
        text.counter("process_cpu_seconds_total", "CPU time of the daemon.", reading.cpu_s)
        text.gauge(
            "process_resident_memory_bytes",
            "Resident memory of the daemon.",
            reading.resident_bytes,
        )
        text.gauge(
            "process_virtual_memory_bytes", "Virtual memory of the daemon.", reading.virtual_bytes
        )
        text.gauge(
            "process_start_time_seconds", "Unix time of its start.", self._service.started_at
        )
        text.gauge(
            "process_open_fds", "Files that the daemon has open.", len(os.listdir("/proc/self/fd"))
        )
        text.gauge(
            "process_max_fds",
            "How many it may open.",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )

    def _workers(self, text: Exposition, models: Sequence[Model]) -> None:
        pids = {model.name: model.worker_pid for model in models if model.worker_pid is not None}
        self._processes.forget_all_but({os.getpid(), *pids.values()})
        found = {name: self._processes.read(pid) for name, pid in pids.items()}
        readings = {(name,): reading for name, reading in found.items() if reading is not None}
        text.family(
            "openclawd_worker_cpu_seconds_total",
            "counter",
            "CPU time of a model's worker; begins anew with each worker.",
            ("model",),
            ((labels, reading.cpu_s) for labels, reading in readings.items()),
        )
        text.family(
            "openclawd_worker_resident_memory_bytes",
            "gauge",
            "Resident memory of a model's worker, its mapped model included.",
            ("model",),
            ((labels, reading.resident_bytes) for labels, reading in readings.items()),
        )


def _build_labels(version: str) -> tuple[str, str, str]:
    try:
        llama = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        llama = ""
    return version, platform.python_version(), llama


# ---- requests ----


def _requests(text: Exposition, meters: Meters) -> None:
    text.tally(
        "openclawd_requests_total",
        "Inference requests that have ended and are in the ledger. outcome is done, cancelled, or"
        " the kind of the error; limit, denied, busy, timeout and request are not the daemon's"
        " fault.",
        meters.requests,
    )
    text.tally(
        "openclawd_errors_total",
        "Requests of any operation that ended with an error. Without a model: before one was"
        " chosen, and not in the ledger.",
        meters.errors,
    )
    text.tally(
        "openclawd_finish_reasons_total",
        "Inference requests that ended without an error, by why.",
        meters.finish_reasons,
    )
    text.tally("openclawd_prompt_tokens_total", "Prompt tokens.", meters.prompt_tokens)
    text.tally(
        "openclawd_cached_tokens_total",
        "Those of the prompt tokens that were not computed again.",
        meters.cached_tokens,
    )
    text.tally("openclawd_completion_tokens_total", "Completion tokens.", meters.completion_tokens)
    text.family(
        "openclawd_cost_total",
        "counter",
        "What requests cost by `prices`, in the configured currency.",
        meters.cost.label_names,
        ((labels, amount / _MICRO) for labels, amount in meters.cost.samples()),
    )
    text.tally(
        "openclawd_prefix_hits_total",
        "Requests of which something was cached.",
        meters.prefix_hits,
    )
    text.tally(
        "openclawd_speculation_proposed_tokens_total",
        "Tokens that were guessed ahead.",
        meters.guessed_tokens,
    )
    text.tally(
        "openclawd_speculation_accepted_tokens_total",
        "Those of them that were right.",
        meters.accepted_tokens,
    )


def _times(text: Exposition, meters: Meters) -> None:
    def show(
        name: str, help_text: str, bounds: tuple[float, ...], of: Callable[[ModelTimes], Histogram]
    ) -> None:
        samples = (((model,), of(times)) for model, times in meters.times.items())
        text.histograms(f"openclawd_{name}", help_text, ("model",), samples, bounds=bounds)

    show(
        "time_to_first_token_seconds",
        "From a request's arrival to its first token (or vector), loading and waiting included.",
        _REQUEST_S,
        lambda times: times.ttft.histogram,
    )
    show(
        "inter_token_latency_seconds",
        "Between two tokens of one sequence, observed once for each token but the first.",
        _TOKEN_S,
        lambda times: times.inter_token.histogram,
    )
    show(
        "e2e_request_latency_seconds",
        "From a request's arrival to its end.",
        _REQUEST_S,
        lambda times: times.total.histogram,
    )
    show(
        "request_queue_time_seconds",
        "From when a request was tokenised to when it was given to the model.",
        _PART_S,
        lambda times: times.queue,
    )
    show(
        "request_prefill_time_seconds",
        "From when a request was given to the model to its first token.",
        _PART_S,
        lambda times: times.prefill,
    )
    show(
        "request_decode_time_seconds",
        "From a request's first token to its end.",
        _REQUEST_S,
        lambda times: times.decode,
    )


# ---- budgets ----


def _budgets(text: Exposition, standings: Sequence[Standing]) -> None:
    """Money is in the configured currency."""

    def show(name: str, help_text: str, of: Callable[[Standing], float]) -> None:
        samples = (((each.budget, each.measure.value), of(each)) for each in standings)
        text.family(f"openclawd_budget_{name}", "gauge", help_text, ("budget", "measure"), samples)

    def amount(standing: Standing, value: int) -> float:
        return value / _MICRO if standing.measure.value == "money" else value

    show("limit", "What each bucket of a budget may use.", lambda s: amount(s, s.limit))
    show("used", "What its fullest bucket has used.", lambda s: amount(s, s.used))
    show("left", "What that bucket has left, reservations deducted.", lambda s: amount(s, s.left))
    show("used_ratio", "The share of the limit that it has used.", lambda s: s.used_share)
    show("buckets", "Buckets (users, keys, …) in which something counts.", lambda s: s.num_buckets)
    show("buckets_used_up", "Those of them with nothing left.", lambda s: s.num_full)
