"""Torch models through the daemon: what transformers says, beside a GGUF model in one daemon."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from harness import running_daemon, short_folder, smollm2_path
from models.torch_smollm2 import torch_smollm2_path
from near_ties import SMOLLM2_NEAR_TIE, NearTies
from torch_near_ties import PROMPTS, TorchModel

from openclawctl import Client, ModelFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon

NUM_TOKENS = 16
NEAR_TIE = 1e-3
"""In logits: in 32 bits, batches of other shapes round by some 1e-5."""

LOAD_TIMEOUT_S = 240
"""Importing torch and transformers alone takes 8 s of a core, which others may want, too."""

pytestmark = pytest.mark.timeout(2 * LOAD_TIMEOUT_S)

CONFIG = """
models:
  torch:
    path: %s
    preload: true
    parallel: 8
    context: 512
    threads: 1
    options: {device: cpu, dtype: float32}
  gguf: {path: %s, preload: true, parallel: 4, context: 512, threads: 1}
default_model: torch
"""


@pytest.fixture(scope="module")
def both() -> Iterator[Daemon]:
    """One daemon with SmolLM2 on both backends."""
    with short_folder() as folder:
        (folder / "c.yaml").write_text(CONFIG % (torch_smollm2_path(), smollm2_path()))
        with running_daemon("--config", str(folder / "c.yaml"), folder=folder) as running:
            running.wait_notification("READY=1", timeout_s=LOAD_TIMEOUT_S)
            yield running


def ask(daemon: Daemon, model: str, prompt: str, **params: Any) -> Any:
    with Client(daemon.socket) as client:
        return client.generate(
            prompt,
            model=model,
            **{"max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True, **params},
        )


def answer_of(daemon: Daemon, model: str, prompt: str) -> list[int]:
    return ask(daemon, model, prompt).choices[0].token_ids


def ask_both(daemon: Daemon) -> tuple[list[list[int]], list[list[int]]]:
    """The answers of both models to every prompt, all asked at once."""
    asked = [(model, prompt) for prompt in PROMPTS for model in ("torch", "gguf")]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda each: answer_of(daemon, *each), asked))
    return answers[::2], answers[1::2]


def test_both_say_what_they_say_alone_while_both_are_busy(both: Daemon) -> None:
    of_torch, of_gguf = ask_both(both)
    with TorchModel(torch_smollm2_path(), torch.float32) as model:
        partings = model.partings(PROMPTS, of_torch)
    assert len(partings) <= 1, partings
    assert all(gap < NEAR_TIE for gap in partings), partings
    with NearTies(smollm2_path(), SMOLLM2_NEAR_TIE) as ties:
        for prompt, together in zip(PROMPTS[:8], of_gguf, strict=False):
            ties.check(prompt, together, answer_of(both, "gguf", prompt))


def test_workers_of_torch_keep_the_memory_that_operations_give_back(both: Daemon) -> None:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    environments = [worker.environ() for worker in both.workers()]
    kept = sorted(tuple(each.get(name) for name in names) for each in environments)
    assert kept == [("1048576", None), ("33554432", "67108864")]


def test_what_models_shows_of_each(both: Daemon) -> None:
    with Client(both.socket) as client:
        rows = {row["name"]: row for row in client.models()}
    assert rows["torch"]["backend"] == "torch"
    assert rows["gguf"]["backend"] == "llama"
    assert "scaled_dot_product_attention" in rows["torch"]["info"]["attention"]
    assert rows["torch"]["info"]["quantization"] == "float32"
    assert rows["torch"]["info"]["chat_template"] is True


def test_a_chat_with_a_schema_and_exact_usage(both: Daemon) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    with Client(both.socket) as client:
        chat = client.chat(
            [{"role": "user", "content": "Say <|im_end|> and a number"}],
            model="torch",
            max_tokens=40,
            seed=3,
            format={"type": "json_schema", "schema": schema},
        )
        again = client.chat(
            [{"role": "user", "content": "Say <|im_end|> and a number"}],
            model="torch",
            max_tokens=40,
            seed=3,
            format={"type": "json_schema", "schema": schema},
        )
    assert chat.text.startswith("{")
    assert chat.text == again.text
    assert chat.usage.completion_tokens > 0


def test_a_prompt_is_shared_with_its_next_turn(both: Daemon) -> None:
    beginning = " ".join(PROMPTS) * 2  # shorter ones are not kept
    first = ask(both, "torch", beginning, max_tokens=4)
    second = ask(both, "torch", beginning + first.text + " And then", max_tokens=4)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens


def test_a_device_that_is_not_there_is_a_failure_with_its_reason() -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        path = torch_smollm2_path()
        config = f"models: {{m: {{path: {path}, options: {{device: 'cuda:7'}}}}}}\n"
        (folder / "c.yaml").write_text(config)
        daemon = stack.enter_context(
            running_daemon("--config", str(folder / "c.yaml"), folder=folder)
        )
        client = stack.enter_context(Client(daemon.wait_ready().socket))
        with pytest.raises(ModelFailed) as failure:
            client.generate("x", max_tokens=1)
        assert "cuda:7 is not there" in failure.value.message
