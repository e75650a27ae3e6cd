"""`insights` of a real daemon: a model that is much too large for what it is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness import running_daemon, smollm2_path

from openclawctl import AsyncClient, Client, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Daemon
    from models.library import ModelLibrary

CONTEXT = 8192
PARALLEL = 8


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    config: Path = tmp_path_factory.mktemp("insights") / "openclawd.yaml"
    model = {"path": str(smollm2_path()), "context": CONTEXT, "parallel": PARALLEL, "preload": True}
    config.write_text(json.dumps({"models": {"smollm2": model}}))
    with running_daemon("--config", str(config)) as running:
        running.wait_ready()
        with Client(socket_path=running.socket) as client:
            for number in range(20):
                client.generate(f"The number {number} is", max_tokens=4)
        yield running


def over_configured(report: dict[str, Any]) -> dict[str, Any]:
    (finding,) = [one for one in report["findings"] if one["kind"] == "over-configured"]
    return finding  # type: ignore[no-any-return]


def test_smaller_values_are_suggested(large: Daemon) -> None:
    with Client(socket_path=large.socket) as client:
        report = client.insights(since="1d")
    numbers = over_configured(report)["numbers"]
    configured = {"parallel": PARALLEL, "context": CONTEXT, "kv_tokens": PARALLEL * CONTEXT}
    assert numbers["configured"] == configured
    assert numbers["suggested"] == {"parallel": 2, "context": 512, "kv_tokens": 512}
    assert numbers["peak"]["parallel"] == 1
    assert 5 < numbers["peak"]["context"] < 20
    assert numbers["peak"]["kv_tokens"] <= numbers["peak"]["context"]
    assert numbers["requests"] >= 20
    (trend,) = report["trends"]
    assert (trend["model"], trend["forecasts"]) == ("smollm2", [])


async def ask(socket: Path) -> dict[str, Any]:
    async with AsyncClient(socket_path=socket) as client:
        return await client.insights(model="smollm2")


def test_both_clients_and_filters(large: Daemon) -> None:
    import asyncio

    assert over_configured(asyncio.run(ask(large.socket)))["model"] == "smollm2"
    with Client(socket_path=large.socket) as client:
        nobody = client.insights(principal="user:nobody")
        assert (nobody["findings"], nobody["trends"]) == ([], [])
        assert nobody["principal"] == "user:nobody"
        with pytest.raises(NotFound):
            client.insights(model="nothing")


def test_on_the_command_line(large: Daemon) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "openclawctl", "--socket", str(large.socket)]
        done = subprocess.run(
            [*command, "insights", *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout

    text = run()
    assert "1. over-configured: smollm2" in text
    assert "→ set parallel: 2, context: 512" in text
    assert "PRINCIPAL" in text
    assert over_configured(json.loads(run("--json")))["kv_tokens"] == PARALLEL * CONTEXT - 512
    quiet = run("--principal", "user:nobody", "--since", "7d")
    assert quiet == "nothing to complain of in the last 7d\n"


def test_what_was_seen_outlives_the_daemon_and_its_key_is_private(large: Daemon) -> None:
    assert (large.state_dir / "prefix.key").stat().st_mode & 0o777 == 0o600


def test_prompts_that_begin_alike_are_counted_by_hash_and_not_stored(
    folder: Path, models: ModelLibrary
) -> None:
    secret = "The launch code is quite a secret. " * 40
    options = {"path": str(models.tiny("full")), "prefix_sharing": "off", "preload": True}
    config = folder / "openclawd.yaml"
    config.write_text(json.dumps({"models": {"tiny": options}}))
    with running_daemon("--config", str(config), folder=folder) as running:
        running.wait_ready()
        with Client(socket_path=running.socket) as client:
            for number in range(90):
                client.generate(f"{secret} {number}", max_tokens=1)
            found = client.insights()["findings"]
        assert running.terminate() == 0
        (finding,) = [one for one in found if one["kind"] == "repeated-prefix"]
        assert finding["numbers"]["prefix_tokens"] == 256
        assert finding["numbers"]["times_computed"] == 89  # of 90: it was new at first
        assert "prefix_sharing" in finding["do"]
        stored = b"".join(path.read_bytes() for path in running.state_dir.glob("ledger.sqlite3*"))
        assert bytes.fromhex(finding["numbers"]["prefix"]) in stored
        assert b"launch code" not in stored
        key = (running.state_dir / "prefix.key").read_bytes()
        assert key not in stored + running.log_file.read_bytes()
