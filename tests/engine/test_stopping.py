"""Text from bytes: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclawd.engine.stopping import OutputText

TEXTS = st.text(alphabet="ab \né漢🙂", max_size=40)
STOPS = st.lists(st.text(alphabet="ab é", min_size=1, max_size=4), max_size=3)


def feed_all(text: OutputText, pieces: list[bytes]) -> list[str]:
    return [*(text.feed(piece) for piece in pieces), text.finish()]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def first_end(text: str, stops: list[str]) -> str:
    """What must be shown, said the slow way: add one character at a time until a stop is there."""
    for length in range(len(text) + 1):
        found = [text[:length].find(stop) for stop in stops if stop in text[:length]]
        if found:
            return text[: min(found)]
    return text


@given(TEXTS, STOPS, st.lists(st.integers(0, 200), max_size=20))
def test_cutting_the_bytes_anywhere_gives_the_same_text(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    output = OutputText(stops)
    shown = "".join(feed_all(output, cut(text.encode(), cuts)))
    assert shown == first_end(text, stops)
    assert output.has_stopped == any(stop in text for stop in stops)


@given(TEXTS, STOPS, st.lists(st.integers(0, 200), max_size=20))
def test_what_is_shown_is_never_taken_back(text: str, stops: list[str], cuts: list[int]) -> None:
    wanted = first_end(text, stops)
    shown = ""
    for part in feed_all(OutputText(stops), cut(text.encode(), cuts)):
        shown += part
        assert wanted.startswith(shown)


def test_half_a_character_waits_for_its_other_half() -> None:
    text = OutputText()
    smile = "🙂".encode()
    assert [text.feed(smile[:1]), text.feed(smile[1:3]), text.feed(smile[3:])] == ["", "", "🙂"]


def test_a_character_that_is_never_completed_is_dropped() -> None:
    text = OutputText()
    assert text.feed(b"ok " + "漢".encode()[:2]) == "ok "
    assert text.finish() == ""


def test_bytes_that_cannot_be_text_become_a_replacement_character() -> None:
    assert OutputText().feed(b"a\xffb") == "a�b"


def test_the_start_of_a_stop_string_is_held_back_until_it_is_decided() -> None:
    text = OutputText(["END"])
    assert [text.feed(b"the E"), text.feed(b"N"), text.feed(b"T")] == ["the ", "", "ENT"]
    assert [text.feed(b" EN"), text.feed(b"D more")] == [" ", ""]
    assert text.has_stopped
    assert text.feed(b"even more") == ""
    assert text.finish() == ""


def test_what_was_held_back_is_shown_at_the_end_if_it_was_not_a_stop() -> None:
    text = OutputText(["\n\n"])
    assert text.feed(b"line\n") == "line"
    assert text.finish() == "\n"
    assert not text.has_stopped


@pytest.mark.parametrize("stops", [["abcd", "bc"], ["bc", "abcd"]])
def test_of_two_stop_strings_the_one_that_is_complete_first_counts(stops: list[str]) -> None:
    assert OutputText(stops).feed(b"abcd") == "a"


def test_what_came_while_it_might_not_stop_is_part_of_no_stop_string() -> None:
    text = OutputText(["END"])
    assert text.feed(b"END E", may_stop=False) == "END E"
    assert [text.feed(b"ND "), text.feed(b"END")] == ["ND ", ""]
    assert text.has_stopped


def test_an_empty_stop_string_is_a_bug_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        OutputText([""])
