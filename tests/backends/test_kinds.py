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


SEPARATE = "separate"
"""Full attention, where every slot has cells of its own."""


@pytest.fixture(scope="module", params=[*WRITERS, SEPARATE])
def backend(request: pytest.FixtureRequest, models: ModelLibrary) -> Iterator[LlamaBackend]:
    shares = request.param != SEPARATE
    path = str(models.tiny(request.param if shares else "full"))
    num_cells = 512 if shares else 4 * 256
    spec = LoadSpec(
        path,
        parallel=4,
        context=256,
        kv_tokens=num_cells,
        batch_tokens=512,
        threads=1,
        shares_cells=shares,
    )
    loaded = llama.load(spec, lambda _: True)
    yield loaded
    loaded.close()


class TestConformance(BackendConformance):
    """Every memory kind keeps the contract."""

    # These need a model that has learned something.
    test_dry_breaks_a_run_that_came_before = None
    test_mirostat_steers_towards_its_surprise = None

    def needs_cells(self, backend: Backend) -> bool:
        """Not where there is no cell per token, nor where there are enough for every slot."""
        info = backend.info
        return info.architecture != "mamba" and info.kv_tokens < info.parallel * info.context
