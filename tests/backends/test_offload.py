"""Layers on GPUs: as many as fit, each GPU within its budget, in the order that llama.cpp has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llama_cpp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.backends import llama_log
from openclawd.backends.base import CannotLoad, LoadSpec
from openclawd.backends.llama_offload import Shape, fit, fitted_to_gpus, shape_of
from openclawd.backends.llama_options import apply_options
from openclawd.backends.offload import fit_layers

if TYPE_CHECKING:
    from pathlib import Path

SIZES = st.lists(st.integers(1, 1000), min_size=1, max_size=40)
BUDGETS = st.lists(st.integers(0, 8000), min_size=1, max_size=4)


@given(SIZES, BUDGETS)
def test_no_gpu_has_more_than_its_budget(layers: list[int], budgets: list[int]) -> None:
    offload = fit_layers(layers, budgets)
    assert sum(offload.counts) == offload.num_layers
    begin = len(layers) - offload.num_layers
    for count, budget in zip(offload.counts, budgets, strict=True):
        assert sum(layers[begin : begin + count]) <= budget
        begin += count


@given(SIZES, st.integers(0, 40_000))
def test_on_one_gpu_one_more_would_not_fit(layers: list[int], budget: int) -> None:
    num_layers = fit_layers(layers, [budget]).num_layers
    assert num_layers == len(layers) or sum(layers[-num_layers - 1 :]) > budget


@given(SIZES, BUDGETS)
def test_more_room_never_means_fewer_layers(layers: list[int], budgets: list[int]) -> None:
    more = [budget + 500 for budget in budgets]
    assert fit_layers(layers, more).num_layers >= fit_layers(layers, budgets).num_layers


def test_several_gpus() -> None:
    layers = [10] * 9
    assert fit_layers(layers, [1000, 1000]).counts == (5, 4)
    assert fit_layers(layers, [3000, 1000]).counts == (7, 2)
    assert fit_layers(layers, [30, 1000]).counts == (1, 8)
    assert fit_layers(layers, [40, 20]).counts == (4, 2)
    assert fit_layers(layers, [0, 0]).num_layers == 0
    assert fit_layers(layers, [55, 45]).counts == (5, 4)


def test_shares_that_were_given_are_kept() -> None:
    layers = [10] * 8
    assert fit_layers(layers, [1000, 1000], [3, 1]).counts == (6, 2)
    assert fit_layers(layers, [30, 1000], [3, 1]).counts == (3, 1)
    assert fit_layers(layers, [1000, 1000], [0, 1]).counts == (0, 8)


def spec_of(path: Path, **more: Any) -> LoadSpec:
    return LoadSpec(str(path), parallel=2, context=1024, kv_tokens=2048, batch_tokens=512, **more)


def test_the_bytes_of_a_models_layers(model_path: Path) -> None:
    """SmolLM2: 30 layers, whose weights and table are what the file has, and a cache of 192 keys
    and values for each token, at 2 bytes."""
    llama_log.install()
    shape = shape_of(spec_of(model_path))
    assert shape is not None
    cache = 2 * 192 * 2 * 2048
    assert len(shape.layers) == 31
    weights = sum(shape.layers) - 30 * cache
    assert abs(weights - 92.10 * 2**20) < 10_000  # what llama.cpp prints of the file
    assert shape.layers[-1] == 49_152 * 576 * 34 // 32  # the table is in Q8_0


def test_a_spec_gets_its_layers(tmp_path: Path) -> None:
    shape = Shape([10] * 9, graph_bytes=5)
    one = fit(spec_of(tmp_path, gpu_budgets=(45,)), shape)
    assert (one.gpu_layers, one.options) == (4, {})
    two = fit(spec_of(tmp_path, gpu_budgets=(45, 25)), shape)
    assert (two.gpu_layers, two.options) == (6, {"tensor_split": [4.0, 2.0]})
    none = fit(spec_of(tmp_path, gpu_budgets=(3,)), shape)
    assert none.gpu_layers == 0


def test_a_model_that_needs_a_gpu_does_not_load_without(model_path: Path) -> None:
    if not llama_cpp.llama_supports_gpu_offload():
        with pytest.raises(CannotLoad, match="built without GPU support"):
            fitted_to_gpus(spec_of(model_path, needs_gpu=True))


def test_how_a_model_is_spread_reaches_llama_cpp() -> None:
    model, context = (
        llama_cpp.llama_model_default_params(),
        llama_cpp.llama_context_default_params(),
    )
    apply_options({"tensor_split": [3.0, 1.0], "split_mode": "row"}, model, context)
    assert model.split_mode == llama_cpp.LLAMA_SPLIT_MODE_ROW
    shares = [model.tensor_split[index] for index in range(llama_cpp.llama_max_devices())]
    assert shares[:3] == [3.0, 1.0, 0.0]
    with pytest.raises(CannotLoad, match="tensor_split"):
        apply_options({"tensor_split": [1.0] * 99}, model, context)
