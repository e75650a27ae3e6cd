"""What one worker kept, the next one need not compute again."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from worker.driver import GREEDY, running_worker

from openclawd.backends import llama
from openclawd.backends.base import LoadSpec
from openclawd.engine.limits import Limits
from openclawd.engine.scheduler import Scheduler
from openclawd.worker.messages import EXIT_STOPPED, Load, Loaded, Start, Stop
from openclawd.worker.pinning import pin
from openclawd.worker.prefixes import PersistentPrefixes

if TYPE_CHECKING:
    from pathlib import Path

    from models.library import ModelLibrary

SYSTEM = "You are a librarian. " + "You know every book about dragons by heart. " * 12 + "Be brief."
STORY = "Once upon a time there was a small dragon who lived in a cave. " * 16
PROMPT = SYSTEM + " Who are you?"


class Run:
    """One worker's life: the tokens that were found of two prompts, the answer, and the log."""

    def __init__(
        self,
        folder: Path,
        path: Path,
        *,
        prompts: list[str],
        is_killed: bool = False,
        **values: Any,
    ) -> None:
        values = {"context": 1024, "kv_tokens": 8192, "max_prefix_age_s": 3600.0} | values
        values = {
            "prefix_folder": str(folder / "state" / "m"),
            "persist_prefixes": "pinned",
        } | values
        with running_worker(folder) as worker:
            loaded = worker.load(path, system_prompts=prompts, **values)
            assert isinstance(loaded, Loaded), loaded
            self.num_pinned = loaded.info["pinned_tokens"]
            self.loading = worker.log
            self.cached = {}
            for domain, prompt in (("alice", PROMPT), ("alice", STORY), ("bob", STORY)):
                rid = worker.prepare("generate", prompt=prompt)
                worker.send(Start(rid, 6, GREEDY, domain=domain))
                outcome = worker.finish(rid)[0]
                self.cached[domain, prompt] = outcome.end.cached_tokens
                self.num_tokens = outcome.end.prompt_tokens
                self.answer = outcome.text
            if is_killed:
                worker.process.kill()
                worker.process.wait()
            else:
                worker.send(Stop())
                assert worker.wait_exit() == EXIT_STOPPED
            self.stopping = worker.log.removeprefix(self.loading)


@pytest.fixture(scope="module")
def plain_model(models: ModelLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model without a chat template, so that a prompt begins with a system prompt's text."""
    path = tmp_path_factory.mktemp("models") / "plain.gguf"
    path.write_bytes(models.tiny("full").read_bytes().replace(b".chat_template", b".chat_templat_"))
    return path


def saved(folder: Path) -> list[str]:
    """The kinds of the files that are there."""
    kept = folder / "state" / "m"
    return sorted(name.split("-")[0] for name in os.listdir(kept)) if kept.exists() else []


@pytest.mark.parametrize("options", [{}, {"mmap": False}], ids=["alike", "elsewhere in memory"])
def test_a_system_prompt_is_restored(
    plain_model: Path, folder: Path, options: dict[str, Any]
) -> None:
    first = Run(folder, plain_model, prompts=[SYSTEM])
    assert saved(folder) == ["pinned"]
    assert "1 of 1 new prefixes saved" in first.stopping
    second = Run(folder, plain_model, prompts=[SYSTEM], options=options)
    assert f"1 saved prefixes restored ({first.num_pinned} tokens)" in second.loading
    assert (second.cached, second.answer) == (first.cached, first.answer)
    assert first.cached["alice", PROMPT] == first.num_pinned
    assert second.stopping == ""  # it was there already


def test_what_users_left_is_restored_for_them_alone(plain_model: Path, folder: Path) -> None:
    first = Run(folder, plain_model, prompts=[SYSTEM], persist_prefixes="all")
    assert set(first.cached.values()) == {0, first.num_pinned}
    assert saved(folder).count("shared") >= 2
    second = Run(folder, plain_model, prompts=[SYSTEM], persist_prefixes="all")
    assert second.cached["alice", STORY] == second.cached["bob", STORY] == second.num_tokens - 1
    assert second.answer == first.answer
    third = Run(folder, plain_model, prompts=[SYSTEM])
    assert third.cached == first.cached
    assert saved(folder) == ["pinned"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"persist_prefixes": "off"}, "not wanted any more"),
        ({"prompts": ["You are a pirate."]}, "not wanted any more"),
        ({"prompts": []}, "not wanted any more"),
        ({"kv_tokens": 4000}, "changed since"),
        ({"options": {"cache_type_k": "f32"}}, "changed since"),
        ({"max_prefix_age_s": -1.0}, "old"),
    ],
)
def test_what_does_not_belong_to_this_run_is_not_used(
    plain_model: Path, folder: Path, values: dict[str, Any], said: str
) -> None:
    first = Run(folder, plain_model, prompts=[SYSTEM])
    (old,) = (folder / "state" / "m").iterdir()
    second = Run(folder, plain_model, **{"prompts": [SYSTEM], **values})
    assert said in second.loading
    assert "restored" not in second.loading
    assert second.cached["alice", PROMPT] in (0, 3, first.num_pinned)
    if "max_prefix_age_s" not in values:
        assert not old.exists()


def test_another_file_under_the_models_name_is_noticed(plain_model: Path, folder: Path) -> None:
    Run(folder, plain_model, prompts=[SYSTEM])
    other = folder / "other.gguf"
    other.write_bytes(plain_model.read_bytes())
    second = Run(folder, other, prompts=[SYSTEM])
    assert "changed since" in second.loading


def test_a_damaged_file_costs_only_time(plain_model: Path, folder: Path) -> None:
    first = Run(folder, plain_model, prompts=[SYSTEM])
    (file,) = (folder / "state" / "m").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    second = Run(folder, plain_model, prompts=[SYSTEM])
    assert "its checksum is wrong" in second.loading
    assert (second.cached, second.answer) == (first.cached, first.answer)
    assert saved(folder) == ["pinned"]


def test_a_worker_that_is_killed_leaves_what_was_there(plain_model: Path, folder: Path) -> None:
    Run(folder, plain_model, prompts=[SYSTEM], is_killed=True)
    assert saved(folder) == []
    Run(folder, plain_model, prompts=[SYSTEM])
    Run(folder, plain_model, prompts=[SYSTEM], persist_prefixes="all", is_killed=True)
    assert saved(folder) == ["pinned"]
    last = Run(folder, plain_model, prompts=[SYSTEM])
    assert "restored" in last.loading


def test_a_folder_that_cannot_be_written_is_told_of(plain_model: Path, folder: Path) -> None:
    (folder / "file").write_text("in the way")
    run = Run(folder, plain_model, prompts=[SYSTEM], prefix_folder=str(folder / "file" / "m"))
    assert "<4>prefixes cannot be saved" in run.stopping


def test_what_was_computed_with_an_adapter_is_restored_for_that_adapter(
    models: ModelLibrary, plain_model: Path, folder: Path
) -> None:
    def cached(*, scale: float, asked: tuple[str, ...]) -> list[int]:
        """What is found of the same prompt with each of these."""
        found = []
        with running_worker(folder) as worker:
            loaded = worker.load(
                plain_model,
                context=1024,
                kv_tokens=8192,
                adapters={"x": {"path": str(models.tiny_adapter(1)), "scale": scale}},
                prefix_folder=str(folder / "state" / "m"),
                persist_prefixes="all",
                max_prefix_age_s=3600.0,
            )
            assert isinstance(loaded, Loaded), loaded
            for adapter in asked:
                rid = worker.prepare("generate", prompt=STORY)
                worker.send(Start(rid, 4, GREEDY, adapter=adapter))
                found.append(worker.finish(rid)[0].end.cached_tokens)
            worker.send(Stop())
            assert worker.wait_exit() == EXIT_STOPPED
        return found

    assert cached(scale=1.0, asked=("x", "")) == [0, 0]
    whole = cached(scale=1.0, asked=("x", ""))
    assert whole[0] == whole[1] > 256
    assert cached(scale=0.5, asked=("x", "")) == [0, whole[1]]


@pytest.mark.parametrize("limit", ["SAVE_S", "_MAX_SAVED_BYTES"])
def test_what_would_take_too_long_is_not_saved(
    plain_model: Path,
    folder: Path,
    limit: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(f"openclawd.worker.prefixes.{limit}", -1)
    spec = LoadSpec(str(plain_model), 2, context=64, kv_tokens=512, batch_tokens=64, threads=1)
    backend = llama.load(spec, lambda _: True)
    limits = Limits(2, 512, 64, 64, num_prefix_tags=backend.limits.num_prefix_tags)
    scheduler = Scheduler(limits, backend)
    load = Load("m", str(plain_model), 2, 64, 512, 64)
    load = replace(load, prefix_folder=str(folder / "m"), persist_prefixes="pinned")
    pin([[20, 21, 22, 23]], backend, scheduler, lambda _: None)
    with caplog.at_level(logging.INFO):
        PersistentPrefixes(load, backend, scheduler).save()
    backend.close()
    assert caplog.messages == ["0 of 1 new prefixes saved (0 B)"]
    assert not (folder / "m").exists()


def test_a_model_that_cannot_share_cells_saves_nothing(models: ModelLibrary, folder: Path) -> None:
    run = Run(folder, models.tiny("recurrent"), prompts=[SYSTEM], persist_prefixes="all")
    assert set(run.cached.values()) == {0}
    assert saved(folder) == []
