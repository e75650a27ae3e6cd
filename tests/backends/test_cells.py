"""KV cells are owned as often as they are shared, and free when nobody has them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openclawd.backends.cells import Cells

LENGTH, NUM_CELLS, NUM_OWNERS = 12, 20, 4

owners = st.integers(0, NUM_OWNERS - 1)
spans = st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)).map(sorted)
operations = st.one_of(
    st.tuples(st.just("take"), owners, spans),
    st.tuples(st.just("share"), owners, owners, spans),
    st.tuples(st.just("drop"), owners, spans),
    st.tuples(st.just("empty"), owners),
)


@given(st.lists(operations, max_size=30))
def test_every_cell_has_as_many_owners_as_name_it(story):
    cells = Cells(NUM_CELLS, LENGTH)
    for operation in story:
        match operation:
            case "take", owner, (start, end):
                cells.drop(owner, start, end)
                before = cells.num_free
                assert cells.take(owner, start, end - start) is (end - start <= before)
            case "share", source, target, (start, end):
                if source != target:
                    cells.share(source, target, start, end)
            case "drop", owner, (start, end):
                cells.drop(owner, start, end)
            case "empty", owner:
                cells.drop(owner)
        cells.check()
    for owner in range(NUM_OWNERS):
        cells.drop(owner)
    assert cells.num_free == NUM_CELLS


def test_what_is_shared_stays_until_the_last_owner_is_gone():
    cells = Cells(NUM_CELLS, LENGTH)
    assert cells.take(0, 0, 4)
    own = cells.of(0, 4).tolist()
    cells.share(0, 1, 1, 3)
    assert cells.positions(1).tolist() == [1, 2]
    cells.drop(0)
    assert cells.at(1, cells.positions(1)).tolist() == own[1:3]
    assert cells.num_free == NUM_CELLS - 2
    cells.drop(1, 2, -1)
    assert cells.num_free == NUM_CELLS - 1


def test_too_few_cells_change_nothing():
    cells = Cells(NUM_CELLS, LENGTH)
    assert cells.take(0, 0, LENGTH)
    assert not cells.take(1, 0, LENGTH)
    assert cells.positions(1).size == 0
    cells.check()
