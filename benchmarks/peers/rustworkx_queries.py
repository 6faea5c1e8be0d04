"""SharedResources with rustworkx: descendants, then those of a node that points at all of them."""

from __future__ import annotations

import numpy as np
import rustworkx as rx
from numpy.typing import NDArray

from benchmarks.peers.edges import Expanded


class Peer:
    """``shared(x, write=...)``: PDs that reach (with W) what x reaches; the kernel left out."""

    def __init__(self, edges: Expanded) -> None:
        self._edges = edges
        self.any = self._graph(edges.src, edges.dst)
        use = edges.write
        self.back = {
            True: self._graph(edges.dst[use], edges.src[use]),
            False: self._graph(edges.dst, edges.src),
        }

    def _graph(self, src: NDArray[np.int32], dst: NDArray[np.int32]) -> rx.PyDiGraph:
        graph = rx.PyDiGraph(multigraph=True)
        graph.add_nodes_from(range(self._edges.n_nodes))
        graph.add_edges_from_no_data(list(zip(src.tolist(), dst.tolist(), strict=True)))
        return graph

    def shared(self, row: int, *, write: bool) -> set[int]:
        """Rows of those who use, or with *write* can write to, what PD *row* uses."""
        back = self.back[write]
        reached = np.fromiter(rx.descendants(self.any, row), np.int64)
        targets = reached[self._edges.resource[reached]].tolist()
        start = back.add_node(None)
        back.add_edges_from_no_data([(start, node) for node in targets])
        found = rx.descendants(back, start)
        back.remove_node(start)
        return {node for node in found if node < self._edges.n_pds and node != row}
