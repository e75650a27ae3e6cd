"""One request at one model, whichever of its workers computes it.

Owns what happens when a worker dies: the request goes on in the next one, with what was delivered
as its continuation, so that its client sees a pause. Knows worker messages; knows nothing of
clients, nor what a token means.

Rules (design, "Failure rules"): a request that was in flight when two workers in a row died, with
nothing delivered in between, is suspected of killing them, and ends with `worker-died`. If there
are several, they come back one at a time, and the one whose worker dies a third time ends. So does
one alone if its model has several workers: that two of these die one after the other says less,
since it came to the second one in the middle of others' requests.

Invariants: nothing is delivered twice; a token is computed again only if nobody was told of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import ModelFailed, Problem, Unsupported, WorkerDied
from openclawd.fleet.model import PATIENCE_S
from openclawd.fleet.router import Demand
from openclawd.observe import message_ids
from openclawd.observe.logs import fields
from openclawd.worker.messages import Continuation, Prepared, packed

if TYPE_CHECKING:
    from array import array
    from collections.abc import AsyncIterator, Callable, Coroutine

    from openclawd.fleet.link import Call, Link
    from openclawd.fleet.model import Model
    from openclawd.fleet.router import Prefixes
    from openclawd.fleet.spec import Files
    from openclawd.worker.messages import Answer, Ended, Loading, Output, Start

logger = logging.getLogger(__name__)

COMEBACK_PATIENCE_S: Final = 60.0
"""How far off the next try to load the model may be for a request that had begun. It has more to
lose than a new one, which is told to come again."""


_SUSPICIOUS: Final = 2


@dataclass(slots=True)
class _Part:
    """What was delivered of one sequence."""

    cached_tokens: int
    token_ids: array[int] = field(default_factory=packed)
    mu: float | None = None

    def continuation(self, index: int) -> Continuation:
        return Continuation.of(
            index, cached_tokens=self.cached_tokens, token_ids=self.token_ids, mu=self.mu
        )


@contextlib.asynccontextmanager
async def submit(
    model: Model,
    op: str,
    params: dict[str, Any],
    *,
    owner: str,
    on_loading: Callable[[Loading], None],
    keep_alive_s: float | None = None,
) -> AsyncIterator[Submission]:
    """Hold the model loaded for one request, and `keep_alive_s` longer if that is given. `owner`
    names it in the log. Raises like `Model.lease`."""
    async with model.lease(on_loading, keep_alive_s=keep_alive_s):
        submission = Submission(model, op, params, owner=owner, on_loading=on_loading)
        try:
            yield submission
        finally:
            submission.drop()


class Submission:
    """Use `submit`. `prepare` comes first, then maybe `compute`."""

    def __init__(
        self,
        model: Model,
        op: str,
        params: dict[str, Any],
        *,
        owner: str,
        on_loading: Callable[[Loading], None],
    ) -> None:
        self._model = model
        self._op = op
        self._params = params
        self._owner = owner
        self._on_loading = on_loading
        self._link: Link | None = None
        self._call: Call | None = None
        self._prompt_tokens = 0
        self._longest = 0
        self._prefixes: Prefixes = ()
        self._demand = Demand()
        self._may_move = False
        self._cut: dict[str, Any] = {}
        self._on_output: Callable[[Output], None]
        self._parts: dict[int, _Part] = {}
        self._num_deaths = 0  # in a row, with nothing delivered in between
        self._is_alone = False
        self._files_at_start: Files = ()
        self._was_started = False
        self._waiting: asyncio.Timeout | None = None
        self._is_cancelled = False
        self.num_outlived = 0
        """Workers that died while they had it."""
        self._priority: int | None = None

    @property
    def cached_tokens(self) -> int:
        """Of the prompts of sequences that have begun, as the first worker said."""
        return sum(part.cached_tokens for part in self._parts.values())

    @property
    def completion_tokens(self) -> int:
        """Tokens that were delivered."""
        return sum(len(part.token_ids) for part in self._parts.values())

    # ---- the steps ----

    async def prepare(
        self, *, max_prompt_tokens: int = 0, truncation: str = ""
    ) -> Prepared | Answer:
        """Have the request tokenised, and its prompt cut if it is longer than that (`Prepare`); so
        it will be in every worker that has it later. May be called again, before `compute`. Raises
        the worker's refusal, `WorkerDied`, and what `Model.lease` raises."""
        self._cut = {"max_prompt_tokens": max_prompt_tokens, "truncation": truncation}
        while True:
            try:
                await self._go_alone_if_suspected()
                prepared = await self._prepare(self._on_loading, patience_s=PATIENCE_S)
                self._clear()
                return prepared
            except WorkerDied as death:
                self._outlive(death)
            finally:
                self._let_others_go()

    async def compute(self, start: Start, on_output: Callable[[Output], None]) -> Ended | None:
        """Compute what was prepared; None if it was cancelled while no worker had it.

        `on_output` gets all that is new, and must neither wait nor raise. Raises `WorkerDied`, and
        what `Model.lease` raises if no worker had begun yet.
        """
        self._on_output = on_output
        self._demand = Demand(start.domain, self._prefixes, start.n)
        self._may_move = True
        try:
            while await self._is_ready():
                try:
                    return await self._start(start)
                except WorkerDied as death:
                    self._outlive(death)
            return None
        except Problem as problem:
            if self._was_started and not isinstance(problem, WorkerDied):
                raise _given_up(problem) from None
            raise
        finally:
            self._let_others_go()

    def reprioritize(self, priority: int) -> None:
        """Have the engine order it by another number than its start says, in this worker and in
        those that come after it."""
        self._priority = priority
        if self._link is not None and self._call is not None:
            self._link.reprioritize(self._call, priority)

    def cancel(self) -> None:
        """Make `compute` end soon, with what there is by then."""
        self._is_cancelled = True
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())
        elif self._link is not None and self._call is not None:
            self._link.abort(self._call)

    def drop(self) -> None:
        """Have the worker forget it, in case it was prepared and not started."""
        if self._link is not None and self._call is not None:
            self._link.drop(self._call)

    # ---- in one worker ----

    async def _prepare(
        self, on_loading: Callable[[Loading], None], *, patience_s: float
    ) -> Prepared | Answer:
        self.drop()
        link = await self._model.wait_link(on_loading, patience_s=patience_s, demand=self._demand)
        return await self._prepare_in(link)

    async def _prepare_in(self, link: Link) -> Prepared | Answer:
        self.drop()
        self._link = link
        self._call = link.prepare(self._op, self._params, **self._cut)
        self._call.is_survivor = self._num_deaths > 0
        if self._demand.has_begun:  # others that come back see that the slot is taken
            self._call.num_sequences = self._demand.num_sequences
        try:
            prepared = await link.wait_prepared(self._call)
        except Unsupported as problem:  # a worker says "this model"
            problem.message = f"model {self._model.name}: {problem.message}"
            raise
        if isinstance(prepared, Prepared):
            self._prompt_tokens = prepared.prompt_tokens
            self._longest = prepared.longest
            self._prefixes = prepared.prefixes
        return prepared

    async def _start(self, start: Start) -> Ended:
        assert self._link is not None
        assert self._call is not None
        self._check_context(self._link, start)
        self._was_started = True
        self._files_at_start = self._link.files
        told = [part.continuation(index) for index, part in self._parts.items()]
        priority = start.priority if self._priority is None else self._priority
        start = replace(start, rid=self._call.rid, continuation=told, priority=priority)
        self._link.beginnings.note(self._demand.domain, self._demand.prefixes)
        self._link.start(self._call, start, self._take)
        return await self._call.ended

    def _check_context(self, link: Link, start: Start) -> None:
        """The plan was made for another worker; this one may have been given less since."""
        if link.context is not None and self._longest + start.max_tokens > link.context:
            raise ModelFailed(
                f"the settings of model {self._model.name} have been changed meanwhile: it has "
                f"{link.context} tokens of context now",
                hint="send the request again",
            )

    def _take(self, output: Output) -> None:
        part = self._parts.get(output.index)
        if part is None:
            part = self._parts[output.index] = _Part(output.cached_tokens)
        part.token_ids.extend(output.token_ids)
        part.mu = output.mu
        self._clear()
        self._on_output(output)

    # ---- from one worker to the next ----

    def _outlive(self, death: WorkerDied) -> None:
        """The worker that had it died. Raises `WorkerDied` if that looks like its doing."""
        assert self._call is not None
        self._let_others_go()
        if self._is_cancelled:
            return
        self._num_deaths += 1
        self.num_outlived += 1
        is_sure = self._call.is_only_suspect and len(self._model.replicas) == 1
        if self._num_deaths > _SUSPICIOUS or is_sure:
            raise self._suspected(death)

    async def _is_ready(self) -> bool:
        """See that the worker which is to compute it has it prepared. False if it is cancelled."""
        while not self._is_cancelled and (step := self._next_step()) is not None:
            try:
                with contextlib.suppress(TimeoutError):  # that is how `cancel` ends the wait
                    async with asyncio.timeout(None) as self._waiting:
                        await step
            finally:
                self._waiting = None
        return not self._is_cancelled

    def _next_step(self) -> Coroutine[Any, Any, None] | None:
        """What is still to be done before it can start; None if nothing is. It goes to another
        worker for being better off there once at most, or it might go to and fro."""
        if self._link is None or self._link.is_closed:
            return self._come_back()
        if not self._may_move:
            return None
        self._may_move = False
        link = self._model.better_link(self._link, self._demand)
        return None if link is self._link else self._move(link)

    async def _move(self, link: Link) -> None:
        """Have another worker prepare it."""
        with contextlib.suppress(WorkerDied):  # not its doing: it has been prepared before
            await self._prepare_in(link)

    async def _come_back(self) -> None:
        """Have the next worker prepare it, and wait until it may start there."""
        self._demand = replace(self._demand, has_begun=True)
        with contextlib.suppress(WorkerDied):  # not its doing: it has been prepared before
            await self._prepare(lambda progress: None, patience_s=COMEBACK_PATIENCE_S)
            await self._go_alone_if_suspected()
        if self._was_started and self._link and self._link.files != self._files_at_start:
            raise ModelFailed(
                f"the files of model {self._model.name} have been changed meanwhile",
                hint="send the request again",
            )

    def _suspected(self, death: WorkerDied) -> WorkerDied:
        logger.error(
            "%s (%d prompt tokens, %d delivered) was in flight when %d workers of model %s in a row"
            " died, and got nothing in between: it is suspected of killing them, and ends",
            self._owner,
            self._prompt_tokens,
            self.completion_tokens,
            self._num_deaths,
            self._model.name,
            extra=fields(message_id=message_ids.REQUEST_SUSPECTED, model=self._model.name),
        )
        return WorkerDied(
            f"{death.message}, as did the one before it; this request is suspected of killing them",
            hint="it may do so again: ask the administrator, who finds it in the log of the daemon",
        )

    @property
    def _is_suspected(self) -> bool:
        return self._num_deaths >= _SUSPICIOUS

    async def _go_alone_if_suspected(self) -> None:
        if self._is_suspected and not self._is_alone:
            await self._model.one_suspect_at_a_time.acquire()
            self._is_alone = True

    def _let_others_go(self) -> None:
        if self._is_alone:
            self._is_alone = False
            self._model.one_suspect_at_a_time.release()

    def _clear(self) -> None:
        """It got somewhere, so it is not to blame for any death before."""
        self._num_deaths = 0
        self._let_others_go()


def _given_up(problem: Problem) -> WorkerDied:
    return WorkerDied(
        f"the worker died while it computed this, and there is no other one: {problem.message}",
        hint=problem.hint,
        retry_after_s=problem.retry_after_s,
    )
