"""llama-cpp-python in its own process, without any daemon: what openclawd is compared with.

    inprocess.py cold MODEL THREADS PROMPT    load, answer once, say when what happened
    inprocess.py serve MODEL THREADS          stay loaded, complete on command
    inprocess.py serve-flash MODEL THREADS    the same with flash attention, which is off by default

Speaks JSON lines. All times are of the monotonic clock, which the parent shares. Imports only what
a script of a user would, and that first, since the start of such a script is part of the measure.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import llama_cpp

if TYPE_CHECKING:
    from collections.abc import Iterator

IMPORTED = time.monotonic()
CONTEXT = 2048


def main() -> None:
    mode, path, threads, *rest = sys.argv[1:]
    model = load(path, int(threads), flash_attn=mode == "serve-flash")
    if mode == "cold":
        say(answer_once(model, *rest))
        return
    say({"ready": True})
    for line in sys.stdin:
        say(complete(model, **json.loads(line)))


def load(path: str, threads: int, *, flash_attn: bool) -> Any:
    return llama_cpp.Llama(
        path,
        n_ctx=CONTEXT,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=flash_attn,
        verbose=False,
    )


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def answer_once(model: Any, prompt: str) -> dict[str, float]:
    loaded = time.monotonic()
    next(model.create_completion(prompt, max_tokens=1, temperature=0, stream=True))
    return {"imported": IMPORTED, "loaded": loaded, "first_token": time.monotonic()}


def complete(model: Any, *, way: str, prompt: str, max_tokens: int) -> dict[str, Any]:
    """Greedy tokens with the time of each. Nothing is kept from the completion before."""
    model.reset()
    start = time.monotonic()
    pieces, times = [], []
    for piece in WAYS[way](model, prompt, max_tokens):
        times.append(time.monotonic())
        pieces.append(piece)
    return {"start": start, "times": times, "text": "".join(pieces)}


def completion_api(model: Any, prompt: str, max_tokens: int) -> Iterator[str]:
    """The call that a user makes."""
    chunks = model.create_completion(prompt, max_tokens=max_tokens, temperature=0, stream=True)
    for chunk in chunks:
        text = chunk["choices"][0]["text"]
        if text:  # the last chunk only says why it ended
            yield text


def token_loop(model: Any, prompt: str, max_tokens: int) -> Iterator[str]:
    """The class's inner loop with a bare detokenisation: the least that it can do for a stream."""
    tokens = model.tokenize(prompt.encode())
    for number, token in enumerate(model.generate(tokens, temp=0), start=1):
        yield model.detokenize([token]).decode(errors="replace")
        if number == max_tokens:
            return


WAYS = {"completion": completion_api, "tokens": token_loop}

if __name__ == "__main__":
    main()
