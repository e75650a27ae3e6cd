"""Cutting prompts that are too long: which tokens stay, and which turns of a chat.

Owns the rules of `truncate_head` and `truncate_middle`. Pure: knows no tokenizer and no template.

Rules: of a plain prompt, tokens go from its head, or from its middle so that its halves stay; what
the tokenizer adds in front stays. Of a chat, whole turns go: the oldest, or those after the first,
until it fits. System messages stay, and so does the last user turn with all that follows it. A tool
call and its results are parts of the turn that they answer, so they stay or go together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openclawctl.wire.chat import ChatMessage

TRUNCATE_HEAD: Final = "truncate_head"
TRUNCATE_MIDDLE: Final = "truncate_middle"


def cut_tokens(tokens: list[int], most: int, *, policy: str, num_kept_first: int) -> list[int]:
    """At most `most` of the tokens. The first `num_kept_first` stay, whatever `most` is."""
    if len(tokens) <= most:
        return tokens
    first, rest = tokens[:num_kept_first], tokens[num_kept_first:]
    num_left = max(0, most - len(first))
    num_head = (num_left + 1) // 2 if policy == TRUNCATE_MIDDLE else 0
    num_tail = num_left - num_head
    return first + rest[:num_head] + rest[len(rest) - num_tail :]


def cut_around_gap(before: list[int], after: list[int], most: int) -> tuple[list[int], list[int]]:
    """At most `most` tokens around the gap of a prompt with a suffix: those next to it, half on
    either side, or more where the other side has fewer."""
    num_before = min(len(before), max(most - len(after), most // 2))
    num_after = min(len(after), most - num_before)
    return before[len(before) - num_before :], after[:num_after]


def droppable_turns(messages: Sequence[ChatMessage], policy: str) -> list[list[int]]:
    """The turns that may go, in the order in which they go, each as the places of its messages. A
    turn is what a user says and all that answers it; what comes before the first is one, too."""
    turns: list[list[int]] = []
    for place, message in enumerate(messages):
        if message.role == "system":
            continue
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(place)
    users = [n for n, turn in enumerate(turns) if messages[turn[0]].role == "user"]
    num_first = users[0] + 1 if users and policy == TRUNCATE_MIDDLE else 0
    num_last = users[-1] if users else 0
    return turns[num_first:num_last]


def without(messages: Sequence[ChatMessage], turns: Sequence[Sequence[int]]) -> list[ChatMessage]:
    """The messages that are in none of these turns."""
    gone = {place for turn in turns for place in turn}
    return [message for place, message in enumerate(messages) if place not in gone]


def fewest(most: int, is_enough: Callable[[int], bool]) -> int:
    """The least number from 0 to `most` that is enough, and `most` if none is. Of larger numbers
    more are enough. Asks about `most` and then ever smaller numbers, in growing steps, so that what
    it asks about is seldom much less than the answer; 2 log2(most) questions at the most. The
    answer is always one that was asked about, unless none is enough.
    """
    if most == 0 or not is_enough(most):
        return most
    enough, step = most, 1
    while (number := max(0, enough - step)) < enough and is_enough(number):
        enough, step = number, 2 * step
    too_few = number if enough else -1
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if is_enough(middle):
            enough = middle
        else:
            too_few = middle
    return enough
