"""Speculation in a real worker: the answers stay, the steps become fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness import short_folder
from models.tiny import EXACT
from worker.driver import Outcome, running_worker

from openclawd.worker.messages import Loaded, LoadFailed

if TYPE_CHECKING:
    from pathlib import Path

    from models.library import ModelLibrary

REPEATING = "The quick brown fox jumps over the lazy dog. " * 12 + "The quick"
ORDINARY = "The history of the small town by the sea begins with"


def answers(path: Path, *texts: str, **values: Any) -> list[Outcome]:
    with short_folder() as folder, running_worker(folder) as worker:
        loaded = worker.load(path, **values)
        assert isinstance(loaded, Loaded), loaded
        return [worker.run("generate", prompt=text, max_tokens=48) for text in texts]


def test_repeating_text_takes_fewer_steps_and_stays_what_it_is(model_path: Path) -> None:
    (plain,) = answers(model_path, REPEATING)
    (guessed,) = answers(model_path, REPEATING, guess_method="ngram", max_guesses=16)
    assert guessed.token_ids == plain.token_ids
    assert len(guessed.steps) < len(plain.steps) / 2
    assert 24 < guessed.end.accepted_tokens <= guessed.end.guessed_tokens
    assert (plain.end.guessed_tokens, plain.end.accepted_tokens) == (0, 0)


def test_a_draft_model_saves_steps_and_changes_nothing(models: ModelLibrary) -> None:
    path, draft = models.tiny("full"), models.tiny_draft()
    texts = (ORDINARY, REPEATING, ORDINARY[:9])
    plain = answers(path, *texts, options=EXACT)
    speculation = {"guess_method": "draft", "max_guesses": 4, "draft_path": str(draft)}
    drafted = answers(path, *texts, **speculation, batch_tokens=16, options=EXACT)
    assert [each.token_ids for each in drafted] == [each.token_ids for each in plain]
    assert sum(len(each.steps) for each in drafted) < sum(len(each.steps) for each in plain)
    assert all(each.end.accepted_tokens for each in drafted)


def test_a_draft_model_of_another_family_is_refused(models: ModelLibrary, model_path: Path) -> None:
    draft = models.tiny("full")
    with short_folder() as folder, running_worker(folder) as worker:
        refusal = worker.load(model_path, guess_method="draft", draft_path=str(draft))
    assert isinstance(refusal, LoadFailed)
    assert refusal.permanent
    assert "another vocabulary" in refusal.message
    assert "same family" in refusal.hint


def test_a_draft_model_with_a_window_forgets_and_changes_nothing(models: ModelLibrary) -> None:
    path, draft = models.tiny("full"), models.tiny("window")
    texts = (ORDINARY, REPEATING)
    plain = answers(path, *texts, options=EXACT)
    speculation = {"guess_method": "draft", "max_guesses": 16, "draft_path": str(draft)}
    drafted = answers(path, *texts, **speculation, options=EXACT)
    assert [each.token_ids for each in drafted] == [each.token_ids for each in plain]
    assert all(each.end.guessed_tokens for each in drafted)


@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
def test_a_draft_model_that_cannot_take_back_tokens_is_refused(
    models: ModelLibrary, kind: str
) -> None:
    draft = models.tiny(kind)
    with short_folder() as folder, running_worker(folder) as worker:
        refusal = worker.load(models.tiny("full"), guess_method="draft", draft_path=str(draft))
    assert isinstance(refusal, LoadFailed)
    assert refusal.permanent
    assert "recurrent" in refusal.message


def test_a_model_that_cannot_drop_tokens_says_that_it_does_not_guess(models: ModelLibrary) -> None:
    with short_folder() as folder, running_worker(folder) as worker:
        loaded = worker.load(models.tiny("recurrent"), guess_method="ngram", max_guesses=8)
        assert isinstance(loaded, Loaded)
        assert any("speculation is off" in warning for warning in loaded.info["warnings"])
        assert worker.run("generate", prompt=REPEATING).end.guessed_tokens == 0
