"""The backend of fixed step time keeps the contract, and its time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import pytest
from backends.conformance import BackendConformance, generate, prompt_tokens
from fixed_step import FixedStep

from openclawd.backends import llama
from openclawd.backends.base import LoadSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.library import ModelLibrary

    from openclawd.backends.base import Backend

STEP_S = 0.0005


@pytest.fixture(scope="module")
def backend(models: ModelLibrary) -> Iterator[Backend]:
    path = str(models.tiny("full"))
    spec = LoadSpec(path, parallel=4, context=256, kv_tokens=512, batch_tokens=512, threads=1)
    loaded = llama.load(spec, lambda _: True)
    yield cast("Backend", FixedStep(loaded, step_s=STEP_S))
    loaded.close()


class TestConformance(BackendConformance):
    """Waiting changes nothing."""


def test_a_step_takes_its_time(backend: Backend) -> None:
    start_s = time.monotonic()
    generate(backend, prompt_tokens(backend, "Hello"), 20)
    assert time.monotonic() - start_s >= 20 * STEP_S
