"""The chain: whatever is done to the rows behind the daemon's back is found, and where."""

import contextlib
import shutil
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ledger.audit_story import KEY, NAMES, START, entry, forger, opened, prune, verify, write

from openclawd.ledger import audit_chain
from openclawd.ledger.audit_chain import AuditEntry
from openclawd.ledger.audit_key import AuditKey, Head
from openclawd.ledger.audit_verify import verify_audit
from openclawd.ledger.rows import RowError

NUM_ROWS = 12

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seqs = st.integers(1, NUM_ROWS)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A finished audit and its heads after every row."""
    path = tmp_path_factory.mktemp("audit") / "ledger.sqlite3"
    heads = [write(path, [entry(number)]) for number in range(1, NUM_ROWS + 1)]
    return path, heads


@pytest.fixture(scope="module")
def copied(story):
    """`with copied() as path`: the audit, to be changed."""

    class Copy:
        def __enter__(self):
            self._folder = TemporaryDirectory()
            path = Path(self._folder.name) / "ledger.sqlite3"
            shutil.copy(story[0], path)
            return path

        def __exit__(self, *_):
            self._folder.cleanup()

    return Copy


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
entries = st.builds(
    AuditEntry,
    at=st.floats(0, 1e10),
    action=texts,
    principal=texts,
    uid=st.none() | st.integers(0, 2**32 - 1),
    pid=st.none() | st.integers(0, 2**22),
    app=texts,
    model=texts,
    code=texts,
    tokens=st.integers(0, 2**53),
    request_id=st.none() | st.uuids().map(str),
    detail=st.dictionaries(texts, st.integers() | texts, max_size=3),
)


@few
@given(st.lists(st.lists(entries, max_size=4), max_size=5))
def test_every_history_verifies_and_every_head_of_it_is_found(commits):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite3"
        heads = []
        for batch in commits:  # opened anew each time, as after a restart
            with opened(path) as (database, chain):
                assert chain.mismatch is None
                with chain.transaction(database):
                    for each in batch:
                        chain.append(database, each)
                heads.append(chain.head)
        if not commits:
            write(path, [])
        verdict = verify(path, *heads)
        assert verdict.is_valid, verdict
        assert verdict.num_rows == sum(map(len, commits))


OTHER_VALUES = {
    int: st.integers(0, 2**53),
    str: texts,
    bytes: st.binary(max_size=40),
}


@few
@given(st.data())
@pytest.mark.parametrize("column", [*NAMES, "mac"])
def test_a_change_of_any_field_is_found_in_its_row(copied, column, data):
    seq = data.draw(seqs)
    with copied() as path, forger(path) as database:
        (old,) = database.execute(f"SELECT {column} FROM audit WHERE seq = ?", (seq,)).fetchone()
        new = data.draw(OTHER_VALUES[type(old)])
        assume(new != old)
        if column == "seq":
            assume(new > NUM_ROWS)
        database.execute(f"UPDATE audit SET {column} = ? WHERE seq = ?", (new, seq))
        verdict = verify(path)
    assert verdict.bad_seq == seq
    assert verdict.num_rows == seq - 1


def test_a_field_that_becomes_null_is_found(copied):
    for column in ("uid", "pid", "request_id"):
        with copied() as path, forger(path) as database:
            database.execute(f"UPDATE audit SET {column} = NULL WHERE seq = 5")
            assert verify(path).bad_seq == 5


@few
@given(st.sets(seqs, min_size=1))
def test_any_deletion_is_found_at_the_first_row_that_is_missing(copied, gone):
    with copied() as path, forger(path) as database:
        database.executemany("DELETE FROM audit WHERE seq = ?", [(seq,) for seq in gone])
        verdict = verify(path)
    assert verdict.bad_seq == min(gone)
    assert f"row{'s' if min(gone) + 1 in gone else ''} {min(gone)} " in verdict.problem


@few
@given(seqs, seqs)
def test_two_rows_that_changed_places_are_found_at_the_first(copied, one, other):
    assume(one < other)
    with copied() as path, forger(path) as database:
        swap = "UPDATE audit SET seq = ? WHERE seq = ?"
        database.executemany(swap, [(99, one), (one, other), (other, 99)])
        assert verify(path).bad_seq == one


def test_a_row_that_was_put_in_is_found(copied):
    row = f"{', '.join(NAMES[1:])}, mac"
    with copied() as path, forger(path) as database:
        database.execute("UPDATE audit SET seq = -seq WHERE seq >= 6")
        database.execute("UPDATE audit SET seq = 1 - seq WHERE seq < 0")
        database.execute(f"INSERT INTO audit (seq, {row}) SELECT 6, {row} FROM audit WHERE seq = 7")
        assert verify(path).bad_seq == 7


@few
@given(st.integers(0, NUM_ROWS - 1), st.integers(1, NUM_ROWS))
def test_a_cut_that_goes_with_an_old_head_is_found_by_the_journals_head(story, copied, kept, told):
    """Somebody keeps an old head and puts it back. The database alone cannot tell."""
    _, heads = story
    with copied() as path, forger(path) as database:
        database.execute("DELETE FROM audit WHERE seq > ?", (kept,))
        if kept:
            head = heads[kept - 1]
            database.execute(
                "UPDATE audit_head SET seq = ?, mac = ?, seal = ?",
                (head.seq, head.mac, KEY.seal(head)),
            )
        else:
            database.execute("DELETE FROM audit_head")
        assert verify(path).is_valid
        verdict = verify(path, heads[told - 1])
    assert verdict.is_valid == (told <= kept)
    if told > kept:
        assert verdict.bad_seq == kept + 1
        assert "cut off: the journal has row" in verdict.problem


def test_another_chain_of_the_same_length_is_found_by_the_journals_head(story, tmp_path):
    _, heads = story
    other = tmp_path / "ledger.sqlite3"
    write(other, [entry(number, principal="user:bob") for number in range(NUM_ROWS)])
    assert verify(other).is_valid
    verdict = verify(other, heads[3])
    assert (verdict.bad_seq, verdict.is_valid) == (4, False)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("DELETE FROM audit_head", "the head is missing"),
        ("UPDATE audit_head SET seal = x'00'", "the head is not as it was written"),
        ("UPDATE audit_head SET pruned_through = 3", "the head is not as it was written"),
        ("UPDATE audit_head SET seq = 99", "the head is not as it was written"),
    ],
)
def test_a_head_that_was_changed(copied, change, problem):
    with copied() as path, forger(path) as database:
        database.execute(change)
        verdict = verify(path)
    assert verdict.bad_seq == NUM_ROWS + 1
    assert problem in verdict.problem


def test_with_another_key_nothing_verifies(story):
    verdict = verify_audit(story[0], AuditKey(b"x" * 32, origin="file"))
    assert (verdict.bad_seq, verdict.num_rows) == (1, 0)


def test_an_empty_audit_verifies(path):
    write(path, [])
    verdict = verify(path)
    assert verdict.is_valid
    assert verdict.head == Head(0, KEY.beginning)


# ---- pruning ----


@few
@given(st.lists(st.integers(1, 4) | st.just("prune"), max_size=12), st.data())
def test_what_is_left_after_prunes_verifies_and_no_more_may_go(steps, data):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite3"
        number, heads = 0, []
        write(path, [])
        for step in steps:
            if step == "prune":
                prune(path, START + data.draw(st.integers(0, number + 2)))
                continue
            heads.append(write(path, [entry(number + i) for i in range(1, step + 1)]))
            number += step
        verdict = verify(path, *heads)
        assert verdict.is_valid, verdict
        with forger(path) as database:
            (first,) = database.execute("SELECT coalesce(min(seq), 0) FROM audit").fetchone()
            assert len(verdict.too_old) == sum(head.seq < first - 1 for head in heads)
            database.execute("DELETE FROM audit WHERE seq = ?", (first,))
        assert verify(path).is_valid == (first == 0)


def test_prune_cuts_what_is_older_and_says_so(copied, story):
    _, heads = story
    with copied() as path:
        assert prune(path, START + 5) == 4  # row n is of second n
        assert prune(path, START + 5) == 0
        with forger(path) as database:
            rows = database.execute("SELECT seq, action, detail FROM audit ORDER BY seq").fetchall()
        assert [row[0] for row in rows] == [*range(5, NUM_ROWS + 2)]
        detail = f'{{"mac":"{heads[3].mac.hex()}","pruned_through":4,"rows":4}}'
        assert rows[-1][1:] == ("checkpoint", detail)
        assert verify(path, heads[3], heads[4]).is_valid
        assert verify(path, heads[2]).too_old == ("the journal",)


def test_a_prune_of_everything_leaves_the_checkpoint(copied):
    with copied() as path:
        assert prune(path, 1e11) == NUM_ROWS
        assert prune(path, 1e11) == 1  # the checkpoint, which the next one replaces
        assert verify(path).num_rows == 1
        write(path, [entry()])
        assert verify(path).is_valid


def test_a_prune_is_done_in_pieces(copied, monkeypatch):
    monkeypatch.setattr(audit_chain, "PRUNE_ROWS", 5)
    with copied() as path:
        assert [prune(path, START + 9) for _ in range(3)] == [5, 3, 0]
        assert verify(path).is_valid


def test_a_pruned_row_that_is_put_back_is_found(copied):
    with copied() as path:
        with forger(path) as database:
            row = database.execute("SELECT * FROM audit WHERE seq = 2").fetchone()
        prune(path, START + 5)
        with forger(path) as database:
            database.execute(f"INSERT INTO audit VALUES ({','.join('?' * len(row))})", row)
        verdict = verify(path)
    assert (verdict.bad_seq, verdict.problem) == (2, "row 2 is there again, which prune had cut")


def test_a_forged_checkpoint_hides_no_cut(copied):
    with copied() as path:
        prune(path, START + 5)
        with forger(path) as database:
            (mac,) = database.execute("SELECT hex(mac) FROM audit WHERE seq = 7").fetchone()
            detail = f'{{"mac":"{mac.lower()}","pruned_through":7,"rows":4}}'
            database.execute("UPDATE audit SET detail = ? WHERE action = 'checkpoint'", (detail,))
            database.execute("DELETE FROM audit WHERE seq <= 7")
        assert verify(path).bad_seq == NUM_ROWS + 1
        with forger(path) as database:
            database.execute("UPDATE audit SET detail = '{' WHERE action = 'checkpoint'")
        assert verify(path).bad_seq == 1


# ---- the table, and the end in memory ----


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET tokens = 1 WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 1",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE seq = 3",
    ],
)
def test_by_mistake_nobody_changes_a_row(copied, statement):
    with copied() as path:
        database = sqlite3.connect(path)
        try:
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)
        finally:
            database.close()


def test_what_is_rolled_back_leaves_the_end_where_it_was(path):
    with opened(path) as (database, chain):
        with chain.transaction(database):
            chain.append(database, entry(1))
        head = chain.head
        with contextlib.suppress(ZeroDivisionError), chain.transaction(database):
            chain.append(database, entry(2))
            raise ZeroDivisionError
        assert chain.head == head
        with chain.transaction(database):
            chain.append(database, entry(3))
    assert verify(path, head).num_rows == 2


def test_the_head_is_told_every_so_many_rows_and_when_asked(path):
    told = []
    with opened(path) as (database, _):
        chain = audit_chain.AuditChain(database, KEY, told.append)
        for _ in range(2):
            with chain.transaction(database):
                for _ in range(audit_chain.HEAD_EVERY_ROWS - 1):
                    chain.append(database, entry())
        assert [head.seq for head in told] == [2 * (audit_chain.HEAD_EVERY_ROWS - 1)]
        chain.tell()
        assert len(told) == 1  # it knows already
        with chain.transaction(database):
            chain.append(database, entry())
        chain.tell()
    assert [head.seq for head in told][1:] == [2 * (audit_chain.HEAD_EVERY_ROWS - 1) + 1]
    assert verify(path, *told).is_valid


@pytest.mark.parametrize(
    ("change", "story_told", "next_seq"),
    [
        ("DELETE FROM audit WHERE seq > 9", "ends with row 9, but was left with row 12", 13),
        ("DELETE FROM audit", "ends with row 0, but was left with row 12", 13),
        ("DELETE FROM audit_head", "has rows, but no head", 13),
        ("UPDATE audit_head SET seal = x'00'", "does not fit its key", 13),
        ("UPDATE audit SET mac = zeroblob(32) WHERE seq = 12", "was left with row 12", 13),
    ],
)
def test_a_start_notices_what_happened_to_the_end_and_hides_nothing(
    copied, change, story_told, next_seq
):
    with copied() as path:
        with forger(path) as database:
            database.execute(change)
        with opened(path) as (database, chain):
            assert story_told in chain.mismatch
            with chain.transaction(database):
                chain.append(database, entry())
            assert chain.head.seq == next_seq
        # A head that was lost is written anew; rows that were lost stay lost.
        assert verify(path).is_valid == ("audit_head" in change)


def test_a_detail_has_bounds(path):
    with opened(path) as (database, chain):
        with pytest.raises(RowError, match="detail of x"), chain.transaction(database):
            chain.append(database, entry(action="x", detail={"text": "x" * 5000}))
        with chain.transaction(database):
            chain.append(database, entry(principal="half \ud800"))
    assert verify(path).num_rows == 1
