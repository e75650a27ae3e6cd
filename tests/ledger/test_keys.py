"""Keys on disk: what comes back is what was written, and it is no secret."""

from dataclasses import replace

import pytest

from openclawctl.wire.errors import Internal
from openclawd.admission.keys import ApiKey, kept_of, make_secret
from openclawd.ledger.keys import insert_key, note_key_used, read_keys, update_key

NOW = 1_700_000_000.0
SECRETS = [make_secret(bytes([n] * 5), bytes([n + 100] * 32)) for n in range(3)]


def key(name="ci", number=0, **changes):
    made = ApiKey(
        name,
        (kept_of(SECRETS[number], now=NOW + number),),
        "user",
        "gold",
        ("smollm2", "q*"),
        created_at=NOW,
        created_by="user:root",
        expires_at=NOW + 90,
    )
    return replace(made, **changes)


def test_a_key_comes_back_as_it_was(with_ledger, path):
    async def use(ledger):
        await ledger.write(lambda database: insert_key(database, key()))
        await ledger.write(lambda database: insert_key(database, key("b", 1, expires_at=None)))

    with_ledger(use)
    assert read_keys(path) == [key("b", 1, expires_at=None), key()]


def test_a_rotation_a_use_and_a_revocation(with_ledger, path):
    rotated = replace(
        key(),
        secrets=(kept_of(SECRETS[1], now=NOW + 1), replace(key().secrets[0], ends_at=NOW + 50)),
        revoked_at=NOW + 60,
        expires_at=NOW + 99,
    )

    async def use(ledger):
        await ledger.write(lambda database: insert_key(database, key()))
        await ledger.write(lambda database: update_key(database, rotated))
        ledger.write_later(lambda database: note_key_used(database, "ci", NOW + 5))

    with_ledger(use)
    assert read_keys(path) == [replace(rotated, last_used_at=NOW + 5)]


def test_a_name_and_a_prefix_belong_to_one_key(with_ledger, path):
    async def use(ledger):
        await ledger.write(lambda database: insert_key(database, key()))
        for other in (key("ci", 1), key("other", 0)):
            with pytest.raises(Internal):
                await ledger.write(lambda database, other=other: insert_key(database, other))
        with pytest.raises(Internal, match="there is no key 'none'"):
            await ledger.write(lambda database: update_key(database, key("none", 2)))

    with_ledger(use)
    assert read_keys(path) == [key()]


def test_no_file_of_the_database_holds_a_secret(path, with_ledger):
    async def use(ledger):
        await ledger.write(lambda database: insert_key(database, key()))
        return b"".join(file.read_bytes() for file in path.parent.iterdir())

    stored = with_ledger(use) + b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert key().prefix.encode() in stored
    assert SECRETS[0].encode() not in stored
    assert SECRETS[0][13:].encode() not in stored


def test_a_digest_has_32_bytes(with_ledger):
    short = replace(key().secrets[0], digest=b"short")

    async def use(ledger):
        with pytest.raises(Internal, match="CHECK"):
            await ledger.write(lambda database: insert_key(database, key(secrets=(short,))))

    with_ledger(use)
