"""Reasoning: which marks templates mention, and real answers taken apart at them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness import short_folder
from worker.driver import GREEDY, running_worker

from openclawctl.wire.formats import OutputFormat
from openclawd.backends import llama
from openclawd.backends.base import LoadSpec
from openclawd.worker.answer import AnswerMarks
from openclawd.worker.chats import AnswerReading, lark_before
from openclawd.worker.grammar import grammar_of
from openclawd.worker.messages import Continuation, Loaded, Start
from openclawd.worker.reasoning import history_field, marks_of, off_switches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from models.library import ModelLibrary
    from worker.driver import Outcome, WorkerProcess

    from openclawd.backends.llama import LlamaBackend

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
OPENS = TURNS + "<think>\n{% if enable_thinking is false %}\n</think>\n\n{% endif %}"
"""As those of Qwen and DeepSeek: the prompt opens the reasoning, unless told otherwise."""

CHAT = [{"role": "user", "content": "Is water wet?"}]


@pytest.mark.parametrize(
    ("template", "opens"),
    [
        ("a <think> b </think>", "<think>"),
        ("[THINK]{{ x }}[/THINK]", "[THINK]"),
        ("<|channel|>analysis<|message|>{{ x }}<|end|>", "<|channel|>analysis<|message|>"),
        ("<think> without an end", ""),
        ("nothing", ""),
    ],
)
def test_the_marks_that_a_template_mentions(template: str, opens: str) -> None:
    assert marks_of(template).reasoning_open == opens


def test_where_templates_look_for_earlier_reasoning() -> None:
    assert history_field("{{ message.thinking }}") == "thinking"
    assert (
        history_field("{{ message['reasoning_content'] }}{{ m.thinking }}") == "reasoning_content"
    )
    assert history_field("{{ enable_thinking }}") == "reasoning_content"


def test_the_switches_of_templates() -> None:
    assert off_switches({"messages", "enable_thinking"}) == {"enable_thinking": False}
    assert off_switches({"messages", "reasoning_effort"}) == {}


@pytest.fixture(scope="module")
def backend(model_path: Path) -> Iterator[LlamaBackend]:
    spec = LoadSpec(
        str(model_path), parallel=1, context=512, kv_tokens=512, batch_tokens=64, threads=1
    )
    loaded = llama.load(spec, lambda _: True)
    yield loaded
    loaded.close()


def tokens_of(backend: LlamaBackend, text: str, *, parse_special: bool = False) -> list[int]:
    return backend.tokenize(text, add_special=False, parse_special=parse_special)


def follows(backend: LlamaBackend, grammar: str, *parts: str | int) -> bool:
    """Does a grammar let this text through, and the end after it? Numbers are control tokens."""
    constraint = backend._grammars.start(grammar, ())
    for part in parts:
        tokens = [part] if isinstance(part, int) else tokens_of(backend, part)
        for token in tokens:
            allowed = constraint.allowed()
            if allowed is None or not allowed[token]:
                return False
            constraint.accept(token)
    allowed = constraint.allowed()
    return allowed is None or any(allowed[token] for token in range(3))


ANSWER = OutputFormat("regex", "yes|no")
THINK = AnswerMarks("<think>", "</think>")
CONTROL = AnswerMarks("<issue_start>a<gh_stars>", "<issue_closed>", dropped=("<filename>b",))
TOKENS = ("<issue_start>", "<gh_stars>", "<issue_closed>", "<filename>")


def test_a_shape_is_that_of_the_answer_after_the_reasoning(backend: LlamaBackend) -> None:
    grammar = grammar_of(ANSWER, before=lark_before(THINK, {}, is_reasoning=False))
    backend.check_grammar(grammar)
    assert follows(backend, grammar, "no")
    assert follows(backend, grammar, "<think>\nmaybe </thin k\n</think>\n\nyes")
    assert not follows(backend, grammar, "<think>maybe")
    assert not follows(backend, grammar, "maybe")
    opened = grammar_of(ANSWER, before=lark_before(THINK, {}, is_reasoning=True))
    assert follows(backend, opened, "maybe\n</think>\n\nyes")
    assert not follows(backend, opened, "no")


def test_marks_of_control_tokens(backend: LlamaBackend) -> None:
    tokens = {text: tokens_of(backend, text, parse_special=True)[0] for text in TOKENS}
    grammar = grammar_of(ANSWER, before=lark_before(CONTROL, tokens, is_reasoning=False))
    backend.check_grammar(grammar)
    start, name = tokens["<issue_start>"], tokens["<gh_stars>"]
    closed, file = tokens["<issue_closed>"], tokens["<filename>"]
    assert follows(backend, grammar, start, "a", name, "hm", closed, file, "b", "yes")
    assert follows(backend, grammar, file, "b", "yes")
    assert not follows(backend, grammar, "<issue_start>a")
    shown = AnswerReading(CONTROL, is_reasoning=False, tokens=tokens).shown
    assert shown[closed] == b"<issue_closed>"


@pytest.fixture(scope="module")
def thinker(models: ModelLibrary) -> Iterator[WorkerProcess]:
    """SmolLM2 with a template that opens its reasoning."""
    path = models.smollm2_with("thinker", {"tokenizer.chat_template": OPENS})
    with short_folder() as folder, running_worker(folder) as worker:
        assert isinstance(worker.load(path), Loaded)
        yield worker


def go_on(worker: WorkerProcess, told: str, **params: Any) -> Outcome:
    """What comes after a text that another worker had told already."""
    tokens = worker.answer("tokenize", text=told)["tokens"]
    rid = worker.prepare("chat", messages=CHAT, **params)
    part = Continuation.of(0, cached_tokens=0, token_ids=tokens)
    worker.send(Start(rid, len(tokens) + 8, GREEDY, continuation=[part]))
    return worker.finish(rid)[0]


def test_what_is_before_the_closing_mark_is_reasoning(thinker: WorkerProcess) -> None:
    outcome = thinker.run("chat", messages=CHAT)
    assert outcome.text == ""
    assert outcome.reasoning
    raw = thinker.run("chat", messages=CHAT, reasoning="raw")
    assert (raw.text.strip(), raw.reasoning) == (outcome.reasoning.strip(), "")
    assert raw.token_ids == outcome.token_ids


def test_what_is_after_it_is_the_answer(thinker: WorkerProcess) -> None:
    """Another worker died in the middle of the mark."""
    wanted = {"type": "regex", "pattern": "(yes|no)!"}
    outcome = go_on(thinker, "It is a liquid.\n</thi", format=wanted)
    assert outcome.text in ("", "yes!", "no!")
    outcome = go_on(thinker, "It is a liquid.\n</think>\n", format=wanted)
    assert outcome.text in ("yes!", "no!")
    assert outcome.reasoning == ""
    assert outcome.end.finish_reasons == ["stop"]


def test_reasoning_switched_off(thinker: WorkerProcess) -> None:
    wanted = {"type": "regex", "pattern": "(yes|no)!"}
    outcome = thinker.run("chat", messages=CHAT, reasoning="off", format=wanted)
    assert outcome.text in ("yes!", "no!")
    assert outcome.reasoning == ""


def test_a_model_without_the_switch_says_so(models: ModelLibrary) -> None:
    path = models.smollm2_with("stubborn", {"tokenizer.chat_template": TURNS + "<think>\n"})
    with short_folder() as folder, running_worker(folder) as worker:
        assert isinstance(worker.load(path), Loaded)
        error = worker.refusal("chat", messages=CHAT, reasoning="off")
        assert error["code"] == "unsupported"
        assert "no switch that turns reasoning off" in error["message"]


def test_a_model_that_does_not_reason_has_nothing_to_switch_off(
    warm_worker: WorkerProcess,
) -> None:
    free = warm_worker.run("chat", messages=CHAT)
    for mode in ("split", "raw", "off"):
        outcome = warm_worker.run("chat", messages=CHAT, reasoning=mode)
        assert (outcome.text, outcome.reasoning) == (free.text, "")
