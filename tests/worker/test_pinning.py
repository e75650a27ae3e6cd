"""System prompts in a real worker: computed before it is ready, and shared by all who begin so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from backends.tiny_bert import write_tiny_bert
from worker.driver import GREEDY, running_worker

from openclawd.worker.messages import EXIT_STOPPED, Load, Loaded, LoadFailed, Loading, Start, Stop

if TYPE_CHECKING:
    from pathlib import Path

    from models.library import ModelLibrary
    from worker.driver import Outcome, WorkerProcess

LONG = "You are a librarian. " + "You know every book about dragons by heart. " * 12
SHORT = "You are a librarian who answers in one word."


def load(worker: WorkerProcess, path: Path, *prompts: str, **values: Any) -> Loaded | LoadFailed:
    return worker.load(path, system_prompts=list(prompts), **values)


def ask(worker: WorkerProcess, domain: str, op: str, **params: Any) -> Outcome:
    """The answer to a request of a domain."""
    rid = worker.prepare(op, **params)
    worker.send(Start(rid, 6, GREEDY, domain=domain))
    return worker.finish(rid)[0]


def chat(system: str, user: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def test_a_chat_of_anybody_finds_the_system_prompt_computed(
    models: ModelLibrary, folder: Path
) -> None:
    path = models.tiny("full")
    with running_worker(folder) as worker:
        plain = worker.load(path)
        assert isinstance(plain, Loaded)
        assert plain.info["pinned_tokens"] == 0
        wanted = [ask(worker, "", "chat", messages=chat(LONG, user)) for user in ("Hi!", "\n\n?")]
    with running_worker(folder) as worker:
        loaded = load(worker, path, LONG, SHORT)
        assert isinstance(loaded, Loaded)
        assert loaded.info["warnings"] == []
        num_pinned = loaded.info["pinned_tokens"]
        answers = [
            ask(worker, user, "chat", messages=chat(LONG, user)) for user in ("Hi!", "\n\n?")
        ]
        short = ask(worker, "c", "chat", messages=chat(SHORT, "Hi!"))
        other = ask(worker, "d", "chat", messages=chat("Hm.", "Hi!"))
    assert [answer.text for answer in answers] == [answer.text for answer in wanted]
    first, second = (answer.end.cached_tokens for answer in answers)
    assert first - second == 1  # that user's line breaks are one token with that of the template
    assert first + 10 == wanted[0].end.prompt_tokens  # "Hi!", and what asks for the answer
    assert other.end.cached_tokens == 4  # <|im_start|>system\n
    assert num_pinned < first + short.end.cached_tokens - 4  # both begin with the same words


def test_the_load_says_how_far_it_is(model_path: Path, folder: Path) -> None:
    with running_worker(folder) as worker:
        worker.send(Load("m", str(model_path), 2, 256, 1024, 64, threads=1, system_prompts=[LONG]))
        news = []
        while isinstance(message := worker.receive(), Loading):
            news.append((message.phase, message.fraction))
        assert isinstance(message, Loaded)
        assert news[-1] == ("system prompts", 1.0)
        assert ("warm-up", 1.0) in news


def test_it_can_be_stopped_meanwhile(model_path: Path, folder: Path) -> None:
    with running_worker(folder) as worker:
        prompts = [LONG, SHORT]
        worker.send(Load("m", str(model_path), 2, 256, 1024, 8, threads=1, system_prompts=prompts))
        while worker.receive_until(Loading).phase != "system prompts":
            pass
        worker.send(Stop())
        assert worker.wait_exit() == EXIT_STOPPED


def test_without_a_chat_template_a_prompt_begins_with_the_text(
    models: ModelLibrary, folder: Path
) -> None:
    path = folder / "model.gguf"
    path.write_bytes(models.tiny("full").read_bytes().replace(b".chat_template", b".chat_templat_"))
    with running_worker(folder) as worker:
        loaded = load(worker, path, SHORT)
        assert isinstance(loaded, Loaded)
        answer = ask(worker, "", "generate", prompt=SHORT + " Who are you?")
        assert answer.end.cached_tokens == loaded.info["pinned_tokens"] > 0


def test_nothing_is_lost_where_cells_cannot_be_shared(models: ModelLibrary, folder: Path) -> None:
    with running_worker(folder) as worker:
        loaded = load(worker, models.tiny("recurrent"), SHORT)
        assert isinstance(loaded, Loaded)
        assert "computed anew" in loaded.info["warnings"][-1]
        answer = ask(worker, "", "generate", prompt=SHORT)
        assert (answer.end.cached_tokens, answer.end.completion_tokens) == (0, 6)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"context": 1000, "kv_tokens": 1024}, r"take 1\d\d of the 1024 KV tokens.*1000"),
        ({"context": 64}, r"system prompt 1 has 1\d\d tokens.*64"),
        ({"parallel": 254, "batch_tokens": 254}, "too few sequence ids"),
    ],
)
def test_where_there_is_no_room_the_load_says_so_with_the_numbers(
    model_path: Path, folder: Path, values: dict[str, int], said: str
) -> None:
    with running_worker(folder) as worker:
        failed = load(worker, model_path, LONG, **values)
    assert isinstance(failed, LoadFailed)
    assert failed.permanent
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(failed.message)


def test_an_encoder_has_no_use_for_them(folder: Path) -> None:
    write_tiny_bert(folder / "bert.gguf")
    with running_worker(folder) as worker:
        failed = load(worker, folder / "bert.gguf", SHORT)
    assert isinstance(failed, LoadFailed)
    assert "encoder" in failed.message
    assert "system_prompts" in failed.hint
