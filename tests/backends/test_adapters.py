"""LoRA adapters on llama.cpp: each batch is computed with the one it names, and with no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from backends.conformance import embed, forward, fresh, sampled
from models.tiny import EXACT, NEAR_TIE
from near_ties import NearTies

from openclawd.backends import llama
from openclawd.backends.base import AdapterSpec, CannotLoad, LoadSpec
from openclawd.engine.batch import Batch, BatchKind, Chunk, Opening, Outputs
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from models.library import ModelLibrary

    from openclawd.backends.llama import LlamaBackend

GREEDY = SamplingParams(temperature=0)
PROMPT = "Once upon a time there was a small dragon who lived in a cave"
NUM_TOKENS = 8


def load(path: Path, **adapters: AdapterSpec) -> LlamaBackend:
    spec = LoadSpec(
        str(path),
        parallel=4,
        context=128,
        kv_tokens=512,
        batch_tokens=128,
        threads=1,
        options=EXACT,
        adapters=adapters,
    )
    return llama.load(spec, lambda _: True)


@pytest.fixture(scope="module")
def backend(models: ModelLibrary) -> Iterator[LlamaBackend]:
    loaded = load(
        models.tiny("full"),
        one=AdapterSpec(str(models.tiny_adapter(1))),
        two=AdapterSpec(str(models.tiny_adapter(2))),
        half=AdapterSpec(str(models.tiny_adapter(1)), scale=0.5),
    )
    yield loaded
    loaded.close()


def generate_by_turns(backend: LlamaBackend, adapters: list[str]) -> dict[str, list[int]]:
    """The answers to one prompt with each adapter, a step of each after the other."""
    prompt = backend.tokenize(PROMPT, add_special=True, parse_special=False)
    tokens = {adapter: list(prompt) for adapter in adapters}
    for number in range(NUM_TOKENS):
        for slot, adapter in enumerate(adapters):
            text = tokens[adapter]
            opened = [] if number else [Opening(slot, tuple(text), len(text), GREEDY)]
            start = 0 if opened else len(text) - 1
            chunk = Chunk(slot, start, text[start:], num_outputs=1)
            batch = Batch(BatchKind.GENERATION, [chunk], opened, fresh(opened), adapter=adapter)
            result = backend.forward(batch)
            assert isinstance(result, Outputs)
            text += sampled(result, slot)
    return {adapter: text[len(prompt) :] for adapter, text in tokens.items()}


def test_each_batch_is_computed_with_its_adapter(
    backend: LlamaBackend, models: ModelLibrary
) -> None:
    answers = generate_by_turns(backend, ["", "one", "two", "half"])
    assert len({tuple(answer) for answer in answers.values()}) == 4
    paths = {"": None, "one": models.tiny_adapter(1), "two": models.tiny_adapter(2)}
    for name, path in paths.items():
        with NearTies(models.tiny("full"), NEAR_TIE, adapter=path) as judge:
            wanted = judge.answer(judge.tokens(PROMPT), NUM_TOKENS)
            judge.check(PROMPT, answers[name], wanted)


def test_a_vector_too(backend: LlamaBackend) -> None:
    tokens = backend.tokenize(PROMPT, add_special=True, parse_special=False)
    (plain,) = embed(backend, [tokens])
    opened = [Opening(0, tuple(tokens), len(tokens), None)]
    chunk = Chunk(0, 0, tokens, num_outputs=1)
    with_one = Batch(BatchKind.EMBEDDING, [chunk], opened, fresh(opened), adapter="one")
    result = backend.forward(with_one)
    assert isinstance(result, Outputs)
    assert float(plain @ np.frombuffer(result.vectors[0], dtype="<f4")) < 0.99
    assert np.array_equal(embed(backend, [tokens])[0], plain)


def test_a_model_with_adapters_is_itself_without_one(
    backend: LlamaBackend, models: ModelLibrary
) -> None:
    plain = load(models.tiny("full"))
    answer = generate_by_turns(plain, [""])
    plain.close()
    assert generate_by_turns(backend, [""]) == answer


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"hello" * 99, "not a GGUF file"),
        ("smollm2", "wrong base model"),
        ("model", "expect general.type to be 'adapter'"),
        ("cut", "not within the file bounds"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_named(
    models: ModelLibrary, folder: Path, content: bytes | str | None, said: str
) -> None:
    path = folder / "adapter.gguf"
    adapter = models.tiny_adapter(1).read_bytes()
    contents = {
        "smollm2": lambda: models.smollm2_adapter(1).read_bytes(),
        "model": lambda: models.tiny("full").read_bytes(),
        "cut": lambda: adapter[: len(adapter) * 3 // 4],
    }
    if content is not None:
        path.write_bytes(contents[content]() if isinstance(content, str) else content)
    with pytest.raises(CannotLoad, match=said) as failure:
        load(
            models.tiny("full"),
            fine=AdapterSpec(str(models.tiny_adapter(2))),
            formal=AdapterSpec(str(path)),
        )
    assert "adapter 'formal'" in failure.value.message
    assert str(path) in failure.value.message
    assert failure.value.permanent


def test_a_batch_without_an_adapter_after_one_with_it(backend: LlamaBackend) -> None:
    prompt = backend.tokenize(PROMPT, add_special=True, parse_special=False)
    opened = [Opening(1, tuple(prompt), len(prompt), GREEDY)]
    chunks = [Chunk(1, 0, prompt, num_outputs=1)]
    before = sampled(forward(backend, chunks, opened=opened), 1)
    generate_by_turns(backend, ["two"])
    assert sampled(forward(backend, chunks, opened=opened), 1) == before
