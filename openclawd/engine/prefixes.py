"""Computed prefixes and who uses them: a radix tree over token ids.

Owns which token runs have KV cells that outlive the sequence that computed them. A node stands for
consecutive tokens at positions `[start, start + len(tokens))` and has a sequence id of the backend
(a *tag*) under which exactly its own cells are kept; the cells of a whole prefix are those of the
nodes on the path to it.

Nodes that nobody uses may be *stowed*: their cells are in the host's memory, under the same tag,
and have to be restored before anybody uses them.

A node belongs to the domain that computed it, and no other domain finds it. What belongs to nobody
(domain None) is found by all and stays for good: it is *pinned*. Pinned prefixes are inserted
before all others, so that what a domain computed on top of them hangs below them. What was computed
with one adapter is never found with another.

Knows no sequences; a user locks the path to a node, and locked nodes stay. What is to be done to
the backend's cells comes out as `CacheOp`s, in order.

Invariants (`check`): of the children of a node, those that one domain can find begin with different
tokens; a node is locked at least as often as its children together, a pinned one once more; nobody
uses a stowed node, and all that builds on it is stowed, too; no tag is used twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from openclawd.engine.batch import CopyCells, DropCells, RestoreCells, StowCells

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from openclawd.engine.batch import CacheOp

_MOST_TAGS_PER_INSERT: Final = 2
"""One for the new node, and one for the upper half of a node that has to be split."""


class Owner(NamedTuple):
    """Whose a prefix is: a domain's or everybody's (None), computed with an adapter or ""."""

    domain: str | None
    adapter: str = ""

    @property
    def is_everybody(self) -> bool:
        return self.domain is None

    def everybody(self) -> Owner:
        """Who owns what is pinned of the same adapter."""
        return Owner(None, self.adapter)


@dataclass(slots=True, eq=False)
class Node:
    """`tokens` is empty for the root alone. Children are found by their owner and first token.
    `last_used` counts the tree's lookups."""

    tokens: tuple[int, ...]
    start: int
    tag: int
    owner: Owner
    parent: Node | None
    children: dict[tuple[Owner, int], Node] = field(default_factory=dict)
    num_users: int = 0
    last_used: int = 0
    is_stowed: bool = False

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def key(self) -> tuple[Owner, int]:
        return self.owner, self.tokens[0]

    def prefix(self) -> tuple[int, ...]:
        """All tokens up to the end of this node."""
        runs = [node.tokens for node in self.path()]
        return tuple(chain.from_iterable(reversed(runs)))

    def child(self, owner: Owner, token: int) -> Node | None:
        """The one that `owner` finds."""
        pinned = self.children.get((owner.everybody(), token))
        return pinned or self.children.get((owner, token))

    def path(self) -> Iterator[Node]:
        """This node and its ancestors, without the root."""
        node: Node = self
        while node.parent is not None:
            yield node
            node = node.parent

    def subtree(self) -> Iterator[Node]:
        """What builds on this node, and then itself."""
        for child in self.children.values():
            yield from child.subtree()
        yield self


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """`tokens`, of which those from `start` on have cells under `tag`, in the cache or stowed, and
    those before under those of other prefixes."""

    owner: Owner
    tokens: tuple[int, ...]
    start: int
    tag: int


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
    """`tags` are the backend's sequence ids that it may use; taken from and given back to it. The
    host's memory takes `max_stowed_cells`."""

    def __init__(self, tags: list[int], *, max_stowed_cells: int = 0) -> None:
        self._tags = tags
        self._max_stowed_cells = max_stowed_cells
        self.root = Node((), 0, -1, Owner(None), None)
        self._nodes: dict[int, Node] = {}  # by tag
        self._clock = 0
        self._num_adopted = 0
        self.num_cells = 0
        """Cells in the cache."""
        self.num_stowed_cells = 0
        self.num_locked_cells = 0
        """Cells of the nodes that somebody uses, and of the pinned ones."""
        self.num_pinned_cells = 0

    # ---- questions ----

    def match(self, owner: Owner, tokens: Sequence[int]) -> Match:
        """The longest prefix of `tokens` that `owner` can find."""
        node, position = self.root, 0
        while position < len(tokens) and (child := node.child(owner, tokens[position])):
            node = child
            matched = num_same(node.tokens, tokens, offset=position)
            position += matched
            if matched < len(node.tokens):
                break
        return Match(node, position)

    def kept(self) -> list[KeptPrefix]:
        """What a tree like this one could `adopt`: pinned prefixes first, then of the others what
        was used last, as far as the host's memory takes them; each after all that it builds on."""
        order = sorted(
            self._nodes.values(),
            key=lambda node: (not node.owner.is_everybody, -node.last_used, node.start),
        )
        found, room = [], self._max_stowed_cells
        for node in order:
            room -= 0 if node.owner.is_everybody else len(node.tokens)
            if room < 0:
                break
            found.append(KeptPrefix(node.owner, node.prefix(), node.start, node.tag))
        return found

    # ---- commands ----

    def copy_to(self, slot: int, match: Match, *, start: int = 0) -> list[CacheOp]:
        """Give `slot` the cells of a matched prefix, none of which is stowed, from position `start`
        on."""
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

    def num_stowed_in(self, node: Node) -> int:
        """Of the path to a node, the cells that are stowed."""
        return sum(len(each.tokens) for each in node.path() if each.is_stowed)

    def restore(self, node: Node) -> list[CacheOp]:
        """Put what is stowed of the path to a locked node back into the cache, where there is to be
        room for it."""
        stowed = [each for each in node.path() if each.is_stowed]
        for each in stowed:
            self._move_in(each)
        return [RestoreCells(each.tag) for each in reversed(stowed)]

    def insert(self, owner: Owner, tokens: Sequence[int], slot: int) -> Insertion:
        """Remember `tokens`, whose cells `slot` has; for good, if they are everybody's. Where the
        tree knows a part already, its own cells stay, or the slot's take the place of those that
        are stowed; a stowed node that would have to be split goes, with what builds on it. Nothing
        is remembered when every tag is in use, or nothing is new."""
        ops = self._bring_back(self.match(owner, tokens), slot) + self._spare_tags()
        match = self.match(owner, tokens)
        num_known, node = match.num_tokens, match.node
        if len(self._tags) < _MOST_TAGS_PER_INSERT or num_known == len(tokens):
            is_whole = num_known == len(tokens) == node.end
            return Insertion(node if is_whole else None, num_known, ops)
        if num_known < node.end:
            node, split_ops = self._split(node, num_known)
            ops += split_ops
        new = self._add(owner, tokens[num_known:], node)
        ops.append(CopyCells(slot, new.tag, new.start, new.end))
        return Insertion(new, num_known, ops)

    def adopt(self, owner: Owner, tokens: Sequence[int], start: int) -> int | None:
        """Remember `tokens` whose cells from `start` on the caller puts under the tag that is
        returned: into the cache what is everybody's, anything else as if it were stowed. None if
        what comes before is not known just so far, or there is no tag or no room for what is
        stowed. What was adopted later goes earlier."""
        match = self.match(owner, tokens)
        is_next = match.num_tokens == match.node.end == start < len(tokens)
        if not is_next or len(self._tags) < _MOST_TAGS_PER_INSERT:
            return None
        num_stowed = self.num_stowed_cells + len(tokens) - start
        if not owner.is_everybody and num_stowed > self._max_stowed_cells:
            return None
        node = self._add(owner, tokens[start:], match.node)
        if not owner.is_everybody:
            self._num_adopted += 1
            node.last_used = -self._num_adopted
            self._move_out(node)
        return node.tag

    def disown(self, tag: int) -> None:
        """Forget what was adopted last: its cells did not come."""
        node = self._nodes[tag]
        if node.owner.is_everybody:
            self.unlock(node)
            self.num_pinned_cells -= len(node.tokens)
        self._remove(node)

    def evict(self) -> list[CacheOp] | None:
        """Take the least recently used node that nobody uses out of the cache: stow it, if need be
        in the place of others, or forget it if there is no room for it. None if there is none."""
        node = min(filter(_is_last_in_cache, self._nodes.values()), key=_last_used, default=None)
        if node is None:
            return None
        ops: list[CacheOp] = []
        while self.num_stowed_cells + len(node.tokens) > self._max_stowed_cells:
            others = filter(_is_last_of_stowed, self._nodes.values())
            oldest = min(others, key=_last_used, default=None)
            if oldest is None:
                return ops + self._drop(node)
            ops += self._drop(oldest)
        self._move_out(node)
        return [*ops, StowCells(node.tag)]

    def lose(self, tag: int) -> list[CacheOp]:
        """Forget a node, whose cells could not be restored, and what builds on it. Nobody may use
        it."""
        node = self._nodes.get(tag)
        return self._drop(node) if node is not None else []

    def drop_short(self, node: Node, *, min_tokens: int) -> list[CacheOp]:
        """Forget a node, and then what leads to it, as far as nobody uses it, nothing hangs below
        it, and the prefix that ends there is shorter than `min_tokens`."""
        ops: list[CacheOp] = []
        while not (node.children or node.num_users) and node.end < min_tokens:
            if node.parent is None:
                break
            ops += self._drop(node)
            node = node.parent
        return ops

    def check(self) -> None:
        """Raise `AssertionError` if an invariant does not hold."""
        tags = [*self._nodes, *self._tags]
        assert len(tags) == len(set(tags))
        assert all(node.tag == tag for tag, node in self._nodes.items())
        sizes = [0, 0]
        for node in self._nodes.values():
            sizes[node.is_stowed] += len(node.tokens)
        assert sizes == [self.num_cells, self.num_stowed_cells]
        assert self.num_stowed_cells <= self._max_stowed_cells
        locked = sum(len(node.tokens) for node in self._nodes.values() if node.num_users)
        assert self.num_locked_cells == locked
        pinned = [node for node in self._nodes.values() if node.owner.is_everybody]
        assert self.num_pinned_cells == sum(len(node.tokens) for node in pinned)
        assert all(node.num_users for node in pinned)
        for node in self._nodes.values():
            assert node.parent is not None
            assert node.parent.children[node.key] is node
            assert node.parent.child(node.owner, node.tokens[0]) is node
            is_top = node.parent is self.root
            assert is_top or node.parent.owner in (node.owner, node.owner.everybody())
            assert node.start == node.parent.end
            assert not (node.is_stowed and node.num_users)
            assert node.is_stowed or not node.parent.is_stowed
            assert node.num_users >= sum(child.num_users for child in node.children.values())

    def _add(self, owner: Owner, tokens: Sequence[int], parent: Node) -> Node:
        new = Node(tuple(tokens), parent.end, self._tags.pop(), owner, parent)
        parent.children[new.key] = new
        self._nodes[new.tag] = new
        self.num_cells += len(new.tokens)
        if owner.is_everybody:
            assert all(node.owner.is_everybody for node in self._nodes.values()), (
                "pinned prefixes come first"
            )
            self.num_pinned_cells += len(new.tokens)
            self.lock(new)
        return new

    def _remove(self, leaf: Node) -> None:
        assert leaf.parent is not None
        del leaf.parent.children[leaf.key]
        del self._nodes[leaf.tag]
        self._tags.append(leaf.tag)
        if leaf.is_stowed:
            self.num_stowed_cells -= len(leaf.tokens)
        else:
            self.num_cells -= len(leaf.tokens)

    def _drop(self, node: Node) -> list[CacheOp]:
        """Forget a node and what builds on it."""
        dropped = list(node.subtree())
        for each in dropped:
            self._remove(each)
        return [DropCells(each.tag) for each in dropped]

    def _bring_back(self, match: Match, slot: int) -> list[CacheOp]:
        """Give what is stowed of a matched prefix the cells of a slot that has computed it."""
        ops: list[CacheOp] = []
        for node in [each for each in match.node.path() if each.is_stowed]:
            if node.end > match.num_tokens:
                ops += self._drop(node)
            else:
                self._move_in(node)
                ops += [DropCells(node.tag), CopyCells(slot, node.tag, node.start, node.end)]
        return ops

    def _move_out(self, node: Node) -> None:
        node.is_stowed = True
        self.num_cells -= len(node.tokens)
        self.num_stowed_cells += len(node.tokens)

    def _move_in(self, node: Node) -> None:
        node.is_stowed = False
        self.num_cells += len(node.tokens)
        self.num_stowed_cells -= len(node.tokens)

    def _spare_tags(self) -> list[CacheOp]:
        """Make room for an insertion's tags, until it has those it may need or nothing can go."""
        spared: list[CacheOp] = []
        while len(self._tags) < _MOST_TAGS_PER_INSERT and (ops := self._join() or self._drop_one()):
            spared += ops
        return spared

    def _drop_one(self) -> list[CacheOp] | None:
        """Forget the least recently used node that nobody uses; None if there is none."""
        leaves = (node for node in self._nodes.values() if not node.children and not node.num_users)
        node = min(leaves, key=_last_used, default=None)
        return self._drop(node) if node is not None else None

    def _join(self) -> list[CacheOp] | None:
        """Put a pinned node together again that was split for others which are gone; None if there
        is none. The lower one stays, as in `_split`: nobody's prefix ends at the upper."""
        lower = next(filter(_is_split_for_nobody, self._nodes.values()), None)
        if lower is None:
            return None
        upper = lower.parent
        assert upper is not None
        assert upper.parent is not None
        upper.parent.children[upper.key] = lower
        lower.tokens = upper.tokens + lower.tokens
        lower.start, lower.parent = upper.start, upper.parent
        del self._nodes[upper.tag]
        self._tags.append(upper.tag)
        return [
            CopyCells(upper.tag, lower.tag, upper.start, upper.end),
            DropCells(upper.tag),
        ]

    def _split(self, node: Node, position: int) -> tuple[Node, list[CacheOp]]:
        """Cut a node at `position`. It keeps the lower part, since those who locked it also use
        what leads to it; the new upper part is returned."""
        assert node.parent is not None
        num_upper = position - node.start
        upper = Node(
            node.tokens[:num_upper],
            node.start,
            self._tags.pop(),
            node.owner,
            node.parent,
            num_users=node.num_users,
            last_used=node.last_used,
        )
        node.parent.children[upper.key] = upper
        node.tokens, node.start, node.parent = node.tokens[num_upper:], position, upper
        upper.children[node.key] = node
        self._nodes[upper.tag] = upper
        return upper, [
            CopyCells(node.tag, upper.tag, upper.start, upper.end),
            DropCells(node.tag, upper.start, upper.end),
        ]


def _last_used(node: Node) -> int:
    return node.last_used


def _is_last_in_cache(node: Node) -> bool:
    """Has this node cells in the cache that nobody uses and nothing there builds on?"""
    is_unused = not (node.is_stowed or node.num_users)
    return is_unused and all(child.is_stowed for child in node.children.values())


def _is_last_of_stowed(node: Node) -> bool:
    """Is this node stowed, while nobody waits for it and nothing builds on it?"""
    return node.is_stowed and not (node.num_users or node.children)


def _is_split_for_nobody(node: Node) -> bool:
    """Is this pinned node the only child of a pinned one that nobody uses without it?"""
    upper = node.parent
    return (
        node.owner.is_everybody
        and upper is not None
        and upper.parent is not None
        and len(upper.children) == 1
        and upper.num_users == node.num_users
    )


def num_same(run: Sequence[int], tokens: Sequence[int], *, offset: int) -> int:
    """How many of `run` stand in `tokens` from `offset` on."""
    end = min(len(run), len(tokens) - offset)
    if tuple(run[:end]) == tuple(tokens[offset : offset + end]):  # the usual case, compared in C
        return end
    return next(i for i in range(end) if run[i] != tokens[offset + i])
