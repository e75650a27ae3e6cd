"""Which requests a rule is about."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from openclawd.admission.subjects import Match, Subject

TEXTS = st.text("ab:*?[]!.\n", max_size=6)
PATTERNS = st.lists(TEXTS, min_size=1, max_size=3).map(tuple)


@given(PATTERNS, TEXTS)
def test_a_pattern_means_what_it_means_to_fnmatch(patterns: tuple[str, ...], value: str) -> None:
    wanted = any(fnmatchcase(value, pattern) for pattern in patterns)
    assert Match(principal=patterns).fits(Subject(value)) == wanted
    assert Match(group=patterns).fits(Subject("x", groups=("none here", value))) == (
        wanted or any(fnmatchcase("none here", pattern) for pattern in patterns)
    )


def test_every_property_that_is_named_must_fit() -> None:
    match = Match(principal=("user:*",), app=("web", "mail"))
    assert match.fits(Subject("user:alice", app="mail"))
    assert not match.fits(Subject("user:alice", app="crm"))
    assert not match.fits(Subject("key:k", app="web"))
    assert Match().fits(Subject(""))
    assert not Match(group=("*",)).fits(Subject("user:alice"))


def test_what_is_compiled_is_no_part_of_what_a_match_is() -> None:
    assert Match(app=("a",)) == Match(app=("a",))
    assert hash(Match(app=("a",))) == hash(Match(app=("a",)))
    assert "_tests" not in repr(Match(app=("a",)))
