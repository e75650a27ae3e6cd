"""`Client`: the blocking client.

Owns the methods that a script calls, and which connection a request goes to. How threads share a
connection is `link.py`'s, what the messages mean `calls.py`'s.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, overload

from openclawctl import calls, paths
from openclawctl.calls import Call, Exchange, RetryRule, jitter
from openclawctl.link import Link
from openclawctl.wire.errors import OpenclawError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self, Unpack

    from openclawctl.options import ChatOptions, GenerateOptions, Prompt
    from openclawctl.results import Completion, Embeddings
    from openclawctl.wire.messages import Delta, Event


class _Runner:
    """Drives one `Exchange` over links: sends, waits, and sends again where that can help."""

    def __init__(self, client: Client, exchange: Exchange) -> None:
        self._client = client
        self._exchange = exchange
        self._link: Link | None = None
        self._call: Call | None = None

    def start(self) -> None:
        """Send the request, once or more. Returns when it is sent, not when it is answered."""
        while self._call is None:
            try:
                self._link = self._client._usable_link()
                self._call = self._link.open(self._exchange.op, self._exchange.params)
            except OpenclawError as problem:
                self._pause_or_raise(problem)

    def next_delta(self) -> Delta | None:
        """The next delta, or None at the end. Raises what the request ended with."""
        while not self._exchange.is_ended:
            self.start()
            assert self._link is not None
            assert self._call is not None
            try:
                delta = self._exchange.take(self._call)
                if delta is not None:
                    return delta
                if not self._exchange.is_ended:
                    self._link.wait_news(self._call, timeout_s=self._exchange.timeout_s)
            except OpenclawError as problem:
                self._pause_or_raise(problem)
        return None

    def _pause_or_raise(self, problem: OpenclawError) -> None:
        pause_s = self._exchange.next_attempt_s(problem, call=self._call, jitter=jitter())
        if pause_s is None:
            raise problem
        self._call = None
        time.sleep(pause_s)

    def drain(self) -> tuple[dict[str, Any], list[Delta]]:
        """Wait for the end. Returns the result and all deltas; cancels if interrupted."""
        deltas = []
        try:
            while (delta := self.next_delta()) is not None:
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
        if self._link is not None and self._call is not None and self._call.end is None:
            self._link.abandon_collected(self._call)


class Stream:
    """An answer that is being written: iterate over it for its deltas.

    Leaving it early, by `break` out of its `with`, `close()` or losing the last reference, cancels
    the request on the daemon. `cancel()` cancels too but keeps the stream, which then soon ends
    with `result.finish_reason == "cancelled"` and exact usage.
    """

    def __init__(self, client: Client, exchange: Exchange) -> None:
        self._runner = _Runner(client, exchange)
        self._exchange = exchange
        self._is_closed = False
        self._runner.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        """Raises the `OpenclawError` that the request ended with."""
        delta = None if self._is_closed else self._runner.next_delta()
        if delta is None:
            raise StopIteration
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

    def close(self) -> None:
        """Cancel if it has not ended, and read no more."""
        self._is_closed = True
        self._runner.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._runner.abandon_collected()


class Client:
    """A connection to openclawd, made when it is first needed, usable from several threads.

    `socket_path`: where the daemon listens; by default it is found as `openclawctl` finds it.
    `timeout_s`: the longest time without any news of a request, after which it is cancelled and
    `DeadlineExceeded` is raised. By default there is none (a model may take minutes to load), but
    30 s for `ping`, `status`, `models` and `usage`; a daemon that does not even greet within 10 s
    is always given up. `api_key_file` holds a key that stands in for the caller's identity; `app`
    is a name that usage can be grouped by. `retries`: how often a request is sent again when it
    failed, before its first delta, for a reason that may pass; 0 turns that off.

    After the daemon was restarted, and in a forked child, it connects again by itself.
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
        self._forget_links()

    def _forget_links(self) -> None:
        self._lock = threading.Lock()
        self._links: list[Link] = []
        """The last one takes requests; earlier ones still have open ones."""
        self._pid = os.getpid()

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        stream: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> Stream: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: bool, **options: Unpack[GenerateOptions]
    ) -> Completion | Stream: ...
    def generate(
        self,
        prompt: Prompt,
        *,
        stream: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion | Stream:
        """Continue `prompt` as it stands. For `options` see `CompletionOptions`: `model`,
        `max_tokens`, `stop`, `temperature`, `top_k`, `top_p`, `min_p`, `seed`, …"""
        # `options` and `results` are imported where they are needed: `openclawctl status` is to
        # start fast, and needs neither.
        from openclawctl.options import generate_params

        self._target.set_default_model(options)
        params = generate_params(prompt, options, is_streamed=stream)
        return self._complete("generate", params, options.get("on_event"))

    @overload
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> Stream: ...
    @overload
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        stream: bool,
        **options: Unpack[ChatOptions],
    ) -> Completion | Stream: ...
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        stream: bool = False,
        **options: Unpack[ChatOptions],
    ) -> Completion | Stream:
        """The assistant's next turn. `messages` are maps with `role` and `content`; for `options`
        see `ChatOptions`: those of `generate`, `reasoning`, `tools` and `tool_choice`."""
        from openclawctl.options import chat_params

        self._target.set_default_model(options)
        params = chat_params(messages, options, is_streamed=stream)
        return self._complete("chat", params, options.get("on_event"))

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        model: str | None = None,
        priority: str | None = None,
        deadline_s: float | None = None,
        adapter: str | None = None,
    ) -> Embeddings:
        """One normalised vector per text."""
        from openclawctl import options, results

        params = options.embed_params(
            texts,
            model or self._target.default_model(),
            priority=priority,
            deadline_s=deadline_s,
            adapter=adapter,
        )
        result, deltas = self._runner("embed", params).drain()
        return results.embeddings(result, deltas, len(params["input"]))

    def tokenize(
        self, text: str, *, model: str | None = None, add_special: bool = False
    ) -> list[int]:
        """The token ids of `text`. `add_special` adds what the model wants in front of a prompt."""
        from openclawctl import options, results

        model = model or self._target.default_model()
        params = options.tokenize_params(text, model, add_special=add_special)
        return results.tokens_of(self._ask("tokenize", params))

    def detokenize(self, tokens: Iterable[int], *, model: str | None = None) -> str:
        """The text of token ids."""
        from openclawctl import options, results

        params = options.detokenize_params(tokens, model or self._target.default_model())
        return results.text_of(self._ask("detokenize", params))

    def ping(self) -> dict[str, Any]:
        """`{"server": "openclawd X.Y.Z"}`, if the daemon answers at all."""
        return self._ask("ping", {})

    def status(self) -> dict[str, Any]:
        """The daemon's state: its version, uptime, requests, token rate and models."""
        return self._ask("status", {})

    def models(self) -> list[dict[str, Any]]:
        """Every model that the daemon knows, loaded or not."""
        return calls.rows_of(self._ask("models", {}), "models")

    def load(
        self,
        model: str | None = None,
        *,
        on_progress: Callable[[str, float | None], object] | None = None,
    ) -> dict[str, Any]:
        """Load a model and wait until it is ready. `on_progress(phase, fraction)` is called as it
        advances."""
        on_event = None if on_progress is None else calls.progress_handler(on_progress)
        return self._ask("load", self._target.model_params(model), on_event=on_event)

    def unload(self, model: str | None = None) -> dict[str, Any]:
        """Give a model's memory back. It is loaded again when it is next asked."""
        return self._ask("unload", self._target.model_params(model))

    def usage(self, *, by: str = "model", since: str | float | None = None) -> dict[str, Any]:
        """Sums of the ledger, by `model`, `principal`, `app`, `day` or `op`, over the last `since`
        (`"24h"`, or seconds; default: all)."""
        from openclawctl.options import usage_params

        return self._ask("usage", usage_params(by, since))

    def insights(
        self,
        *,
        since: str | float = "30d",
        model: str | None = None,
        principal: str | None = None,
    ) -> dict[str, Any]:
        """What the ledger's numbers mean: `findings`, the most valuable first, each with what was
        `seen` and what to `do`, and `trends` with forecasts. Of the last `since` (`"30d"`, or
        seconds, at most 400 days), and of everything that the caller may see by default."""
        from openclawctl.options import insights_params

        return self._ask("insights", insights_params(since, model, principal))

    def close(self) -> None:
        """End the connection, and with it every request that is open. The client can be used
        again, and then connects again."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _complete(
        self, op: str, params: dict[str, Any], on_event: Callable[[Event], object] | None
    ) -> Completion | Stream:
        exchange = self._exchange(op, params, on_event=on_event)
        stream = Stream(self, exchange)
        if params["stream"]:
            return stream
        with stream:
            for _ in stream:
                pass  # the daemon sends no deltas that were not asked for
            return stream.result

    def _ask(
        self,
        op: str,
        params: dict[str, Any],
        *,
        on_event: Callable[[Event], object] | None = None,
    ) -> dict[str, Any]:
        return self._runner(op, params, on_event=on_event).drain()[0]

    def _runner(
        self,
        op: str,
        params: dict[str, Any],
        *,
        on_event: Callable[[Event], object] | None = None,
    ) -> _Runner:
        return _Runner(self, self._exchange(op, params, on_event=on_event))

    def _exchange(
        self,
        op: str,
        params: dict[str, Any],
        *,
        on_event: Callable[[Event], object] | None,
    ) -> Exchange:
        return Exchange(op, params, timeout_s=self._timeout_s, retry=self._retry, on_event=on_event)

    def _usable_link(self) -> Link:
        """The connection for the next request, made now if need be."""
        if os.getpid() != self._pid:
            inherited = self._links
            self._forget_links()  # the lock too: another thread may have held it during the fork
            for link in inherited:
                link.close()
        with self._lock:
            if not self._links or not self._links[-1].can_open():
                self._links = [link for link in self._links if not link.is_finished()]
                self._links.append(self._connect())
            return self._links[-1]

    def _connect(self) -> Link:
        key = self._target.api_key()
        return Link(self._target.socket_path(), hello=calls.hello(app=self._app, key=key))
