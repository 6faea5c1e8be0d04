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
from osmosis.query.sharing import Ask, Row, shared_row, sharing
from osmosis.query.walk import Index

__all__ = ["Engine"]


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

    def sharing(self, ask: Ask) -> Relation:
        """Sharing of all pairs."""
        made: Relation = self.once(("sharing", ask), lambda: sharing(self.index, ask))
        return made

    def services(self) -> Relation:
        """REQUEST of all pairs, one step."""
        made: Relation = self.once("services", lambda: services_relation(self.index))
        return made

    def shared_row(self, row: int, ask: Ask) -> Row:
        """Sharing of one PD: from the relation of all pairs if that was made."""
        if self.made(("sharing", ask)):
            return self.row(self.sharing(ask), row)
        return shared_row(self.index, row, ask)

    def row(self, relation: Relation, row: int) -> Row:
        """Row of a relation, fit to be changed."""
        sure, may = relation.row_masks(row)
        return Row(np.array(sure), np.array(may))
