"""One inference request from its parameters to its result: the way described in docs/structure.md.

Owns the order of the steps (limits, load, prepare, reserve, queue, start, settle) and what is
recorded at each. How a model runs is the fleet's and the worker's; what is allowed is admission's.

Invariants: nothing is computed before the reservation is on disk; usage is on disk before the
result is given back; a request that reached `prepare` has exactly one ledger row, whatever becomes
of it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openclawctl.wire.chat import ChatMessage
from openclawctl.wire.completion import ChatParams, GenerateParams
from openclawctl.wire.errors import Code, Internal, Problem
from openclawctl.wire.messages import Delta
from openclawctl.wire.operations import DetokenizeParams, EmbedParams, Op, TokenizeParams
from openclawctl.wire.results import Choice, FinishReason, InferenceResult, Timings, Usage
from openclawd.admission.limits import (
    TokenLimits,
    check_answer_tokens,
    check_choices,
    check_min_tokens,
    check_prompt_bytes,
    check_prompt_tokens,
    plan_completion,
)
from openclawd.admission.tiers import DEFAULT_TIER, Priority, Tier
from openclawd.fleet.submission import submit
from openclawd.server.deadline import Stage, deadline
from openclawd.server.recording import reserve, settle
from openclawd.worker.messages import Answer, Ended, Output, Prepared, Start

if TYPE_CHECKING:
    from openclawctl.wire.tools import ToolCall
    from openclawd.admission.queue import Place
    from openclawd.fleet.model import Model
    from openclawd.fleet.submission import Submission
    from openclawd.fleet.turns import Turn
    from openclawd.server.peer import Exchange
    from openclawd.server.service import Service
    from openclawd.worker.messages import Loading

InferenceParams = GenerateParams | ChatParams | EmbedParams

LONGEST_TOKEN_BYTES = 1024
"""No vocabulary in use has longer tokens (the longest seen are runs of 128 spaces or dashes)."""


async def infer(service: Service, exchange: Exchange, params: InferenceParams) -> dict[str, Any]:
    """Serve `generate`, `chat` or `embed`. Raises `Problem` with what stood in the way."""
    model = service.fleet.resolve(params.model)
    model.check_adapter(params.adapter)
    inference = Inference(service, exchange, params, model)
    inference.check_size()  # before anything is loaded, with what is known of the model by then
    with deadline(exchange, params.deadline_s, lambda: inference.stage):
        async with submit(
            model,
            exchange.request.op,
            params.encode(),
            owner=f"request {inference.request_id} of {exchange.peer.principal.name}",
            on_loading=inference.on_loading,
        ) as submission:
            inference.load_s = inference.elapsed_s()
            inference.check_size()
            await inference.run(submission)
    return inference.result()


async def ask_tokenizer(
    service: Service, exchange: Exchange, params: TokenizeParams | DetokenizeParams
) -> dict[str, Any]:
    """Serve `tokenize` or `detokenize`: no sequence, no queue, no ledger row."""
    model = service.fleet.resolve(params.model)
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
    """The state of one inference request. Times are seconds since its arrival."""

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
    max_tokens: int = 0
    prompt_text: str | None = None
    parts: dict[int, _Part] = field(default_factory=dict)
    is_reserved: bool = False
    ended: Ended | None = None
    turn: Turn | None = None

    def elapsed_s(self) -> float:
        return self.service.now() - self.exchange.arrived_at

    @property
    def priority(self) -> Priority:
        name = self.params.priority
        return Priority.NORMAL if name is None else Priority[name.upper()]

    @property
    def fair_key(self) -> str:
        """Who shares the model's places with whom."""
        return f"{self.exchange.peer.principal.name} {self.exchange.peer.app}"

    @property
    def tier(self) -> Tier:
        return DEFAULT_TIER

    @property
    def num_choices(self) -> int:
        """Answers to the one prompt; 1 also for embeddings."""
        return 1 if isinstance(self.params, EmbedParams) else self.params.n

    @property
    def limits(self) -> TokenLimits:
        """Exact once the model is loaded; it may have less context than was configured."""
        return self.service.limits_of(self.model)

    # ---- the steps ----

    def check_size(self) -> None:
        """Refuse what cannot fit before time is spent on it. Raises `PromptTooLong`, and
        `LimitExceeded` for more choices than can be computed together."""
        check_choices(self.num_choices, self.limits)
        if isinstance(self.params, GenerateParams) and not isinstance(self.params.prompt, str):
            check_prompt_tokens(len(self.params.prompt), self.limits)
        num_bytes = sum(len(text.encode(errors="replace")) for text in _longest_inputs(self.params))
        longest = self.model.info.get("max_token_bytes") or LONGEST_TOKEN_BYTES
        check_prompt_bytes(num_bytes, longest_token_bytes=longest, limits=self.limits)

    async def run(self, submission: Submission) -> None:
        """Everything between tokenising and the last token, recorded however it ends."""
        try:
            self.stage = Stage.PREPARING
            self._plan(await submission.prepare())
            await reserve(self)
            self.is_reserved = True
            self.stage = Stage.QUEUED
            self.queued_at_s = self.elapsed_s()
            async with self.model.turns.take(
                self._on_queued,
                priority=self.priority,
                weight=self.num_choices,
                principal=self.fair_key,
                tier=self.tier,
                tokens=self.prompt_tokens,
            ) as self.turn:
                self.turn.on_rank = submission.reprioritize
                self.queue_s = self.elapsed_s() - self.queued_at_s
                self.ended = await self._compute(submission)
            self._raise_if_cut_short(self.ended)
        except BaseException as error:
            self.total_s = self.elapsed_s()
            if self.stage is Stage.QUEUED:
                self.queue_s = self.total_s - self.queued_at_s
            await settle(self, self._problem_of(error))
            raise
        self.total_s = self.elapsed_s()
        await settle(self, None)

    def _plan(self, prepared: Prepared | Answer) -> None:
        """Decide on exact counts whether the request may run, and how far."""
        if not isinstance(prepared, Prepared):
            raise Internal(f"the worker of model {self.model.name} did not count the prompt")
        self.prompt_tokens = prepared.prompt_tokens
        self.prompt_text = prepared.text
        if isinstance(self.params, EmbedParams):
            check_prompt_tokens(prepared.longest, self.limits)
        else:
            self.max_tokens = plan_completion(
                prepared.prompt_tokens, self.params.max_tokens, self.limits
            )
            check_min_tokens(self.params.sampling.min_tokens or 0, self.max_tokens)
            check_answer_tokens(self.reserved_completion_tokens)

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
        ended = await submission.compute(self._start_message(), self._on_output)
        return ended or self._cancelled(submission)

    def _cancelled(self, submission: Submission) -> Ended:
        """The end of what was cancelled while it waited for a new worker."""
        params = self.params
        num_sequences = len(params.input) if isinstance(params, EmbedParams) else params.n
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
        problem = self.exchange.cancel_problem
        was_cancelled = FinishReason.CANCELLED.value in ended.finish_reasons
        if was_cancelled and problem is not None and problem.code != Code.CANCELLED.value:
            raise problem

    def _start_message(self) -> Start:
        """What every worker is told that computes this; the seed is drawn once."""
        adapter = self.params.adapter or ""
        assert self.turn is not None
        if isinstance(self.params, EmbedParams):
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
        self.exchange.event("queued", {"position": place.position, "eta_s": place.eta_s})

    def _on_output(self, output: Output) -> None:
        if self.ttft_s is None:
            self.ttft_s = self.elapsed_s()
            self._note_served(-output.cached_tokens)
        self._note_served(len(output.token_ids))
        self.parts.setdefault(output.index, _Part()).take(output)
        if output.token_ids:
            self.service.note_tokens(len(output.token_ids))
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

    def _note_served(self, tokens: int) -> None:
        assert self.turn is not None
        self.model.turns.served(self.turn, tokens)

    @property
    def _is_streamed(self) -> bool:
        """Vectors and probabilities come in deltas only: they are too much to be kept here."""
        params = self.params
        if isinstance(params, EmbedParams):
            return True
        return params.stream or bool(params.sampling.logprobs)

    # ---- the end ----

    @property
    def completion_tokens(self) -> int:
        """Tokens that have arrived here."""
        return sum(len(part.token_ids) for part in self.parts.values())

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
        return InferenceResult(
            request_id=self.request_id,
            model=self.model.name,
            usage=self.usage,
            timings=self.timings,
            choices=self._choices(),
            context={
                "policy": "error",
                "prompt_tokens_in": self.prompt_tokens,
                "dropped": 0,
                "max_tokens": self.max_tokens,
            },
        ).encode()

    def _choices(self) -> list[Choice]:
        assert self.ended is not None
        if isinstance(self.params, EmbedParams):
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


def _longest_inputs(params: InferenceParams) -> list[str]:
    """The texts that share one context, or the longest of those that do not."""
    match params:
        case GenerateParams(prompt=prompt, suffix=suffix):
            return [text for text in (prompt, suffix) if isinstance(text, str)]
        case ChatParams(messages=messages):
            return [message.content for message in messages]
        case EmbedParams(input=texts):
            return [max(texts, key=len)]
