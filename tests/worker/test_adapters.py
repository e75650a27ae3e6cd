"""Requests with different adapters in one real worker: each gets what it would get alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from models.tiny import EXACT, NEAR_TIE
from near_ties import NearTies
from worker.driver import GREEDY, running_worker

from openclawd.worker.messages import EXIT_LOAD_FAILED, Loaded, LoadFailed, Start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from models.library import ModelLibrary
    from worker.driver import WorkerProcess

SAME_START = "Once upon a time there was a small dragon who lived in a cave. " * 6
NUM_TOKENS = 12


def adapters(models: ModelLibrary) -> dict[str, dict[str, object]]:
    return {
        name: {"path": str(models.tiny_adapter(seed)), "scale": 1.0}
        for name, seed in (("one", 1), ("two", 2))
    }


@pytest.fixture(scope="module")
def worker(
    models: ModelLibrary, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    with running_worker(tmp_path_factory.mktemp("worker")) as running:
        loaded = running.load(
            models.tiny("full"), adapters=adapters(models), batch_tokens=32, options=EXACT
        )
        assert isinstance(loaded, Loaded), loaded
        yield running


def test_they_run_together_and_do_not_mix(worker: WorkerProcess, models: ModelLibrary) -> None:
    prompts = [f"{SAME_START}{name}" for name in ("He", "She", "Nobody", "It")]
    names = ["", "one", "two", "one"]
    rids = [worker.prepare("generate", prompt=prompt) for prompt in prompts]
    starts = zip(rids, names, strict=True)
    worker.send(*(Start(rid, NUM_TOKENS, GREEDY, adapter=name) for rid, name in starts))
    outcomes = worker.finish(*rids)
    assert any(len(step.outputs) == 2 for step in outcomes[1].steps)  # those with the same one
    paths = {"": None, "one": models.tiny_adapter(1), "two": models.tiny_adapter(2)}
    for prompt, name, outcome in zip(prompts, names, outcomes, strict=True):
        with NearTies(models.tiny("full"), NEAR_TIE, adapter=paths[name]) as judge:
            wanted = judge.answer(judge.tokens(prompt), NUM_TOKENS)
            judge.check(prompt, outcome.token_ids[0], wanted)


def test_a_vector_is_made_with_the_adapter(worker: WorkerProcess) -> None:
    vectors = []
    for name in ("", "one", "", "two"):
        rid = worker.prepare("embed", input=["a small dragon"])
        worker.send(Start(rid, 0, {}, adapter=name))
        vectors.append(worker.finish(rid)[0].vectors[0])
    assert vectors[0] == vectors[2]
    assert len(set(vectors)) == 3


def test_an_adapter_that_does_not_fit_fails_the_load(
    models: ModelLibrary, model_path: Path, folder: Path
) -> None:
    with running_worker(folder) as worker:
        failed = worker.load(model_path, adapters=adapters(models))
        assert isinstance(failed, LoadFailed)
        assert "adapter 'one'" in failed.message
        assert failed.permanent
        assert worker.wait_exit() == EXIT_LOAD_FAILED
