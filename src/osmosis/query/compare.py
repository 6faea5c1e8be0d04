"""Several models side by side: who is in the TCB and the IB of one subject, by what, as which role.

The subject is a selector that each model understands (``role:db``), so that snapshots of two
hosts, or of two isolation mechanisms, compare. Members are named by their role: what stays
the same from one host to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import QueryError, SelectorError
from osmosis.graph.graph import POTENTIAL, Edge, Graph
from osmosis.graph.pds import escape
from osmosis.graph.sets import Nodes, PDSet
from osmosis.query.comparison import PARTS, TYPES, Boundary, Case, Comparison, Count, Way
from osmosis.query.isolation import isolation
from osmosis.query.metrics import rsi_of_sets
from osmosis.query.options import access_mask, verbs_of
from osmosis.query.sharing import Ask, reached_nodes

if TYPE_CHECKING:
    from osmosis.model import Model

__all__ = ["BY", "compare", "members_of"]

BY = ("role", "comm", "container", "unit", "user", "exe", "cgroup")
_UNNAMED = "other"  # a PD without a value
_SHOWN = 8  # candidates that an error lists
Text = str | Iterable[str]
Bools = NDArray[np.bool_]


def compare(
    models: Mapping[str, Model],
    *,
    subject: str | Mapping[str, str],
    others: Sequence[str] | None = None,
    by: str = "role",
    access: Text = "W",
    own_access: Text = "ANY",
    verbs: Text | None = None,
    services: bool = False,
) -> Comparison:
    """Put *models* side by side, from the point of view of one subject.

    Parameters
    ----------
    models
        Name of each case, and its model; their order is kept.
    subject
        A selector, or one for each name; what it matches in a model is one subject, several
        PDs together. A model without it is a case that says so.
    others
        Selectors of those from whom the subject is separated, one set each; None for every
        role there is. Of the subject's own PDs none counts.
    by
        The column that names members: "role", "comm", "container", "unit", "user", "exe" or
        "cgroup". By role, a process of the subject's own container that has no role of its own
        is a "sibling"; who has no value is "other".
    access, own_access, verbs, services
        As in `Model.tcb`.

    Returns
    -------
    Comparison
        Certain members, unknown ones, and potential ones apart. RSI is of the resources of both
        sets, as far as they are certain; FR without the kernel. O(types + verbs) questions
        about the subject for each model, and O(others) about isolation, RSI and FR.

    Raises
    ------
    SelectorError
        No model has the subject, or one of the others; it lists what there is.
    QueryError
        There is no model, one is of groups, or an option is not known.

    """
    if not models:
        raise QueryError("there is no model to compare")
    if by not in BY:
        raise QueryError(f"no column {escape(by)!r} to name members by; known are {', '.join(BY)}")
    selectors = _selectors(models, subject)
    for model in models.values():
        if model.pds is not model.data.pds:
            raise QueryError("compare wants models of single PDs, not of groups")
    _refuse_if_nowhere([(models[name], sel) for name, sel in selectors.items()])
    for other in others or ():
        _refuse_if_nowhere([(model, other) for model in models.values()])
    ask = {"access": access, "own_access": own_access, "verbs": verbs, "services": services}
    cases = {
        name: _Side(model, selectors[name], by, ask).case(name, others)
        for name, model in models.items()
    }
    return Comparison(subject, cases)


def members_of(model: Model, subject: Sequence[int] | NDArray[Any], by: str = "role") -> list[str]:
    """Return (P,) names of the PDs of *model*, as a comparison with this *subject* names them."""
    pds = model.pds
    names = [_UNNAMED if value is None or value == "" else str(value) for value in getattr(pds, by)]
    if model.data.kernel is not None:
        names[model.data.kernel] = "kernel"
    if by == "role":
        own = {pds.container[row] for row in subject} - {None}
        for row, name in enumerate(names):
            if name == "container" and pds.container[row] in own:
                names[row] = "sibling"
    return names


def _types_by_use(graph: Graph) -> set[str]:
    """Types of resource that somebody may reach over an edge that was not observed. O(E)."""
    edges, runs = graph.edges, graph.runs
    used = np.unique(graph.type[edges.dst[(edges.flags & POTENTIAL) != 0]])
    maps, sources = edges.kind == Edge.MAP, graph.type[runs.source]
    ends = [
        (graph.type[edges.src[maps]], graph.type[edges.dst[maps]]),
        # Which source leads where is not asked: that of any may lead to that of any.
        *((np.full(len(runs), t), graph.type[runs.dst]) for t in np.unique(sources)),
    ]
    pairs = np.unique(np.concatenate([np.stack(pair, axis=1) for pair in ends]), axis=0)
    while True:
        more = np.union1d(used, pairs[np.isin(pairs[:, 0], used), 1])
        if len(more) == len(used):
            return {graph.types[t] for t in used.tolist() if t >= 0}
        used = more


def _selectors(models: Mapping[str, Model], subject: str | Mapping[str, str]) -> dict[str, str]:
    if isinstance(subject, str):
        return dict.fromkeys(models, subject)
    for name in (*models, *subject):
        if (name in models) != (name in subject):
            what = "a subject" if name in models else "a model"
            raise QueryError(f"there is not {what} for {escape(name)!r}")
    return {name: subject[name] for name in models}


def _refuse_if_nowhere(asked: Sequence[tuple[Model, str]]) -> None:
    """Raise SelectorError if none of the models has what its selector asks for."""
    if any(model.find(selector) for model, selector in asked):
        return
    near: list[str] = []
    for model, selector in asked:
        try:
            model.pd(selector)
        except SelectorError as exc:
            near += [c for c in exc.candidates if c not in near]
    where = "the model" if len(asked) == 1 else f"any of the {len(asked)} models"
    raise SelectorError(asked[0][1], f"matches nothing in {where}", tuple(near[:_SHOWN]))


@dataclass(slots=True)
class _Found:
    """Who is in one answer: (P,) bool, disjoint but for ``potential``."""

    certain: Bools
    unknown: Bools
    potential: Bools

    def __or__(self, other: _Found) -> _Found:
        certain = self.certain | other.certain
        return _Found(
            certain,
            (self.unknown | other.unknown) & ~certain,
            (self.potential | other.potential) & ~certain,
        )


class _Side:
    """One model, and the subject in it."""

    def __init__(self, model: Model, selector: str, by: str, ask: Mapping[str, Any]) -> None:
        self.model, self.selector, self.ask = model, selector, ask
        self.rows = np.array([pd.row for pd in model.find(selector)], np.int32)
        self.who = PDSet(model.pds, self.rows)
        self.names = members_of(model, self.rows, by)
        self.roles = sorted(set(self.names))
        at = {role: i for i, role in enumerate(self.roles)}
        self.code = np.array([at[name] for name in self.names], np.int64)
        self.by_use = _types_by_use(model.data)

    def case(self, name: str, others: Sequence[str] | None) -> Case:
        """Everything about the subject in this model."""
        n = np.bincount(self.code, minlength=len(self.roles)).tolist()
        roles = dict(zip(self.roles, n, strict=True))
        if not len(self.rows):
            said = f"no PD matches {self.selector}"
            return Case(name, self.selector, absent=said, roles=roles)
        model, graph = self.model, self.model.data
        sets = self._others(others)
        mine = model.bfs(self.who, kinds={"RESOURCE"})
        return Case(
            name,
            self.selector,
            tuple(pd.id for pd in self.who),
            "",
            roles,
            self._boundary(forward=True),
            self._boundary(forward=False),
            {other: isolation(graph, self.rows, rows) for other, rows in sets.items()},
            {other: self._rsi(mine, rows) for other, rows in sets.items()},
            {other: model.fr(self.who, PDSet(model.pds, rows)) for other, rows in sets.items()},
        )

    def _others(self, selectors: Sequence[str] | None) -> dict[str, NDArray[np.int32]]:
        """Rows of the others, by name; without the subject's own, and only those there are."""
        named: dict[str, list[int]] = {}
        if selectors is None:
            for row, name in enumerate(self.names):
                if name not in (_UNNAMED, "kernel"):
                    named.setdefault(name, []).append(row)
            named = dict(sorted(named.items()))
        else:
            for selector in selectors:
                found = [pd.row for pd in self.model.find(selector)]
                named[selector.removeprefix("role:")] = found
        own = set(self.rows.tolist())
        sets = {name: [row for row in rows if row not in own] for name, rows in named.items()}
        return {name: np.array(rows, np.int32) for name, rows in sets.items() if rows}

    def _rsi(self, mine: Nodes, rows: NDArray[np.int32]) -> dict[str, float]:
        """By type that either reaches."""
        graph = self.model.data
        theirs = self.model.bfs(PDSet(self.model.pds, rows), kinds={"RESOURCE"})
        both = np.union1d(graph.type[mine.nodes], graph.type[theirs.nodes])

        def of(nodes: Nodes, number: int) -> Nodes:
            return Nodes(graph, nodes.nodes[graph.type[nodes.nodes] == number])

        return {
            graph.types[t]: rsi_of_sets(of(mine, t), of(theirs, t), graph.pages)
            for t in sorted(both.tolist(), key=lambda t: graph.types[t])
        }

    # -- the boundaries

    def _boundary(self, *, forward: bool) -> Boundary:
        model = self.model
        ask = model.tcb if forward else model.impact_boundary
        answer = ask(self.who, **self.ask)
        more = ask(self.who, potential=True, **self.ask) if self.by_use else answer
        whole = self._found(answer, more)
        ways = self._ways(answer, forward=forward)
        nobody = np.zeros(len(self.names), bool)
        parts = {part: _Found(nobody, nobody, nobody) for part in PARTS}
        for way, found in ways.items():
            parts[way.part] |= found
        return Boundary(
            self._count(whole),
            self._by_role(whole),
            {part: self._count(found) for part, found in parts.items()},
            {way: who for way, found in ways.items() if (who := self._by_role(found))},
        )

    def _ways(self, answer: PDSet, *, forward: bool) -> dict[Way, _Found]:
        """Who is a member by each way, the kernel left out."""
        model, out = self.model, dict[Way, _Found]()
        for name in sorted(self._types(forward=forward)):
            observed = self._sharing(name, False, forward=forward)
            more = self._sharing(name, True, forward=forward) if name in self.by_use else observed
            out[Way(TYPES.get(name, "other"), name)] = self._found(observed, more)
        control = model.controllers if forward else model.controls
        for verb in sorted(verbs_of(model.data.control.verbs, self.ask["verbs"])[0]):
            found = control(self.who, verbs=verb)
            out[Way("control", verb)] = self._found(found, found)
        asked = answer.parts["service"]
        out[Way("service")] = self._found(asked, asked)
        if model.data.kernel is not None:
            for one in out.values():
                for mask in (one.certain, one.unknown, one.potential):
                    mask[model.data.kernel] = False
        order = {part: i for i, part in enumerate(PARTS)}
        return dict(sorted(out.items(), key=lambda item: (order[item[0].part], item[0].name)))

    def _types(self, *, forward: bool) -> set[str]:
        """Types of what the subject may reach, or may hold unseen; by no other does it share."""
        graph = self.model.data
        need = access_mask(self.ask["own_access" if forward else "access"])
        found = reached_nodes(self.model.engine.index, self.rows, need, Ask(potential=True))
        numbers = np.unique(graph.type[np.concatenate([found.nodes, found.unknown.nodes])])
        seen = {graph.types[t] for t in numbers.tolist()}
        hidden = {
            name
            for name, masks in graph.unseen_types.items()
            if ((masks[self.rows] & need) == need).any()
        }
        return seen | hidden

    def _sharing(self, name: str, potential: bool, *, forward: bool) -> PDSet:
        access, own = self.ask["access"], self.ask["own_access"]
        if not forward:
            access, own = own, access
        return self.model.shared_resources(
            self.who, types=name, access=access, own_access=own, potential=potential
        )

    def _found(self, observed: PDSet, potential: PDSet) -> _Found:
        n = len(self.names)
        certain, unknown, more = np.zeros((3, n), bool)
        certain[observed.rows] = True
        unknown[observed.unknown.rows] = True
        more[potential.rows] = True
        return _Found(certain, unknown, more & ~certain)

    def _count(self, found: _Found) -> Count:
        masks = (found.certain, found.unknown, found.potential)
        return Count(*(int(np.count_nonzero(mask)) for mask in masks))

    def _by_role(self, found: _Found) -> dict[str, Count]:
        n = len(self.roles)
        counts = [
            np.bincount(self.code[mask], minlength=n).tolist()
            for mask in (found.certain, found.unknown, found.potential)
        ]
        each = {role: Count(*c) for role, *c in zip(self.roles, *counts, strict=True)}
        return {role: count for role, count in each.items() if any(count)}
