"""The paper's figures: one boundary of one subject, members by role, through what.

Verbs of control stand in the member's own box, what is shared beside the two.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from osmosis.formats.svg import to_svg
from osmosis.formats.view import Link, Node, View
from osmosis.graph.sets import PDSet, Reason
from osmosis.model import Model

__all__ = ["boundary", "draw"]

WIDE = 40  # characters of a line


class _Drawing:
    def __init__(self, subject: Node) -> None:
        self.nodes = [subject]
        self.links: list[Link] = []

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def link(
        self, source: int, target: int, kind: str, permission: str = "", *, certain: bool = True
    ) -> None:
        self.links.append(Link(source, target, kind, permission, "", "", 1, certain))


def boundary(model: Model, who: PDSet, answer: str, title: str) -> View:
    """Return the "tcb" or the "impact_boundary" of some PDs as a drawing.

    Members of one role that are in it by the same are one node; those that are not decided
    stand apart. In a TCB edges lead to the subject, in an Impact Boundary away from it.
    """
    members = getattr(model, answer)(who, services=True)
    into = answer == "tcb"
    drawing = _Drawing(_pds(model, who.rows.tolist(), "subject"))
    resources: dict[str, int] = {}
    for reason, rows in _groups(model, members):
        role = "kernel" if model.data.kernel in rows else "neighbour"
        said = "everything" if role == "kernel" else ", ".join(reason.verbs)
        node = drawing.add(_pds(model, rows, role, said=said))
        if said:
            drawing.link(*_way(node, into=into), "HOLD")
        if role == "kernel":
            continue
        if "service" in reason.parts:
            drawing.link(*_way(node, into=not into), "REQUEST")
        for type_ in reason.types:
            if type_ not in resources:
                shared = Node(type_, "RESOURCE", type_, type_, (), (), 0.0, "written", 2)
                resources[type_] = drawing.add(shared)
                drawing.link(0, resources[type_], "HOLD", "" if into else "W")
            drawing.link(node, resources[type_], "HOLD", "W" if into else "")
    if unknown := members.unknown.rows.tolist():
        node = drawing.add(_pds(model, unknown, "more", before="not known: "))
        drawing.link(*_way(node, into=into), "HOLD", certain=False)
    return View(title, 0, tuple(drawing.nodes), tuple(drawing.links))


def draw(model: Model, role: str, answer: str, title: str, path: Path) -> None:
    """Write one boundary of all PDs of a role as SVG."""
    who = PDSet(model.pds, [pd.row for pd in model.find(f"role:{role}")])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_svg(boundary(model, who, answer, title)))


def _way(node: int, *, into: bool) -> tuple[int, int]:
    return (node, 0) if into else (0, node)


def _groups(model: Model, members: PDSet) -> Iterator[tuple[Reason, list[int]]]:
    found: dict[tuple[Any, ...], tuple[Reason, list[int]]] = {}
    for row in members.rows.tolist():
        reason = members.why(model.pds[row])
        key = (model.pds.role[row], reason.parts, reason.verbs, reason.types)
        found.setdefault(key, (reason, []))[1].append(row)
    yield from found.values()


def _pds(model: Model, rows: list[int], role: str, *, before: str = "", said: str = "") -> Node:
    roles = sorted({model.pds.role[row] or "other" for row in rows})
    names = Counter(str(model.pds.comm[row]) for row in rows)
    lines = tuple(name if n == 1 else f"{name} x {n}" for name, n in sorted(names.items()))
    ids = tuple(str(model.pds[row].id) for row in rows)
    title = before + ", ".join(roles)
    lines += tuple(textwrap.wrap(said, WIDE, break_on_hyphens=False))
    return Node(ids[0], "PD", "PD", title, lines, ids, 0.0, role, 0)
