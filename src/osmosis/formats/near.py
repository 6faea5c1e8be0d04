"""The part of a graph around some PDs: what they reach, and by what others reach it too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ANY, POTENTIAL, PRIVATE, Edge, Edges, Graph, Kind, W

__all__ = ["Near", "neighbourhood"]

I8 = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Near:
    """Nodes and edges around the PDs *subject*; edges are between ``nodes``, by node number."""

    graph: Graph
    subject: NDArray[np.int32]  # rows of PDs
    nodes: I8  # ascending
    own: Bools  # (N of the graph,) the subject reaches the node over HOLD, MAP, SUBSET
    edges: Edges  # runs expanded; potential ones and the kernel's holds left out
    pairs: I8  # node * P + PD, ascending: the PD, not the kernel, may reach the node
    writers: I8  # those of the pairs where a path may pass W
    sure_writers: I8  # where one does

    def reached_by(
        self, node: int, *, write: bool = False, certain: bool = False
    ) -> NDArray[np.int32]:
        """PDs that reach *node*, ascending; with *write*, that may write it, or *certain*, do."""
        pairs, p = self.pairs, self.graph.n_pds
        if write:
            pairs = self.sure_writers if certain else self.writers
        low, high = np.searchsorted(pairs, [node * p, (node + 1) * p])
        return (pairs[low:high] % p).astype(np.int32)


def neighbourhood(graph: Graph, subject: NDArray[np.int32]) -> Near:
    """Return what *subject* reaches over HOLD, MAP and SUBSET, asks, and shares with whom.

    What may be there counts as well as what is certain (``Edges.perm`` tells them apart).
    Time and memory O(edges of the graph + edges found), runs expanded only where reached.
    """
    p, n = graph.n_pds, len(graph.kind)
    explicit = _explicit(graph)
    is_subject = np.zeros(n, bool)
    is_subject[subject] = True
    own = _forward(graph, explicit, is_subject)
    runs = _runs_into(graph, own)
    edges = Edges.concatenate([explicit, runs])
    # Back from resources that are its own: other ways to them, then who holds those.
    resource = own & (graph.kind == Kind.RESOURCE)
    back = edges.kind == Edge.MAP
    met = resource.copy()
    fresh = met
    while fresh.any():
        sources = np.zeros(n, bool)
        sources[edges.src[back & fresh[edges.dst]]] = True
        fresh = sources & ~met
        met |= fresh
    met[:p] = False
    control = (edges.kind == Edge.HOLD) & (edges.dst < p)
    keep = (edges.kind == Edge.HOLD) & met[edges.dst]
    keep |= (edges.kind == Edge.HOLD) & own[edges.dst] & is_subject[edges.src]
    keep |= control & (is_subject[edges.src] | is_subject[edges.dst])
    keep |= (edges.kind == Edge.MAP) & met[edges.dst]
    keep |= (edges.kind == Edge.MAP) & own[edges.src] & own[edges.dst]
    keep |= (edges.kind == Edge.SUBSET) & own[edges.src] & own[edges.dst]
    keep |= (edges.kind == Edge.REQUEST) & (is_subject[edges.src] | is_subject[edges.dst])
    keep |= (edges.kind == Edge.HOLD) & own[edges.dst] & (graph.kind[edges.dst] == Kind.SPACE)
    if graph.kernel is not None and not is_subject[graph.kernel]:
        keep &= (edges.kind != Edge.HOLD) | (edges.src != graph.kernel)
    kept = _take(edges, np.flatnonzero(keep))
    there = is_subject.copy()
    there[kept.src] = there[kept.dst] = True
    may_write = _pairs(kept, kept.maybe, p, ANY | W, met)
    decided = np.array_equal(kept.perm, kept.maybe)
    return Near(
        graph,
        subject,
        np.flatnonzero(there).astype(np.int64),
        own,
        kept,
        _pairs(kept, kept.maybe, p, ANY, met),
        may_write,
        may_write if decided else _pairs(kept, kept.perm, p, ANY | W, met),
    )


def _take(edges: Edges, at: NDArray[np.intp]) -> Edges:
    return Edges(*(getattr(edges, column)[at] for column in Edges.__slots__))


def _explicit(graph: Graph) -> Edges:
    edges = graph.edges
    there = ((edges.flags & POTENTIAL) == 0) & (
        ((edges.maybe & ANY) != 0) | (edges.kind == Edge.SUBSET) | (edges.kind == Edge.REQUEST)
    )
    return _take(edges, np.flatnonzero(there))


def _forward(graph: Graph, edges: Edges, start: Bools) -> Bools:
    """Nodes, PDs left out, that *start* reaches over HOLD, MAP and SUBSET."""
    p = graph.n_pds
    own = np.zeros(len(graph.kind), bool)
    hold = edges.kind == Edge.HOLD
    own[edges.dst[hold & start[edges.src]]] = True
    own[:p] = False
    onward = np.flatnonzero((edges.kind == Edge.MAP) | (edges.kind == Edge.SUBSET))
    src, dst = edges.src[onward], edges.dst[onward]
    source = graph.runs.source
    while True:
        before = np.count_nonzero(own)
        own[dst[own[src]]] = True
        if len(graph.runs):
            at = np.concatenate([[0], np.cumsum(own[source])])
            hit = at[graph.runs.last + 1] > at[graph.runs.first]
            own[graph.runs.dst[hit]] = True
        own[:p] = False
        if np.count_nonzero(own) == before:
            return own


def _runs_into(graph: Graph, own: Bools) -> Edges:
    """MAP edges of the runs that end in *own*, one by one."""
    runs = graph.runs
    at = np.flatnonzero(own[runs.dst])
    if not len(at):
        return Edges.of([], [], Edge.MAP)
    sizes = (runs.last[at] - runs.first[at] + 1).astype(np.int64)
    ends = np.cumsum(sizes)
    within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
    return Edges.of(
        runs.source[np.repeat(runs.first[at], sizes) + within],
        np.repeat(runs.dst[at], sizes),
        Edge.MAP,
        perm=np.repeat(runs.perm[at], sizes),
        rule=np.repeat(runs.rule[at], sizes),
    )


def _pairs(edges: Edges, masks: NDArray[np.uint8], p: int, need: int, wanted: Bools) -> I8:
    """(node * P + PD) of every path over HOLD and MAP whose *masks* all have *need*."""
    passing = (masks & need) == need
    hold = passing & (edges.kind == Edge.HOLD) & wanted[edges.dst]
    node, holder = edges.dst[hold].astype(np.int64), edges.src[hold].astype(np.int64)
    # A private mapping can be written, and what is behind it cannot through it.
    ends = ((edges.flags[hold] & PRIVATE) != 0) if need & W else np.zeros(len(node), bool)
    seen = _distinct(node * p + holder)
    fresh = _distinct((node * p + holder)[~ends])
    step = np.flatnonzero(passing & (edges.kind == Edge.MAP) & wanted[edges.dst])
    order = step[np.argsort(edges.src[step], kind="stable")]
    src, dst = edges.src[order], edges.dst[order]
    while len(fresh) and len(src):
        at, who = np.divmod(fresh, p)
        low = np.searchsorted(src, at, "left")
        count = np.searchsorted(src, at, "right") - low
        stops = np.cumsum(count)
        total = int(stops[-1]) if len(stops) else 0
        index = np.arange(total) - np.repeat(stops - count, count) + np.repeat(low, count)
        found = _distinct(dst[index].astype(np.int64) * p + np.repeat(who, count))
        place = np.searchsorted(seen, found)
        known = np.zeros(len(found), bool)
        within = place < len(seen)
        known[within] = seen[place[within]] == found[within]
        fresh = found[~known]
        seen = np.sort(np.concatenate([seen, fresh]), kind="stable")
    return seen


def _distinct(values: I8) -> I8:
    # np.unique hashes (NumPy >= 2.3): five times slower than a sort for millions of pairs.
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values
