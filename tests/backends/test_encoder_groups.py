"""Texts of about the same length are computed together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openclawd.backends.encoder_groups import ROW_TOKENS, groups_of, rows_of, shared_out

lengths_of = st.lists(st.integers(1, 64), max_size=8)


def cost(groups: list[list[int]], lengths: list[int], call_tokens: int) -> int:
    """Tokens that are computed, padding included, and the calls."""
    padded = (len(group) * max(lengths[place] for place in group) for group in groups)
    return sum(padded) + call_tokens * len(groups)


def partitions(places: list[int]) -> list[list[list[int]]]:
    """Every partition into runs."""
    if not places:
        return [[]]
    return [
        [places[:end], *rest]
        for end in range(1, len(places) + 1)
        for rest in partitions(places[end:])
    ]


@given(lengths_of, st.integers(0, 100))
def test_no_partition_into_runs_is_cheaper(lengths: list[int], call_tokens: int) -> None:
    groups = groups_of(lengths, call_tokens=call_tokens)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    longest_first = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    cheapest = min(cost(each, lengths, call_tokens) for each in partitions(longest_first))
    assert cost(groups, lengths, call_tokens) == cheapest


@given(lengths_of)
def test_without_padding_a_group_has_one_length(lengths: list[int]) -> None:
    groups = groups_of(lengths, call_tokens=48, pads=False)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    assert [len({lengths[place] for place in group}) for group in groups] == [1] * len(groups)


@given(st.lists(st.integers(1, 2 * ROW_TOKENS), max_size=40))
def test_only_short_texts_share_rows_and_no_row_is_too_long(lengths: list[int]) -> None:
    rows = rows_of(lengths)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    shared = [row for row in rows if len(row) > 1]
    assert all(lengths[place] <= ROW_TOKENS // 2 for row in shared for place in row)
    sums = [sum(lengths[place] for place in row) for row in rows]
    assert all(sums[number] <= ROW_TOKENS for number, row in enumerate(rows) if row in shared)
    few = [sums[number] for number, row in enumerate(rows) if lengths[row[0]] <= ROW_TOKENS // 2]
    assert sum(total <= ROW_TOKENS // 2 for total in few) <= 1


def test_the_longest_come_first() -> None:
    assert groups_of([8, 200, 9, 190, 8], call_tokens=48) == [[1, 3], [2, 0, 4]]


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=9), max_size=4), st.integers(1, 5))
def test_a_group_is_shared_out_in_about_equal_parts(
    groups: list[list[int]], num_shares: int
) -> None:
    shares = shared_out(groups, num_shares)
    assert [each for share in shares for each in share] == [
        each for group in groups for each in group
    ]
    for group in groups:
        of_group = [shares.pop(0) for _ in range(min(num_shares, len(group)))]
        sizes = {len(share) for share in of_group}
        assert [each for share in of_group for each in share] == group
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= 1
    assert not shares
