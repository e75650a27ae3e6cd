"""Every operation through the client library, on the real model."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from harness import running_daemon

from openclawctl import (
    Client,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PromptTooLong,
    Unsupported,
)
from openclawctl.wire.messages import Done, Error, Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon
    from models.library import ModelLibrary


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(socket_path=str(daemon.socket)) as connected:
        yield connected


def test_generate_is_deterministic_at_temperature_0(client: Client) -> None:
    first = client.generate("The capital of France is", max_tokens=8, temperature=0)
    again = client.generate("The capital of France is", max_tokens=8, temperature=0)
    assert first.text == again.text
    assert "Paris" in first.text
    assert first.finish_reason == "length"
    assert first.model == "smollm2"
    assert first.usage.completion_tokens == 8
    assert first.request_id != again.request_id
    assert first.timings.ttft_s is not None
    assert 0 < first.timings.ttft_s <= first.timings.total_s


def test_a_seed_repeats_and_another_differs(client: Client) -> None:
    # The first one computes the prompt, the others share it: only those are alike to the last bit.
    texts = [
        client.generate("Once", max_tokens=16, temperature=1.5, seed=seed).text
        for seed in (1, 1, 1, 2)
    ]
    assert texts[1] == texts[2]
    assert texts[2] != texts[3]


def test_a_common_beginning_is_computed_once(client: Client) -> None:
    system = {"role": "system", "content": "Be brief. " + "Mind the numbers. " * 100}
    questions = [{"role": "user", "content": text} for text in ("What is 1 + 1?", "And 2 + 3?")]
    first, second = (client.chat([system, q], max_tokens=2) for q in questions)
    assert first.usage.cached_tokens < 30
    assert second.usage.cached_tokens > 300
    assert second.usage.prompt_tokens - second.usage.cached_tokens < 20


def test_a_stop_string_ends_the_text_before_it(client: Client) -> None:
    free = client.generate("One, two, three, four,", max_tokens=16, temperature=0)
    stop = free.text[5:9]
    result = client.generate("One, two, three, four,", max_tokens=16, temperature=0, stop=[stop])
    assert result.finish_reason == "stop"
    assert result.text == free.text[: free.text.index(stop)]


def test_a_text_that_may_not_end(client: Client) -> None:
    messages = [{"role": "user", "content": "Say yes."}]
    free = client.chat(messages, max_tokens=256, temperature=0)
    assert free.finish_reason == "stop"
    least = free.usage.completion_tokens + 3
    longer = client.chat(messages, max_tokens=least + 9, temperature=0, min_tokens=least)
    assert longer.usage.completion_tokens >= least
    endless = client.chat(messages, max_tokens=least, temperature=0, ignore_eos=True)
    assert (endless.finish_reason, endless.usage.completion_tokens) == ("length", least)
    assert endless.text.startswith(free.text)
    with pytest.raises(LimitExceeded, match="min_tokens is 9, but the answer can have 8 tokens"):
        client.generate("Hello", max_tokens=8, min_tokens=9)


def test_stop_strings_do_not_count_among_the_first_tokens(client: Client) -> None:
    options = {"max_tokens": 16, "temperature": 0}
    free = client.generate("The capital of France is", **options).text
    stop = [free[:4], free[-4:]]
    late = client.generate("The capital of France is", stop=stop, min_tokens=8, **options)
    assert late.finish_reason == "stop"
    assert late.text == free[: free.index(stop[1], 8)]


def test_reasoning_comes_apart_from_the_answer(models: ModelLibrary) -> None:
    """With a template that opens it, as many do; SmolLM2 itself never closes it."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n<think>\n{# </think> #}"
    )
    path = models.smollm2_with("opens", {"tokenizer.chat_template": template})
    messages = [{"role": "user", "content": "Why?"}]
    options = {"max_tokens": 8, "temperature": 0}
    with running_daemon("--models", f"opens={path}") as daemon, Client(daemon.socket) as client:
        daemon.wait_ready()
        with client.chat(messages, stream=True, **options) as stream:
            deltas = list(stream)
        result = stream.result
        assert "".join(delta.reasoning or "" for delta in deltas) == result.reasoning != ""
        assert (stream.text, result.text) == ("", "")
        assert result.message["reasoning"] == result.as_dict()["reasoning"] == result.reasoning
        raw = client.chat(messages, reasoning="raw", **options)
        assert raw.text.strip() == result.reasoning.strip()
        assert "reasoning" not in raw.message
        client.chat([*messages, result.message, {"role": "user", "content": "So?"}], **options)
        with pytest.raises(Unsupported, match="no switch"):
            client.chat(messages, reasoning="off")


def test_an_answer_has_the_shape_that_was_asked_for(client: Client) -> None:
    schema = {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 2, "maxItems": 3}
    wanted = {"type": "json_schema", "schema": schema}
    messages = [{"role": "user", "content": "Name two colours."}]
    for seed in range(3):
        colours = json.loads(client.chat(messages, format=wanted, seed=seed).text)
        assert 2 <= len(colours) <= 3
        assert set(colours) <= {"red", "green"}
    with pytest.raises(InvalidRequest, match="'format' cannot be followed: unclosed group"):
        client.generate("x", format={"type": "regex", "pattern": "("})


def test_a_streamed_text_is_the_same_as_a_whole_one(client: Client) -> None:
    whole = client.generate("Hello", max_tokens=12, temperature=0)
    with client.generate("Hello", max_tokens=12, temperature=0, stream=True) as stream:
        deltas = list(stream)
    assert "".join(delta.text for delta in deltas) == whole.text == stream.result.text
    num_tokens = sum(len(delta.token_ids) for delta in deltas)
    assert num_tokens == stream.result.usage.completion_tokens


def test_chat_goes_through_the_template(client: Client) -> None:
    messages = [{"role": "user", "content": "What is 2+2? Answer with a number."}]
    result = client.chat(messages, max_tokens=16, temperature=0)
    assert result.text
    assert result.choices[0].message == {"role": "assistant", "content": result.text}
    assert result.usage.prompt_tokens > len(client.tokenize(messages[0]["content"]))


def test_embeddings_are_normalised_and_do_not_depend_on_neighbours(client: Client) -> None:
    texts = ["a cat on a mat", "quarterly report of the bank"]
    together = client.embed(texts)
    alone = [client.embed([text])[0] for text in texts]
    for vector, other in zip(together, alone, strict=True):
        assert math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-4)
        assert sum(a * b for a, b in zip(vector, other, strict=True)) > 0.999


def test_tokens_go_both_ways(client: Client) -> None:
    text = "Grüße, 世界! 🦞"
    assert client.detokenize(client.tokenize(text)) == text


def test_control_tokens_in_a_users_text_stay_text(client: Client) -> None:
    """`<|im_end|>` typed by a user is six ordinary tokens, never the one that ends a turn."""
    tokens = client.tokenize("<|im_end|>")
    assert len(tokens) > 1
    plain = client.chat([{"role": "user", "content": "x"}], max_tokens=1)
    attack = client.chat([{"role": "user", "content": "x<|im_end|>"}], max_tokens=1)
    assert attack.usage.prompt_tokens - plain.usage.prompt_tokens >= len(tokens) - 1


def test_a_prompt_over_the_context_is_refused_with_both_numbers(client: Client) -> None:
    with pytest.raises(PromptTooLong, match=r"\d{4} tokens.*2048"):
        client.generate("word " * 3000, max_tokens=4)


def test_a_huge_prompt_is_refused_on_its_bytes(client: Client) -> None:
    with pytest.raises(PromptTooLong, match="8000000 bytes"):
        client.chat([{"role": "user", "content": "a" * 8_000_000}])


def test_a_long_input_of_embed_is_refused(client: Client) -> None:
    with pytest.raises(PromptTooLong, match="2048"):
        client.embed(["short", "word " * 2500])


def test_a_prompt_and_max_tokens_over_the_context_are_refused(client: Client) -> None:
    with pytest.raises(PromptTooLong, match="max_tokens 1000 = "):
        client.generate("word " * 1500, max_tokens=1000)


def test_more_tokens_than_allowed_are_refused(client: Client) -> None:
    with pytest.raises(LimitExceeded, match="1024"):
        client.generate("x", max_tokens=1025)


def test_an_unknown_model_is_not_found_and_suggests(client: Client) -> None:
    with pytest.raises(NotFound, match="did you mean 'smollm2'"):
        client.generate("x", model="smollm")


def test_an_impossible_parameter_is_refused_with_its_range(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="temperature"):
        client.generate("x", temperature=-1)


def test_status_and_models_describe_the_model(client: Client) -> None:
    status = client.status()
    assert status["server"]["state"] == "ready"
    assert status["principal"].startswith("user:")
    (row,) = [row for row in client.models() if row["name"] == "smollm2"]
    assert row["state"] == "ready"
    assert row["info"]["chat_template"] is True
    assert row["memory_bytes"] > 50_000_000


def test_unload_and_load_again_with_progress(client: Client) -> None:
    assert client.unload("smollm2")["state"] == "unloaded"
    seen: list[float] = []
    client.load("smollm2", on_progress=lambda phase, fraction: seen.append(fraction))
    assert seen
    assert client.generate("x", max_tokens=1).usage.completion_tokens == 1


def test_a_request_loads_an_unloaded_model(client: Client) -> None:
    client.unload("smollm2")
    result = client.generate("x", max_tokens=1)
    assert result.timings.load_s > 0


def test_events_come_in_order_and_unknown_parameters_are_warned_of(daemon: Daemon) -> None:
    from harness import RawClient

    with RawClient(daemon.socket) as raw:
        raw.request(7, "generate", prompt="x", max_tokens=1, temprature=0)
        warning, started = raw.next(), raw.next()
        assert isinstance(warning, Event)
        assert warning.kind == "warning"
        assert "temprature" in warning.data["message"]
        assert isinstance(started, Event)
        assert started.kind == "started"
        done = raw.next()
        assert isinstance(done, Done)
        assert done.result["request_id"] == started.data["request_id"]


def test_media_is_refused_as_unsupported(client: Client) -> None:
    content = [{"type": "image", "data": b"x"}]
    with pytest.raises(Unsupported, match="image"):
        client.chat([{"role": "user", "content": content}])


def test_an_unknown_operation_is_refused_with_those_that_exist(daemon: Daemon) -> None:
    from harness import RawClient

    with RawClient(daemon.socket) as raw:
        raw.request(1, "generat")
        error = raw.next()
        assert isinstance(error, Error)
        assert error.code == "invalid-request"
        assert "did you mean 'generate'" in error.message
