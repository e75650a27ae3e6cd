"""Computed prefixes and who uses them: a radix tree over token ids.

Owns which token runs have KV cells that outlive the sequence that computed them. A node stands for
consecutive tokens at positions `[start, start + len(tokens))` and has a sequence id of the backend
(a *tag*) under which exactly its own cells are kept; the cells of a whole prefix are those of the
nodes on the path to it. One tree per domain: what one domain computed is never found by another.

Knows no sequences; a user locks the path to a node, and locked nodes stay. What is to be done to
the backend's cells comes out as `CacheOp`s, in order.

Invariants (`check`): children begin with different tokens; a node is locked at least as often as
its children together; no tag is used twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from openclawd.engine.batch import CopyCells, DropCells

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from openclawd.engine.batch import CacheOp

_MOST_TAGS_PER_INSERT: Final = 2
"""One for the new node, and one for the upper half of a node that has to be split."""


@dataclass(slots=True, eq=False)
class Node:
    """`tokens` is empty for a root alone. `last_used` counts the tree's lookups."""

    tokens: tuple[int, ...]
    start: int
    tag: int
    parent: Node | None
    children: dict[int, Node] = field(default_factory=dict)
    num_users: int = 0
    last_used: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def path(self) -> Iterator[Node]:
        """This node and its ancestors, without the root."""
        node: Node = self
        while node.parent is not None:
            yield node
            node = node.parent


@dataclass(frozen=True, slots=True)
class Match:
    """The longest known prefix: `num_tokens` of it, ending inside `node` or at its end."""

    node: Node
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Insertion:
    """`node` ends where the inserted tokens end; None if the tree does not hold just them.
    `num_known` of them were known before. `ops` are to be done in any case."""

    node: Node | None
    num_known: int
    ops: list[CacheOp]


class PrefixTree:
    """`tags` are the backend's sequence ids that it may use; taken from and given back to it."""

    def __init__(self, tags: list[int]) -> None:
        self._tags = tags
        self._roots: dict[str, Node] = {}
        self._nodes: set[Node] = set()
        self._clock = 0
        self.num_cells = 0
        """Cells of all nodes."""
        self.num_locked_cells = 0
        """Cells of the nodes that somebody uses."""

    # ---- questions ----

    def match(self, domain: str, tokens: Sequence[int]) -> Match:
        """The longest prefix of `tokens` that is known in `domain`."""
        node = self._roots.get(domain)
        if node is None:
            node = self._roots[domain] = Node((), 0, -1, None)
        position = 0
        while position < len(tokens) and (child := node.children.get(tokens[position])):
            node = child
            matched = num_same(node.tokens, tokens, offset=position)
            position += matched
            if matched < len(node.tokens):
                break
        return Match(node, position)

    # ---- commands ----

    def copy_to(self, slot: int, match: Match, *, start: int = 0) -> list[CacheOp]:
        """Give `slot` the cells of a matched prefix, from position `start` on."""
        spans = (
            (node.tag, max(node.start, start), min(node.end, match.num_tokens))
            for node in match.node.path()
        )
        return [CopyCells(tag, slot, low, high) for tag, low, high in spans if low < high]

    def lock(self, node: Node) -> None:
        """Keep a node and what leads to it until `unlock`."""
        self._clock += 1
        for each in node.path():
            each.last_used = self._clock
            if each.num_users == 0:
                self.num_locked_cells += len(each.tokens)
            each.num_users += 1

    def unlock(self, node: Node) -> None:
        for each in node.path():
            each.num_users -= 1
            if each.num_users == 0:
                self.num_locked_cells -= len(each.tokens)

    def insert(self, domain: str, tokens: Sequence[int], slot: int) -> Insertion:
        """Remember `tokens`, whose cells `slot` has. Where the tree knows a part already, its own
        cells stay. Nothing is remembered when every tag is in use, or nothing is new."""
        ops = self._spare_tags()
        match = self.match(domain, tokens)
        num_known, node = match.num_tokens, match.node
        if len(self._tags) < _MOST_TAGS_PER_INSERT or num_known == len(tokens):
            is_whole = num_known == len(tokens) == node.end
            return Insertion(node if is_whole else None, num_known, ops)
        if num_known < node.end:
            node, split_ops = self._split(node, num_known)
            ops += split_ops
        new = Node(tuple(tokens[num_known:]), num_known, self._tags.pop(), node)
        node.children[new.tokens[0]] = new
        self._nodes.add(new)
        self.num_cells += len(new.tokens)
        ops.append(CopyCells(slot, new.tag, new.start, new.end))
        return Insertion(new, num_known, ops)

    def evict(self) -> list[CacheOp] | None:
        """Forget the least recently used node that nobody uses; None if there is none."""
        leaves = [node for node in self._nodes if not node.children and not node.num_users]
        if not leaves:
            return None
        node = min(leaves, key=lambda leaf: leaf.last_used)
        assert node.parent is not None
        del node.parent.children[node.tokens[0]]
        self._nodes.remove(node)
        self._tags.append(node.tag)
        self.num_cells -= len(node.tokens)
        return [DropCells(node.tag)]

    def check(self) -> None:
        """Raise `AssertionError` if an invariant does not hold."""
        tags = [node.tag for node in self._nodes] + self._tags
        assert len(tags) == len(set(tags))
        assert self.num_cells == sum(len(node.tokens) for node in self._nodes)
        locked = sum(len(node.tokens) for node in self._nodes if node.num_users)
        assert self.num_locked_cells == locked
        for node in self._nodes:
            assert node.parent is not None
            assert node.parent.children[node.tokens[0]] is node
            assert node.start == node.parent.end
            assert node.num_users >= sum(child.num_users for child in node.children.values())

    def _spare_tags(self) -> list[CacheOp]:
        """Evict until an insertion has the tags it may need, or nothing more can go."""
        spared: list[CacheOp] = []
        while len(self._tags) < _MOST_TAGS_PER_INSERT and (ops := self.evict()):
            spared += ops
        return spared

    def _split(self, node: Node, position: int) -> tuple[Node, list[CacheOp]]:
        """Cut a node at `position`. It keeps the lower part, since those who locked it also use
        what leads to it; the new upper part is returned."""
        assert node.parent is not None
        num_upper = position - node.start
        upper = Node(
            node.tokens[:num_upper],
            node.start,
            self._tags.pop(),
            node.parent,
            num_users=node.num_users,
            last_used=node.last_used,
        )
        node.parent.children[upper.tokens[0]] = upper
        node.tokens, node.start, node.parent = node.tokens[num_upper:], position, upper
        upper.children[node.tokens[0]] = node
        self._nodes.add(upper)
        return upper, [
            CopyCells(node.tag, upper.tag, upper.start, upper.end),
            DropCells(node.tag, upper.start, upper.end),
        ]


def num_same(run: Sequence[int], tokens: Sequence[int], *, offset: int) -> int:
    """How many of `run` stand in `tokens` from `offset` on."""
    end = min(len(run), len(tokens) - offset)
    if tuple(run[:end]) == tuple(tokens[offset : offset + end]):  # the usual case, compared in C
        return end
    return next(i for i in range(end) if run[i] != tokens[offset + i])
