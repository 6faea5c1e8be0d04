"""The walk below every query: breadth first over typed edges with permissions.

A walk is made for one needed mask. An edge passes if it has all bits of it; the sum over
letters of such walks is exact, since "all letters on every edge of one single path" is one
condition on each edge. What may be, and is not certain, is a second walk with the other masks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ANY, POTENTIAL, PRIVATE, Edge, Edges, Graph, Kind, Runs, W
from osmosis.graph.relation import Relation
from osmosis.query.options import DEFAULT_VERBS

__all__ = ["Index", "Side", "Way", "distinct", "gathered", "walk"]

I4 = NDArray[np.int32]
Bools = NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)
Made = TypeVar("Made")
_LONGEST = 31  # classes of run length: 2**0 .. 2**30, all that int32 can number


def gathered(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``starts[k] .. starts[k] + counts[k] - 1`` for all k, one after another."""
    total = int(counts.sum())
    if not total:
        return np.empty(0, np.int64)
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(total)


def distinct(values: NDArray[T]) -> NDArray[T]:
    """Return the distinct values, ascending, by sorting.

    ``np.unique`` hashes since NumPy 2.3, and takes a hundred times as long for keys in a pattern
    such as ``pd * n + node``.
    """
    ordered = np.sort(values)
    if len(ordered) < 2:
        return ordered
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    out: NDArray[T] = ordered[first]
    return out


class Side:
    """Edges of one kind, sorted by one of their ends: finds those at given nodes.

    O(nodes * log E + found); 12 bytes per edge.
    """

    __slots__ = ("_key", "_order")

    def __init__(self, ends: I4) -> None:
        self._order = np.argsort(ends, kind="stable").astype(np.int32)
        self._key = ends[self._order]

    def at(self, nodes: I4) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the edges at *nodes*, and for each the place in *nodes* it belongs to."""
        low = np.searchsorted(self._key, nodes, "left")
        counts = np.searchsorted(self._key, nodes, "right") - low
        places = np.repeat(np.arange(len(nodes)), counts)
        return self._order[gathered(low, counts)].astype(np.int64), places


class RunIndex:
    """Runs by the position of a source and by destination, without expanding them.

    By position: runs of length 2**c .. 2**(c+1) - 1 are one class, sorted by their first. Those
    that contain p begin within 2**(c+1) before it, and at least half of those that begin there
    contain it, so that a look-up costs O(classes * log K + found).
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.by_node = Side(runs.source)
        self.by_dst = Side(runs.dst)
        self._distinct: bool | None = None  # see positions
        self._table: I4 = np.empty(0, np.int32)
        length = runs.last - runs.first + 1
        order = np.argsort(runs.first, kind="stable").astype(np.int32)
        size = np.frexp(length[order].astype(np.float64))[1] - 1
        self._classes = []
        for c in range(_LONGEST):
            ids = order[size == c]
            if len(ids):
                self._classes.append((2 << c, ids, runs.first[ids], runs.last[ids]))

    def containing(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the runs that contain one of *positions*; a run may come several times."""
        found = []
        at_most = positions.astype(np.int32)  # the type of first: else all of it is converted
        for reach, ids, first, last in self._classes:
            low = np.searchsorted(first, (positions - reach).astype(np.int32), "right")
            counts = np.searchsorted(first, at_most, "right") - low
            at = gathered(low, counts)
            hit = last[at] >= np.repeat(at_most, counts)
            found.append(ids[at[hit]])
        return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)

    def positions(self, nodes: I4) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ``by_node.at(nodes)``: by a table where no node is a source twice."""
        if self._distinct is None:
            key = self.by_node._key
            self._distinct = not bool((key[1:] == key[:-1]).any())
            if self._distinct and len(key):
                self._table = np.full(int(key[-1]) + 1, -1, np.int32)
                self._table[self.runs.source] = np.arange(len(key))
        if not self._distinct:
            return self.by_node.at(nodes)
        at = np.flatnonzero(nodes < len(self._table))
        found = self._table[nodes[at]]
        hit = found >= 0
        return found[hit].astype(np.int64), at[hit]

    def covered(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions that the runs *ids* cover, ascending. O(sources + runs)."""
        size = len(self.runs.source)
        change = np.bincount(self.runs.first[ids], minlength=size + 1).astype(np.int64)
        change -= np.bincount(self.runs.last[ids] + 1, minlength=size + 1)
        return np.flatnonzero(np.cumsum(change)[:size])


class Index:
    """What the queries keep of one graph: its edges by kind and end, found in O(log E).

    HOLD edges of the kernel are left out, as it holds everything anyway. Runs that a path may
    continue from become edges, so that those that stay are the last step over MAP.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.lock = threading.RLock()
        self.n_pds = graph.n_pds
        self.n_nodes = len(graph.kind)
        self.kernel = graph.kernel
        edges, runs = _without_chains(graph)
        self.kinds: dict[int, Edges] = {}
        self.forward: dict[int, Side] = {}
        self.backward: dict[int, Side] = {}
        for kind in Edge:
            take = edges.kind == kind
            if kind == Edge.HOLD and self.kernel is not None:
                take &= edges.src != self.kernel
            part = Edges(*(getattr(edges, c)[take] for c in Edges.__slots__))
            self.kinds[kind] = part
            self.forward[kind] = Side(part.src)
            self.backward[kind] = Side(part.dst)
        self.runs = RunIndex(runs)
        self.is_pd: Bools = graph.kind == Kind.PD
        # Whether a second walk, with the other masks, can find more than the first.
        self.mixed = any(
            bool((part.perm != part.maybe).any()) for part in self.kinds.values() if len(part)
        )
        self.wanted: dict[tuple[Kind, frozenset[str] | None], Bools] = {}  # see query.sharing
        self._hold: Relation | None = None
        self._by_place: I4 | None = None
        self._place: I4 | None = None
        self._memory: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return ``make()`` of the first call with this key."""
        with self.lock:
            if key not in self._memory:
                self._memory[key] = make()
            made: Made = self._memory[key]
            return made

    @property
    def by_place(self) -> I4:
        """(P,) PD rows in the order in which sets of PDs that map the same come in few spans.

        Sources of runs stand in an order in which those of one kind are neighbours. A PD has its
        place by that of its sources which the most runs cover: where it differs from its like.
        """
        with self.lock:
            if self._by_place is None:
                runs = self.runs.runs
                change = np.bincount(runs.first, minlength=len(runs.source) + 1).astype(np.int64)
                change -= np.bincount(runs.last + 1, minlength=len(change))[: len(change)]
                cover = np.cumsum(change)[: len(runs.source)]
                holds = self.kinds[Edge.HOLD]
                at, edge = self.runs.positions(holds.dst)
                pd = holds.src[edge]
                own = self.runs.positions(np.arange(self.n_pds, dtype=np.int32))
                at, pd = np.concatenate([at, own[0]]), np.concatenate([pd, own[1]])
                key = np.full(self.n_pds, -1, np.int64)  # the kernel, in front
                most = key.copy()
                size = max(len(runs.source), 1)
                np.maximum.at(most, pd, cover[at] * size + (size - 1 - at))
                key[most >= 0] = size - 1 - most[most >= 0] % size
                self._by_place = np.argsort(key, kind="stable").astype(np.int32)
            return self._by_place

    @property
    def place(self) -> I4:
        """(P,) place of each PD, the inverse of `by_place`."""
        by_place = self.by_place
        with self.lock:
            if self._place is None:
                place = np.empty(self.n_pds, np.int32)
                place[by_place] = np.arange(self.n_pds)
                self._place = place
            return self._place

    @property
    def hold(self) -> Relation:
        """PD to PD by HOLD: the default verbs of the model's control relation."""
        with self.lock:
            if self._hold is None:
                made = Relation.empty(self.n_pds)
                for verb in self.graph.control.verbs:
                    if verb in DEFAULT_VERBS:
                        made = made | self.graph.control.relation(verb, effective=True)
                self._hold = made
            return self._hold


def _without_chains(graph: Graph) -> tuple[Edges, Runs]:
    """Edges and runs of *graph* with those runs expanded whose end a MAP leaves."""
    runs = graph.runs
    if not len(runs):
        return graph.edges, runs
    leaves = np.zeros(len(graph.kind), bool)
    leaves[graph.edges.src[graph.edges.kind == Edge.MAP]] = True
    leaves[runs.source] = True
    chained = leaves[runs.dst]
    if not chained.any():
        return graph.edges, runs

    def part(at: Bools) -> Runs:
        return Runs(
            runs.source,
            runs.first[at],
            runs.last[at],
            runs.dst[at],
            runs.perm[at],
            runs.rule[at],
        )

    return Edges.concatenate([graph.edges, part(chained).expand()]), part(~chained)


class Way(NamedTuple):
    """What a walk may use: the needed mask, whose masks count, and which edges."""

    need: int = ANY
    possible: bool = False  # the masks that may be, in place of the certain ones
    potential: bool = False  # edges that were not observed, too

    def passes(self, edges: Edges, ids: NDArray[np.int64], kind: int) -> Bools:
        """Tell which of *ids* pass. SUBSET and REQUEST have no permissions: they exist or not."""
        need = self.need if kind in (Edge.HOLD, Edge.MAP) else ANY
        mask = edges.maybe[ids] if self.possible else edges.perm[ids]
        out: Bools = (mask & need) == need
        return out

    @property
    def ends_private(self) -> bool:
        """Whether a HOLD marked PRIVATE is the end of the path."""
        return bool(self.need & W)


def _usable(index: Index, way: Way, kind: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    edges = index.kinds[kind]
    keep = way.passes(edges, ids, kind)
    if not way.potential:
        # Control is potential by nature and counts; all else counts as observed.
        observed = (edges.flags[ids] & POTENTIAL) == 0
        if kind == Edge.HOLD:
            observed |= index.is_pd[edges.dst[ids]]
        keep &= observed
    return ids[keep]


def walk(
    index: Index,
    starts: I4,
    kinds: Iterable[int],
    way: Way,
    *,
    forward: bool = True,
    depth: int | None = None,
) -> I4:
    """Return the least number of edges from *starts* to each node, or from each to *starts*.

    Parameters
    ----------
    index
        Of the graph.
    starts
        Nodes, each at distance 0.
    kinds
        Edge kinds to walk.
    way
        What an edge must allow.
    forward
        False: against the edges; exactly the inverse.
    depth
        Most edges; None for no bound.

    Returns
    -------
    (N,) int32
        -1 where there is no path. O(N + edges at the nodes passed * log E).

    """
    step = _forward_step if forward else _backward_step
    wanted = frozenset(kinds)
    distance = np.full(index.n_nodes, -1, np.int32)
    expanded = np.zeros(index.n_nodes, bool)
    frontier = distinct(np.asarray(starts, np.int32))
    distance[frontier] = 0
    expanded[frontier] = True
    d = 0
    holds_all = forward and Edge.HOLD in wanted and depth != 0
    if holds_all and index.kernel is not None and index.kernel in frontier:
        distance[distance < 0] = 1
        return distance
    while len(frontier) and (depth is None or d < depth):
        d += 1
        further = []
        for nodes, on in step(index, frontier, wanted, way, d == 1):
            distance[nodes[distance[nodes] < 0]] = d
            further.append(nodes if on is None else nodes[on])
        if not further:
            break
        nodes = np.concatenate(further)
        frontier = distinct(nodes[~expanded[nodes]])
        expanded[frontier] = True
    return distance


Steps = list[tuple[I4, Bools | None]]


def _forward_step(
    index: Index,
    frontier: I4,
    kinds: frozenset[int],
    way: Way,
    first: bool,  # noqa: ARG001
) -> Steps:
    """Nodes one edge on from *frontier*, and from which of them the walk may go on."""
    out: Steps = []
    for kind in kinds:
        edges = index.kinds[kind]
        ids = index.forward[kind].at(frontier)[0]
        if len(ids):
            ids = _usable(index, way, kind, ids)
            nodes = edges.dst[ids]
            if kind == Edge.REQUEST:
                on = np.ones(len(ids), bool) if index.kernel is None else nodes != index.kernel
            else:
                on = ~index.is_pd[nodes]
                if kind == Edge.HOLD and way.ends_private:
                    on &= (edges.flags[ids] & PRIVATE) == 0
            out.append((nodes, on))
    if Edge.HOLD in kinds and way.need == ANY:
        for row in frontier[index.is_pd[frontier]].tolist():
            sure, may = index.hold.row_masks(row)
            held = np.flatnonzero(may if way.possible else sure).astype(np.int32)
            out.append((held, np.zeros(len(held), bool)))
    if Edge.MAP in kinds and len(index.runs.runs):
        positions = index.runs.by_node.at(frontier)[0]
        if len(positions):
            ids = index.runs.containing(positions)
            ids = ids[(index.runs.runs.perm[ids] & way.need) == way.need]
            out.append((index.runs.runs.dst[ids], None))
    return out


def _backward_step(
    index: Index, frontier: I4, kinds: frozenset[int], way: Way, first: bool
) -> Steps:
    """Nodes one edge before *frontier*; only the last edge of a path may end it at a PD."""
    out: Steps = []
    passable = frontier if first else frontier[~index.is_pd[frontier]]
    for kind in kinds:
        edges = index.kinds[kind]
        ids = index.backward[kind].at(frontier if kind == Edge.REQUEST else passable)[0]
        if len(ids):
            ids = _usable(index, way, kind, ids)
            if kind == Edge.HOLD and way.ends_private and not first:
                ids = ids[(edges.flags[ids] & PRIVATE) == 0]
            nodes = edges.src[ids]
            on = np.ones(len(nodes), bool) if index.kernel is None else nodes != index.kernel
            out.append((nodes, on))
    if Edge.HOLD in kinds:
        if index.kernel is not None and (passable != index.kernel).any():
            out.append((np.array([index.kernel], np.int32), np.zeros(1, bool)))
        if first and way.need == ANY:
            for row in frontier[index.is_pd[frontier]].tolist():
                sure, may = index.hold.T.row_masks(row)
                holders = np.flatnonzero(may if way.possible else sure).astype(np.int32)
                out.append((holders, holders != index.kernel))
    if Edge.MAP in kinds and len(index.runs.runs):
        ids = index.runs.by_dst.at(passable)[0]
        if len(ids):
            ids = ids[(index.runs.runs.perm[ids] & way.need) == way.need]
            out.append((index.runs.runs.source[index.runs.covered(ids)], None))
    return out
