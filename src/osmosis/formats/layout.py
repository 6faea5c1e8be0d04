"""Places for the nodes and edges of a view: columns, in an order that crosses little.

Columns are PDs, what maps on, other resources, spaces. An edge over several columns gets a
small place in each column between, so that it passes between the boxes and not behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from osmosis.formats.view import View

__all__ = ["Box", "Layout", "Route", "lay_out"]

GAP = 16  # between boxes of a column
WAY = 7  # height of the place where an edge passes a column
PORT = 13  # between two edges that end at one side of a box
_SWEEPS = 8


@dataclass(slots=True)
class Box:
    """Where a node is drawn; pixels."""

    x: float
    y: float
    width: float
    height: float
    ports_left: int = 0
    ports_right: int = 0

    @property
    def middle(self) -> float:
        """Centre, vertically."""
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Route:
    """The points of one edge from its source's side to its target's."""

    link: int
    points: tuple[tuple[float, float], ...]
    side: str  # "" from column to column; "left" or "right": out and back in, in one column


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes of the nodes, routes of the links, and the size of it all."""

    boxes: tuple[Box, ...]
    routes: tuple[Route, ...]
    width: float
    height: float


class _Item:
    """A box, or a way of an edge through a column."""

    __slots__ = ("box", "column", "height", "near", "node", "y")

    def __init__(self, column: int, height: float, node: int) -> None:
        self.column, self.height, self.node = column, height, node
        self.y = 0.0
        self.near: list[tuple[_Item, float]] = []  # in other columns, with weight


def lay_out(
    view: View,
    sizes: Sequence[tuple[float, float]],
    *,
    spread: float = 110,
    top: float = 0,
    margin: float = 60,
) -> Layout:
    """Place the nodes of *view*, whose boxes need *sizes* (width, height), in pixels.

    *spread* is the space between columns, for edges and their labels. Boxes never overlap, and
    two edges never end at one point. O(sweeps * edges).
    """
    columns = sorted({node.column for node in view.nodes})
    at = {column: i for i, column in enumerate(columns)}
    place = [at[node.column] for node in view.nodes]
    heights = _heights(view, sizes, place)
    items = [_Item(place[i], heights[i], i) for i in range(len(view.nodes))]
    chains = _chains(view, place, items)
    every = items + [item for chain in chains.values() for item in chain[1:-1]]
    stacks: list[list[_Item]] = [[] for _ in columns]
    for item in every:
        stacks[item.column].append(item)
    _order(stacks, view)
    widths = [max((sizes[i.node][0] for i in s if i.node >= 0), default=0.0) for s in stacks]
    # The first column's edges go farthest up and down: they get more room.
    rooms = np.full(len(columns), float(spread))
    rooms[:1] *= 1.5
    lefts = np.concatenate([[0.0], np.cumsum(np.array(widths) + rooms)]) + margin
    lowest = min((i.y - i.height / 2 for i in every), default=0.0)
    boxes = [
        Box(
            float(lefts[place[i]]),
            item.y - item.height / 2 - lowest + top,
            widths[place[i]],
            item.height,
        )
        for i, item in enumerate(items)
    ]
    routes = _routes(view, place, boxes, chains, lefts, widths, top - lowest)
    bottom = max((b.y + b.height for b in boxes), default=top)
    return Layout(
        tuple(boxes),
        tuple(routes),
        float(lefts[-1] - rooms[-1]) + margin,
        max(bottom, _last(routes)),
    )


def _last(routes: Sequence[Route]) -> float:
    return max((y for route in routes for _, y in route.points), default=0.0)


def _heights(view: View, sizes: Sequence[tuple[float, float]], place: list[int]) -> list[float]:
    """Heights that leave room for the ports of each side."""
    left, right = [0] * len(place), [0] * len(place)
    for link in view.links:
        a, b = link.source, link.target
        if place[a] == place[b]:
            ports = right if place[a] else left
            ports[a] += 1
            ports[b] += 1
        else:
            forward = place[a] < place[b]
            (right if forward else left)[a] += 1
            (left if forward else right)[b] += 1
    return [
        max(size[1], PORT * (max(lo, hi) + 1))
        for size, lo, hi in zip(sizes, left, right, strict=True)
    ]


def _chains(view: View, place: list[int], items: list[_Item]) -> dict[int, list[_Item]]:
    """For each link between columns, its items from left to right, ways included."""
    chains = {}
    for k, link in enumerate(view.links):
        a, b = link.source, link.target
        if place[a] == place[b]:
            continue
        if place[a] > place[b]:
            a, b = b, a
        ways = [_Item(column, WAY, -1) for column in range(place[a] + 1, place[b])]
        chain = [items[a], *ways, items[b]]
        for one, other in pairwise(chain):
            # Straight ways matter less than boxes that stand beside their neighbours.
            weight = 1.0 if one.node >= 0 and other.node >= 0 else 0.2
            one.near.append((other, weight))
            other.near.append((one, weight))
        chains[k] = chain
    return chains


def _order(stacks: list[list[_Item]], view: View) -> None:
    """Order each column by where its neighbours are, and place its items as near as they can."""
    subject = view.subject
    for stack in stacks:
        stack.sort(key=lambda item: (item.node != subject, item.node < 0, item.node))
        y = 0.0
        for item in stack:
            item.y = y + item.height / 2
            y += item.height + GAP
    for sweep in range(_SWEEPS):
        for stack in stacks if sweep % 2 == 0 else stacks[::-1]:
            wanted = {id(item): _wanted(item) for item in stack}
            # What has no edge stands below the rest, and not where it happened to be.
            last = max((wanted[id(item)] for item in stack if item.near), default=0.0)
            wanted |= {id(item): last for item in stack if not item.near}
            stack.sort(key=lambda item: wanted[id(item)])
            _settle(stack, [wanted[id(item)] for item in stack])


def _wanted(item: _Item) -> float:
    if not item.near:
        return item.y
    return sum(o.y * w for o, w in item.near) / sum(w for _, w in item.near)


def _settle(stack: list[_Item], wanted: list[float]) -> None:
    """Place items in this order, none overlapping, as near to *wanted* as can be.

    The least squares answer: pool adjacent violators. With d_i the distance that item i must
    keep from the first, y_i - d_i has to rise.
    """
    blocks: list[list[float]] = []  # sum, count
    distance = 0.0
    distances = []
    for i, item in enumerate(stack):
        if i:
            before = stack[i - 1]
            gap = (
                GAP
                if item.node >= 0 and before.node >= 0
                else GAP / 2
                if (item.node >= 0 or before.node >= 0)
                else 2
            )
            distance += (before.height + item.height) / 2 + gap
        distances.append(distance)
        blocks.append([wanted[i] - distance, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    at = 0
    for total, count in blocks:
        for _ in range(int(count)):
            stack[at].y = total / count + distances[at]
            at += 1


def _routes(
    view: View,
    place: list[int],
    boxes: list[Box],
    chains: dict[int, list[_Item]],
    lefts: np.ndarray[tuple[int], np.dtype[np.float64]],
    widths: list[float],
    shift: float,
) -> list[Route]:
    """Points of every link; at each side of a box the ends are spread in the order they come."""
    ends: dict[tuple[int, str], list[tuple[float, int, int]]] = {}
    for k, link in enumerate(view.links):
        a, b = link.source, link.target
        if place[a] == place[b]:
            side = "right" if place[a] else "left"
            ends.setdefault((a, side), []).append((boxes[b].middle, k, 0))
            ends.setdefault((b, side), []).append((boxes[a].middle, k, 1))
            continue
        chain = chains[k]
        forward = place[a] < place[b]
        first, last = (0, 1) if forward else (1, 0)
        ends.setdefault((chain[0].node, "right"), []).append((chain[1].y + shift, k, first))
        ends.setdefault((chain[-1].node, "left"), []).append((chain[-2].y + shift, k, last))
    ports: dict[tuple[int, int], tuple[float, float]] = {}
    for (node, side), found in ends.items():
        box = boxes[node]
        step = box.height / (len(found) + 1)
        x = box.x + (box.width if side == "right" else 0)
        for i, (_, k, end) in enumerate(sorted(found)):
            ports[k, end] = (x, box.y + step * (i + 1))
    out = []
    for k, link in enumerate(view.links):
        if place[link.source] == place[link.target]:
            side = "right" if place[link.source] else "left"
            out.append(Route(k, (ports[k, 0], ports[k, 1]), side))
            continue
        ways = []
        for item in chains[k][1:-1]:
            x = float(lefts[item.column])
            ways += [(x, item.y + shift), (x + widths[item.column], item.y + shift)]
        if place[link.source] > place[link.target]:
            ways.reverse()
        out.append(Route(k, (ports[k, 0], *ways, ports[k, 1]), ""))
    return out
