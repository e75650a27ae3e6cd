"""The arithmetic against what llama.cpp says that it takes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import llama_cpp
import pytest
from models.tiny import WRITERS

from openclawd.backends import llama_load, llama_log
from openclawd.backends.base import LoadSpec
from openclawd.backends.torch_encoder_load import STEP_BUDGETS
from openclawd.engine.limits import Limits
from openclawd.fleet.estimate import Estimate, estimate, shrunk
from openclawd.fleet.estimate_torch import ENCODER_BUDGETS
from openclawd.fleet.footprints import Measured
from openclawd.fleet.parts import STOWED_SHARE, Part
from openclawd.fleet.residency import HOST
from openclawd.worker.facts import Layers, ModelFacts, decode_facts
from openclawd.worker.gguf_shape import gguf_facts
from openclawd.worker.messages import Load

if TYPE_CHECKING:
    from pathlib import Path

    from models.library import ModelLibrary

_SIZE: Final = re.compile(r"(\S+) +(model|KV|RS|output|compute) buffer size = +([\d.]+) MiB")
_MIB: Final = 2**20
_OURS: Final = ("process", "kept prefixes")
"""Parts of which llama.cpp knows nothing."""

EXACT: Final = {"cache_type_k": "f32", "cache_type_v": "bf16", "flash_attn": False}
SETTINGS: Final[list[dict[str, Any]]] = [
    {"parallel": 4, "context": 1024, "computes_aside": True},
    {"parallel": 3, "context": 300, "options": EXACT, "batch_tokens": 256},
    {"parallel": 4, "context": 256, "shares_prefixes": False},
]


def _load(path: Path, settings: dict[str, Any]) -> Load:
    whole = {"kv_tokens": settings["parallel"] * settings["context"], "batch_tokens": 512}
    return Load("m", str(path), **(whole | settings))


def _said(load: Load) -> Counter[str]:
    """Bytes of llama.cpp's buffers by what they are for, as it logs them."""
    sizes: Counter[str] = Counter()

    def receive(level: int, text: bytes, user_data: object) -> None:
        del level, user_data
        if match := _SIZE.search(text.decode()):
            name = "packed" if match[2] == "model" and "Mapped" not in match[1] else match[2]
            sizes[name] += round(float(match[3]) * _MIB)

    callback = llama_cpp.llama_log_callback(receive)
    llama_log.install()
    llama_cpp.llama_log_set(callback, None)
    try:
        spec = LoadSpec(
            load.path,
            parallel=load.parallel,
            context=load.context,
            kv_tokens=load.kv_tokens,
            batch_tokens=load.batch_tokens,
            threads=1,
            options=load.options,
            shares_cells=load.shares_prefixes,
            computes_aside=load.computes_aside,
        )
        params = llama_load._params(spec)
        model = llama_load._read_model(spec, params[0], lambda _: True)
        adapters = llama_load.Adapters(model, {})
        llama_load._with_context(spec, model, params[1], adapters).free()
    finally:
        llama_cpp.llama_log_set(llama_log._CALLBACK, None)
    return sizes


def _named(sum_: Estimate, *names: str) -> int:
    return sum(part.num_bytes for part in sum_.parts if part.name in names)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", WRITERS)
def test_the_cache_of_every_memory_kind_is_what_llama_cpp_makes(
    kind: str, settings: dict[str, Any], models: ModelLibrary
) -> None:
    load = _load(models.tiny(kind), settings)
    computed, said = estimate(gguf_facts(load.path), load), _said(load)
    aside = _named(computed, "prompts aside")
    cache = _named(computed, "KV cache", "recurrent state")
    slack = 0.02 * _MIB  # it logs two digits
    assert cache - slack <= said["KV"] + said["RS"] <= cache + aside + slack
    everything = sum(part.num_bytes for part in computed.parts if part.name not in _OURS)
    taken = sum(said.values()) - said["packed"]
    assert 0.8 * taken <= everything


QUANTISED: Final = {"flash_attn": True, "cache_type_k": "q8_0", "cache_type_v": "q4_0"}


@pytest.mark.parametrize(
    "settings", [SETTINGS[0], {"parallel": 3, "context": 700, "options": QUANTISED}]
)
def test_smollm2_takes_what_was_computed(settings: dict[str, Any], model_path: Path) -> None:
    load = _load(model_path, settings)
    computed, said = estimate(gguf_facts(load.path), load), _said(load)
    everything = sum(part.num_bytes for part in computed.parts if part.name not in _OURS)
    assert everything == pytest.approx(sum(said.values()), rel=0.05)
    assert _named(computed, "copy of the weights") == pytest.approx(said["packed"], abs=0.1 * _MIB)


def test_weights_that_are_read_are_counted_once(model_path: Path) -> None:
    load = _load(model_path, {**SETTINGS[0], "options": {"mmap": False}})
    computed, said = estimate(gguf_facts(load.path), load), _said(load)
    assert not any(part.is_mapped for part in computed.parts)
    assert _named(computed, "weights") == pytest.approx(said["packed"], rel=0.01)


def test_as_many_prefixes_are_counted_as_the_engine_takes_out_of_the_cache() -> None:
    assert Limits(1, 1, 1, 1).stowed_share == STOWED_SHARE


def test_a_step_of_a_torch_encoder_is_counted_as_its_backend_makes_it() -> None:
    assert STEP_BUDGETS == ENCODER_BUDGETS


# ---- the arithmetic by itself ----

FACTS: Final = ModelFacts(
    kind="gguf",
    architecture="llama",
    weights_bytes=1000 * _MIB,
    repeating_bytes=800 * _MIB,
    num_layers=10,
    embedding_width=1024,
    feed_forward_width=4096,
    vocab_size=32_000,
    vocab_bytes=300_000,
    context_train=4096,
    num_heads=16,
    attention=(Layers(10, 1024, 1024),),
)
LOAD: Final = Load("m", "/m.gguf", parallel=4, context=1024, kv_tokens=4096, batch_tokens=512)


def test_what_is_read_is_converted_on_its_way_and_what_is_mapped_is_copied() -> None:
    facts = replace(FACTS, packed_bytes=300 * _MIB)
    mapped = estimate(facts, LOAD)
    read = estimate(facts, replace(LOAD, options={"mmap": False}))
    assert mapped.total_bytes - read.total_bytes == 300 * _MIB
    assert mapped.need("file").weights_bytes == 1000 * _MIB
    assert read.need("file").weights_bytes == 0


def test_what_is_on_the_gpu_is_not_on_the_host() -> None:
    host = estimate(FACTS, LOAD)
    half = estimate(FACTS, LOAD, gpu_layers=5, gpu="0")
    full = estimate(FACTS, LOAD, gpu_layers=11, gpu="0")
    assert host.on("0") == 0
    assert half.on("0") >= 400 * _MIB
    assert full.on("0") >= 1000 * _MIB + 10 * 4096 * 2 * 2048
    assert full.on(HOST) < half.on(HOST) < host.on(HOST)


def test_a_window_keeps_no_more_than_it_must() -> None:
    windows = replace(FACTS, attention=(Layers(10, 1024, 1024, window=128),))
    # 4 windows and a batch, rounded up to 256: a quarter of all cells.
    assert 4 * _named(estimate(windows, LOAD), "KV cache") == _named(
        estimate(FACTS, LOAD), "KV cache"
    )


def test_a_draft_model_is_counted() -> None:
    both = estimate(FACTS, LOAD, draft=replace(FACTS, weights_bytes=_MIB, repeating_bytes=0))
    assert _named(both, "draft model's weights") == _MIB
    assert _named(both, "draft model's KV cache") == _named(both, "KV cache")


def test_a_torch_model_is_converted_to_the_format_it_is_computed_in() -> None:
    facts = replace(FACTS, kind="torch", stored_bits=16)
    stored = estimate(facts, LOAD)
    assert [part.is_mapped for part in stored.parts if part.name == "weights"] == [True]
    wide = estimate(facts, replace(LOAD, options={"dtype": "float32"}))
    assert _named(wide, "weights") == 2 * _named(stored, "weights")
    assert _named(wide, "KV cache") == 2 * _named(stored, "KV cache") == 4096 * 10 * 2048 * 4
    encoder = estimate(replace(facts, is_encoder=True, attention=()), LOAD)
    assert _named(encoder, "KV cache") == 0


def test_what_was_measured_stands_in_for_what_was_computed() -> None:
    computed = estimate(FACTS, LOAD)
    used = computed.corrected(Measured(own_bytes=50 * _MIB, pss_bytes=0, is_used=True, at=0))
    assert used.basis == "measured"
    assert used.total_bytes == (1000 + 50 + 10) * _MIB
    unused = computed.corrected(Measured(own_bytes=50 * _MIB, pss_bytes=0, is_used=False, at=0))
    assert unused.total_bytes == computed.total_bytes


def test_workers_share_the_mapped_file_and_nothing_else() -> None:
    parts = (Part("weights", 10, "", is_mapped=True), Part("cache", 3, ""), Part("kv", 2, "", "0"))
    need = Estimate(parts).need("file", num_workers=2)
    assert (need.weights, need.weights_bytes, need.own) == ("file", 10, {HOST: 6, "0": 4})


def test_shrinking_takes_sequences_first_and_context_then() -> None:
    smaller = shrunk(LOAD, min_parallel=1, min_context=300)
    assert [(load.parallel, load.context, load.kv_tokens) for load in smaller] == [
        (2, 1024, 2048),
        (1, 1024, 1024),
        (1, 512, 512),
        (1, 300, 300),
    ]
    assert shrunk(LOAD, min_parallel=4, min_context=1024) == []


def test_facts_survive_the_way_from_the_probe() -> None:
    assert decode_facts(FACTS.encode()) == FACTS
