"""What every PD reaches, all at once: the incidence that whole-host sharing is made of."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import POTENTIAL, PRIVATE, Edge, Kind
from osmosis.graph.relation import Bits, clear_diagonal, pack, words
from osmosis.query.walk import Index, Way, gathered

__all__ = ["Incidence", "incidence", "joined"]

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
Bools = NDArray[np.bool_]

_SMALL = 48  # holders of a node, below which its pairs are written one by one
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
    on = np.unique(np.concatenate([src[~ends] * n + dst[~ends], map_src[own] * n + map_dst[own]]))
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
            fresh = np.setdiff1d(found, on)
            on = np.union1d(on, fresh)
            reached.append(fresh)
    pairs = np.unique(np.concatenate(reached))
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
            parts.append(np.unique(found))
    pairs = np.unique(np.concatenate(parts)) if len(parts) > 1 else np.sort(parts[0])
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


def joined(own: Incidence, other: Incidence, n: int) -> Bits:
    """Return (n, words(n)) bits: i and j where i reaches a node of *own* that j does in *other*.

    The join over nodes. Nodes with few holders are written pair by pair; of those with many,
    each distinct pair of sets is joined once, by whole rows.
    """
    out = np.zeros((n, words(n)), np.uint64)
    both, a_at, b_at = np.intersect1d(
        own.nodes, other.nodes, assume_unique=True, return_indices=True
    )
    if not len(both):
        return out
    na, nb = own.counts[a_at], other.counts[b_at]
    # A node that only one PD reaches makes no neighbours.
    alone = (na == 1) & (nb == 1)
    alone[alone] = own.pds[own.indptr[a_at[alone]]] == other.pds[other.indptr[b_at[alone]]]
    a_at, b_at, na, nb = a_at[~alone], b_at[~alone], na[~alone], nb[~alone]
    small = na * nb <= _SMALL * _SMALL
    flat = out.reshape(-1)
    width = out.shape[1]
    for some in _slices((na * nb)[small]):
        a, b, ca, cb = a_at[small][some], b_at[small][some], na[small][some], nb[small][some]
        i = np.repeat(own.pds[gathered(own.indptr[a], ca)], np.repeat(cb, ca))
        j = other.pds[gathered(np.repeat(other.indptr[b], ca), np.repeat(cb, ca))]
        pairs = np.unique(i.astype(np.int64) * n + j)
        i, j = pairs // n, pairs % n
        np.bitwise_or.at(flat, i * width + (j >> 6), np.uint64(1) << (j & 63).astype(np.uint64))
    seen: set[tuple[bytes, bytes]] = set()
    order = np.argsort(-(na * nb), kind="stable")
    for k in order[~small[order]].tolist():
        i = own.pds[own.indptr[a_at[k]] : own.indptr[a_at[k]] + na[k]]
        j = other.pds[other.indptr[b_at[k]] : other.indptr[b_at[k]] + nb[k]]
        key = (i.tobytes(), j.tobytes())
        if key in seen:
            continue
        seen.add(key)
        mask = np.zeros((1, n), bool)
        mask[0, j] = True
        out[i] |= pack(mask)
    return clear_diagonal(out)
