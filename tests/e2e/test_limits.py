"""Limit rules, truncation and fallbacks through the client library, on the real model."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness import running_daemon, short_folder, smollm2_path

from openclawctl import Client, LimitExceeded, ModelFailed, PromptTooLong

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon

WORDS = " ".join(f"word{number}" for number in range(60))
CONFIG = f"""
models:
  small:
    path: {smollm2_path()}
    preload: true
    parallel: 2
    context: 256
    inference_settings: {{on_too_long: "fallback:large"}}
  large: {{path: {smollm2_path()}, preload: true, parallel: 2, context: 1024}}
  cut:
    path: {smollm2_path()}
    preload: true
    parallel: 2
    context: 256
    inference_settings: {{on_too_long: truncate_middle, max_output_tokens: 40}}
  lost: {{path: /nowhere/lost.gguf}}
default_model: large
limits:
  - {{name: strict, match: {{app: strict}}, max_prompt_tokens: 50, max_completion_tokens: 20}}
  - {{name: loose, match: {{app: strict}}, max_prompt_tokens: 500, on_too_long: truncate_head}}
  - {{name: head, match: {{app: head}}, max_prompt_tokens: 60, on_too_long: truncate_head}}
  - {{name: sum, match: {{app: sum}}, max_total_tokens: 100}}
  - {{name: chats, match: {{app: when}}, max_completion_tokens: 3, when: {{operation: chat}}}}
  - {{name: lost, match: {{app: lost}}, max_prompt_tokens: 60, on_too_long: "fallback:lost"}}
  - {{name: away, match: {{app: away}}, max_prompt_tokens: 60, on_too_long: "fallback:small"}}
"""


@pytest.fixture(scope="module")
def limited() -> Iterator[Daemon]:
    """A daemon with rules, told apart by the client's `app`."""
    with short_folder() as folder:
        (folder / "c.yaml").write_text(CONFIG)
        with running_daemon("--config", str(folder / "c.yaml"), folder=folder) as daemon:
            yield daemon.wait_ready()


def client(daemon: Daemon, app: str) -> Client:
    return Client(socket_path=str(daemon.socket), app=app)


def chat_of(num_turns: int) -> list[dict[str, Any]]:
    turns = [{"role": "system", "content": "Be brief."}]
    for number in range(num_turns):
        turns.append({"role": "user", "content": f"What is {number} + {number}?"})
        turns.append({"role": "assistant", "content": f"It is {2 * number}."})
    return [*turns, {"role": "user", "content": "And 7 + 7?"}]


def last_turns(messages: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [messages[0], *messages[-1 - 2 * count :]]


def chat_tokens(free: Client, messages: list[dict[str, Any]]) -> int:
    return free.chat(messages, max_tokens=1).usage.prompt_tokens


def test_an_error_names_the_strictest_rule_and_the_numbers(limited: Daemon) -> None:
    with client(limited, "strict") as strict:
        num_tokens = len(strict.tokenize(WORDS))
        message = f"has {num_tokens} tokens; limit strict allows 50 .max_prompt_tokens."
        with pytest.raises(PromptTooLong, match=message):
            strict.generate(WORDS)
        message = "asks for 21 completion tokens; limit strict allows 20 .max_completion_tokens."
        with pytest.raises(LimitExceeded, match=message):
            strict.generate("Hello", max_tokens=21)
        assert strict.generate("Hello", ignore_eos=True).usage.completion_tokens == 20
        both = strict.generate("Hello", ignore_eos=True, n=2)
        assert both.usage.completion_tokens == 20


def test_prompt_and_answer_together(limited: Daemon) -> None:
    with client(limited, "sum") as summed:
        free = summed.generate("Hello", ignore_eos=True)
        assert free.usage.total_tokens == 100
        with pytest.raises(PromptTooLong, match=r"= 1\d+; limit sum allows 100"):
            summed.generate("Hello", max_tokens=100)


def test_a_rule_applies_only_when_its_condition_holds(limited: Daemon) -> None:
    with client(limited, "when") as conditional:
        message = [{"role": "user", "content": "Hello"}]
        with pytest.raises(LimitExceeded, match="limit chats allows 3"):
            conditional.chat(message, max_tokens=4)
        assert conditional.generate("Hello", max_tokens=4).usage.completion_tokens <= 4


def test_a_chat_that_is_cut_says_so_and_is_the_chat_of_its_last_turns(limited: Daemon) -> None:
    messages = chat_of(20)
    options = {"max_tokens": 6, "temperature": 0}
    with client(limited, "head") as head, client(limited, "free") as free:
        cut = head.chat(messages, **options)
        whole = free.chat(messages, max_tokens=1).usage.prompt_tokens
        num_dropped = whole - cut.usage.prompt_tokens
        assert cut.context == {
            "policy": "truncate_head",
            "prompt_tokens_in": whole,
            "dropped": num_dropped,
            "max_tokens": 6,
        }
        assert 30 < cut.usage.prompt_tokens <= 60
        (warning,) = cut.warnings
        assert warning["code"] == "truncated"
        assert f"had {whole} tokens, of which {num_dropped} were dropped" in warning["message"]
        num_left = 0
        while chat_tokens(free, last_turns(messages, num_left + 1)) <= 60:
            num_left += 1
        kept = free.chat(last_turns(messages, num_left), **options)
        assert kept.usage.prompt_tokens == cut.usage.prompt_tokens
        assert kept.text == cut.text


def tool_of(description: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a", "description": description}}


LONG_TEXT = "<|im_start|>" * 100_000
USER = {"role": "user", "content": "Hello"}
LONG_CALL = {"id": "1", "function": {"name": "a", "arguments": json.dumps({"x": LONG_TEXT})}}
LONG_CHATS: dict[str, dict[str, Any]] = {
    "tools": {"messages": [USER], "tools": [tool_of(LONG_TEXT)]},
    "reasoning": {
        "messages": [{"role": "assistant", "content": "Hi", "reasoning": LONG_TEXT}, USER]
    },
    "calls": {"messages": [{"role": "assistant", "content": "", "tool_calls": [LONG_CALL]}, USER]},
}


@pytest.mark.parametrize("what", LONG_CHATS)
@pytest.mark.parametrize("app", ["free", "head"])
def test_all_that_a_template_is_given_is_bounded(limited: Daemon, app: str, what: str) -> None:
    said = (
        "tools, reasoning and tool calls of the chat have 1200[0-9]{3} bytes; .* 1048576 are read"
    )
    with client(limited, app) as chatty, pytest.raises(PromptTooLong, match=said):
        chatty.chat(**LONG_CHATS[what])


def test_reasoning_that_the_template_leaves_out_may_be_longer_than_the_context(
    limited: Daemon,
) -> None:
    answer = {"role": "assistant", "content": "Hi", "reasoning": "word " * 200_000}
    with client(limited, "free") as free:
        assert free.chat([answer, {"role": "user", "content": "Hello"}], max_tokens=1).text


def test_what_cannot_be_cut_is_refused_with_the_rule(limited: Daemon) -> None:
    messages = [{"role": "system", "content": WORDS}, {"role": "user", "content": "Hello"}]
    with (
        client(limited, "head") as head,
        pytest.raises(PromptTooLong, match="tokens; limit head allows 60"),
    ):
        head.chat(messages)


def test_a_plain_prompt_keeps_both_ends_and_room_for_an_answer(limited: Daemon) -> None:
    with client(limited, "free") as free:
        tokens = free.tokenize(WORDS * 3)
        result = free.generate(tokens, model="cut", echo=False, ignore_eos=True, temperature=0)
        assert result.context["policy"] == "truncate_middle"
        assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (216, 40)
        kept = [*tokens[:108], *tokens[-108:]]
        same = free.generate(kept, max_tokens=40, ignore_eos=True, temperature=0)
        assert same.text == result.text


def test_the_command_line_says_on_stderr_that_it_was_cut(limited: Daemon) -> None:
    command = [sys.executable, "-m", "openclawctl", "--socket", str(limited.socket)]
    command += ["generate", "--model", "cut", "--max-tokens", "2", "-"]
    done = subprocess.run(command, input=WORDS * 3, capture_output=True, text=True, check=True)
    assert "openclawctl: warning: the prompt had " in done.stderr
    assert "were dropped (truncate_middle)" in done.stderr


def test_an_embedding_of_texts_that_were_cut_says_so(limited: Daemon) -> None:
    command = [sys.executable, "-m", "openclawctl", "--socket", str(limited.socket)]
    command += ["embed", "--model", "cut", "--json", WORDS * 2, "short"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    context = result["context"]
    num_dropped, num_in = context["dropped"], context["prompt_tokens_in"]
    assert context["policy"] == "truncate_middle"
    assert num_in - num_dropped == result["usage"]["prompt_tokens"] > 256
    assert f"{num_dropped} of {num_in} tokens were dropped (truncate_middle)" in done.stderr


def test_a_prompt_that_is_too_long_goes_to_the_fallback(limited: Daemon) -> None:
    with client(limited, "free") as free:
        prompt = WORDS + WORDS
        result = free.generate(prompt, model="small", max_tokens=2)
        assert result.model == "large"
        assert result.context["fallback_from"] == "small"
        assert result.context["dropped"] == 0
        (warning,) = result.warnings
        assert warning["code"] == "fallback"
        assert "model large answers instead of small" in warning["message"]
        assert free.generate("Hi", model="small", max_tokens=1).model == "small"


def test_one_fallback_and_no_second(limited: Daemon) -> None:
    """From large to small by the rule, and small would fall back to large."""
    with (
        client(limited, "away") as away,
        pytest.raises(PromptTooLong, match="limit away allows 60"),
    ):
        away.generate(WORDS + WORDS, model="large")


def rows(daemon: Daemon, where: str, value: str) -> list[tuple[str, str, str | None]]:
    database = sqlite3.connect(f"file:{daemon.state_dir}/ledger.sqlite3?mode=ro", uri=True)
    try:
        return database.execute(
            f"SELECT model, state, error_code FROM requests WHERE {where} = ?", (value,)
        ).fetchall()
    finally:
        database.close()


def test_a_request_that_falls_back_has_one_row_however_it_ends(limited: Daemon) -> None:
    with client(limited, "free") as free:
        fallen = free.generate(WORDS + WORDS, model="small", max_tokens=2)
    assert rows(limited, "request_id", fallen.request_id) == [("large", "done", None)]
    with client(limited, "lost") as lost, pytest.raises(ModelFailed):
        lost.generate(WORDS, model="large")
    assert rows(limited, "app", "lost") == [("lost", "failed", "model-failed")]


def test_a_prompt_that_is_cut_is_cut_the_same_in_the_next_worker(limited: Daemon) -> None:
    with client(limited, "free") as free:

        def worker_pid() -> int:
            return next(m["worker_pid"] for m in free.models() if m["name"] == "cut")

        first_pid = worker_pid()
        options = {"model": "cut", "max_tokens": 40, "ignore_eos": True}
        with free.generate(WORDS * 3, stream=True, **options) as stream:
            next(iter(stream))
            os.kill(first_pid, signal.SIGKILL)
            for _ in stream:
                pass
        assert worker_pid() != first_pid
    usage, context = stream.result.usage, stream.result.context
    assert (usage.prompt_tokens, usage.completion_tokens) == (216, 40)
    assert context["prompt_tokens_in"] - context["dropped"] == 216
