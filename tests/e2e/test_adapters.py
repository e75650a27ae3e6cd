"""LoRA adapters from the configuration to the answer."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from harness import running_daemon, smollm2_path

from openclawctl import Client, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon
    from models.library import ModelLibrary

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def daemon(models: ModelLibrary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    config = tmp_path_factory.mktemp("config") / "c.yaml"
    adapters = {
        "formal": str(models.smollm2_adapter(1)),
        "terse": {"path": str(models.smollm2_adapter(2)), "scale": 0.5},
    }
    config.write_text(
        json.dumps(
            {"models": {"m": {"path": str(smollm2_path()), "preload": True, "adapters": adapters}}}
        )
    )
    with running_daemon("--config", str(config)) as running:
        yield running.wait_ready()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(socket_path=str(daemon.socket)) as connected:
        yield connected


def test_a_request_chooses_one(client: Client) -> None:
    answers = {
        adapter: client.generate(PROMPT, max_tokens=12, temperature=0, adapter=adapter).text
        for adapter in (None, "formal", "terse")
    }
    assert answers[None].startswith(" Paris")
    assert len(set(answers.values())) == 3
    again = client.generate(PROMPT, max_tokens=12, temperature=0)
    assert again.text == answers[None]


def test_a_chat_and_an_embedding_do_so_too(client: Client) -> None:
    messages = [{"role": "user", "content": "Who are you?"}]
    texts = {
        client.chat(messages, max_tokens=12, temperature=0, adapter=adapter).text
        for adapter in (None, "formal")
    }
    assert len(texts) == 2
    plain, formal = (client.embed("a cat", adapter=adapter) for adapter in (None, "formal"))
    assert list(plain) != list(formal)


def test_one_that_is_not_there_is_not_found_and_those_that_are_get_listed(client: Client) -> None:
    for ask in (
        lambda: client.generate(PROMPT, adapter="Formal"),
        lambda: client.embed("a cat", adapter="Formal"),
    ):
        with pytest.raises(NotFound, match="no adapter 'Formal'; did you mean 'formal'") as failure:
            ask()
        assert "formal, terse" in (failure.value.hint or "")


def test_models_lists_them(client: Client) -> None:
    assert client.models()[0]["adapters"] == ["formal", "terse"]


def test_from_the_command_line(daemon: Daemon) -> None:
    command = [sys.executable, "-m", "openclawctl", "--socket", str(daemon.socket)]
    command += ["generate", PROMPT, "--max-tokens", "8", "--temperature", "0"]
    outputs = [
        subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        for more in ([], ["--adapter", "formal"], ["--adapter", "nobody"])
    ]
    assert [output.returncode for output in outputs] == [0, 0, 4]
    assert outputs[0].stdout != outputs[1].stdout
    assert "its adapters: formal, terse" in outputs[2].stderr
