"""`openclawctl usage` and `ledger`: tables, CSV, charts, following, exporting."""

import csv
import io
import json
import stat
from xml.etree import ElementTree

import pytest

from openclawctl.cli import usage as usage_module
from openclawctl.cli.chart import bar_chart
from openclawctl.cli.sheets import csv_lines
from openclawctl.wire.errors import Unavailable

SUMS = {
    "requests": 2, "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 20,
    "cost": 1_500_000, "cancelled": 1, "failed": 0, "total_s": 1.5, "mean_ttft_s": 0.25,
}  # fmt: skip
EVIL = "=HYPERLINK(0)"
USAGE = {
    "by": "app,day",
    "currency": "EUR",
    "left_out": 3,
    "rows": [
        {"key": f"{EVIL} 2026-10-25", "groups": {"app": EVIL, "day": "2026-10-25"}, **SUMS},
        {"key": " 2026-10-26", "groups": {"app": "", "day": "2026-10-26"}, **SUMS},
    ],
    "total": {**SUMS, "requests": 4},
}
ROWS = [
    {"request_id": f"r{i}", "settled_seq": 2 * i, "principal": "user:ada", "model": "m",
     "op": "chat", "app": EVIL, "prompt_tokens": 5, "completion_tokens": 3, "arrived_at": 0.0,
     "total_s": 1.0, "state": "done", "finish_reason": "stop", "error_code": None}
    for i in range(1, 6)
]  # fmt: skip


@pytest.fixture
def daemon(peer):
    """Has `ROWS`, two at a time, and fails once it was asked for more."""

    def handler(connection, request):
        after = request.params.get("after_seq", 0)
        rows = [row for row in ROWS if row["settled_seq"] > after]
        answers = {
            "usage": USAGE,
            "ledger.check": {"findings": ["row 3 is gone"], "rows": 7, "open": 1, "bytes": 2048},
            "ledger.prune": {"rows": 9, "bytes_before": 4096, "bytes_after": 1024},
            "ledger.backup": {"path": "/state/backups/l.sqlite3", "bytes": 2048},
        }
        if request.op != "usage.rows":
            connection.done(request, **answers[request.op])
        elif request.params["limit"] == 1:
            connection.done(request, rows=ROWS[:1], next_seq=2, has_more=True, last_seq=4)
        elif after >= 11:
            connection.error(request, Unavailable("that was all"))
        else:
            seq = rows[1]["settled_seq"] if len(rows) > 2 else 11
            more = len(rows) > 2
            connection.done(request, rows=rows[:2], next_seq=seq, has_more=more, last_seq=11)

    return peer(handler=handler)


def test_several_groups_and_money(daemon, ctl):
    answer = ctl("usage", "--by", "app,day", "--sort", "cost", "--limit", "2")
    assert answer.out.splitlines() == [
        "APP            DAY         REQUESTS  PROMPT  CACHED  COMPLETION  CANCELLED  FAILED   EUR  TIME",  # noqa: E501
        "=HYPERLINK(0)  2026-10-25         2      10       4          20          1       0  1.50  1.5s",  # noqa: E501
        "-              2026-10-26         2      10       4          20          1       0  1.50  1.5s",  # noqa: E501
        "total                             4      10       4          20          1       0  1.50  1.5s",  # noqa: E501
    ]
    assert answer.err == "3 more rows are not shown; see --limit\n"
    assert daemon.requests[0].params == {"by": ["app", "day"], "sort": "cost", "limit": 2}


FORGED = ["ad\nuser:root 9", "ad\tuser:root 9", "ad\u202euser:root 9", "ad\u2028user:root 9"]


@pytest.mark.parametrize("label", FORGED)
@pytest.mark.parametrize("extra", [(), ("--plot",)])
def test_no_label_forges_a_row(peer, ctl, label, extra):
    """A ledger has what was written before a daemon refused such labels."""
    usage = {"by": "app", "rows": [{"key": label, "groups": {"app": label}, **SUMS}]}
    peer(handler=lambda connection, request: connection.done(request, **usage))
    _, *rows = ctl("usage", "--by", "app", *extra).out.split("\n")
    assert [row.split()[:1] for row in rows] == [["ad\ufffduser:root"], []]


@pytest.mark.parametrize("label", FORGED)
def test_no_model_forges_a_request_that_has_ended(peer, ctl, monkeypatch, label):
    monkeypatch.setattr(usage_module, "FOLLOW_INTERVAL_S", 0)

    def handler(connection, request):
        if request.params.get("after_seq") == 2:
            connection.error(request, Unavailable("that was all"))
        else:
            row = {**ROWS[0], "model": label}
            connection.done(request, rows=[row], next_seq=2, has_more=False, last_seq=0)

    peer(handler=handler)
    lines = ctl("usage", "--follow").out.split("\n")
    assert [line.split()[3:4] for line in lines] == [["ad\ufffduser:root"], []]


def test_user_is_the_principal_and_bounds_are_times(daemon, ctl):
    ctl("usage", "--by", "user", "--since", "2026-10-25T00:00+00:00", "--until", "1h")
    assert daemon.requests[0].params == {
        "by": ["principal"], "since_at": 1792886400.0, "until_s": 3600.0
    }  # fmt: skip


def test_csv_has_no_formulas(daemon, ctl):
    answer = ctl("usage", "--by", "app,day", "--format", "csv")
    rows = list(csv.DictReader(answer.out.splitlines()))
    assert [row["app"] for row in rows] == [f"'{EVIL}", ""]
    assert (rows[0]["day"], rows[0]["cost"], rows[0]["currency"]) == (
        "2026-10-25",
        "1500000",
        "EUR",
    )


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_a_cell_that_could_be_a_formula_is_text(text):
    (line,) = csv_lines(["a"], [{"a": text}], header=False)
    assert next(csv.reader(io.StringIO(line, newline=""))) == ["'" + text]


def test_other_cells_stay_as_they_are():
    lines = list(csv_lines(["a", "b"], [{"a": -1, "b": 'x,"y'}, {"a": None}], header=True))
    assert lines == ["a,b\n", '-1,"x,""y"\n', ",\n"]


def test_a_chart_on_the_terminal(daemon, ctl):
    lines = ctl("usage", "--by", "app,day", "--sort", "cost", "--plot").out.splitlines()
    assert lines[0] == "cost, EUR by app,day"
    assert lines[1].startswith("=HYPERLINK(0) 2026-10-25 1.50 █")
    assert len(lines) == 3


def test_a_chart_as_a_file(daemon, ctl, tmp_path):
    file = tmp_path / "chart.svg"
    ctl("usage", "--by", "app,day", "--svg", str(file))
    root = ElementTree.fromstring(file.read_text())
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["completion tokens by app,day", "=HYPERLINK(0) 2026-10-25", "20",
                     " 2026-10-26", "20"]  # fmt: skip
    assert ctl("usage", "--svg", str(tmp_path / "none" / "x.svg")).status == 2


def test_any_label_makes_sound_xml():
    text = bar_chart("a<b", [("<&>\x00\x1b" + "x" * 100, 0, "0")])
    assert ElementTree.fromstring(text) is not None


def test_following_prints_each_request_once(daemon, ctl, monkeypatch):
    monkeypatch.setattr(usage_module, "FOLLOW_INTERVAL_S", 0)
    answer = ctl("usage", "--follow")
    assert [line.split()[1] for line in answer.out.splitlines()] == ["r3", "r4", "r5"]
    assert answer.out.splitlines()[0].endswith("r3  user:ada  m  chat  5  3  1.0s  stop")
    assert answer.err.startswith("openclawctl: error: that was all")
    lines = ctl("usage", "--follow", "--json").out.splitlines()
    assert [json.loads(line)["request_id"] for line in lines[:3]] == ["r3", "r4", "r5"]
    header, *rows = ctl("usage", "--follow", "--format", "csv").out.splitlines()
    assert header.startswith("request_id,")
    assert len(rows) == 3


def test_exporting(daemon, ctl, tmp_path):
    lines = ctl("ledger", "export").out.splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    assert [
        json.loads(line) for line in ctl("ledger", "export", "--after", "4").out.splitlines()
    ] == (ROWS[2:])
    file = tmp_path / "usage.csv"
    answer = ctl("ledger", "export", "--format", "csv", "--out", str(file))
    assert answer.err == f"6 lines written to {file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["request_id"] for row in rows] == [row["request_id"] for row in ROWS]
    assert rows[0]["app"] == f"'{EVIL}"
    again = ctl("ledger", "export", "--out", str(file))
    assert "cannot be created: File exists" in again.err
    assert again.status == 1


def test_check_prune_and_backup(daemon, ctl):
    answer = ctl("ledger", "check")
    assert answer.status == 1
    assert answer.out == "row 3 is gone\n1 problems found; 7 requests, 1 of them open, 2.0 KiB\n"
    assert ctl("ledger", "prune", "--older-than", "90d").out == (
        "9 requests deleted; 4.0 KiB before, 1.0 KiB now\n"
    )
    assert daemon.requests[-1].params == {"older_than_s": 7_776_000.0}
    assert ctl("ledger", "backup").out == "/state/backups/l.sqlite3 (2.0 KiB)\n"
    for command in (["check"], ["prune", "--older-than", "1d"], ["backup"]):
        assert json.loads(ctl("ledger", *command, "--json").out)
