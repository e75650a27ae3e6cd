"""Guesses: where they come from, and how many are made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openclawd.engine.speculation import (
    FIRST_LENGTH,
    FIRST_REST,
    LONGEST,
    NGRAM_TOKENS,
    Guessing,
    NgramDrafter,
)


def test_text_is_expected_to_go_on_as_it_did_before() -> None:
    drafter = NgramDrafter()
    tokens = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert drafter.propose({7: (tokens, 2)}) == {7: [4, 5]}
    assert drafter.propose({7: ([*tokens, 9], 2)}) == {}


def test_the_last_time_counts() -> None:
    tokens = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3]
    assert NgramDrafter().propose({0: (tokens, 1)}) == {0: [5]}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 8))
def test_every_guess_stood_in_the_text_after_the_same_tokens(tokens: list[int], most: int) -> None:
    drafter = NgramDrafter()
    for end in range(1, len(tokens) + 1):
        known = tokens[:end]
        guesses = drafter.propose({0: (known, most)}).get(0, [])
        assert len(guesses) <= most
        run = known[-NGRAM_TOKENS:] + guesses
        starts = range(len(known) - len(run) + 1)
        assert not guesses or any(known[at : at + len(run)] == run for at in starts)


def test_a_new_owner_of_a_slot_has_another_text() -> None:
    drafter = NgramDrafter()
    drafter.propose({0: ([1, 2, 3, 4, 1, 2, 3], 1)})
    drafter.forget(0)
    drafter.forget(0)
    assert drafter.propose({0: ([5, 5, 5, 1, 2, 3], 1)}) == {}


def test_right_guesses_make_for_more() -> None:
    guessing = Guessing()
    lengths = []
    for _ in range(8):
        lengths.append(guessing.next_length())
        guessing.note(lengths[-1], lengths[-1])
    assert lengths == [min(FIRST_LENGTH * 2**i, LONGEST) for i in range(8)]
    guessing.note(64, 5)
    assert guessing.next_length() == 5
    guessing.note(5, 1)
    assert guessing.next_length() == FIRST_LENGTH


def test_one_right_guess_of_two_is_as_good_as_none() -> None:
    guessing = Guessing()
    guessing.note(2, 1)
    assert [guessing.next_length() > 0 for _ in range(FIRST_REST + 1)] == [False] * 8 + [True]
    guessing.note(2, 2)
    guessing.note(4, 1)
    assert guessing.next_length() == FIRST_LENGTH  # of more, some are


def test_wrong_guesses_become_rare() -> None:
    guessing, num_guessed = Guessing(), 0
    for _ in range(1000):
        if length := guessing.next_length():
            guessing.note(length, 0)
            num_guessed += length
    assert num_guessed == 8 * FIRST_LENGTH
    guessing.note(2, 2)
    guessing.note(4, 0)
    assert [guessing.next_length() > 0 for _ in range(FIRST_REST + 1)] == [False] * 8 + [True]
    assert (guessing.num_proposed, guessing.num_accepted) == (num_guessed + 6, 2)
