"""A worker process with a tiny model of every memory kind: what the engine promises, it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from backends.conformance import cosine, vector
from models.tiny import EXACT, NEAR_TIE, WRITERS
from near_ties import NearTies
from worker.driver import GREEDY, running_worker

from openclawd.worker.messages import Abort, Continuation, Loaded, Start

if TYPE_CHECKING:
    from pathlib import Path

    from models.library import ModelLibrary

NUM_TOKENS = 12
STORY = "A lighthouse stands where the river meets the sea. Its keeper, an old woman who had been"
PROMPTS = [f"{STORY} {rest}" for rest in ("a captain", "to school and", "asked why", "there,")]


@pytest.mark.parametrize("kind", WRITERS)
def test_answers_vectors_cancels_and_resumed_requests(
    models: ModelLibrary, folder: Path, kind: str
) -> None:
    path = models.tiny(kind)
    with NearTies(path, NEAR_TIE) as judge, running_worker(folder) as worker:
        loaded = worker.load(path, kv_tokens=512, context=256, batch_tokens=32, options=EXACT)
        assert isinstance(loaded, Loaded), loaded
        wanted = [judge.answer(judge.tokens(prompt), NUM_TOKENS) for prompt in PROMPTS]

        cancelled = worker.prepare("generate", prompt=STORY)
        embedding = worker.prepare("embed", input=[STORY])
        rids = [worker.prepare("generate", prompt=prompt) for prompt in PROMPTS]
        starts = [Start(rid, NUM_TOKENS, GREEDY) for rid in rids]
        worker.send(Start(cancelled, 100, GREEDY), Start(embedding, 0, {}), *starts)
        worker.send(Abort(cancelled))
        ended, embedded, *outcomes = worker.finish(cancelled, embedding, *rids)
        assert ended.end.finish_reasons == ["cancelled"]
        for prompt, outcome, tokens in zip(PROMPTS, outcomes, wanted, strict=True):
            judge.check(prompt, outcome.token_ids[0], tokens)

        alone = worker.run("embed", input=[STORY])
        assert cosine(vector(alone.vectors[0]), vector(embedded.vectors[0])) > 0.9999
        part = Continuation.of(0, cached_tokens=0, token_ids=wanted[0][:5])
        rid = worker.prepare("generate", prompt=PROMPTS[0])
        worker.send(Start(rid, NUM_TOKENS, GREEDY, continuation=[part]))
        (resumed,) = worker.finish(rid)
        judge.check(PROMPTS[0], wanted[0][:5] + resumed.token_ids[0], wanted[0])
