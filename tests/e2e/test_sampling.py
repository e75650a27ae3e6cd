"""What a request may say about the choice of tokens, through the client library, on the real
model. That each filter does what it promises is `backends/conformance.py`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from openclawctl import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Daemon

STORY = "Once upon a time there was a small dragon who"


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(socket_path=str(daemon.socket)) as connected:
        yield connected


@pytest.mark.parametrize(
    "filters",
    [
        {"typical_p": 0.2},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"mirostat": 1, "mirostat_tau": 1.0, "mirostat_eta": 0.3},
        {"mirostat": 2, "mirostat_tau": 1.0, "mirostat_eta": 0.3},
        {
            "dry_multiplier": 100.0,
            "dry_base": 2.0,
            "dry_allowed_length": 1,
            "dry_penalty_last_n": 512,
        },
    ],
    ids=lambda filters: next(iter(filters)),
)
def test_each_filter_reaches_the_sampler(client: Client, filters: dict[str, Any]) -> None:
    prompt = "red blue green red blue green red blue green red blue"
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 3}
    texts = [client.generate(prompt, **options, **filters).text for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0] != client.generate(prompt, **options).text
