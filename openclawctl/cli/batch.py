"""`openclawctl generate --batch`: many requests from a file, several at once, and their answers.

Owns how the requests are sent and what is told of them. Every line is checked before the first one
is sent. What fails for one line's own reasons is counted and the rest goes on; what would befall
every other line too ends the batch.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from openclawctl.cli.answer import Progress
from openclawctl.cli.batch_files import (
    Answers,
    BadLine,
    Job,
    check_out,
    open_requests,
    read_jobs,
)
from openclawctl.cli.shell import Shell, print_json, print_line, say, say_error
from openclawctl.wire.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    BusyProblem,
    Code,
    OpenclawError,
    Problem,
)
from openclawctl.wire.labels import MAX_LABEL_CHARS
from openclawctl.wire.money import format_money
from openclawctl.wire.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openclawctl.aio import AsyncClient
    from openclawctl.options import ChatOptions, GenerateOptions
    from openclawctl.results import Completion

RETRIES: Final = 20
"""A batch has time: it waits for the room of a rate limit, and while the daemon is overloaded."""

_MOST_TOLD: Final = 20
"""Bad lines, and failures, that are told one by one."""


@dataclass(slots=True)
class Tally:
    """What has become of the lines."""

    lines: int
    answered: int = 0
    skipped: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: dict[str, Any] | None = None
    failures: list[dict[str, Any]] = field(default_factory=list)
    stopped_by: OpenclawError | None = None
    is_interrupted: bool = False
    total_s: float = 0.0

    @property
    def not_asked(self) -> int:
        return self.lines - self.answered - self.skipped - len(self.failures)

    @property
    def exit_status(self) -> int:
        if self.is_interrupted:
            return EXIT_INTERRUPTED
        if self.stopped_by is not None:
            return self.stopped_by.exit_status
        return EXIT_FAILED if self.failures or self.not_asked else 0

    def as_dict(self) -> dict[str, Any]:
        names = (
            "lines", "answered", "skipped", "not_asked", "prompt_tokens", "cached_tokens",
            "completion_tokens", "cost", "total_s", "failures",
        )  # fmt: skip
        stopped = self.stopped_by.as_dict() if self.stopped_by else None
        return {**{name: getattr(self, name) for name in names}, "stopped_by": stopped}

    def fail(self, job: Job, code: str, message: str) -> None:
        self.failures.append({"line": job.line, "id": job.name, "code": code, "message": message})
        if len(self.failures) <= _MOST_TOLD:
            say(f"openclawctl: line {job.line} failed: {message}")


def run_batch(
    shell: Shell,
    path: str,
    out: str | None,
    *,
    concurrency: int,
    is_dry: bool,
    system: str | None,
    defaults: dict[str, Any],
) -> int:
    """Ask what is not answered yet. Returns the exit status. With `is_dry` nothing is computed, and
    `out` is not needed."""
    if out is None and not is_dry:
        raise click.UsageError("--batch needs --out FILE for the answers")
    if out is not None:
        check_out(out)
    with open_requests(path) as requests:
        label = defaults.setdefault("session", f"batch {requests.name}"[:MAX_LABEL_CHARS])
        defaults.setdefault("priority", "batch")

        def jobs() -> Iterator[Job | BadLine]:
            return read_jobs(requests.file, defaults, system=system)

        digests = _check(jobs())
        tally, start = Tally(len(digests)), time.time()
        with nullcontext() if is_dry or out is None else Answers(Path(out)) as answers:
            if answers is not None:
                answers.check(digests)
            batch = Batch(shell, tally, answers, concurrency=concurrency)
            batch.run(_unchanged(jobs(), digests))
    tally.total_s = round(time.time() - start, 3)
    if not is_dry:
        tally.cost = _cost(shell, label, start)
    _summarise(shell, tally, is_dry=is_dry)
    return tally.exit_status


def _check(jobs: Iterator[Job | BadLine]) -> dict[int, str]:
    """The digest of each line. Raises a usage error, and tells which, if some are bad."""
    digests, bad = {}, []
    for job in jobs:
        if isinstance(job, BadLine):
            bad.append(job)
        else:
            digests[job.line] = job.digest
    for each in bad[:_MOST_TOLD]:
        say(f"openclawctl: line {each.line}: {each.reason}")
    if bad:
        more = f" (and {len(bad) - _MOST_TOLD} more)" if len(bad) > _MOST_TOLD else ""
        raise click.UsageError(
            f"{len(bad)} of {len(bad) + len(digests)} lines are bad{more}; nothing was sent"
        )
    return digests


def _unchanged(jobs: Iterator[Job | BadLine], digests: dict[int, str]) -> Iterator[Job]:
    """Those of the second reading that the first one has checked."""
    for job in jobs:
        if isinstance(job, Job) and digests.get(job.line) == job.digest:
            yield job


class Batch:
    """The requests on their way. Without `answers` it is a dry run."""

    def __init__(
        self, shell: Shell, tally: Tally, answers: Answers | None, *, concurrency: int
    ) -> None:
        self._shell = shell
        self._tally = tally
        self._answers = answers
        self._concurrency = concurrency
        self._progress = Progress()
        self._started_at = time.monotonic()

    def run(self, jobs: Iterator[Job]) -> None:
        """Ask them all, or as many as can be. Ctrl-C cancels those that run."""
        with self._progress:
            try:
                asyncio.run(self._run(jobs))
            except KeyboardInterrupt:
                self._tally.is_interrupted = True

    async def _run(self, jobs: Iterator[Job]) -> None:
        async with (
            self._shell.async_client(retries=RETRIES) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self._concurrency):
                group.create_task(self._work(client, jobs))

    async def _work(self, client: AsyncClient, jobs: Iterator[Job]) -> None:
        """One of those that take the next line each."""
        tally = self._tally
        for job in jobs:
            if tally.stopped_by is not None:
                return
            if self._answers is not None and self._answers.has(job):
                tally.skipped += 1
                continue
            try:
                await self._ask(client, job)
            except OpenclawError as problem:
                if _concerns_all(problem):
                    tally.stopped_by = tally.stopped_by or problem
                else:
                    tally.fail(job, problem.code, problem.message)
            self._show()

    async def _ask(self, client: AsyncClient, job: Job) -> None:
        if self._answers is None:
            self._foresee(await _dry_run(client, job))
            return
        result = (await _complete(client, job)).as_dict()
        if result["finish_reason"] in ("cancelled", "error"):
            self._tally.fail(job, result["finish_reason"], "the answer was cut off")
            return
        self._answers.add(job, result)
        self._tally.answered += 1
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
            setattr(self._tally, name, getattr(self._tally, name) + result["usage"][name])

    def _foresee(self, forecast: dict[str, Any]) -> None:
        tally = self._tally
        tally.answered += 1
        tally.prompt_tokens += forecast.get("prompt_tokens", 0)
        tally.completion_tokens += forecast.get("completion_tokens", 0)
        if cost := forecast.get("cost"):
            total = (tally.cost or {}).get("total", 0) + cost.get("total", 0)
            tally.cost = {"currency": cost.get("currency"), "total": total}

    def _show(self) -> None:
        tally = self._tally
        num_done = tally.answered + tally.skipped + len(tally.failures)
        tokens_per_s = tally.completion_tokens / max(0.001, time.monotonic() - self._started_at)
        text = f"{num_done} of {tally.lines}, {len(tally.failures)} failed, "
        text += f"{tokens_per_s:.0f} tokens/s"
        self._progress.show(text, num_done / max(1, tally.lines))


async def _complete(client: AsyncClient, job: Job) -> Completion:
    if job.messages is not None:
        return await client.chat(job.messages, **cast("ChatOptions", job.options))
    return await client.generate(job.prompt, **cast("GenerateOptions", job.options))


async def _dry_run(client: AsyncClient, job: Job) -> dict[str, Any]:
    if job.messages is not None:
        return await client.dry_run_chat(job.messages, **cast("ChatOptions", job.options))
    return await client.dry_run(job.prompt, **cast("GenerateOptions", job.options))


def _concerns_all(problem: OpenclawError) -> bool:
    """Would the other lines fare no better? A daemon that cannot be reached, has no room, or whose
    budget is used up; a file that cannot be written."""
    if not isinstance(problem, Problem) or isinstance(problem, BusyProblem):
        return True
    return problem.code in (Code.BUDGET_EXCEEDED.value, Code.UNAVAILABLE.value)


def _cost(shell: Shell, label: str, start: float) -> dict[str, Any] | None:
    """What this run has cost by the daemon's ledger; None where nothing has a price, or that cannot
    be asked any more."""
    try:
        with shell.client() as client:
            usage = client.usage(by="session", since=datetime.fromtimestamp(start, tz=UTC))
    except OpenclawError:
        return None
    costs = [row.get("cost", 0) for row in usage.get("rows", []) if row.get("key") == label]
    currency = usage.get("currency")
    return {"currency": currency, "total": sum(costs)} if currency else None


def _summarise(shell: Shell, tally: Tally, *, is_dry: bool) -> None:
    if tally.not_asked and tally.stopped_by is None and not tally.is_interrupted:
        text = f"{tally.not_asked} of {tally.lines} lines were changed or taken away meanwhile"
        hint = "ask them as they are now, with another file for --out"
        say_error(f"{text}, and not asked", hint)
    if shell.is_json:
        print_json(tally.as_dict())
        return
    print_line("; ".join(_counts(tally, is_dry=is_dry)))
    most = "at most " if is_dry else ""
    tokens = f"{tally.prompt_tokens} prompt tokens"
    if not is_dry:
        tokens += f" ({tally.cached_tokens} cached)"
    cost = tally.cost
    money = f", {most}{format_money(cost['total'])} {cost['currency']}" if cost else ""
    print_line(f"{tokens}, {most}{tally.completion_tokens} completion tokens{money}")
    if tally.stopped_by is not None:
        again = "the same command goes on where this one ended"
        hints = filter(None, (tally.stopped_by.hint, again))
        say_error(tally.stopped_by.message, "; ".join(hints))


def _counts(tally: Tally, *, is_dry: bool) -> Iterator[str]:
    what = "would be asked" if is_dry else f"answered in {format_duration(tally.total_s)}"
    yield f"{tally.answered} of {tally.lines} {what}"
    for num, text in (
        (tally.skipped, "had an answer before"),
        (len(tally.failures), "failed"),
        (tally.not_asked, "were not asked"),
    ):
        if num:
            yield f"{num} {text}"
