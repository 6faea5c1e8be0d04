"""The paper's primitive: everything that a start reaches over edges of some kinds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import QueryError
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
from osmosis.query.walk import Way, walk

__all__ = ["bfs"]


def bfs(
    engine: Engine,
    sure_starts: NDArray[np.int32],
    may_starts: NDArray[np.int32],
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
    wanted = np.isin(graph.kind, np.array(node_kinds(kinds), np.uint8))
    mask = type_mask(graph, types_of(graph, types))
    if mask is not None:
        wanted &= mask[graph.type]
    walked, need, most = edge_kinds(edges), access_mask(access), depth_of(depth)

    def made(starts: NDArray[np.int32], possible: bool) -> NDArray[np.bool_]:
        forward = direction == "forward"
        found = walk(index, starts, walked, Way(need, possible), forward=forward, depth=most) >= 0
        return found & wanted

    sure = made(sure_starts, False)
    hold_unknown = not index.hold.decided
    twice = index.mixed or hold_unknown or len(may_starts) > len(sure_starts)
    may = made(may_starts, True) | sure if twice else sure.copy()
    sure[may_starts] = False
    may[sure_starts] = False
    return Nodes(graph, sure, may & ~sure)
