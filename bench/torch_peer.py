"""transformers in its own process, without any daemon: what torch models are compared with.

    torch_peer.py FOLDER THREADS DTYPE     stay loaded, generate on command

Speaks JSON lines. `generate` is the static batch: all prompts begin and end together.
`generate_batch` is transformers' own continuous batching. Both as their documentation calls them,
greedy, and to the same number of tokens whatever the model would end with.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, logging

NO_TOKEN = -1


def main() -> None:
    folder, threads, dtype = sys.argv[1:]
    torch.set_num_threads(int(threads))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    models = {
        "generate": _loaded(folder, dtype, "sdpa"),
        "generate_batch": _loaded(folder, dtype, "sdpa"),
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)
    _say({"ready": True})
    for line in sys.stdin:
        _say(_answer(models, tokenizer, **json.loads(line)))


def _loaded(folder: str, dtype: str, attention: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    return model.eval()


def _answer(
    models: dict[str, Any], tokenizer: Any, *, way: str, prompts: list[str], max_tokens: int
) -> dict[str, Any]:
    """How long all prompts took, reading and writing, and how many tokens were written."""
    inputs = tokenizer(prompts)["input_ids"]
    start_s = time.monotonic()
    num_tokens = WAYS[way](models[way], inputs, max_tokens)
    return {"seconds": time.monotonic() - start_s, "tokens": num_tokens}


def _generate(model: Any, inputs: list[list[int]], max_tokens: int) -> int:
    ids = torch.tensor(inputs)
    generated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        min_new_tokens=max_tokens,
        pad_token_id=0,
    )
    return generated[:, ids.shape[1] :].numel()


def _generate_batch(model: Any, inputs: list[list[int]], max_tokens: int) -> int:
    config = GenerationConfig(
        max_new_tokens=max_tokens, eos_token_id=NO_TOKEN, pad_token_id=0, do_sample=False
    )
    outputs = model.generate_batch(inputs=inputs, generation_config=config, progress_bar=False)
    return sum(len(output.generated_tokens) for output in outputs.values())


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


WAYS = {"generate": _generate, "generate_batch": _generate_batch}

if __name__ == "__main__":
    main()
