"""`AsyncClient`: the same behaviour as `Client`, in coroutines."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading

import pytest

from openclawctl import AsyncClient, Client, DeadlineExceeded, NotFound, Overloaded, WorkerDied
from openclawctl.wire.messages import Cancel, Delta


def echo(connection, request):
    if request.op in ("generate", "chat"):
        connection.complete(request, "Par", "is", ".")
    elif request.op == "models":
        connection.done(request, models=[{"name": "m"}])
    elif request.op == "budgets":
        connection.done(request, budgets=[{"name": "b"}])
    elif request.op == "tokenize":
        connection.done(request, tokens=[1, 2])
    elif request.op == "detokenize":
        connection.done(request, text="ab")
    else:
        connection.done(request, **request.params)


def stop_on_cancel(connection, request):
    if request.op == "ping":
        return echo(connection, request)
    connection.delta(request, "Once")
    connection.cancel()
    connection.complete(request, finish_reason="cancelled")
    return None


def test_it_has_the_methods_of_the_blocking_client():
    def public(cls):
        return {name for name in vars(cls) if not name.startswith("_")}

    assert public(AsyncClient) - {"aclose"} == public(Client) - {"close"}
    for name in public(Client) - {"close"}:
        blocking = inspect.signature(getattr(Client, name))
        twin = inspect.signature(getattr(AsyncClient, name))
        kinds = [[p.kind for p in signature.parameters.values()] for signature in (blocking, twin)]
        assert kinds[0] == kinds[1], name


def test_every_operation(peer):
    async def main(path):
        async with AsyncClient(path) as client:
            assert (await client.generate("x", stop=["y"])).text == "Paris."
            turn = [{"role": "user", "content": "hi"}]
            assert (await client.chat(turn)).message["content"] == "Paris."
            assert await client.tokenize("ab") == [1, 2]
            assert await client.detokenize([1, 2]) == "ab"
            assert await client.models() == [{"name": "m"}]
            assert await client.audit(limit=3) == {"limit": 3}
            assert await client.audit_verify(head=f"1:{'0' * 64}") == {"head": f"1:{'0' * 64}"}
            assert await client.budgets() == [{"name": "b"}]
            assert await client.usage(by="day", since=60) == {"by": ["day"], "since_s": 60.0}
            assert await client.usage_rows(after_seq=3) == {"after_seq": 3, "limit": 1000}
            assert await client.check_ledger() == await client.back_up_ledger() == {}
            assert await client.prune_ledger("90d") == {"older_than_s": 7_776_000.0}
            assert await client.insights(principal="user:a") == {
                "since_s": 2592000.0,
                "principal": "user:a",
            }
            assert await client.unload("m") == {"model": "m"}
            assert await client.reload() == {}
            assert await client.status() == await client.ping() == {}

    daemon = peer(handler=echo)
    asyncio.run(main(daemon.path))
    assert daemon.num_connections == 1


def test_embed_and_progress(peer, wire):
    def handler(connection, request):
        if request.op == "embed":
            connection.send(Delta(request.id, 0, embedding=wire.vector(0.5, 1)))
            connection.done(request, **wire.result("", op="embed"))
        else:
            connection.event(request, "loading", phase="weights", fraction=0.5)
            connection.done(request, state="ready")

    async def main(path):
        progress = []
        async with AsyncClient(path) as client:
            assert await client.embed("one") == [[0.5, 1.0]]
            await client.load("m", on_progress=lambda *args: progress.append(args))
        return progress

    assert asyncio.run(main(peer(handler=handler).path)) == [("weights", 0.5)]


def test_stream(peer):
    async def main(path):
        async with (
            AsyncClient(path) as client,
            client.generate("x", stream=True) as stream,
        ):
            texts = [delta.text async for delta in stream]
            return texts, stream.result.text, stream.text

    texts, *whole = asyncio.run(main(peer(handler=echo).path))
    assert texts == ["Par", "is", "."]
    assert whole == ["Paris.", "Paris."]


def test_requests_that_start_together_share_one_connection(peer):
    def script(connection):
        connection.greet()
        requests = [connection.request() for _ in range(10)]
        for request in reversed(requests):
            connection.complete(request, request.params["prompt"])
        connection.next()

    async def main(path):
        async with AsyncClient(path) as client:
            return await asyncio.gather(*(client.generate(str(n)) for n in range(10)))

    daemon = peer(script)
    answers = asyncio.run(main(daemon.path))
    assert [answer.text for answer in answers] == [str(number) for number in range(10)]
    assert daemon.num_connections == 1


async def _leave_by_break(client):
    async with client.generate("x", stream=True) as stream:
        async for _ in stream:
            break


async def _leave_by_garbage(client):
    stream = client.generate("x", stream=True)
    await anext(stream)
    del stream
    gc.collect()
    await asyncio.sleep(0)  # garbage may be collected anywhere; the loop's next pass cancels


async def _leave_by_cancelling_the_task(client):
    is_streaming = asyncio.Event()

    async def read():
        async with client.generate("x", stream=True) as stream:
            async for _ in stream:
                is_streaming.set()

    task = asyncio.ensure_future(read())
    await is_streaming.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _leave_a_plain_request(client):
    is_running = asyncio.Event()
    task = asyncio.ensure_future(client.generate("x", on_event=lambda event: is_running.set()))
    await is_running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "leave",
    [
        _leave_by_break,
        _leave_by_garbage,
        _leave_by_cancelling_the_task,
        _leave_a_plain_request,
    ],
)
def test_leaving_cancels_on_the_daemon(peer, leave):
    def handler(connection, request):
        if request.op == "generate":
            connection.event(request, "started", request_id="r", prompt_tokens=1)
        stop_on_cancel(connection, request)

    async def main(path):
        async with AsyncClient(path) as client:
            await leave(client)
            await client.ping()

    daemon = peer(handler=handler)
    asyncio.run(main(daemon.path))
    assert any(isinstance(message, Cancel) for message in daemon.received)


def test_cancel_keeps_the_stream_until_its_end(peer):
    async def main(path):
        async with (
            AsyncClient(path) as client,
            client.generate("x", stream=True) as stream,
        ):
            await anext(stream)
            stream.cancel()
            assert [delta async for delta in stream] == []
            return stream.result.finish_reason

    assert asyncio.run(main(peer(handler=stop_on_cancel).path)) == "cancelled"


def test_a_cancel_is_sent_while_the_loop_does_not_run(peer):
    came = threading.Event()

    def handler(connection, request):
        connection.delta(request, "a")
        connection.cancel()
        came.set()

    async def begin(client):
        stream = client.generate("x", stream=True)
        await stream.__aenter__()
        await anext(stream)
        return stream

    with asyncio.Runner() as runner:
        client = AsyncClient(peer(handler=handler).path)
        stream = runner.run(begin(client))
        stream.cancel()
        assert came.wait(20)
        runner.run(client.aclose())


def test_retries_and_their_limit(peer):
    answers = [Overloaded("full", retry_after_s=0.0), WorkerDied("gone", retry_after_s=0.0)]

    def handler(connection, request):
        if answers:
            connection.error(request, answers.pop())
        else:
            connection.error(request, NotFound("no such model"))

    async def main(path):
        async with AsyncClient(path) as client:
            await client.generate("x")

    daemon = peer(handler=handler)
    with pytest.raises(NotFound):
        asyncio.run(main(daemon.path))
    assert len(daemon.requests) == 3


def test_no_news_for_too_long_cancels_the_request(peer):
    async def main(path):
        async with AsyncClient(path, timeout_s=0.05) as client:
            await client.generate("x")

    daemon = peer(handler=lambda connection, request: connection.cancel())
    with pytest.raises(DeadlineExceeded, match=r"for 0.05 s"):
        asyncio.run(main(daemon.path))


def test_another_loop_gets_its_own_connection(peer):
    daemon = peer(handler=echo)
    client = AsyncClient(daemon.path)

    async def ask():
        answer = await client.generate("x")
        await client.aclose()
        return answer.text

    assert [asyncio.run(ask()), asyncio.run(ask())] == ["Paris.", "Paris."]
    assert daemon.num_connections == 2


def test_reconnects_after_the_daemon_was_restarted(peer):
    def once(connection):
        connection.greet()
        echo(connection, connection.request())

    async def main(path):
        async with AsyncClient(path) as client:
            return [await client.ping() for _ in range(3)]

    daemon = peer(once)
    assert asyncio.run(main(daemon.path)) == [{}, {}, {}]
    assert daemon.num_connections == 3
