"""Where the audit's key comes from, and what a MAC covers."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawctl.wire.errors import Unavailable
from openclawd.ledger.audit_key import AuditKey, Head, load_audit_key, parse_head

VALUES = (1, 2, "user:alice", None, None, "", "load", "m", "", 0, b"\x00\x01", "{}")


@pytest.fixture
def credentials(tmp_path):
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "audit-key").write_bytes(b"c" * 32)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


def same(one, other):
    return one.mac(b"", VALUES) == other.mac(b"", VALUES)


def test_the_credential_wins_and_no_file_is_made(credentials, tmp_path):
    key = load_audit_key(credentials, tmp_path)
    assert key.origin == "credential"
    assert same(key, AuditKey(b"c" * 32, origin="credential"))
    assert not (tmp_path / "audit.key").exists()


def test_without_one_a_private_file_is_made_once(tmp_path):
    first = load_audit_key({"CREDENTIALS_DIRECTORY": str(tmp_path)}, tmp_path)
    file = tmp_path / "audit.key"
    assert first.origin == "file"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert same(first, load_audit_key({}, tmp_path))
    file.unlink()
    assert not same(first, load_audit_key({}, tmp_path))
    assert [each.name for each in tmp_path.iterdir()] == ["audit.key"]


@pytest.mark.parametrize("secret", [b"", b"x" * 31, b"x" * 5000])
def test_a_key_that_is_none_is_refused(credentials, tmp_path, secret):
    (tmp_path / "credentials" / "audit-key").write_bytes(secret)
    with pytest.raises(Unavailable, match=r"credentials/audit-key has \d+ bytes; 32 to 4096"):
        load_audit_key(credentials, tmp_path)


def test_a_state_directory_that_is_missing_is_told(tmp_path):
    with pytest.raises(Unavailable, match="cannot be made: No such file or directory"):
        load_audit_key({}, tmp_path / "none")


scalars = st.none() | st.integers() | st.text() | st.binary()
rows = st.lists(scalars, max_size=5)


@given(rows, rows, st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_different_rows_or_predecessors_have_different_macs(one, other, before, before_other):
    key = AuditKey(b"k" * 32, origin="file")
    is_same = (before, one) == (before_other, other)
    assert (key.mac(before, one) == key.mac(before_other, other)) == is_same


def test_bytes_are_not_the_text_of_their_digits():
    key = AuditKey(b"k" * 32, origin="file")
    assert key.mac(b"", [b"\xab"]) != key.mac(b"", ["ab"])
    assert key.mac(b"", [b"\xab"]) != key.mac(b"", ['{"hex":"ab"}'])


def test_the_journals_text_of_a_head():
    head = Head(12, b"\xab" * 32)
    assert str(head) == "12:" + "ab" * 32
    assert parse_head(str(head)) == head
    for wrong in ("", "12", "x:ab", "-1:ab", "1:xy"):
        with pytest.raises(ValueError, match="SEQ:MAC"):
            parse_head(wrong)
