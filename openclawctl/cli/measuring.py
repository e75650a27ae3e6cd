"""Measuring a daemon that serves: rounds of requests at once, and what disturbed them.

Owns what a round is and what is counted of it. Times are taken here, where an application would
have them, by the monotonic clock, in seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import OpenclawError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openclawctl.aio import AsyncClient
    from openclawctl.results import Completion

APP: Final = "bench"
"""What the requests are for, in `openclawctl usage --by app`."""

MAX_SPREAD: Final = 1.15
"""Rounds that differ by more are told of: on a calm machine they are within some hundredths."""

_BUSY_SHARE: Final = 0.25
"""Of the CPUs, by the load of the last minute, before anything was asked."""

_STOLEN_SHARE: Final = 0.02
_WAITED_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. `gaps_s` are the times between its tokens: of several that came together, each
    has its part."""

    ttft_s: float
    total_s: float
    gaps_s: list[float]
    result: Completion


@dataclass(frozen=True, slots=True)
class Round:
    """Requests that began at the same moment."""

    total_s: float
    samples: list[Sample]

    @property
    def tokens_per_s(self) -> float:
        return sum(s.result.usage.completion_tokens for s in self.samples) / self.total_s


@dataclass(frozen=True, slots=True)
class Plan:
    """`max_tokens` of every answer, `num_rounds` that count at each concurrency, after one to warm
    up."""

    model: str | None
    concurrency: Sequence[int]
    max_tokens: int
    num_rounds: int


async def measure(
    client: AsyncClient, plan: Plan, on_round: Callable[[str], object]
) -> dict[str, Any]:
    """What `--json` prints. Raises the `OpenclawError` that a request ended with."""
    before = _Surroundings.now(await client.status())
    levels: list[tuple[int, list[Round]]] = []
    num_requests = 0
    for number in plan.concurrency:
        on_round(f"{number} at once, to warm up")
        await _round(client, plan, number)
        rounds = []
        for each in range(plan.num_rounds):
            on_round(f"{number} at once, round {each + 1} of {plan.num_rounds}")
            rounds.append(await _round(client, plan, number))
        levels.append((number, rounds))
        num_requests += number * (plan.num_rounds + 1)
    after = _Surroundings.now(await client.status())
    (_, last) = levels[-1]
    return {
        "model": last[-1].samples[0].result.model,
        "server": after.version,
        "max_tokens": plan.max_tokens,
        "rounds": plan.num_rounds,
        "results": [_figures(number, rounds) for number, rounds in levels],
        "disturbances": [*before.disturbed(after, num_requests), *_disturbances(levels)],
    }


async def _round(client: AsyncClient, plan: Plan, number: int) -> Round:
    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_ask(client, plan)) for _ in range(number)]
    return Round(time.monotonic() - start, [task.result() for task in tasks])


async def _ask(client: AsyncClient, plan: Plan) -> Sample:
    """The same work each time, and never the same prompt: nothing of it is in any cache."""
    prompt = f"{secrets.token_hex(8)}: Tell a long story about a clock that runs backwards. Once"
    start = time.monotonic()
    async with client.generate(
        prompt,
        stream=True,
        model=plan.model,
        max_tokens=plan.max_tokens,
        temperature=0,
        ignore_eos=True,
    ) as stream:
        arrivals = [
            (time.monotonic(), len(delta.token_ids)) async for delta in stream if delta.token_ids
        ]
    gaps_s = [
        (at - earlier) / count
        for (earlier, _), (at, count) in itertools.pairwise(arrivals)
        for _ in range(count)
    ]
    end = time.monotonic()
    first_at = arrivals[0][0] if arrivals else end
    return Sample(first_at - start, end - start, gaps_s, stream.result)


# ---- figures ----


def _figures(number: int, rounds: list[Round]) -> dict[str, Any]:
    samples = [sample for each in rounds for sample in each.samples]
    speeds = [each.tokens_per_s for each in rounds]
    usages = [sample.result.usage for sample in samples]
    return {
        "concurrency": number,
        "requests": len(samples),
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "tokens_per_s": round(percentile(speeds, 0.5), 1),
        "tokens_per_s_rounds": [round(speed, 1) for speed in speeds],
        "ttft_s": _percentiles([sample.ttft_s for sample in samples]),
        "inter_token_s": _percentiles([gap for sample in samples for gap in sample.gaps_s]),
        "total_s": _percentiles([sample.total_s for sample in samples]),
    }


def _percentiles(values: list[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p99": None}
    return {f"p{share:.0%}"[:-1]: round(percentile(values, share), 6) for share in (0.5, 0.99)}


def percentile(values: Sequence[float], share: float) -> float:
    """By the nearest rank: a value that was really measured. Of a handful, p99 is the largest."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


# ---- what disturbed it ----


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """The daemon and the machine at a moment. `cpu` are the kernel's counts of all CPU time and of
    what a hypervisor took."""

    version: str
    finished: int
    running: int
    health: list[str]
    load: float
    cpu: tuple[int, int]

    @classmethod
    def now(cls, status: dict[str, Any]) -> _Surroundings:
        requests = status.get("requests", {})
        reasons = status.get("health", {}).get("reasons", [])
        return cls(
            version=str(status.get("server", {}).get("version", "?")),
            finished=int(requests.get("finished", 0)),
            running=int(requests.get("running", 0)) + int(requests.get("queued", 0)),
            health=[str(reason.get("message")) for reason in reasons],
            load=os.getloadavg()[0],
            cpu=_cpu_time(),
        )

    def disturbed(self, after: _Surroundings, num_requests: int) -> list[str]:
        """`num_requests` between this and `after` were ours."""
        found = []
        if self.running:
            found.append(f"{self.running} requests of others were open when it began")
        others = after.finished - self.finished - num_requests
        if others > 0:
            found.append(f"{others} requests of others ended meanwhile")
        num_cpus = os.cpu_count() or 1
        if self.load > _BUSY_SHARE * num_cpus:
            found.append(f"the machine was busy before: load {self.load:.1f} on {num_cpus} CPUs")
        total, stolen = (late - early for early, late in zip(self.cpu, after.cpu, strict=True))
        if total and stolen / total > _STOLEN_SHARE:
            found.append(f"the hypervisor took {stolen / total:.0%} of the CPU time")
        return [*found, *(f"health: {reason}" for reason in after.health)]


def _cpu_time() -> tuple[int, int]:
    """Of all CPUs since the boot, in ticks (proc(5), /proc/stat: `steal` is the eighth)."""
    with suppress(OSError, ValueError, IndexError), open("/proc/stat", encoding="ascii") as file:
        counts = [int(word) for word in file.readline().split()[1:9]]
        return sum(counts), counts[7]
    return 0, 0


def _disturbances(levels: list[tuple[int, list[Round]]]) -> list[str]:
    found = []
    for number, rounds in levels:
        speeds = [each.tokens_per_s for each in rounds]
        if max(speeds) > MAX_SPREAD * min(speeds):
            spread = max(speeds) / min(speeds) - 1
            found.append(f"{number} at once: the rounds differ by {spread:.0%}")
        results = [sample.result for each in rounds for sample in each.samples]
        found += [f"{number} at once: {text}" for text in _of_results(results)]
    return found


def _of_results(results: list[Completion]) -> list[str]:
    found = []
    waited = [each.timings.queue_s for each in results if each.timings.queue_s > _WAITED_S]
    if waited:
        text = f"{len(waited)} of {len(results)} requests waited for a place, up to"
        found.append(f"{text} {max(waited):.1f} s: the model has fewer")
    if loaded := [each for each in results if each.timings.load_s > _WAITED_S]:
        found.append(f"{len(loaded)} requests waited for the model to be loaded")
    if cached := sum(each.usage.cached_tokens for each in results):
        found.append(f"{cached} prompt tokens came from the cache")
    if short := [each for each in results if each.finish_reason != "length"]:
        found.append(f"{len(short)} answers ended early ({short[0].finish_reason})")
    if warnings := {str(w.get("message")) for each in results for w in each.warnings}:
        found += sorted(warnings)
    return found


def run(client: AsyncClient, plan: Plan, on_round: Callable[[str], object]) -> dict[str, Any]:
    """`measure` on a loop of its own. Raises `OpenclawError`."""

    async def main() -> dict[str, Any]:
        async with client:
            return await measure(client, plan, on_round)

    try:
        return asyncio.run(main())
    except BaseExceptionGroup as group:
        raise _first_problem(group) from None


def _first_problem(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One refusal stands for all: the others of its round were told the same, or cancelled."""
    problems = group.subgroup(OpenclawError)
    return problems.exceptions[0] if problems else group
