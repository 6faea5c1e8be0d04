"""The paper's primitive: everything that a start reaches over edges of some kinds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import QueryError
from osmosis.graph.graph import Edge, Kind
from osmosis.graph.sets import Nodes
from osmosis.query.engine import Engine
from osmosis.query.options import (
    access_mask,
    depth_of,
    edge_kinds,
    node_kinds,
    type_mask,
    types_of,
)
from osmosis.query.walk import Way, distinct, walk

__all__ = ["bfs"]

I4 = NDArray[np.int32]


def bfs(
    engine: Engine,
    sure_starts: I4,
    may_starts: I4,
    *,
    edges: str | Iterable[str],
    direction: str,
    access: str | Iterable[str],
    depth: Any,
    kinds: str | Iterable[str],
    types: str | Iterable[str] | None,
) -> Nodes:
    """Return the nodes reached; the starts are not among them.

    A HOLD into a PD returns it and goes no further, and a path ends at the kernel. Kinds and
    types choose what is returned, never what is walked.

    Raises
    ------
    QueryError
        An option is not known.

    """
    if direction not in ("forward", "backward"):
        raise QueryError(f'direction must be "forward" or "backward", not {direction!r}')
    graph, index = engine.graph, engine.index
    mask = type_mask(graph, types_of(graph, types))
    kind_wanted = np.zeros(len(Kind), bool)
    kind_wanted[list(node_kinds(kinds))] = True
    walked, need, most = edge_kinds(edges), access_mask(access), depth_of(depth)

    def made(starts: I4, possible: bool) -> I4:
        forward = direction == "forward"
        found = walk(index, starts, walked, Way(need, possible), forward=forward, depth=most).nodes
        keep = kind_wanted[graph.kind[found]]
        if mask is not None:
            keep &= mask[graph.type[found]]
        return found[keep]

    sure = made(sure_starts, False)
    may = sure
    # A HOLD into a PD is the end of a path.
    hold_unknown = kind_wanted[Kind.PD] and Edge.HOLD in walked and not index.hold.decided
    if index.doubtful(walked) or hold_unknown or len(may_starts) > len(sure_starts):
        may = distinct(np.concatenate([made(may_starts, True), sure]))
    sure = np.setdiff1d(sure, may_starts, assume_unique=True)
    may = np.setdiff1d(may, sure_starts, assume_unique=True)
    return Nodes(graph, sure, np.setdiff1d(may, sure, assume_unique=True))
