"""`docs/protocol.md` says what the code does: every table is compared, the example is run."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openclawctl import Client
from openclawctl.wire import chat, completion, formats, framing, operations, results, scheduling
from openclawctl.wire import messages as m
from openclawctl.wire import tools as wire_tools
from openclawctl.wire.connection import MAY_SEND, Role, State
from openclawctl.wire.errors import CODES, Kind, RemoteProtocolError
from openclawctl.wire.operations import Op, param_names
from openclawctl.wire.results import FinishReason
from openclawctl.wire.sampling import SAMPLING_RANGES
from openclawd.admission.tiers import Priority
from openclawd.fleet.spec import ModelState
from openclawd.server import peer

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def table(first_column):
    """The rows of the table whose first column has this title; an empty first cell repeats the one
    above."""
    lines = TEXT.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows.append([cells[0] or rows[-1][0], *cells[1:]])
    return rows


def names(cell):
    """What stands in backquotes in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def name(cell):
    return "".join(names(cell)[:1])


def paragraph(start):
    """The paragraph that begins so."""
    return next(part for part in TEXT.split("\n\n") if part.startswith(start))


def test_limits():
    assert {name(cells[0]): int(cells[1]) for cells in table("limit")} == {
        limit: getattr(framing, limit)
        for limit in (
            "HELLO_FRAME_BYTES",
            "MAX_FRAME_BYTES",
            "MAX_DEPTH",
            "MAX_ITEMS",
            "MAX_RESULT_ITEMS",
        )
    }


def test_what_becomes_of_slow_clients():
    assert "reads nothing for a minute is disconnected; past 4 MiB of waiting text" in TEXT
    assert (peer.STALL_TIMEOUT_S, peer.MAX_MERGED_CHARS) == (60, 4 * 2**20)


EXAMPLES = [
    m.Hello(1, "c", "k", "a"),
    m.Request(1, "ping"),
    m.Cancel(1),
    m.Welcome(1, "s", "p"),
    m.Event(1, "k"),
    m.Delta(1, embedding=b"", logprobs=[], reasoning="r", tool_calls=[]),
    m.Done(1),
    m.Error(1, "c", "k", "m", "h", 1.0),
    m.Goaway("r"),
]


def is_required(message, field_name):
    """Is a message refused without this field?"""
    fields = m.encode(message)
    del fields[field_name]
    is_clients = isinstance(message, m.ClientMessage)
    decode = m.decode_client_message if is_clients else m.decode_server_message
    try:
        decode(fields)
    except RemoteProtocolError:
        return True
    return False


def test_messages():
    documented = [(name(cells[0]), name(cells[1]), cells[2]) for cells in table("message")]
    assert documented == [
        (message.type, field.name, "yes" if is_required(message, field.name) else "no")
        for message in EXAMPLES
        for field in dataclasses.fields(message)
    ]
    assert {type(message) for message in EXAMPLES} == set().union(*MAY_SEND.values())


def test_states():
    documented = {
        (role, name(cells[0])): set(names(cells[column]))
        for cells in table("state")
        for role, column in ((Role.CLIENT, 1), (Role.SERVER, 2))
    }
    assert documented == {
        (role, state.value): {kind.type for kind in kinds}
        for (role, state), kinds in MAY_SEND.items()
    }
    assert [name(cells[0]) for cells in table("state")] == [state.value for state in State]


def test_errors():
    documented = {name(cells[0]): tuple(cells[1:4]) for cells in table("code")}
    assert documented == {
        code.value: (info.kind.value, str(info.exit_status), info.retry.value)
        for code, info in CODES.items()
    }
    assert {cells[1] for cells in table("code")} == {kind.value for kind in Kind}


def documented_params():
    found = {op: set() for op in Op}
    for cells in table("op"):
        op = Op(name(cells[0]))
        found[op] |= COMPLETION if cells[1] == "*completion*" else set(names(cells[1]))
    return found


COMPLETION = {name(cells[0]) for cells in table("parameter")}


def test_params():
    assert documented_params() == {op: set(param_names(op)) for op in Op}


@pytest.mark.parametrize("op", list(Op))
def test_required_params(op):
    required = [
        name(cells[1]) for cells in table("op") if name(cells[0]) == op.value and cells[2] == "yes"
    ]
    if required:
        with pytest.raises(operations.InvalidRequest):
            operations.decode_params(op, {})
    else:
        operations.decode_params(op, {})


def test_ranges():
    documented = {name(cells[0]): cells[1] for cells in table("parameter")}
    for parameter, (low, high) in SAMPLING_RANGES.items():
        assert documented[parameter] == f"{low} to {high}"
    assert documented["n"] == f"1 to {completion.MAX_CHOICES}"
    lowest, highest = documented["deadline_s"].split(" to ")
    assert (float(lowest), float(highest)) == (scheduling.MIN_DEADLINE_S, m.LONGEST_S)
    stop = next(cells[2] for cells in table("parameter") if name(cells[0]) == "stop")
    assert f"at most {completion.MAX_STOP_STRINGS}, of 1 to {completion.MAX_STOP_CHARS} " in stop


def test_choices():
    rows = {(name(cells[0]), name(cells[1])): cells[4] for cells in table("op")}
    assert names(rows["usage", "by"]) == list(operations.USAGE_GROUPS)
    priority = next(cells[2] for cells in table("parameter") if name(cells[0]) == "priority")
    assert names(priority) == list(scheduling.PRIORITIES)
    assert [level.name.lower() for level in Priority] == list(scheduling.PRIORITIES)
    assert set(chat.CHAT_ROLES) <= set(names(rows["chat", "messages"]))
    assert f"at most {completion.MAX_PROMPT_IDS}," in rows["generate", "prompt"]
    assert f"1 to {operations.MAX_EMBED_INPUTS} texts" in rows["embed", "input"]
    assert set(wire_tools.TOOL_CHOICES) <= set(names(rows["chat", "tool_choice"]))
    assert f"at most {wire_tools.MAX_TOOLS} " in rows["chat", "tools"]
    assert names(rows["chat", "reasoning"]) == list(completion.REASONING_MODES)
    finish = paragraph("`finish_reason` is")
    assert {reason.value for reason in FinishReason} <= set(names(finish))
    states = next(cells[2] for cells in table("field of a model") if name(cells[0]) == "state")
    assert {state.value for state in ModelState} <= set(names(states))


def test_formats():
    documented = {name(cells[0]): name(cells[1]) for cells in table("`type` of `format`")}
    assert documented == formats.FORMAT_TEXTS
    assert f"A text has at most {formats.MAX_FORMAT_CHARS} characters." in TEXT


def field_names(cls):
    return {field.name for field in dataclasses.fields(cls)}


def test_results():
    documented = {name(cells[0]): set(names(cells[2])) for cells in table("field")}
    assert set(documented) == field_names(results.InferenceResult)
    assert field_names(results.Usage) <= documented["usage"]
    assert field_names(results.Timings) == documented["timings"]
    assert field_names(results.Choice) <= documented["choices"]


@pytest.fixture(scope="module")
def answers(daemon):
    """What a real daemon answers to the operations whose results have no class."""
    with Client(socket_path=daemon.socket) as client:
        client.generate("Hello", max_tokens=1)
        return {
            "status": client.status(requests=True),
            "models": client.models(),
            "usage": client.usage(),
            "whoami": client.whoami(),
            "create": client.create_key("documented", role="reader"),
            "show": client.show_key("documented"),
            "list": client.list_keys(),
            "usage.rows": client.usage_rows(),
            "ledger.check": client.check_ledger(),
            "ledger.prune": client.prune_ledger("1d"),
            "ledger.backup": client.back_up_ledger(),
        }


def test_status(answers):
    documented = {name(cells[0]): set(names(cells[2])) for cells in table("field of `status`")}
    status = answers["status"]
    assert set(documented) == set(status)
    for section in ("connections", "requests", "tokens"):
        assert documented[section] == set(status[section])
    assert set(status["server"]) <= documented["server"]


def test_open_requests(daemon):
    documented = {field for cells in table("field of an open request") for field in names(cells[0])}
    with (
        Client(socket_path=daemon.socket) as client,
        client.generate("Once", stream=True, max_tokens=256, ignore_eos=True) as stream,
    ):
        next(stream)
        (row,) = client.status(requests=True)["requests"]["open"]
        cancelled = client.cancel_request(row["request_id"])
        for _ in stream:
            pass
    assert set(row) == documented
    assert set(cancelled) <= set(names(paragraph("**`requests.cancel`**")))
    states = next(
        cells[2] for cells in table("field of an open request") if name(cells[0]) == "state"
    )
    assert set(names(states)) == {"loading", "preparing", "queued", "running"}


def test_models(answers):
    documented = {field for cells in table("field of a model") for field in names(cells[0])}
    (row,) = answers["models"]
    assert set(row) == documented - {"latency"}  # only where it is asked for
    info = next(cells[2] for cells in table("field of a model") if name(cells[0]) == "info")
    assert set(names(info)) <= set(row["info"])
    assert answers["status"]["models"][0].keys() == row.keys()


def test_usage(answers):
    documented = set(names(paragraph("**`usage`**")))
    usage = answers["usage"]
    assert set(usage) <= documented
    assert set(usage["rows"][0]) <= documented
    assert (
        set(usage["total"])
        == set(usage["rows"][0]) - {"key", "groups"}
        == set(operations.USAGE_COLUMNS)
    )


def test_usage_rows_and_the_ledger(answers):
    assert set(answers["usage.rows"]) <= set(names(paragraph("**`usage.rows`**")))
    assert answers["ledger.check"]["findings"] == []
    documented = set(names(paragraph("**`ledger.check`**")))
    for op in ("ledger.check", "ledger.prune", "ledger.backup"):
        assert set(answers[op]) <= documented
    rows = {(name(cells[0]), name(cells[1])): cells[4] for cells in table("op")}
    assert f"1 to {operations.MAX_USAGE_ROWS} " in rows["usage", "limit"]
    assert f"1 to {operations.MAX_USAGE_PAGE} " in rows["usage.rows", "limit"]


def test_whoami_and_keys(answers):
    assert set(answers["whoami"]) <= set(names(paragraph("**`whoami`**")))
    documented = set(names(paragraph("**`keys.create`**")))
    assert set(answers["create"]) == set(answers["show"]) | {"secret"}
    assert set(answers["show"]) <= documented
    assert answers["show"] in answers["list"]


def test_the_example_client(daemon):
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(example.splitlines()) <= 25
    run = subprocess.run(
        [sys.executable, "-c", example],
        env={**os.environ, "OPENCLAWD_SOCKET": str(daemon.socket)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Paris" in run.stdout
    assert re.search(r"\n\d+ tokens\n$", run.stdout)
