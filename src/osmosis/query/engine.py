"""What the queries of one graph keep between them: its index and the relations already made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import numpy as np

from osmosis.graph.graph import Graph
from osmosis.graph.relation import Relation
from osmosis.query.control import Controls
from osmosis.query.services import services_relation
from osmosis.query.sharing import Ask, Row, Sharing
from osmosis.query.walk import Index

__all__ = ["Engine", "Pairs"]


class Engine:
    """The index of a graph, its control relation, and a memory of whole-host relations."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._memory: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    @cached_property
    def index(self) -> Index:
        """Edges by kind and end, made at the first question."""
        return Index(self.graph)

    @cached_property
    def controls(self) -> Controls:
        """The control relation by verb."""
        return Controls(self.graph)

    @property
    def kernel(self) -> int | None:
        """Row of the kernel."""
        return self.graph.kernel

    @property
    def n(self) -> int:
        """P."""
        return self.graph.n_pds

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return ``make()`` of the first call with this key."""
        with self._lock:
            if key not in self._memory:
                self._memory[key] = make()
            return self._memory[key]

    def made(self, key: Hashable) -> bool:
        """Tell whether `once` has an answer for the key."""
        return key in self._memory

    def shares(self, ask: Ask) -> Sharing:
        """What answers a question about sharing, row by row or whole."""
        made: Sharing = self.once(("shares", ask), lambda: Sharing(self.index, ask))
        return made

    def sharing(self, ask: Ask) -> Relation:
        """Sharing of all pairs."""
        made: Relation = self.once(("sharing", ask), lambda: self.shares(ask).relation())
        return made

    def services(self) -> Relation:
        """REQUEST of all pairs, one step."""
        made: Relation = self.once("services", lambda: services_relation(self.index))
        return made

    def shared_row(self, row: int, ask: Ask) -> Row:
        """Sharing of one PD: from the relation of all pairs if that was made."""
        if self.made(("sharing", ask)):
            return self.row(self.sharing(ask), row)
        return self.shares(ask).row(row)

    def pairs(self, ask: Ask) -> Pairs:
        """Sharing, to be asked for single pairs."""
        made: Pairs = self.once(("pairs", ask), lambda: Pairs(self, ask))
        return made

    def row(self, relation: Relation, row: int) -> Row:
        """Row of a relation, fit to be changed."""
        sure, may = relation.row_masks(row)
        return Row(np.array(sure), np.array(may))


class Pairs:
    """The sharing of one question, pair by pair: a row is worked out once, then looked up.

    P / 4 bytes for each row asked for.
    """

    __slots__ = ("_ask", "_engine", "_rows")

    def __init__(self, engine: Engine, ask: Ask) -> None:
        self._engine = engine
        self._ask = ask
        self._rows: dict[int, tuple[bytes, bytes]] = {}  # (certain, possible), bit by bit

    def state(self, i: int, j: int) -> bool | None:
        """Tell whether j is in i's answer: True, False, or None for unknown."""
        kept = self._rows.get(i)
        if kept is None:
            found = self._engine.shared_row(i, self._ask)
            sure, may = (
                np.packbits(bits, bitorder="little").tobytes() for bits in (found.sure, found.may)
            )
            kept = self._rows[i] = sure, sure if sure == may else may
        sure, may = kept
        if sure[j >> 3] >> (j & 7) & 1:
            return True
        return None if may is not sure and may[j >> 3] >> (j & 7) & 1 else False
