"""SharedResources with rustworkx: descendants, then those of a node that points at all of them."""

from __future__ import annotations

import numpy as np
import rustworkx as rx

from benchmarks.peers.edges import Expanded


class Peer:
    """``shared(x)``: PDs that reach with W what x reaches; the kernel left out."""

    def __init__(self, edges: Expanded) -> None:
        self._edges = edges
        self.any = rx.PyDiGraph(multigraph=True)
        self.any.add_nodes_from(range(edges.n_nodes))
        self.any.add_edges_from_no_data(
            list(zip(edges.src.tolist(), edges.dst.tolist(), strict=True))
        )
        write = edges.write
        self.back = rx.PyDiGraph(multigraph=True)
        self.back.add_nodes_from(range(edges.n_nodes))
        self.back.add_edges_from_no_data(
            list(zip(edges.dst[write].tolist(), edges.src[write].tolist(), strict=True))
        )

    def shared(self, row: int) -> set[int]:
        """Rows of those who can write to what PD *row* uses."""
        reached = np.fromiter(rx.descendants(self.any, row), np.int64)
        targets = reached[self._edges.resource[reached]].tolist()
        start = self.back.add_node(None)
        self.back.add_edges_from_no_data([(start, node) for node in targets])
        found = rx.descendants(self.back, start)
        self.back.remove_node(start)
        return {node for node in found if node < self._edges.n_pds and node != row}
