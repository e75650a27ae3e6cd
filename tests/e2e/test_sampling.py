"""What a request may say about the choice of tokens, through the client library, on the real
model. That each filter does what it promises is `backends/conformance.py`'s."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from openclawctl import Client, InvalidRequest, LimitExceeded, PromptTooLong

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon

STORY = "Once upon a time there was a small dragon who"


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(socket_path=str(daemon.socket)) as connected:
        yield connected


@pytest.mark.parametrize(
    "filters",
    [
        {"typical_p": 0.2},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"mirostat": 1, "mirostat_tau": 1.0, "mirostat_eta": 0.3},
        {"mirostat": 2, "mirostat_tau": 1.0, "mirostat_eta": 0.3},
        {
            "dry_multiplier": 100.0,
            "dry_base": 2.0,
            "dry_allowed_length": 1,
            "dry_penalty_last_n": 512,
        },
    ],
    ids=lambda filters: next(iter(filters)),
)
def test_each_filter_reaches_the_sampler(client: Client, filters: dict[str, Any]) -> None:
    prompt = "red blue green red blue green red blue green red blue"
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 3}
    texts = [client.generate(prompt, **options, **filters).text for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0] != client.generate(prompt, **options).text


def test_probabilities_of_tokens(client: Client) -> None:
    options = {"max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    result = client.generate(STORY, **options)
    (choice,) = result.choices
    assert choice.logprobs is not None
    assert [each.token_id for each in choice.logprobs] == choice.token_ids
    assert "".join(each.text for each in choice.logprobs) == result.text
    for each in choice.logprobs:
        assert [likely.logprob for likely in each.top] == sorted(
            (likely.logprob for likely in each.top), reverse=True
        )
        assert (each.top[0].token_id, each.top[0].text) == (each.token_id, each.text)
        assert len(each.top) == 3
        assert 0 < sum(math.exp(likely.logprob) for likely in each.top) <= 1 + 1e-6
    with client.generate(STORY, stream=True, **options) as stream:
        streamed = [each for delta in stream for each in delta.logprobs or ()]
    assert stream.result.choices[0].logprobs == streamed
    assert [each.token_id for each in streamed] == choice.token_ids
    assert result.as_dict()["choices"][0]["logprobs"][0].keys() == {
        "token_id",
        "text",
        "logprob",
        "top",
    }


def test_probabilities_come_only_when_asked_for(client: Client) -> None:
    with client.generate(STORY, max_tokens=2, stream=True) as stream:
        assert all(delta.logprobs is None for delta in stream)
    (choice,) = stream.result.choices
    assert choice.logprobs is None
    assert len(choice.token_ids) == 2
    chat = client.chat([{"role": "user", "content": "Hi"}], max_tokens=3, logprobs=True)
    assert chat.choices[0].logprobs is not None
    assert [each.top for each in chat.choices[0].logprobs] == [[]] * 3


def test_an_end_token_has_its_own_text(client: Client) -> None:
    messages = [{"role": "user", "content": "Say yes."}]
    result = client.chat(messages, max_tokens=4, temperature=0, logprobs=True, logit_bias={2: 100})
    (choice,) = result.choices
    assert choice.logprobs is not None
    assert [each.text for each in choice.logprobs] == ["<|im_end|>"]
    assert (choice.finish_reason, result.text) == ("stop", "")


def test_what_cannot_be_asked_of_probabilities(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="'top_logprobs' needs 'logprobs': true"):
        client.generate(STORY, top_logprobs=3)
    with pytest.raises(InvalidRequest, match="'top_logprobs' is 21; allowed: 0 to 20"):
        client.generate(STORY, logprobs=True, top_logprobs=21)


# ---- several choices ----


def test_choices_share_a_prompt_that_counts_once(client: Client) -> None:
    options = {"max_tokens": 12, "temperature": 1.2, "seed": 5}
    alone = client.generate(STORY, **options)
    result = client.generate(STORY, n=4, **options)
    assert [choice.index for choice in result.choices] == [0, 1, 2, 3]
    assert len(set(result.texts)) > 1
    assert result.usage.prompt_tokens == alone.usage.prompt_tokens
    assert result.usage.cached_tokens <= result.usage.prompt_tokens
    num_tokens = [len(choice.token_ids) for choice in result.choices]
    assert result.usage.completion_tokens == sum(num_tokens)
    assert result.texts == client.generate(STORY, n=4, **options).texts


def test_the_prompt_of_choices_is_computed_once(client: Client) -> None:
    """Too short to be kept for others; the gauges show that nothing stays behind."""
    prompt = "One after the other they walked up the hill: " + "the cat and the dog, " * 20
    before = client.status()["models"][0]["engine"]["kv_used_tokens"]
    with client.generate(prompt, n=4, max_tokens=8, ignore_eos=True, stream=True) as stream:
        next(stream)
        during = client.status()["models"][0]["engine"]["kv_used_tokens"]
    num_prompt_tokens = client.generate(prompt, max_tokens=1).usage.prompt_tokens
    assert num_prompt_tokens > 100
    assert during - before < num_prompt_tokens + 4 * 10
    assert client.status()["models"][0]["engine"]["kv_used_tokens"] == before


def test_deltas_of_choices_have_their_index(client: Client) -> None:
    messages = [{"role": "user", "content": "Name a colour."}]
    texts = dict.fromkeys(range(3), "")
    with client.chat(messages, n=3, max_tokens=8, temperature=1.0, stream=True) as stream:
        for delta in stream:
            texts[delta.index] += delta.text
    assert list(texts.values()) == stream.result.texts
    assert stream.text == stream.result.text
    assert {choice.message["role"] for choice in stream.result.choices if choice.message} == {
        "assistant"
    }


def test_a_cancel_ends_every_choice(client: Client) -> None:
    with client.generate(STORY, n=3, max_tokens=200, ignore_eos=True, stream=True) as stream:
        next(stream)
        stream.cancel()
        for _ in stream:
            pass
    assert [choice.finish_reason for choice in stream.result.choices] == ["cancelled"] * 3


def test_more_choices_than_a_batch_has_sequences(client: Client) -> None:
    with pytest.raises(LimitExceeded, match="n is 9; model smollm2 computes 8 sequences at once"):
        client.generate(STORY, n=9)


# ---- token ids and echo ----


def test_a_prompt_of_token_ids(client: Client) -> None:
    ids = client.tokenize("The capital of France is", add_special=True)
    options = {"max_tokens": 8, "temperature": 0}
    result = client.generate(ids, **options)
    assert result.text == client.generate("The capital of France is", **options).text
    assert result.usage.prompt_tokens == len(ids)
    assert client.detokenize(result.choices[0].token_ids) == result.text


def test_token_ids_may_be_control_tokens_and_must_exist(client: Client) -> None:
    start, end = 1, 2  # <|im_start|> and <|im_end|> of SmolLM2
    words = client.tokenize("user\nSay yes.")
    reply = client.tokenize("assistant\n")
    newline = client.tokenize("\n")
    prompt = [start, *words, end, *newline, start, *reply]
    answer = client.generate(prompt, max_tokens=64, temperature=0)
    assert answer.finish_reason == "stop"  # it took its turn, as in a chat
    with pytest.raises(InvalidRequest, match="token 49152 does not exist; this model has tokens 0"):
        client.generate([1, 49_152], max_tokens=1)
    with pytest.raises(InvalidRequest, match="the prompt is empty"):
        client.generate([], max_tokens=1)
    with pytest.raises(PromptTooLong, match="the prompt has 5000 tokens"):
        client.generate([1] * 5000, max_tokens=1)


def test_echo_begins_with_the_prompt(client: Client) -> None:
    options = {"max_tokens": 4, "temperature": 0}
    plain = client.generate(STORY, **options)
    echoed = client.generate(STORY, echo=True, n=2, **options)
    assert echoed.texts == [STORY + plain.text] * 2
    assert echoed.usage.completion_tokens == 2 * plain.usage.completion_tokens
    assert echoed.choices[0].token_ids == plain.choices[0].token_ids
    with client.generate(STORY, echo=True, stream=True, **options) as stream:
        assert next(stream).text == STORY
        assert STORY + "".join(delta.text for delta in stream) == echoed.text
    ids = client.tokenize(STORY, add_special=True)
    assert client.generate(ids, echo=True, **options).text == echoed.text
