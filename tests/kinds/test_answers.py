"""Whatever happens to requests on their way, each gets the answer that plain llama.cpp gives to it
alone: with models of every memory kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kinds.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinds.world import World


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_answers_are_those_of_each_alone(
    world: World, scenario: Callable[[World], list[list[int]]]
) -> None:
    assert scenario(world) == world.alone
