"""Models that compute garbage, made by writing not-a-number into a file: all of it, or one word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from models.tiny import EXACT, NUM_TOKENS
from worker.driver import GREEDY, running_worker

from openclawd.worker.loop import EXIT_MODEL_FAILED
from openclawd.worker.messages import EXIT_LOAD_FAILED, Loaded, LoadFailed, Start

if TYPE_CHECKING:
    from pathlib import Path

    from models.library import ModelLibrary
    from worker.driver import Outcome, WorkerProcess

BROKEN = 1000
"""A token that the other prompts do not have."""

STORY = list(range(100, 120))
POISON = [*STORY[:5], BROKEN, *STORY[5:]]
LENGTH = 16


def run(worker: WorkerProcess, *prompts: list[int]) -> list[Outcome]:
    """The answers to prompts of tokens, computed together."""
    rids = [worker.prepare("generate", prompt=prompt) for prompt in prompts]
    worker.send(*(Start(rid, LENGTH, GREEDY) for rid in rids))
    return worker.finish(*rids)


def test_a_model_that_is_broken_throughout_does_not_load(
    models: ModelLibrary, folder: Path
) -> None:
    path = models.tiny_broken(*range(NUM_TOKENS))
    with running_worker(folder) as worker:
        failed = worker.load(path)
        assert isinstance(failed, LoadFailed)
        assert "garbage" in failed.message
        assert str(path) in failed.message
        assert failed.permanent
        assert worker.wait_exit() == EXIT_LOAD_FAILED


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}, {"logprobs": True}])
def test_garbage_costs_the_request_that_has_it_and_nobody_else(
    models: ModelLibrary, folder: Path, sampling: dict[str, Any]
) -> None:
    with running_worker(folder) as worker:
        assert isinstance(worker.load(models.tiny_broken(BROKEN)), Loaded)
        (alone,) = run(worker, STORY)
        rid = worker.prepare("generate", prompt=POISON)
        neighbour = worker.prepare("generate", prompt=STORY)
        worker.send(Start(rid, LENGTH, GREEDY | sampling), Start(neighbour, LENGTH, GREEDY))
        poisoned, beside = worker.finish(rid, neighbour)
        problem = poisoned.end.to_problem()
        assert problem.code == "model-failed"
        assert "model m computed garbage" in problem.message
        assert not poisoned.token_ids
        assert beside.token_ids == alone.token_ids
        (after,) = run(worker, STORY)
        assert after.token_ids == alone.token_ids
        (again,) = run(worker, POISON)  # with nothing beside it that could show what is to blame
        assert again.end.to_problem().code == "model-failed"
        assert run(worker, STORY)[0].token_ids == alone.token_ids


def test_a_vector_that_is_garbage_is_not_given_out(models: ModelLibrary, folder: Path) -> None:
    with running_worker(folder) as worker:
        loaded = worker.load(models.tiny_broken(*range(400, 4000)))
        assert isinstance(loaded, Loaded)
        words = worker.answer("tokenize", text="lighthouse")["tokens"]
        assert any(400 <= token < 4000 for token in words)
        outcome = worker.run("embed", input=["lighthouse"], max_tokens=0)
        assert outcome.end.to_problem().code == "model-failed"
        assert not outcome.vectors


def test_where_garbage_stays_in_the_memory_the_worker_is_replaced(
    models: ModelLibrary, folder: Path
) -> None:
    with running_worker(folder) as worker:
        assert isinstance(worker.load(models.tiny_broken(BROKEN), options=EXACT), Loaded)
        (poisoned,) = run(worker, POISON)
        assert poisoned.end.to_problem().code == "model-failed"
        assert worker.wait_exit() == EXIT_MODEL_FAILED
