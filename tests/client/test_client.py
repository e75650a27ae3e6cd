"""`Client`: operations, streams, cancelling, retries, reconnecting, time limits."""

from __future__ import annotations

import gc
import os
import re
import threading
from datetime import UTC, datetime

import pytest

import openclawctl
from openclawctl import (
    Client,
    DaemonUnreachable,
    DeadlineExceeded,
    InvalidRequest,
    LimitExceeded,
    ModelLoading,
    NotFound,
    Overloaded,
    ProtocolError,
    WorkerDied,
)
from openclawctl.options import chat_params, generate_params
from openclawctl.wire.errors import BusyProblem, ShuttingDown
from openclawctl.wire.messages import Cancel, Delta, Error, Goaway, Hello, Welcome


def echo(connection, request):
    """Answers each operation as the daemon would."""
    if request.op in ("generate", "chat"):
        connection.complete(request, "Par", "is", ".")
    elif request.op == "ping":
        connection.done(request, server="openclawd 9.9")
    else:
        connection.done(request, **request.params)


def test_generate_returns_text_usage_and_timings(peer):
    daemon = peer(handler=echo)
    with Client(daemon.path) as client:
        r = client.generate(
            "The capital", model="m", max_tokens=16, temperature=0, seed=1, stop="x"
        )
    assert (r.text, r.finish_reason, r.model, r.request_id) == (
        "Paris.",
        "stop",
        "smollm2",
        "0192-test",
    )
    assert (r.usage.prompt_tokens, r.usage.cached_tokens, r.usage.total_tokens) == (5, 2, 8)
    assert r.timings.ttft_s == 0.02
    assert daemon.requests[0].params == {
        "prompt": "The capital",
        "model": "m",
        "max_tokens": 16,
        "stop": ["x"],
        "stream": False,
        "temperature": 0.0,
        "seed": 1,
    }


def test_hello_and_first_request_come_in_one_write(peer):
    sizes = []

    def script(connection):
        data = connection.sock.recv(65536)
        sizes.append(len(data))
        connection.wire.receive(data)
        connection.greet()
        connection.done(connection.request(), server="s")

    with Client(peer(script).path, app="nightly") as client:
        assert client.ping() == {"server": "s"}
    assert len(sizes) == 1


def test_hello_carries_app_and_key(peer, tmp_path):
    key = tmp_path / "key"
    key.write_text("secret\n")
    daemon = peer(handler=echo)
    with Client(daemon.path, app="nightly", api_key_file=key) as client:
        client.ping()
    hello = daemon.received[0]
    assert isinstance(hello, Hello)
    assert (hello.app, hello.key) == ("nightly", "secret")
    assert hello.client == f"openclawctl/{openclawctl.__version__}"


def test_stream_gives_deltas_then_the_result(peer):
    with (
        Client(peer(handler=echo).path) as client,
        client.generate("x", stream=True) as stream,
    ):
        with pytest.raises(RuntimeError, match="before it was read to its end"):
            _ = stream.result
        assert [delta.text for delta in stream] == ["Par", "is", "."]
        assert stream.text == stream.result.text == "Paris."
        assert list(stream) == []


def test_chat_message_continues_the_conversation(peer):
    with Client(peer(handler=echo).path) as client:
        r = client.chat([{"role": "user", "content": "hi"}], model="m")
    assert r.text == "Paris."
    assert r.message == {"role": "assistant", "content": "Paris."}


def test_events_reach_the_callback_and_warnings_the_result(peer):
    def handler(connection, request):
        connection.event(request, "queued", position=2)
        connection.event(request, "a-later-kind", anything=1)
        connection.event(request, "warning", code="unknown-field", message="ignored")
        connection.complete(request, "ok")

    kinds = []
    with Client(peer(handler=handler).path) as client:
        r = client.generate("x", on_event=lambda event: kinds.append(event.kind))
    assert kinds == ["queued", "a-later-kind", "warning"]
    assert r.warnings == [{"code": "unknown-field", "message": "ignored"}]


def test_embed_returns_vectors_in_the_order_of_the_texts(peer, wire):
    def handler(connection, request):
        for index in reversed(range(len(request.params["input"]))):
            connection.send(Delta(request.id, index, embedding=wire.vector(index, 0.5)))
        connection.done(request, **wire.result("", op="embed"))

    with Client(peer(handler=handler).path) as client:
        r = client.embed(["one", "two"], model="m")
    assert r == [[0.0, 0.5], [1.0, 0.5]] == r.vectors
    assert r.usage.prompt_tokens == 5


def test_embed_without_all_vectors_is_a_protocol_error(peer, wire):
    def handler(connection, request):
        connection.send(Delta(request.id, 1, embedding=wire.vector(1)))
        connection.done(request, **wire.result("", op="embed"))

    with (
        Client(peer(handler=handler).path) as client,
        pytest.raises(ProtocolError, match="1 vectors for 2 texts"),
    ):
        client.embed(["one", "two"])


def test_tokenize_detokenize_load_and_usage(peer):
    def handler(connection, request):
        if request.op == "load":
            connection.event(request, "loading", phase="weights", fraction=0.5)
            connection.done(request, model=request.params["model"], state="ready")
        else:
            answers = {"tokenize": {"tokens": [1, 2]}, "detokenize": {"text": "ab"}}
            answers["budgets"] = {"budgets": [{"name": "b"}]}
            connection.done(request, **answers.get(request.op, request.params))

    progress = []
    with Client(peer(handler=handler).path) as client:
        assert client.tokenize("ab") == [1, 2]
        assert client.detokenize([1, 2]) == "ab"
        rows = {"since_s": 60.0, "action": "load", "limit": 100, "after_seq": 3}
        assert client.audit(since="1m", action="load", after_seq=3) == rows
        assert client.audit_verify() == {}
        assert client.budgets() == [{"name": "b"}]
        assert client.usage(by="day", since="1h30m") == {"by": ["day"], "since_s": 5400.0}
        moment = datetime(2026, 10, 25, tzinfo=UTC)
        assert client.usage(by="user,day", until=moment, sort="cost", limit=3) == {
            "by": ["principal", "day"], "until_at": 1792886400.0, "sort": "cost", "limit": 3
        }  # fmt: skip
        assert client.usage(since="2026-10-25T00:00Z")["since_at"] == 1792886400.0
        assert client.usage_rows(limit=5) == {"after_seq": 0, "limit": 5}
        assert client.check_ledger() == client.back_up_ledger() == {}
        assert client.reload() == {}
        assert client.prune_ledger(60) == {"older_than_s": 60.0}
        assert client.insights(since="7d", model="m") == {"since_s": 604800.0, "model": "m"}
        assert client.load("m", on_progress=lambda *args: progress.append(args))["state"] == "ready"
    assert progress == [("weights", 0.5)]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda c: c.generate("x", temperature=-1), InvalidRequest, "temperature"),
        (lambda c: c.generate("x", temprature=1), TypeError, "temprature"),
        (lambda c: c.generate(7), InvalidRequest, "prompt"),
        (lambda c: c.chat([]), InvalidRequest, "messages"),
        (lambda c: c.chat("hi"), InvalidRequest, "messages"),
        (lambda c: c.chat({"role": "user", "content": "hi"}), InvalidRequest, "messages"),
        (lambda c: c.usage(since="soon"), InvalidRequest, "soon"),
        (lambda c: c.audit(since="soon"), InvalidRequest, "soon"),
        (lambda c: c.usage(until="2026-13-01"), InvalidRequest, "until: '2026-13-01' is neither"),
        (lambda c: c.prune_ledger("soon"), InvalidRequest, "older_than"),
        (lambda c: c.insights(since="soon"), InvalidRequest, "soon"),
        (lambda c: c.insights(since="401d"), InvalidRequest, "since_s"),
        (lambda c: c.generate("\ud800"), InvalidRequest, "Unicode"),
        (lambda c: c.generate("x" * (17 * 2**20)), LimitExceeded, "frame limit"),
    ],
)
def test_mistakes_are_named_before_anything_is_sent(peer, call, error, text):
    daemon = peer(handler=echo)
    with Client(daemon.path) as client:
        with pytest.raises(error, match=text):
            call(client)
        assert client.ping()
    assert [request.op for request in daemon.requests] == ["ping"]


def test_large_prompt_goes_out_while_the_daemon_is_talking(peer):
    """Both sides' socket buffers are full at the same time: neither may wait for the other."""
    prompt = "x" * (4 * 2**20)

    def script(connection):
        connection.greet()
        talk, big = connection.request(), None
        for _ in range(64):
            connection.delta(talk, "y" * 65_536)
        connection.complete(talk, "y")
        big = connection.request()
        connection.complete(big, str(len(big.params["prompt"])))

    with Client(peer(script).path) as client:
        stream = client.generate("talk", stream=True)
        assert client.generate(prompt).text == str(len(prompt))
        assert sum(len(delta.text) for delta in stream) == 64 * 65_536 + 1


def stop_on_cancel(connection, request):
    """Streams one delta, then waits for a cancel and ends as the daemon does."""
    if request.op == "ping":
        return echo(connection, request)
    connection.delta(request, "Once")
    connection.cancel()
    connection.complete(request, finish_reason="cancelled")
    return None


def _leave_by_break(client):
    with client.generate("x", stream=True) as stream:
        for _ in stream:
            break


def _leave_by_garbage(client):
    stream = client.generate("x", stream=True)
    next(stream)
    del stream
    gc.collect()


def _leave_by_exception(client):
    with pytest.raises(KeyError), client.generate("x", stream=True) as stream:
        _fail(next(stream))


def _fail(delta):
    raise KeyError(delta.text)


@pytest.mark.parametrize("leave", [_leave_by_break, _leave_by_garbage, _leave_by_exception])
def test_leaving_a_stream_cancels_it(peer, leave):
    daemon = peer(handler=stop_on_cancel)
    with Client(daemon.path) as client:
        leave(client)
        assert client.ping()  # the connection is still good
    assert any(isinstance(message, Cancel) for message in daemon.received)


def test_cancel_keeps_the_stream_until_its_end(peer):
    with (
        Client(peer(handler=stop_on_cancel).path) as client,
        client.generate("x", stream=True) as stream,
    ):
        next(stream)
        stream.cancel()
        assert list(stream) == []
        assert stream.result.finish_reason == "cancelled"
        assert stream.result.usage.completion_tokens == 3


def test_many_threads_share_one_connection(peer):
    """Answers come in reverse order and interleaved: each thread gets its own."""
    num_threads = 16

    def script(connection):
        connection.greet()
        requests = [connection.request() for _ in range(num_threads)]
        for round_number in range(20):
            for request in reversed(requests):
                connection.delta(request, f"{request.params['prompt']}:{round_number} ")
        for request in requests:
            connection.complete(request)

    daemon = peer(script)
    texts = {}

    def ask(client, name):
        with client.generate(name, stream=True) as stream:
            texts[name] = "".join(delta.text for delta in stream)

    with Client(daemon.path) as client:
        threads = [
            threading.Thread(target=ask, args=(client, f"t{number}"))
            for number in range(num_threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert daemon.num_connections == 1
    assert texts == {
        f"t{number}": "".join(f"t{number}:{n} " for n in range(20)) for number in range(num_threads)
    }


def test_idle_follower_takes_over_when_the_leader_is_done(peer):
    """The first thread to wait reads for both; when it has its answer the other must read on."""
    first_is_done = threading.Event()

    def script(connection):
        connection.greet()
        requests = {}
        for _ in range(2):
            request = connection.request()
            requests[request.params["prompt"]] = request
        connection.complete(requests["first"], "1")
        assert first_is_done.wait(20)
        connection.complete(requests["second"], "2")

    with Client(peer(script).path) as client:
        answers = []
        second = threading.Thread(target=lambda: answers.append(client.generate("second").text))
        second.start()
        assert client.generate("first").text == "1"
        first_is_done.set()
        second.join(20)
        assert answers == ["2"]


def test_closing_from_another_thread_ends_what_is_open(peer):
    is_asked = threading.Event()

    def script(connection):
        connection.greet()
        connection.request()
        is_asked.set()
        connection.next()

    client = Client(peer(script).path)
    problems = []

    def ask():
        try:
            client.generate("x")
        except DaemonUnreachable as problem:
            problems.append(problem)

    thread = threading.Thread(target=ask)
    thread.start()
    assert is_asked.wait(20)
    client.close()
    thread.join(20)
    assert "this client was closed" in problems[0].message


def test_retryable_refusal_is_asked_again(peer):
    answers = [Overloaded("full", retry_after_s=0.0), WorkerDied("gone", retry_after_s=0.0)]

    def handler(connection, request):
        if answers:
            connection.error(request, answers.pop())
        else:
            connection.complete(request, "third")

    daemon = peer(handler=handler)
    with Client(daemon.path) as client:
        assert client.generate("x").text == "third"
    assert len(daemon.requests) == 3


@pytest.mark.parametrize(
    ("problem", "retries"),
    [
        (Overloaded("full", retry_after_s=0.0), 0),
        (NotFound("no such model"), 2),
        (ModelLoading("loading", retry_after_s=600), 2),
    ],
)
def test_refusals_that_are_not_asked_again(peer, problem, retries):
    daemon = peer(handler=lambda connection, request: connection.error(request, problem))
    with Client(daemon.path, retries=retries) as client, pytest.raises(type(problem)) as caught:
        client.generate("x")
    assert len(daemon.requests) == 1
    assert caught.value.as_dict() == problem.as_dict()


def test_a_deadline_counts_from_the_first_attempt(peer):
    answers = [Overloaded("full", retry_after_s=0.05)]

    def handler(connection, request):
        if answers:
            connection.error(request, answers.pop())
        else:
            connection.complete(request, "second")

    daemon = peer(handler=handler)
    with Client(daemon.path) as client:
        assert client.generate("x", deadline_s=100.0).text == "second"
    first, second = [request.params["deadline_s"] for request in daemon.requests]
    assert first == 100.0
    assert second <= 99.95


def test_nobody_waits_for_an_attempt_that_would_be_too_late(peer):
    problem = Overloaded("full", retry_after_s=20.0)
    daemon = peer(handler=lambda connection, request: connection.error(request, problem))
    with Client(daemon.path) as client, pytest.raises(Overloaded):
        client.embed("x", deadline_s=10.0, priority="batch")
    assert [request.params["priority"] for request in daemon.requests] == ["batch"]


def test_nothing_is_asked_again_after_the_first_delta(peer):
    def handler(connection, request):
        connection.delta(request, "half")
        connection.error(request, WorkerDied("gone", retry_after_s=0.0))

    daemon = peer(handler=handler)
    with Client(daemon.path) as client, client.generate("x", stream=True) as stream:
        assert next(stream).text == "half"
        with pytest.raises(WorkerDied):
            next(stream)
        assert stream.text == "half"
    assert len(daemon.requests) == 1


def test_refused_connection_is_tried_again_as_told(peer):
    """`error` without an id refuses the whole connection, as at the limit of connections."""
    refusals = [1]

    def script(connection):
        connection.next()
        if refusals and refusals.pop():
            connection.error(None, Overloaded("512 connections are open", retry_after_s=0.0))
            return
        connection.send(Welcome(1, "s", "p"))
        connection.complete(connection.request(), "ok")

    daemon = peer(script)
    with Client(daemon.path) as client:
        assert client.generate("x").text == "ok"
    assert daemon.num_connections == 2


def test_unknown_code_becomes_the_class_of_its_kind(peer):
    error = Error(1, "quantum-flux", "busy", "not now", retry_after_s=99.0)
    daemon = peer(handler=lambda connection, request: connection.send(error))
    with Client(daemon.path) as client, pytest.raises(BusyProblem) as caught:
        client.ping()
    assert (caught.value.code, caught.value.retry_after_s) == ("quantum-flux", 99.0)


def test_reconnects_after_the_daemon_was_restarted(peer):
    def once(connection):
        connection.greet()
        echo(connection, connection.request())

    daemon = peer(once)
    with Client(daemon.path, retries=0) as client:
        for _ in range(3):
            client.ping()
            daemon.join()  # its end is closed before the next request
    assert daemon.num_connections == 3


def test_kept_connection_that_dies_under_a_request_is_replaced(peer):
    counts = []

    def script(connection):
        connection.greet()
        while (request := connection.request()) is not None:
            counts.append(request.op)
            if len(counts) == 2:
                return
            echo(connection, request)

    daemon = peer(script)
    with Client(daemon.path) as client:
        client.ping()
        client.ping()
    assert daemon.num_connections == 2
    assert len(counts) == 3


def test_goaway_moves_new_requests_and_keeps_open_ones(peer):
    is_moved = threading.Event()

    def script(connection):
        connection.greet()
        request = connection.request()
        if request.op == "generate":
            connection.send(Delta(request.id, 0, "a"), Goaway("reload"))  # in one write
            assert is_moved.wait(20)
            connection.complete(request, "b")
            connection.next()
        else:
            echo(connection, request)
            is_moved.set()
            connection.next()

    daemon = peer(script)
    with Client(daemon.path) as client, client.generate("x", stream=True) as stream:
        assert next(stream).text == "a"
        assert client.ping()
        assert [delta.text for delta in stream] == ["b"]
    assert daemon.num_connections == 2


def test_attempts_are_counted(peer):
    refusal = ShuttingDown("draining", retry_after_s=0.0)
    daemon = peer(handler=lambda connection, request: connection.error(request, refusal))
    with Client(daemon.path) as client, pytest.raises(ShuttingDown):
        client.ping()
    assert len(daemon.requests) == 3


def test_no_news_for_too_long_cancels_the_request(peer):
    def handler(connection, request):
        if request.op == "generate":
            connection.event(request, "queued", position=1)
            connection.cancel()
        else:
            echo(connection, request)

    daemon = peer(handler=handler)
    with Client(daemon.path, timeout_s=0.05) as client:
        with pytest.raises(DeadlineExceeded, match=r"no news .* for 0.05 s") as caught:
            client.generate("x")
        assert caught.value.exit_status == 7
    daemon.join()
    assert any(isinstance(message, Cancel) for message in daemon.received)


# Python 3.12 warns of every fork beside threads; here the threads are the scripted daemon's.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_connects_for_itself_and_disturbs_nothing(peer):
    daemon = peer(handler=stop_on_cancel)
    with Client(daemon.path) as client, client.generate("x", stream=True) as stream:
        next(stream)
        pid = os.fork()
        if pid == 0:
            os._exit(_in_child(client, stream))
        assert os.waitpid(pid, 0)[1] == 0
        stream.cancel()
        assert list(stream) == []
        assert stream.result.finish_reason == "cancelled"
    assert daemon.num_connections == 2


def _in_child(client, stream):
    try:
        stream.close()
    except RuntimeError:
        return 0 if client.ping() else 1
    return 2


def test_failing_callback_ends_only_its_own_request(peer):
    def handler(connection, request):
        connection.event(request, "queued", position=1)
        connection.complete(request, "ok")

    daemon = peer(handler=handler)
    with Client(daemon.path) as client:
        with pytest.raises(ZeroDivisionError):
            client.generate("x", on_event=lambda event: 1 / 0)
        assert client.generate("x").text == "ok"


def test_every_name_is_exported_from_where_the_table_says():
    for name in openclawctl.__all__:
        assert getattr(openclawctl, name).__module__ == openclawctl._HOME[name]
    assert set(openclawctl.__all__) == set(openclawctl._HOME)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = openclawctl.no_such_name


def test_an_app_name_that_is_not_unicode_is_refused_like_any_text(peer):
    with (
        Client(peer().path, app="\ud800") as client,
        pytest.raises(InvalidRequest, match="not valid Unicode"),
    ):
        client.ping()


@pytest.mark.parametrize("bias", [{5: -1.5}, [[5, -1.5]], [(5, -1.5)]])
def test_a_bias_is_a_map_or_pairs_as_on_the_wire(bias):
    params = generate_params("hi", {"logit_bias": bias}, is_streamed=False)
    assert params["logit_bias"] == [[5, -1.5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": [1]}, "list of [token_id, bias] pairs"),
        ({"logit_bias": "x"}, "'logit_bias' must be a list, not a string"),
        ({"tools": "x"}, "'tools' must be a list, not a string"),
        ({"tools": {}}, "'tools' must be a list, not a map"),
        ({"tools": 1}, "'tools' must be a list, not an integer"),
        ({"tools": [1]}, "tools[0] must be a map, not an integer"),
        ({"stop": 1}, "'stop' must be a list, not an integer"),
    ],
)
def test_what_is_no_such_list_is_named_as_the_daemon_would(options, message):
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        chat_params([{"role": "user", "content": "hi"}], options, is_streamed=False)
