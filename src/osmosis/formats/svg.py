"""A view as SVG, as the paper draws a system: PDs, resources, spaces, and four kinds of edge."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape as xml_escape

from osmosis.errors import QueryError
from osmosis.formats.layout import Box, Layout, Route, lay_out
from osmosis.formats.view import Link, Node, View
from osmosis.graph.pds import escape

__all__ = ["sheet", "to_svg"]

FONT = "DejaVu Sans Mono, Menlo, Consolas, monospace"
EM = 0.61  # width of a character of these fonts, in font sizes
TITLE, HEAD, TEXT, LABEL = 13, 12, 11, 10  # font sizes, pixels
LINE = 15  # between lines of text
PAD = 10
WIDEST = 44  # characters of a line
MOST_NODES = 2000  # beyond which a drawing says nothing

FILLS = {
    "subject": ("#fde68a", "#92400e"),
    "kernel": ("#e5e7eb", "#374151"),
    "neighbour": ("#ffffff", "#374151"),
    "private": ("#ecfdf5", "#047857"),
    "read": ("#eff6ff", "#1d4ed8"),
    "writes": ("#ffedd5", "#c2410c"),
    "written": ("#fee2e2", "#b91c1c"),
    "space": ("#f5f3ff", "#6d28d9"),
    "more": ("#f9fafb", "#9ca3af"),
    "tcb": ("#fecaca", "#b91c1c"),
    "ib": ("#bfdbfe", "#1d4ed8"),
    "both": ("#e9d5ff", "#7e22ce"),
    "doubt": ("#fef9c3", "#a16207"),
    "outside": ("#ffffff", "#9ca3af"),
}
EDGES = {
    "HOLD": ("#111827", "", 1.3),
    "MAP": ("#1d4ed8", "", 1.3),
    "SUBSET": ("#9ca3af", "2 3", 1.2),
    "REQUEST": ("#b45309", "7 4", 1.4),
}
SAYS = {
    "HOLD": "hold, with what it permits",
    "MAP": "map, with what passes",
    "SUBSET": "is part of (subset)",
    "REQUEST": "asks for a service (request)",
}
MEANS = {
    "tcb": "in its TCB",
    "ib": "in its IB",
    "both": "in both",
    "doubt": "not known",
    "outside": "not a member",
    "private": "its own",
    "read": "shared, nobody writes",
    "writes": "shared, it writes",
    "written": "others may write",
}
DOMAINS = ("tcb", "ib", "both", "doubt", "outside")  # of these roles are PDs, drawn round


def to_svg(view: View) -> str:
    """Return *view* as one SVG document, without scripts, links or fonts of its own.

    Raises
    ------
    QueryError
        It has too many nodes to be drawn.
    """
    if len(view.nodes) > MOST_NODES:
        raise QueryError(
            f"{len(view.nodes)} nodes are too many to draw ({MOST_NODES}):"
            " leave --full out, or write dot, graphml or json"
        )
    texts = [_texts(node) for node in view.nodes]
    sizes = [_size(view, node, lines) for node, lines in zip(view.nodes, texts, strict=True)]
    # Labels of edges within the first column stand to the left of it.
    left = [
        width_of(_said(link, view.nodes[link.target]), LABEL)
        for link in view.links
        if view.nodes[link.source].column == view.nodes[link.target].column
    ]
    # A curve that comes in must not cross the labels of those that go out.
    longest = max((width_of(_said(k, view.nodes[k.target]), LABEL) for k in view.links), default=0)
    margin = max(70.0, *left, 0.0) + 16
    layout = lay_out(view, sizes, spread=80 + max(30.0, longest), top=76, margin=margin)
    return "\n".join(_document(view, texts, layout)) + "\n"


def sheet(drawings: Sequence[str]) -> str:
    """Return SVG documents that `to_svg` made as one, each below the one before."""
    sizes = [re.search(r'width="(\d+)" height="(\d+)"', drawing) for drawing in drawings]
    found = [(int(size[1]), int(size[2])) for size in sizes if size is not None]
    width, height = max(w for w, _ in found), sum(h for _, h in found)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}">'
    ]
    y = 0
    for drawing, (_, h) in zip(drawings, found, strict=True):
        out.append(drawing.replace("<svg ", f'<svg y="{y}" ', 1).rstrip())
        y += h
    return "\n".join([*out, "</svg>"]) + "\n"


def width_of(text: str, size: float) -> float:
    """Pixels that *text* takes at most: wide characters count double."""
    cells = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
    return cells * size * EM


def cut(text: str, limit: int = WIDEST) -> str:
    """Return *text* escaped, and cut in its middle where it is too long: paths end in names."""
    said = escape(text)
    if len(said) <= limit:
        return said
    tail = limit // 2
    return said[: limit - tail - 3] + "..." + said[-tail:]


def _texts(node: Node) -> list[str]:
    return [cut(node.title), *(cut(line) for line in node.lines)]


def _size(view: View, node: Node, lines: list[str]) -> tuple[float, float]:
    wide = [width_of(lines[0], TITLE), *(width_of(line, TEXT) for line in lines[1:])]
    ends = 14 if node.kind == "PD" else 0  # which are round
    least = width_of(view.heads[node.column], HEAD)
    return max(max(wide) + 2 * PAD + ends, least), len(lines) * LINE + 2 * PAD - 4


def _document(view: View, texts: list[list[str]], layout: Layout) -> Iterator[str]:
    notes = [part for note in view.notes for part in [cut(note, 140)]]
    legend_at = layout.height + 34
    height = legend_at + 118 + LINE * len(notes)
    title = cut(view.title, 90)
    least = max(980.0, *(width_of(n, TEXT) + 80 for n in [*notes, title]))
    width = max(layout.width, least)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}">'
    )
    yield f"<title>{xml_escape(title)}</title>"
    yield "<defs>"
    for kind, (colour, _, _) in EDGES.items():
        yield (
            f'<marker id="{kind}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8"'
            f' markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
            f'<path d="M0 0.5 L8 4 L0 7.5 z" fill="{colour}"/></marker>'
        )
    yield "</defs>"
    yield f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>'
    yield _text(40, 30, title, 16, weight="bold")
    yield from _heads(view, layout)
    order = sorted(layout.routes, key=lambda r: view.links[r.link].kind != "SUBSET")
    for route in order:
        link = view.links[route.link]
        yield _edge(link, route, _said(link, view.nodes[link.target]))
    for node, lines, box in zip(view.nodes, texts, layout.boxes, strict=True):
        yield from _node(node, lines, box)
    for route in order:
        link = view.links[route.link]
        yield from _edge_label(_said(link, view.nodes[link.target]), link, route)
    yield from _legend(view, legend_at)
    for i, note in enumerate(notes):
        yield _text(40, legend_at + 104 + LINE * i, note, TEXT, fill="#4b5563")
    yield "</svg>"


def _heads(view: View, layout: Layout) -> Iterator[str]:
    done: set[int] = set()
    for node, box in zip(view.nodes, layout.boxes, strict=True):
        if node.column not in done:
            done.add(node.column)
            yield _text(box.x, 60, view.heads[node.column], HEAD, fill="#4b5563", weight="bold")


def _text(
    x: float,
    y: float,
    text: str,
    size: float,
    *,
    fill: str = "#111827",
    weight: str = "normal",
    more: str = "",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" font-weight="{weight}"'
        f'{more} xml:space="preserve">{xml_escape(text)}</text>'
    )


def _node(node: Node, lines: list[str], box: Box) -> Iterator[str]:
    fill, stroke = FILLS[node.role]
    shape = {"PD": ' rx="16"', "RESOURCE": ' rx="2"', "SPACE": ' rx="2" stroke-dasharray="6 3"'}
    strong = 2.4 if node.role in ("subject", "written") else 1.3
    yield (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}"'
        f' height="{box.height:.1f}" fill="{fill}" stroke="{stroke}" stroke-width="{strong}"'
        f"{shape[node.kind]}/>"
    )
    if node.kind == "SPACE":  # a second frame behind the text: a space contains
        yield (
            f'<rect x="{box.x + 3:.1f}" y="{box.y + 3:.1f}" width="{box.width - 6:.1f}"'
            f' height="{box.height - 6:.1f}" fill="none" stroke="{stroke}" stroke-width="0.6"/>'
        )
    y = box.middle - len(lines) * LINE / 2 + LINE * 0.78
    x = box.x + PAD + (7 if node.kind == "PD" else 0)
    yield _text(x, y, lines[0], TITLE, weight="bold")
    for i, line in enumerate(lines[1:], 1):
        yield _text(x, y + LINE * i, line, TEXT, fill="#374151")


def _path(route: Route, label: str) -> str:
    (x0, y0), *rest = route.points
    said = f"M{x0:.1f} {y0:.1f}"
    if label and not route.side:  # a gap for its label, and then on its way
        ahead = 1 if rest[0][0] > x0 else -1
        lead = width_of(label, LABEL) + 7
        said += f" L{x0 + 3 * ahead:.1f} {y0:.1f} M{x0 + lead * ahead:.1f} {y0:.1f}"
        x0 += (lead + 6) * ahead
        said += f" L{x0:.1f} {y0:.1f}"
    if route.side:
        ((x1, y1),) = rest
        bow = 26 + abs(y1 - y0) * 0.04
        out = -bow if route.side == "left" else bow
        return said + f" C{x0 + out:.1f} {y0:.1f} {x1 + out:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    for i, (x1, y1) in enumerate(rest):
        if i % 2 and y1 == y0:
            said += f" L{x1:.1f} {y1:.1f}"  # through a column
        else:
            bend = (x1 - x0) / 2
            said += f" C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
        x0, y0 = x1, y1
    return said


def _edge(link: Link, route: Route, label: str) -> str:
    colour, dash, width = EDGES[link.kind]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    faint = "" if link.certain else ' opacity="0.45"'
    return (
        f'<path d="{_path(route, label)}" fill="none" stroke="{colour}" stroke-width="{width}"'
        f'{dashed}{faint} marker-end="url(#{link.kind})"/>'
    )


def _said(link: Link, target: Node) -> str:
    """Return what an edge is labelled: letters, the verb or the request; "" of a whole space."""
    if link.kind == "REQUEST" or (link.kind == "HOLD" and link.label):
        return cut(link.label, 18) + ("" if link.certain else "?")
    if target.kind == "SPACE":
        return "" if link.certain else "?"
    text = link.permission + (f" {link.possible}?" if link.possible else "")
    return text.strip() or ("" if link.certain else "?")


def _edge_label(text: str, link: Link, route: Route) -> Iterator[str]:
    if not text:
        return
    (x, y), after = route.points[0], route.points[1]
    back = route.side == "left" or (not route.side and after[0] < x)
    more = ' text-anchor="end"' if back else ""
    x, wide = x + (-5 if back else 5), width_of(text, LABEL)
    # On white, so that a line that crosses does not strike it through.
    yield (
        f'<rect x="{x - wide if back else x:.1f}" y="{y - 5:.1f}" width="{wide:.1f}" height="10"'
        ' fill="#ffffff"/>'
    )
    yield _text(x, y + 3.4, text, LABEL, fill=EDGES[link.kind][0], more=more)


def _legend(view: View, y: float) -> Iterator[str]:
    """What is drawn, and nothing else."""
    roles, kinds = {node.role for node in view.nodes}, {link.kind for link in view.links}
    x = 40.0
    for kind, (colour, dash, width) in EDGES.items():
        if kind not in kinds:
            continue
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        yield (
            f'<path d="M{x:.0f} {y:.0f} L{x + 34:.0f} {y:.0f}" fill="none" stroke="{colour}"'
            f' stroke-width="{width}"{dashed} marker-end="url(#{kind})"/>'
        )
        yield _text(x + 42, y + 4, SAYS[kind], TEXT)
        x += 62 + width_of(SAYS[kind], TEXT)
    x, y = 40.0, y + 24
    for role, said in MEANS.items():
        if role not in roles:
            continue
        fill, stroke = FILLS[role]
        corner = 8 if role in DOMAINS else 2
        yield (
            f'<rect x="{x:.0f}" y="{y:.0f}" width="26" height="16" fill="{fill}"'
            f' stroke="{stroke}" rx="{corner}"/>'
        )
        yield _text(x + 34, y + 12, said, TEXT)
        x += 62 + width_of(said, TEXT)
    said = "Pages are of 4 KiB. Letters: R read, W write, X execute; ? not certain."
    yield _text(40, y + 42, said, TEXT, fill="#4b5563")
