"""A view as Graphviz dot."""

from __future__ import annotations

from collections.abc import Iterator

from osmosis.formats.view import Link, Node, View
from osmosis.graph.pds import escape

__all__ = ["to_dot"]

SHAPES = {"PD": "ellipse", "RESOURCE": "box", "SPACE": "folder"}
EDGES = {
    "HOLD": 'style="solid", color="#222222"',
    "MAP": 'style="solid", color="#1f5fa8"',
    "SUBSET": 'style="dotted", color="#808080", arrowhead="empty"',
    "REQUEST": 'style="dashed", color="#b45309"',
}
FILLS = {"subject": "#fde68a", "written": "#fecaca", "writes": "#fed7aa", "kernel": "#e5e7eb"}


def to_dot(view: View) -> str:
    """Return *view* as a digraph, ranked from PDs to spaces."""
    return "\n".join(_lines(view)) + "\n"


def quoted(text: str) -> str:
    r"""Return *text* as a dot string that is shown as it is.

    Graphviz reads backslash escapes (``\N`` is the node's name) and XML entities in a label.
    """
    said = escape(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    said = said.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{said}"'


def _label(node: Node) -> str:
    lines = (f"{node.title}", *node.lines)
    return '"' + "\\n".join(quoted(line)[1:-1] for line in lines) + '"'


def _lines(view: View) -> Iterator[str]:
    yield f"digraph {quoted(view.title)} {{"
    yield '  rankdir="LR"; node [fontname="sans-serif", fontsize=10]; edge [fontsize=9];'
    for i, node in enumerate(view.nodes):
        fill = FILLS.get(node.role)
        style = f', style="filled", fillcolor="{fill}"' if fill else ""
        yield f"  n{i} [label={_label(node)}, shape={SHAPES[node.kind]}{style}];"
    for column in range(4):
        same = [f"n{i};" for i, node in enumerate(view.nodes) if node.column == column]
        if same and not view.exact:
            yield f"  {{ rank=same; {' '.join(same)} }}"
    for link in view.links:
        yield f"  n{link.source} -> n{link.target} [{_edge(link)}];"
    yield "}"


def _edge(link: Link) -> str:
    text = link.permission + (f" {link.possible}?" if link.possible else "")
    text = text.strip() or link.label
    if link.count > 1:
        text = f"{text} x{link.count}".strip()
    if not link.certain:
        text += "?"
    return f"label={quoted(text)}, tooltip={quoted(link.kind)}, {EDGES[link.kind]}"
