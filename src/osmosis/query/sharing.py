"""Who shares resources and spaces with whom: SharedResources, SharedSpaces, and what is common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from _fastproc import reach as native
from osmosis.graph.bits import clear_diagonal, pack
from osmosis.graph.graph import ANY, Edge, Kind
from osmosis.graph.relation import Relation
from osmosis.graph.sets import Nodes
from osmosis.query.options import RESOURCE_TYPES, SPACE_TYPES, type_mask
from osmosis.query.reach import Spans, aligned, certain_spans, spans, touched, undecided
from osmosis.query.walk import Index, Way, distinct, walk

__all__ = ["Ask", "Row", "Sharing", "common", "reach", "reached_nodes", "wanted_nodes"]

I4 = NDArray[np.int32]
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


def wanted_nodes(index: Index, kind: Kind, types: frozenset[str] | None) -> Bools:
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


def reach(index: Index, row: int, need: int, ask: Ask) -> tuple[I4, I4]:
    """Nodes of the kind and types asked for that a PD reaches, ascending: certain, and possible."""
    wanted = wanted_nodes(index, ask.kind, ask.types)
    start = np.array([row], np.int32)

    def nodes(possible: bool) -> I4:
        found = walk(index, start, _WALKED, Way(need, possible, ask.potential)).nodes
        return found[wanted[found]]

    sure = nodes(False)
    if not index.doubtful(_WALKED, potential=ask.potential):
        return sure, sure
    return sure, distinct(np.concatenate([nodes(True), sure]))


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
        for name, mask in graph.unseen_types.items()
        if (ask.types is None or name in ask.types)
        and mask.any()
        and (ask.kind == Kind.SPACE) == _is_space_type(index, name)
    ]


def _is_space_type(index: Index, name: str) -> bool:
    if name in RESOURCE_TYPES:
        return False
    if name in SPACE_TYPES:
        return True
    return bool(wanted_nodes(index, Kind.SPACE, frozenset([name])).any()) and not bool(
        wanted_nodes(index, Kind.RESOURCE, frozenset([name])).any()
    )


def _unseen_may(unseen: NDArray[np.uint8], need: int) -> Bools:
    out: Bools = (unseen & need) == need
    return out


class Sharing:
    """Who shares with whom, of one question: what it takes to answer it, made once.

    Both sides' columns as spans, of those nodes only that two PDs may reach; a row is a join
    over the columns that its PD is in, all rows are one join over all.

    O(N + edges + runs) to make; a row O(spans + P); memory 12 bytes per span and 2 (P,) bool
    for each way in which something was not seen.
    """

    def __init__(self, index: Index, ask: Ask) -> None:
        self._index = index
        self._kernel = index.kernel
        n = index.n_pds
        needs = ask.own, ask.access
        own, other = (
            certain_spans(index, Way(need, False, ask.potential), ask.kind) for need in needs
        )
        self._sure = self._join(own, other, ask)
        self._may: native.Join | None = None  # by what is undecided; the rest is the same
        self._doubtful = index.doubtful(_WALKED, potential=ask.potential)
        differs = undecided(index, needs, ask.kind, ask.potential) if self._doubtful else None
        if differs is not None and len(differs):
            own, other = (
                spans(index, Way(need, True, ask.potential), ask.kind, None, only=differs)
                for need in needs
            )
            self._may = self._join(own, other, ask)
        of = type_mask(index.graph, ask.types)
        chosen = np.ones(len(index.graph.types), bool) if of is None else of[:-1]
        self._sure_any: Bools = np.zeros(n, bool)  # whom the kernel shares with
        self._may_any: Bools = self._sure_any
        if index.kernel is not None:
            self._sure_any = np.any(self._touched(ask.own, False, ask)[chosen], axis=0)
            self._may_any = np.any(self._touched(ask.own, self._doubtful, ask)[chosen], axis=0)
        # Whose rows may gain whom, by what was not seen. Most types give the same as others.
        gains: dict[tuple[bytes, bytes], tuple[Bools, Bools]] = {}
        for name, unseen in _unseen(index, ask):
            mine = _without(_unseen_may(unseen, ask.own), self._kernel)
            theirs = _without(_unseen_may(unseen, ask.access), self._kernel)
            reach, reached = (self._of_type(name, need, ask) for need in needs)
            self._may_any = self._may_any | mine
            for rows, gained in ((mine, theirs | reached), (reach, theirs)):
                if rows.any() and gained.any():
                    gains[rows.tobytes(), gained.tobytes()] = rows, gained
        pairs = list(gains.values())
        self._gains = np.array([rows for rows, _ in pairs], bool).reshape(len(pairs), n)
        self._gained = np.array([gained for _, gained in pairs], bool).reshape(len(pairs), n)

    def _join(self, own: Spans, other: Spans, ask: Ask) -> native.Join:
        of = type_mask(self._index.graph, ask.types)
        a, b = aligned(own, other)
        if of is not None:
            chosen = np.flatnonzero(of[self._index.graph.type[a.nodes]])
            a, b = a.take(chosen), b.take(chosen)
        return native.Join(
            a.indptr, a.first, a.last, b.indptr, b.first, b.last, self._index.by_place
        )

    def _touched(self, need: int, possible: bool, ask: Ask) -> Bools:
        return touched(self._index, Way(need, possible, ask.potential), ask.kind)

    def _of_type(self, name: str, need: int, ask: Ask) -> Bools:
        """(P,) bool: PDs that possibly reach a resource of the type."""
        chosen = [t for t, at in enumerate(self._index.graph.types) if at == name]
        out: Bools = np.any(self._touched(need, self._doubtful, ask)[chosen], axis=0)
        return out

    def row(self, row: int) -> Row:
        """Who shares with the PD *row*."""
        n, kernel = self._index.n_pds, self._kernel
        if row == kernel:
            return Row.none(n)
        sure = self._sure.row(row)
        may = sure.copy()
        if self._may is not None:
            may |= self._may.row(row)
        if kernel is not None:
            sure[kernel] = self._sure_any[row]
            may[kernel] = self._may_any[row]
        gains = np.flatnonzero(self._gains[:, row])
        if len(gains):
            may |= np.any(self._gained[gains], axis=0)
        return Row(sure, may).drop(row)

    def of_kernel(self) -> Row:
        """Whose answer the kernel is in."""
        return Row(self._sure_any.copy(), self._may_any.copy())

    def relation(self) -> Relation:
        """All pairs: ``S[i, j]``, j is in i's answer. The kernel's column included."""
        n, kernel = self._index.n_pds, self._kernel
        sure = clear_diagonal(self._sure.bits())
        may = sure.copy() if self._may is None else sure | clear_diagonal(self._may.bits())
        for rows, gained in zip(self._gains, self._gained, strict=True):
            may[rows] |= pack(gained[None])
        if kernel is not None:
            word, bit = kernel >> 6, np.uint64(1) << np.uint64(kernel & 63)
            for bits, holds in ((sure, self._sure_any), (may, self._may_any)):
                bits[:, word] &= ~bit
                bits[holds, word] |= bit
                bits[kernel] = 0
        same = np.array_equal(sure, may)
        return Relation.from_bits(n, sure, None if same else may, pds=self._index.graph.pds)


def reached_nodes(index: Index, rows: I4, need: int, ask: Ask) -> Nodes:
    """Nodes that one of *rows* reaches; the kernel reaches all of the kind and types."""
    sure, may = _of_several(index, rows, need, ask)
    return Nodes(index.graph, sure, np.setdiff1d(may, sure, assume_unique=True))


def _of_several(index: Index, rows: I4, need: int, ask: Ask) -> tuple[I4, I4]:
    if index.kernel is not None and index.kernel in rows:
        everything = np.flatnonzero(wanted_nodes(index, ask.kind, ask.types)).astype(np.int32)
        return everything, everything
    found = [reach(index, row, need, ask) for row in rows.tolist()]
    if len(found) == 1:
        return found[0]
    none = np.empty(0, np.int32)
    sure = distinct(np.concatenate([none, *(nodes for nodes, _ in found)]))
    if all(nodes is possible for nodes, possible in found):
        return sure, sure
    return sure, distinct(np.concatenate([none, *(possible for _, possible in found)]))


def common(index: Index, x: I4, y: I4, ask: Ask) -> Nodes:
    """Return the nodes by which y is in x's answer: that both reach, y with the access."""
    a_sure, a_may = _of_several(index, x, ask.own, ask)
    b_sure, b_may = _of_several(index, y, ask.access, ask)
    sure = np.intersect1d(a_sure, b_sure, assume_unique=True)
    if a_may is a_sure and b_may is b_sure:
        return Nodes(index.graph, sure)
    may = np.intersect1d(a_may, b_may, assume_unique=True)
    return Nodes(index.graph, sure, np.setdiff1d(may, sure, assume_unique=True))
