"""A view as GraphML, for Gephi, yEd, Cytoscape, igraph and networkx."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape as xml_escape
from xml.sax.saxutils import quoteattr

from osmosis.formats.view import View
from osmosis.graph.pds import escape

__all__ = ["to_graphml"]

NODE_KEYS = {
    "name": "string",
    "kind": "string",
    "type": "string",
    "title": "string",
    "text": "string",
    "members": "int",
    "pages": "double",
    "role": "string",
}
EDGE_KEYS = {
    "kind": "string",
    "permission": "string",
    "possible": "string",
    "label": "string",
    "count": "int",
    "certain": "boolean",
}


def to_graphml(view: View) -> str:
    r"""Return *view* as GraphML; what XML cannot say is escaped as in ``\x1b``."""
    return "\n".join(_lines(view)) + "\n"


def _lines(view: View) -> Iterator[str]:
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
    for of, keys in (("node", NODE_KEYS), ("edge", EDGE_KEYS)):
        for name, kind in keys.items():
            yield f'  <key id="{of}_{name}" for="{of}" attr.name="{name}" attr.type="{kind}"/>'
    yield f'  <graph id={quoteattr(escape(view.title))} edgedefault="directed">'
    for i, node in enumerate(view.nodes):
        values = (
            node.id,
            node.kind,
            node.type,
            node.title,
            "; ".join(node.lines),
            len(node.members),
            node.pages,
            node.role,
        )
        yield f'    <node id="n{i}">'
        yield from _data("node", dict(zip(NODE_KEYS, values, strict=True)))
        yield "    </node>"
    for i, link in enumerate(view.links):
        told = (
            link.kind,
            link.permission,
            link.possible,
            link.label,
            link.count,
            link.certain,
        )
        yield f'    <edge id="e{i}" source="n{link.source}" target="n{link.target}">'
        yield from _data("edge", dict(zip(EDGE_KEYS, told, strict=True)))
        yield "    </edge>"
    yield "  </graph>"
    yield "</graphml>"


def _data(of: str, values: dict[str, object]) -> Iterator[str]:
    for name, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else escape(str(value))
        yield f'      <data key="{of}_{name}">{xml_escape(text)}</data>'
