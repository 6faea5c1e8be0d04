"""The OSmosis graph of any system, as data: nodes, typed edges, and what stands for many edges.

Nothing here knows an operating system. A *mask* is a set of permissions in four bits: R 4,
W 2, X 1, and ANY 8, which is on wherever the edge exists for certain. A path has access A if
every HOLD and MAP on it has all bits of A.

Every edge has two masks, ``perm <= maybe``: what it allows for certain, and what it may
allow. A query walks both; what only ``maybe`` reaches is ``.unknown``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from osmosis.graph.names import Names, Notes
    from osmosis.graph.pds import PDTable
    from osmosis.graph.relation import Control

__all__ = [
    "ALL",
    "ANY",
    "POTENTIAL",
    "PRIVATE",
    "REQUESTS",
    "SERVER",
    "Edge",
    "Edges",
    "Graph",
    "Kind",
    "R",
    "Rule",
    "Runs",
    "W",
    "X",
]

X, W, R, ANY = 1, 2, 4, 8
ALL = X | W | R | ANY

# Flags of an edge.
PRIVATE = 1  # a HOLD on a private mapping: W reaches its end and goes no further
POTENTIAL = 2  # not observed: it could be used
REQUESTS = "REQUEST"  # in Graph.unseen, beside types: what the PD may ask over was not all seen
SERVER = 4  # a HOLD on a space: the PD serves the space; without it, it is a member


class Kind(IntEnum):
    """Kinds of node."""

    PD = 0
    RESOURCE = 1
    SPACE = 2


class Edge(IntEnum):
    """Kinds of edge, by what they join: PD to any, like to like, part to space, PD to PD."""

    HOLD = 0
    MAP = 1
    SUBSET = 2
    REQUEST = 3


class Rule(NamedTuple):
    """Why an edge is there: the rule in words, and the file it was read from."""

    text: str
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """E explicit edges, as columns of equal length."""

    src: NDArray[np.int32]  # node
    dst: NDArray[np.int32]  # node
    kind: NDArray[np.uint8]  # Edge
    perm: NDArray[np.uint8]  # mask that is certain (HOLD, MAP)
    maybe: NDArray[np.uint8]  # mask that is possible, perm included
    flags: NDArray[np.uint8]  # PRIVATE, POTENTIAL, SERVER
    label: NDArray[
        np.int16
    ]  # of Graph.labels: REQUEST what is asked for, HOLD of a PD the verb; -1
    rule: NDArray[np.int16]  # of Graph.rules; -1

    def __len__(self) -> int:
        return len(self.src)

    @classmethod
    def concatenate(cls, parts: list[Edges]) -> Edges:
        """All edges of *parts*, in order."""
        if not parts:
            return cls.of([], [], Edge.HOLD)
        return cls(*(np.concatenate([getattr(p, c) for p in parts]) for c in cls.__slots__))

    @classmethod
    def of(
        cls,
        src: Any,
        dst: Any,
        kind: Any,
        *,
        perm: Any = ALL,
        maybe: Any = None,
        flags: Any = 0,
        label: Any = -1,
        rule: Any = -1,
    ) -> Edges:
        """Edges of one kind from arrays; a scalar stands for a whole column."""
        src = np.asarray(src, np.int32)
        maybe = perm if maybe is None else maybe

        def column(value: Any, dtype: type) -> NDArray[Any]:
            return np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype), src.shape))

        return cls(
            src,
            column(dst, np.int32),
            column(kind, np.uint8),
            column(perm, np.uint8),
            column(maybe, np.uint8),
            column(flags, np.uint8),
            column(label, np.int16),
            column(rule, np.int16),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """MAP edges by runs: the form that stays small where millions would say the same.

    Row k stands for the edges ``source[first[k]] .. source[last[k]] -> dst[k]``, all with mask
    ``perm[k]``, which is certain. Sources are numbered so that mappings of one kind stand
    together.
    """

    source: NDArray[np.int32]  # (S,) node of each source, in run order
    first: NDArray[np.int32]  # (K,) into source
    last: NDArray[np.int32]  # (K,) itself included
    dst: NDArray[np.int32]  # (K,) node
    perm: NDArray[np.uint8]  # (K,)
    rule: NDArray[np.int16]  # (K,)

    def __len__(self) -> int:
        return len(self.first)

    def expand(self) -> Edges:
        """Every edge by itself. O(edges): for small graphs, tests and export."""
        n = self.last - self.first + 1
        starts = np.repeat(self.first - np.concatenate([[0], np.cumsum(n)[:-1]]), n)
        src = self.source[starts + np.arange(n.sum())] if len(n) else np.empty(0, np.int32)
        return Edges.of(
            src,
            np.repeat(self.dst, n),
            Edge.MAP,
            perm=np.repeat(self.perm, n),
            rule=np.repeat(self.rule, n),
        )


def no_runs() -> Runs:
    """Return Runs that stand for no edge."""
    i4, u1, i2 = np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.int16)
    return Runs(i4, i4, i4, i4, u1, i2)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """One system. Nodes 0 .. P-1 are the PDs, row for row those of ``pds``."""

    pds: PDTable
    kind: NDArray[np.uint8]  # (N,) Kind
    type: NDArray[np.int16]  # (N,) of types; -1 for a PD
    types: tuple[str, ...]  # names of resource and space types
    names: Names  # "PD_812", "VMR_812_3" ...
    pages: NDArray[np.float64]  # (N,) weight of a memory object in 4 KiB; 1 elsewhere
    edges: Edges
    runs: Runs
    labels: tuple[str, ...]  # what Edges.label names
    rules: tuple[Rule, ...]  # what Edges.rule names
    control: Control  # PD -> PD, by verb, in class form
    kernel: int | None = None  # row of the PD that holds everything, always 0 if there is one
    # By type: (P,) masks of what the PD may hold and could not be read: certain is never more;
    # and under REQUESTS what it may ask over.
    unseen: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    # What people and exports are told of a node: {"va": "0x7f...", "path": ...}; see Notes.
    notes: Notes | dict[int, Mapping[str, Any]] = field(default_factory=dict)
    # Facts for isolation(x, y), by layer; see query.isolation.
    layers: Mapping[str, Any] = field(default_factory=dict)
    coverage: Any = None  # the snapshot's ledger, or what a format counted

    @property
    def n_pds(self) -> int:
        """P, the number of protection domains."""
        return len(self.pds)

    @property
    def unseen_types(self) -> dict[str, NDArray[np.uint8]]:
        """``unseen`` of types alone, without REQUESTS."""
        return {name: masks for name, masks in self.unseen.items() if name != REQUESTS}
