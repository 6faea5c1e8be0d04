"""How many pages each PD has in common with at least one other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ANY, POTENTIAL, Edge, Edges, Graph, Kind, no_runs
from osmosis.model import Model

__all__ = ["pages_shared"]

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
_PAIRS = 1 << 23  # (memory object, PD) pairs at once


def pages_shared(model: Model) -> I8:
    """Return (P,) base pages of each PD that another PD, not the kernel, maps as well.

    Of what is certain. A frame counts once, however often a PD maps it. The kernel has 0: it
    maps all. Time O(pairs log pairs) of memory object and PD; memory 16 bytes for each of
    ``_PAIRS`` pairs, not of all.
    """
    members = model.pds.members
    n = len(model.pds)
    group = np.arange(n, dtype=np.int32) if members is None else members[1]
    pages = model.data.pages
    kernel = model.data.kernel
    out = np.zeros(n)
    for mo, pd in _pairs(model.data):
        key = np.sort(mo * np.int64(n) + group[pd])
        key = key[np.concatenate([[True], key[1:] != key[:-1]])] if len(key) else key
        objects, holders = np.divmod(key, n)
        if kernel is not None:
            keep = holders != group[kernel]
            objects, holders = objects[keep], holders[keep]
        starts = np.flatnonzero(np.concatenate([[True], objects[1:] != objects[:-1]]))
        counts = np.diff(np.append(starts, len(objects))) if len(objects) else starts
        several = np.repeat(counts, counts) > 1 if len(objects) else np.empty(0, bool)
        weight = pages[objects[several]]
        out += np.bincount(holders[several], weights=weight, minlength=n)
    return np.rint(out).astype(np.int64)


def _pairs(graph: Graph) -> Iterator[tuple[I8, I4]]:
    """(memory object, PD) of every certain path over HOLD and MAP, some objects at a time."""
    kinds = [t for t, name in enumerate(graph.types) if name == "MO"]
    is_mo = np.isin(graph.type, kinds) & (graph.kind == Kind.RESOURCE)  # not the space MO
    runs, edges = graph.runs, graph.edges
    if np.isin(runs.dst, np.union1d(runs.source, edges.src[edges.kind == Edge.MAP])).any():
        # Paths that go on behind a run: never of a host, whose runs end in memory.
        runs, edges = no_runs(), Edges.concatenate([edges, runs.expand()])
    reached = _explicit(edges, graph.n_pds)  # node * P + PD, ascending
    p = graph.n_pds
    node, holder = np.divmod(reached, p)
    direct = is_mo[node]
    mo, pd = node[direct], holder[direct].astype(np.int32)
    use = np.flatnonzero(((runs.perm & ANY) != 0) & is_mo[runs.dst])
    use = use[np.argsort(runs.dst[use], kind="stable")]
    low = np.searchsorted(node, runs.source, "left")
    count = np.searchsorted(node, runs.source, "right") - low
    # PDs that hold each source, end to end in run order.
    flat = holder[np.repeat(low, count) + _ranges(count)].astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(count)])
    first = ends[runs.first[use]]
    size = ends[runs.last[use] + 1] - first
    target = runs.dst[use].astype(np.int64)
    total = np.cumsum(size)
    at = 0
    done = np.int64(-1)  # objects up to this one were given
    while at < len(use):
        before = total[at - 1] if at else 0
        stop = max(at + 1, int(np.searchsorted(total, before + _PAIRS, "right")))
        stop = int(np.searchsorted(target, target[stop - 1], "right"))  # whole objects
        last = target[stop - 1]
        here = slice(*np.searchsorted(mo, [done, last], "right"))
        sizes = size[at:stop]
        pds = flat[np.repeat(first[at:stop], sizes) + _ranges(sizes)]
        objects = np.repeat(target[at:stop], sizes)
        yield np.concatenate([mo[here], objects]), np.concatenate([pd[here], pds])
        at, done = stop, last
    rest = slice(int(np.searchsorted(mo, done, "right")), None)
    yield mo[rest], pd[rest]


def _explicit(edges: Edges, n_pds: int) -> I8:
    """Node * P + PD, ascending, of every certain path over explicit HOLD and MAP edges."""
    p = np.int64(n_pds)
    sure = ((edges.perm & ANY) != 0) & ((edges.flags & POTENTIAL) == 0)
    hold = sure & (edges.kind == Edge.HOLD) & (edges.dst >= p)
    seen: I8 = np.unique(edges.dst[hold] * p + edges.src[hold])
    step = np.flatnonzero(sure & (edges.kind == Edge.MAP))
    order = step[np.argsort(edges.src[step], kind="stable")]
    src, dst = edges.src[order], edges.dst[order]
    fresh = seen
    while len(fresh) and len(src):
        at, who = np.divmod(fresh, p)
        low = np.searchsorted(src, at, "left")
        count = np.searchsorted(src, at, "right") - low
        found = dst[np.repeat(low, count) + _ranges(count)] * p + np.repeat(who, count)
        fresh = np.setdiff1d(found, seen)
        seen = np.union1d(seen, fresh)
    return seen


def _ranges(sizes: NDArray[np.integer]) -> I8:
    """0 .. sizes[0]-1, 0 .. sizes[1]-1, ... end to end."""
    ends = np.cumsum(sizes, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    out: I8 = np.arange(total) - np.repeat(ends - sizes, sizes)
    return out
