"""What the headers of model files say, and that hostile ones do no harm."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given
from hypothesis import strategies as st
from models.gguf_writer import copy_with_keys

from openclawd.backends.base import CannotLoad
from openclawd.worker.cpu_layouts import packed_bytes
from openclawd.worker.facts import Layers, decode_facts
from openclawd.worker.folder_shape import folder_facts
from openclawd.worker.gguf_metadata import _BLOCKS, GgufMetadata, Tensor, read_gguf_metadata
from openclawd.worker.gguf_shape import _Shape, gguf_facts

if TYPE_CHECKING:
    from pathlib import Path

    from models.library import ModelLibrary


def _attention(architecture: str, **keys: Any) -> tuple[Layers, ...]:
    usual = {
        "block_count": 12,
        "embedding_length": 1024,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
    }
    values = {f"{architecture}.{key}": value for key, value in (usual | keys).items()}
    return (
        _Shape(GgufMetadata({"general.architecture": architecture, **values})).facts({}).attention
    )


# ---- GGUF ----


def test_smollm2_is_what_its_authors_say(model_path: Path) -> None:
    facts = gguf_facts(str(model_path))
    assert (facts.architecture, facts.num_layers, facts.vocab_size) == ("llama", 30, 49_152)
    assert facts.attention == (Layers(30, 192, 192),)
    assert facts.weights_bytes == pytest.approx(model_path.stat().st_size, rel=0.02)


def test_the_layers_of_known_architectures() -> None:
    assert _attention("llama") == (Layers(12, 256, 256),)
    keys = {"attention.sliding_window": 512, "attention.key_length": 256}
    assert _attention("gemma3", **keys) == (Layers(2, 512, 256), Layers(10, 512, 256, 512))
    assert _attention("phi3", **{"attention.sliding_window": 64}) == (Layers(12, 256, 256, 64),)
    heads = [0, 2] * 6
    jamba = {"attention.head_count_kv": heads, "ssm.state_size": 16, "ssm.inner_size": 64}
    assert _attention("jamba", **jamba) == (Layers(6, 256, 256),)
    assert _attention("mamba") == ()
    assert _attention("bert") == ()
    mla = {"attention.key_length": 576, "attention.head_count_kv": 1, "attention.key_length_mla": 1}
    assert _attention("deepseek2", **mla) == (Layers(12, 576, 0),)


def test_a_window_of_an_unknown_architecture_is_not_believed() -> None:
    """Full attention takes more: what is estimated too large is at least not too small."""
    assert _attention("new", **{"attention.sliding_window": 64}) == (Layers(12, 256, 256),)


@pytest.mark.parametrize("name", ["block_count", "attention.head_count_kv", "embedding_length"])
@pytest.mark.parametrize("value", [-1, 2**63, "many", [1, "x"], [[]], 1e300, None, True])
def test_wrong_values_are_worth_nothing_and_do_no_harm(name: str, value: Any) -> None:
    assert sum(layers.count for layers in _attention("llama", **{name: value})) <= 12


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_magic_are_a_model_or_refused(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(struct.pack("<4sIqq", b"GGUF", 3, 1, 1) + data)
        file.flush()
        with pytest.raises(CannotLoad):
            read_gguf_metadata(file.name)


def test_a_header_cut_anywhere_is_refused(models: ModelLibrary, tmp_path: Path) -> None:
    whole = models.tiny("full").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (25, 100, 1000, 20_000, 60_000):
        cut.write_bytes(whole[:length])
        with pytest.raises(CannotLoad, match="cut off or damaged"):
            gguf_facts(str(cut))


def test_a_file_whose_last_weights_are_cut_off_is_refused(
    models: ModelLibrary, tmp_path: Path
) -> None:
    whole = models.tiny("full").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[:-7])
    with pytest.raises(CannotLoad, match="is cut off: its last 7 bytes are missing"):
        gguf_facts(str(cut))


def test_the_sizes_of_number_formats_are_those_of_ggml() -> None:
    assert {kind: GGML_QUANT_SIZES[kind] for kind in _BLOCKS} == _BLOCKS


def test_a_split_model_has_the_weights_of_all_its_files(
    models: ModelLibrary, tmp_path: Path
) -> None:
    whole = gguf_facts(str(models.tiny("full")))
    for number in (1, 2):
        copy_with_keys(models.tiny("full"), tmp_path / f"m-0000{number}-of-00002.gguf", {})
    assert gguf_facts(str(tmp_path / "m-00001-of-00002.gguf")).weights_bytes >= whole.weights_bytes


def test_what_this_cpu_copies() -> None:
    tensors = {
        "token_embd.weight": Tensor(340, 2, 8),
        "blk.0.attn_q.weight": Tensor(200, 2, 3),
        "blk.0.attn_norm.weight": Tensor(40, 1, 0),
    }
    amx = {"avx2", "avx512f", "avx512_vnni", "amx_int8"}
    assert packed_bytes(tensors, amx) == 380 + 200
    assert packed_bytes(tensors | {"output.weight": Tensor(100, 2, 2)}, amx) == 300
    assert packed_bytes(tensors, {"avx2"}) == 0


# ---- folders ----


def _write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, int]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, offset = {}, 0
    for name, size in tensors.items():
        offsets = [offset, offset + size]
        header[name] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": offsets}
        offset += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return folder


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def test_a_folder_of_safetensors(tmp_path: Path) -> None:
    facts = folder_facts(str(_write_folder(tmp_path / "m", LLAMA, {"a": 100, "b": 60})))
    assert (facts.kind, facts.weights_bytes, facts.stored_bits) == ("torch", 160, 16)
    assert facts.attention == (Layers(4, 32, 32),)
    encoder = LLAMA | {"architectures": ["BertModel"]}
    facts = folder_facts(str(_write_folder(tmp_path / "e", encoder, {"a": 2})))
    assert (facts.is_encoder, facts.attention) == (True, ())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"["),
        ("config.json", b"[]"),
        ("config.json", b"[" * 100_000),
        ("model.safetensors", b""),
        ("model.safetensors", struct.pack("<Q", 2**60)),
        ("model.safetensors", struct.pack("<Q", 2) + b"{}"),
        ("model.safetensors", struct.pack("<Q", 8) + b'{"a": 1}'),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    folder = _write_folder(tmp_path / "m", LLAMA, {"a": 100})
    (folder / name).write_bytes(content)
    with pytest.raises(CannotLoad):
        folder_facts(str(folder))


# ---- the process ----


def test_the_probe_says_facts_or_why_there_are_none(models: ModelLibrary) -> None:
    path = str(models.tiny("window"))
    assert decode_facts(_ask_probe(path)) == gguf_facts(path)
    said = _ask_probe("/nowhere")
    assert (said["error"], said["permanent"]) == ("/nowhere does not exist", True)


def _ask_probe(path: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "openclawd.worker.probe", path]
    answer: dict[str, Any] = json.loads(
        subprocess.run(command, capture_output=True, check=True).stdout
    )
    return answer
