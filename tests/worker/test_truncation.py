"""Prompts that are cut: pure rules, and the real tokenizer and template of SmolLM2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker.test_tokenizer import BEGIN, Said, chat, load, plain

from openclawctl.wire.chat import ChatMessage
from openclawd.worker.messages import Prepare, Prepared, Start
from openclawd.worker.pipe import DaemonGone
from openclawd.worker.truncation import (
    TRUNCATE_HEAD,
    TRUNCATE_MIDDLE,
    cut_around_gap,
    cut_tokens,
    droppable_turns,
    fewest,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from models.library import ModelLibrary
    from worker.driver import WorkerProcess

    from openclawd.backends.llama import LlamaBackend

policies = st.sampled_from([TRUNCATE_HEAD, TRUNCATE_MIDDLE])


# ---- pure ----


@given(length=st.integers(0, 50), most=st.integers(1, 60), first=st.integers(0, 2), policy=policies)
def test_what_stays_of_tokens(length: int, most: int, first: int, policy: str) -> None:
    tokens = list(range(length))
    kept = cut_tokens(tokens, most, policy=policy, num_kept_first=first)
    assert len(kept) == min(length, max(most, min(first, length)))
    assert kept[:first] == tokens[:first]
    rest = kept[first:]
    num_head = (len(rest) + 1) // 2 if policy == TRUNCATE_MIDDLE else 0
    if length > most:
        assert rest[:num_head] == tokens[first : first + num_head]
        assert rest[num_head:] == tokens[length - (len(rest) - num_head) :]


@given(before=st.integers(0, 30), after=st.integers(0, 30), most=st.integers(0, 59))
def test_what_stays_around_a_gap(before: int, after: int, most: int) -> None:
    first, last = list(range(before)), list(range(100, 100 + after))
    kept_before, kept_after = cut_around_gap(first, last, most)
    assert len(kept_before) + len(kept_after) == min(most, before + after)
    assert kept_before == first[before - len(kept_before) :]
    assert kept_after == last[: len(kept_after)]
    assert min(len(kept_before), before) >= min(before, most // 2)


roles = st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=12)


@given(names=roles, policy=policies)
def test_what_may_go_of_a_chat(names: list[str], policy: str) -> None:
    messages = [ChatMessage(role, str(number)) for number, role in enumerate(names)]
    turns = droppable_turns(messages, policy)
    left = without(messages, turns)
    users = [number for number, role in enumerate(names) if role == "user"]
    assert [m for m in left if m.role == "system"] == [m for m in messages if m.role == "system"]
    if not users:
        assert left == messages
        return
    assert (
        set(messages[users[-1] :]) <= set(left)
        if False
        else all(message in left for message in messages[users[-1] :])
    )
    if policy == TRUNCATE_MIDDLE:
        assert messages[users[0]] in left
    places = [place for turn in turns for place in turn]
    assert places == sorted(set(places))
    for turn in turns:
        assert [names[place] for place in turn[1:]].count("user") == 0


def test_a_tool_call_and_its_result_go_with_the_turn_they_answer() -> None:
    names = ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool"]
    messages = [ChatMessage(role, str(number)) for number, role in enumerate(names)]
    assert droppable_turns(messages, TRUNCATE_HEAD) == [[1, 2, 3, 4]]
    assert droppable_turns(messages, TRUNCATE_MIDDLE) == []


@given(most=st.integers(0, 4096), answer=st.integers(0, 5000))
def test_the_fewest_that_are_enough_with_few_questions(most: int, answer: int) -> None:
    asked = []

    def is_enough(number: int) -> bool:
        asked.append(number)
        return number >= answer

    assert fewest(most, is_enough) == min(most, answer)
    assert len(asked) <= 2 * most.bit_length() + 2
    assert len(set(asked)) == len(asked)


# ---- the real tokenizer ----


@pytest.fixture(scope="module")
def backend(model_path: Path) -> Iterator[LlamaBackend]:
    loaded = load(model_path)
    yield loaded
    loaded.close()


class Cutter(Said):
    """A tokeniser that is told how long a prompt may be."""

    def cut(self, policy: str, most: int, op: str, **params: Any) -> tuple[Prepared, list[int]]:
        self.tokenizer.submit(Prepare(1, op, params, most, policy))
        with pytest.raises(DaemonGone):
            self.tokenizer.run()
        answer = self.answers.get_nowait()
        assert isinstance(answer, Prepared), answer
        prepared = self.tokenizer.take(1)
        assert prepared is not None
        assert answer.prompt_tokens == prepared.num_prompt_tokens
        assert answer.prompt_tokens_in - answer.dropped == answer.prompt_tokens
        return answer, prepared.prompts[0]


SYSTEM = ("system", "Be brief.")
TURNS = [
    turn
    for number in range(20)
    for turn in (("user", f"Question {number}?"), ("assistant", f"Answer {number}." * 3))
]
LAST = ("user", "And now?")


def test_a_chat_loses_its_oldest_turns_and_no_more_than_it_must(backend: LlamaBackend) -> None:
    said = Cutter(backend)
    whole = said.tokens("chat", messages=chat(SYSTEM, *TURNS, LAST))
    for number in (1, 7, 20):
        kept = chat(SYSTEM, *TURNS[2 * number :], LAST)
        wanted = said.tokens("chat", messages=kept)
        messages = chat(SYSTEM, *TURNS, LAST)
        answer, tokens = said.cut(TRUNCATE_HEAD, len(wanted), "chat", messages=messages)
        assert tokens == wanted
        assert answer.prompt_tokens_in == len(whole)
        assert answer.dropped == len(whole) - len(wanted)
        if number < 20:
            _, tokens = said.cut(TRUNCATE_HEAD, len(wanted) - 1, "chat", messages=messages)
            assert tokens == said.tokens("chat", messages=[kept[0], *kept[3:]])


def test_a_chat_that_fits_stays_whole(backend: LlamaBackend) -> None:
    said = Cutter(backend)
    whole = said.tokens("chat", messages=chat(SYSTEM, *TURNS, LAST))
    answer, tokens = said.cut(
        TRUNCATE_HEAD, len(whole), "chat", messages=chat(SYSTEM, *TURNS, LAST)
    )
    assert (answer.dropped, answer.prompt_tokens_in, tokens) == (0, len(whole), whole)


def test_the_middle_of_a_chat_goes_and_its_first_turn_stays(backend: LlamaBackend) -> None:
    said = Cutter(backend)
    wanted = said.tokens("chat", messages=chat(SYSTEM, *TURNS[:2], *TURNS[20:], LAST))
    _, tokens = said.cut(TRUNCATE_MIDDLE, len(wanted), "chat", messages=chat(SYSTEM, *TURNS, LAST))
    assert tokens == wanted


@pytest.mark.parametrize("policy", [TRUNCATE_HEAD, TRUNCATE_MIDDLE])
def test_what_cannot_be_cut_further_is_told_with_its_count(
    backend: LlamaBackend, policy: str
) -> None:
    """The daemon says that it is too long: it knows whose limit that is."""
    said = Cutter(backend)
    first = TURNS[:2] if policy == TRUNCATE_MIDDLE else []
    least = said.tokens("chat", messages=chat(SYSTEM, *first, LAST))
    answer, tokens = said.cut(policy, 5, "chat", messages=chat(SYSTEM, *TURNS, LAST))
    assert tokens == least
    assert answer.prompt_tokens == len(least) > 5


def test_few_tries_are_made_and_none_of_what_is_plainly_too_long(
    backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Cutter(backend)
    turns = [("user", "word " * 50), ("assistant", "ok")] * 1000
    lengths = []
    tokenize = backend.tokenize

    def counted(text: str, **how: bool) -> list[int]:
        lengths.append(len(text))
        return tokenize(text, **how)

    monkeypatch.setattr(backend, "tokenize", counted)
    answer, _ = said.cut(TRUNCATE_HEAD, 300, "chat", messages=chat(SYSTEM, *turns, LAST))
    assert 150 < answer.prompt_tokens <= 300
    whole, *tries = [length for length in lengths if length > 10]
    assert whole > 250_000
    assert len(tries) <= 20
    longest_token = backend.max_token_bytes
    assert all(length < 300 * longest_token + 3000 * 60 for length in tries)
    assert sum(tries) < 3 * whole


TEXT = " ".join(f"word{number}" for number in range(100))


def test_a_plain_prompt_loses_its_head_or_its_middle(backend: LlamaBackend) -> None:
    said = Cutter(backend)
    whole = plain(backend, TEXT)
    for prompt in (TEXT, whole):
        answer, tokens = said.cut(TRUNCATE_HEAD, 31, "generate", prompt=prompt)
        assert tokens == whole[-31:]
        assert (answer.prompt_tokens_in, answer.dropped) == (len(whole), len(whole) - 31)
        _, tokens = said.cut(TRUNCATE_MIDDLE, 31, "generate", prompt=prompt)
        assert tokens == whole[:16] + whole[-15:]


def test_each_text_of_an_embedding_is_cut_by_itself(backend: LlamaBackend) -> None:
    said = Cutter(backend)
    answer, tokens = said.cut(TRUNCATE_HEAD, 10, "embed", input=[TEXT, "short"])
    num_whole, num_short = len(plain(backend, TEXT)), len(plain(backend, "short"))
    assert tokens == plain(backend, TEXT)[-10:]
    assert (answer.longest, answer.prompt_tokens) == (10, 10 + num_short)
    assert answer.dropped == num_whole - 10


@pytest.fixture(scope="module")
def adds_bos(models: ModelLibrary) -> Iterator[LlamaBackend]:
    """SmolLM2 that wants a token in front of every prompt."""
    loaded = load(models.smollm2_with("adds_bos", {"tokenizer.ggml.add_bos_token": True}))
    yield loaded
    loaded.close()


def test_the_token_in_front_stays(adds_bos: LlamaBackend) -> None:
    said = Cutter(adds_bos)
    whole = said.tokens("generate", prompt=TEXT)
    assert whole == [BEGIN, *plain(adds_bos, TEXT)]
    for prompt in (TEXT, whole):
        _, tokens = said.cut(TRUNCATE_HEAD, 11, "generate", prompt=prompt)
        assert tokens == [BEGIN, *whole[-10:]]
    _, tokens = said.cut(TRUNCATE_MIDDLE, 11, "generate", prompt=TEXT)
    assert tokens == [*whole[:6], *whole[-5:]]
    _, tokens = said.cut(TRUNCATE_HEAD, 11, "generate", prompt=whole[1:])
    assert tokens == whole[-11:]


def test_the_cut_prompt_is_what_is_computed(warm_worker: WorkerProcess) -> None:
    messages = chat(SYSTEM, *TURNS, LAST)
    kept = warm_worker.run("chat", max_tokens=4, messages=chat(SYSTEM, *TURNS[-2:], LAST))
    rid, most = 10_000, kept.end.prompt_tokens
    warm_worker.send(Prepare(rid, "chat", {"messages": messages}, most, TRUNCATE_HEAD))
    prepared = warm_worker.receive_until(Prepared)
    assert prepared.prompt_tokens == most < prepared.prompt_tokens_in
    warm_worker.send(Start(rid, 4, {"temperature": 0, "seed": 1}))
    (outcome,) = warm_worker.finish(rid)
    assert outcome.end.prompt_tokens == most
    assert outcome.token_ids == kept.token_ids
