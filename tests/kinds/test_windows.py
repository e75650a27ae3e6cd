"""What only models with a sliding window can get wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinds.scenarios import NUM_TOKENS, Oracle, World
from models.tiny import EXACT, NEAR_TIE
from near_ties import NearTies

from openclawd.backends import llama, llama_load
from openclawd.backends.base import LoadSpec

if TYPE_CHECKING:
    import pytest
    from models.library import ModelLibrary


def test_guesses_push_nothing_out_of_the_window_for_good(
    models: ModelLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While some sequences are guessed for, the prompts of others want cells. Were the batch
    computed in pieces, the later ones would take what a wrong guess had pushed out."""
    monkeypatch.setattr(llama_load, "UBATCH_TOKENS", 16)
    path = models.tiny("window")
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
        world = World(backend, judge)
        for start in range(0, 15, 3):
            engine = world.engine(drafter=Oracle(world), max_guesses=12)
            rids = [engine.ask(ask, NUM_TOKENS) for ask in world.asks[:3]]
            engine.steps(4)
            for turn in range(4):
                engine.ask(world.long_ask(start + 5 * turn), 4)
            engine.run()
            assert [engine.answer(rid) for rid in rids] == world.alone[:3]
    backend.close()
