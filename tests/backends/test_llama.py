"""The llama.cpp backend with a real model: the conformance suite, and what is its own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, get_args

import llama_cpp
import pytest
from backends.aside import AsideConformance
from backends.conformance import GREEDY, BackendConformance, generate
from backends.grammars import GrammarConformance
from models.tiny import write_full

from openclawd.backends import llama
from openclawd.backends.base import CannotLoad, DecodeFailed, LoadAborted, LoadSpec
from openclawd.backends.llama_options import apply_options
from openclawd.config import BackendOptions
from openclawd.config.schema import CacheType
from openclawd.engine.batch import Batch, BatchKind, Chunk, Opening
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openclawd.backends.llama import LlamaBackend


def spec(path: Path, **values: object) -> LoadSpec:
    """One thread: several wait for each other, which takes long when other tests want the CPUs."""
    defaults = {"parallel": 4, "context": 256, "kv_tokens": 512, "batch_tokens": 512, "threads": 1}
    return LoadSpec(str(path), **{**defaults, **values})


def go_on(fraction: float) -> bool:
    assert 0 <= fraction <= 1
    return True


@pytest.fixture(scope="module")
def backend(model_path: Path) -> Iterator[LlamaBackend]:
    loaded = llama.load(spec(model_path), go_on)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def aside_backend(model_path: Path) -> Iterator[LlamaBackend]:
    values = {"context": 512, "kv_tokens": 1024, "computes_aside": True}
    loaded = llama.load(spec(model_path, **values), go_on)
    yield loaded
    loaded.close()


class TestConformance(BackendConformance, GrammarConformance, AsideConformance):
    """llama.cpp keeps the contract."""


def test_what_it_says_of_the_model(backend: LlamaBackend) -> None:
    info = backend.info
    assert info.architecture == "llama"
    assert info.quantization.startswith("Q4_1")
    assert info.vocab_size == 49_152
    assert info.context_train == 8192
    assert info.embedding_length == 576
    assert info.threads >= 1
    assert info.warnings == ()
    assert backend.chat_format.template is not None
    assert "<|im_start|>" in backend.control_texts


def test_tokens_that_the_file_suppresses_are_never_sampled(folder: Path) -> None:
    path = folder / "suppressing.gguf"
    write_full(path)
    prompt = [100, 101, 102]
    with contextlib.closing(llama.load(spec(path), go_on)) as free:
        likely = generate(free, prompt, 8)
    write_full(path, suppressed=sorted(set(likely)))
    with contextlib.closing(llama.load(spec(path), go_on)) as bound:
        for sampling in (GREEDY, SamplingParams(temperature=0.5, seed=1)):
            assert not set(generate(bound, prompt, 8, sampling=sampling)) & set(likely)


def test_a_context_beyond_the_training_is_told_of(model_path: Path) -> None:
    loaded = llama.load(spec(model_path, context=9000, kv_tokens=9000), go_on)
    loaded.close()
    assert loaded.info.context == 9000
    assert "8192" in loaded.info.warnings[0]


def test_loading_can_be_given_up(model_path: Path) -> None:
    with pytest.raises(LoadAborted):
        llama.load(spec(model_path), lambda fraction: fraction < 0.1)


def test_a_batch_that_llama_cpp_refuses_is_a_typed_failure(
    backend: LlamaBackend, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = [Opening(0, (1,), 1, SamplingParams())]
    chunk = Chunk(0, 0, [backend.info.vocab_size], num_outputs=1)  # no such token
    result = backend.forward(Batch(BatchKind.GENERATION, [chunk], opened))
    assert isinstance(result, DecodeFailed)
    assert "-1" in result.message
    assert "<3>llama.cpp: " in capfd.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"flash_attn": True},
        {"flash_attn": "auto", "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        {"cache_type_k": "bf16", "cache_type_v": "bf16"},
        {"mmap": False},
    ],
)
def test_options_are_taken(model_path: Path, options: dict[str, object]) -> None:
    loaded = llama.load(spec(model_path, options=options), go_on)
    chunk = Chunk(0, 0, [1, 2, 3], num_outputs=1)
    opened = [Opening(0, (1, 2, 3), 3, SamplingParams())]
    result = loaded.forward(Batch(BatchKind.GENERATION, [chunk], opened))
    loaded.close()
    assert not isinstance(result, DecodeFailed)


@pytest.mark.parametrize("cache_type", get_args(CacheType))
def test_what_the_configuration_allows_is_known_here(cache_type: str) -> None:
    model = llama_cpp.llama_model_default_params()
    context = llama_cpp.llama_context_default_params()
    allowed = BackendOptions(flash_attn=True, cache_type_k=cache_type, cache_type_v=cache_type)
    apply_options(allowed.for_backend(), model, context)
    assert context.type_k == context.type_v


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flash": True}, "'flash'"),
        ({"flash_attn": "yes"}, "'yes'"),
        ({"cache_type_k": 16}, "16"),
        ({"mlock": "please"}, "'please'"),
        ({"mmap": []}, "[]"),
    ],
)
def test_unknown_options_are_refused(
    model_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(CannotLoad) as failure:
        llama.load(spec(model_path, options=options), go_on)
    assert said in failure.value.message
    assert failure.value.permanent


def test_options_that_do_not_go_together_say_why(model_path: Path) -> None:
    options = {"cache_type_v": "q8_0", "flash_attn": False}
    with pytest.raises(CannotLoad, match="V cache") as failure:
        llama.load(spec(model_path, options=options), go_on)
    assert failure.value.permanent


def test_too_many_sequences_are_refused_with_both_numbers(model_path: Path) -> None:
    with pytest.raises(CannotLoad, match=r"300.*256"):
        llama.load(spec(model_path, parallel=300), go_on)


@pytest.mark.parametrize("num_bytes", [2_000, 3_000_000, -5_000_000])
def test_a_cut_file_says_so(model_path: Path, folder: Path, num_bytes: int) -> None:
    path = folder / "cut.gguf"
    path.write_bytes(model_path.read_bytes()[:num_bytes])
    with pytest.raises(CannotLoad, match="is cut off or damaged") as failure:
        llama.load(spec(path), go_on)
    assert str(path) in failure.value.message
    assert failure.value.permanent


def test_an_unknown_architecture_is_named(model_path: Path, folder: Path) -> None:
    path = folder / "new.gguf"
    name = b"\x05\0\0\0\0\0\0\0"  # the length in front of a GGUF string
    path.write_bytes(model_path.read_bytes().replace(name + b"llama", name + b"zebra", 1))
    with pytest.raises(CannotLoad, match="'zebra'") as failure:
        llama.load(spec(path), go_on)
    assert failure.value.permanent
