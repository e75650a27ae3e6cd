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
    30 s for what no model takes part in, such as `status`; a daemon that does not even greet
    within a minute is always given up. `api_key_file` holds a key that stands in for the caller's
    identity; `app` is a name that usage can be grouped by. `retries`: how often a request is sent
    again when it failed, before its first delta, for a reason that may pass; 0 turns that off.

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

    def dry_run(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> dict[str, Any]:
        """What `generate` would take, and nothing is computed or reserved: `prompt_tokens`, the
        most `completion_tokens` and `cost`, and the `limits`, `rate_limits` and `budgets` that it
        is under, with what would be left. Raises what `generate` would be refused with."""
        from openclawctl.options import generate_params

        self._target.set_default_model(options)
        params = generate_params(prompt, options, is_streamed=False)
        return self._ask("generate", {**params, "dry_run": True}, on_event=options.get("on_event"))

    def dry_run_chat(
        self, messages: Iterable[Mapping[str, Any]], **options: Unpack[ChatOptions]
    ) -> dict[str, Any]:
        """What `chat` would take; see `dry_run`."""
        from openclawctl.options import chat_params

        self._target.set_default_model(options)
        params = chat_params(messages, options, is_streamed=False)
        return self._ask("chat", {**params, "dry_run": True}, on_event=options.get("on_event"))

    def embed(self, texts: str | Iterable[str], **options: Unpack[EmbedOptions]) -> Embeddings:
        """One normalised vector per text. For `options` see `EmbedOptions`."""
        from openclawctl import results
        from openclawctl.options import embed_params

        self._target.set_default_model(options)
        params = embed_params(texts, options)
        result, deltas = self._runner("embed", params).drain()
        return results.embeddings(result, deltas, len(params["input"]))

    def classify(
        self,
        texts: str | Iterable[str],
        *,
        top_k: int | None = None,
        **options: Unpack[ScoringOptions],
    ) -> Classifications:
        """The labels of each text with their scores, the best first; `top_k` of them, all by
        default. For `options` see `ScoringOptions`."""
        from openclawctl import results
        from openclawctl.options import classify_params

        self._target.set_default_model(options)
        params = classify_params(texts, top_k, options)
        return results.classifications(self._ask("classify", params), len(params["input"]))

    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        return_documents: bool = False,
        **options: Unpack[ScoringOptions],
    ) -> Ranking:
        """How well each document answers the query, the best first; `top_n` of them, all by
        default, with their texts if `return_documents`."""
        from openclawctl import results
        from openclawctl.options import rerank_params

        self._target.set_default_model(options)
        params = rerank_params(
            query, documents, options, top_n=top_n, return_documents=return_documents
        )
        return results.ranking(self._ask("rerank", params), len(params["documents"]))

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

    def status(self, *, latency: bool = False, requests: bool = False) -> dict[str, Any]:
        """The daemon's state: its version, uptime, requests, token rate, health and models; with
        `latency` also how long each model's requests take, with `requests` also those that are
        `open`: your own, or everybody's if you may see them."""
        return self._ask("status", calls.status_params(latency=latency, requests=requests))

    def cancel_request(self, request_id: str) -> dict[str, Any]:
        """Cancel an open request of any connection: your own, or anybody's if you may see them.
        Whoever waits for it gets what there is of its answer by then."""
        return self._ask("requests.cancel", {"request_id": request_id})

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

    def show(self, model: str | None = None) -> dict[str, Any]:
        """One `model`, and the sum of the `memory` that it takes or would take: its `parts`, the
        `budget_bytes` of all models, and whether it `fits`. Loads nothing."""
        return self._ask("show", self._target.model_params(model))

    def watch(
        self,
        on_models: Callable[[list[dict[str, Any]]], object],
        *,
        num_updates: int | None = None,
    ) -> None:
        """Call `on_models` with the models, now and whenever one changes, so many times; without
        `num_updates` until the daemon stops."""
        params = {} if num_updates is None else {"num_updates": num_updates}
        self._ask("watch", params, on_event=calls.models_handler(on_models))

    def pull(
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
        """Have the daemon get a model: `source` is REPO or REPO:FILE of its hub, or an https
        address, which needs `sha256` (or `unverified`). `on_progress(file, bytes, total_bytes)` is
        called as it advances. Asked again, it goes on where it broke off."""
        from openclawctl.options import pull_params

        params = pull_params(
            source,
            name=name,
            revision=revision,
            sha256=sha256,
            replace=replace,
            unverified=unverified,
        )
        return self._ask("pull", params, on_event=calls.pull_handler(on_progress))

    def remove_model(self, model: str) -> dict[str, Any]:
        """Delete a model's file from the folder that `pull` puts them into."""
        from openclawctl.options import model_file_params

        return self._ask("models.remove", model_file_params("models.remove", model))

    def verify_model(
        self,
        model: str,
        *,
        on_progress: Callable[[str, int, int | None], object] | None = None,
    ) -> dict[str, Any]:
        """Read a model's files and compare them with the checksums they had (`damaged`)."""
        from openclawctl.options import model_file_params

        params = model_file_params("models.verify", model)
        return self._ask("models.verify", params, on_event=calls.pull_handler(on_progress))

    def reload(self) -> dict[str, Any]:
        """Have the daemon read its configuration again: the names of models that were `added`,
        `changed` and `removed`, and `warnings` about what takes effect at the next start. Raises
        `InvalidRequest`, with every mistake, for one that is wrong; nothing has changed then."""
        return self._ask("reload", {})

    def drain(
        self, *, wait: bool = False, on_progress: Callable[[int], object] | None = None
    ) -> dict[str, Any]:
        """Have the daemon take no new requests, which then raise `Draining`; those that it has are
        finished. With `wait`, return when none is open (`state` is `drained`), or somebody has
        resumed; `on_progress(num_open)` is called as they end."""
        on_event = None if on_progress is None else calls.drain_handler(on_progress)
        return self._ask("drain", {"wait": True} if wait else {}, on_event=on_event)

    def resume(self) -> dict[str, Any]:
        """Have the daemon take requests again after `drain`."""
        return self._ask("resume", {})

    def usage(
        self,
        *,
        by: str | Iterable[str] = "model",
        since: str | float | datetime | None = None,
        until: str | float | datetime | None = None,
        sort: str | None = None,
        limit: int | None = None,
    ) -> dict[str, Any]:
        """Sums of the ledger. `by` is one of `model`, `principal`, `key`, `app`, `session`, `day`,
        `hour`, `op` and `tier`, or several of them; `since` and `until` are durations before now
        (`"24h"`, or seconds) or moments (`"2026-10-25"`, or a `datetime`); `sort` is a group or a
        column of the rows."""
        from openclawctl.options import usage_params

        params = usage_params(by, since=since, until=until, sort=sort, limit=limit)
        return self._ask("usage", params)

    def usage_rows(self, *, after_seq: int = 0, limit: int | None = None) -> dict[str, Any]:
        """Requests that ended after number `after_seq`, in the order of their ends: `rows`, and
        `next_seq` to go on after. At most 1,000 at once; `has_more` says whether there are."""
        from openclawctl.options import usage_rows_params

        return self._ask("usage.rows", usage_rows_params(after_seq, limit))

    def check_ledger(self) -> dict[str, Any]:
        """Check the ledger: `findings` is empty when all is well. Takes seconds for a large one."""
        return self._ask("ledger.check", {})

    def prune_ledger(self, older_than: str | float) -> dict[str, Any]:
        """Delete the requests that arrived longer ago than that (`"90d"`, or seconds)."""
        from openclawctl.options import prune_params

        return self._ask("ledger.prune", prune_params(older_than))

    def back_up_ledger(self) -> dict[str, Any]:
        """Copy the ledger beside itself, on the daemon's machine: `path` and `bytes`."""
        return self._ask("ledger.backup", {})

    def audit(
        self,
        *,
        since: str | float | None = None,
        principal: str | None = None,
        action: str | None = None,
        limit: int | None = None,
        after_seq: int | None = None,
    ) -> dict[str, Any]:
        """Rows of the audit, oldest first: the newest `limit` (default: 100), or the first `limit`
        after row `after_seq`; of the last `since` (`"24h"`, or seconds)."""
        from openclawctl.options import audit_params

        params = audit_params(
            since, principal=principal, action=action, limit=limit, after_seq=after_seq
        )
        return self._ask("audit", params)

    def audit_verify(self, *, head: str | None = None) -> dict[str, Any]:
        """Whether every row of the audit is as it was written (`valid`), and if not, which is the
        first that is not (`bad_seq`, `problem`). `head` is a `SEQ:MAC` from the journal."""
        from openclawctl.options import audit_verify_params

        return self._ask("audit.verify", audit_verify_params(head))

    def whoami(self) -> dict[str, Any]:
        """Who this client is to the daemon, what it may do, and what it has left."""
        return self._ask("whoami", {})

    def create_key(
        self,
        name: str,
        *,
        role: str,
        tier: str | None = None,
        models: str | Iterable[str] | None = None,
        expires: str | float | None = None,
    ) -> dict[str, Any]:
        """Make an API key; `secret` of the result is the key, and is never shown again. `models`
        are patterns (default: all that the role may use); `expires` is `"90d"` or seconds."""
        from openclawctl.options import key_params

        params = key_params(name, role=role, tier=tier, models=models, expires=expires)
        return self._ask("keys.create", params)

    def list_keys(self) -> list[dict[str, Any]]:
        """Every API key, revoked ones too; of each secret the part that may be shown."""
        return calls.rows_of(self._ask("keys.list", {}), "keys")

    def show_key(self, name: str) -> dict[str, Any]:
        """One API key."""
        from openclawctl.options import key_name_params

        return self._ask("keys.show", key_name_params("keys.show", name))

    def rotate_key(
        self, name: str, *, overlap: str | float = "24h", expires: str | float | None = None
    ) -> dict[str, Any]:
        """Give a key a new `secret`; the old one stays good for `overlap`."""
        from openclawctl.options import rotation_params

        params = rotation_params(name, overlap=overlap, expires=expires)
        return self._ask("keys.rotate", params)

    def revoke_key(self, name: str) -> dict[str, Any]:
        """End a key for good, and what runs by it."""
        from openclawctl.options import key_name_params

        return self._ask("keys.revoke", key_name_params("keys.revoke", name))

    def budgets(self) -> list[dict[str, Any]]:
        """Your budgets, or everybody's if you may see them: what is used, reserved and left of
        each, when it is reset, and what will be used by then if it goes on so."""
        return calls.rows_of(self._ask("budgets", {}), "budgets")

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
