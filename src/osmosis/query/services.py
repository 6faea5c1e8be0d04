"""Services: who is asked for something, over REQUEST edges, and how far away.

A PD with ``unseen[REQUESTS]`` may ask anybody over what was not seen of it, and be asked so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ANY, POTENTIAL, REQUESTS, Edge
from osmosis.graph.relation import Relation
from osmosis.query.sharing import Row
from osmosis.query.walk import Index, Way, walk

__all__ = ["ancestors", "clients_row", "services_relation", "services_row"]


def _reached(index: Index, rows: NDArray[np.int32], depth: int | None, forward: bool) -> Row:
    def made(possible: bool) -> NDArray[np.bool_]:
        found = walk(index, rows, (Edge.REQUEST,), Way(ANY, possible), forward=forward, depth=depth)
        out = np.zeros(index.n_pds, bool)
        out[found.nodes[found.distance > 0]] = True
        return out

    sure = made(False)
    return Row(sure, made(True) | sure if index.doubtful((Edge.REQUEST,)) else sure.copy())


def _blind(index: Index) -> NDArray[np.bool_]:
    """(P,) bool: PDs of which not everything was seen that they ask over."""
    out = np.zeros(index.n_pds, bool)
    masks = index.graph.unseen.get(REQUESTS)
    if masks is not None:
        out |= (masks & ANY) != 0
    if index.kernel is not None:
        out[index.kernel] = False
    return out


def _with_unseen(index: Index, row: int, depth: int | None, out: Row) -> Row:
    blind = _blind(index)
    if blind.any():
        own = bool(out.may[row])
        if blind[row] or depth != 1:  # the second step may lead anywhere
            out.may[:] = True
        else:
            out.may |= blind
        out.may[row] = own
    return out


def services_row(index: Index, row: int, depth: int | None = 1) -> Row:
    """Whom the PD reaches over REQUEST within *depth* steps; a path ends at the kernel."""
    out = _reached(index, np.array([row], np.int32), depth, True)
    return out if row == index.kernel else _with_unseen(index, row, depth, out)


def clients_row(index: Index, row: int, depth: int | None = 1) -> Row:
    """Return the inverse: who reaches the PD."""
    out = _reached(index, np.array([row], np.int32), depth, False)
    out = _with_unseen(index, row, depth, out)
    return out if index.kernel is None else out.drop(index.kernel)


def services_relation(index: Index) -> Relation:
    """``S[i, j]``: i asks j, over one REQUEST edge. The kernel asks nobody that counts."""
    edges = index.kinds[Edge.REQUEST]
    ids = np.arange(len(edges))
    every = np.ones(len(edges), bool) if index.kernel is None else edges.src != index.kernel
    every &= (edges.flags & POTENTIAL) == 0
    sure = Way(ANY, False).passes(edges, ids, Edge.REQUEST) & every
    may = Way(ANY, True).passes(edges, ids, Edge.REQUEST) & every
    made = Relation.from_pairs(
        index.n_pds,
        edges.src[sure],
        edges.dst[sure],
        edges.src[may],
        edges.dst[may],
        pds=index.graph.pds,
    )
    of = _blind(index).astype(np.int32)
    if not of.any():
        return made
    if index.kernel is not None:
        of[index.kernel] = 2
    # Classes: seen, not seen, the kernel.
    possible = np.array([[0, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    return made | Relation.from_classes(of, np.zeros((3, 3), bool), possible)


def ancestors(index: Index, x: NDArray[np.int32], y: NDArray[np.int32]) -> Row:
    """PDs, not of x and y, that both reach over REQUEST; a path ends at the kernel."""
    a = _of_each(index, x)
    b = _of_each(index, y)
    out = Row(a.sure & b.sure, a.may & b.may)
    for row in (*x.tolist(), *y.tolist()):
        out.drop(row)
    return out


def _of_each(index: Index, rows: NDArray[np.int32]) -> Row:
    out = Row.none(index.n_pds)
    for row in rows.tolist():
        out.add(services_row(index, row, None))
    return out
