"""The helper as a process, against a hub that serves, cuts, stalls and lies."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
import pytest
from fetch.server import COMMIT, gguf

from openclawctl.wire.errors import InvalidRequest
from openclawd.fetch.messages import decode_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from fetch.conftest import Helper
    from fetch.server import Hub

    Ask = Callable[..., dict[str, Any]]
    StartHub = Callable[..., Hub]
    Start = Callable[..., Helper]

FILE = "tiny.Q4_K_M.gguf"
DATA = gguf(700_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
CERTIFICATE = Path(__file__).with_name("localhost.pem")
CERTIFICATE_HASH = "3fc5ecc2.0"


def pull(hub: Hub, source: str = "org/model", **more: Any) -> dict[str, Any]:
    return {"type": "pull", "source": source, "endpoint": hub.url, "max_bytes": 10**9, **more}


def visible(folder: Path) -> dict[str, bytes]:
    """Every file that is not in a hidden folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.parts)
    }


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def test_one_file_of_a_repository(ask: Ask, hub: StartHub, models: Path) -> None:
    server = hub({FILE: DATA, "README.md": b"x", "mmproj-f16.gguf": gguf(100)})
    reply = ask(**pull(server))
    assert reply == {
        "type": "done",
        "result": {
            "name": "tiny.Q4_K_M",
            "path": str(models / FILE),
            "source": f"org/model@{COMMIT[:12]}",
            "files": 1,
            "bytes": len(DATA),
            "sha256": SHA256,
            "verified": True,
            "new": True,
        },
    }
    assert visible(models) == {FILE: DATA}
    assert [path.name for path in (models / ".fetch").iterdir()] == ["checksums"]
    assert (models / FILE).stat().st_mode & 0o777 == 0o640 & ~_umask()
    again = ask(**pull(server))
    assert (again["result"]["new"], again["result"]["sha256"]) == (False, SHA256)
    assert len([path for path, _ in server.requests if "/resolve/" in path]) == 1


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


@pytest.mark.parametrize("pattern", ["tiny.Q8_0.gguf", "q8_0", "*Q8*", "Q8_0"])
def test_a_file_is_chosen(ask: Ask, hub: StartHub, models: Path, pattern: str) -> None:
    server = hub({FILE: DATA, "tiny.Q8_0.gguf": gguf(1000, 2)})
    assert ask(**pull(server, f"org/model:{pattern}"))["result"]["name"] == "tiny.Q8_0"
    assert list(visible(models)) == ["tiny.Q8_0.gguf"]


@pytest.mark.parametrize(
    ("files", "source", "code", "words"),
    [
        ([FILE, "tiny.Q8_0.gguf"], "org/model", "invalid-request", "2 files that fit"),
        ([FILE], "org/model:Q5", "not-found", "no GGUF file of org/model fits 'Q5'"),
        (["a.md"], "org/model", "unsupported", "holds no model"),
        (["config.json", "pytorch_model.bin"], "org/model", "unsupported", "is a pickle"),
        (["pytorch_model.bin"], "org/model:pytorch_model.bin", "unsupported", "is a pickle"),
        (["run.py"], "org/model:run.py", "unsupported", "neither a GGUF nor a safetensors"),
        (["m-00001-of-00002.gguf"], "org/model", "unavailable", "has 1 of the 2 parts"),
        ([FILE], "../x", "invalid-request", "is neither REPO"),
        ([FILE], "org/none", "not-found", "answers 404"),
        (["../../tiny.gguf"], "org/model", "unsupported", "not one that is written to disk"),
        (["/etc/tiny.gguf"], "org/model", "unsupported", "not one that is written to disk"),
        ([".hidden/x.gguf"], "org/model", "unsupported", "not one that is written to disk"),
    ],
)
def test_what_is_not_fetched(
    ask: Ask, hub: StartHub, models: Path, files: list[str], source: str, code: str, words: str
) -> None:
    server = hub({path: gguf(100) for path in files})
    reply = ask(**pull(server, source))
    assert (reply["type"], reply.get("code")) == ("error", code)
    assert words in reply["message"]
    assert visible(models) == {}


def safetensors(num_bytes: int) -> bytes:
    return struct.pack("<Q", 2) + b"{}" + bytes(num_bytes)


WHOLE = {
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "model.safetensors": safetensors(5000),
    "1_Pooling/config.json": b"{}",
}
BESIDE = {
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"import os",
    "onnx/config.json": b"{}",
    "consolidated.safetensors": safetensors(1),
    "README.md": b"",
}


def test_a_whole_model_becomes_a_folder(ask: Ask, hub: StartHub, models: Path) -> None:
    server = hub({**WHOLE, **BESIDE})
    result = ask(**pull(server))["result"]
    assert (result["name"], result["files"], result["verified"]) == ("model", 4, True)
    assert visible(models / "model") == WHOLE
    assert ask(**pull(server))["result"]["new"] is False
    damaged = models / "model" / "model.safetensors"
    assert ask(type="verify", name="model")["result"]["damaged"] == []
    status = damaged.stat()
    damaged.write_bytes(safetensors(4999) + b"!")
    os.utime(damaged, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ask(type="verify", name="model")["result"]["damaged"] == ["model.safetensors"]


def test_a_split_model_becomes_a_folder(ask: Ask, hub: StartHub, models: Path) -> None:
    files = {f"big-0000{n}-of-00002.gguf": gguf(3000, n) for n in (1, 2)}
    server = hub({**files, FILE: DATA})
    result = ask(**pull(server, "org/model:big-00001-of-00002.gguf"))["result"]
    assert (result["name"], result["files"]) == ("big", 2)
    assert visible(models / "big") == files


# ---- addresses ----


def test_an_address_needs_a_checksum(ask: Ask, hub: StartHub, models: Path) -> None:
    server = hub({FILE: DATA})
    url = f"{server.url}/{FILE}?secret=x"
    reply = ask(**pull(server, url))
    assert "nobody says what the checksum" in reply["message"]
    assert "secret" not in json.dumps(reply)
    reply = ask(**pull(server, url, sha256=SHA256, name="mine"))
    assert reply["result"]["verified"] is True
    assert visible(models) == {"mine.gguf": DATA}
    assert ask(**pull(server, url, unverified=True, name="b"))["result"]["verified"] is False


def test_another_model_is_replaced_only_if_that_was_said(
    ask: Ask, hub: StartHub, models: Path
) -> None:
    models.mkdir()
    (models / FILE).write_bytes(b"mine")
    server = hub({FILE: DATA})
    assert "--replace" in ask(**pull(server))["hint"]
    assert visible(models) == {FILE: b"mine"}
    assert ask(**pull(server, replace=True))["type"] == "done"
    assert visible(models) == {FILE: DATA}


@pytest.mark.parametrize(
    "url",
    ["http://example.org/a.gguf", "ftp://example.org/a.gguf", "file:///etc/a.gguf",
     "https://user:secret@example.org/a.gguf", "https:///a.gguf", "http://[::/a.gguf"],
)  # fmt: skip
def test_addresses_that_are_not_asked(ask: Ask, hub: StartHub, models: Path, url: str) -> None:
    reply = ask(**pull(hub({}), url, unverified=True))
    assert reply["code"] == "invalid-request"
    assert "secret" not in json.dumps(reply)
    assert visible(models) == {}


def test_a_redirect_is_followed_without_the_token(ask: Ask, hub: StartHub) -> None:
    store = hub({FILE: DATA})
    server = hub({FILE: DATA}, redirects_to=f"{store.url}/elsewhere")
    assert ask({"token": "hf_secret"}, **pull(server))["type"] == "done"
    assert [headers.get("Authorization") for _, headers in server.requests] == [
        "Bearer hf_secret",
        "Bearer hf_secret",
    ]
    assert [headers.get("Authorization") for _, headers in store.requests] == [None]


def test_a_redirect_to_plain_http_elsewhere_is_refused(ask: Ask, hub: StartHub) -> None:
    server = hub({FILE: DATA}, redirects_to="http://192.0.2.1")
    assert "is not an https address" in ask(**pull(server))["message"]


def test_a_certificate_that_this_machine_trusts(
    ask: Ask, hub: StartHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the system's file or folder, where it has the name that OpenSSL looks for: not only of the
    list that httpx brings."""
    server = hub({FILE: DATA}, certificate=CERTIFICATE)
    shutil.copy(CERTIFICATE, tmp_path / CERTIFICATE_HASH)
    for file, folder in ((CERTIFICATE, ""), (certifi.where(), tmp_path)):
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        monkeypatch.setenv("SSL_CERT_DIR", str(folder))
        assert ask(**pull(server))["type"] == "done"


def test_a_certificate_that_nobody_trusts(ask: Ask, hub: StartHub, models: Path) -> None:
    """Asking again would not help, so it is not tried."""
    server = hub({FILE: DATA}, certificate=CERTIFICATE)
    reply = ask({"first_pause_s": 60.0}, **pull(server))
    assert reply["code"] == "unavailable"
    assert f"the certificate of {server.url}/api/models/org/model" in reply["message"]
    assert "is not trusted here: self-signed certificate" in reply["message"]
    assert "update-ca-certificates" in reply["hint"]
    assert visible(models) == {}


# ---- cuts, stalls and lies ----


def test_a_server_that_cuts(ask: Ask, hub: StartHub, models: Path) -> None:
    server = hub({FILE: DATA}, cuts=[1000, 300_000, 16_384])
    assert ask(**pull(server))["result"]["sha256"] == SHA256
    assert visible(models) == {FILE: DATA}
    ranges = [headers.get("Range") for path, headers in server.requests if "/resolve/" in path]
    assert ranges[0] is None
    assert all(ranges[1:])


def test_a_server_that_cuts_and_knows_no_ranges(ask: Ask, hub: StartHub, models: Path) -> None:
    server = hub({FILE: DATA}, cuts=[1000, 300_000], knows_ranges=False)
    assert ask(**pull(server))["type"] == "done"
    assert visible(models) == {FILE: DATA}


def test_a_server_that_stalls_is_left(ask: Ask, hub: StartHub, models: Path) -> None:
    server = hub({FILE: DATA}, cuts=[200_000], stalls=True)
    assert ask({"silence_s": 0.3}, **pull(server))["type"] == "done"
    assert visible(models) == {FILE: DATA}


def test_a_server_that_stalls_for_ever(ask: Ask, hub: StartHub, models: Path) -> None:
    server = hub({FILE: DATA}, cuts=[0] * 20, stalls=True)
    server.behaviour.cuts[0] = 200_000
    reply = ask({"silence_s": 0.2}, **pull(server))
    assert "the server has stalled; 195.3 KiB of 683.6 KiB are there" in reply["message"]
    assert "goes on from there" in reply["hint"]
    assert visible(models) == {}
    server.behaviour.cuts.clear()
    assert ask(**pull(server))["type"] == "done"
    assert server.requests[-1][1]["Range"] == "bytes=200000-"


def test_a_server_that_is_down_for_a_moment(ask: Ask, hub: StartHub) -> None:
    assert ask(**pull(hub({FILE: DATA}, statuses=[503, 429])))["type"] == "done"


@pytest.mark.parametrize(
    ("lie", "code", "words"),
    [
        ({"sends": lambda path, data: data[:-1] + b"?"}, "unavailable", "not what was announced"),
        ({"sends": lambda path, data: gguf(len(data), 9)}, "unavailable", "not what was announced"),
        ({"sends": lambda path, data: b"<html>" * 200_000}, "unavailable", "were announced"),
        ({"sends": lambda path, data: data[: len(data) // 2]}, "unavailable", "were announced"),
        (
            {"sends": lambda path, data: b"<html>" + data[6:]},
            "unavailable",
            "no GGUF file: it begins with b'<htm'",
        ),
        ({"sends": lambda path, data: data * 9, "says_length": lambda length: None},
         "unavailable", "has more than 700000 bytes, and 700000 were announced"),
        ({"headers": {"Content-Encoding": "gzip"}}, "unavailable", "compressed"),
        ({"statuses": [403]}, "denied", "answers 403"),
        ({"statuses": [500] * 9}, "unavailable", "answers 500"),
    ],
)  # fmt: skip
def test_a_server_that_lies(
    ask: Ask, hub: StartHub, models: Path, lie: dict[str, Any], code: str, words: str
) -> None:
    server = hub({FILE: DATA}, **lie)
    reply = ask(**pull(server))
    assert (reply["type"], reply["code"]) == ("error", code)
    assert words in reply["message"]
    assert visible(models) == {}


def test_a_file_that_changed_between_the_halves(ask: Ask, hub: StartHub, models: Path) -> None:
    """The second half is of another file than the first: it is fetched anew as a whole."""
    server = hub({FILE: DATA}, cuts=[0] * 20)
    server.behaviour.cuts[0] = 200_000
    server.behaviour.sends = lambda path, data: gguf(len(data), 2)
    assert ask(**pull(server))["type"] == "error"
    server.behaviour.cuts.clear()
    server.behaviour.sends = lambda path, data: data
    assert ask(**pull(server))["type"] == "done"
    assert visible(models) == {FILE: DATA}


def test_a_listing_that_is_none(ask: Ask, hub: StartHub) -> None:
    server = hub({FILE: DATA})
    for listing in ({}, {"sha": "x", "siblings": []}, {"sha": COMMIT, "siblings": [{}]}, []):
        server.listing = listing  # type: ignore[assignment]
        assert "no listing of a repository" in ask(**pull(server))["message"]


def test_a_hub_that_knows_no_checksum(ask: Ask, hub: StartHub, models: Path) -> None:
    server = hub({FILE: DATA})
    for key in ("lfs", "blobId"):
        del server.listing["siblings"][0][key]
    assert "does not say what the checksum" in ask(**pull(server))["message"]
    assert ask(**pull(server, sha256=SHA256))["result"]["verified"] is True


def test_limits_of_size(ask: Ask, hub: StartHub, models: Path) -> None:
    server = hub({FILE: DATA})
    reply = ask(**pull(server, max_bytes=600_000))
    assert (reply["code"], visible(models)) == ("limit-exceeded", {})
    assert not [path for path, _ in server.requests if "/resolve/" in path]
    reply = ask(**pull(server, f"{server.url}/{FILE}", unverified=True, max_bytes=600_000))
    assert (reply["code"], visible(models)) == ("limit-exceeded", {})


def test_room_on_the_disk_is_asked_for_first(ask: Ask, hub: StartHub, models: Path) -> None:
    server = hub({FILE: DATA})
    server.listing["siblings"][0]["size"] = 2**60
    reply = ask(**pull(server, max_bytes=2**61))
    assert "are to come" in reply["message"]
    assert not [path for path, _ in server.requests if "/resolve/" in path]


# ---- kills ----


def test_killed_anywhere_it_ends_in_a_verified_file_or_none(
    start: Start, hub: StartHub, models: Path
) -> None:
    """Acceptance: ten kills at random points, in the middle of the bytes and after the last of
    them; after each there is no file, or a whole one."""
    server = hub({FILE: DATA})
    points = random.Random(8)
    kills = sorted(points.randrange(len(DATA)) for _ in range(7)) + [len(DATA)] * 3
    for kill_at in kills:
        helper = start(**pull(server))
        server.on_chunk = _kill_at(helper, kill_at - _part_size(models), server.num_bytes_sent)
        helper.read()
        helper.end()
        assert visible(models) in ({}, {FILE: DATA}), f"killed at {kill_at}"
        if (models / FILE).exists():  # the kill came too late: begin again
            (models / FILE).unlink()
    server.on_chunk = lambda total: None
    helper = start(**pull(server))
    assert helper.read()["result"]["sha256"] == SHA256
    assert visible(models) == {FILE: DATA}
    assert [path.name for path in (models / ".fetch").iterdir()] == ["checksums"]


def _kill_at(helper: Helper, num_bytes: int, sent_before: int) -> Callable[[int], object]:
    """Kill it when the server has sent it so many bytes."""

    def look(total: int) -> None:
        if total - sent_before >= num_bytes:
            helper.process.kill()

    return look


def _part_size(models: Path) -> int:
    """What an earlier helper has left: a later one asks for the rest only."""
    return sum(path.stat().st_size for path in (models / ".fetch").rglob("*.gguf.part"))


def test_when_nobody_wants_the_answer_any_more(start: Start, hub: StartHub, models: Path) -> None:
    server = hub({FILE: DATA}, cuts=[200_000], stalls=True)
    helper = start(**pull(server))
    helper.socket.recv(65536)
    helper.socket.close()
    assert helper.process.wait(10) == 0
    helper.end()
    assert visible(models) == {}


def test_the_same_model_is_not_fetched_twice_at_once(start: Start, ask: Ask, hub: StartHub) -> None:
    server = hub({FILE: DATA}, cuts=[200_000], stalls=True)
    helper = start(**pull(server))
    helper.socket.recv(65536)
    server.behaviour.cuts.append(200_000)
    assert ask(**pull(server))["code"] == "overloaded"
    helper.end()


# ---- what is there ----


def test_verify_and_remove(ask: Ask, hub: StartHub, models: Path) -> None:
    ask(**pull(hub({FILE: DATA})))
    name = "tiny.Q4_K_M"
    result = ask(type="verify", name=name)["result"]
    assert (result["sha256"], result["damaged"], result["first_seen"]) == (SHA256, [], [])
    (models / "own.gguf").write_bytes(gguf(100))
    assert ask(type="verify", name="own")["result"]["first_seen"] == ["own.gguf"]
    assert ask(type="verify", name="own")["result"]["first_seen"] == []
    assert ask(type="remove", name=name)["result"] == {"name": name, "bytes": len(DATA)}
    assert list(visible(models)) == ["own.gguf"]
    assert ask(type="remove", name=name)["code"] == "not-found"


@pytest.mark.parametrize("name", ["../x", ".fetch", "", "a/b", "x" * 300, "."])
def test_names_lead_nowhere_else(ask: Ask, models: Path, name: str) -> None:
    assert ask(type="remove", name=name)["code"] == "invalid-request"


def test_a_link_is_removed_and_not_what_it_leads_to(ask: Ask, models: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "precious").write_text("x")
    models.mkdir()
    (models / "link").symlink_to(tmp_path / "own")
    assert ask(type="remove", name="link")["type"] == "done"
    assert (tmp_path / "own" / "precious").exists()


def test_a_copy_on_faster_storage(ask: Ask, hub: StartHub, models: Path, tmp_path: Path) -> None:
    ask(**pull(hub({FILE: DATA})))
    fast = tmp_path / "fast"
    copy = {"copies_folder": fast}
    reply = ask(copy, type="copy", path=str(models / FILE))
    assert reply["result"] == {"path": str(fast / FILE), "new": True}
    assert visible(fast) == {FILE: DATA}
    assert ask(copy, type="copy", path=str(models / FILE))["result"]["new"] is False
    (fast / FILE).unlink()
    status = (models / FILE).stat()
    (models / FILE).write_bytes(DATA[:-1] + b"!")
    os.utime(models / FILE, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "is damaged" in ask(copy, type="copy", path=str(models / FILE))["message"]
    assert visible(fast) == {}
    assert ask(type="copy", path=str(models / FILE))["code"] == "unsupported"


@pytest.mark.parametrize("data", [b"x", b"[]", b"{}", b'{"type": "x"}', b'{"type": 1}', b"["])
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_request(data)


# ---- the process ----


def test_the_process_tells_how_far_it_is(start: Start, hub: StartHub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_secret\n")
    server = hub({FILE: DATA})
    helper = start("--token-file", str(tmp_path / "token"), **pull(server))
    assert helper.read()["result"]["sha256"] == SHA256
    assert helper.progress[-1] == {
        "type": "progress",
        "file": FILE,
        "bytes": len(DATA),
        "total_bytes": len(DATA),
    }
    assert helper.end() == ""
    assert server.requests[0][1]["Authorization"] == "Bearer hf_secret"


def test_the_process_says_what_is_wrong(start: Start, hub: StartHub) -> None:
    helper = start(**pull(hub({}), "org/model"))
    assert helper.read()["code"] == "unsupported"
    assert "holds no model" in helper.end()
