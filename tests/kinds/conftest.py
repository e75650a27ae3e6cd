"""A loaded backend with a tiny model of every memory kind, and requests to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kinds.scenarios import World
from models.tiny import EXACT, NEAR_TIE, WRITERS
from near_ties import NearTies

from openclawd.backends import llama
from openclawd.backends.base import LoadSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.library import ModelLibrary


@pytest.fixture(scope="session", params=WRITERS)
def world(request: pytest.FixtureRequest, models: ModelLibrary) -> Iterator[World]:
    """The cells for windows are fewer than the other cells, and a batch is smaller than most
    prompts."""
    path = models.tiny(request.param)
    spec = LoadSpec(
        str(path),
        parallel=4,
        context=512,
        kv_tokens=1024,
        batch_tokens=64,
        threads=1,
        options=EXACT,
    )
    backend = llama.load(spec, lambda _: True)
    with NearTies(path, NEAR_TIE) as judge:
        yield World(backend, judge)
    backend.close()
