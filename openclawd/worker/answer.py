"""From the text that a model writes to what it means: reasoning, content and tool calls.

Owns the marks between these parts as they come in. Pure: text in, pieces out. Which marks a model
writes, and how it writes a call, others say.

Invariants: no text is lost but the marks and the blank space beside them; what has been told after
some text depends on that text alone, not on how it was cut.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call as a model wrote it; `arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallMarks:
    """What begins and ends a model's tool calls; those of `first` only where the answer begins.
    Without a `close` they go on to the end. `parse` takes what is between, with `keeps_first` the
    mark of `first` included, and whether it was closed; it gives None for what are no calls."""

    opens: tuple[str, ...]
    first: tuple[str, ...]
    close: str
    parse: Callable[[str, bool], list[WrittenCall] | None]
    keeps_first: bool = False


@dataclass(frozen=True, slots=True)
class AnswerMarks:
    """What stands between the parts of a model's answers. Reasoning comes first if at all: its mark
    in the middle of a text is text. `reasoning_again` opens it, too. `dropped` mean nothing."""

    reasoning_open: str = ""
    reasoning_close: str = ""
    reasoning_again: str = ""
    dropped: tuple[str, ...] = ()
    calls: CallMarks | None = None


@dataclass(slots=True)
class Pieces:
    """What some more text has brought."""

    content: str = ""
    reasoning: str = ""
    calls: list[WrittenCall] = field(default_factory=list)

    def add(self, later: Pieces) -> None:
        self.content += later.content
        self.reasoning += later.reasoning
        self.calls += later.calls


class _Part(enum.Enum):
    START = "start"
    REASONING = "reasoning"
    CONTENT = "content"
    CALLS = "calls"


class AnswerParser:
    """The answer of one sequence. `is_reasoning`: its prompt ends with the mark that opens it."""

    def __init__(self, marks: AnswerMarks, *, is_reasoning: bool) -> None:
        self._calls = marks.calls
        self._ways = _ways(marks)
        self._part = _Part.REASONING if is_reasoning else _Part.START
        self._is_after_mark = is_reasoning
        self._held = ""
        self._blanks = ""  # the end of what was told: dropped if a mark comes next
        self._opened = ""

    def feed(self, text: str) -> Pieces:
        """What can be told now that this text came."""
        self._held += text
        pieces = Pieces()
        while self._leave_start() if self._part is _Part.START else self._take_mark(pieces):
            pass
        if self._part in (_Part.REASONING, _Part.CONTENT):
            num_undecided = _num_undecided(self._held, self._ways[self._part])
            self._tell(pieces, len(self._held) - num_undecided)
        return pieces

    def finish(self) -> Pieces:
        """What was held back, now that nothing more comes."""
        pieces = Pieces()
        if self._part is _Part.CALLS:
            self._end_calls(pieces, self._held, close="")
            self._held = ""
        elif self._part is _Part.START:
            self._part = _Part.CONTENT
        self._tell(pieces, len(self._held))
        self._put(pieces, self._blanks)
        self._blanks = ""
        return pieces

    # ---- marks ----

    def _leave_start(self) -> bool:
        """Go on to what comes first, once that is sure. False while nothing is."""
        text = self._held.lstrip()
        marks = self._ways[_Part.START]
        for mark, part in marks.items():
            if text.startswith(mark):
                self._held = text[len(mark) :]
                self._enter(part, mark)
                return True
        if not text or any(mark.startswith(text) for mark in marks):
            return False
        self._part = _Part.CONTENT
        return True

    def _take_mark(self, pieces: Pieces) -> bool:
        """Go past the first mark of this part that is here whole. False when there is none."""
        ways = self._ways[self._part]
        found = [(self._held.find(mark), mark) for mark in ways if mark in self._held]
        if not found:
            return False
        start, mark = min(found)
        if self._part is _Part.CALLS:
            self._end_calls(pieces, self._held[:start], close=mark)
            self._held = self._held[start + len(mark) :]
        else:
            self._tell(pieces, start)
            self._held = self._held[len(mark) :]
            self._enter(ways[mark], mark)
        return True

    def _enter(self, part: _Part, mark: str) -> None:
        self._opened = self._blanks + mark
        self._part, self._blanks, self._is_after_mark = part, "", True
        if self._calls is not None and self._calls.keeps_first and mark in self._calls.first:
            self._held, self._opened = mark + self._held, self._opened.removesuffix(mark)

    def _end_calls(self, pieces: Pieces, body: str, *, close: str) -> None:
        """What cannot be read as calls was content."""
        assert self._calls is not None
        self._part = _Part.CONTENT
        is_closed = close == self._calls.close
        calls = self._calls.parse(body, is_closed)
        self._is_after_mark = calls is not None
        if calls is None:
            self._put(pieces, self._opened + body + close)
        else:
            pieces.calls += calls

    # ---- text ----

    def _tell(self, pieces: Pieces, num_chars: int) -> None:
        """The first characters held belong to the part we are in. Blanks at their end wait."""
        text, self._held = self._held[:num_chars], self._held[num_chars:]
        if self._is_after_mark:
            text = text.lstrip()
            self._is_after_mark = not text
        text = self._blanks + text
        solid = text.rstrip()
        self._blanks = text[len(solid) :]
        self._put(pieces, solid)

    def _put(self, pieces: Pieces, text: str) -> None:
        if self._part is _Part.REASONING:
            pieces.reasoning += text
        else:
            pieces.content += text


def _ways(marks: AnswerMarks) -> dict[_Part, dict[str, _Part]]:
    """In each part, the marks that mean something there, and the part after them."""
    calls = marks.calls
    opens = dict.fromkeys(calls.opens if calls else (), _Part.CALLS)
    first = dict.fromkeys(calls.first if calls else (), _Part.CALLS)
    reasoning = [mark for mark in (marks.reasoning_open, marks.reasoning_again) if mark]
    return {
        _Part.START: {
            **dict.fromkeys(reasoning, _Part.REASONING),
            **opens,
            **first,
            **dict.fromkeys(marks.dropped, _Part.START),
        },
        _Part.REASONING: {marks.reasoning_close: _Part.START},
        _Part.CONTENT: {**opens, **dict.fromkeys(marks.dropped, _Part.CONTENT)},
        _Part.CALLS: {calls.close: _Part.CONTENT} if calls and calls.close else {},
    }


def _num_undecided(text: str, marks: Collection[str]) -> int:
    """Length of the longest tail that a mark may begin with."""
    longest = max(map(len, marks), default=1) - 1
    for length in range(min(len(text), longest), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
