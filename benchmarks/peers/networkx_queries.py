"""SharedResources as networkx users write it: breadth first over adjacency of the same edges."""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx

from benchmarks.peers.edges import Expanded


class Peer:
    """``shared(x, write=...)``: PDs that reach (with W) what x reaches; the kernel left out."""

    def __init__(self, edges: Expanded) -> None:
        self._edges = edges
        self.any = nx.DiGraph()
        self.any.add_nodes_from(range(edges.n_nodes))
        self.any.add_edges_from(zip(edges.src.tolist(), edges.dst.tolist(), strict=True))
        write = edges.write
        self.write = nx.DiGraph()
        self.write.add_nodes_from(range(edges.n_nodes))
        self.write.add_edges_from(
            zip(edges.src[write].tolist(), edges.dst[write].tolist(), strict=True)
        )

    def shared(self, row: int, *, write: bool) -> set[int]:
        """Rows of those who use, or with *write* can write to, what PD *row* uses."""
        resource, n = self._edges.resource, self._edges.n_pds
        targets = [node for node in nx.descendants(self.any, row) if resource[node]]
        return {node for node in self._before(targets, write) if node < n and node != row}

    def _before(self, targets: Iterable[int], write: bool) -> set[int]:
        found = set(targets)
        frontier = list(found)
        pred = (self.write if write else self.any).pred
        while frontier:
            further = []
            for node in frontier:
                for source in pred[node]:
                    if source not in found:
                        found.add(source)
                        further.append(source)
            frontier = further
        return found
