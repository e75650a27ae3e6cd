"""The file: its mode and settings, migrations with a backup, what is refused with a sentence."""

import os
import sqlite3
import stat

import pytest

from openclawctl.wire.errors import Unavailable
from openclawd.ledger.storage import MIGRATIONS, open_database, open_reader


@pytest.fixture
def opened(path):
    """Open and close again, giving what `look` saw."""

    def opened(look=lambda database: None, migrations=MIGRATIONS):
        database = open_database(path, migrations)
        try:
            return look(database)
        finally:
            database.close()

    return opened


def pragma(name):
    return lambda database: database.execute(f"PRAGMA {name}").fetchone()[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("auto_vacuum", 2),
        ("foreign_keys", 1),
        ("user_version", len(MIGRATIONS)),
    ],
)
def test_settings(opened, name, value):
    assert opened(pragma(name)) == value
    assert opened(pragma(name)) == value  # also of a database that exists


def test_nobody_else_may_read_any_of_its_files(path):
    previous = os.umask(0)
    try:
        database = open_database(path)
        database.execute("CREATE TABLE t (x)")
    finally:
        os.umask(previous)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    database.close()
    assert modes == {f"ledger.sqlite3{suffix}": 0o600 for suffix in ("", "-wal", "-shm")}


def test_a_file_with_a_wider_mode_is_closed_to_others(opened, path):
    opened()
    path.chmod(0o644)
    opened()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


NEXT = (*MIGRATIONS, ("ALTER TABLE request_rows ADD COLUMN colour INTEGER",))


def test_an_existing_database_is_copied_before_it_is_migrated(opened, path):
    row = """INSERT INTO request_rows (seq, state, arrived_ms, principal, model, op, prompt,
        request_id, reserved_ms, reserved_tokens) VALUES (1, 0, 0, 1, 1, 1, 0, 'r', 0, 0)"""
    opened(lambda database: database.execute(row))
    assert opened(pragma("user_version"), NEXT) == len(NEXT)
    assert opened(
        lambda database: database.execute("SELECT colour FROM request_rows").fetchall(), NEXT
    ) == [(None,)]
    backup = path.with_name(f"{path.name}.v{len(MIGRATIONS)}.bak")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    copy = sqlite3.connect(backup)
    assert copy.execute("SELECT count(*) FROM requests").fetchone() == (1,)
    assert copy.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    copy.close()
    assert {file.name for file in path.parent.iterdir()} == {path.name, backup.name}


def test_a_new_database_needs_no_backup(opened, path):
    opened(migrations=NEXT)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_migration_that_fails_changes_nothing(opened):
    opened()
    broken = (*MIGRATIONS, ("ALTER TABLE request_rows ADD COLUMN colour INTEGER", "NONSENSE"))
    with pytest.raises(Unavailable, match="NONSENSE"):
        opened(migrations=broken)
    assert opened(pragma("user_version")) == len(MIGRATIONS)
    columns = opened(
        lambda database: database.execute("PRAGMA table_info(request_rows)").fetchall()
    )
    assert "colour" not in {column[1] for column in columns}


def test_a_database_of_a_newer_version_is_refused(opened):
    opened(migrations=NEXT)
    with pytest.raises(Unavailable) as caught:
        opened()
    assert f"has schema {len(NEXT)}; this openclawd knows up to {len(MIGRATIONS)}" in str(
        caught.value
    )
    assert "install that version again" in caught.value.hint


def test_another_programs_database_is_refused(opened, path):
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE notes (text)")
    other.close()
    with pytest.raises(Unavailable, match="not an openclawd ledger"):
        opened()


def test_a_file_that_is_no_database(opened, path):
    path.write_bytes(b"x" * 8192)
    with pytest.raises(Unavailable) as caught:
        opened()
    assert str(path) in caught.value.message
    assert "restore a backup" in caught.value.hint


def test_a_damaged_database(opened, path):
    opened()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3000)
    with pytest.raises(Unavailable, match="malformed"):
        opened(lambda database: open_database(path))


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(Unavailable, match="No such file or directory"):
        open_database(tmp_path / "none" / "ledger.sqlite3")


def test_a_link_is_not_followed(tmp_path, path):
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        open_database(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_reader_cannot_write(opened, path):
    def look(_):
        reader = open_reader(path)
        try:
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.execute("DELETE FROM request_rows")
        finally:
            reader.close()

    opened(look)
