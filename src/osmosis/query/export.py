"""The same graph as an igraph.Graph, for those who know igraph."""

from __future__ import annotations

from typing import Any

import igraph
import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ALL, PRIVATE, SERVER, Edge, Edges, Graph, Kind
from osmosis.query.control import Controls

__all__ = ["expanded", "topology"]

I4 = NDArray[np.int32]
_LETTERS = [
    "".join(name for name, bit in (("R", 4), ("W", 2), ("X", 1)) if mask & bit)
    for mask in range(16)
]


def _all_edges(graph: Graph) -> Edges:
    """Every edge by itself: explicit ones, runs, and what the kernel holds."""
    explicit = graph.edges
    parts = [explicit, graph.runs.expand()]
    if graph.kernel is not None:
        own = (explicit.kind == Edge.HOLD) & (explicit.src == graph.kernel)
        parts[0] = Edges(*(getattr(explicit, c)[~own] for c in Edges.__slots__))
        nodes = np.flatnonzero(graph.kind != Kind.PD).astype(np.int32)
        flags = np.where(graph.kind[nodes] == Kind.SPACE, SERVER, 0)
        src = np.full(len(nodes), graph.kernel, np.int32)
        parts.append(Edges.of(src, nodes, Edge.HOLD, perm=ALL, flags=flags))
    return Edges.concatenate(parts)


def topology(graph: Graph) -> igraph.Graph:
    """Return the igraph.Graph of all nodes and edges; vertex i is row i for the PDs.

    Vertices have ``name``, ``kind`` and ``type``; edges ``kind``, ``perm`` ("RW"; what is
    certain), ``flags`` and ``label``. O(N + E) Python strings: for small graphs and export.
    """
    edges = _all_edges(graph)
    # Lists of tuples are 2 to 3 times faster than an (E, 2) array in igraph 1.0.
    out = igraph.Graph(
        n=len(graph.kind),
        edges=list(zip(edges.src.tolist(), edges.dst.tolist(), strict=True)),
        directed=True,
    )
    kinds = [kind.name for kind in Kind]
    out.vs["name"] = graph.names[:]
    out.vs["kind"] = [kinds[k] for k in graph.kind.tolist()]
    out.vs["type"] = ["PD" if t < 0 else graph.types[t] for t in graph.type.tolist()]
    _describe(out, graph, edges)
    return out


def _describe(out: igraph.Graph, graph: Graph, edges: Edges) -> None:
    kinds = [kind.name for kind in Edge]
    permitted = np.isin(edges.kind, (Edge.HOLD, Edge.MAP))
    masks = np.where(permitted, edges.perm & 7, 0).tolist()
    out.es["kind"] = [kinds[k] for k in edges.kind.tolist()]
    out.es["perm"] = [_LETTERS[mask] for mask in masks]
    out.es["flags"] = edges.flags.tolist()
    out.es["private"] = (edges.flags & PRIVATE != 0).tolist()
    out.es["label"] = [None if i < 0 else graph.labels[i] for i in edges.label.tolist()]
    to_pd = (edges.kind == Edge.HOLD) & (graph.kind[edges.dst] == Kind.PD)
    out.es["verb"] = [
        (graph.labels[label] if label >= 0 else "hold") if is_control else None
        for label, is_control in zip(edges.label.tolist(), to_pd.tolist(), strict=True)
    ]


def expanded(graph: Graph, controls: Controls, rows: I4 | None) -> igraph.Graph:
    """Return `topology` with a HOLD edge for each pair and verb of control among *rows*."""
    out = topology(graph)
    chosen = np.zeros(graph.n_pds, bool)
    chosen[slice(None) if rows is None else rows] = True
    pairs: list[tuple[int, int]] = []
    verbs: list[str] = []
    have = {
        (e.source, e.target, e["verb"]) for e in out.es.select(kind="HOLD") if e["verb"] is not None
    }
    # A model without a verb of its own still has the kernel's hold.
    for verb in controls.provided or ("hold",):
        dense: Any = controls.verb(verb, effective=True).toarray()
        for i, j in np.argwhere(dense & chosen[:, None] & chosen[None, :]).tolist():
            if (i, j, verb) not in have:
                pairs.append((i, j))
                verbs.append(verb)
    first = out.ecount()
    out.add_edges(pairs)
    if pairs:
        new = out.es[first:]
        new["kind"] = ["HOLD"] * len(pairs)
        new["perm"] = [""] * len(pairs)
        new["flags"] = [0] * len(pairs)
        new["private"] = [False] * len(pairs)
        new["label"] = verbs
        new["verb"] = verbs
    return out
