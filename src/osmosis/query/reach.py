"""What every PD reaches, all at once: the incidence that whole-host sharing is made of."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from _fastproc import reach
from osmosis.graph.graph import POTENTIAL, PRIVATE, Edge, Kind
from osmosis.graph.relation import Bits, clear_diagonal
from osmosis.query.walk import Index, Way, distinct, gathered

__all__ = ["Incidence", "Spans", "incidence", "joined", "spans"]

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


def _reached(index: Index, way: Way) -> tuple[I4, I4, I4, I4]:
    """Pairs (pd, node) over explicit edges; then those of them that a path may go on from."""

    def usable(kind: int) -> tuple[I4, I4, Bools]:
        edges = index.kinds[kind]
        keep = way.passes(edges, np.arange(len(edges)), kind)
        if not way.potential:
            keep &= (edges.flags & POTENTIAL) == 0
        keep &= ~index.is_pd[edges.dst]
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
        fresh = on
        while len(fresh):
            nodes = (fresh % n).astype(np.int32)
            low = np.searchsorted(key, nodes, "left")
            counts = np.searchsorted(key, nodes, "right") - low
            found = np.repeat(fresh - nodes, counts) + target[gathered(low, counts)]
            found = distinct(found)
            fresh = found[~np.isin(found, on, assume_unique=True, kind="sort")]
            on = np.sort(np.concatenate([on, fresh]))
            reached.append(fresh)
    pairs = distinct(np.concatenate(reached))
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
    pd, node, on_pd, on_node = _reached(index, way)
    keep = wanted[node]
    pd, node = pd[keep], node[keep]
    order = np.lexsort((value[pd], node))
    pd, node = pd[order], node[order]
    explicit, starts = np.unique(node, return_index=True)
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
    nodes, begins = np.unique(column[order], return_index=True)
    found = reach.spans(
        np.append(begins, len(column)).astype(np.int64),
        low[order].astype(np.int64),
        high[order].astype(np.int64),
        holder,
    )
    return Spans(nodes.astype(np.int32), *found)


def joined(own: Spans, other: Spans, index: Index) -> Bits:
    """Return (P, words(P)) bits: i and j where i reaches a node of *own* that j does in *other*."""
    _, a_at, b_at = np.intersect1d(own.nodes, other.nodes, assume_unique=True, return_indices=True)
    a, b = own.take(a_at), other.take(b_at)
    # A node that only one PD reaches makes no neighbours.
    alone = np.diff(a.indptr) == 1
    alone &= np.diff(b.indptr) == 1
    k = np.flatnonzero(alone)
    x, y = a.indptr[k], b.indptr[k]
    same = (a.first[x] == b.first[y]) & (a.first[x] == a.last[x]) & (b.first[y] == b.last[y])
    keep = np.setdiff1d(np.arange(len(a_at)), k[same], assume_unique=True)
    a, b = a.take(keep), b.take(keep)
    bits = reach.meeting_bits(a.indptr, a.first, a.last, b.indptr, b.first, b.last, index.by_place)
    return clear_diagonal(bits)
