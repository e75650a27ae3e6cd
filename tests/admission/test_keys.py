"""API keys: their form, which are good, and in which words the others are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawctl.wire.errors import Denied
from openclawd.admission.identity import Policy
from openclawd.admission.keys import ApiKey, KeyRegistry, KeySecret, kept_of, make_secret
from openclawd.admission.roles import USER

NOW = 1_700_000_000.0


def secret(number: int) -> str:
    return make_secret(bytes([number] * 5), bytes([number] * 32))


def key(name: str, *numbers: int, **changes: object) -> ApiKey:
    secrets = tuple(kept_of(secret(number), now=NOW) for number in numbers)
    made = ApiKey(name, secrets, "user", "gold", ("a*",), created_at=NOW, created_by="user:root")
    return replace(made, **changes)


def refusal(registry: KeyRegistry, text: str, *, now: float = NOW) -> str:
    with pytest.raises(Denied) as caught:
        registry.prefix_of(text, now=now)
    assert text == "" or text not in str(caught.value)
    return caught.value.message


@given(st.binary(min_size=5, max_size=5), st.binary(min_size=32, max_size=32))
def test_a_key_has_8_characters_to_show_and_43_that_are_not_kept(
    visible: bytes, hidden: bytes
) -> None:
    text = make_secret(visible, hidden)
    start, prefix, rest = text.split("_", 2)
    assert (start, len(prefix), len(rest)) == ("ocl", 8, 43)
    kept = kept_of(text, now=NOW)
    assert kept.prefix == f"ocl_{prefix}"
    assert rest.encode() not in kept.digest
    assert len(kept.digest) == 32


def test_a_good_key_makes_a_principal_of_its_own() -> None:
    registry = KeyRegistry([key("ci", 1)])
    prefix = registry.prefix_of(secret(1), now=NOW)
    found = registry.principal_of(prefix, Policy(), now=NOW)
    assert (found.name, found.role, found.tier) == ("key:ci", USER, "gold")
    assert (found.key, found.groups, found.models) == ("ci", (), ("a*",))


def test_what_is_wrong_with_a_key_is_not_told_to_who_does_not_hold_it() -> None:
    registry = KeyRegistry(
        [key("ci", 1), key("old", 2, expires_at=NOW - 1), key("gone", 3, revoked_at=NOW)]
    )
    wrong = [secret(number)[:-2] + "zz" for number in (1, 2, 3)]
    texts = [*wrong, secret(9), "", "ocl_", "x" * 256, "\ud800", secret(1) + "A", secret(1)[:-1]]
    assert {refusal(registry, text) for text in texts} == {"the API key is not accepted"}


def test_its_holder_hears_that_it_has_expired_or_was_revoked() -> None:
    registry = KeyRegistry([key("old", 2, expires_at=NOW), key("gone", 3, revoked_at=NOW)])
    assert registry.prefix_of(secret(2), now=NOW - 1)
    assert refusal(registry, secret(2)) == "the API key 'old' has expired"
    assert refusal(registry, secret(3)) == "the API key 'gone' was revoked"


def test_two_secrets_are_good_while_a_rotation_overlaps() -> None:
    registry = KeyRegistry([key("ci", 1)])
    old = registry.prefix_of(secret(1), now=NOW)
    new = kept_of(secret(2), now=NOW)
    (before,) = key("ci", 1).secrets
    registry.put(key("ci", secrets=(new, replace(before, ends_at=NOW + 60))))
    for number in (1, 2):
        assert registry.prefix_of(secret(number), now=NOW + 59)
    assert "replaced by a newer one" in refusal(registry, secret(1), now=NOW + 60)
    with pytest.raises(Denied, match="replaced"):
        registry.check(old, now=NOW + 60)  # of a connection that is open
    registry.put(key("ci", secrets=(new,)))
    assert refusal(registry, secret(1)) == "the API key is not accepted"
    with pytest.raises(Denied, match="replaced"):
        registry.check(old, now=NOW)
    assert registry.prefix_of(secret(2), now=NOW + 61)


def test_a_digest_of_zeros_is_nobodys() -> None:
    """What unknown prefixes are compared with is no way in."""
    registry = KeyRegistry([key("ci", secrets=(KeySecret("ocl_aaaaaaaa", bytes(32), NOW),))])
    assert refusal(registry, "ocl_aaaaaaaa_" + "A" * 43) == "the API key is not accepted"


def test_a_key_with_a_role_that_is_configured_no_more() -> None:
    registry = KeyRegistry([key("ci", 1, role="dbas")])
    prefix = registry.prefix_of(secret(1), now=NOW)
    with pytest.raises(Denied, match="has the role 'dbas', which is not configured now"):
        registry.principal_of(prefix, Policy(), now=NOW)


def test_a_use_is_noted_once_a_minute() -> None:
    registry = KeyRegistry([key("ci", 1)])
    prefix = registry.prefix_of(secret(1), now=NOW)
    noted = [registry.note_use(prefix, now=NOW + s) for s in (0, 1, 59, 60, 61, 119, 121)]
    assert noted == ["ci", None, None, "ci", None, None, "ci"]
    found = registry.get("ci")
    assert found is not None
    assert found.last_used_at == NOW + 121
    assert registry.prefix_of(secret(1), now=NOW)  # what was noted changes nothing else
