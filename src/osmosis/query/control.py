"""Who may control whom: controllers(x), controls(x), and the relation by verb."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import reduce
from operator import or_

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import Graph
from osmosis.graph.relation import Relation
from osmosis.graph.sets import Answer
from osmosis.query.options import verbs_of

__all__ = ["Controls"]

Bools = NDArray[np.bool_]


class Controls:
    """The control relation of a graph, with the kernel in its place, kept by verb."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._made: dict[tuple[str, bool], Relation] = {}
        self._unions: dict[tuple[tuple[str, ...], bool, bool], Relation] = {}
        self._lock = threading.RLock()

    @property
    def provided(self) -> tuple[str, ...]:
        """Verbs that the model has."""
        return self.graph.control.verbs

    def verb(self, verb: str, *, effective: bool) -> Relation:
        """Return "i may <verb> j", the kernel's row and column included."""
        with self._lock:
            key = verb, bool(effective)
            made = self._made.get(key)
            if made is None:
                if verb in self.provided:
                    made = self.graph.control.relation(verb, effective=bool(effective))
                else:
                    made = Relation.empty(self.graph.n_pds)
                made = self._made[key] = self._crowned(made)
            return made

    def _crowned(self, made: Relation) -> Relation:
        kernel = self.graph.kernel
        if kernel is not None:
            made = made.with_row_and_column(kernel, row=True, column=False)
        return made.named(self.graph.pds)

    def any_of(self, verbs: str | Iterable[str] | None, *, effective: bool = True) -> Relation:
        """Return "i may do one of *verbs* to j"; None stands for the default ones.

        Raises
        ------
        QueryError
            A verb is not known.

        """
        provided, some = verbs_of(self.provided, verbs)
        return self.union(provided, some, effective=effective)

    def union(self, provided: tuple[str, ...], some: bool, *, effective: bool = True) -> Relation:
        """Return the union over verbs that the model has; the kernel is in it if *some* were asked.

        A verb that the model has no edges for is empty but for the kernel; no verb at all
        is empty.
        """
        key = tuple(sorted(provided)), some, bool(effective)
        with self._lock:
            made = self._unions.get(key)
            if made is None:
                control, n = self.graph.control, self.graph.n_pds
                parts = [control.relation(v, effective=bool(effective)) for v in key[0]]
                made = reduce(or_, parts) if parts else Relation.empty(n)
                made = self._crowned(made) if some else Relation.empty(n, pds=self.graph.pds)
                self._unions[key] = made
            return made

    def masks_of(
        self, i: int, provided: tuple[str, ...], some: bool, *, acting: bool
    ) -> tuple[Bools, Bools]:
        """Row i of `union`, or without *acting* its column; not by way of all pairs.

        (P,) bool, certain, and certain or possible. O(verbs * P).
        """
        key = tuple(sorted(provided)), some, True
        if key in self._unions:
            relations = [self._unions[key]]
        else:
            relations = [self.verb(verb, effective=True) for verb in key[0]] if some else []
        sure = np.zeros(self.graph.n_pds, bool)
        may = sure.copy()
        for relation in relations:
            one = relation.row_masks(i) if acting else relation.column_masks(i)
            sure |= one[0]
            may |= one[1]
        kernel = self.graph.kernel
        if some and kernel is not None:
            if acting:
                sure[kernel] = may[kernel] = False
                if i == kernel:
                    sure[:] = may[:] = True
            else:
                sure[kernel] = may[kernel] = True
                if i == kernel:
                    sure[:] = may[:] = False
        sure[i] = may[i] = False
        return sure, may

    def verbs_between(
        self, i: int, j: int, verbs: str | Iterable[str] | None, *, effective: bool = True
    ) -> tuple[list[str], list[str]]:
        """Return the verbs that i may do to j: certain ones, and undecided ones."""
        provided, _ = verbs_of(self.provided, verbs)
        states = [(verb, self.verb(verb, effective=effective).state(i, j)) for verb in provided]
        return [v for v, s in states if s], [v for v, s in states if s is None]

    def may(self, i: int, verb: str, j: int, *, effective: bool = True) -> Answer:
        """Answer whether i may do *verb* to j, with the rule.

        Raises
        ------
        QueryError
            The verb is not known.

        """
        provided, _ = verbs_of(self.provided, verb)
        kernel = self.graph.kernel
        if i == j:
            return Answer(False, "a protection domain is in none of its own answers")
        if i == kernel:
            return Answer(True, "the kernel holds everything with every permission")
        if j == kernel:
            return Answer(False, "nothing controls the kernel")
        if not provided:
            return Answer(False, f"the model has no edge for the verb {verb}")
        found = self.graph.control.finding(verb, i, j, effective=effective)
        return Answer(found.state, found.reason, found.caveats, found.rule, found.source)
