"""Five daemons and five workers are killed at random moments under load, and the ledger, the
budgets and the audit are in order after each. `bench/chaos.py` does the same twenty times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kills import Chaos

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NUM_ROUNDS = 5
SEED = 20_261_129


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_or_overdrawn_whoever_is_killed(
    folder: Path, record_property: Callable[[str, object], None]
) -> None:
    chaos = Chaos(folder, SEED)
    chaos.run(num_rounds=NUM_ROUNDS)
    summary = chaos.summary()
    record_property("chaos", summary)
    assert (chaos.counts["daemon kills"], chaos.counts["worker kills"]) == (NUM_ROUNDS, NUM_ROUNDS)
    # Else it has shown nothing: every kind of end must have been there.
    assert summary["done seen"] >= 2 * NUM_ROUNDS
    assert summary["estimated"] >= 2 * NUM_ROUNDS
    assert summary["outlived a worker"] > 0
