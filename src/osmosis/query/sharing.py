"""Who shares resources and spaces with whom: SharedResources, SharedSpaces, and what is common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ANY, Edge, Kind
from osmosis.graph.relation import Relation, pack
from osmosis.graph.sets import Nodes
from osmosis.query.options import RESOURCE_TYPES, SPACE_TYPES, type_mask
from osmosis.query.reach import joined, spans
from osmosis.query.walk import Index, Way, walk

__all__ = ["Ask", "Row", "common", "reach", "reached_nodes", "shared_row", "sharing"]

Bools = NDArray[np.bool_]
_WALKED = (Edge.HOLD, Edge.MAP)


class Ask(NamedTuple):
    """What a question about sharing may restrict."""

    own: int = ANY  # mask that x's paths need
    access: int = ANY  # mask that y's paths need
    types: frozenset[str] | None = None
    kind: Kind = Kind.RESOURCE
    potential: bool = False

    @property
    def swapped(self) -> Ask:
        """The same question from the other side."""
        return self._replace(own=self.access, access=self.own)


@dataclass(slots=True)
class Row:
    """PDs in an answer for one x: (P,) bool, certain ones, and those certain or possible."""

    sure: Bools
    may: Bools = field(repr=False)

    @classmethod
    def none(cls, n: int) -> Row:
        """Nobody."""
        return cls(np.zeros(n, bool), np.zeros(n, bool))

    def add(self, other: Row) -> None:
        """Take in all of *other*."""
        self.sure |= other.sure
        self.may |= other.may

    def drop(self, row: int) -> Row:
        """Without one PD."""
        self.sure[row] = self.may[row] = False
        return self


def _wanted(index: Index, kind: Kind, types: frozenset[str] | None) -> Bools:
    """(N,) bool, read-only: nodes of a kind and of types; kept, as each row asks for them."""
    key = (kind, types)
    kept = index.wanted.get(key)
    if kept is None:
        kept = index.graph.kind == kind
        of = type_mask(index.graph, types)
        if of is not None:
            kept &= of[index.graph.type]
        kept.setflags(write=False)
        index.wanted[key] = kept
    return kept


def reach(index: Index, row: int, need: int, ask: Ask) -> tuple[Bools, Bools]:
    """Nodes of the kind and types asked for that a PD reaches: (N,) bool, certain and possible."""
    wanted = _wanted(index, ask.kind, ask.types)
    start = np.array([row], np.int32)
    sure = (walk(index, start, _WALKED, Way(need, False, ask.potential)) >= 0) & wanted
    if not index.mixed:
        return sure, sure
    may = (walk(index, start, _WALKED, Way(need, True, ask.potential)) >= 0) & wanted
    return sure, may | sure


def _holders(index: Index, nodes: Bools, need: int, possible: bool, ask: Ask) -> Bools:
    """(P,) bool: PDs other than the kernel that reach one of *nodes*."""
    targets = np.flatnonzero(nodes).astype(np.int32)
    if not len(targets):
        return np.zeros(index.n_pds, bool)
    way = Way(need, possible, ask.potential)
    out: Bools = walk(index, targets, _WALKED, way, forward=False)[: index.n_pds] >= 0
    if index.kernel is not None:
        out[index.kernel] = False
    return out


def shared_row(index: Index, row: int, ask: Ask) -> Row:
    """Who shares with the PD *row*: one walk on from it, and one back."""
    n, kernel = index.n_pds, index.kernel
    if row == kernel:
        return Row.none(n)
    own_sure, own_may = reach(index, row, ask.own, ask)
    sure = _holders(index, own_sure, ask.access, False, ask)
    may = sure | _holders(index, own_may, ask.access, True, ask) if index.mixed else sure.copy()
    if kernel is not None:
        sure[kernel] = own_sure.any()
        may[kernel] = own_may.any()
    for name, unseen in _unseen(index, ask):
        at = ask._replace(types=frozenset([name]))
        mine = _unseen_may(unseen, ask.own)[row]
        theirs = _unseen_may(unseen, ask.access)
        if mine:
            may |= theirs | _reachers(index, ask.access, at)
            if kernel is not None:
                may[kernel] = True
        if (own_may & _wanted(index, ask.kind, at.types)).any():
            may |= _without(theirs, kernel)
    out = Row(sure, may)
    return out.drop(row)


def _without(mask: Bools, row: int | None) -> Bools:
    if row is not None and mask[row]:
        mask = mask.copy()
        mask[row] = False
    return mask


def _unseen(index: Index, ask: Ask) -> list[tuple[str, NDArray[np.uint8]]]:
    """Types asked for of which somebody may hold what was not seen, with the masks.

    A type of resources speaks of resources, also where spaces have a type of that name.
    """
    graph = index.graph
    return [
        (name, mask)
        for name, mask in graph.unseen.items()
        if (ask.types is None or name in ask.types)
        and mask.any()
        and (ask.kind == Kind.SPACE) == _is_space_type(index, name)
    ]


def _is_space_type(index: Index, name: str) -> bool:
    if name in RESOURCE_TYPES:
        return False
    if name in SPACE_TYPES:
        return True
    return bool(_wanted(index, Kind.SPACE, frozenset([name])).any()) and not bool(
        _wanted(index, Kind.RESOURCE, frozenset([name])).any()
    )


def _unseen_may(unseen: NDArray[np.uint8], need: int) -> Bools:
    out: Bools = (unseen & need) == need
    return out


def _reachers(index: Index, need: int, ask: Ask) -> Bools:
    """(P,) bool: PDs that possibly reach a resource of the types."""
    return _holders(index, _wanted(index, ask.kind, ask.types), need, True, ask)


def sharing(index: Index, ask: Ask) -> Relation:
    """All pairs at once: ``S[i, j]``, j is in i's answer. The kernel's column included."""
    n, kernel = index.n_pds, index.kernel
    types = type_mask(index.graph, ask.types)

    def made(possible: bool) -> tuple[NDArray[np.uint64], Bools]:
        other = spans(index, Way(ask.access, possible, ask.potential), ask.kind, types)
        own = other
        if ask.own != ask.access:
            way = Way(ask.own, possible, ask.potential)
            own = spans(index, way, ask.kind, types, only=other.nodes)
        holds = np.zeros(n, bool)
        if kernel is not None:
            wanted = _wanted(index, ask.kind, ask.types)
            holds = _holders(index, wanted, ask.own, possible, ask)
        return joined(own, other, index), holds

    sure, sure_holds = made(False)
    may, may_holds = made(True) if index.mixed else (sure.copy(), sure_holds.copy())
    may |= sure
    may_holds = may_holds | sure_holds
    for name, unseen in _unseen(index, ask):
        at = ask._replace(types=frozenset([name]))
        own_unseen = _without(_unseen_may(unseen, ask.own), kernel)
        other_unseen = _without(_unseen_may(unseen, ask.access), kernel)
        other_reach = _reachers(index, ask.access, at)
        own_reach = _reachers(index, ask.own, at)
        may[own_unseen] |= pack((other_unseen | other_reach)[None])
        may[own_reach] |= pack(other_unseen[None])
        may_holds |= own_unseen
    if kernel is not None:
        word, bit = kernel >> 6, np.uint64(1) << np.uint64(kernel & 63)
        for bits, holds in ((sure, sure_holds), (may, may_holds)):
            bits[:, word] &= ~bit
            bits[holds, word] |= bit
            bits[kernel] = 0
    same = np.array_equal(sure, may)
    return Relation.from_bits(n, sure, None if same else may, pds=index.graph.pds)


def reached_nodes(index: Index, rows: NDArray[np.int32], need: int, ask: Ask) -> Nodes:
    """Nodes that one of *rows* reaches; the kernel reaches all of the kind and types."""
    sure, may = _of_several(index, rows, need, ask)
    return Nodes(index.graph, sure, may & ~sure)


def _of_several(
    index: Index, rows: NDArray[np.int32], need: int, ask: Ask
) -> tuple[Bools, Bools]:
    sure = np.zeros(index.n_nodes, bool)
    may = sure.copy()
    for row in rows.tolist():
        if row == index.kernel:
            everything = _wanted(index, ask.kind, ask.types)
            return everything, everything
        one_sure, one_may = reach(index, row, need, ask)
        sure |= one_sure
        may |= one_may
    return sure, may


def common(
    index: Index, x: NDArray[np.int32], y: NDArray[np.int32], ask: Ask
) -> Nodes:
    """Return the nodes by which y is in x's answer: that both reach, y with the access."""
    a_sure, a_may = _of_several(index, x, ask.own, ask)
    b_sure, b_may = _of_several(index, y, ask.access, ask)
    sure = a_sure & b_sure
    return Nodes(index.graph, sure, a_may & b_may & ~sure)
