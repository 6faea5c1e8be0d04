"""The HOLD and MAP edges of a model, every one by itself: what the graph libraries are given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ANY, POTENTIAL, Edge, Edges, Kind, W
from osmosis.model import Model


class Expanded:
    """Certain, observed edges, without the kernel's holds and those into PDs."""

    def __init__(self, model: Model) -> None:
        graph = model.data
        edges = Edges.concatenate([graph.edges, graph.runs.expand()])
        use = (edges.kind == Edge.HOLD) | (edges.kind == Edge.MAP)
        use &= (edges.perm & ANY) != 0
        use &= (edges.flags & POTENTIAL) == 0
        use &= graph.kind[edges.dst] != Kind.PD
        if graph.kernel is not None:
            use &= edges.src != graph.kernel
        self.src: NDArray[np.int32] = edges.src[use]
        self.dst: NDArray[np.int32] = edges.dst[use]
        self.write: NDArray[np.bool_] = (edges.perm[use] & W) != 0
        self.n_pds = graph.n_pds
        self.n_nodes = len(graph.kind)
        self.resource: NDArray[np.bool_] = graph.kind == Kind.RESOURCE
        self.kernel: Any = graph.kernel

    def __len__(self) -> int:
        return len(self.src)
