"""Groups of PDs: containers, units, users ..., as a table of their own and a way to fold answers.

h is in Q(g) iff some member of h is in Q of some member of g, and h is not g. Yes beats unknown
beats no. So an answer about groups is the fold of the answer about their members; no edge is
made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import QueryError
from osmosis.graph.graph import Graph
from osmosis.graph.pds import PD, PDTable, escape
from osmosis.graph.sets import Answer

__all__ = ["KEYS", "Grouping", "best_answer", "grouped"]

KEYS = ("container", "unit", "user", "cgroup", "exe", "role")
Bools = NDArray[np.bool_]
I4 = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Grouping:
    """G groups of P PDs."""

    pds: PDTable  # G rows
    of: I4  # (P,) group of each PD
    order: I4  # (P,) PDs, group after group
    starts: I4  # (G + 1,) into order

    def members(self, rows: I4) -> I4:
        """Rows of the PDs that are members of the groups *rows*, ascending."""
        parts = [self.order[self.starts[g] : self.starts[g + 1]] for g in rows.tolist()]
        return np.sort(np.concatenate([np.empty(0, np.int32), *parts]))

    def fold(self, mask: Bools) -> Bools:
        """(G,) bool: groups with a member in the (P,) *mask*."""
        out = np.zeros(len(self.pds), bool)
        out[self.of[mask]] = True
        return out


def grouped(graph: Graph, key: str | Callable[[PD], str | None]) -> Grouping:
    """Return the groups of the PDs by *key*, in the order of their first members.

    Raises
    ------
    QueryError
        The key is not known.

    """
    table = graph.pds
    name = key if isinstance(key, str) else "group"
    if isinstance(key, str):
        if key not in KEYS:
            raise QueryError(f"no key {escape(key)!r} to group by; known are {', '.join(KEYS)}")
        values = list(getattr(table, key))
        if key == "user":  # a uid without a name is a user all the same
            values = [
                v if v is not None or u < 0 else str(u)
                for v, u in zip(values, table.uid.tolist(), strict=True)
            ]
    elif callable(key):
        values = [key(pd) for pd in table]
    else:
        raise QueryError(f"group_by wants a key or a function, not {key!r}")
    if graph.kernel is not None:
        values[graph.kernel] = None
    of = np.empty(len(table), np.int32)
    number: dict[str, int] = {}
    first: list[int] = []
    names: list[str | None] = []
    for row, value in enumerate(values):
        group = None if value is None else number.get(value)
        if group is None:
            group = len(first)
            first.append(row)
            names.append(value)
            if value is not None:
                number[value] = group
        of[row] = group
    order = np.argsort(of, kind="stable").astype(np.int32)
    starts = np.searchsorted(of[order], np.arange(len(first) + 1)).astype(np.int32)
    return Grouping(_table(table, of, name, names, first), of, order, starts)


def _table(table: PDTable, of: I4, key: str, names: list[str | None], first: list[int]) -> PDTable:
    """Table of groups: a PD that stays alone keeps its row; a group has no pid of its own."""

    def column(name: str, of_group: Callable[[str], str | None]) -> list[str | None]:
        given = getattr(table, name)
        return [
            given[row] if value is None else of_group(value)
            for row, value in zip(first, names, strict=True)
        ]

    def own(name: str) -> list[str | None]:
        return column(name, lambda value: value if name == key else None)

    alone = np.array([value is None for value in names], bool)
    rows = np.array(first, np.int64)
    return PDTable(
        np.where(alone, table.pid[rows], -1) if len(rows) else [],
        start_time=np.where(alone, table.start_time[rows], -1) if len(rows) else [],
        uid=np.where(alone, table.uid[rows], -1) if len(rows) else [],
        comm=column("comm", lambda value: value),
        exe=own("exe"),
        kind=column("kind", lambda _: key),
        id=column("id", lambda value: f"{key}:{value}"),
        key=column("key", lambda value: f"{key}:{value}"),
        container=own("container"),
        unit=own("unit"),
        user=own("user"),
        role=own("role"),
        cgroup=own("cgroup"),
        members=(table, of),
    )


def best_answer(answers: Iterable[Answer]) -> Answer:
    """Return the answer for groups: a yes beats an unknown, which beats a no."""
    best: Answer | None = None
    for answer in answers:
        if answer.state:
            return answer
        if best is None or (best.state is False and answer.state is None):
            best = answer
    if best is None:
        return Answer(False, "a protection domain is in none of its own answers")
    return best
