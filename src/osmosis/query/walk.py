"""The walk below every query: breadth first over typed edges with permissions.

A walk is made for one needed mask. An edge passes if it has all bits of it; the sum over
letters of such walks is exact, since "all letters on every edge of one single path" is one
condition on each edge. What may be, and is not certain, is a second walk with the other masks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from _fastproc import reach
from osmosis.graph.graph import ANY, POTENTIAL, PRIVATE, Edge, Edges, Graph, Kind, Runs, W
from osmosis.graph.relation import Relation
from osmosis.query.options import DEFAULT_VERBS

__all__ = ["Index", "Reached", "Side", "Way", "distinct", "gathered", "walk"]

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
    """Edges of one kind by one of their ends: finds those at given nodes.

    O(nodes + found); 4 bytes per edge and per node.
    """

    __slots__ = ("_indptr", "_order", "single")

    def __init__(self, ends: I4, n_nodes: int) -> None:
        self._indptr, self._order = reach.grouped(ends, n_nodes)
        self.single = int(np.diff(self._indptr).max(initial=0)) <= 1

    def at(self, nodes: I4) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the edges at *nodes*, and for each the place in *nodes* it belongs to."""
        low, high = self._indptr[nodes], self._indptr[nodes + 1]
        if self.single:
            at = np.flatnonzero(high > low)
            return self._order[low[at]].astype(np.int64), at
        counts = (high - low).astype(np.int64)
        places = np.repeat(np.arange(len(nodes)), counts)
        return self._order[gathered(low.astype(np.int64), counts)].astype(np.int64), places

    def reduced(self, op: np.ufunc, values: NDArray[T], nodes: int) -> NDArray[T]:
        """Return *op* over the values of the edges of each of the first *nodes*; 0 of none."""
        start, end = self._indptr[:nodes], self._indptr[1 : nodes + 1]
        out = np.zeros(nodes, values.dtype)
        has = np.flatnonzero(end > start)
        if len(has):
            some = values[self._order[: self._indptr[nodes]]]
            out[has] = op.reduceat(some, start[has])
        return out


class _Sides(dict[int, Side]):
    """A `Side` for each kind of edge, made when it is first asked for."""

    def __init__(self, kinds: Mapping[int, Edges], end: str, n_nodes: int) -> None:
        super().__init__()
        self._kinds, self._end, self._n_nodes = kinds, end, n_nodes

    def __missing__(self, kind: int) -> Side:
        made = self[kind] = Side(getattr(self._kinds[kind], self._end), self._n_nodes)
        return made


class RunIndex:
    """Runs by the position of a source and by destination, without expanding them.

    By position: runs of length 2**c .. 2**(c+1) - 1 are one class, sorted by their first. Those
    that contain p begin within 2**(c+1) before it, and at least half of those that begin there
    contain it, so that a look-up costs O(classes * log K + found).
    """

    def __init__(self, runs: Runs, n_nodes: int) -> None:
        self.runs = runs
        self._n_nodes = n_nodes

    @cached_property
    def by_node(self) -> Side:
        """Positions by source."""
        return Side(self.runs.source, self._n_nodes)

    @cached_property
    def by_dst(self) -> Side:
        """Runs by destination."""
        return Side(self.runs.dst, self._n_nodes)

    @cached_property
    def _classes(self) -> list[tuple[int, I4, I4, I4]]:
        runs = self.runs
        length = runs.last - runs.first + 1
        order = np.argsort(runs.first, kind="stable").astype(np.int32)
        size = np.frexp(length[order].astype(np.float64))[1] - 1
        out = []
        for c in range(_LONGEST):
            ids = order[size == c]
            if len(ids):
                out.append((2 << c, ids, runs.first[ids], runs.last[ids]))
        return out

    def containing(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the runs that contain one of *positions*; a run may come several times."""
        found = []
        at_most = positions.astype(np.int32)  # the type of first: else all of it is converted
        for longest, ids, first, last in self._classes:
            low = np.searchsorted(first, (positions - longest).astype(np.int32), "right")
            counts = np.searchsorted(first, at_most, "right") - low
            at = gathered(low, counts)
            hit = last[at] >= np.repeat(at_most, counts)
            found.append(ids[at[hit]])
        return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)

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
        for kind in Edge:
            take = edges.kind == kind
            if kind == Edge.HOLD and self.kernel is not None:
                take &= edges.src != self.kernel
            at = np.flatnonzero(take)
            self.kinds[kind] = Edges(*(getattr(edges, c)[at] for c in Edges.__slots__))
        self.forward = _Sides(self.kinds, "src", self.n_nodes)
        self.backward = _Sides(self.kinds, "dst", self.n_nodes)
        self.runs = RunIndex(runs, self.n_nodes)
        self.is_pd: Bools = graph.kind == Kind.PD
        self.wanted: dict[tuple[Kind, frozenset[str] | None], Bools] = {}  # see query.sharing
        self._hold: Relation | None = None
        self._by_place: I4 | None = None
        self._place: I4 | None = None
        self._memory: dict[Hashable, Any] = {}
        self._local = threading.local()

    def doubtful(self, kinds: Iterable[int], *, potential: bool = False) -> bool:
        """Tell whether a second walk over *kinds*, with the masks that may be, can find more.

        Of edges that the walk may use at all: without *potential*, of those that were observed.
        """

        def make(kind: int) -> bool:
            edges = self.kinds[kind]
            at = np.flatnonzero(edges.perm != edges.maybe)
            return bool(len(at) and (potential or _counted(self, kind, at).any()))

        return any(self.once(("doubtful", kind, potential), partial(make, kind)) for kind in kinds)

    @contextmanager
    def scratch(self) -> Iterator[tuple[I4, Bools, list[I4]]]:
        """(N,) distances, all -1, and (N,) marks, all off, of this thread; for one walk.

        What the walk writes to it adds to the list: only that is wiped, so that a walk costs what
        it touches and not what the graph has.
        """
        kept = self._local.__dict__.pop("kept", None)
        if kept is None:
            kept = np.full(self.n_nodes, -1, np.int32), np.zeros(self.n_nodes, bool)
        distance, expanded = kept
        touched: list[I4] = []
        yield distance, expanded, touched
        for nodes in touched:  # not after an exception: then they are made anew
            distance[nodes] = -1
            expanded[nodes] = False
        self._local.kept = kept

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
                size = max(len(runs.source), 1)

                def weigh(nodes: I4) -> NDArray[np.int64]:
                    """1 + the most covered position of each node, so that more is better; or 0."""
                    at, where = self.runs.by_node.at(nodes)
                    out = np.zeros(len(nodes), np.int64)
                    found = cover[at] * size + (size - at)
                    if self.runs.by_node.single:
                        out[where] = found
                    else:
                        np.maximum.at(out, where, found)
                    return out

                own = weigh(np.arange(self.n_pds, dtype=np.int32))
                held = self.forward[Edge.HOLD].reduced(np.maximum, weigh(holds.dst), self.n_pds)
                most = np.maximum(own, held)
                key = np.where(most > 0, (size - most % size) % size, -1)  # without: in front
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


def _counted(index: Index, kind: int, ids: NDArray[np.int64]) -> Bools:
    """Which of *ids* count without asking for potential ones: what was observed, and control."""
    edges = index.kinds[kind]
    out: Bools = (edges.flags[ids] & POTENTIAL) == 0
    if kind == Edge.HOLD:  # control is potential by nature and counts
        out |= index.is_pd[edges.dst[ids]]
    return out


def _usable(index: Index, way: Way, kind: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    keep = way.passes(index.kinds[kind], ids, kind)
    if not way.potential:
        keep &= _counted(index, kind, ids)
    return ids[keep]


class Reached(NamedTuple):
    """Nodes that a walk came to, its starts included, and the least number of edges to each."""

    nodes: I4  # ascending
    distance: I4

    def of(self, nodes: I4) -> I4:
        """Distance of each of *nodes*; -1 where the walk did not come."""
        at = np.searchsorted(self.nodes, nodes)
        at[at == len(self.nodes)] = 0
        if not len(self.nodes):
            return np.full(len(nodes), -1, np.int32)
        return np.where(self.nodes[at] == nodes, self.distance[at], -1).astype(np.int32)


def walk(
    index: Index,
    starts: I4,
    kinds: Iterable[int],
    way: Way,
    *,
    forward: bool = True,
    depth: int | None = None,
) -> Reached:
    """Return the nodes that *starts* reach, or that reach *starts*, and how far they are.

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
    Reached
        O(nodes and edges passed, log of the nodes), whatever the size of the graph.

    """
    step = _forward_step if forward else _backward_step
    wanted = frozenset(kinds)
    frontier = distinct(np.asarray(starts, np.int32))
    holds_all = forward and Edge.HOLD in wanted and depth != 0
    if holds_all and index.kernel is not None and index.kernel in frontier:
        everything = np.ones(index.n_nodes, np.int32)
        everything[frontier] = 0
        return Reached(np.arange(index.n_nodes, dtype=np.int32), everything)
    with index.scratch() as (distance, expanded, touched):
        distance[frontier] = 0
        expanded[frontier] = True
        touched.append(frontier)
        d = 0
        while len(frontier) and (depth is None or d < depth):
            d += 1
            further = []
            for nodes, on in step(index, frontier, wanted, way, d == 1):
                fresh = nodes[distance[nodes] < 0]
                distance[fresh] = d
                touched.append(fresh)
                if on is not None:
                    further.append(nodes[on])
            if not further:
                break
            nodes = np.concatenate(further)
            frontier = distinct(nodes[~expanded[nodes]])
            expanded[frontier] = True
        found = distinct(np.concatenate(touched))
        return Reached(found, distance[found])


_ACCESS = frozenset((Edge.HOLD, Edge.MAP))
# Nodes, and from which of them the walk may go on; None: from none.
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
            out.append((held, None))
    if Edge.MAP in kinds and len(index.runs.runs):
        positions = index.runs.by_node.at(frontier)[0]
        if len(positions):
            ids = index.runs.containing(positions)
            ids = ids[(index.runs.runs.perm[ids] & way.need) == way.need]
            # No MAP leaves the end of a run.
            nodes = distinct(index.runs.runs.dst[ids])
            out.append((nodes, None if kinds <= _ACCESS else np.ones(len(nodes), bool)))
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
            out.append((np.array([index.kernel], np.int32), None))
        if first and way.need == ANY:
            for row in frontier[index.is_pd[frontier]].tolist():
                sure, may = index.hold.T.row_masks(row)
                holders = np.flatnonzero(may if way.possible else sure).astype(np.int32)
                out.append((holders, holders != index.kernel))
    if Edge.MAP in kinds and len(index.runs.runs):
        ids = index.runs.by_dst.at(passable)[0]
        if len(ids):
            ids = ids[(index.runs.runs.perm[ids] & way.need) == way.need]
            nodes = index.runs.runs.source[index.runs.covered(ids)]
            out.append((nodes, np.ones(len(nodes), bool)))
    return out
