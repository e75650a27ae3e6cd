"""`AsyncClient`: the asyncio client, with the names of `Client`.

Owns the transport and the waiting of coroutines. What the messages mean is `calls.py`'s. It starts
no task of its own, so there is none to lose: bytes are handed out by the loop's own callback.

Cancelling a coroutine that waits for an answer cancels the request on the daemon.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, overload

from openclawctl import calls, options, paths, results
from openclawctl.calls import Call, Exchange, RetryRule, Session, jitter
from openclawctl.wire.errors import OpenclawError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from datetime import datetime
    from types import TracebackType
    from typing import Self, Unpack

    from openclawctl.options import (
        ChatOptions,
        EmbedOptions,
        GenerateOptions,
        Prompt,
        ScoringOptions,
    )
    from openclawctl.results import Classifications, Completion, Embeddings, Ranking
    from openclawctl.wire.messages import Delta, Event, Hello


class _AsyncLink(asyncio.Protocol):
    """One connected socket on one loop."""

    def __init__(self, path: str, *, hello: Hello) -> None:
        self._session = Session(path, hello=hello)
        self._greeting_deadline = time.monotonic() + calls.GREETING_TIMEOUT_S
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._is_flushing = False
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._wake(self._session.receive(data))

    def eof_received(self) -> None:
        self._wake(self._session.receive_eof())

    def connection_lost(self, error: Exception | None) -> None:
        self._wake(self._session.receive_eof(*([str(error)] if error else [])))

    @property
    def can_open(self) -> bool:
        return self._session.can_open and self.loop is asyncio.get_running_loop()

    @property
    def is_finished(self) -> bool:
        return self._session.is_finished or self.loop.is_closed()

    def open(self, op: str, params: dict[str, Any]) -> Call:
        call = self._session.open(op, params)
        self._flush_soon()
        return call

    def cancel(self, call: Call) -> None:
        self._session.cancel(call)
        self._flush()

    def abandon(self, call: Call) -> None:
        self._session.abandon(call)
        self._flush()

    def close(self) -> None:
        self._flush()
        self._wake(self._session.receive_eof("this client was closed"))

    async def wait_news(self, call: Call, *, timeout_s: float | None) -> None:
        """Return when `call` has news. Raises `DeadlineExceeded` after `timeout_s` without any."""
        is_greeted = not self._session.is_waiting_for_welcome
        greeting_s = max(0.0, self._greeting_deadline - time.monotonic())
        limit_s = timeout_s if is_greeted else min(timeout_s or greeting_s, greeting_s)
        future = self._waiting[call.id] = self.loop.create_future()
        try:
            async with asyncio.timeout(limit_s):
                await future
        except TimeoutError:
            self._give_up(call, timeout_s)
        finally:
            del self._waiting[call.id]

    def _give_up(self, call: Call, timeout_s: float | None) -> None:
        if self._session.is_waiting_for_welcome and time.monotonic() >= self._greeting_deadline:
            self._wake(self._session.fail_silent())
        elif timeout_s is not None:
            self.abandon(call)
            raise calls.no_news(call, timeout_s)

    def _flush_soon(self) -> None:
        """What is asked in one turn of the loop goes out in one `send`. A cancel does not wait: it
        may come from a signal handler, or when the loop does not run any more."""
        if not self._is_flushing:
            self._is_flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        if self._session.outgoing and self._transport is not None:
            self._transport.write(bytes(self._session.outgoing))
            self._session.outgoing.clear()

    def _wake(self, changed: list[Call]) -> None:
        for call in changed:
            future = self._waiting.get(call.id)
            if future is not None and not future.done():
                future.set_result(None)
        if self._session.is_finished and self._transport is not None:
            self._transport.close()


class _AsyncRunner:
    """Drives one `Exchange` over links: sends, waits, and sends again where that can help."""

    def __init__(self, client: AsyncClient, exchange: Exchange) -> None:
        self._client = client
        self._exchange = exchange
        self._link: _AsyncLink | None = None
        self._call: Call | None = None

    async def start(self) -> None:
        """Send the request, once or more. Returns when it is on its way, not when it is
        answered."""
        while self._call is None:
            try:
                self._link = await self._client._usable_link()
                self._call = self._link.open(self._exchange.op, self._exchange.params)
            except OpenclawError as problem:
                await self._pause_or_raise(problem)

    async def next_delta(self) -> Delta | None:
        """The next delta, or None at the end. Raises what the request ended with."""
        while not self._exchange.is_ended:
            await self.start()
            assert self._link is not None
            assert self._call is not None
            try:
                delta = self._exchange.take(self._call)
                if delta is not None:
                    return delta
                if not self._exchange.is_ended:
                    await self._link.wait_news(self._call, timeout_s=self._exchange.timeout_s)
            except OpenclawError as problem:
                await self._pause_or_raise(problem)
        return None

    async def _pause_or_raise(self, problem: OpenclawError) -> None:
        pause_s = self._exchange.next_attempt_s(problem, call=self._call, jitter=jitter())
        if pause_s is None:
            raise problem
        self._call = None
        await asyncio.sleep(pause_s)

    async def drain(self) -> tuple[dict[str, Any], list[Delta]]:
        """Wait for the end. Returns the result and all deltas; cancels if interrupted."""
        deltas = []
        try:
            while (delta := await self.next_delta()) is not None:
                deltas.append(delta)
        except BaseException:
            self.abandon()
            raise
        assert self._exchange.result is not None
        return self._exchange.result, deltas

    def cancel(self) -> None:
        self._exchange.is_cancelled = True
        if self._link is not None and self._call is not None:
            self._link.cancel(self._call)

    def abandon(self) -> None:
        self._exchange.is_cancelled = True
        if self._link is not None and self._call is not None and self._call.end is None:
            self._link.abandon(self._call)

    def abandon_collected(self) -> None:
        """`abandon` for `__del__`, which runs in whatever thread collects garbage."""
        if self._link is not None:
            with suppress(RuntimeError):  # the loop is closed, and the connection with it
                self._link.loop.call_soon_threadsafe(self.abandon)


class AsyncStream:
    """An answer that is being written: `async with` it, and iterate over its deltas.

    Leaving the `async with` early, or `aclose()`, cancels the request on the daemon. `cancel()`
    cancels too but keeps the stream, which then soon ends with `result.finish_reason ==
    "cancelled"` and exact usage.
    """

    def __init__(self, client: AsyncClient, exchange: Exchange) -> None:
        self._runner = _AsyncRunner(client, exchange)
        self._exchange = exchange
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        """Raises the `OpenclawError` that the request ended with."""
        delta = None if self._is_closed else await self._runner.next_delta()
        if delta is None:
            raise StopAsyncIteration
        return delta

    @property
    def text(self) -> str:
        """The text of the first choice so far."""
        return self._exchange.text

    @property
    def result(self) -> Completion:
        """What `generate` without `stream` would have returned. Only after the end."""
        return self._exchange.completion

    def cancel(self) -> None:
        """Ask the daemon to stop. What it still sends, and the end, can be read as before."""
        self._runner.cancel()

    async def aclose(self) -> None:
        """Cancel if it has not ended, and read no more."""
        self._is_closed = True
        self._runner.abandon()

    async def __aenter__(self) -> Self:
        await self._runner.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not (self._is_closed or self._exchange.is_ended):
            self._runner.abandon_collected()


class AsyncClient:
    """A connection to openclawd, made when it is first needed. Arguments as those of `Client`.

    Many coroutines may use one `AsyncClient`; on another event loop it connects anew.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float | None = None,
        api_key_file: str | os.PathLike[str] | None = None,
        app: str | None = None,
        retries: int = 2,
    ) -> None:
        self._target = paths.Target(
            None if socket_path is None else os.fspath(socket_path),
            None if api_key_file is None else os.fspath(api_key_file),
        )
        self._timeout_s = timeout_s
        self._app = app
        self._retry = RetryRule(limit=retries)
        self._lock = asyncio.Lock()
        self._lock_loop: asyncio.AbstractEventLoop | None = None
        self._links: list[_AsyncLink] = []
        """The last one takes requests; earlier ones still have open ones."""

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> Coroutine[Any, Any, Completion]: ...
    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        stream: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> AsyncStream: ...
    def generate(
        self,
        prompt: Prompt,
        *,
        stream: bool = False,
        **kwargs: Unpack[GenerateOptions],
    ) -> Coroutine[Any, Any, Completion] | AsyncStream:
        """As `Client.generate`. Without `stream` the call is awaited; with it, it is entered:
        `async with client.generate(…, stream=True) as stream`."""
        self._target.set_default_model(kwargs)
        params = options.generate_params(prompt, kwargs, is_streamed=stream)
        opened = self._stream("generate", params, kwargs.get("on_event"))
        return opened if stream else _complete(opened)

    @overload
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> Coroutine[Any, Any, Completion]: ...
    @overload
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> AsyncStream: ...
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        stream: bool = False,
        **kwargs: Unpack[ChatOptions],
    ) -> Coroutine[Any, Any, Completion] | AsyncStream:
        """As `Client.chat`, awaited or entered as `generate` is."""
        self._target.set_default_model(kwargs)
        params = options.chat_params(messages, kwargs, is_streamed=stream)
        opened = self._stream("chat", params, kwargs.get("on_event"))
        return opened if stream else _complete(opened)

    async def dry_run(self, prompt: Prompt, **kwargs: Unpack[GenerateOptions]) -> dict[str, Any]:
        self._target.set_default_model(kwargs)
        params = options.generate_params(prompt, kwargs, is_streamed=False)
        on_event = kwargs.get("on_event")
        return await self._ask("generate", {**params, "dry_run": True}, on_event=on_event)

    async def dry_run_chat(
        self, messages: Iterable[Mapping[str, Any]], **kwargs: Unpack[ChatOptions]
    ) -> dict[str, Any]:
        self._target.set_default_model(kwargs)
        params = options.chat_params(messages, kwargs, is_streamed=False)
        on_event = kwargs.get("on_event")
        return await self._ask("chat", {**params, "dry_run": True}, on_event=on_event)

    async def embed(self, texts: str | Iterable[str], **kwargs: Unpack[EmbedOptions]) -> Embeddings:
        self._target.set_default_model(kwargs)
        params = options.embed_params(texts, kwargs)
        result, deltas = await self._runner("embed", params).drain()
        return results.embeddings(result, deltas, len(params["input"]))

    async def classify(
        self,
        texts: str | Iterable[str],
        *,
        top_k: int | None = None,
        **kwargs: Unpack[ScoringOptions],
    ) -> Classifications:
        self._target.set_default_model(kwargs)
        params = options.classify_params(texts, top_k, kwargs)
        return results.classifications(await self._ask("classify", params), len(params["input"]))

    async def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        return_documents: bool = False,
        **kwargs: Unpack[ScoringOptions],
    ) -> Ranking:
        self._target.set_default_model(kwargs)
        params = options.rerank_params(
            query, documents, kwargs, top_n=top_n, return_documents=return_documents
        )
        return results.ranking(await self._ask("rerank", params), len(params["documents"]))

    async def tokenize(
        self, text: str, *, model: str | None = None, add_special: bool = False
    ) -> list[int]:
        model = model or self._target.default_model()
        params = options.tokenize_params(text, model, add_special=add_special)
        return results.tokens_of(await self._ask("tokenize", params))

    async def detokenize(self, tokens: Iterable[int], *, model: str | None = None) -> str:
        params = options.detokenize_params(tokens, model or self._target.default_model())
        return results.text_of(await self._ask("detokenize", params))

    async def ping(self) -> dict[str, Any]:
        return await self._ask("ping", {})

    async def status(self, *, latency: bool = False, requests: bool = False) -> dict[str, Any]:
        return await self._ask("status", calls.status_params(latency=latency, requests=requests))

    async def cancel_request(self, request_id: str) -> dict[str, Any]:
        return await self._ask("requests.cancel", {"request_id": request_id})

    async def models(self) -> list[dict[str, Any]]:
        return calls.rows_of(await self._ask("models", {}), "models")

    async def load(
        self,
        model: str | None = None,
        *,
        on_progress: Callable[[str, float | None], object] | None = None,
    ) -> dict[str, Any]:
        on_event = None if on_progress is None else calls.progress_handler(on_progress)
        return await self._ask("load", self._target.model_params(model), on_event=on_event)

    async def unload(self, model: str | None = None) -> dict[str, Any]:
        return await self._ask("unload", self._target.model_params(model))

    async def show(self, model: str | None = None) -> dict[str, Any]:
        return await self._ask("show", self._target.model_params(model))

    async def watch(
        self,
        on_models: Callable[[list[dict[str, Any]]], object],
        *,
        num_updates: int | None = None,
    ) -> None:
        params = {} if num_updates is None else {"num_updates": num_updates}
        await self._ask("watch", params, on_event=calls.models_handler(on_models))

    async def pull(
        self,
        source: str,
        *,
        name: str | None = None,
        revision: str | None = None,
        sha256: str | None = None,
        replace: bool = False,
        unverified: bool = False,
        on_progress: Callable[[str, int, int | None], object] | None = None,
    ) -> dict[str, Any]:
        params = options.pull_params(
            source,
            name=name,
            revision=revision,
            sha256=sha256,
            replace=replace,
            unverified=unverified,
        )
        return await self._ask("pull", params, on_event=calls.pull_handler(on_progress))

    async def remove_model(self, model: str) -> dict[str, Any]:
        return await self._ask("models.remove", options.model_file_params("models.remove", model))

    async def verify_model(
        self,
        model: str,
        *,
        on_progress: Callable[[str, int, int | None], object] | None = None,
    ) -> dict[str, Any]:
        params = options.model_file_params("models.verify", model)
        return await self._ask("models.verify", params, on_event=calls.pull_handler(on_progress))

    async def reload(self) -> dict[str, Any]:
        return await self._ask("reload", {})

    async def drain(
        self, *, wait: bool = False, on_progress: Callable[[int], object] | None = None
    ) -> dict[str, Any]:
        on_event = None if on_progress is None else calls.drain_handler(on_progress)
        return await self._ask("drain", {"wait": True} if wait else {}, on_event=on_event)

    async def resume(self) -> dict[str, Any]:
        return await self._ask("resume", {})

    async def usage(
        self,
        *,
        by: str | Iterable[str] = "model",
        since: str | float | datetime | None = None,
        until: str | float | datetime | None = None,
        sort: str | None = None,
        limit: int | None = None,
    ) -> dict[str, Any]:
        params = options.usage_params(by, since=since, until=until, sort=sort, limit=limit)
        return await self._ask("usage", params)

    async def usage_rows(self, *, after_seq: int = 0, limit: int | None = None) -> dict[str, Any]:
        return await self._ask("usage.rows", options.usage_rows_params(after_seq, limit))

    async def check_ledger(self) -> dict[str, Any]:
        return await self._ask("ledger.check", {})

    async def prune_ledger(self, older_than: str | float) -> dict[str, Any]:
        return await self._ask("ledger.prune", options.prune_params(older_than))

    async def back_up_ledger(self) -> dict[str, Any]:
        return await self._ask("ledger.backup", {})

    async def audit(
        self,
        *,
        since: str | float | None = None,
        principal: str | None = None,
        action: str | None = None,
        limit: int | None = None,
        after_seq: int | None = None,
    ) -> dict[str, Any]:
        params = options.audit_params(
            since, principal=principal, action=action, limit=limit, after_seq=after_seq
        )
        return await self._ask("audit", params)

    async def audit_verify(self, *, head: str | None = None) -> dict[str, Any]:
        return await self._ask("audit.verify", options.audit_verify_params(head))

    async def whoami(self) -> dict[str, Any]:
        return await self._ask("whoami", {})

    async def create_key(
        self,
        name: str,
        *,
        role: str,
        tier: str | None = None,
        models: str | Iterable[str] | None = None,
        expires: str | float | None = None,
    ) -> dict[str, Any]:
        params = options.key_params(name, role=role, tier=tier, models=models, expires=expires)
        return await self._ask("keys.create", params)

    async def list_keys(self) -> list[dict[str, Any]]:
        return calls.rows_of(await self._ask("keys.list", {}), "keys")

    async def show_key(self, name: str) -> dict[str, Any]:
        return await self._ask("keys.show", options.key_name_params("keys.show", name))

    async def rotate_key(
        self, name: str, *, overlap: str | float = "24h", expires: str | float | None = None
    ) -> dict[str, Any]:
        params = options.rotation_params(name, overlap=overlap, expires=expires)
        return await self._ask("keys.rotate", params)

    async def revoke_key(self, name: str) -> dict[str, Any]:
        return await self._ask("keys.revoke", options.key_name_params("keys.revoke", name))

    async def budgets(self) -> list[dict[str, Any]]:
        return calls.rows_of(await self._ask("budgets", {}), "budgets")

    async def insights(
        self,
        *,
        since: str | float = "30d",
        model: str | None = None,
        principal: str | None = None,
    ) -> dict[str, Any]:
        return await self._ask("insights", options.insights_params(since, model, principal))

    async def aclose(self) -> None:
        """End the connection, and with it every request that is open."""
        links, self._links = self._links, []
        for link in links:
            if not link.is_finished:
                link.close()
        await asyncio.sleep(0)  # lets the transports close their sockets

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _ask(
        self,
        op: str,
        params: dict[str, Any],
        *,
        on_event: Callable[[Event], object] | None = None,
    ) -> dict[str, Any]:
        return (await self._runner(op, params, on_event=on_event).drain())[0]

    def _stream(
        self, op: str, params: dict[str, Any], on_event: Callable[[Event], object] | None
    ) -> AsyncStream:
        return AsyncStream(self, self._exchange(op, params, on_event=on_event))

    def _runner(
        self,
        op: str,
        params: dict[str, Any],
        *,
        on_event: Callable[[Event], object] | None = None,
    ) -> _AsyncRunner:
        return _AsyncRunner(self, self._exchange(op, params, on_event=on_event))

    def _exchange(
        self, op: str, params: dict[str, Any], *, on_event: Callable[[Event], object] | None
    ) -> Exchange:
        return Exchange(op, params, timeout_s=self._timeout_s, retry=self._retry, on_event=on_event)

    async def _usable_link(self) -> _AsyncLink:
        """The connection for the next request, made now if need be."""
        loop = asyncio.get_running_loop()
        if self._lock_loop is not loop:
            self._lock_loop, self._lock = loop, asyncio.Lock()
        async with self._lock:  # or the first requests would make a connection each
            if not self._links or not self._links[-1].can_open:
                self._links = [link for link in self._links if not link.is_finished]
                self._links.append(await self._connect())
            return self._links[-1]

    async def _connect(self) -> _AsyncLink:
        path = self._target.socket_path()
        link = _AsyncLink(path, hello=calls.hello(app=self._app, key=self._target.api_key()))
        try:
            async with asyncio.timeout(calls.GREETING_TIMEOUT_S):
                await link.loop.create_unix_connection(lambda: link, path)
        except OSError as error:  # TimeoutError is one
            raise paths.why_unreachable(path, error) from error
        return link


async def _complete(stream: AsyncStream) -> Completion:
    async with stream:
        async for _ in stream:
            pass  # the daemon sends no deltas that were not asked for
        return stream.result
