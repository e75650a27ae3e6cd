"""The daemon's end of a worker's pipe, over a real socketpair with a scripted worker."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from openclawctl.wire.errors import Internal, ModelFailed, Problem, WorkerDied
from openclawctl.wire.framing import FrameReader, encode_frame
from openclawd.fleet import link as link_module
from openclawd.fleet.link import Link
from openclawd.worker import messages
from openclawd.worker.messages import Ended, FromWorker, Output, Prepared, Refused, Start, Step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Worker:
    """The other end: says what the test wants, and notes what it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._reader = FrameReader(max_bytes=2**20)

    def say(self, message: FromWorker) -> None:
        self.socket.sendall(encode_frame(messages.encode(message)))

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next message of a kind."""
        loop = asyncio.get_running_loop()
        while True:
            payload = self._reader.next_payload()
            if payload is None:
                self._reader.feed(await loop.sock_recv(self.socket, 65536))
            elif payload["type"] == kind:
                return payload


@contextlib.asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, Worker, asyncio.Event]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    theirs.settimeout(0)
    lost = asyncio.Event()
    link = Link(on_load_message=lambda message: None, on_lost=lost.set)
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
    try:
        yield link, Worker(theirs), lost
    finally:
        link.close(Internal("the test is over"))
        theirs.close()
        await lost.wait()


def test_a_request_goes_through() -> None:
    async def run() -> None:
        async with linked() as (link, worker, _):
            call = link.prepare("generate", {"prompt": "x"})
            assert (await worker.hear("prepare"))["params"] == {"prompt": "x"}
            worker.say(Prepared(call.rid, prompt_tokens=1, longest=1))
            prepared = await link.wait_prepared(call)
            assert isinstance(prepared, Prepared)
            outputs: list[Output] = []
            link.start(call, Start(call.rid, 2, {}), outputs.append)
            await worker.hear("start")
            ended = Ended(call.rid, ["stop"], 1, 0, 2)
            worker.say(Step([Output(call.rid, 0, "hi", [5, 6])], [ended], {"running": 0}))
            assert await call.ended == ended
            assert [output.token_ids for output in outputs] == [[5, 6]]
            assert (link.num_steps, link.gauges) == (1, {"running": 0})

    asyncio.run(run())


def test_only_what_was_started_and_has_not_ended_is_ordered_anew() -> None:
    async def run() -> None:
        async with linked() as (link, worker, _):
            call = link.prepare("generate", {"prompt": "x"})
            link.reprioritize(call, 3)
            link.start(call, Start(call.rid, 2, {}), lambda output: None)
            link.reprioritize(call, -1)
            assert await worker.hear("reprioritize") == {
                "type": "reprioritize",
                "rid": call.rid,
                "priority": -1,
            }
            worker.say(Step([], [Ended(call.rid, ["stop"], 1, 0, 2)], {}))
            await call.ended
            link.reprioritize(call, 5)
            late = link.prepare("generate", {"prompt": "y"})
            link.start(late, Start(late.rid, 2, {}), lambda output: None)
            link.reprioritize(late, 7)
            assert (await worker.hear("reprioritize"))["priority"] == 7

    asyncio.run(run())


def test_a_refusal_is_raised_as_the_workers_problem() -> None:
    async def run() -> None:
        async with linked() as (link, worker, _):
            call = link.prepare("chat", {})
            worker.say(Refused(call.rid, ModelFailed("no template", hint="none").as_dict()))
            with pytest.raises(ModelFailed, match="no template"):
                await link.wait_prepared(call)

    asyncio.run(run())


def test_a_worker_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PREPARE_TIMEOUT_S", 0.05)

    async def run() -> None:
        async with linked() as (link, worker, lost):
            stuck, waiting = link.prepare("chat", {}), link.prepare("chat", {})
            worker.say(Prepared(waiting.rid, prompt_tokens=1))
            await link.wait_prepared(waiting)
            with pytest.raises(ModelFailed, match="did not read the prompt"):
                await link.wait_prepared(stuck)
            with pytest.raises(WorkerDied):
                await waiting.ended
            await lost.wait()

    asyncio.run(run())


def test_who_may_have_killed_the_worker_is_known_when_it_is_lost() -> None:
    """Not who only waits for its turn, who has just got something, or who is in this for the first
    time."""

    async def run() -> None:
        async with linked() as (link, worker, _):
            calls = [link.prepare("generate", {}) for _ in range(4)]
            _, served, stuck, new = calls
            for call in calls:
                call.is_survivor = call is not new
                worker.say(Prepared(call.rid, prompt_tokens=1))
                await link.wait_prepared(call)
            link.start(new, Start(new.rid, 1, {}), lambda output: None)
            link.start(stuck, Start(stuck.rid, 1, {}), lambda output: None)
            got_something = asyncio.Event()
            link.start(served, Start(served.rid, 1, {}), lambda output: got_something.set())
            worker.say(Step([Output(served.rid, 0, "a", [1])]))
            await got_something.wait()
            link.close(WorkerDied("it died"))
            assert [call for call in calls if call.is_only_suspect] == [stuck]

    asyncio.run(run())


def test_a_bug_in_one_delivery_ends_that_request_alone() -> None:
    async def run() -> None:
        async with linked() as (link, worker, _):
            bad, good = link.prepare("generate", {}), link.prepare("generate", {})
            for call in (bad, good):
                worker.say(Prepared(call.rid, prompt_tokens=1))
                await link.wait_prepared(call)

            def broken(output: Output) -> None:
                raise RuntimeError(f"cannot take {output}")

            outputs: list[Output] = []
            link.start(bad, Start(bad.rid, 1, {}), broken)
            link.start(good, Start(good.rid, 1, {}), outputs.append)
            worker.say(Step([Output(bad.rid, 0, "a", [1]), Output(good.rid, 0, "b", [2])]))
            with pytest.raises(Internal):
                await bad.ended
            assert (await worker.hear("abort"))["rid"] == bad.rid
            assert [output.text for output in outputs] == ["b"]

    asyncio.run(run())


@pytest.mark.parametrize(
    "nonsense", [b"\0\0\0\0", b"\0\0\0\1\xc1", encode_frame({"type": "surprise"})]
)
def test_a_worker_that_breaks_its_protocol_is_given_up(nonsense: bytes) -> None:
    async def run() -> None:
        async with linked() as (link, worker, lost):
            call = link.prepare("generate", {})
            worker.socket.sendall(nonsense)
            with pytest.raises(Problem, match="protocol"):
                await link.wait_prepared(call)
            await lost.wait()
            link.send(messages.Stop())  # to nobody: nothing happens

    asyncio.run(run())


def test_a_lost_pipe_is_told_once_and_calls_end_with_the_owners_problem() -> None:
    async def run() -> None:
        async with linked() as (link, worker, lost):
            call = link.prepare("generate", {})
            worker.socket.close()
            await lost.wait()
            link.close(WorkerDied("it died"))
            with pytest.raises(WorkerDied, match="it died"):
                await link.wait_prepared(call)

    asyncio.run(run())


def test_silence_counts_while_the_worker_owes_an_answer() -> None:
    """By the request that has waited longest, not by the last one; and not while all wait here."""

    async def run() -> None:
        async with linked() as (link, worker, _):
            link.is_loaded = True
            later = time.monotonic() + 60
            assert link.stalled_s(later) == 0
            call = link.prepare("generate", {})
            assert 59 < link.stalled_s(later) <= 60
            worker.say(Prepared(call.rid, prompt_tokens=1, longest=1))
            await link.wait_prepared(call)
            assert link.stalled_s(later) == 0, "it waits for its turn in the daemon"
            link.start(call, Start(call.rid, 2, {}), lambda output: None)
            assert link.stalled_s(later) > 59
            link.prepare("generate", {})
            assert link.stalled_s(call.asked_at + 60) == pytest.approx(60), "others hide nothing"
            worker.say(Step([], [Ended(call.rid, ["stop"], 1, 0, 2)], {}))
            await call.ended
            heard = link.stalled_s(later)
            assert 0 < heard < 60, "the second one is owed an answer, too"

    asyncio.run(run())
