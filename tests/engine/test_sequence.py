"""A sequence's tokens and ends, and how another process goes on with it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openclawd.engine.sequence import Ended, Finish, Sequence, State
from openclawd.engine.stopping import OutputText

END = 0
PIECES = {1: b"a", 2: b"b", 3: "é".encode()[:1], 4: "é".encode()[1:]}


class Pieces:
    """Two of the tokens are half a character each; token 0 ends."""

    def piece(self, token: int) -> bytes:
        return PIECES.get(token, b"")

    def is_end(self, token: int) -> bool:
        return token == END


def fresh(max_tokens: int = 8) -> Sequence:
    return Sequence(1, 0, [1, 1, 1], max_tokens, text=OutputText(["aba"]))


@given(st.lists(st.sampled_from([END, *PIECES]), max_size=8), st.integers(0, 8))
def test_a_resumed_sequence_goes_on_as_the_first_would_have(tokens: list[int], cut: int) -> None:
    whole, resumed = fresh(), fresh()
    told: list[int] = []
    seen = []
    for token in tokens:
        told.append(token)
        seen.append(whole.append(token, Pieces()))
        if seen[-1][1] is not None:
            break
    replayed: list[str] = []
    ended = resumed.resume(told[:cut], Pieces(), on_text=replayed.append)
    assert replayed == [text for text, _ in seen[:cut]]
    assert [resumed.append(token, Pieces()) for token in told[cut:]] == seen[cut:]
    assert (resumed.tokens, resumed.num_prompt_tokens) == (whole.tokens, 3)
    assert resumed.text.finish() == whole.text.finish()
    has_ended = cut >= len(told) and bool(seen) and seen[-1][1] is not None
    assert (ended is not None) is has_ended
    if ended is not None:
        assert (ended.finish, ended.text) == (seen[-1][1], "")


def test_one_that_had_ended_ends_again_and_shows_nothing() -> None:
    sequence = fresh(max_tokens=2)
    assert sequence.resume([1, 2], Pieces()) == Ended(sequence, Finish.LENGTH)
    assert sequence.state is State.ENDED


def test_an_embedding_is_resumed_when_its_vector_is_there() -> None:
    sequence = Sequence(1, 0, [1, 1], max_tokens=0)
    assert sequence.resume([], Pieces()) == Ended(sequence, Finish.STOP)


def test_nothing_told_is_a_fresh_start() -> None:
    assert fresh().resume([], Pieces()) is None
