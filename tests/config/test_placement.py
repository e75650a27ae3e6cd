"""CPUs and GPUs of models in the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.config import ConfigError, load_config
from openclawd.config.cpus import format_cpus, parse_cpus

if TYPE_CHECKING:
    from pathlib import Path

    from openclawd.config import Config


def loaded(folder: Path, text: str) -> Config:
    file = folder / "c.yaml"
    file.write_text(text)
    return load_config(file)


@given(st.frozensets(st.integers(0, 8191), min_size=1))
def test_lists_of_cpus_there_and_back(cpus: frozenset[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


def test_how_cpus_are_written(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        "models:\n  a: {path: a, cpus: 0-2}\n  b: {path: b, cpus: 5}\n"
        "  c: {path: c, cpus: [3, 4]}\n  d: {path: d, cpus: '7,9-10'}\n  e: {path: e}\n",
    )
    named = {name: model.cpus and format_cpus(model.cpus) for name, model in config.models.items()}
    assert named == {"a": "0-2", "b": "5", "c": "3-4", "d": "7,9-10", "e": None}


def test_no_two_models_share_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "models:\n  a: {path: a, cpus: 0-3}\n  b: {path: b, cpus: 2-5}\n")
    assert "models.b.cpus: CPU 2 is named for model a already" in str(caught.value)


@pytest.mark.parametrize("value", ["3-1", "x", "''", "1.5", "true", "9999", "[]", "-1", "'1,,2'"])
def test_what_is_no_list_of_cpus(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="allowed: a list such as 0-3,8"):
        loaded(tmp_path, f"models: {{a: {{path: a, cpus: {value}}}}}")


def test_gpu_keys(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        "models: {a: {path: a, without_gpu: fail, options: {tensor_split: [3, 1],"
        " split_mode: row}}}\nresource_limits: {gpu_memory_per_model: 4GiB, gpu_wait: 0s}\n",
    )
    model, limits = config.models["a"], config.resource_limits
    assert (model.without_gpu, limits.gpu_memory_per_model, limits.gpu_wait_s) == (
        "fail",
        4 * 2**30,
        0,
    )
    options = model.options.for_backend()
    assert (options["tensor_split"], options["split_mode"]) == ([3.0, 1.0], "row")


@pytest.mark.parametrize("value", ["[0, 0]", "[]", "[-1]", "[true]", "3", f"{[1] * 17}"])
def test_what_is_no_split(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="allowed: a list of at most 16 numbers"):
        loaded(tmp_path, f"models: {{a: {{path: a, options: {{tensor_split: {value}}}}}}}")


@pytest.mark.parametrize("value", ["0", "much", "-4GiB"])
def test_what_is_no_memory(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="allowed: a size such as 8GiB"):
        loaded(tmp_path, f"resource_limits: {{gpu_memory_per_model: {value}}}")
