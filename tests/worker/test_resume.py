"""A request that another worker had begun: its text, its tokens and its counts go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from near_ties import SMOLLM2_NEAR_TIE, NearTies
from worker.driver import GREEDY

from openclawd.worker.messages import Continuation, Start

if TYPE_CHECKING:
    from pathlib import Path

    from worker.driver import Outcome, WorkerProcess

STORY = "Once upon a time there was a small dragon who"
NUM_TOKENS = 16


def resume(
    worker: WorkerProcess,
    op: str,
    parts: list[Continuation],
    *,
    sampling: dict[str, Any] | None = None,
    stop: list[str] | None = None,
    **params: Any,
) -> Outcome:
    rid = worker.prepare(op, **params)
    max_tokens = NUM_TOKENS if op == "generate" else 0
    start = Start(rid, max_tokens, GREEDY | (sampling or {}), stop or [], continuation=parts)
    worker.send(start)
    return worker.finish(rid)[0]


@pytest.mark.parametrize(
    "sampling",
    [{}, {"repeat_penalty": 1.3, "presence_penalty": 0.5}, {"temperature": 0.8, "seed": 3}],
    ids=["greedy", "penalties", "drawn"],
)
@pytest.mark.parametrize("cut", [1, 7, NUM_TOKENS - 1])
def test_tokens_text_and_usage_go_on(
    warm_worker: WorkerProcess, model_path: Path, sampling: dict[str, Any], cut: int
) -> None:
    whole = warm_worker.run("generate", prompt=STORY, max_tokens=NUM_TOKENS, sampling=sampling)
    tokens = whole.token_ids[0]
    part = Continuation.of(0, cached_tokens=3, token_ids=tokens[:cut])
    rest = resume(warm_worker, "generate", [part], sampling=sampling, prompt=STORY)
    with NearTies(model_path, most_gap=SMOLLM2_NEAR_TIE) as ties:
        ties.check(STORY, tokens[:cut] + rest.token_ids[0], tokens)
        if not ties.partings:
            assert "".join(whole.pieces[:cut]) + rest.text == whole.text
    assert rest.end.finish_reasons == ["length"]
    assert rest.end.prompt_tokens == whole.end.prompt_tokens
    assert rest.end.completion_tokens == NUM_TOKENS
    assert rest.end.cached_tokens == 3


def test_a_stop_string_that_had_begun_is_found(warm_worker: WorkerProcess) -> None:
    whole = warm_worker.run("generate", prompt=STORY, max_tokens=NUM_TOKENS)
    stop = "".join(whole.pieces[3:6])
    cut = warm_worker.run("generate", prompt=STORY, max_tokens=NUM_TOKENS, stop=[stop])
    assert "".join(cut.pieces[:4]) == "".join(whole.pieces[:3])  # a part of it is held back
    part = Continuation.of(0, cached_tokens=0, token_ids=whole.token_ids[0][:4])
    rest = resume(warm_worker, "generate", [part], prompt=STORY, stop=[stop])
    assert (rest.text, rest.end.finish_reasons) == ("", ["stop"])
    assert rest.end.completion_tokens == cut.end.completion_tokens


def test_inputs_whose_vectors_came_are_not_computed_again(warm_worker: WorkerProcess) -> None:
    inputs = ["one cat", "two dogs", "three birds"]
    rid = warm_worker.prepare("embed", input=inputs)
    warm_worker.send(Start(rid, 0, {}))
    whole = warm_worker.finish(rid)[0]
    part = Continuation.of(1, cached_tokens=0, token_ids=[])
    rest = resume(warm_worker, "embed", [part], input=inputs)
    assert sorted(rest.vectors) == [0, 2]
    assert rest.end.finish_reasons == ["stop"] * 3
    assert rest.end.prompt_tokens == whole.end.prompt_tokens


def test_one_that_only_lacked_its_end_gets_it(warm_worker: WorkerProcess) -> None:
    whole = warm_worker.run("generate", prompt=STORY, max_tokens=NUM_TOKENS)
    part = Continuation.of(0, cached_tokens=0, token_ids=whole.token_ids[0])
    rest = resume(warm_worker, "generate", [part], prompt=STORY)
    assert (rest.text, rest.token_ids) == ("", {})
    assert rest.end.completion_tokens == NUM_TOKENS
    assert rest.end.finish_reasons == ["length"]


def test_mirostat_goes_on_from_where_it_had_come_to(warm_worker: WorkerProcess) -> None:
    sampling = {"temperature": 1.0, "seed": 3, "mirostat": 2, "mirostat_eta": 0.5}
    whole = warm_worker.run("generate", prompt=STORY, max_tokens=NUM_TOKENS, sampling=sampling)
    tokens, mus = whole.token_ids[0], mus_of(whole)
    cut = 8
    assert abs(mus[cut] - 10.0) > 1  # what it would begin with
    told = {"cached_tokens": 0, "token_ids": tokens[:cut]}
    part = Continuation.of(0, **told, mu=mus[cut - 1])
    rest = resume(warm_worker, "generate", [part], sampling=sampling, prompt=STORY)
    assert rest.token_ids[0][0] == tokens[cut]
    assert abs(mus_of(rest)[0] - mus[cut]) < 0.2  # the same but for rounding


def mus_of(outcome: Outcome) -> list[float]:
    found = [output.mu for step in outcome.steps for output in step.outputs]
    return [mu for mu in found if mu is not None]
