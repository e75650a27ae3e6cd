"""What a request may say about the choice of tokens, through the client library, on the real
model. That each filter does what it promises is `backends/conformance.py`'s."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from openclawctl import Client, InvalidRequest

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
    result = client.chat(messages, max_tokens=64, temperature=0, logprobs=True)
    assert result.choices[0].logprobs is not None
    assert result.choices[0].logprobs[-1].text == "<|im_end|>"
    assert "<|im_end|>" not in result.text


def test_more_probabilities_than_can_be_sent(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="'top_logprobs' needs 'logprobs': true"):
        client.generate(STORY, top_logprobs=3)
    with pytest.raises(InvalidRequest, match="'top_logprobs' is 21; allowed: 0 to 20"):
        client.generate(STORY, logprobs=True, top_logprobs=21)
