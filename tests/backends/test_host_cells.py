"""Cells in the host's memory."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from openclawd.backends.host_cells import BLOCK_BYTES, BLOCKS_AT_ONCE, HostCells

sizes = st.one_of(
    st.integers(0, 9), st.integers(BLOCK_BYTES - 1, BLOCK_BYTES + 1), st.just(53 * BLOCK_BYTES + 5)
)


class HostCellsMachine(RuleBasedStateMachine):
    """What was put comes back, and no more memory is taken than was ever needed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = HostCells()
        self.put_in: dict[int, bytes] = {}
        self.most = 0

    @rule(tag=st.integers(0, 4), size=sizes, seed=st.integers(0, 255))
    def put(self, tag: int, size: int, seed: int) -> None:
        data = (np.arange(size) + seed).astype(np.uint8)
        self.cells.put(tag, data)
        self.put_in[tag] = data.tobytes()
        needed = sum(-(-len(each) // BLOCK_BYTES) for each in self.put_in.values())
        self.most = max(self.most, needed)

    @rule(tag=st.integers(0, 4))
    def drop(self, tag: int) -> None:
        self.cells.drop(tag)
        self.put_in.pop(tag, None)

    @invariant()
    def everything_is_there(self) -> None:
        assert {tag for tag in range(5) if tag in self.cells} == set(self.put_in)
        for tag, data in self.put_in.items():
            assert self.cells.get(tag).tobytes() == data
        assert self.cells.num_blocks == -(-self.most // BLOCKS_AT_ONCE) * BLOCKS_AT_ONCE


TestHostCellsMachine = HostCellsMachine.TestCase
TestHostCellsMachine.settings = settings(max_examples=40, deadline=None, derandomize=True)
