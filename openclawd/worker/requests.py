"""The requests that are being computed: sequences' effects become the daemon's outputs and ends.

Owns which sequences belong to a request and its exact counts. Knows no backend and no pipe.

Invariant: every request that was opened has exactly one `Ended`, when its last sequence has ended.
"""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol, assert_never

from openclawctl.wire.errors import ModelFailed, Problem
from openclawctl.wire.tokens import LOWEST_LOGPROB, TokenLogprob
from openclawctl.wire.tools import ToolCall
from openclawd.engine.batch import BatchKind
from openclawd.engine.sequence import Effect, Embedded, Ended, Finish, Sampled, Sequence
from openclawd.worker.answer import Pieces
from openclawd.worker.messages import Ended as RequestEnded
from openclawd.worker.messages import Output, error_fields

if TYPE_CHECKING:
    import collections.abc
    from collections.abc import Collection, Iterable

    from openclawd.engine.batch import TokenOutput
    from openclawd.worker.answer import AnswerParser, WrittenCall


_ID_CHARS: Final = string.ascii_letters + string.digits
_ID_LENGTH: Final = 9


class Vocabulary(Protocol):
    """What must be known of tokens to tell of them."""

    def piece(self, token: int) -> bytes: ...
    def detokenize(self, tokens: collections.abc.Sequence[int]) -> bytes: ...


@dataclass(slots=True)
class _Request:
    finish_by_index: list[Finish | None]
    parsers: list[AnswerParser | None]
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_cached_tokens: int = 0
    num_guessed_tokens: int = 0
    num_accepted_tokens: int = 0
    problem: Problem | None = None

    @property
    def has_ended(self) -> bool:
        return all(self.finish_by_index)


@dataclass(slots=True)
class StepOutputs:
    """What one step says to the daemon."""

    outputs: dict[tuple[int, int], Output] = field(default_factory=dict)
    ended: list[RequestEnded] = field(default_factory=list)

    def put(
        self,
        sequence: Sequence,
        pieces: Pieces,
        token_ids: Iterable[int] = (),
        logprob: TokenLogprob | None = None,
    ) -> None:
        """Add to what there is of a sequence."""
        output = Output(
            sequence.rid,
            sequence.index,
            pieces.content,
            list(token_ids),
            cached_tokens=_num_cached_tokens(sequence),
            logprobs=[logprob] if logprob else None,
            reasoning=pieces.reasoning,
            tool_calls=[_tool_call(call) for call in pieces.calls],
            mu=sequence.mu,
        )
        key = (sequence.rid, sequence.index)
        before = self.outputs.get(key)
        self.outputs[key] = output if before is None else _joined(before, output)


def _joined(first: Output, second: Output) -> Output:
    """Two outputs of one sequence in one step, as guesses that were right make them."""
    return replace(
        second,
        text=first.text + second.text,
        reasoning=first.reasoning + second.reasoning,
        tool_calls=first.tool_calls + second.tool_calls,
        token_ids=first.token_ids + second.token_ids,
        logprobs=[*(first.logprobs or []), *(second.logprobs or [])] or None,
    )


class Requests:
    """Every request that has started and not ended."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._open: dict[int, _Request] = {}

    def open(
        self, rid: int, sequences: Collection[Sequence], parsers: list[AnswerParser | None]
    ) -> None:
        """A request has started. Of each sequence, the parser that takes its text apart."""
        self._open[rid] = _Request(
            finish_by_index=[None] * len(sequences),
            parsers=parsers,
            num_completion_tokens=sum(sequence.num_completion_tokens for sequence in sequences),
        )

    def apply(self, effects: Iterable[Effect], *, failure: str) -> StepOutputs:
        """What to tell of these effects. `failure` is the sentence for sequences in error."""
        step = StepOutputs()
        for effect in effects:
            match effect:
                case Sampled(sequence, output, text):
                    self._open[sequence.rid].num_completion_tokens += 1
                    pieces = self._read(sequence, text)
                    step.put(sequence, pieces, [output.token], self._logprob(output))
                case Embedded(sequence, vector):
                    step.outputs[sequence.rid, sequence.index] = Output(
                        sequence.rid, sequence.index, embedding=vector
                    )
                case Ended(sequence, finish, text, own_failure):
                    pieces = self._read(sequence, text, is_last=True)
                    if pieces != Pieces():
                        step.put(sequence, pieces)
                    if finish is Finish.ERROR:
                        problem = ModelFailed(own_failure) if own_failure else _failed(failure)
                        self._open[sequence.rid].problem = problem
                    self._end(step, sequence, finish)
                case _:
                    assert_never(effect)
        return step

    def _read(self, sequence: Sequence, text: str, *, is_last: bool = False) -> Pieces:
        """What some more text of a sequence means."""
        parser = self._open[sequence.rid].parsers[sequence.index]
        if parser is None:
            return Pieces(text)
        pieces = parser.feed(text)
        if is_last:
            pieces.add(parser.finish())
        return pieces

    def _logprob(self, output: TokenOutput) -> TokenLogprob | None:
        if output.logprob is None:
            return None
        top = [self._token(*each) for each in output.top]
        return replace(self._token(output.token, output.logprob), top=top)

    def _token(self, token: int, logprob: float) -> TokenLogprob:
        """With the text of control tokens, which add none."""
        piece = self._vocabulary.piece(token) or self._vocabulary.detokenize([token])
        bounded = min(max(logprob, LOWEST_LOGPROB), 0.0)  # a sum of rounded numbers may be over 1
        return TokenLogprob(token, piece.decode("utf-8", "replace"), bounded)

    def _end(self, step: StepOutputs, sequence: Sequence, finish: Finish) -> None:
        request = self._open[sequence.rid]
        request.finish_by_index[sequence.index] = finish
        if _owns_its_prompt(sequence):
            num_tokens = _num_prompt_tokens(sequence, finish)
            request.num_prompt_tokens += num_tokens
            request.num_cached_tokens += min(_num_cached_tokens(sequence), num_tokens)
        request.num_guessed_tokens += sequence.guessing.num_proposed
        request.num_accepted_tokens += sequence.guessing.num_accepted
        if request.has_ended:
            del self._open[sequence.rid]
            step.ended.append(_ended(sequence.rid, request))


def _owns_its_prompt(sequence: Sequence) -> bool:
    """Generations of one request have one prompt together; the first one stands for it."""
    return sequence.index == 0 or sequence.kind is BatchKind.EMBEDDING


def _num_prompt_tokens(sequence: Sequence, finish: Finish) -> int:
    """Of the prompt what was computed or found: all of it, unless it was cancelled before that."""
    if finish is not Finish.CANCELLED or sequence.num_completion_tokens:
        return sequence.num_prompt_tokens
    return min(sequence.num_computed_tokens, sequence.num_prompt_tokens)


def _num_cached_tokens(sequence: Sequence) -> int:
    return sequence.num_cached_tokens or 0 if _owns_its_prompt(sequence) else 0


def refused(rid: int, problem: Problem, *, num_sequences: int = 1) -> RequestEnded:
    """The end of a request that could not start at all."""
    return RequestEnded(
        rid,
        finish_reasons=[Finish.ERROR.value] * num_sequences,
        prompt_tokens=0,
        cached_tokens=0,
        completion_tokens=0,
        error=error_fields(problem),
    )


def _ended(rid: int, request: _Request) -> RequestEnded:
    finishes = [finish for finish in request.finish_by_index if finish is not None]
    return RequestEnded(
        rid,
        finish_reasons=[finish.value for finish in finishes],
        prompt_tokens=request.num_prompt_tokens,
        cached_tokens=request.num_cached_tokens,
        completion_tokens=request.num_completion_tokens,
        error=error_fields(request.problem) if request.problem else None,
        guessed_tokens=request.num_guessed_tokens,
        accepted_tokens=request.num_accepted_tokens,
    )


def _tool_call(call: WrittenCall) -> ToolCall:
    """With an id as Mistral's templates want it: nine letters and digits."""
    number = "".join(secrets.choice(_ID_CHARS) for _ in range(_ID_LENGTH))
    return ToolCall(number, call.name, call.arguments)


def _failed(failure: str) -> ModelFailed:
    return ModelFailed(failure, hint="send the request again; see the daemon's log")
