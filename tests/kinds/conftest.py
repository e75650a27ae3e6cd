"""One loaded backend for each memory kind, shared by the tests. Full attention is there twice: the
slots share their cells, or have their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kinds.world import World, open_world
from models.tiny import WRITERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.library import ModelLibrary


SEPARATE = "separate"


@pytest.fixture(scope="session", params=[*WRITERS, SEPARATE])
def world(request: pytest.FixtureRequest, models: ModelLibrary) -> Iterator[World]:
    shares = request.param != SEPARATE
    with open_world(models, request.param if shares else "full", shares=shares) as opened:
        yield opened
