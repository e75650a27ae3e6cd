"""Each command against a scripted daemon: what it asks, what it prints, how it exits."""

from __future__ import annotations

import json

import pytest

from openclawctl.cli import launch
from openclawctl.cli.daemon import warn_of_options
from openclawctl.wire.errors import CODES, Code, Kind, problem_from_wire
from openclawctl.wire.messages import Delta

MODEL = {
    "name": "smollm2",
    "backend": "llama",
    "state": "ready",
    "reason": "",
    "since": 0,
    "default": True,
    "aliases": ["chat"],
    "parallel": 8,
    "context": 2048,
    "busy": 1,
    "queued": 2,
    "queue": {"normal": {"running": 1, "waiting": 2, "eta_s": 12.34}},
    "memory_bytes": 3 * 2**20,
    "info": {"description": "llama", "parameters": 134_515_008, "size_bytes": 2**20},
}
COLD = {"name": "big", "state": "unloaded", "reason": "", "info": None}
STATUS = {
    "server": {"version": "9.9", "pid": 7, "uptime_s": 3700.0, "state": "ready", "socket": "/s"},
    "connections": {"open": 1, "max": 512},
    "requests": {"running": 1, "queued": 2, "finished": 3, "failed": 4},
    "tokens": {"prompt": 5, "completion": 6, "per_s": 7.25},
    "models": [MODEL],
    "health": {"status": "ok", "server": "ready", "reasons": []},
    "memory_bytes": 2**20,
    "principal": "user:ada",
}
USAGE_ROW = {
    "requests": 2,
    "prompt_tokens": 10,
    "cached_tokens": 4,
    "completion_tokens": 20,
    "cancelled": 1,
    "failed": 0,
    "total_s": 1.5,
}


@pytest.fixture
def daemon(peer, wire):
    """Answers every operation with something plausible."""

    def handler(connection, request):
        plain = {
            "ping": {"server": "openclawd 9.9"},
            "status": STATUS,
            "models": {"models": [MODEL, COLD]},
            "load": {"model": "smollm2", "state": "ready"},
            "unload": {"model": "smollm2", "state": "unloaded"},
            "reload": {
                "added": ["a", "b"],
                "changed": [],
                "removed": ["c"],
                "warnings": ["logging.file takes effect when the daemon is started again"],
            },
            "tokenize": {"tokens": [1, 22]},
            "detokenize": {"text": "ab"},
            "usage": {
                "by": "model",
                "since_s": None,
                "rows": [{"key": "a", **USAGE_ROW}, {"key": None, **USAGE_ROW}],
                "total": USAGE_ROW,
            },
        }
        if request.op in plain:
            connection.done(request, **plain[request.op])
        elif request.op == "classify":
            labels = [{"label": "joy", "score": 0.75}, {"label": "anger", "score": 0.25}]
            num_texts = len(request.params["input"])
            result = wire.result("", op="embed", classifications=[labels] * num_texts)
            connection.done(request, **result)
        elif request.op == "rerank":
            ranking = [{"index": 1, "score": 0.75}, {"index": 0, "score": -3}]
            connection.done(request, **wire.result("", op="embed", ranking=ranking))
        elif request.op == "embed":
            connection.send(Delta(request.id, 0, embedding=wire.vector(0.5, -1)))
            connection.done(request, **wire.result("", op="embed"))
        else:
            connection.event(request, "warning", code="w", message="field x is unknown")
            connection.complete(request, " Par", "is.")

    return peer(handler=handler)


def test_generate_prints_text_on_stdout_and_chatter_on_stderr(daemon, ctl):
    answer = ctl("generate", "The capital", "--max-tokens", "8", "--stop", "x", "--stats")
    assert answer.out == " Paris.\n"
    assert answer.err == (
        "openclawctl: warning: field x is unknown\n"
        "5 prompt tokens (2 cached), 3 completion tokens (stop); queue 1ms; first token 20ms; "
        "total 100ms; 25.0 tokens/s\n"
    )
    assert daemon.requests[0].params == {
        "prompt": "The capital",
        "stream": True,
        "max_tokens": 8,
        "stop": ["x"],
    }


def test_generate_json_has_stable_keys(daemon, ctl):
    answer = ctl("generate", "x", "--json")
    value = json.loads(answer.out)
    assert sorted(value) == [
        "choices",
        "context",
        "finish_reason",
        "model",
        "reasoning",
        "request_id",
        "text",
        "timings",
        "usage",
        "warnings",
    ]
    assert value["text"] == " Paris."
    assert value["usage"]["total_tokens"] == 8


def test_every_sampling_option_arrives(daemon, ctl):
    options = {
        "temperature": 0.5,
        "top-p": 0.9,
        "top-k": 10,
        "min-p": 0.1,
        "repeat-penalty": 1.1,
        "frequency-penalty": 0.2,
        "presence-penalty": 0.3,
        "seed": 7,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert ctl("generate", "x", "--no-stream", "--model", "m", *words).out == " Paris.\n"
    params = daemon.requests[0].params
    assert {name: params[name.replace("-", "_")] for name in options} == options
    assert params["model"] == "m"


@pytest.mark.parametrize("command", [["generate", "x"], ["chat"], ["embed", "x"]])
def test_everything_that_computes_has_a_priority_and_a_deadline(daemon, ctl, command):
    scheduling = ["--priority", "batch", "--deadline", "1m30s"]
    assert ctl(*command, *scheduling, stdin="hi").status == 0
    params = daemon.requests[0].params
    assert (params["priority"], params["deadline_s"]) == ("batch", 90.0)
    assert "not a duration" in ctl(*command, "--deadline", "soon", stdin="hi").err
    assert ctl(*command, "--priority", "high", stdin="hi").status == 2


@pytest.mark.parametrize(
    ("args", "stdin", "prompt"),
    [
        (["Summarise:"], "a\nb\n", "Summarise:\n\na\nb\n"),
        (["-"], "piped", "piped"),
        ([], "piped", "piped"),
        (["argument"], "", "argument"),
    ],
)
def test_prompt_is_the_argument_and_what_is_piped_in(daemon, ctl, args, stdin, prompt):
    assert ctl("generate", *args, stdin=stdin).status == 0
    assert daemon.requests[0].params["prompt"] == prompt


@pytest.mark.parametrize(("system", "roles"), [("Be brief.", ["system", "user"]), ("", ["user"])])
def test_system_makes_it_a_chat(daemon, ctl, system, roles):
    assert ctl("generate", "hi", "--system", system).out == " Paris.\n"
    request = daemon.requests[0]
    assert request.op == "chat"
    assert [turn["role"] for turn in request.params["messages"]] == roles


def test_chat_takes_one_turn_from_a_pipe(daemon, ctl):
    assert ctl("chat", "--system", "s", stdin="hi\n").out == " Paris.\n"
    assert daemon.requests[0].params["messages"][-1] == {"role": "user", "content": "hi"}
    assert json.loads(ctl("chat", "--json", stdin="hi").out)["text"] == " Paris."


def test_classify(daemon, ctl):
    assert ctl("classify", "one", "-m", "m", "--top-k", "2").out == "joy 0.7500\tanger 0.2500\n"
    assert daemon.requests[0].params == {"input": ["one"], "model": "m", "top_k": 2}
    value = json.loads(ctl("classify", "--json", stdin="one\n\ntwo\n").out)
    assert [labels[0]["label"] for labels in value["classifications"]] == ["joy", "joy"]


def test_rerank(daemon, ctl):
    assert ctl("rerank", "q", "a", "b").out == "0.7500\t1\tb\n-3.0000\t0\ta\n"
    value = json.loads(ctl("rerank", "q", "--top-n", "2", "--json", stdin="a\nb\n").out)
    assert value["ranking"] == [{"index": 1, "score": 0.75}, {"index": 0, "score": -3.0}]
    asked = {"query": "q", "documents": ["a", "b"], "top_n": 2, "return_documents": False}
    assert daemon.requests[1].params == asked


def test_embed_tokenize_detokenize(daemon, ctl):
    assert ctl("embed", "one").out == "0.5 -1\n"
    assert json.loads(ctl("embed", "--json", stdin="one\n\n").out)["embeddings"] == [[0.5, -1.0]]
    assert ctl("tokenize", "ab").out == "1 22\n"
    assert ctl("tokenize", "--count", stdin="ab").out == "2\n"
    assert json.loads(ctl("tokenize", "--json", "ab").out) == {"tokens": [1, 22], "num_tokens": 2}
    assert ctl("detokenize", "1", "22").out == "ab\n"
    assert json.loads(ctl("detokenize", "--json", stdin="1 22\n").out) == {"text": "ab"}
    assert daemon.requests[-1].params == {"tokens": [1, 22]}


def test_status(daemon, ctl):
    assert ctl("status").out.splitlines() == [
        "openclawd 9.9, ready for 1h 1m, pid 7",
        "  socket       /s",
        "  requests     1 running, 2 queued, 3 finished, 4 failed",
        "  tokens       5 prompt, 6 completion, 7.2/s now",
        "  connections  1 of 512",
        "  memory       1.0 MiB",
        "  health       ok",
        "  you are      user:ada",
        "",
        "MODEL              STATE  RUNNING  QUEUED   WAIT   MEMORY  NOTE",
        "smollm2 (default)  ready        1       2  12.3s  3.0 MiB",
    ]
    assert json.loads(ctl("status", "--json").out) == STATUS


def test_models_and_ps(daemon, ctl):
    assert ctl("models").out.splitlines() == [
        "NAME               STATE     PARAMETERS     SIZE  CONTEXT  ALIASES  DESCRIPTION",
        "smollm2 (default)  ready           135M  1.0 MiB     2048  chat     llama",
        "big                unloaded           -        -        -  -",
    ]
    assert ctl("ls").out == ctl("models").out
    assert [line.split()[0] for line in ctl("ps").out.splitlines()] == ["NAME", "smollm2"]
    assert json.loads(ctl("models", "--json").out) == {"models": [MODEL, COLD]}
    assert json.loads(ctl("ps", "--json").out) == {"models": [MODEL]}


def test_reload(daemon, ctl):
    answer = ctl("reload")
    assert answer.out == "the configuration is applied; models: added a, b; removed c\n"
    assert answer.err == (
        "openclawctl: warning: logging.file takes effect when the daemon is started again\n"
    )
    assert json.loads(ctl("reload", "--json").out)["removed"] == ["c"]


def test_load_and_unload(daemon, ctl):
    assert ctl("load", "smollm2").out.startswith("smollm2 is ready (")
    assert ctl("unload").out == "smollm2 is unloaded\n"
    assert json.loads(ctl("unload", "m", "--json").out)["state"] == "unloaded"
    assert [request.params for request in daemon.requests] == [
        {"model": "smollm2"},
        {},
        {"model": "m"},
    ]


def test_usage(daemon, ctl):
    assert ctl("usage", "--by", "app", "--since", "1h").out.splitlines() == [
        "APP    REQUESTS  PROMPT  CACHED  COMPLETION  CANCELLED  FAILED  TIME",
        "a             2      10       4          20          1       0  1.5s",
        "-             2      10       4          20          1       0  1.5s",
        "total         2      10       4          20          1       0  1.5s",
    ]
    assert daemon.requests[0].params == {"by": ["app"], "since_s": 3600.0}
    assert json.loads(ctl("usage", "--json").out)["total"] == USAGE_ROW


def test_ping_and_version(daemon, ctl):
    assert ctl("ping").out.startswith("openclawd 9.9 answered in ")
    assert json.loads(ctl("version", "--json").out)["server"] == "openclawd 9.9"


@pytest.mark.parametrize("code", list(Code))
def test_every_error_code_has_its_exit_status(peer, ctl, code):
    info = CODES[code]
    problem = problem_from_wire(
        code.value, info.kind.value, "it went wrong", hint="do this", retry_after_s=600
    )
    peer(handler=lambda connection, request: connection.error(request, problem))
    answer = ctl("ping")
    assert answer == (info.exit_status, "", "openclawctl: error: it went wrong\nhint: do this\n")
    value = json.loads(ctl("ping", "--json").out)
    assert value["error"]["code"] == code.value
    assert value["error"]["exit_status"] == info.exit_status


def test_exit_status_of_a_code_of_a_later_version(peer, ctl):
    problem = problem_from_wire("quota-gone", Kind.LIMIT.value, "no")
    peer(handler=lambda connection, request: connection.error(request, problem))
    assert ctl("status").status == 5


def test_no_daemon(ctl, folder):
    answer = ctl("--socket", str(folder / "none"), "status")
    assert answer.status == 3
    assert f"there is no socket at {folder}/none" in answer.err
    assert "hint: start it with `systemctl start openclawd`" in answer.err
    value = json.loads(ctl("--socket", "/none", "status", "--json").out)
    assert value["error"]["code"] == "unreachable"
    assert ctl("--socket", "/none", "version").status == 0


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["stauts"], "did you mean 'status'?"),
        (["generate", "--no-such"], "No such option"),
        (["generate"], "the prompt is empty"),
        (["generate", "x", "--max-tokens", "0"], "max_tokens"),
        (["generate", "x", "--system", "y", "--echo"], "--echo, --suffix and --token-ids need"),
        (["generate", "1", "--system", "y", "--token-ids"], "need a prompt without --system"),
        (["generate", "one", "--token-ids"], "the prompt is whole numbers"),
        (["generate", "x", "--logprobs"], "--logprobs shows something with --json only"),
        (["chat"], "standard input is empty"),
        (["embed"], "no text to embed"),
        (["classify"], "no text to classify"),
        (["classify", "x", "--top-k", "0"], "top_k"),
        (["rerank", "q"], "no documents to rank"),
        (["detokenize", "x"], "token ids are integers"),
        (["usage", "--since", "soon"], "'soon' is not a duration"),
        (["usage", "--by", "moon"], "moon"),
        (["daemon", "start", "--port", "80"], "HTTP comes with the gateway"),
        (["--timeout", "0", "ping"], "--timeout"),
    ],
)
def test_usage_errors(daemon, ctl, args, text):
    answer = ctl(*args)
    assert answer.status == 2
    assert answer.out == ""
    assert answer.err.startswith("openclawctl: error: ")
    assert text in answer.err
    assert daemon.requests == []


def test_usage_error_as_json(ctl):
    value = json.loads(ctl("usage", "--json", "--by", "moon").out)
    assert value["error"]["code"] == "usage"
    assert value["error"]["exit_status"] == 2


def test_stdin_that_is_not_text(daemon, ctl):
    answer = ctl("generate", "-", stdin=b"ab\xff")
    assert answer.status == 2
    assert "not UTF-8 text (byte 2)" in answer.err


def test_client_configuration_error(ctl, tmp_path):
    file = tmp_path / "config" / "openclawd" / "client.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("sokcet: /s\n")
    answer = ctl("status")
    assert answer.status == 2
    assert f"{file}:1: unknown key 'sokcet'" in answer.err


def test_no_model_at_all(peer, ctl):
    peer(handler=lambda connection, request: connection.done(request))
    assert "no model is configured" in ctl("status").out
    answer = ctl("models")
    assert answer.status == 1
    assert "without 'models'" in answer.err


def test_no_usage_yet(peer, ctl):
    peer(handler=lambda connection, request: connection.done(request, rows=[]))
    assert ctl("usage").out == "no requests yet\n"
    assert ctl("usage", "--since", "1h").out == "no requests in the last 1h\n"


def test_options_of_a_start_are_not_for_a_daemon_of_systemd(capsys):
    running = launch.Running(1, "openclawd.socket")
    warn_of_options(running, ["--models", "a=/x", "--socket", "/s"])
    assert capsys.readouterr().err == (
        "openclawctl: warning: --models was not applied; it is openclawd.socket: "
        "change its configuration, then say `openclawctl reload`\n"
    )
    warn_of_options(running, ["--socket", "/s"])
    assert capsys.readouterr().err == ""
