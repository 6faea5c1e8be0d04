"""What a drawing shows of a model: the graph around one PD, exact or grouped to be legible.

Grouped, nodes that the reader would not tell apart are one: memory and files by who shares
them, mappings by kind and permission, neighbours by what they share, spaces by who is in
them. What does not fit is one node "n more", so that nothing is left out silently.
Texts are the system's own, unescaped: every writer escapes them in its way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.formats.near import Near, neighbourhood
from osmosis.graph.graph import ANY, Edge, Graph, Kind
from osmosis.graph.pds import PD
from osmosis.model import Model
from osmosis.query.explain import letters as named

__all__ = ["HEADS", "Link", "Node", "View", "listing", "pages_text", "view"]

MOST_RESOURCES = 7  # groups of one type of resource; the rest is one more
MOST_MAPPINGS = 8  # groups of mappings
MOST_NEIGHBOURS = 8  # groups of PDs
MOST_SPACES = 7  # groups of spaces
_DENSE = 1 << 22  # combinations that are counted in one array
_NAMED = 3  # members that a group names

HEADS = ("Protection domains", "Mappings", "Resources", "Resource spaces")  # by column
# What a node is to the subject; a drawing may colour it. The second line: of a mechanism.
ROLES = (
    *("subject", "kernel", "neighbour", "private", "read", "writes", "written", "space", "more"),
    *("tcb", "ib", "both", "doubt", "outside"),
)


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a view: one of the graph, or a group of them."""

    id: str
    kind: str  # PD, RESOURCE, SPACE
    type: str  # "PD", "MO", "FILE" ...
    title: str
    lines: tuple[str, ...]
    members: tuple[str, ...]  # names of the nodes that it stands for
    pages: float  # of memory objects, in 4 KiB; 0 of others
    role: str  # of ROLES
    column: int  # 0 PDs, 1 what maps on, 2 other resources, 3 spaces


@dataclass(frozen=True, slots=True)
class Link:
    """One edge of a view: ``count`` edges of one kind between the same two nodes."""

    source: int  # of View.nodes
    target: int
    kind: str  # HOLD, MAP, SUBSET, REQUEST
    permission: str  # letters of R W X that at least one of them passes for certain
    possible: str  # letters that it may pass, beyond those
    label: str  # of a REQUEST, what is asked for; of a HOLD on a PD, the verb
    count: int
    certain: bool  # whether at least one of them is


@dataclass(frozen=True, slots=True)
class View:
    """A graph to be drawn or written."""

    title: str
    subject: int  # of nodes
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    notes: tuple[str, ...] = ()  # what the view does not show
    exact: bool = False
    heads: tuple[str, ...] = HEADS  # what stands above the columns


def view(model: Model, pd: PD, *, full: bool = False) -> View:
    """Return the graph around *pd*, a PD or a group of *model*.

    Parameters
    ----------
    model
        The model of *pd*.
    pd
        The subject.
    full
        Every node and edge by itself; else grouped.

    """
    graph = model.data
    below = model.pds.members
    rows = [pd.row] if below is None else np.flatnonzero(below[1] == pd.row)
    near = neighbourhood(graph, np.asarray(rows, np.int32))
    notes = _notes(near)
    title = f"{pd} and what it shares"
    made = _exact(near) if full else _Grouping(model, near, pd).made()
    nodes, links, subject = made
    return View(title, subject, tuple(nodes), tuple(links), tuple(notes), full)


def _notes(near: Near) -> list[str]:
    graph = near.graph
    out = []
    if graph.kernel is not None and graph.kernel not in near.subject:
        out.append("The kernel holds everything with every permission; its holds are not drawn.")
    unseen = sorted(name for name, masks in graph.unseen.items() if masks[near.subject].any())
    if unseen:
        out.append(f"It may hold more that could not be read: {', '.join(unseen)}.")
    blind = sorted(
        name
        for name, masks in graph.unseen.items()
        if name not in unseen and masks.any() and name in ("MO", "FILE", "SHM", "DEVICE")
    )
    if blind:
        out.append(f"Others may share {', '.join(blind)} with it that could not be read of them.")
    return out


def letters(mask: int) -> str:
    """Return a mask as text, "RW"; "" where it has no letter."""
    return named(mask).strip("-")


def _is_memory(graph: Graph, node: int) -> bool:
    return graph.kind[node] == Kind.RESOURCE and _type(graph, node) == "MO"


def _type(graph: Graph, node: int) -> str:
    return "PD" if graph.type[node] < 0 else graph.types[graph.type[node]]


def _column(near: Near, node: int, maps_on: set[int]) -> int:
    kind = near.graph.kind[node]
    if kind == Kind.PD:
        return 0
    if kind == Kind.SPACE:
        return 3
    return 1 if node in maps_on else 2


def _maps_on(near: Near) -> set[int]:
    """Resources that stand between a PD and what it maps: VMRs, and types that mostly map on.

    By type, so that all of one type are in one column: a VMR without a frame is a VMR.
    """
    edges, graph = near.edges, near.graph
    resource = graph.kind == Kind.RESOURCE
    maps = np.zeros(len(resource), bool)
    maps[edges.src[(edges.kind == Edge.MAP) & resource[edges.src]]] = True
    here = near.nodes[resource[near.nodes]]
    out: set[int] = set()
    for number in np.unique(graph.type[here]).tolist():
        nodes = here[graph.type[here] == number]
        if graph.types[number] == "VMR" or 2 * np.count_nonzero(maps[nodes]) > len(nodes):
            out.update(nodes.tolist())
    return out


def _links(near: Near, of: Mapping[int, int]) -> list[Link]:
    """Edges of the neighbourhood between the groups *of* its nodes, those of a group left out."""
    edges, graph = near.edges, near.graph
    number = np.full(len(graph.kind), -1, np.int64)
    number[list(of)] = list(of.values())
    src, dst = number[edges.src], number[edges.dst]
    use = (src >= 0) & (dst >= 0) & (src != dst)
    wanted = np.isin(edges.kind, (Edge.REQUEST, Edge.HOLD))
    label = np.where(wanted, edges.label, -1)
    groups, labels = max(of.values(), default=0) + 1, len(graph.labels) + 1
    key = (((src * groups + dst) * len(Edge) + edges.kind) * labels + label + 1)[use]
    if groups * groups * len(Edge) * labels < _DENSE:
        count = np.bincount(key)
        distinct = np.flatnonzero(count)
        place = np.zeros(len(count), np.int64)
        place[distinct] = np.arange(len(distinct))
        inverse, count = place[key], count[distinct]
    else:
        distinct, inverse, count = np.unique(key, return_inverse=True, return_counts=True)
    perm, maybe = np.zeros((2, len(distinct)), np.uint8)
    np.bitwise_or.at(perm, inverse, edges.perm[use])
    np.bitwise_or.at(maybe, inverse, edges.maybe[use])
    rest, text = np.divmod(distinct, labels)
    rest, kinds = np.divmod(rest, len(Edge))
    ends = np.stack([*np.divmod(rest, groups), kinds, text - 1], axis=1)
    out = []
    for k, (a, b, kind, text) in enumerate(ends.tolist()):
        permits = kind in (Edge.HOLD, Edge.MAP)
        out.append(
            Link(
                a,
                b,
                Edge(kind).name,
                letters(int(perm[k])) if permits else "",
                letters(int(maybe[k] & ~perm[k])) if permits else "",
                graph.labels[text] if text >= 0 else "",
                int(count[k]),
                not permits or bool(perm[k] & ANY),
            )
        )
    return out


def _exact(near: Near) -> tuple[list[Node], list[Link], int]:
    graph = near.graph
    maps_on = _maps_on(near)
    subject = set(near.subject.tolist())
    nodes = []
    for node in near.nodes.tolist():
        name = graph.names[node]
        is_pd = graph.kind[node] == Kind.PD
        lines = tuple(f"{k} {v}" for k, v in graph.notes.get(node, {}).items())
        if is_pd:
            lines = _pd_lines(graph, node)
        title = str(graph.pds[node]) if is_pd else name
        nodes.append(
            Node(
                name,
                Kind(int(graph.kind[node])).name,
                _type(graph, node),
                title,
                lines,
                (name,),
                float(graph.pages[node]) if _is_memory(graph, node) else 0.0,
                _role(near, node, subject),
                _column(near, node, maps_on),
            )
        )
    of = {node: i for i, node in enumerate(near.nodes.tolist())}
    return nodes, _links(near, of), of[int(near.subject[0])] if len(near.subject) else 0


def _role(near: Near, node: int, subject: set[int]) -> str:
    graph = near.graph
    if graph.kind[node] == Kind.PD:
        if node in subject:
            return "subject"
        return "kernel" if node == graph.kernel else "neighbour"
    if graph.kind[node] == Kind.SPACE:
        return "space"
    return _how(near, node)


def _how(near: Near, node: int) -> str:
    """How a resource is shared: private, read, writes (by the subject), written (by others)."""
    if not len(_others(near.reached_by(node), near.subject)):
        return "private"
    writers = near.reached_by(node, write=True)
    if len(_others(writers, near.subject)):
        return "written"
    return "writes" if len(writers) else "read"


def _others(rows: NDArray[np.int32], subject: NDArray[np.int32]) -> NDArray[np.int32]:
    """*rows* without those of the subject, both ascending."""
    if len(subject) == 1:
        found: NDArray[np.int32] = rows[rows != subject[0]]
    else:
        found = np.setdiff1d(rows, subject, assume_unique=True)
    return found


def _pd_lines(graph: Graph, row: int) -> tuple[str, ...]:
    pd = graph.pds[row]
    said = [("user", pd.user), ("container", pd.container), ("unit", pd.unit), ("exe", pd.exe)]
    return tuple(f"{name} {value}" for name, value in said if value)


@dataclass(slots=True)
class _Group:
    """Nodes of the graph that are one in the view."""

    kind: str
    type: str
    column: int
    role: str
    nodes: list[int]
    title: str = ""
    lines: list[str] = field(default_factory=list)
    pages: float = 0.0


class _Grouping:
    """Takes the nodes of a neighbourhood together."""

    def __init__(self, model: Model, near: Near, pd: PD) -> None:
        self.model, self.near, self.pd = model, near, pd
        self.graph = near.graph
        self.subject = set(near.subject.tolist())
        self.groups: list[_Group] = []
        self.of: dict[int, int] = {}

    def made(self) -> tuple[list[Node], list[Link], int]:
        self._add(_Group("PD", "PD", 0, "subject", sorted(self.subject)))
        self._describe_subject()
        maps_on = _maps_on(self.near)
        resources = [n for n in self.near.nodes.tolist() if self.graph.kind[n] == Kind.RESOURCE]
        self._resources([n for n in resources if n not in maps_on])
        own = [n for n in resources if n in maps_on and self.near.own[n]]
        self._mappings(own)
        self._neighbours([n for n in resources if n in maps_on and not self.near.own[n]])
        self._spaces()
        nodes = [
            Node(
                self.graph.names[g.nodes[0]] if len(g.nodes) == 1 else f"group_{i}",
                g.kind,
                g.type,
                g.title,
                tuple(g.lines),
                tuple(self.graph.names[n] for n in g.nodes),
                g.pages,
                g.role,
                g.column,
            )
            for i, g in enumerate(self.groups)
        ]
        return nodes, self._drawn(_links(self.near, self.of)), 0

    def _drawn(self, links: Iterable[Link]) -> list[Link]:
        """Leave out the neighbours' holds of spaces: the space says how many are in it."""
        out = []
        for link in links:
            a, b = self.groups[link.source], self.groups[link.target]
            if link.kind == "HOLD" and b.kind == "SPACE" and a.role != "subject":
                continue
            out.append(link)
        return out

    def _add(self, group: _Group) -> None:
        for node in group.nodes:
            self.of[node] = len(self.groups)
        self.groups.append(group)

    # -- PDs

    def _describe_subject(self) -> None:
        group, pd, model = self.groups[0], self.pd, self.model
        group.title = str(pd)
        for name, value in (("user", pd.user), ("container", pd.container), ("unit", pd.unit)):
            if value and value != pd.comm:
                group.lines.append(f"{name} {value}")
        if len(self.subject) > 1:
            group.lines.append(f"{len(self.subject)} processes")
        for name, answer in (("TCB", model.tcb(pd)), ("IB", model.impact_boundary(pd))):
            unknown = f" +{len(answer.unknown)}?" if len(answer.unknown) else ""
            group.lines.append(f"{name} {len(answer)}{unknown}")
        control = model.controllers(pd)
        more = f" +{len(control.unknown)}?" if len(control.unknown) else ""
        group.lines.append(f"controlled by {len(control)}{more}")

    def _neighbours(self, theirs: list[int]) -> None:
        """Other PDs, by what they share and ask; with each group, the mappings it goes through."""
        edges, p, kernel = self.near.edges, self.graph.n_pds, self.graph.kernel
        pattern: dict[int, list[int]] = {}
        for i, group in enumerate(self.groups):
            if group.kind == "RESOURCE":
                found = [self.near.reached_by(node) for node in group.nodes]
                for row in np.unique(np.concatenate(found)).tolist():
                    pattern.setdefault(row, []).append(i)
        asked = (edges.kind == Edge.REQUEST) | ((edges.kind == Edge.HOLD) & (edges.dst < p))
        for k in np.flatnonzero(asked).tolist():
            a, b = int(edges.src[k]), int(edges.dst[k])
            other = b if a in self.subject else a
            pattern.setdefault(other, []).append(-1 - int(edges.kind[k]) * 2 - (other == b))
        by_pattern: dict[tuple[Any, ...], list[int]] = {}
        for row in sorted(pattern):
            if row not in self.subject:
                key = ("kernel",) if row == kernel else tuple(pattern[row])
                by_pattern.setdefault(key, []).append(row)

        def weight(key: tuple[Any, ...]) -> tuple[Any, ...]:
            shared = [self.groups[i] for i in key if isinstance(i, int) and i >= 0]
            roles = Counter(group.role for group in shared)
            direct = any(isinstance(i, int) and i < 0 for i in key)
            return (
                key == ("kernel",),
                direct,
                roles["written"] > 0,
                roles["writes"] > 0,
                sum(group.pages for group in shared),
            )

        ranked = sorted(by_pattern, key=weight, reverse=True)
        for key in ranked[:MOST_NEIGHBOURS]:
            self._add_neighbours(by_pattern[key], key == ("kernel",), more=False)
        rest = [row for key in ranked[MOST_NEIGHBOURS:] for row in by_pattern[key]]
        if rest:
            self._add_neighbours(sorted(rest), False, more=True)
        self._their_mappings(theirs)

    def _add_neighbours(self, rows: list[int], is_kernel: bool, *, more: bool) -> None:
        pds = self.graph.pds
        role = "kernel" if is_kernel else "more" if more else "neighbour"
        group = _Group("PD", "PD", 0, role, rows)
        if len(rows) == 1 and not more:
            group.title = str(pds[rows[0]])
            group.lines = [line for line in _pd_lines(self.graph, rows[0]) if line[:4] != "exe "]
        else:
            group.title = f"+{len(rows)} more" if more else f"{len(rows)} processes"
            group.lines = listing(Counter(str(pds.comm[row]) or pds.id[row] for row in rows))
            users = Counter(str(pds.user[row]) for row in rows if pds.user[row])
            if users:
                listed = listing(users)[0] if len(users) > 1 else next(iter(users))
                group.lines.append(f"user {listed}")
        self._add(group)

    def _their_mappings(self, theirs: list[int]) -> None:
        by_holder: dict[int, list[int]] = {}
        wanted = set(theirs)
        edges = self.near.edges
        hold = np.flatnonzero(edges.kind == Edge.HOLD)
        for a, b in zip(edges.src[hold].tolist(), edges.dst[hold].tolist(), strict=True):
            if b in wanted and a in self.of:
                wanted.discard(b)  # held by several: drawn with the first
                by_holder.setdefault(self.of[a], []).append(b)
        for nodes in by_holder.values():
            self._add_theirs(nodes, "of theirs", "neighbour")
        self._add_theirs(sorted(wanted), "that nobody here holds", "more")

    def _add_theirs(self, nodes: list[int], whose: str, role: str) -> None:
        by_type: dict[str, list[int]] = {}
        for node in nodes:
            by_type.setdefault(_type(self.graph, node), []).append(node)
        for name, some in sorted(by_type.items()):
            title = f"{name}: {len(some)} {whose}"
            pages = self._pages(name, some)
            self._add(_Group("RESOURCE", name, 1, role, some, title, [], pages))

    # -- resources

    def _resources(self, nodes: Sequence[int]) -> None:
        """What does not map on, by type, by who shares it, and by who may write it."""
        found: dict[str, dict[tuple[str, bytes], list[int]]] = {}
        for node in nodes:
            # As bytes, a set of thousands is a key at no cost.
            sharers = _others(self.near.reached_by(node), self.near.subject).tobytes()
            key = (_how(self.near, node), sharers)
            found.setdefault(_type(self.graph, node), {}).setdefault(key, []).append(node)
        rank = {"written": 0, "writes": 1, "read": 2, "private": 2}
        for name in sorted(found, key=lambda t: (t != "MO", t)):
            groups = found[name]
            ranked = sorted(
                groups,
                key=lambda k: (rank[k[0]], -self._pages(name, groups[k]), -len(groups[k]), k),
            )
            most = MOST_RESOURCES
            shown = ranked if len(ranked) <= most + 1 else ranked[:most]
            for how, sharers in shown:
                self._add_resources(name, groups[how, sharers], how, sharers)
            rest = [key for key in ranked if key not in set(shown)]
            if rest:
                self._add_rest(name, rest, [n for key in rest for n in groups[key]])

    def _pages(self, name: str, nodes: Sequence[int]) -> float:
        return float(self.graph.pages[list(nodes)].sum()) if name == "MO" else 0.0

    def _add_resources(self, name: str, nodes: list[int], how: str, key: bytes) -> None:
        sharers = np.frombuffer(key, np.int32).tolist()
        pages = self._pages(name, nodes)
        title = f"MO: {pages_text(pages)}" if name == "MO" else f"{name}: {len(nodes)}"
        group = _Group("RESOURCE", name, 2, how, nodes, title, [], pages)
        n = len(sharers)
        others = f"{n} others" if n > 1 else str(self.graph.pds[sharers[0]]) if n else ""
        said = {
            "private": "its own",
            "read": f"shared read-only with {others}",
            "writes": f"it writes, read by {others}",
        }
        if how == "written":
            each = [self.near.reached_by(node, write=True) for node in nodes]
            writers = _others(np.unique(np.concatenate(each)), self.near.subject)
            by = f"{len(writers)} of " if len(writers) < n else ""
            sure = any(self._sure_writers(node) for node in nodes)
            said["written"] = f"{'' if sure else 'may be '}written by {by}{others}"
        group.lines.append(said[how])
        if n > 1:
            group.lines += listing(Counter(str(self.graph.pds.comm[row]) for row in sharers))
        group.lines += self._paths(nodes)
        self._add(group)

    def _sure_writers(self, node: int) -> bool:
        found = self.near.reached_by(node, write=True, certain=True).tolist()
        return any(row not in self.subject for row in found)

    def _add_rest(self, name: str, keys: list[tuple[str, bytes]], nodes: list[int]) -> None:
        pages = self._pages(name, nodes)
        title = (
            f"MO: {pages_text(pages, 'more ')}" if name == "MO" else f"{name}: {len(nodes)} more"
        )
        sizes = [len(sharers) // 4 for _, sharers in keys]
        span = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else f"{sizes[0]}"
        lines = [f"{len(keys)} groups, each shared with", f"{span} others"]
        roles = [how for how, _ in keys]
        role = next((r for r in ("written", "writes") if r in roles), "more")
        if role != "more":
            lines.append(f"{roles.count('written')} of them written by others")
        self._add(_Group("RESOURCE", name, 2, role, nodes, title, lines, pages))

    def _paths(self, nodes: Sequence[int]) -> list[str]:
        paths = dict.fromkeys(
            str(note["path"])
            for node in nodes
            if (note := self.graph.notes.get(node, {})) and note.get("path")
        )
        named = list(paths)[:_NAMED]
        return named + ([f"and {len(paths) - _NAMED} more"] if len(paths) > _NAMED else [])

    def _mappings(self, nodes: Sequence[int]) -> None:
        """What maps on, by type, permission, what it is, and whether others reach it."""
        edges = self.near.edges
        perm: dict[int, int] = {}
        maybe: dict[int, int] = {}
        held = np.flatnonzero((edges.kind == Edge.HOLD) & (edges.dst >= self.graph.n_pds))
        for k in held.tolist():
            if int(edges.src[k]) in self.subject:
                node = int(edges.dst[k])
                perm[node] = perm.get(node, 0) | int(edges.perm[k])
                maybe[node] = maybe.get(node, 0) | int(edges.maybe[k])
        found: dict[tuple[str, str, str, str], list[int]] = {}
        for node in nodes:
            what = str(self.graph.notes.get(node, {}).get("vmr_type", ""))
            sure, doubt = perm.get(node, 0), letters(maybe.get(node, 0) & ~perm.get(node, 0))
            may = letters(sure) + (f" {doubt}?" if doubt else "")
            if node in perm and not may:
                may = "no access"
            key = (_type(self.graph, node), may.strip(), what, _how(self.near, node))
            found.setdefault(key, []).append(node)
        ranked = sorted(found, key=lambda k: (-len(found[k]), k))
        shown = ranked if len(ranked) <= MOST_MAPPINGS + 1 else ranked[:MOST_MAPPINGS]
        for key in shown:
            name, may, what, how = key
            title = f"{name}: {len(found[key])}"
            lines = [said] if (said := " ".join(filter(None, (what, may)))) else []
            lines += self._paths(found[key])
            pages = self._pages(name, found[key])
            self._add(_Group("RESOURCE", name, 1, how, found[key], title, lines, pages))
        rest: dict[str, list[int]] = {}
        for key in ranked[len(shown) :]:
            rest.setdefault(key[0], []).extend(found[key])
        for name, others in sorted(rest.items()):
            title, pages = f"{name}: {len(others)} more", self._pages(name, others)
            self._add(_Group("RESOURCE", name, 1, "more", others, title, [], pages))

    # -- spaces

    def _spaces(self) -> None:
        graph, edges = self.graph, self.near.edges
        spaces = [n for n in self.near.nodes.tolist() if graph.kind[n] == Kind.SPACE]
        into = (edges.kind == Edge.HOLD) & (graph.kind[edges.dst] == Kind.SPACE)
        members: dict[int, list[int]] = {}
        held: set[int] = set()
        for k in np.flatnonzero(into).tolist():
            row, node = int(edges.src[k]), int(edges.dst[k])
            if row in self.subject:
                held.add(node)
            elif row != graph.kernel:
                members.setdefault(node, []).append(row)
        parted = set(edges.dst[edges.kind == Edge.SUBSET].tolist())
        found: dict[tuple[Any, ...], list[int]] = {}
        for node in spaces:
            inside = tuple(sorted(members.get(node, [])))
            # Spaces that resources are part of are drawn by type, others by who is in them.
            by_type = _type(graph, node) if node in parted or node not in held else ""
            key = (by_type, node in held, inside)
            found.setdefault(key, []).append(node)
        ranked = sorted(found, key=lambda k: (k[0] == "", -len(found[k]), k))
        shown = ranked if len(ranked) <= MOST_SPACES + 1 else ranked[:MOST_SPACES]
        for key in shown:
            self._add_spaces(found[key], key[1], key[2])
        rest = [node for key in ranked if key not in set(shown) for node in found[key]]
        if rest:
            self._add(_Group("SPACE", "SPACE", 3, "more", rest, f"{len(rest)} more spaces"))

    def _add_spaces(self, nodes: list[int], held: bool, inside: tuple[int, ...]) -> None:
        kinds = list(dict.fromkeys(_type(self.graph, node) for node in nodes))
        one = len(nodes) == 1
        title = self.graph.names[nodes[0]] if one else f"{len(nodes)} spaces"
        lines = [] if one else [" ".join(kinds)]
        if inside:
            many = f"{len(inside)} others" if len(inside) > 1 else str(self.graph.pds[inside[0]])
            lines.append(f"with {many} in {'it' if one else 'them'}")
        elif held:
            lines.append("its own")
        name = kinds[0] if len(kinds) == 1 else "SPACE"
        self._add(_Group("SPACE", name, 3, "space", nodes, title, lines))


def pages_text(pages: float, more: str = "") -> str:
    """``1 page``, ``12 more pages``: in 4 KiB."""
    number = int(pages) if pages == int(pages) else round(pages, 2)
    return f"{number} {more}page{'' if number == 1 else 's'}"


def listing(counts: Counter[str]) -> list[str]:
    """Names with how often each occurs, the most frequent first: "bash x 7, sleep +3 more"."""
    named = [f"{name} x{n}" if n > 1 else name for name, n in counts.most_common(_NAMED)]
    rest = sum(counts.values()) - sum(n for _, n in counts.most_common(_NAMED))
    return [", ".join(named) + (f" +{rest} more" if rest else "")]
