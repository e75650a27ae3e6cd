"""One inference request from its parameters to its result: the way described in docs/structure.md.

Owns the order of the steps (limits, load, prepare, reserve, queue, start, settle) and what is
recorded at each. How a model runs is the fleet's and the worker's; what is allowed is admission's.

Invariants: nothing is computed before the reservation is on disk; usage is on disk before the
result is given back; a request that reached `prepare` has exactly one ledger row, whatever becomes
of it; a dry run has none.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from openclawctl.wire.chat import ChatMessage
from openclawctl.wire.completion import ChatParams, GenerateParams
from openclawctl.wire.errors import Code, Internal, Problem, RateLimited
from openclawctl.wire.messages import Delta
from openclawctl.wire.operations import (
    DetokenizeParams,
    EmbedParams,
    EncodingParams,
    Op,
    TokenizeParams,
)
from openclawctl.wire.results import Choice, FinishReason, InferenceResult, Timings, Usage
from openclawctl.wire.scheduling import KEEP_FOR_EVER
from openclawd.admission.tiers import Priority, Tier
from openclawd.fleet.spec import ModelState
from openclawd.fleet.submission import submit
from openclawd.server.account import Account
from openclawd.server.deadline import Stage, deadline
from openclawd.server.dry_run import foretell
from openclawd.server.fallback import UseFallback
from openclawd.server.planning import check_size, plan, subject_of
from openclawd.server.recording import reserve, settle
from openclawd.server.scores import scores_of
from openclawd.worker.messages import Answer, Ended, Output, Start

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractAsyncContextManager

    from openclawctl.wire.tools import ToolCall
    from openclawd.admission.limit_rules import FittingRules, LimitRule
    from openclawd.admission.limits import TokenLimits
    from openclawd.admission.queue import Place
    from openclawd.admission.subjects import Subject
    from openclawd.fleet.model import Model
    from openclawd.fleet.submission import Submission
    from openclawd.fleet.turns import Turn
    from openclawd.server.lanes import Slot
    from openclawd.server.meters import ModelTimes
    from openclawd.server.peer import Exchange
    from openclawd.server.scores import Scores
    from openclawd.server.service import Service
    from openclawd.worker.messages import Loading

InferenceParams = GenerateParams | ChatParams | EncodingParams


async def infer(service: Service, exchange: Exchange, params: InferenceParams) -> dict[str, Any]:
    """Serve `generate`, `chat`, `embed`, `classify` or `rerank`. Raises `Problem` with what stood
    in the way."""
    inference = Inference(service, exchange, params, service.fleet.resolve(params.model))
    with deadline(exchange, params.deadline_s, lambda: inference.stage):
        try:
            await _serve(inference)
        except UseFallback as fallback:
            inference = _fallen_back(inference, fallback)
            try:
                await _serve(inference)
            except BaseException as error:
                # It has reached `prepare`, with its first model, and so it has a row.
                if inference.stage is Stage.LOADING and not inference.is_dry:
                    await inference.record_failure(error)
                raise
    return inference.result()


async def _serve(inference: Inference) -> None:
    """All of a request with one model. Raises `UseFallback`, or what stood in the way."""
    exchange, params, model = inference.exchange, inference.params, inference.model
    model.check_adapter(params.adapter)
    known = model.info
    check_size(inference)  # before anything is loaded, with what is known of the model by then
    _note_load(inference.service, exchange, model)
    with inference.service.open_requests.listed(inference):
        async with submit(
            model,
            exchange.request.op,
            params.encode(),
            owner=f"request {inference.request_id} of {exchange.peer.principal.name}",
            on_loading=inference.on_loading,
            keep_alive_s=_keep_alive_s(params),
        ) as submission:
            inference.load_s = inference.elapsed_s()
            if model.info is not known:
                check_size(inference)  # it was loaded meanwhile
            if inference.is_dry:
                inference.forecast = await foretell(inference, submission)
            else:
                await inference.run(submission)


def _note_load(service: Service, exchange: Exchange, model: Model) -> None:
    """Write into the audit who is to thank for a model that comes on demand. How it ends is in the
    request's own row."""
    if model.state is ModelState.UNLOADED:
        reason = {"for": exchange.request.op}
        service.audit.note(
            action=Op.LOAD.value, model=model.name, peer=exchange.peer, detail=reason
        )


def _keep_alive_s(params: InferenceParams) -> float | None:
    """How long the model is to stay after the request; None as it is configured."""
    return math.inf if params.keep_alive_s == KEEP_FOR_EVER else params.keep_alive_s


def _fallen_back(first: Inference, fallback: UseFallback) -> Inference:
    """The same request for another model, of which its client is told."""
    first.exchange.warn(
        "fallback",
        f"{fallback.problem.message}: model {fallback.model} answers instead of {first.model.name}",
    )
    return Inference(
        first.service,
        first.exchange,
        replace(first.params, model=fallback.model),
        first.service.fleet.resolve(fallback.model),
        request_id=first.request_id,
        fallback_from=first.model.name,
    )


async def ask_tokenizer(
    service: Service, exchange: Exchange, params: TokenizeParams | DetokenizeParams
) -> dict[str, Any]:
    """Serve `tokenize` or `detokenize`: no sequence, no queue, no ledger row."""
    model = service.fleet.resolve(params.model)
    _note_load(service, exchange, model)
    async with submit(
        model,
        exchange.request.op,
        params.encode(),
        owner=f"a {exchange.request.op} of {exchange.peer.principal.name}",
        on_loading=lambda progress: tell_loading(exchange, progress),
    ) as submission:
        answer = await submission.prepare()
    if not isinstance(answer, Answer):
        raise Internal(f"the worker of model {model.name} gave no answer to {exchange.request.op}")
    return answer.result


@dataclass(slots=True)
class _Part:
    """What one sequence has produced so far."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    delivered_at: float | None = None
    """When its last tokens came, by the monotonic clock."""

    def take(self, output: Output) -> None:
        self.texts.append(output.text)
        self.reasoning.append(output.reasoning)
        self.tool_calls += output.tool_calls
        self.token_ids += output.token_ids

    def message(self) -> dict[str, Any]:
        """The assistant's turn, as the next request of the chat takes it."""
        content, reasoning = "".join(self.texts), "".join(self.reasoning)
        return ChatMessage("assistant", content, reasoning, self.tool_calls).encode()


@dataclass(slots=True, eq=False)
class Inference:
    """The state of one inference request. Times are seconds since its arrival. Raises
    `LimitExceeded` for a priority that its caller's tier may not ask for."""

    service: Service
    exchange: Exchange
    params: InferenceParams
    model: Model
    request_id: str = field(default_factory=lambda: str(new_request_id()))
    stage: Stage = Stage.LOADING
    load_s: float = 0.0
    queued_at_s: float = 0.0
    queue_s: float = 0.0
    ttft_s: float | None = None
    total_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0  # that have arrived here
    max_tokens: int = 0
    prompt_text: str | None = None
    prefixes: list[tuple[int, bytes]] = field(default_factory=list)
    fallback_from: str = ""
    rules: Collection[LimitRule] = ()
    truncation: str = ""
    dropped_tokens: int = 0
    parts: dict[int, _Part] = field(default_factory=dict)
    is_reserved: bool = False
    num_outlived: int = 0
    ended: Ended | None = None
    turn: Turn | None = None
    queued: dict[str, Any] = field(default_factory=dict)
    """What its client last heard of where it stands."""
    forecast: dict[str, Any] = field(default_factory=dict)
    """What it would take, once a dry run has found that out."""
    scores: Scores | None = None
    subject: Subject = field(init=False)
    fitting: FittingRules = field(init=False)
    account: Account = field(init=False)
    tier: Tier = field(init=False)
    priority: Priority = field(init=False)
    times: ModelTimes = field(init=False)

    def __post_init__(self) -> None:
        self.subject = subject_of(self)
        self.fitting = self.service.limit_rules.of(self.subject)
        self.account = Account()
        self.times = self.service.meters.times_of(self.model.name)
        self.tier = self.service.tier_of(self.exchange.peer.principal)
        asked = self.params.priority
        self.priority = self.tier.priority_of(None if asked is None else Priority[asked.upper()])

    def elapsed_s(self) -> float:
        return self.service.now() - self.exchange.arrived_at

    @property
    def app(self) -> str:
        """What the request is for: by its own label, else by that of its connection."""
        return self.params.app or self.exchange.peer.app

    @property
    def num_choices(self) -> int:
        """Answers to the one prompt; 1 also where there is no answer in text."""
        return 1 if isinstance(self.params, EncodingParams) else self.params.n

    @property
    def is_dry(self) -> bool:
        """Is nothing to be computed, but to be said what it would take?"""
        return isinstance(self.params, GenerateParams | ChatParams) and self.params.dry_run

    @property
    def limits(self) -> TokenLimits:
        """Exact once the model is loaded; it may have less context than was configured."""
        return self.service.limits_of(self.model)

    # ---- the steps ----

    async def run(self, submission: Submission) -> None:
        """Everything between tokenising and the last token, recorded however it ends."""
        try:
            self.stage = Stage.PREPARING
            await plan(self, submission)
            self.scores = scores_of(self.params, self.model.name, self.model.info)
            self.stage = Stage.QUEUED
            self.queued_at_s = self.elapsed_s()
            async with self.service.lanes.take(
                self.rules, self.subject, self._on_queued, give_up=self.exchange.cancel
            ) as slot:
                await self.account.take(self, slot)
                await reserve(self)
                self.is_reserved = True
                async with self._turn(slot) as self.turn:
                    self.turn.on_rank = submission.reprioritize
                    slot.start()
                    self.queue_s = self.elapsed_s() - self.queued_at_s
                    self.ended = await self._compute(submission)
            self._raise_if_cut_short(self.ended)
        except UseFallback:
            self.account.undo()
            raise
        except BaseException as error:
            await self.record_failure(error)
            raise
        self.total_s = self.elapsed_s()
        await settle(self, None)

    def _turn(self, slot: Slot) -> AbstractAsyncContextManager[Turn]:
        """Its turn at the model, for the length of a block."""
        return self.model.turns.take(
            slot.wait,
            priority=self.priority,
            weight=self.num_choices,
            principal=self.exchange.peer.principal.name,
            tier=self.tier,
            tokens=self.prompt_tokens,
            name=self.request_id,
        )

    async def record_failure(self, error: BaseException) -> None:
        """Write down that the request ended so. The time that takes is taken off what a rate limit
        foretells, for it counts from when the client reads it. Raises `Unavailable`."""
        self.total_s = self.elapsed_s()
        if self.stage is not Stage.COMPUTING:
            self.account.refund()
        if self.stage is Stage.QUEUED:
            self.queue_s = self.total_s - self.queued_at_s
        await settle(self, self._problem_of(error))
        if isinstance(error, RateLimited) and error.retry_after_s is not None:
            error.retry_after_s = max(0.0, error.retry_after_s - self.elapsed_s() + self.total_s)

    @property
    def reserved_completion_tokens(self) -> int:
        """The most that can come, over all choices."""
        return self.num_choices * self.max_tokens

    async def _compute(self, submission: Submission) -> Ended:
        self.stage = Stage.COMPUTING
        self.exchange.on_cancel = submission.cancel
        self.exchange.event(
            "started", {"request_id": self.request_id, "prompt_tokens": self.prompt_tokens}
        )
        self._echo()
        try:
            ended = await submission.compute(self._start_message(), self._on_output)
        finally:
            self.num_outlived = submission.num_outlived
        return ended or self._cancelled(submission)

    def _cancelled(self, submission: Submission) -> Ended:
        """The end of what was cancelled while it waited for a new worker."""
        params = self.params
        num_sequences = len(params.input) if isinstance(params, EncodingParams) else params.n
        return Ended(
            rid=0,
            finish_reasons=[FinishReason.CANCELLED.value] * num_sequences,
            prompt_tokens=0 if self.ttft_s is None else self.prompt_tokens,
            cached_tokens=submission.cached_tokens,
            completion_tokens=submission.completion_tokens,
        )

    def _echo(self) -> None:
        """Begin each choice with the prompt, if that was asked for."""
        if not (isinstance(self.params, GenerateParams) and self.params.echo):
            return
        prompt = self.params.prompt
        text = prompt if isinstance(prompt, str) else self.prompt_text or ""
        for index in range(self.num_choices):
            self.parts[index] = _Part([text])
            if self._is_streamed:
                self.exchange.delta(Delta(self.exchange.request.id, index, text))

    def _raise_if_cut_short(self, ended: Ended) -> None:
        """Raise what ended the request, unless it ran to its end or its client cancelled it: a
        cancel gives the client the partial result, any other reason an error."""
        if ended.error is not None:
            raise ended.to_problem()
        if self.scores is not None and self.scores.problem is not None:
            raise self.scores.problem
        problem = self.exchange.cancel_problem
        was_cancelled = FinishReason.CANCELLED.value in ended.finish_reasons
        if was_cancelled and problem is not None and problem.code != Code.CANCELLED.value:
            raise problem

    def _start_message(self) -> Start:
        """What every worker is told that computes this; the seed is drawn once."""
        adapter = self.params.adapter or ""
        assert self.turn is not None
        if isinstance(self.params, EncodingParams):
            return Start(rid=0, max_tokens=0, sampling={}, priority=self.turn.rank, adapter=adapter)
        sampling = self.params.sampling.over(self.service.sampling_of(self.model)).encode()
        sampling.setdefault("seed", secrets.randbits(32))
        return Start(
            rid=0,
            max_tokens=self.max_tokens,
            sampling=sampling,
            stop=self.params.stop,
            priority=self.turn.rank,
            n=self.num_choices,
            domain=self.service.prefix_domain_of(self.model, self.exchange.peer.principal),
            adapter=adapter,
        )

    # ---- news ----

    def on_loading(self, progress: Loading) -> None:
        tell_loading(self.exchange, progress)

    def _on_queued(self, place: Place) -> None:
        self.note_queued({"position": place.position, "eta_s": place.eta_s})

    def note_queued(self, data: dict[str, Any]) -> None:
        """It has to wait: its client hears where it stands."""
        self.queued = data
        self.exchange.event("queued", data)

    def _on_output(self, output: Output) -> None:
        now = self.service.now()
        if self.ttft_s is None:
            self.ttft_s = now - self.exchange.arrived_at
            self.times.note_first_token(self, self.ttft_s)
            self._note_served(-output.cached_tokens)
        part = self.parts.get(output.index)
        if part is None:
            part = self.parts[output.index] = _Part()
        part.take(output)
        if self.scores is not None and output.embedding is not None:
            self.scores.take(output.index, output.embedding)
        if num_tokens := len(output.token_ids):
            self.completion_tokens += num_tokens
            self._note_interval(part, num_tokens, now)
            self._note_served(num_tokens)
            self.account.completion(num_tokens)
            self.service.totals.note_tokens(num_tokens, now=now)
            self.service.ledger.progress(self.request_id, self.completion_tokens)
        if self._is_streamed:
            self.exchange.delta(
                Delta(
                    self.exchange.request.id,
                    output.index,
                    output.text,
                    output.token_ids,
                    output.embedding,
                    output.logprobs,
                    output.reasoning or None,
                    output.tool_calls or None,
                )
            )

    def _note_interval(self, part: _Part, num_tokens: int, now: float) -> None:
        """The time since the sequence's last token; of several that came at once, each took an
        equal share of it."""
        if part.delivered_at is not None:
            each_s = (now - part.delivered_at) / num_tokens
            self.times.inter_token.histogram.observe(each_s, num_tokens)
        part.delivered_at = now

    def _note_served(self, tokens: int) -> None:
        assert self.turn is not None
        self.model.turns.served(self.turn, tokens)

    @property
    def _is_streamed(self) -> bool:
        """Vectors and probabilities come in deltas only: they are too much to be kept here."""
        params = self.params
        if isinstance(params, EmbedParams):
            return True
        if isinstance(params, EncodingParams):
            return False
        return params.stream or bool(params.sampling.logprobs)

    # ---- the end ----

    @property
    def op(self) -> Op:
        return Op(self.exchange.request.op)

    @property
    def finish_reason(self) -> str | None:
        """That of the first sequence; None when it never ended."""
        return self.ended.finish_reasons[0] if self.ended else None

    @property
    def usage(self) -> Usage:
        """Exact counts once the worker has ended the request; before, what has arrived here."""
        if self.ended is not None:
            return Usage(
                prompt_tokens=self.ended.prompt_tokens,
                cached_tokens=self.ended.cached_tokens,
                completion_tokens=self.ended.completion_tokens,
            )
        prompt_tokens = 0 if self.ttft_s is None else self.prompt_tokens
        counts = "estimated" if self.stage is Stage.COMPUTING else "exact"
        return Usage(prompt_tokens, 0, self.completion_tokens, counts)

    @property
    def timings(self) -> Timings:
        return Timings(
            load_s=round(self.load_s, 6),
            queue_s=round(self.queue_s, 6),
            ttft_s=None if self.ttft_s is None else round(self.ttft_s, 6),
            total_s=round(self.total_s, 6),
            guessed_tokens=self.ended.guessed_tokens if self.ended else 0,
            accepted_tokens=self.ended.accepted_tokens if self.ended else 0,
        )

    def result(self) -> dict[str, Any]:
        """`done.result`."""
        if self.is_dry:
            return self.forecast
        result = InferenceResult(
            request_id=self.request_id,
            model=self.model.name,
            usage=self.usage,
            timings=self.timings,
            choices=self._choices(),
            context=self.context(),
        ).encode()
        return {**result, **self.scores.result()} if self.scores else result

    def context(self) -> dict[str, Any]:
        """What became of the prompt."""
        context: dict[str, Any] = {
            "policy": self.truncation or "error",
            "prompt_tokens_in": self.prompt_tokens + self.dropped_tokens,
            "dropped": self.dropped_tokens,
            "max_tokens": self.max_tokens,
        }
        if self.fallback_from:
            context["fallback_from"] = self.fallback_from
        return context

    def _choices(self) -> list[Choice]:
        assert self.ended is not None
        if isinstance(self.params, EncodingParams):
            return []
        return [self._choice(i, reason) for i, reason in enumerate(self.ended.finish_reasons)]

    def _choice(self, index: int, finish_reason: str) -> Choice:
        part = self.parts.get(index, _Part())
        token_ids = part.token_ids
        if isinstance(self.params, ChatParams):
            return Choice(index, finish_reason, message=part.message(), token_ids=token_ids)
        return Choice(index, finish_reason, "".join(part.texts), token_ids=token_ids)

    def _problem_of(self, error: BaseException) -> Problem:
        """What the ledger and the log call this end."""
        if isinstance(error, Problem):
            return error
        if isinstance(error, asyncio.CancelledError) and self.exchange.cancel_problem is not None:
            return self.exchange.cancel_problem
        return Internal("the daemon failed or ended")


def new_request_id() -> uuid.UUID:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, the rest random, so that ids
    sort by time."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 7 << 76  # version
    value = value & ~(0x3 << 62) | 2 << 62  # variant
    return uuid.UUID(int=value)


def tell_loading(exchange: Exchange, progress: Loading) -> None:
    """Tell a request's client how far its model is."""
    exchange.event("loading", {"phase": progress.phase, "fraction": progress.fraction})
