"""What every PD reaches, all at once: the incidence that whole-host sharing is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from _fastproc import reach
from osmosis.graph.graph import POTENTIAL, PRIVATE, Edge, Kind
from osmosis.query.walk import Index, Way, distinct, gathered

__all__ = [
    "Incidence",
    "Spans",
    "aligned",
    "certain_spans",
    "incidence",
    "reached_alone",
    "shareable",
    "spans",
    "touched",
    "undecided",
]

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
Bools = NDArray[np.bool_]

_CHUNK = 1 << 23  # pairs at once


@dataclass(frozen=True, slots=True, eq=False)
class Incidence:
    """Which PDs reach which nodes, over HOLD and MAP, as columns: one per node that is reached.

    Column k is node ``nodes[k]``, reached by ``pds[indptr[k]:indptr[k + 1]]``, ascending.
    The kernel, which reaches all, is in none.
    """

    nodes: I4  # (C,) ascending
    indptr: I8  # (C + 1,)
    pds: I4  # (pairs,)

    @property
    def counts(self) -> I8:
        """(C,) number of PDs that reach each node."""
        return np.diff(self.indptr)

    def take(self, columns: I8) -> Incidence:
        """Only the given columns, ascending."""
        counts = self.counts[columns]
        indptr = np.concatenate([[0], np.cumsum(counts)])
        return Incidence(
            self.nodes[columns], indptr, self.pds[gathered(self.indptr[:-1][columns], counts)]
        )


def _reached(index: Index, way: Way, toward: Bools | None = None) -> tuple[I4, I4, I4, I4]:
    """Pairs (pd, node) over explicit edges; then those of them that a path may go on from.

    With *toward*, (N,) bool, only over the nodes in it; a PD that a run leaves is in the second
    pairs, with itself.
    """

    def usable(kind: int) -> tuple[I4, I4, Bools]:
        edges = index.kinds[kind]
        keep = way.passes(edges, np.arange(len(edges)), kind)
        if not way.potential:
            keep &= (edges.flags & POTENTIAL) == 0
        keep &= ~index.is_pd[edges.dst]
        if toward is not None:
            keep &= toward[edges.dst]
        ends = np.zeros(int(keep.sum()), bool)
        if kind == Edge.HOLD and way.ends_private:
            ends = (edges.flags[keep] & PRIVATE) != 0
        return edges.src[keep], edges.dst[keep], ends

    n = np.int64(index.n_nodes)
    src, dst, ends = usable(Edge.HOLD)
    map_src, map_dst, _ = usable(Edge.MAP)
    own = index.is_pd[map_src]
    if index.kernel is not None:
        own &= map_src != index.kernel
    all_pairs = np.concatenate([src, map_src[own]]) * n + np.concatenate([dst, map_dst[own]])
    on = distinct(np.concatenate([src[~ends] * n + dst[~ends], map_src[own] * n + map_dst[own]]))
    reached = [all_pairs]
    inner = ~index.is_pd[map_src]
    map_src, map_dst = map_src[inner], map_dst[inner]
    if len(map_src):
        order = np.argsort(map_src, kind="stable")
        key, target = map_src[order], map_dst[order]
        leaves = np.zeros(index.n_nodes, bool)
        leaves[key] = True
        fresh = on
        while len(fresh):
            fresh = fresh[leaves[fresh % n]]
            nodes = (fresh % n).astype(np.int32)
            low = np.searchsorted(key, nodes, "left")
            counts = np.searchsorted(key, nodes, "right") - low
            found = np.repeat(fresh - nodes, counts) + target[gathered(low, counts)]
            found = distinct(found)
            fresh = found[~np.isin(found, on, assume_unique=True, kind="sort")]
            on = np.sort(np.concatenate([on, fresh]))
            reached.append(fresh)
    pairs = distinct(np.concatenate(reached))
    direct = index.runs.runs.source
    direct = distinct(direct[index.is_pd[direct]])
    if len(direct):
        direct = direct[direct != (-1 if index.kernel is None else index.kernel)]
        on = np.concatenate([on, direct * (n + 1)])
    return (
        (pairs // n).astype(np.int32),
        (pairs % n).astype(np.int32),
        (on // n).astype(np.int32),
        (on % n).astype(np.int32),
    )


def incidence(
    index: Index, way: Way, kind: Kind, types: Bools | None, only: I4 | None = None
) -> Incidence:
    """Return which PDs reach which nodes of a kind and of types.

    Parameters
    ----------
    index, way
        The graph, and what a path must allow.
    kind
        Of the nodes.
    types
        (types + 1,) bool, by number of a type; None for all.
    only
        Nodes to look at, ascending; None for all.

    """
    graph = index.graph
    wanted = graph.kind == kind
    if types is not None:
        wanted &= types[graph.type]
    if only is not None:
        chosen = np.zeros(len(wanted), bool)
        chosen[only] = True
        wanted &= chosen
    pd, node, on_pd, on_node = _reached(index, way)
    keep = wanted[node]
    parts = [node[keep].astype(np.int64) * index.n_pds + pd[keep]]
    runs = index.runs.runs
    use = np.flatnonzero(wanted[runs.dst] & ((runs.perm & way.need) == way.need))
    if len(use) and len(on_pd):
        # The PDs of a run are neighbours once holders stand in the order of the sources.
        places, at = index.runs.by_node.at(on_node)
        order = np.argsort(places, kind="stable")
        holder = on_pd[at[order]]
        starts = np.searchsorted(places[order], np.arange(len(runs.source) + 1))
        low = starts[runs.first[use]]
        counts = starts[runs.last[use] + 1] - low
        for some in _slices(counts):
            base = np.repeat(runs.dst[use[some]].astype(np.int64) * index.n_pds, counts[some])
            found = base + holder[gathered(low[some], counts[some])]
            parts.append(distinct(found))
    pairs = distinct(np.concatenate(parts)) if len(parts) > 1 else np.sort(parts[0])
    nodes, starts = np.unique(pairs // max(index.n_pds, 1), return_index=True)
    return Incidence(
        nodes.astype(np.int32),
        np.concatenate([starts, [len(pairs)]]).astype(np.int64),
        (pairs % max(index.n_pds, 1)).astype(np.int32),
    )


def _slices(counts: I8) -> list[slice]:
    """Cut into slices of at most _CHUNK counts each, or of one."""
    if not len(counts):
        return []
    total = np.cumsum(counts)
    cuts = np.searchsorted(total, np.arange(0, int(total[-1]), _CHUNK), "left")
    ends = np.unique(np.concatenate([cuts, [len(counts)]]))
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Which PDs reach which nodes, as spans of places: small where an incidence is not.

    Column k is node ``nodes[k]``, reached by the places ``first[s] .. last[s]`` for s from
    ``indptr[k]`` to ``indptr[k + 1]``: disjoint, rising, not empty. Without the kernel.
    """

    nodes: I4  # (C,) ascending
    indptr: I8  # (C + 1,)
    first: I4  # (S,) places: PDs by `Index.place`, or groups
    last: I4  # (S,) itself included

    def take(self, columns: I8) -> Spans:
        """Only the given columns, ascending."""
        counts = np.diff(self.indptr)[columns]
        at = gathered(self.indptr[:-1][columns], counts)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Spans(self.nodes[columns], indptr, self.first[at], self.last[at])


def spans(
    index: Index,
    way: Way,
    kind: Kind,
    types: Bools | None,
    only: I4 | None = None,
    value: I4 | None = None,
) -> Spans:
    """Return which PDs reach which nodes, without writing the pairs out.

    Parameters
    ----------
    index, way, kind, types, only
        As for `incidence`.
    value
        (P,) int32, the place of each PD, which several may have; None: `Index.place`.

    """
    graph, runs = index.graph, index.runs.runs
    value = index.place if value is None else value
    wanted = graph.kind == kind
    if types is not None:
        wanted &= types[graph.type]
    if only is not None:
        chosen = np.zeros(len(wanted), bool)
        chosen[only] = True
        wanted &= chosen
    toward = None if only is None else _leading(index, wanted)
    pd, node, on_pd, on_node = _reached(index, way, toward)
    keep = wanted[node]
    pd, node = pd[keep], node[keep]
    order = np.argsort(node.astype(np.int64) * (int(value.max(initial=0)) + 1) + value[pd])
    pd, node = pd[order], node[order]
    explicit, starts = _first_of_each(node)
    ends = np.append(starts[1:], len(node))[: len(starts)]
    places, at = index.runs.by_node.at(on_node)
    order = np.argsort(places, kind="stable")
    places = places[order]
    holder = np.concatenate([value[pd], value[on_pd[at[order]]]]).astype(np.int32)
    use = np.flatnonzero(wanted[runs.dst] & ((runs.perm & way.need) == way.need))
    offset = np.searchsorted(places, np.arange(len(runs.source) + 1)) + len(pd)
    low, high = offset[runs.first[use]], offset[runs.last[use] + 1]
    use, low, high = use[low < high], low[low < high], high[low < high]
    column = np.concatenate([explicit, runs.dst[use]])
    low, high = np.concatenate([starts, low]), np.concatenate([ends, high])
    order = np.argsort(column, kind="stable")
    nodes, begins = _first_of_each(column[order])
    found = reach.spans(
        np.append(begins, len(column)).astype(np.int64),
        low[order].astype(np.int64),
        high[order].astype(np.int64),
        holder,
    )
    return Spans(nodes.astype(np.int32), *found)


def _first_of_each(values: NDArray[np.integer]) -> tuple[I4, I8]:
    """Distinct values of a sorted array, and where each begins."""
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
    return values[starts].astype(np.int32), starts


def aligned(own: Spans, other: Spans) -> tuple[Spans, Spans]:
    """Return the columns of the nodes that are in both."""
    if own is other:
        return own, other
    _, a_at, b_at = np.intersect1d(own.nodes, other.nodes, assume_unique=True, return_indices=True)
    return own.take(a_at), other.take(b_at)


# -- which nodes matter at all


def _leading(index: Index, wanted: Bools) -> Bools:
    """(N,) bool: *wanted*, and the nodes from which MAP may lead to it. O(N + runs + edges)."""
    out = wanted.copy()
    runs, maps, side = index.runs.runs, index.kinds[Edge.MAP], index.backward[Edge.MAP]
    if len(runs):
        covered = index.runs.covered(np.flatnonzero(wanted[runs.dst]))
        out[runs.source[covered]] = True
    before = maps.src[out[maps.dst]]
    while len(before):
        fresh = distinct(before[~out[before]])
        out[fresh] = True
        before = maps.src[side.at(fresh)[0]]
    return out


def _following(index: Index, start: Bools) -> Bools:
    """(N,) bool: *start*, and what MAP may lead to from it. O(N + runs + edges)."""
    out = start.copy()
    runs, maps, side = index.runs.runs, index.kinds[Edge.MAP], index.forward[Edge.MAP]
    after = maps.dst[out[maps.src]]
    while len(after):
        fresh = distinct(after[~out[after]])
        out[fresh] = True
        after = maps.dst[side.at(fresh)[0]]
    if len(runs):  # nothing leaves the end of a run
        before = np.concatenate([[0], np.cumsum(out[runs.source])])
        out[runs.dst[before[runs.last + 1] > before[runs.first]]] = True
    return out


def shareable(index: Index) -> Bools:
    """(N,) bool, kept: all nodes that two PDs other than the kernel may reach, and maybe more.

    What has one way in, from a PD or from a node of which that is so, is one PD's own, whatever
    a path must allow: most mappings and all private memory. O(N + runs + edges).
    """

    def make() -> Bools:
        runs = index.runs.runs
        ways = np.zeros(index.n_nodes, np.int64)
        for kind in (Edge.HOLD, Edge.MAP):
            ways += np.bincount(index.kinds[kind].dst, minlength=index.n_nodes)
        np.add.at(ways, runs.dst, runs.last - runs.first + 1)
        return _following(index, ways > 1)

    return index.once("shareable", make)


def reached_alone(index: Index, way: Way, wanted: Bools) -> tuple[I4, I4]:
    """Return the nodes of *wanted* that are not `shareable`, and the PD that reaches each.

    Not the kernel; nodes that nobody reaches are left out. Of a way without W: a private
    HOLD is then as good as another. O(N log N), as each has one way in at most.
    """
    if way.ends_private:
        raise ValueError("a private HOLD ends the paths of this way")
    parent = np.arange(index.n_nodes, dtype=np.int32)
    for kind in (Edge.HOLD, Edge.MAP):
        edges = index.kinds[kind]
        keep = way.passes(edges, np.arange(len(edges)), kind) & ~index.is_pd[edges.dst]
        if not way.potential:
            keep &= (edges.flags & POTENTIAL) == 0
        parent[edges.dst[keep]] = edges.src[keep]
    runs = index.runs.runs
    use = (runs.perm & way.need) == way.need
    parent[runs.dst[use]] = runs.source[runs.first[use]]
    nodes = np.flatnonzero(wanted & ~shareable(index)).astype(np.int32)
    root = parent
    for _ in range(index.n_nodes.bit_length()):
        further = root[root]
        if np.array_equal(further, root):
            break
        root = further
    found = root[nodes]
    keep = index.is_pd[found]
    if index.kernel is not None:
        keep &= found != index.kernel
    return nodes[keep], found[keep]


def certain_spans(index: Index, way: Way, kind: Kind) -> Spans:
    """Return the columns of all nodes of a kind that two PDs may reach; kept."""

    def make() -> Spans:
        several = np.flatnonzero(shareable(index) & (index.graph.kind == kind))
        return spans(index, way, kind, None, only=several.astype(np.int32))

    return index.once(("spans", way, kind), make)


def undecided(index: Index, needs: Iterable[int], kind: Kind, potential: bool) -> I4:
    """Return the nodes of a kind that more PDs may reach than certainly do, ascending.

    With one of the masks; without those that one PD alone may reach. Edges that were not
    observed count with *potential* only.
    """
    start = np.zeros(index.n_nodes, bool)
    for edge_kind in (Edge.HOLD, Edge.MAP):
        edges = index.kinds[edge_kind]
        differs = edges.maybe != edges.perm
        if not potential:
            differs &= (edges.flags & POTENTIAL) == 0
        at = np.flatnonzero(differs)
        sure, may = edges.perm[at], edges.maybe[at]
        for need in needs:
            start[edges.dst[at[((sure & need) == need) != ((may & need) == need)]]] = True
    found = _following(index, start) & shareable(index) & (index.graph.kind == kind)
    return np.flatnonzero(found).astype(np.int32)


def touched(index: Index, way: Way, kind: Kind) -> Bools:
    """(types, P) bool, kept: whether a PD reaches any node of a kind and type; not the kernel.

    Time O(types / 64 * (N + runs + edges)): each node is marked with the types behind it.
    """
    graph, runs = index.graph, index.runs.runs
    holds, maps, side = index.kinds[Edge.HOLD], index.kinds[Edge.MAP], index.backward[Edge.MAP]

    def usable(kind_: int) -> Bools:
        edges = index.kinds[kind_]
        need = np.uint8(way.need)
        keep: Bools = ((edges.maybe if way.possible else edges.perm) & need) == need
        if not way.potential:
            keep &= (edges.flags & POTENTIAL) == 0
        keep &= ~index.is_pd[edges.dst]
        return keep

    def behind(first: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The types of a block: of each node, and of each with all that MAP leads to."""
        bit = np.zeros(len(graph.types) + 1, np.uint64)  # the last for PDs
        count = min(64, len(graph.types) - first)
        bit[first : first + count] = np.uint64(1) << np.arange(count, dtype=np.uint64)
        own = np.where(graph.kind == kind, bit[graph.type], np.uint64(0))
        marks = own.copy()
        use = np.flatnonzero((runs.perm & way.need) == way.need)
        ends = own[runs.dst[use]]
        for mark in distinct(ends[ends > 0]):
            marks[runs.source[index.runs.covered(use[ends == mark])]] |= mark
        if len(maps):
            on = usable(Edge.MAP)
            ids = np.flatnonzero(on)
            while len(ids):
                ids = ids[(marks[maps.dst[ids]] & ~marks[maps.src[ids]]) != 0]
                np.bitwise_or.at(marks, maps.src[ids], marks[maps.dst[ids]])
                fresh = distinct(maps.src[ids])
                ids = side.at(fresh[~index.is_pd[fresh]])[0]
                ids = ids[on[ids]]
        return own, marks

    def make() -> Bools:
        out = np.zeros((len(graph.types), index.n_pds), bool)
        usable_holds = usable(Edge.HOLD)
        ends = (holds.flags & PRIVATE) != 0
        for first in range(0, len(graph.types), 64):
            own, marks = behind(first)
            found = marks[: index.n_pds].copy()  # by MAP and runs of its own
            value = marks[holds.dst]
            if way.ends_private:
                value[ends] = own[holds.dst[ends]]
            value[~usable_holds] = 0
            found |= index.forward[Edge.HOLD].reduced(np.bitwise_or, value, index.n_pds)
            if index.kernel is not None:
                found[index.kernel] = 0
            for k in range(min(64, len(graph.types) - first)):
                out[first + k] = (found >> np.uint64(k)) & np.uint64(1)
        return out

    return index.once(("touched", way, kind), make)
