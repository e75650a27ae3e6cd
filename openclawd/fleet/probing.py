"""Asks a probe worker what the files of a model say of its size.

Owns the process: a fresh interpreter that is gone when it has answered. The files may be hostile,
so what it says is checked, bounded and waited for a limited time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import ModelFailed, RemoteProtocolError
from openclawd.worker.facts import decode_facts

if TYPE_CHECKING:
    from openclawd.worker.facts import ModelFacts

PROBE_TIMEOUT_S: Final = 60.0
"""A header of some megabytes, from a slow disk."""

_ITS_VARIABLES: Final = ("PATH", "PYTHONPATH", "LANG", "LC_ALL")
"""It reads hostile files, so it gets nothing that it does not need: no socket, no credential."""

_MAX_ANSWER_BYTES: Final = 1024 * 1024
"""4096 kinds of layers have 400 KB."""


async def probe(path: str) -> ModelFacts:
    """Raises `ModelFailed` if nothing can be said of them: then loading tells why."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "openclawd.worker.probe",
        path,
        env={name: os.environ[name] for name in _ITS_VARIABLES if name in os.environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            answer = await process.stdout.read(_MAX_ANSWER_BYTES)
            while answer and (more := await process.stdout.read(_MAX_ANSWER_BYTES)):
                answer += more[: max(0, _MAX_ANSWER_BYTES - len(answer))]
            await process.wait()
        return _facts_of(answer)
    except (TimeoutError, ValueError, RemoteProtocolError, RecursionError) as error:
        raise ModelFailed(f"what {path} holds could not be found out: {error}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                process.kill()


def _facts_of(answer: bytes) -> ModelFacts:
    payload = json.loads(answer)
    if not isinstance(payload, dict):
        raise ValueError("the probe said no map")
    if "error" in payload:
        raise ModelFailed(str(payload["error"])[:1000], hint=str(payload.get("hint", ""))[:1000])
    return decode_facts(payload)
