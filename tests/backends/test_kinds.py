"""The llama.cpp backend with a tiny model of every memory kind: each keeps the whole contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from backends.conformance import BackendConformance
from models.tiny import WRITERS

from openclawd.backends import llama
from openclawd.backends.base import LoadSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.library import ModelLibrary

    from openclawd.backends.base import Backend
    from openclawd.backends.llama import LlamaBackend


@pytest.fixture(scope="module", params=WRITERS)
def backend(request: pytest.FixtureRequest, models: ModelLibrary) -> Iterator[LlamaBackend]:
    path = str(models.tiny(request.param))
    spec = LoadSpec(path, parallel=4, context=256, kv_tokens=512, batch_tokens=512, threads=1)
    loaded = llama.load(spec, lambda _: True)
    yield loaded
    loaded.close()


class TestConformance(BackendConformance):
    """Every memory kind keeps the contract."""

    # These need a model that has learned something.
    test_dry_breaks_a_run_that_came_before = None
    test_mirostat_steers_towards_its_surprise = None

    def needs_cells(self, backend: Backend) -> bool:
        return backend.info.architecture != "mamba"
