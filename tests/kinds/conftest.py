"""One loaded backend for each memory kind, shared by the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kinds.world import World, open_world
from models.tiny import WRITERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.library import ModelLibrary


@pytest.fixture(scope="session", params=WRITERS)
def world(request: pytest.FixtureRequest, models: ModelLibrary) -> Iterator[World]:
    with open_world(models, request.param) as opened:
        yield opened
