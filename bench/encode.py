"""sentence-transformers in its own process, without any daemon: what encoders are compared with.

    encode.py MODEL THREADS    stay loaded, encode on command

Speaks JSON lines: `texts` in, `seconds` out, which is one call for all, tokenising included.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"  # before they are imported: a model is a folder here

import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    path, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = SentenceTransformer(path, device="cpu")
    say(ready=1)
    for line in sys.stdin:
        texts = json.loads(line)["texts"]
        start = time.perf_counter()
        model.encode(texts, batch_size=len(texts), show_progress_bar=False)
        say(seconds=time.perf_counter() - start)


def say(**answer: float) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
