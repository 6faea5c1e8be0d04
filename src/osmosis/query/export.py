"""The same graph as an igraph.Graph, for those who know igraph."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import (
    ALL,
    ANY,
    POTENTIAL,
    PRIVATE,
    SERVER,
    Edge,
    Edges,
    Graph,
    Kind,
    Runs,
)
from osmosis.query.control import Controls
from osmosis.query.quotient import IN, Quotient
from osmosis.query.walk import Index, Way, walk

if TYPE_CHECKING:
    import igraph

__all__ = ["expanded", "topology"]

I4 = NDArray[np.int32]
_LETTERS = [
    "".join(name for name, bit in (("R", 4), ("W", 2), ("X", 1)) if mask & bit)
    for mask in range(16)
]


def topology(index: Index, made: Quotient) -> igraph.Graph:
    """Return the quotient as an igraph.Graph; vertex i is row i for the PDs.

    Vertices have ``name`` (of the first node), ``kind``, ``type``, ``size`` (nodes that it stands
    for) and ``pages`` (of all of them, in 4 KiB; of memory objects); edges ``kind``, ``perm``
    ("RW"; what is certain), ``certain``, ``potential``, ``private``, ``flags``, ``label`` and
    ``verb``.
    """
    graph = index.graph
    columns = made.edges
    edges = Edges(**columns, rule=np.full(len(columns["src"]), -1, np.int16))
    node = made.node
    out = _drawn(graph, node, edges)
    n_ranges = len(node) - made.ranges
    out.vs["kind"] = [*out.vs["kind"][: made.ranges], *["RANGE"] * n_ranges]
    ends = zip(node[made.ranges :].tolist(), made.last.tolist(), strict=True)
    ranges = [f"{graph.names[a]}..{graph.names[b]}" for a, b in ends]
    out.vs["name"] = [*out.vs["name"][: made.ranges], *ranges]
    pages = np.zeros(len(node))
    memory = [name == "MO" for name in (*graph.types, "PD")]
    weigh = np.array(memory)[graph.type] & (graph.kind == Kind.RESOURCE)
    pages[: made.ranges] = np.bincount(made.of, graph.pages * weigh, minlength=made.ranges)
    out.vs["size"] = made.size.tolist()
    out.vs["pages"] = pages.tolist()
    return out


def _drawn(graph: Graph, node: I4, edges: Edges) -> igraph.Graph:
    """The igraph.Graph of vertices, each named by a node, and of edges between vertices."""
    # Where a drawing library is installed igraph brings it along, for a third of a second.
    import igraph

    # Lists of tuples are 2 to 3 times faster than an (E, 2) array in igraph 1.0.
    out = igraph.Graph(
        n=len(node),
        edges=list(zip(edges.src.tolist(), edges.dst.tolist(), strict=True)),
        directed=True,
    )
    kinds = [kind.name for kind in Kind]
    names = graph.names
    out.vs["name"] = [names[i] for i in node.tolist()]
    out.vs["kind"] = [kinds[k] for k in graph.kind[node].tolist()]
    out.vs["type"] = ["PD" if t < 0 else graph.types[t] for t in graph.type[node].tolist()]
    _describe(out, graph, edges, graph.kind[node] == Kind.PD)
    return out


def _describe(out: igraph.Graph, graph: Graph, edges: Edges, is_pd: NDArray[np.bool_]) -> None:
    kinds = [*(kind.name for kind in Edge), "IN"]
    permitted = np.isin(edges.kind, (Edge.HOLD, Edge.MAP, IN))
    masks = np.where(permitted, edges.perm & 7, 0).tolist()
    out.es["kind"] = [kinds[k] for k in edges.kind.tolist()]
    out.es["perm"] = [_LETTERS[mask] for mask in masks]
    out.es["certain"] = (edges.perm & ANY != 0).tolist()
    out.es["potential"] = (edges.flags & POTENTIAL != 0).tolist()
    out.es["private"] = (edges.flags & PRIVATE != 0).tolist()
    out.es["flags"] = edges.flags.tolist()
    out.es["label"] = [None if i < 0 else graph.labels[i] for i in edges.label.tolist()]
    to_pd = (edges.kind == Edge.HOLD) & is_pd[edges.dst]
    verbs = np.full(len(edges), None, object)
    for e in np.flatnonzero(to_pd).tolist():
        label = int(edges.label[e])
        verbs[e] = graph.labels[label] if label >= 0 else "hold"
    out.es["verb"] = verbs.tolist()


def _reached(index: Index, rows: I4 | None) -> tuple[I4, Edges]:
    """PDs and what *rows* reach, as nodes; and every edge between them, ends by their number."""
    graph = index.graph
    edges, runs = graph.edges, graph.runs
    chosen = np.ones(index.n_nodes, bool)
    if rows is not None:
        chosen = index.is_pd.copy()
        # Masks of 0 are had by every edge: certain or not, potential or not.
        kinds = (Edge.HOLD, Edge.MAP, Edge.SUBSET)
        rows = rows[rows != (-1 if graph.kernel is None else graph.kernel)]
        chosen[walk(index, rows, kinds, Way(0, True, True)).nodes] = True
        among = np.zeros(index.n_nodes, bool)
        among[rows] = True
    node = np.flatnonzero(chosen).astype(np.int32)
    keep = chosen[edges.src] & chosen[edges.dst]
    if rows is not None:  # control among them only
        keep &= (
            (edges.kind != Edge.HOLD)
            | ~index.is_pd[edges.dst]
            | (among[edges.src] & among[edges.dst])
        )
    if graph.kernel is not None:  # it holds everything, said or not
        keep &= (edges.kind != Edge.HOLD) | (edges.src != graph.kernel)
    parts = [Edges(*(getattr(edges, c)[keep] for c in Edges.__slots__)), _run_edges(runs, chosen)]
    if graph.kernel is not None:
        held = node[graph.kind[node] != Kind.PD]
        flags = np.where(graph.kind[held] == Kind.SPACE, SERVER, 0)
        src = np.full(len(held), graph.kernel, np.int32)
        parts.append(Edges.of(src, held, Edge.HOLD, perm=ALL, flags=flags))
    found = Edges.concatenate(parts)
    number = np.zeros(index.n_nodes, np.int32)
    number[node] = np.arange(len(node), dtype=np.int32)
    return node, replace(found, src=number[found.src], dst=number[found.dst])


def _run_edges(runs: Runs, chosen: NDArray[np.bool_]) -> Edges:
    """Edges that runs stand for between chosen nodes. O(runs + what is returned)."""
    before = np.concatenate([[0], np.cumsum(chosen[runs.source])])
    keep = chosen[runs.dst] & (before[runs.last + 1] > before[runs.first])
    return Runs(
        runs.source[chosen[runs.source]],
        before[runs.first[keep]].astype(np.int32),
        before[runs.last[keep] + 1].astype(np.int32) - 1,
        runs.dst[keep],
        runs.perm[keep],
        runs.rule[keep],
    ).expand()


def expanded(index: Index, controls: Controls, rows: I4 | None) -> igraph.Graph:
    """Return each node and edge by itself, and an edge for each pair and verb of control.

    With *rows*, of what these PDs reach, and of control among them; the other PDs stay as
    vertices, so that vertex i is row i. O(N + E) Python objects: E is every pair of a run.
    """
    graph = index.graph
    node, edges = _reached(index, rows)
    out = _drawn(graph, node, edges)
    chosen = np.zeros(graph.n_pds, bool)
    chosen[slice(None) if rows is None else rows] = True
    pairs: list[tuple[int, int]] = []
    verbs: list[str] = []
    have = {
        (e.source, e.target, e["verb"]) for e in out.es.select(kind="HOLD") if e["verb"] is not None
    }
    # A model without a verb of its own still has the kernel's hold.
    for verb in controls.provided or ("hold",):
        relation = controls.verb(verb, effective=True)
        for i in np.flatnonzero(chosen).tolist():
            held = np.flatnonzero(relation.row_masks(i)[0] & chosen)
            new = [(i, j) for j in held.tolist() if (i, j, verb) not in have]
            pairs += new
            verbs += [verb] * len(new)
    first = out.ecount()
    out.add_edges(pairs)
    if pairs:
        new_edges = out.es[first:]
        new_edges["kind"] = ["HOLD"] * len(pairs)
        new_edges["perm"] = [""] * len(pairs)
        new_edges["certain"] = [True] * len(pairs)
        new_edges["potential"] = [False] * len(pairs)
        new_edges["private"] = [False] * len(pairs)
        new_edges["flags"] = [0] * len(pairs)
        new_edges["label"] = verbs
        new_edges["verb"] = verbs
    return out
