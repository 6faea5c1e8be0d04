"""The face of the library: a model of one system, and the questions it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from osmosis.errors import QueryError, SelectorError
from osmosis.graph.graph import Graph, Kind
from osmosis.graph.pds import PD, PDTable, is_pid
from osmosis.graph.relation import Relation
from osmosis.graph.sets import Answer, LazyAnswer, Nodes, PDSet, Reason
from osmosis.query import bfs as _bfs
from osmosis.query import explain as _explain
from osmosis.query import export, groups, metrics
from osmosis.query import isolation as layers
from osmosis.query import tcb as boundary
from osmosis.query.engine import Engine, Pairs
from osmosis.query.explain import Witness
from osmosis.query.isolation import Isolation
from osmosis.query.options import access_mask, depth_of, types_of
from osmosis.query.quotient import Quotient, quotient
from osmosis.query.services import ancestors, services_row
from osmosis.query.sharing import Ask, Row, common

__all__ = ["Model"]

Bools = NDArray[np.bool_]
I4 = NDArray[np.int32]
Text = str | Iterable[str]
_ONE = PD, str, int, np.integer
_NONE_KNOWN = Answer(False, "no resource that both reach is known")


class Model:
    """One system as a graph, and everything that can be asked of it.

    ``x`` and ``y`` are a PD, a PDSet, a pid (any int), a selector string, or several of these.
    Everything is answered from the graph; nothing is read again. Answers of whole-host
    questions are kept.

    Parameters
    ----------
    graph
        The system.
    grouping
        How its PDs are taken together; see `group_by`. None: each by itself.

    """

    def __init__(
        self,
        graph: Graph,
        *,
        grouping: groups.Grouping | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._engine = engine or Engine(graph)
        self._base = graph
        self._grouping = grouping
        self.pds: PDTable = graph.pds if grouping is None else grouping.pds
        self._kept: dict[Any, Any] = {}

    # -- the PDs

    @property
    def data(self) -> Graph:
        """The typed columns below every query."""
        return self._base

    @property
    def engine(self) -> Engine:
        """What the queries of this system keep between them."""
        return self._engine

    @property
    def coverage(self) -> Any:
        """What could not be read: the snapshot's ledger, or what a format counted."""
        return self._base.coverage

    @property
    def kernel(self) -> PD | None:
        """The PD that holds everything, or None."""
        row = self._kernel_row
        return None if row is None else self.pds[row]

    @property
    def _kernel_row(self) -> int | None:
        row = self._base.kernel
        if row is None or self._grouping is None:
            return row
        return int(self._grouping.of[row])

    def pd(self, selector: Any) -> PD:
        """Return the one PD that *selector* matches.

        Raises
        ------
        SelectorError
            None matches, or several; it lists candidates.

        """
        return self.pds[self.pds.row(selector)]

    def find(self, selector: Any) -> list[PD]:
        """Return all PDs that *selector* matches, maybe none."""
        return [self.pds[row] for row in self.pds.rows_of(selector)]

    def _rows(self, x: Any) -> tuple[I4, I4]:
        """Rows that *x* stands for: certain ones, and those with the undecided of a PDSet."""
        if isinstance(x, PDSet):
            if x.table is not self.pds:
                raise QueryError("the set is of another model")
            return x.rows, x.possible
        if isinstance(x, PD | str) or is_pid(x):
            rows = np.array([self.pds.row(x)], np.int32)
            return rows, rows
        if isinstance(x, Iterable) and not isinstance(x, bytes | bytearray):
            pairs = [self._rows(one) for one in x]
            none = np.empty(0, np.int32)
            sure = np.unique(np.concatenate([none, *(a for a, _ in pairs)]))
            may = np.unique(np.concatenate([none, *(b for _, b in pairs)]))
            return sure.astype(np.int32), may.astype(np.int32)
        raise SelectorError(repr(x), "no selector; use a PD, a PDSet, a pid, or text")

    def _row(self, x: Any) -> int:
        sure, may = self._rows(x)
        if len(sure) != 1 or len(may) != 1:
            raise SelectorError(repr(x), f"stands for {len(may)} PDs, one is wanted")
        return int(sure[0])

    def _members(self, rows: I4) -> I4:
        """Rows of the graph below that rows of this model stand for."""
        return rows if self._grouping is None else self._grouping.members(rows)

    def _folded(self, found: Row) -> Row:
        if self._grouping is None:
            return found
        return Row(self._grouping.fold(found.sure), self._grouping.fold(found.may))

    def _collect(self, sure_rows: I4, may_rows: I4, ask: Callable[[int], Row]) -> Row:
        """Union of the rows of the members of x, without x."""
        if len(sure_rows) == len(may_rows) == 1 and self._grouping is None:
            row = int(sure_rows[0])
            return ask(row).drop(row)
        out = Row.none(self._engine.n)
        certain = set(self._members(sure_rows).tolist())
        for row in self._members(may_rows).tolist():
            found = ask(row)
            out.may |= found.may
            if row in certain:
                out.sure |= found.sure
        out = self._folded(out)
        out.sure[may_rows] = False
        out.may[sure_rows] = False
        return out

    def _answer(self, x: Any, ask: Callable[[int], Row]) -> PDSet:
        found = self._collect(*self._rows(x), ask)
        return PDSet(self.pds, found.sure, found.may & ~found.sure)

    def _relation(self, relation: Relation) -> Relation:
        if self._grouping is None:
            return relation.named(self.pds)
        key = ("folded", id(relation))
        if key not in self._kept:
            folded = relation.folded(self._grouping.of, len(self.pds), self.pds)
            self._kept[key] = (relation, folded)  # keeping it keeps its id
        made: Relation = self._kept[key][1]
        return made

    # -- reachability and sharing

    def bfs(
        self,
        x: Any,
        *,
        edges: Text = frozenset({"HOLD", "MAP"}),
        direction: str = "forward",
        access: Text = "ANY",
        depth: int | None = None,
        kinds: Text = frozenset({"PD", "RESOURCE", "SPACE"}),
        types: Text | None = None,
    ) -> Nodes:
        """Return the nodes that x reaches, or with ``direction="backward"`` that reach x.

        x may also be the name of a node, ``"id:MO_1_2"``. A HOLD into a PD returns it and goes
        no further; a path ends at the kernel. Kinds and types choose what is returned, never
        what is walked. The start is never returned.

        Raises
        ------
        QueryError
            An option is not known.
        SelectorError
            x is no PD and no node.

        """
        sure, may = self._starts(x)
        return _bfs.bfs(
            self._engine,
            sure,
            may,
            edges=edges,
            direction=direction,
            access=access,
            depth=depth,
            kinds=kinds,
            types=types,
        )

    def _starts(self, x: Any) -> tuple[I4, I4]:
        if isinstance(x, str) and x.startswith("id:") and not self.pds.rows_of(x):
            node = self._base.names.find(x[3:])
            if node is not None:
                start = np.array([node], np.int32)
                return start, start
        sure, may = self._rows(x)
        return self._members(sure), self._members(may)

    def _ask(
        self,
        types: Text | None,
        access: Text = "ANY",
        own_access: Text = "ANY",
        potential: bool = False,
        kind: Kind = Kind.RESOURCE,
    ) -> Ask:
        return Ask(
            access_mask(own_access),
            access_mask(access),
            types_of(self._base, types),
            kind,
            bool(potential),
        )

    def shared_resources(
        self,
        x: Any,
        *,
        types: Text | None = None,
        access: Text = "ANY",
        own_access: Text = "ANY",
        potential: bool = False,
    ) -> PDSet:
        """Return the PDs that reach, with *access*, a resource that x reaches with *own_access*."""
        ask = self._ask(types, access, own_access, potential)
        return self._shared(x, ask)

    def shared_spaces(self, x: Any, *, types: Text | None = None) -> PDSet:
        """Return the PDs that hold a space that x holds, or that such a space maps to."""
        return self._shared(x, self._ask(types, kind=Kind.SPACE))

    def _shared(self, x: Any, ask: Ask) -> PDSet:
        sure, may = self._rows(x)
        found = self._collect(sure, may, lambda row: self._engine.shared_row(row, ask))

        def why(row: int) -> Reason:
            nodes = common(self._engine.index, self._members(may), self._members_of(row), ask)
            kinds = sorted({*nodes.types, *nodes.unknown.types})
            return Reason(("shared",), (), tuple(kinds))

        undecided = found.may & ~found.sure

        def parts() -> dict[str, PDSet]:
            return {"shared": PDSet(self.pds, found.sure, undecided)}

        return PDSet(self.pds, found.sure, undecided, parts=parts, why=why)

    def _members_of(self, row: int) -> I4:
        return self._members(np.array([row], np.int32))

    def common_resources(
        self, x: Any, y: Any, *, types: Text | None = None, access: Text = "ANY"
    ) -> Nodes:
        """Return the resources that x reaches and that y reaches with *access*."""
        return self._common(x, y, self._ask(types, access))

    def common_spaces(self, x: Any, y: Any, *, types: Text | None = None) -> Nodes:
        """Return the spaces that both hold, or that spaces they hold map to."""
        return self._common(x, y, self._ask(types, kind=Kind.SPACE))

    def _common(self, x: Any, y: Any, ask: Ask) -> Nodes:
        (a, a_may), (b, b_may) = self._rows(x), self._rows(y)
        index = self._engine.index
        sure = common(index, self._members(a), self._members(b), ask)
        if len(a_may) == len(a) and len(b_may) == len(b):
            return sure
        may = common(index, self._members(a_may), self._members(b_may), ask)
        possible = np.concatenate([sure.unknown.nodes, may.nodes, may.unknown.nodes])
        return Nodes(self._base, sure.nodes, possible)

    def shares(self, x: Any, y: Any, *, types: Text | None = None, access: Text = "ANY") -> Answer:
        """Answer whether y is in ``shared_resources(x)``, and by what.

        What both reach is worked out when the reason is asked for.
        """
        if self._grouping is None and isinstance(x, _ONE) and isinstance(y, _ONE):
            pds = self.pds
            i = x.row if type(x) is PD and x.table is pds else pds.row(x)
            j = y.row if type(y) is PD and y.table is pds else pds.row(y)
            plain = types is None and access == "ANY"
            pairs = self._plain if plain else self._engine.pairs(self._ask(types, access))
            state = pairs.state(i, j)
            if state is False:
                return _NONE_KNOWN
            return LazyAnswer.of(state, self._shares, (x, y, types, access))
        return self._shares(x, y, types, access)

    @cached_property
    def _plain(self) -> Pairs:
        """Pairs of the question without options."""
        return self._engine.pairs(self._ask(None))

    def _shares(self, x: Any, y: Any, types: Text | None, access: Text) -> Answer:
        ask = self._ask(types, access)
        sure, may = self._rows(y)
        found = self._shared(x, ask)
        hit = found & PDSet(self.pds, sure, may)
        if hit:
            others = hit.rows[hit.rows != self._kernel_row]
            if not len(others):
                return Answer(True, "the kernel holds everything with every permission")
            nodes = self._common(x, PDSet(self.pds, others), ask)
            counted = _counted(nodes.types)
            return Answer(True, f"both reach {counted}")
        if hit.unknown:
            nodes = self._common(x, hit, ask)
            said = _counted(nodes.unknown.types) if len(nodes.unknown) else "what was not seen"
            return Answer(None, f"both may reach {said}")
        return _NONE_KNOWN

    # -- control and services

    def controllers(self, x: Any, *, verbs: Text | None = None, effective: bool = True) -> PDSet:
        """Return the PDs that may do one of *verbs* to x: ``{"kill"}``, "who can kill x?"."""
        relation = self._engine.controls.any_of(verbs, effective=effective).T
        return self._controlled(x, relation, verbs, effective, into_x=True)

    def controls(self, x: Any, *, verbs: Text | None = None, effective: bool = True) -> PDSet:
        """Return the PDs to which x may do one of *verbs*."""
        relation = self._engine.controls.any_of(verbs, effective=effective)
        return self._controlled(x, relation, verbs, effective, into_x=False)

    def _controlled(
        self, x: Any, relation: Relation, verbs: Text | None, effective: bool, *, into_x: bool
    ) -> PDSet:
        sure, may = self._rows(x)
        asked = tuple(verbs) if verbs is not None and not isinstance(verbs, str) else verbs
        found = self._collect(sure, may, lambda row: self._engine.row(relation, row))

        def why(row: int) -> Reason:
            return self._verbs(self._members(may), self._members_of(row), asked, effective, into_x)

        parts = {"control": PDSet(self.pds, found.sure, found.may & ~found.sure)}
        return PDSet(self.pds, found.sure, found.may & ~found.sure, parts=parts, why=why)

    def _verbs(self, x: I4, y: I4, verbs: Text | None, effective: bool, into_x: bool) -> Reason:
        found: dict[str, None] = {}
        possible: dict[str, None] = {}
        for a in x.tolist():
            for b in y.tolist():
                pair = (b, a) if into_x else (a, b)
                yes, may = self._engine.controls.verbs_between(*pair, verbs, effective=effective)
                found.update(dict.fromkeys(yes))
                possible.update(dict.fromkeys(may))
        return Reason(("control",), tuple(found or possible), ())

    def may(self, x: Any, verb: str, y: Any) -> Answer:
        """Answer whether x may do *verb* to y, with the rule that decides and its source.

        Of sets, whether a member may to a member; one of x is no target. *verb* is the name of
        one verb, or QueryError.
        """
        if not isinstance(verb, str):
            raise QueryError(f"may wants the name of one verb, not {verb!r}")

        def answer(i: int, j: int, member: bool) -> Answer:
            found = self._engine.controls.may(i, verb, j)
            return found if member or not found.state else replace(found, state=None)

        return groups.best_answer(answer(*pair) for pair in self._pairs(x, y))

    def _pairs(self, x: Any, y: Any) -> Iterator[tuple[int, int, bool]]:
        """Rows of the graph, of x and of y, and whether they are certain members of the two."""
        (a, a_may), (b, b_may) = self._rows(x), self._rows(y)
        certain_a, own, certain_b = set(a.tolist()), set(a_may.tolist()), set(b.tolist())
        for p in a_may.tolist():
            for q in b_may.tolist():
                for i in self._members_of(p).tolist():
                    for j in self._members_of(q).tolist():
                        if q not in own or i == j:
                            yield i, j, p in certain_a and q in certain_b

    def services(self, x: Any, *, depth: int | None = 1) -> PDSet:
        """Return the PDs that x asks for something, within *depth* steps of REQUEST."""
        steps = depth_of(depth)
        return self._answer(x, lambda row: services_row(self._engine.index, row, steps))

    def common_ancestors(self, x: Any, y: Any) -> PDSet:
        """Return the PDs that both reach over REQUEST: what brings both down."""
        (a, a_may), (b, b_may) = self._rows(x), self._rows(y)
        index = self._engine.index
        found = self._folded(ancestors(index, self._members(a), self._members(b)))
        wide = self._folded(ancestors(index, self._members(a_may), self._members(b_may)))
        found.may |= wide.may
        for rows in (a, b):
            found.may[rows] = False
        for rows in (a_may, b_may):
            found.sure[rows] = False
        return PDSet(self.pds, found.sure, found.may & ~found.sure)

    # -- TCB and Impact Boundary

    def tcb(
        self,
        x: Any,
        *,
        access: Text = "W",
        own_access: Text = "ANY",
        types: Text | None = None,
        verbs: Text | None = None,
        services: bool = False,
        potential: bool = False,
        depth: int | None = 1,
        through: str = "any",
    ) -> PDSet:
        """Return the Trusted Computing Base of x: who can affect it.

        Parameters
        ----------
        x
            A PD, or several.
        access, own_access
            What the other's, and x's, path to a shared resource must allow.
        types
            Of resources; they restrict the shared part only.
        verbs
            That count as control; None for the default set, empty for none.
        services
            Whether those asked for a service are members. They are in ``.parts["service"]``
            in any case.
        potential
            Whether what was not observed, but could be used, counts as shared.
        depth
            Steps; None for the closure.
        through
            "any": a step goes on from every member. "power": only over verbs that give the
            actor all that the target can do.

        Raises
        ------
        QueryError
            An option is not known.
        SelectorError
            x matches none, or several.

        """
        base = boundary.asked(
            self._engine,
            access=access,
            own_access=own_access,
            types=types,
            verbs=verbs,
            services=services,
            potential=potential,
            depth=depth,
            through=through,
        )
        return self._boundary(x, base, forward=True)

    def impact_boundary(
        self,
        x: Any,
        *,
        access: Text = "W",
        own_access: Text = "ANY",
        types: Text | None = None,
        verbs: Text | None = None,
        services: bool = False,
        potential: bool = False,
        depth: int | None = 1,
        through: str = "any",
    ) -> PDSet:
        """Return whom x can affect: exactly the PDs in whose `tcb`, with these options, x is."""
        base = boundary.asked(
            self._engine,
            access=access,
            own_access=own_access,
            types=types,
            verbs=verbs,
            services=services,
            potential=potential,
            depth=depth,
            through=through,
        )
        return self._boundary(x, base, forward=False)

    def _boundary(self, x: Any, base: boundary.Base, *, forward: bool) -> PDSet:
        engine = self._engine
        sure, may = self._rows(x)
        one = boundary.tcb_row if forward else boundary.impact_row
        found = self._collect(sure, may, lambda row: one(engine, row, base))

        def parts() -> dict[str, PDSet]:
            made: dict[int, dict[str, Row]] = {}

            def of(row: int) -> dict[str, Row]:
                if row not in made:
                    made[row] = boundary.part_rows(engine, row, base, forward=forward)
                return made[row]

            out = {}
            for part in boundary.PARTS:
                # Bound here: the lambda is called before the next part.
                row = self._collect(sure, may, lambda r, part=part: of(r)[part])  # type: ignore[misc]
                out[part] = PDSet(self.pds, row.sure, row.may & ~row.sure)
            return out

        answer = PDSet(self.pds, found.sure, found.may & ~found.sure, parts=parts)

        def why(row: int) -> Reason:
            return self._why(answer, self._members(may), row, base, forward)

        return PDSet(
            self.pds, answer.rows, answer.unknown.rows, parts=lambda: answer.parts, why=why
        )

    def _why(self, answer: PDSet, x: I4, row: int, base: boundary.Base, forward: bool) -> Reason:
        names = tuple(
            part
            for part, members in answer.parts.items()
            if row in members.rows or row in members.unknown.rows
        )
        y = self._members_of(row)
        verbs: tuple[str, ...] = ()
        types: tuple[str, ...] = ()
        if "control" in names:
            verbs = self._verbs(x, y, base.verbs, True, forward).verbs
        if "shared" in names:
            pair = (x, y) if forward else (y, x)
            nodes = common(self._engine.index, *pair, base.ask)
            types = tuple(sorted({*nodes.types, *nodes.unknown.types}))
        return Reason(names, verbs, types)

    def explain(self, x: Any, y: Any, **options: Any) -> Witness:
        """Return the witness of why y is in ``tcb(x)``: paths, permissions, rules, sources.

        *options* are those of `tcb`; with a depth the witness is the least chain of steps. Of
        sets, of the first pair of members that has one; a member of x is in none of its answers.

        Raises
        ------
        QueryError
            There is no such pair: a set is empty.

        """

        def witness(i: int, j: int, member: bool) -> Witness:
            found = _explain.explain(self._engine, i, j, **options)
            return found if member or not found.state else replace(found, state=None)

        return _explain.best(witness(*pair) for pair in self._pairs(x, y))

    # -- figures

    @property
    def _of(self) -> I4:
        if self._grouping is None:
            return np.arange(self._engine.n, dtype=np.int32)
        return self._grouping.of

    def _chosen(self, which: Any) -> I4 | None:
        """Rows that a caller listed, in that order; a PDSet, or several selectors."""
        if which is None:
            return None
        if isinstance(which, PDSet):
            return self._rows(which)[0]
        if isinstance(which, str | PD) or is_pid(which):
            return self._rows(which)[0]
        return np.array([self._row(one) for one in which], np.int32)

    def shared_pages(self, rows: Any = None, cols: Any = None) -> csr_array:
        """Return base pages that both map, as (rows, cols) csr_array of int64.

        The diagonal is a PD's own distinct pages. None stands for all PDs.
        """
        return metrics.shared_pages(
            self._engine, self._of, len(self.pds), self._chosen(rows), self._chosen(cols)
        )

    def pages_shared(self) -> NDArray[np.int64]:
        """Return (P,) base pages of each PD that another PD, not the kernel, maps as well.

        Each counts once; the kernel has 0.
        """
        return metrics.pages_shared(self._engine, self._of, len(self.pds))

    def rsi(self, x: Any, y: Any, type: str) -> float:  # noqa: A002  # the public name
        """Return |A & B| / |A | B| of the resources of a type that either reaches, by pages.

        NaN of two empty sets. Of what is certain only.

        Raises
        ------
        QueryError
            The type is not known.

        """
        if not isinstance(type, str):
            raise QueryError(f"rsi wants one type, not {type!r}")
        sets = [self.bfs(one, kinds={"RESOURCE"}, types={type}) for one in (x, y)]
        return metrics.rsi_of_sets(sets[0], sets[1], self._base.pages)

    def rsi_matrix(
        self,
        type: str,  # noqa: A002  # the public name
        rows: Any = None,
        cols: Any = None,
    ) -> NDArray[np.float64]:
        """Return `rsi` of every row with every column."""
        return metrics.rsi_matrix(
            self._engine, type, self._of, len(self.pds), self._chosen(rows), self._chosen(cols)
        )

    def fr(self, x: Any, y: Any, *, types: Text | None = None, kernel: bool = False) -> float:
        """Return the fault radius: the least depth at which a third PD serves both; or inf."""
        a, b = self._rows(x)[0], self._rows(y)[0]
        return metrics.fault_radius(
            self._engine, self._members(a), self._members(b), types, kernel=kernel
        )

    def fr_matrix(
        self,
        rows: Any = None,
        cols: Any = None,
        *,
        types: Text | None = None,
        kernel: bool = False,
    ) -> NDArray[np.float64]:
        """Return `fr` of every row with every column."""
        every = np.arange(len(self.pds), dtype=np.int32)
        chosen = [every if which is None else which for which in map(self._chosen, (rows, cols))]
        return metrics.fault_radii(
            self._engine,
            types,
            self._of,
            len(self.pds),
            kernel=kernel,
            rows=chosen[0],
            cols=chosen[1],
        )

    # -- isolation

    def isolation(self, x: Any, y: Any) -> Isolation:
        """Return the layers that separate x and y: a mapping of layer to state and evidence.

        For sets and groups a layer separates only if it does every pair. What was not read is
        "unknown".
        """
        a, b = (self._members(self._rows(one)[0]) for one in (x, y))
        return layers.isolation(self._base, a, b)

    def isolation_matrix(self, layer: str) -> Relation:
        """Return ``R[i, j]``: *layer* separates i and j; ``.unknown``: it may."""
        if self._grouping is None:
            return layers.isolation_matrix(self._base, layer)
        return layers.isolation_matrix(
            self._base, layer, group=self._grouping.of, pds=self._grouping.pds
        )

    def isolation_scores(
        self, rows: Any = None, cols: Any = None, *, paper: bool = False
    ) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """Return how many layers separate each row from each column, and how many may.

        Of all layers, or of the seven that the *paper*'s tool counts; two (rows, cols) int8, as
        `isolation` scores a pair.
        """
        chosen = [self._chosen(which) for which in (rows, cols)]
        every = np.arange(len(self.pds), dtype=np.int32)
        picked = [every if one is None else one for one in chosen]
        names = layers.PAPER_LAYERS if paper else tuple(layers.LAYERS)
        return layers.scores((self.isolation_matrix(name) for name in names), *picked)

    # -- the whole host

    def control_matrix(self, verb: str, *, effective: bool = True) -> Relation:
        """Return ``R[i, j]``: i may <verb> j."""
        return self._relation(self._engine.controls.any_of(str(verb), effective=effective))

    def sharing_matrix(
        self, *, types: Text | None = None, access: Text = "ANY", own_access: Text = "ANY"
    ) -> Relation:
        """Return ``R[i, j]``: j is in ``shared_resources(i)``."""
        return self._relation(self._engine.sharing(self._ask(types, access, own_access)))

    def tcb_matrix(
        self,
        *,
        access: Text = "W",
        own_access: Text = "ANY",
        types: Text | None = None,
        verbs: Text | None = None,
        services: bool = False,
        potential: bool = False,
        depth: int | None = 1,
        through: str = "any",
    ) -> Relation:
        """Return ``R[i, j]``: j is in ``tcb(i)``; the impact boundary is its transpose."""
        base = boundary.asked(
            self._engine,
            access=access,
            own_access=own_access,
            types=types,
            verbs=verbs,
            services=services,
            potential=potential,
            depth=depth,
            through=through,
        )
        return self._relation(boundary.tcb_relation(self._engine, base))

    # -- other views

    def group_by(self, key: str | Callable[[PD], str | None]) -> Model:
        """Return a model of groups that answers the same questions.

        A group is in an answer about another if a member of it is, about a member of that.

        Parameters
        ----------
        key
            "container", "unit", "user", "cgroup", "exe", "role", or a function of a PD. A PD
            without a value, and the kernel, stay alone.

        Raises
        ------
        QueryError
            The key is not known, or the model is one of groups already.

        """
        if self._grouping is not None:
            raise QueryError("this model is of groups already: group the one below")
        grouping = groups.grouped(self._base, key)
        return Model(self._base, grouping=grouping, engine=self._engine)

    @property
    def _quotient(self) -> Quotient:
        made: Quotient = self._engine.once("quotient", lambda: quotient(self._engine.index))
        return made

    @property
    def graph(self) -> Any:
        """The quotient as an igraph.Graph; vertex i is row i of the PDs. Made once.

        A vertex stands for the nodes that nothing tells apart: what reaches it reaches each of
        its `members`, over a path of the same permissions. Edges "IN" lead into vertices of kind
        "RANGE", which stand for several others that map the same. A path from a PD with its
        ranges left out is one of the full graph; see `expand` for that. A model of groups gives
        the graph of its members.
        """
        index, engine = self._engine.index, self._engine
        return engine.once("graph", lambda: export.topology(index, self._quotient))

    def members(self, vertex: int) -> Nodes:
        """Return the nodes that a vertex of `graph` stands for."""
        if not 0 <= vertex < len(self._quotient.node):
            raise QueryError(f"no vertex {vertex}: the graph has {len(self._quotient.node)}")
        return Nodes(self._base, self._quotient.members(vertex))

    def expand(self, pds: Any = None) -> Any:
        """Return an igraph.Graph of each node and edge by itself, control included.

        All PDs are vertices, PD i being vertex i; of the other nodes those that *pds* reach, and
        of control the edges among *pds*, one for each pair and verb. None stands for all PDs:
        of thousands of processes that is more than memory holds.
        """
        rows = None if pds is None else self._members(self._rows(pds)[0])
        return export.expanded(self._engine.index, self._engine.controls, rows)

    def __repr__(self) -> str:
        what = "PDs" if self._grouping is None else "groups"
        return f"<Model of {len(self.pds)} {what}, {len(self._base.kind)} nodes>"


def _counted(types: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for name in types:
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "nothing"
