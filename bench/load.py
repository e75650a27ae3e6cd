"""Keeps N streams decoding until its standard input closes: `load.py SOCKET MODEL N`.

A process of its own, so that reading the streams does not compete with what is being measured for
one interpreter lock. Says `{"streams": N}` once every stream has its first token.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from openclawctl import AsyncClient

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKENS_PER_REQUEST = 1024


async def main(socket_path: str, model: str, count: int) -> None:
    barrier = asyncio.Barrier(count + 1)
    async with asyncio.TaskGroup() as streams:
        tasks = [
            streams.create_task(_keep_streaming(socket_path, model, number, barrier))
            for number in range(count)
        ]
        await barrier.wait()
        print(json.dumps({"streams": count}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()


async def _keep_streaming(
    socket_path: str, model: str, number: int, barrier: asyncio.Barrier
) -> None:
    is_counted = False
    async with AsyncClient(socket_path) as client:
        for prompt in _prompts(number):
            async with client.generate(
                prompt, model=model, max_tokens=TOKENS_PER_REQUEST, temperature=0, stream=True
            ) as stream:
                async for _ in stream:
                    if not is_counted:
                        is_counted = True
                        await barrier.wait()


def _prompts(number: int) -> Iterator[str]:
    """Counting does not end early; each prompt is a new one."""
    start = 1 + 100 * number
    while True:
        yield "Count: " + "".join(f"{value}, " for value in range(start, start + 5))
        start += 7


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
