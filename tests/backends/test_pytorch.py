"""The torch backend with tiny models: the conformance suite, and what is its own.

The real model is in `tests/e2e/test_torch.py`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from backends.conformance import (
    GREEDY,
    PROMPTS,
    BackendConformance,
    forward,
    generate,
    generate_together,
    prompt_tokens,
)
from backends.grammars import GrammarConformance
from models.torch_smollm2 import torch_smollm2_path
from models.torch_tiny import CONFIGS, CONTEXT, NUM_LAYERS, write_tiny_torch
from torch_near_ties import TorchModel

from openclawd.backends import pytorch
from openclawd.backends.base import CannotLoad, DecodeFailed, LoadAborted, LoadSpec
from openclawd.backends.pytorch_sixteen_bits import is_slow, multiply_in_32_bits
from openclawd.engine.batch import Batch, BatchKind, Chunk, Opening
from openclawd.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openclawd.backends.base import Backend

SERVED = [kind for kind in CONFIGS if kind != "mamba"]
EXACT = {"dtype": "float32", "device": "cpu"}


def spec(path: Path, **values: object) -> LoadSpec:
    """One thread: several wait for each other, which takes long when other tests want the CPUs."""
    defaults = {"parallel": 4, "context": 256, "kv_tokens": 512, "batch_tokens": 512, "threads": 1}
    return LoadSpec(str(path), **{**defaults, "options": EXACT, **values})


def go_on(fraction: float) -> bool:
    assert 0 <= fraction <= 1
    return True


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each kind."""
    place = tmp_path_factory.mktemp("torch")
    for kind in CONFIGS:
        write_tiny_torch(place / kind, kind)
    return {kind: place / kind for kind in CONFIGS}


@pytest.fixture(scope="module")
def backend(folders: dict[str, Path]) -> Iterator[Backend]:
    loaded = pytorch.load(spec(folders["llama"]), go_on)
    yield loaded
    loaded.close()


class TestConformance(BackendConformance, GrammarConformance):
    """torch keeps the contract."""

    # These need a model that has learned something, as below.
    test_dry_breaks_a_run_that_came_before = None
    test_mirostat_steers_towards_its_surprise = None


class TestConformanceOfSmolLM2:
    """What the tiny model cannot show, with the model that is behind the llama backend, too."""

    @pytest.fixture(scope="class", params=["float32", "bfloat16"])
    @classmethod
    def backend(cls, request: pytest.FixtureRequest) -> Iterator[Backend]:
        options = {"dtype": request.param, "device": "cpu"}
        loaded = pytorch.load(spec(torch_smollm2_path(), options=options), go_on)
        yield loaded
        loaded.close()

    test_dry = BackendConformance.test_dry_breaks_a_run_that_came_before
    test_mirostat = BackendConformance.test_mirostat_steers_towards_its_surprise


@pytest.mark.parametrize("kind", SERVED)
def test_every_kind_says_what_transformers_says(folders: dict[str, Path], kind: str) -> None:
    """Alone, in parts, and beside others of other lengths; longer than any window."""
    with contextlib.closing(pytorch.load(spec(folders[kind]), go_on)) as loaded:
        prompts = [prompt_tokens(loaded, text) for text in (" ".join(PROMPTS), *PROMPTS[:2])]
        together = generate_together(loaded, prompts, [GREEDY] * 3)
        in_parts = [generate(loaded, prompt, 12, chunk_tokens=5) for prompt in prompts]
        with TorchModel.of(folders[kind]) as model:
            theirs = [model.answers([prompt], 12)[0] for prompt in prompts]
    assert together == theirs
    assert in_parts == theirs


def test_what_it_says_of_the_model(folders: dict[str, Path]) -> None:
    with contextlib.closing(pytorch.load(spec(folders["gemma2"]), go_on)) as loaded:
        info = loaded.info
    assert info.architecture == "gemma2"
    assert info.quantization == "float32"
    assert info.devices == ("cpu",)
    assert info.attention == "paged, step by step"
    assert info.gpu_layers == 0
    assert info.warnings == ()


def test_a_state_cannot_be_served(folders: dict[str, Path]) -> None:
    with pytest.raises(CannotLoad, match="mamba") as failure:
        pytorch.load(spec(folders["mamba"]), go_on)
    assert failure.value.permanent
    assert "GGUF" in failure.value.hint


def test_16_bits_are_served_by_every_cpu() -> None:
    """Rounding is no reason to say that a model computes something else in parts."""
    options = {"dtype": "bfloat16", "device": "cpu"}
    path = torch_smollm2_path()
    with contextlib.closing(pytorch.load(spec(path, options=options), go_on)) as loaded:
        warnings = loaded.info.warnings
    if is_slow(torch.device("cpu"), torch.bfloat16):
        assert "dtype: float32" in warnings[0]
    else:
        assert warnings == ()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 40])
def test_products_in_32_bits_are_those_in_16_bits_but_for_rounding(
    num_rows: int, *, bias: bool
) -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(64, 32, bias=bias, dtype=torch.bfloat16).eval()
    rows = torch.randn(1, num_rows, 64, dtype=torch.bfloat16)
    with torch.inference_mode():
        plain = module(rows)
        multiply_in_32_bits(module)
        torch.testing.assert_close(module(rows), plain)


def test_positions_that_are_learned_bound_the_context(folders: dict[str, Path]) -> None:
    longer = spec(folders["gpt2"], context=2 * CONTEXT, kv_tokens=2 * CONTEXT)
    with contextlib.closing(pytorch.load(longer, go_on)) as loaded:
        assert loaded.info.context == CONTEXT
        assert str(CONTEXT) in loaded.info.warnings[0]
    longer = spec(folders["llama"], context=2 * CONTEXT, kv_tokens=2 * CONTEXT)
    with contextlib.closing(pytorch.load(longer, go_on)) as loaded:
        assert loaded.info.context == 2 * CONTEXT
        assert "trained" in loaded.info.warnings[0]


def test_loading_can_be_given_up(folders: dict[str, Path]) -> None:
    with pytest.raises(LoadAborted):
        pytorch.load(spec(folders["llama"]), lambda fraction: fraction < 0.1)


def test_a_batch_that_torch_refuses_is_a_typed_failure(folders: dict[str, Path]) -> None:
    with contextlib.closing(pytorch.load(spec(folders["llama"]), go_on)) as loaded:
        opened = [Opening(0, (1,), 1, SamplingParams())]
        chunk = Chunk(0, 0, [loaded.info.vocab_size], num_outputs=1)  # no such token
        result = loaded.forward(Batch(BatchKind.GENERATION, [chunk], opened))
    assert isinstance(result, DecodeFailed)
    assert "torch failed" in result.message


def test_one_sequence_of_garbage_is_nobody_elses(folders: dict[str, Path]) -> None:
    """A shorter one beside a longer one is filled up with cells, which must be its own."""
    with contextlib.closing(pytorch.load(spec(folders["llama"]), go_on)) as loaded:
        prompt = prompt_tokens(loaded, PROMPTS[1])
        wanted = generate(loaded, prompt, 2)
        loaded._model.get_input_embeddings().weight[1000] = float("nan")
        opened = [Opening(slot, tuple(prompt), len(prompt), GREEDY) for slot in (0, 1)]
        chunks = [Chunk(0, 0, prompt, 1), Chunk(1, 0, [*prompt[:3], 1000], 1)]
        first = forward(loaded, chunks, opened=opened)
        assert first.garbage == {1}
        token = first.tokens[0][0].token
        chunks = [Chunk(0, len(prompt), [token], 1), Chunk(1, 4, [7], 1)]
        second = forward(loaded, chunks)
        assert second.garbage == {1}
        assert [token, second.tokens[0][0].token] == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flash_attn": True}, "'flash_attn'"),
        ({"dtype": "int4"}, "'int4'"),
        ({"trust_remote_code": "yes"}, "'yes'"),
        ({"device": "tpu"}, "'tpu'"),
        ({"device": "cuda:99"}, "cuda:99 is not there"),
        ({"quantize": "8bit", "device": "cpu"}, "bitsandbytes|cards only"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(
    folders: dict[str, Path], options: dict[str, object], said: str
) -> None:
    with pytest.raises(CannotLoad, match=said):
        pytorch.load(spec(folders["llama"], options=options), go_on)


def test_code_that_comes_with_a_model_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((folders["llama"] / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass OwnConfig: pass")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CannotLoad, match="Python code") as failure:
        pytorch.load(spec(tmp_path), go_on)
    assert "trust_remote_code" in failure.value.hint
    assert not (tmp_path / "ran").exists()


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_is_run_where_that_is_allowed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of a Llama with code that computes one: the same answers."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "c"))
    monkeypatch.setattr("sys.path", [*sys.path])  # where that folder is put
    folder = tmp_path / "own"
    shutil.copytree(folders["llama"], folder)
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(OWN_CODE)
    with pytest.raises(CannotLoad, match="Python code"):
        pytorch.load(spec(folder), go_on)
    answers = []
    for path, options in ((folders["llama"], EXACT), (folder, EXACT | {"trust_remote_code": True})):
        with contextlib.closing(pytorch.load(spec(path, options=options), go_on)) as loaded:
            answers.append(generate(loaded, prompt_tokens(loaded, PROMPTS[0])))
            architecture = loaded.info.architecture
    assert architecture == "own"
    assert answers[0] == answers[1]


@pytest.mark.parametrize("num_bytes", [5, 2_000, -5_000])
def test_weights_that_are_cut_say_so(
    folders: dict[str, Path], tmp_path: Path, num_bytes: int
) -> None:
    for file in folders["llama"].iterdir():
        data = file.read_bytes()
        is_weights = file.suffix == ".safetensors"
        (tmp_path / file.name).write_bytes(data[:num_bytes] if is_weights else data)
    with pytest.raises(CannotLoad, match="cut off or damaged") as failure:
        pytorch.load(spec(tmp_path), go_on)
    assert str(tmp_path) in failure.value.message


def test_an_adapter_or_single_layers_are_refused(folders: dict[str, Path]) -> None:
    for values, said in (({"gpu_layers": 3}, "gpu_layers"), ({"adapters": {"a": None}}, "adapter")):
        with pytest.raises(CannotLoad) as failure:
            pytorch.load(spec(folders["llama"], **values), go_on)
        assert said in failure.value.message + failure.value.hint


def test_the_layers_have_room_from_the_start(folders: dict[str, Path]) -> None:
    with contextlib.closing(pytorch.load(spec(folders["llama"]), go_on)) as loaded:
        cells = 2 * NUM_LAYERS * 512 * 2 * 16 * 4  # keys and values of two heads of 16 floats
        assert loaded._pool.num_bytes == cells
