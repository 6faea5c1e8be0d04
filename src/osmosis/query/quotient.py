"""The quotient of a graph: nodes that nothing tells apart are one vertex, and paths stay true.

Two resources are one vertex if they are of one type, part of the same spaces, and have the same
ways in: edges with equal permissions and flags from the same vertices. So what reaches a vertex
reaches every member of it, over a path of the same permissions. PDs and spaces stay alone.

Where many vertices map the same, a *range* stands between: ``v IN range`` says that v is one of
those that the range stands for, and what a range maps all of them map. Without ranges, pages that
thousands of processes share and some have copied would have an edge for each process and page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _fastproc import reach
from osmosis.graph.graph import ALL, SERVER, Edge, Kind
from osmosis.query.walk import Index, distinct, gathered

__all__ = ["IN", "Quotient", "quotient"]

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
U8 = NDArray[np.uint64]

IN = len(Edge)  # kind of an edge into a range
_DIRECT = 4  # as many of a span are joined without a range
_ROUNDS = 16  # the partition is right after each; more find more that is equal
_SEEDS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


@dataclass(frozen=True, slots=True, eq=False)
class Quotient:
    """V vertices, PDs first, row for row; then resources and spaces; then ranges."""

    of: I4  # (N,) vertex of each node
    node: I4  # (V,) the first node of each; of a range, the first of its first member
    last: I4  # (V - ranges,) the first node of the last member of each range
    size: I8  # (V,) how many nodes each stands for
    ranges: int  # the first range
    low: I4  # (ranges,) into axis
    high: I4  # (ranges,) itself included
    axis: I4  # vertices that ranges stand for
    edges: dict[str, NDArray[Any]]  # src, dst, kind, perm, maybe, flags, label

    def members(self, vertex: int) -> I4:
        """Nodes that a vertex stands for, ascending. O(N)."""
        if vertex < self.ranges:
            return np.flatnonzero(self.of == vertex).astype(np.int32)
        k = vertex - self.ranges
        return np.flatnonzero(np.isin(self.of, self.axis[self.low[k] : self.high[k] + 1])).astype(
            np.int32
        )


def _mixed(values: NDArray[Any], seed: np.uint64) -> U8:
    """SplitMix64's last step: equal for equal values, else as good as random."""
    z = values.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9) + seed
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


class _Marks:
    """128 bits for each node, by which equal sets are told: the sum of those of the elements."""

    def __init__(self, n: int) -> None:
        self.halves = [np.zeros(n, np.uint64) for _ in _SEEDS]

    def add(self, node: NDArray[Any], *element: NDArray[Any] | int) -> None:
        """Add an element to the set of each of *node*, which is ascending."""
        if not len(node):
            return
        first = np.flatnonzero(np.concatenate([[True], node[1:] != node[:-1]]))
        for half, seed in zip(self.halves, _SEEDS, strict=True):
            mark = np.full(len(node), seed)
            for part in element:
                mark = _mixed(mark ^ _mixed(np.asarray(part), seed), seed)
            half[node[first]] += np.add.reduceat(mark, first)

    def merged(self, nodes: I4, of: I4) -> None:
        """Let those of *nodes* with equal marks be of the first of them, in *of*."""
        low, high = (half[nodes] for half in self.halves)
        order = np.lexsort((nodes, high, low))
        low, high, some = low[order], high[order], nodes[order]
        new = np.ones(len(some), bool)
        new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
        starts = np.flatnonzero(new)
        of[some] = np.repeat(some[starts], np.diff(np.append(starts, len(some))))


def _attributes(index: Index) -> dict[int, I8]:
    """By kind, one number for each edge that tells what it allows from what others allow."""
    return {
        kind: (
            edges.label.astype(np.int64) + 1 << 24
            | edges.perm.astype(np.int64) << 16
            | edges.maybe.astype(np.int64) << 8
            | edges.flags
        )
        for kind, edges in index.kinds.items()
    }


def _partition(index: Index, attribute: dict[int, I8]) -> tuple[I4, dict[str, Any]]:
    """Return the first of those equal to each node, and who maps what over runs, as spans."""
    graph, runs = index.graph, index.runs.runs
    n = index.n_nodes
    of = np.arange(n, dtype=np.int32)
    fixed = _Marks(n)
    nodes = np.arange(n)
    fixed.add(nodes, graph.type.astype(np.int64))
    subset = index.kinds[Edge.SUBSET]
    order = np.argsort(subset.src, kind="stable")
    fixed.add(subset.src[order], subset.dst[order], attribute[Edge.SUBSET][order])

    # Ways in: by edges, each with a number for what it allows.
    resource = graph.kind == Kind.RESOURCE
    holds, maps = index.kinds[Edge.HOLD], index.kinds[Edge.MAP]
    src, dst = np.concatenate([holds.src, maps.src]), np.concatenate([holds.dst, maps.dst])
    allows = np.concatenate([attribute[Edge.HOLD] << 1, attribute[Edge.MAP] << 1 | 1])
    into = resource[dst]
    src, dst = src[into], dst[into]
    known, allows = np.unique(allows[into], return_inverse=True)
    width = max(len(known), 1)
    if n * n * width >= 1 << 63:
        raise ValueError(f"{n} nodes are too many for a quotient")
    mapped, entered = np.zeros((2, n), bool)
    mapped[runs.dst] = True
    entered[dst] = True
    plain = np.flatnonzero(entered & ~mapped & resource).astype(np.int32)

    def marked() -> _Marks:
        out = _Marks(n)
        for mine, given in zip(out.halves, fixed.halves, strict=True):
            mine += given
        node, way = np.divmod(
            distinct((dst.astype(np.int64) * n + of[src]) * width + allows), n * width
        )
        out.add(node, way)
        return out

    for _ in range(_ROUNDS):
        before = of[maps.src]
        marked().merged(plain, of)
        if np.array_equal(before, of[maps.src]):
            break

    # Who maps what over runs: sets of source vertices, as spans of an order in which those that
    # are held alike stand together, by the place of their PD.
    sources = distinct(of[runs.source])
    held = int(into[: len(holds)].sum())
    by = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(by, dst[:held], allows[:held] * index.n_pds + index.place[src[:held]])
    axis = sources[np.argsort(by[sources], kind="stable")]
    at = np.zeros(n, np.int32)
    at[axis] = np.arange(len(axis), dtype=np.int32)
    order = np.lexsort((runs.perm, runs.dst))
    to, perm = runs.dst[order], runs.perm[order]
    begins = np.flatnonzero(
        np.concatenate([[True], (to[1:] != to[:-1]) | (perm[1:] != perm[:-1])])[: len(to)]
    )
    indptr, low, high = reach.spans(
        np.append(begins, len(to)).astype(np.int64),
        runs.first[order].astype(np.int64),
        runs.last[order].astype(np.int64) + 1,
        at[of[runs.source]],
    )
    to, perm = to[begins], perm[begins]
    column = np.repeat(np.arange(len(to)), np.diff(indptr))
    if len(to):
        marks = marked()
        marks.add(to[column], low, high, perm[column].astype(np.int64))
        marks.merged(np.flatnonzero(mapped & resource).astype(np.int32), of)
    keep = of[to[column]] == to[column]
    spans = {
        "axis": axis,
        "dst": to[column[keep]],
        "perm": perm[column[keep]],
        "low": low[keep],
        "high": high[keep],
    }
    return of, spans


def quotient(index: Index) -> Quotient:
    """Return the quotient of a graph.

    Time O((edges + runs) log) and memory of as much; a few ranges and edges for each run, never one
    for each pair of a run. Sets are compared by 128 bits.
    """
    graph = index.graph
    attribute = _attributes(index)
    first, spans = _partition(index, attribute)
    node = distinct(first)  # PDs come first, as nobody precedes them
    number = np.zeros(index.n_nodes, np.int32)
    number[node] = np.arange(len(node), dtype=np.int32)
    of = number[first]
    size = np.bincount(of, minlength=len(node)).astype(np.int64)
    axis = number[spans["axis"]]

    parts: list[tuple[NDArray[Any], ...]] = []
    for kind, edges in index.kinds.items():
        a, b, c = of[edges.src], of[edges.dst], attribute[kind]
        order = np.lexsort((c, b, a))
        a, b, c = a[order], b[order], c[order]
        new = np.ones(len(a), bool)
        new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1]) | (c[1:] != c[:-1])
        a, b, c = a[new], b[new], c[new]
        parts.append(
            (a, b, np.full(len(a), kind), c >> 16 & 255, c >> 8 & 255, c & 255, (c >> 24) - 1)
        )
    if graph.kernel is not None:
        held = np.flatnonzero(graph.kind[node] != Kind.PD).astype(np.int32)
        server = np.where(graph.kind[node[held]] == Kind.SPACE, SERVER, 0)
        parts.append(_alike(np.full(len(held), graph.kernel), held, Edge.HOLD, ALL, server))

    low, high, to, perm = (spans[c] for c in ("low", "high", "dst", "perm"))
    short = high - low < _DIRECT
    count = (high - low + 1)[short].astype(np.int64)
    src = axis[gathered(low[short].astype(np.int64), count)]
    parts.append(
        _alike(src, np.repeat(of[to[short]], count), Edge.MAP, np.repeat(perm[short], count))
    )
    low, high, to, perm = low[~short], high[~short], of[to[~short]], perm[~short]
    # A span of n is the union of two of 2**k that overlap, each of which is of two of 2**(k-1).
    level = np.frexp((high - low + 1).astype(np.float64))[1].astype(np.int64) - 1
    width = np.int64(max(len(axis), 1))
    ends = [level * width + low, level * width + high - (np.int64(1) << level) + 1]
    asked = distinct(np.concatenate(ends))
    every, below, above = [asked[:0]], [asked[:0]], [asked[:0]]
    further = asked[:0]
    for k in range(int(level.max(initial=0)), 0, -1):
        mine = distinct(np.concatenate([asked[asked // width == k], further]))
        halves = mine - width, mine - width + (1 << k - 1)
        every.append(mine)
        below += halves
        above += [mine, mine]
        further = distinct(np.concatenate(halves))
    keys = distinct(np.concatenate(every))
    ranges = len(node)

    def vertex(key: I8) -> I8:
        """A range, or at level 0 the vertex itself."""
        out = ranges + np.searchsorted(keys, key)
        out[key < width] = axis[key[key < width]]
        return out

    parts.append(_alike(vertex(np.concatenate(below)), vertex(np.concatenate(above)), IN, ALL))
    two = ends[0] != ends[1]
    for key, a, b in ((ends[0], to, perm), (ends[1][two], to[two], perm[two])):
        parts.append(_alike(vertex(key), a, Edge.MAP, b))
    level, start = np.divmod(keys, width)
    last = start + (np.int64(1) << level) - 1
    each = np.concatenate([[0], np.cumsum(size[axis])]).astype(np.int64)
    columns = [np.concatenate([np.asarray(p[c]) for p in parts]) for c in range(7)]
    types = (np.int32, np.int32, np.uint8, np.uint8, np.uint8, np.uint8, np.int16)
    names = ("src", "dst", "kind", "perm", "maybe", "flags", "label")
    return Quotient(
        of,
        np.concatenate([node, node[axis[start]]]).astype(np.int32) if len(keys) else node,
        node[axis[last]] if len(keys) else node[:0],
        np.concatenate([size, each[last + 1] - each[start]]),
        ranges,
        start.astype(np.int32),
        last.astype(np.int32),
        axis.astype(np.int32),
        {c: v.astype(t) for c, v, t in zip(names, columns, types, strict=True)},
    )


def _alike(
    src: NDArray[Any], dst: NDArray[Any], kind: int, perm: Any, flags: Any = 0
) -> tuple[NDArray[Any], ...]:
    """Columns of edges of one kind, certain, without a label."""

    def column(value: Any) -> NDArray[Any]:
        return np.broadcast_to(np.asarray(value), src.shape)

    return src, dst, column(kind), column(perm), column(perm), column(flags), column(-1)
