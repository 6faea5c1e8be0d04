"""The drawing of one case of a comparison: the subject, everybody else by role, where they meet.

As the paper draws an isolation mechanism: protection domains on the left, the resources through
which they meet the subject, the subject, and its spaces on the right. Who is in its TCB and who
in its Impact Boundary is what the comparison says; colours tell which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import QueryError
from osmosis.formats.view import Link, Node, View, listing, pages_text
from osmosis.graph.graph import ANY, POTENTIAL, Edge, Kind
from osmosis.graph.sets import PDSet
from osmosis.model import Model
from osmosis.query.compare import members_of
from osmosis.query.comparison import ANSWERS, TYPES, Boundary, Case, Count, Way

__all__ = ["mechanism"]

MOST_ROLES = 12  # boxes of others; the rest is one more
MOST_MEETINGS = 8  # boxes of resources; the rest is one more for each type
_OUTSIDE = {None: "in neither", "tcb": "not in the TCB", "impact_boundary": "not in the IB"}
HEADS = ("Others, by {}", "Resources they meet in", "Subject", "Its spaces")
_NAMED = 3
_LETTERS = "RWX"
# Spaces that say nothing of a mechanism: address spaces, physical memory, filesystems.
_PLAIN_SPACES = ("VMR", "MO", "FILE", "CPU")
_LOUD = ("kill", "trace-attach", "mem-write", "daemon", "rewrite")  # verbs to name first

I4 = NDArray[np.int32]
Reach = dict[int, tuple[str, str]]  # node -> letters certain, letters possible beyond those


def mechanism(model: Model, case: Case, *, answer: str | None = None, by: str = "role") -> View:
    """Return the drawing of *case*, which a comparison made of *model*.

    Parameters
    ----------
    model
        The model of the case.
    case
        What is drawn; it has its subject.
    answer
        "tcb" or "impact_boundary": only that, and what makes it; None: both, and all they share.
    by
        The column that named members in the comparison.

    Raises
    ------
    QueryError
        The case has no subject, or *answer* is none of these.

    """
    if answer not in (None, *ANSWERS):
        raise QueryError(f"answer must be {' or '.join(ANSWERS)}, not {answer!r}")
    if case.tcb is None or case.impact_boundary is None:
        raise QueryError(f"there is nothing to draw: {case.absent}")
    return _Drawing(model, case, answer, by).view()


@dataclass(slots=True)
class _Meeting:
    """Resources of one type that the subject and the same others reach in the same way."""

    type: str
    mine: tuple[str, str]
    theirs: dict[str, tuple[str, str]]  # by role
    nodes: list[int] = field(default_factory=list)

    @property
    def how(self) -> str:
        """As `view` tells resources apart: "written" by others, "writes" the subject, "read"."""
        if any("W" in a + b for a, b in self.theirs.values()):
            return "written"
        return "writes" if "W" in "".join(self.mine) else "read"


class _Drawing:
    def __init__(self, model: Model, case: Case, answer: str | None, by: str) -> None:
        self.model, self.case, self.graph, self.answer = model, case, model.data, answer
        self.tcb = None if answer == "impact_boundary" else case.tcb
        self.ib = None if answer == "tcb" else case.impact_boundary
        self.rows = np.array([pd.row for pd in model.find(case.selector)], np.int32)
        names = members_of(model, self.rows, by)
        own = set(self.rows.tolist())
        self.of: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            if row not in own and row != self.graph.kernel:
                self.of.setdefault(name, []).append(row)
        self.heads = (HEADS[0].format(by), *HEADS[1:])
        self.nodes: list[Node] = []
        self.links: list[Link] = []

    def view(self) -> View:
        case = self.case
        self._add(
            "PD",
            "PD",
            2,
            "subject",
            _titled(case.selector.removeprefix("role:"), len(self.rows)),
            self._who(),
        )
        at = self._roles()
        self._meetings(at)
        self._control(at)
        self._services(at)
        self._spaces()
        what = {"tcb": ", its TCB", "impact_boundary": ", its Impact Boundary"}
        title = f"{case.name}: {case.selector}{what.get(self.answer or '', '')}"
        return View(
            title, 0, tuple(self.nodes), tuple(self.links), tuple(self._notes()), heads=self.heads
        )

    def _add(
        self,
        kind: str,
        type_: str,
        column: int,
        role: str,
        title: str,
        lines: Iterable[str],
        members: Sequence[int] = (),
        pages: float = 0.0,
    ) -> int:
        number = len(self.nodes)
        named = tuple(self.graph.names[node] for node in members)
        self.nodes.append(
            Node(f"box_{number}", kind, type_, title, tuple(lines), named, pages, role, column)
        )
        return number

    def _link(self, source: int, target: int, kind: str, said: str, *, certain: bool) -> None:
        self.links.append(Link(source, target, kind, "", "", said, 1, certain))

    def _notes(self) -> Iterator[str]:
        if self.graph.kernel is not None:
            yield "The kernel holds all with every permission; its other holds are not drawn."
        for word, side in (("TCB", self.tcb), ("IB", self.ib)):
            if side is not None and side.size.potential:
                yield (
                    f"{side.size.potential} more would be in the {word} by what could be used and"
                    " was not observed."
                )

    # -- protection domains

    def _who(self) -> list[str]:
        comms = Counter(str(self.model.pds.comm[row]) for row in self.rows.tolist())
        lines = listing(comms)
        for word, side in (("TCB", self.tcb), ("IB", self.ib)):
            if side is not None:
                lines.append(f"{word} {_plus(side.size)}")
        return lines

    def _roles(self) -> dict[str, int]:
        """Boxes of the others; returns the box of each role."""
        at: dict[str, int] = {}
        if self.graph.kernel is not None and self.tcb is not None:
            at["kernel"] = self._add("PD", "PD", 0, "kernel", "kernel", ["in every TCB"])
            self._link(at["kernel"], 0, "HOLD", "everything", certain=True)

        def rank(role: str) -> tuple[bool, bool, int, str]:
            tcb, ib = self._counts(role)
            return (not (tcb.certain or ib.certain), not any(tcb + ib), -len(self.of[role]), role)

        ranked = sorted(self.of, key=rank)
        shown = ranked if len(ranked) <= MOST_ROLES + 1 else ranked[:MOST_ROLES]
        for role in shown:
            at[role] = self._role(role)
        rest = ranked[len(shown) :]
        if rest:
            counts = [self._counts(role) for role in rest]
            lines = [
                f"{n} of them in the {word}"
                for i, word in enumerate(("TCB", "IB"))
                if (n := sum(bool(pair[i].certain) for pair in counts))
            ]
            self._add("PD", "PD", 0, "more", f"{len(rest)} more", lines)
        return at

    def _counts(self, role: str) -> tuple[Count, Count]:
        tcb, ib = self.tcb, self.ib
        none = Count()
        return (
            none if tcb is None else tcb.roles.get(role, none),
            none if ib is None else ib.roles.get(role, none),
        )

    def _role(self, role: str) -> int:
        rows = self.of[role]
        tcb, ib = self._counts(role)
        lines = listing(Counter(str(self.model.pds.comm[row]) for row in rows))
        if lines == [role]:
            lines = []
        said = [_member("TCB", tcb, len(rows)), _member("IB", ib, len(rows))]
        lines.append("; ".join(s for s in said if s) or _OUTSIDE[self.answer])
        return self._add("PD", "PD", 0, _place(tcb, ib), _titled(role, len(rows)), lines, rows)

    # -- where they meet

    def _meetings(self, at: Mapping[str, int]) -> None:
        mine = self._reach(self.rows)
        theirs = {
            role: self._reach(np.array(self.of[role], np.int32)) for role in at if role in self.of
        }
        found: dict[object, _Meeting] = {}
        private = []
        for node, may in mine.items():
            who = {role: reach[node] for role, reach in theirs.items() if node in reach}
            if not who:
                private.append(node)
                continue
            meeting = _Meeting(self._type(node), may, who)
            key: object = (meeting.type, may, tuple(who.items()))
            if meeting.how == "read":  # nobody alters it: all of a type are one
                key = (meeting.type, "read")
                who = {
                    role: _joined(who.get(role), old) for role, old in self._old(found, key, who)
                }
            found.setdefault(key, meeting).nodes.append(node)
            found[key].theirs.update(who)
            found[key].mine = _joined(found[key].mine, may)
        for meeting in self._largest([m for m in found.values() if self._matters(m)]):
            self._meeting(meeting, at)
        memory = [node for node in private if self._type(node) == "MO"]
        if memory and self.answer is None:
            self._private(memory)

    def _matters(self, meeting: _Meeting) -> bool:
        """Whether somebody may alter it on the side that the answer asks about."""
        if self.answer is None:
            return True
        return meeting.how == "written" if self.answer == "tcb" else "W" in "".join(meeting.mine)

    @staticmethod
    def _old(
        found: Mapping[object, _Meeting], key: object, who: Mapping[str, tuple[str, str]]
    ) -> list[tuple[str, tuple[str, str] | None]]:
        before = found[key].theirs if key in found else {}
        return [(role, before.get(role)) for role in {**before, **who}]

    def _largest(self, found: list[_Meeting]) -> list[_Meeting]:
        """The meetings to draw: those that are written first; the rest joined by type."""
        rank = {"written": 0, "writes": 1, "read": 2}
        ranked = sorted(found, key=lambda m: (rank[m.how], -len(m.theirs), m.type, m.nodes))
        if len(ranked) <= MOST_MEETINGS + 1:
            return ranked
        rest: dict[tuple[str, str], _Meeting] = {}
        for meeting in ranked[MOST_MEETINGS:]:
            one = rest.setdefault(
                (meeting.type, meeting.how), _Meeting(meeting.type, meeting.mine, {})
            )
            one.nodes += meeting.nodes
            one.mine = _joined(one.mine, meeting.mine)
            for role, may in meeting.theirs.items():
                one.theirs[role] = _joined(one.theirs.get(role), may)
        return ranked[:MOST_MEETINGS] + list(rest.values())

    def _meeting(self, meeting: _Meeting, at: Mapping[str, int]) -> None:
        nodes = meeting.nodes
        pages = float(self.graph.pages[nodes].sum()) if meeting.type == "MO" else 0.0
        count = pages_text(pages) if meeting.type == "MO" else str(len(nodes))
        said = {
            "written": "others may write",
            "writes": "the subject writes",
            "read": "nobody writes",
        }
        lines = [said[meeting.how]]
        if TYPES.get(meeting.type) == "files":
            lines += self._paths(nodes)
        box = self._add(
            "RESOURCE",
            meeting.type,
            1,
            meeting.how,
            f"{meeting.type}: {count}",
            lines,
            nodes,
            pages,
        )
        self._hold(0, box, self.rows, nodes, meeting.mine)
        for role, may in meeting.theirs.items():
            self._hold(at[role], box, np.array(self.of[role], np.int32), nodes, may)

    def _hold(
        self, source: int, box: int, rows: I4, nodes: Sequence[int], may: tuple[str, str]
    ) -> None:
        """An edge to a box of resources: HOLD if one of them is held, MAP if all are mapped."""
        edges = self.graph.edges
        direct = (edges.kind == Edge.HOLD) & np.isin(edges.src, rows) & np.isin(edges.dst, nodes)
        kind = "HOLD" if direct.any() else "MAP"
        certain, possible = may
        self.links.append(
            Link(
                source, box, kind, certain, possible, "", len(nodes), bool(certain or not possible)
            )
        )

    def _private(self, nodes: list[int]) -> None:
        pages = float(self.graph.pages[nodes].sum())
        box = self._add(
            "RESOURCE", "MO", 1, "private", f"MO: {pages_text(pages)}", ["its own"], nodes, pages
        )
        self._hold(0, box, self.rows, nodes, ("", ""))

    def _reach(self, rows: I4) -> Reach:
        """Resources that one of *rows* reaches, with the letters of a path to each."""
        who = PDSet(self.model.pds, rows)
        out: Reach = {}
        every = self.model.bfs(who, kinds={"RESOURCE"})
        for node in (*every.nodes.tolist(), *every.unknown.nodes.tolist()):
            out[node] = ("", "")
        for letter in _LETTERS:
            found = self.model.bfs(who, kinds={"RESOURCE"}, access=letter)
            for node in found.nodes.tolist():
                out[node] = (out[node][0] + letter, out[node][1])
            for node in found.unknown.nodes.tolist():
                out[node] = (out[node][0], out[node][1] + letter)
        return out

    def _type(self, node: int) -> str:
        return str(self.graph.types[self.graph.type[node]])

    def _paths(self, nodes: Sequence[int]) -> list[str]:
        paths = dict.fromkeys(
            str(note["path"])
            for node in nodes
            if (note := self.graph.notes.get(node, {})) and note.get("path")
        )
        named = list(paths)[:_NAMED]
        return named + ([f"and {len(paths) - _NAMED} more"] if len(paths) > _NAMED else [])

    # -- control and services

    def _control(self, at: Mapping[str, int]) -> None:
        for side, inward in ((self.tcb, True), (self.ib, False)):
            for role, (sure, may) in _verbs(side).items():
                if role in at:
                    ends = (at[role], 0) if inward else (0, at[role])
                    self._link(*ends, "HOLD", _loudest(sure or may), certain=bool(sure))

    def _services(self, at: Mapping[str, int]) -> None:
        for side, outward in ((self.tcb, True), (self.ib, False)):
            who = {} if side is None else side.ways.get(Way("service"), {})
            for role, count in who.items():
                if role in at and role in self.of:
                    ends = (0, at[role]) if outward else (at[role], 0)
                    rows = np.array(self.of[role], np.int32)
                    said = self._asked(self.rows, rows) if outward else self._asked(rows, self.rows)
                    self._link(*ends, "REQUEST", said, certain=bool(count.certain))

    def _asked(self, clients: I4, servers: I4) -> str:
        """What *clients* ask *servers* for."""
        edges, labels = self.graph.edges, self.graph.labels
        there = (edges.kind == Edge.REQUEST) & (edges.label >= 0)
        there &= np.isin(edges.src, clients) & np.isin(edges.dst, servers)
        named = [labels[k] for k in np.unique(edges.label[there]).tolist()]
        return named[0] + (f" +{len(named) - 1}" if len(named) > 1 else "") if named else ""

    # -- spaces

    def _spaces(self) -> None:
        """Spaces of the subject, by who else is a member of them."""
        graph = self.graph
        edges = graph.edges
        use = (edges.kind == Edge.HOLD) & ((edges.flags & POTENTIAL) == 0)
        use &= (graph.kind[edges.dst] == Kind.SPACE) & ((edges.perm & ANY) != 0)
        src, dst = edges.src[use], edges.dst[use]
        mine = np.unique(dst[np.isin(src, self.rows)]).tolist()
        role_of = {row: role for role, rows in self.of.items() for row in rows}
        inside: dict[tuple[str, ...], list[int]] = {}
        for node in mine:
            if self._type(node) in _PLAIN_SPACES:
                continue
            members = {role_of[row] for row in src[dst == node].tolist() if row in role_of}
            inside.setdefault(tuple(sorted(members)), []).append(node)
        for who, nodes in sorted(inside.items(), key=lambda item: (len(item[0]), item[0])):
            types = sorted({self._type(node) for node in nodes})
            lines = _wrapped(types)
            if not who:
                title = "its own"
            elif len(who) == len(self.of):
                title = "shared with all"
            else:
                title = "shared with"
                lines = [*_wrapped(list(who)), *lines]
            kind = types[0] if len(types) == 1 else "SPACE"
            box = self._add("SPACE", kind, 3, "space", title, lines, nodes)
            self._link(0, box, "HOLD", "", certain=True)


def _titled(name: str, n: int) -> str:
    return name if n == 1 else f"{name} x{n}"


def _plus(count: Count) -> str:
    return f"{count.certain} +{count.unknown}?" if count.unknown else str(count.certain)


def _member(word: str, count: Count, n: int) -> str:
    """``TCB``, ``TCB 1 of 3``, ``TCB +2?``; "" of none."""
    if not count.certain and not count.unknown:
        return ""
    said = word if count.certain in (0, n) else f"{word} {count.certain} of {n}"
    return said + (f" +{count.unknown}?" if count.unknown else "")


def _place(tcb: Count, ib: Count) -> str:
    if tcb.certain:
        return "both" if ib.certain else "tcb"
    if ib.certain:
        return "ib"
    return "doubt" if tcb.unknown or ib.unknown else "outside"


def _joined(a: tuple[str, str] | None, b: tuple[str, str] | None) -> tuple[str, str]:
    """Letters that one of two passes for certain, and what it may pass beyond them."""
    both = [pair for pair in (a, b) if pair is not None]
    sure = "".join(c for c in _LETTERS if any(c in pair[0] for pair in both))
    may = "".join(c for c in _LETTERS if c not in sure and any(c in pair[1] for pair in both))
    return sure, may


def _verbs(side: Boundary | None) -> dict[str, tuple[list[str], list[str]]]:
    """By role: verbs that are certain, and those that are not."""
    out: dict[str, tuple[list[str], list[str]]] = {}
    for way, who in {} if side is None else side.ways.items():
        if way.part != "control":
            continue
        for role, count in who.items():
            verbs = out.setdefault(role, ([], []))
            if count.certain:
                verbs[0].append(way.name)
            elif count.unknown:
                verbs[1].append(way.name)
    return out


def _loudest(verbs: Sequence[str]) -> str:
    """``kill +5``: the verb to name, and how many more."""
    first = next((verb for verb in _LOUD if verb in verbs), verbs[0])
    return first + (f" +{len(verbs) - 1}" if len(verbs) > 1 else "")


def _wrapped(words: Sequence[str], width: int = 30) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines
