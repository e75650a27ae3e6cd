"""What only models with a sliding window can get wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinds.scenarios import Oracle
from kinds.world import NUM_TOKENS, open_world

from openclawd.backends import llama_load

if TYPE_CHECKING:
    import pytest
    from models.library import ModelLibrary


def test_guesses_push_nothing_out_of_the_window_for_good(
    models: ModelLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While some sequences are guessed for, the prompts of others want cells. Were the batch
    computed in pieces, the later ones would take what a wrong guess had pushed out."""
    monkeypatch.setattr(llama_load, "UBATCH_TOKENS", 16)
    with open_world(models, "window") as world:
        for start in range(0, 15, 3):
            engine = world.engine(drafter=Oracle(world), max_guesses=12)
            rids = [engine.ask(ask, NUM_TOKENS) for ask in world.asks[:3]]
            engine.steps(4)
            for turn in range(4):
                engine.ask(world.long_ask(start + 5 * turn), 4)
            engine.run()
            assert [engine.answer(rid) for rid in rids] == world.alone[:3]
