"""`openclawctl audit` against a scripted daemon: what it asks, what it prints, how it exits."""

from __future__ import annotations

import json

import pytest

from openclawctl.cli import audit

ROW = {
    "seq": 7,
    "at": 0,
    "principal": "user:ada",
    "action": "refused",
    "model": "",
    "code": "denied",
    "tokens": 0,
    "detail": {"count": 3},
}
HEAD = "9:" + "ab" * 32


@pytest.fixture
def asked(peer):
    """The parameters of each request; the answers are `answers[op]`, one after the other."""
    found = []

    def start(**answers):
        def handler(connection, request):
            found.append(request.params)
            some = answers[request.op.replace(".", "_")]
            connection.done(request, **(some.pop(0) if len(some) > 1 else some[0]))

        peer(handler=handler)
        return found

    return start


def test_rows_as_a_table(asked, ctl):
    found = asked(audit=[{"rows": [ROW], "head": HEAD}])
    answer = ctl("audit", "--since", "1h", "--principal", "user:ada", "--action", "refused")
    header, line = answer.out.splitlines()
    assert header.split() == ["ROW", "TIME", *audit._HEADER[2:]]
    assert line.split()[3:] == ["user:ada", "refused", "-", "denied", "0", '{"count":', "3}"]
    assert found == [
        {"since_s": 3600.0, "principal": "user:ada", "action": "refused", "limit": 100}
    ]


def test_nothing_found(asked, ctl):
    asked(audit=[{"rows": [], "head": HEAD}])
    assert ctl("audit").out == "no such rows\n"


def test_json(asked, ctl):
    asked(audit=[{"rows": [ROW], "head": HEAD}])
    assert json.loads(ctl("audit", "--json").out) == {"rows": [ROW], "head": HEAD}


@pytest.mark.parametrize("is_json", [True, False])
def test_following_goes_on_behind_the_last_row(asked, ctl, monkeypatch, is_json):
    """The scripted daemon's third answer is a failure, which ends it."""
    monkeypatch.setattr(audit, "FOLLOW_INTERVAL_S", 0.0)
    newer = {**ROW, "seq": 12}
    none = {"rows": [], "head": HEAD}
    found = asked(audit=[{"rows": [ROW], "head": HEAD}, none, {"rows": [newer]}, {"rows": 1}])
    arguments = ["audit", "--follow", "--action", "refused", *(["--json"] if is_json else [])]
    with pytest.raises(TypeError):  # the daemon that sends a number is none of ours
        ctl(*arguments)
    assert [params.get("after_seq") for params in found] == [None, 9, 9, 12]
    assert all(params["action"] == "refused" for params in found)


def test_verify(asked, ctl):
    good = {"valid": True, "rows": 9, "head": HEAD, "too_old": ["the given head"]}
    found = asked(audit_verify=[good])
    answer = ctl("audit", "verify", "--head", HEAD)
    assert answer.status == 0
    assert answer.out == f"9 rows are as they were written\nhead: {HEAD}\n"
    assert answer.err == "the given head is of rows that were pruned; it could not be compared\n"
    assert found == [{"head": HEAD}]


def test_verify_of_a_broken_one(asked, ctl):
    bad = {"valid": False, "rows": 2, "bad_seq": 3, "problem": "row 3 is missing"}
    asked(audit_verify=[bad])
    answer = ctl("audit", "verify")
    assert (answer.status, answer.out) == (1, "row 3: row 3 is missing\n")
    answer = ctl("audit", "verify", "--json")
    assert (answer.status, json.loads(answer.out)) == (1, bad)


def test_a_head_that_is_none(ctl):
    answer = ctl("audit", "verify", "--head", "12")
    assert answer.status == 2
    assert "'head' is '12'; it must be SEQ:MAC" in answer.err
