"""Answers: sets of PDs and of nodes, with what could not be decided kept apart.

Set algebra is Kleene's: every PD is in, out, or unknown; ``A | B`` is in where either is, and
unknown where neither is and one may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import QueryError
from osmosis.graph.pds import PD, PDTable, escape, is_pid

__all__ = ["Answer", "LazyAnswer", "Nodes", "PDSet", "Reason"]

Rows = NDArray[np.int32]
_NONE: Rows = np.empty(0, np.int32)
_NONE.flags.writeable = False


class Reason(NamedTuple):
    """Why a PD is in an answer: by which parts, verbs and types of shared resource."""

    parts: tuple[str, ...]
    verbs: tuple[str, ...]
    types: tuple[str, ...]

    def __str__(self) -> str:
        said = []
        for part in self.parts:
            detail = {"control": self.verbs, "shared": self.types}.get(part, ())
            said.append(f"{part} ({', '.join(detail)})" if detail else part)
        return "; ".join(said) or "no reason known"


@dataclass(frozen=True, slots=True)
class Answer:
    """Yes, no or unknown to one question, with the reason; a bool only if decided."""

    state: bool | None
    reason: str
    caveats: tuple[str, ...] = ()
    rule: str = ""
    source: str = ""

    def __bool__(self) -> bool:
        if self.state is None:
            raise QueryError(f"undecided, ask .state instead: {escape(self.reason)}")
        return self.state

    @property
    def word(self) -> str:
        """One of "yes", "no", "unknown"."""
        return {True: "yes", False: "no", None: "unknown"}[self.state]

    def __str__(self) -> str:
        said = f"{self.word}: {escape(self.reason)}" if self.reason else self.word
        return said + "".join(f" [caveat: {escape(c)}]" for c in self.caveats)


_put = object.__setattr__  # an Answer is frozen


class LazyAnswer(Answer):
    """An answer whose reason is worked out when it is first asked for."""

    __slots__ = ("_why",)

    _why: tuple[Callable[..., Answer], tuple[Any, ...]]

    @classmethod
    def of(cls, state: bool | None, whole: Callable[..., Answer], args: tuple[Any, ...]) -> Answer:
        """Return the answer *state* with the reason of ``whole(*args)``."""
        made = cls.__new__(cls)
        _put(made, "state", state)
        _put(made, "_why", (whole, args))
        return made

    def __getattr__(self, name: str) -> Any:  # of a slot that is empty
        if name == "caveats":
            return ()
        if name in ("rule", "source"):
            return ""
        if name != "reason":
            raise AttributeError(name)
        whole, args = self._why
        reason = whole(*args).reason
        object.__setattr__(self, "reason", reason)
        return reason

    def _plain(self) -> Answer:
        return Answer(self.state, self.reason, self.caveats, self.rule, self.source)

    def __eq__(self, other: object) -> bool:
        return self._plain() == (other._plain() if isinstance(other, LazyAnswer) else other)

    def __hash__(self) -> int:
        return hash(self._plain())

    def __reduce__(self) -> tuple[Any, ...]:
        return Answer, (self.state, self.reason, self.caveats, self.rule, self.source)


def rows_array(rows: Any) -> Rows:
    """*rows* as sorted, unique, frozen int32; a boolean mask stands for its true rows."""
    given = np.asarray(rows)
    if given.dtype == bool:
        out = given.ravel().nonzero()[0].astype(np.int32)
    else:
        out = given.astype(np.int32)
        if out.ndim != 1 or not (out[1:] > out[:-1]).all():
            out = np.unique(out)
    out.flags.writeable = False
    return out


Parts = Mapping[str, "PDSet"]


class PDSet:
    """A set of PDs of one model: certain members, and apart from them the undecided.

    ``len``, ``in`` and iteration speak of the certain members. Two sets are equal if both
    their members and their unknowns are.
    """

    __slots__ = ("_parts", "_undecided", "_why", "rows", "table")

    def __init__(
        self,
        table: PDTable,
        rows: Any = _NONE,
        unknown: Any = _NONE,
        *,
        parts: Parts | Callable[[], Parts] | None = None,
        why: Callable[[int], Reason] | None = None,
    ) -> None:
        self.table = table
        self.rows = rows_array(rows)
        undecided = rows_array(unknown)
        if len(undecided) and len(self.rows):
            member = np.zeros(len(table), bool)
            member[self.rows] = True
            undecided = rows_array(undecided[~member[undecided]])
        self._undecided = undecided
        self._parts = parts
        self._why = why

    @property
    def pids(self) -> Rows:
        """(len,) pids of the members, in row order; -1 for a PD that has none."""
        pids = self.table.pid[self.rows]
        pids.flags.writeable = False
        return pids

    @property
    def unknown(self) -> PDSet:
        """What could not be decided: disjoint from the members."""
        return PDSet(self.table, self._undecided, why=self._why)

    @property
    def possible(self) -> Rows:
        """Rows of the members and of the undecided."""
        return rows_array(np.concatenate([self.rows, self._undecided]))

    @property
    def parts(self) -> Parts:
        """Members by part of the answer: "shared", "control", "service"; {} where there is one.

        A part has unknowns of its own: what it alone cannot decide may be a member by another.
        """
        if callable(self._parts):
            self._parts = self._parts()
        return MappingProxyType(dict(self._parts or {}))

    def why(self, pd: Any) -> Reason:
        """Return the reasons for which *pd* is a member, or may be one.

        Raises
        ------
        QueryError
            It is neither.
        """
        row = self.table.row(pd)
        if row not in self.rows and row not in self._undecided:
            raise QueryError(f"{escape(str(self.table[row]))} is not in this answer")
        if self._why is not None:
            return self._why(row)
        names = tuple(
            name for name, part in self.parts.items() if row in part.rows or row in part._undecided
        )
        return Reason(names, (), ())

    # -- the set

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    def __iter__(self) -> Iterator[PD]:
        return (self.table[row] for row in self.rows.tolist())

    def __contains__(self, pd: object) -> bool:
        # A PD or a pid that the model does not have is no member; text that matches nothing, or
        # several, is an error, as a slip in it would read as a certain no.
        if isinstance(pd, PD) or is_pid(pd):
            rows = self.table.rows_of(pd)
            if len(rows) < 2:
                return bool(rows) and rows[0] in self.rows
        return self.table.row(pd) in self.rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PDSet):
            return NotImplemented
        return (
            self.table is other.table
            and np.array_equal(self.rows, other.rows)
            and np.array_equal(self._undecided, other._undecided)
        )

    def __hash__(self) -> int:
        return hash((id(self.table), self.rows.tobytes(), self._undecided.tobytes()))

    def _other(self, other: object) -> PDSet:
        if not isinstance(other, PDSet):
            raise QueryError(f"set algebra wants a PDSet, not {type(other).__name__}")
        if other.table is not self.table:
            raise QueryError("the two sets are of different models")
        return other

    def __or__(self, other: object) -> PDSet:
        b = self._other(other)

        def parts() -> Parts:
            mine, theirs = self.parts, b.parts
            names = list(dict.fromkeys([*mine, *theirs]))
            none = PDSet(self.table)
            return {name: mine.get(name, none) | theirs.get(name, none) for name in names}

        yes = np.union1d(self.rows, b.rows)
        return PDSet(self.table, yes, np.union1d(self._undecided, b._undecided), parts=parts)

    def __and__(self, other: object) -> PDSet:
        b = self._other(other)
        yes = np.intersect1d(self.rows, b.rows, assume_unique=True)
        may = np.intersect1d(self.possible, b.possible, assume_unique=True)
        keep = PDSet(self.table, yes, may)

        def parts() -> Parts:
            out: dict[str, PDSet] = {}
            for one in (self, b):
                for name, part in one.parts.items():
                    cut = PDSet(
                        self.table,
                        np.intersect1d(part.rows, keep.possible),
                        np.intersect1d(part._undecided, keep.possible),
                    )
                    out[name] = out[name] | cut if name in out else cut
            return out

        return PDSet(self.table, yes, may, parts=parts)

    def __sub__(self, other: object) -> PDSet:
        b = self._other(other)
        yes = np.setdiff1d(self.rows, b.possible, assume_unique=True)
        may = np.setdiff1d(self.possible, b.rows, assume_unique=True)

        def parts() -> Parts:
            plain = PDSet(self.table, b.rows, b._undecided)
            return {
                name: PDSet(self.table, part.rows, part._undecided) - plain
                for name, part in self.parts.items()
            }

        return PDSet(self.table, yes, may, parts=parts)

    def __xor__(self, other: object) -> PDSet:
        b = self._other(other)
        undecided = np.union1d(self._undecided, b._undecided)
        yes = np.setdiff1d(np.setxor1d(self.rows, b.rows, assume_unique=True), undecided)
        return PDSet(self.table, yes, undecided)

    def isdisjoint(self, other: PDSet) -> bool:
        """Tell whether the certain members have none in common."""
        return not len(np.intersect1d(self.rows, self._other(other).rows))

    def __le__(self, other: object) -> bool:
        return bool(np.isin(self.rows, self._other(other).rows).all())

    def __lt__(self, other: object) -> bool:
        return len(self) < len(self._other(other)) and self <= other

    def __repr__(self) -> str:
        shown = ", ".join(escape(str(self.table[r])) for r in self.rows[:6].tolist())
        more = f", ... {len(self) - 6} more" if len(self) > 6 else ""
        may = f"; {len(self._undecided)} unknown" if len(self._undecided) else ""
        return f"<PDSet of {len(self)}: {shown}{more}{may}>"


class Nodes:
    """A set of nodes of one graph, certain ones with the undecided apart, as in a PDSet."""

    __slots__ = ("_graph", "_undecided", "nodes")

    def __init__(self, graph: Any, nodes: Any = _NONE, unknown: Any = _NONE) -> None:
        self._graph = graph
        self.nodes = rows_array(nodes)
        undecided = rows_array(unknown)
        if len(undecided) and len(self.nodes):
            undecided = rows_array(np.setdiff1d(undecided, self.nodes, assume_unique=True))
        self._undecided = undecided

    @property
    def ids(self) -> list[str]:
        """Names of the nodes, in node order."""
        return [self._graph.names[node] for node in self.nodes.tolist()]

    @property
    def types(self) -> list[str]:
        """Type of each node; "PD" for a PD."""
        names, types = self._graph.types, self._graph.type
        return ["PD" if t < 0 else names[t] for t in types[self.nodes].tolist()]

    @property
    def unknown(self) -> Nodes:
        """What could not be decided: disjoint from the members."""
        return Nodes(self._graph, self._undecided)

    def __len__(self) -> int:
        return len(self.nodes)

    def __bool__(self) -> bool:
        return len(self.nodes) > 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        node = self._graph.names.find(name.removeprefix("id:"))
        return node is not None and node in self.nodes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Nodes):
            return NotImplemented
        return (
            self._graph is other._graph
            and np.array_equal(self.nodes, other.nodes)
            and np.array_equal(self._undecided, other._undecided)
        )

    def __hash__(self) -> int:
        return hash((id(self._graph), self.nodes.tobytes(), self._undecided.tobytes()))

    def __repr__(self) -> str:
        shown = ", ".join(escape(self._graph.names[n]) for n in self.nodes[:6].tolist())
        more = f", ... {len(self) - 6} more" if len(self) > 6 else ""
        may = f"; {len(self._undecided)} unknown" if len(self._undecided) else ""
        return f"<Nodes of {len(self)}: {shown}{more}{may}>"
