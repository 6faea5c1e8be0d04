"""The CSV schema of the paper's tool, in and out: systems of any operating system.

One header, then one row per node and one per edge::

    NODE_TYPE,NODE_ID,DATA,EDGE_TYPE,EDGE_FROM,EDGE_TO,EXTRA

======== =============================================================================
HOLD     letters R W X are certain. P: private, W reaches the end and goes no further.
         NONE or nothing: ANY for certain, each letter unknown. Only P: no letter, certain.
         A HOLD on a space is its server's; a HOLD on a PD is control, verb ``hold``.
MAP      letters pass what they say; NONE or nothing passes all
SUBSET   permissions mean nothing
REQUEST  DATA is the space, or the type, that is asked for
EXTRA    JSON, or address_pages_pagebits: a memory object weighs pages in units of 4 KiB
======== =============================================================================

What the schema cannot say is written under the one key ``osmosis`` of a JSON EXTRA, which
other readers pass over: which PD is the kernel, masks that are uncertain, members of a space,
verbs of control, what a PD may hold unseen. So what ``write_csv`` wrote reads back to the same
answers. Lost are the columns of the PD table but name, id, uid, exe and groups (a pid comes back
where the id is "PD_" and it), the rules behind a witness, answers with ``effective=False``, and
the facts of ``isolation`` that are not in EXTRA. Only the key ``osmosis`` says that a MAP passes
nothing, or that an edge is uncertain or potential: another reader takes it for a plain edge.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import FormatError, QueryError, SelectorError
from osmosis.formats.csv_rows import (
    HEADER,
    LETTERS,
    OURS,
    BadRow,
    CsvCoverage,
    Dropped,
    EdgeRow,
    Node,
    Tables,
    masks_of,
    pages_of,
)
from osmosis.graph.graph import (
    ALL,
    POTENTIAL,
    PRIVATE,
    SERVER,
    Edge,
    Edges,
    Graph,
    Kind,
    R,
    Rule,
    W,
    X,
    no_runs,
)
from osmosis.graph.names import Block, Names
from osmosis.graph.pds import PDTable, escape
from osmosis.graph.relation import EdgeControl
from osmosis.model import Model

__all__ = ["CsvCoverage", "Dropped", "read_csv", "write_csv"]

KERNEL_NAMES = ("Host Linux", "Kernel")
PD_ID = re.compile(r"PD_(0|[1-9][0-9]{0,9})")
PD_COLUMNS = ("exe", "container", "unit", "user", "role", "cgroup")  # kept in EXTRA
MAX_CELL = 2**17  # characters: Python's csv.field_size_limit()
MAX_NAMES = 2**15  # of labels and types: Edges.label and Graph.type are int16


def read_csv(
    path: str | PathLike[str],
    *,
    kernel: str | None = None,
    private: str = "copy",
    strict: bool = True,
) -> Model:
    """Read a system that the paper's tool, or ``write_csv``, wrote.

    Parameters
    ----------
    kernel
        Name or id of the PD that holds everything; by default the one named "Host Linux" or
        "Kernel", if there is one. It becomes row 0; the others keep their order.
    private
        ``"copy"``: P on a HOLD ends W there, since a write copies the page. ``"tool"``: P means
        nothing, as in the paper's tool, to reproduce its figures.
    strict
        False drops the rows that are not of the schema and counts them in ``model.coverage``,
        with line and reason.

    Raises
    ------
    FormatError
        The file is damaged; it says in which line. Never for a row if ``strict`` is False.
    SelectorError
        *kernel* is no PD of the file, or several are.
    OSError
        The file cannot be read.

    Notes
    -----
    O(file size). Bytes that are not UTF-8 become lone surrogates, and are written back as they
    were.

    """
    if private not in ("copy", "tool"):
        raise QueryError(f'private is {private!r}, not "copy" or "tool"')
    tables = Tables(fspath(path), strict=strict)
    tables.read(Path(path).read_bytes().decode("utf-8", "surrogateescape"))
    return Model(_graph(tables, _kernel(tables, kernel), private))


def _kernel(tables: Tables, asked: str | None) -> str | None:
    """Id of the PD that holds everything, or None."""
    pds = [node for node in tables.nodes.values() if node.kind == Kind.PD]
    if asked is not None and not isinstance(asked, str):
        raise SelectorError(repr(asked), "the kernel is told by a name or an id, as text")
    if asked is None:
        found = [n for n in pds if n.ours.get("kernel") is True]
        found = found or [
            n for n in pds if n.data in KERNEL_NAMES and n.ours.get("kernel") is not False
        ]
        if not found:
            return None
    else:
        bare = asked.removeprefix("id:")
        found = [n for n in pds if n.id == bare] or [n for n in pds if n.data == asked]
    if len(found) == 1:
        return found[0].id
    why = f"{len(found)} PDs could be the kernel" if found else "no such PD to be the kernel"
    candidates = tuple(f"id:{escape(n.id)}" for n in (found or pds)[:8])
    said = " or ".join(KERNEL_NAMES) if asked is None else asked
    raise SelectorError(escape(said), why, candidates)


class _Numbers:
    """Numbers of names as they come: types and labels."""

    def __init__(self, path: str, what: str) -> None:
        self.row: dict[str, int] = {}
        self.path, self.what = path, what

    def __call__(self, name: str, line: int) -> int:
        number = self.row.setdefault(name, len(self.row))
        if number >= MAX_NAMES:
            raise FormatError(self.path, line, f"more than {MAX_NAMES} {self.what}")
        return number


def _graph(tables: Tables, kernel: str | None, private: str) -> Graph:
    pds = [n for n in tables.nodes.values() if n.kind == Kind.PD]
    pds.sort(key=lambda n: n.id != kernel)  # stable: the others keep their order
    nodes = pds + [n for n in tables.nodes.values() if n.kind != Kind.PD]
    row = {node.id: i for i, node in enumerate(nodes)}
    type_of = _Numbers(tables.path, "types")
    label_of = _Numbers(tables.path, "spaces and types that are asked for")
    types = [-1 if n.kind == Kind.PD else type_of(n.data, n.line) for n in nodes]
    columns: list[tuple[int, ...]] = []
    for e in tables.edges:
        perm, maybe, flags = masks_of(e, private)
        label = -1
        if e.kind == Edge.REQUEST and e.data not in ("", "NONE"):
            label = label_of(e.data, e.line)
        elif e.kind == Edge.HOLD:
            end = tables.nodes[e.dst].kind
            if end == Kind.SPACE and e.ours.get("server") is not False:
                flags |= SERVER
            elif end == Kind.PD:
                label = label_of("hold", e.line)
        if e.ours.get("edge") is False:  # control in class form: no edge that bfs would walk
            continue
        columns.append((row[e.src], row[e.dst], e.kind, perm, maybe, flags, label, e.kind))
    return Graph(
        pds=_pd_table(pds, kernel),
        kind=np.array([n.kind for n in nodes], np.uint8),
        type=np.array(types, np.int16),
        types=tuple(type_of.row),
        names=Names([Block("{}", (np.array([n.id for n in nodes], object),))]),
        pages=np.array([n.pages for n in nodes], np.float64),
        edges=_edges(columns),
        runs=no_runs(),
        labels=tuple(label_of.row),
        rules=tuple(Rule(f"a row {kind.name} of the CSV", tables.path) for kind in Edge),
        control=_control(tables, row),
        kernel=None if kernel is None else 0,
        unseen=_unseen(pds),
        notes={i: n.notes for i, n in enumerate(nodes) if n.notes},
        layers=_layers(pds),
        coverage=CsvCoverage(tuple(tables.dropped)),
    )


def _edges(columns: list[tuple[int, ...]]) -> Edges:
    table = np.array(columns, np.int64).reshape(len(columns), 8).T
    src, dst, kind, perm, maybe, flags, label, rule = table
    return Edges.of(src, dst, kind, perm=perm, maybe=maybe, flags=flags, label=label, rule=rule)


def _pd_table(pds: list[Node], kernel: str | None) -> PDTable:
    """The PDs as the file names them; the key is the id."""

    def pid(node: Node) -> int:
        found = PD_ID.fullmatch(node.id)
        return int(found[1]) if found and int(found[1]) < 2**31 else -1

    def text(name: str) -> list[str | None]:
        found = [n.ours.get(name, n.notes.get(name)) for n in pds]
        return [value if isinstance(value, str) else None for value in found]

    return PDTable(
        [pid(n) for n in pds],
        uid=[_uid(n) for n in pds],
        kind=["kernel" if n.id == kernel else "process" for n in pds],
        comm=[n.data for n in pds],
        id=[n.id for n in pds],
        exe=text("exe"),
        container=text("container"),
        unit=text("unit"),
        user=text("user"),
        role=text("role"),
        cgroup=text("cgroup"),
    )


def _uid(node: Node) -> int:
    said = node.notes.get("uid_host", -1)
    return said if type(said) is int and 0 <= said < 2**32 else -1


def _layers(pds: list[Node]) -> dict[str, Any]:
    """Facts for ``isolation`` that the paper's tool writes into EXTRA; -1 where it did not."""
    ids: dict[str, int] = {}
    names: dict[int, str] = {-1: "not known"}

    def filtered(node: Node) -> int:
        mode, calls = node.notes.get("seccomp"), node.notes.get("allowed_syscalls")
        if mode is None or (mode != 0 and not isinstance(calls, list)):
            return -1
        fact = json.dumps([mode, sorted(map(str, calls or []))])
        number = ids.setdefault(fact, len(ids))
        names[number] = f"mode {mode}, {len(calls or [])} system calls listed"
        return number

    facts: dict[str, dict[str, Any]] = {
        "uid": {"value": [_uid(n) for n in pds], "source": "EXTRA uid_host"},
        "seccomp": {"value": [filtered(n) for n in pds], "source": "EXTRA seccomp", "names": names},
    }
    return {
        layer: {**fact, "value": np.array(fact["value"], np.int64)}
        for layer, fact in facts.items()
        if set(fact["value"]) - {-1}
    }


def _control(tables: Tables, row: Mapping[str, int]) -> EdgeControl:
    """Every HOLD on a PD: the verb ``hold``, or those that ``write_csv`` named."""
    found: list[tuple[int, int, str, bool, int]] = []
    for e in tables.edges:
        if e.kind == Edge.HOLD and tables.nodes[e.dst].kind == Kind.PD:
            pair = row[e.src], row[e.dst]
            sure = e.ours.get("verbs", ["hold"])
            found += [(*pair, verb, True, e.line) for verb in sure]
            found += [(*pair, verb, False, e.line) for verb in e.ours.get("maybe_verbs", [])]
    src, dst, verbs, certain, lines = zip(*found, strict=True) if found else ((),) * 5
    rules = {k: ("a row HOLD of the CSV", f"{tables.path}:{n}") for k, n in enumerate(lines)}
    return EdgeControl(
        sum(n.kind == Kind.PD for n in tables.nodes.values()),
        src,
        dst,
        verbs,
        np.array(certain, bool),
        rules,
    )


def _unseen(pds: list[Node]) -> dict[str, NDArray[np.uint8]]:
    """By type: what each PD may hold and was not seen to, as ``write_csv`` says it."""
    out: dict[str, NDArray[np.uint8]] = {}
    for i, node in enumerate(pds):
        for name, mask in node.ours.get("unseen", {}).items():
            out.setdefault(name, np.zeros(len(pds), np.uint8))[i] = mask
    return out


def write_csv(model: Model, path: str | PathLike[str]) -> None:
    """Write *model* in the schema, so that ``read_csv`` gives the same answers.

    Parameters
    ----------
    model
        MAP edges in runs are written one by one, and so is control: one HOLD row per pair of
        PDs, with its verbs, as far as it has an effect. O(edges + P**2).
    path
        Written anew; cells are quoted where the schema wants it, names stay byte for byte.

    Raises
    ------
    FormatError
        A name is longer than a cell can be, or holds a NUL byte, or two nodes have one name.
    OSError
        The file cannot be written.

    """
    with Path(path).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(HEADER)
        seen: set[str] = set()
        for number, row in enumerate(_written(model.data), 2):
            for cell in row:
                if "\0" in cell or len(cell) > MAX_CELL:
                    raise FormatError(fspath(path), number, "a cell that no CSV reader takes")
            if row[0]:
                if row[1] in seen or not row[1]:
                    raise FormatError(fspath(path), number, f"two nodes named {escape(row[1])!r}")
                seen.add(row[1])
            writer.writerow(row)


def _written(graph: Graph) -> Iterator[list[str]]:
    """Every row below the header: nodes, then edges."""
    for node in range(len(graph.kind)):
        yield [*_node_row(graph, node), "", "", "", _node_extra(graph, node)]
    edges = Edges.concatenate([graph.edges, graph.runs.expand()])
    told: set[tuple[int, int]] = set()
    columns = (edges.src, edges.dst, edges.kind, edges.perm, edges.maybe, edges.flags, edges.label)
    for src, dst, kind, perm, maybe, flags, label in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        ours: dict[str, Any] = {}
        if kind == Edge.HOLD and graph.kind[dst] == Kind.PD:
            sure, possible = ([], []) if (src, dst) in told else _verbs(graph, src, dst)
            told.add((src, dst))
            if (sure, possible) != (["hold"], []):
                ours = {"verbs": sure, "maybe_verbs": possible}
        name = graph.labels[label] if label >= 0 else ""
        yield _edge_row(graph, (src, dst), Edge(kind), (perm, maybe, flags), name, ours)
    for src in range(graph.n_pds):  # one row of the relations at a time
        for dst, sure, possible in _controlled(graph, src):
            if (src, dst) not in told:
                ours = {"edge": False, "verbs": sure, "maybe_verbs": possible}
                yield _edge_row(graph, (src, dst), Edge.HOLD, (ALL, ALL, 0), "", ours)


def _node_row(graph: Graph, node: int) -> list[str]:
    kind = Kind(int(graph.kind[node]))
    if kind == Kind.PD:
        return [kind.name, graph.names[node], graph.pds.comm[node]]
    name = "RESOURCE_SPACE" if kind == Kind.SPACE else kind.name
    return [name, graph.names[node], graph.types[graph.type[node]]]


def _node_extra(graph: Graph, node: int) -> str:
    notes = dict(graph.notes.get(node, {}))
    ours: dict[str, Any] = {}
    if graph.kind[node] == Kind.PD:
        pds = graph.pds
        if node == graph.kernel:
            ours["kernel"] = True
        elif pds.comm[node] in KERNEL_NAMES:
            ours["kernel"] = False
        if pds.uid[node] >= 0:
            notes["uid_host"] = int(pds.uid[node])
        for name in PD_COLUMNS:
            value = getattr(pds, name)[node]
            if value is not None and notes.get(name) != value:
                ours[name] = value
        unseen = {t: int(masks[node]) for t, masks in graph.unseen.items() if masks[node]}
        if unseen:
            ours["unseen"] = unseen
    elif graph.kind[node] == Kind.RESOURCE and graph.types[graph.type[node]] == "MO":
        _note_pages(notes, float(graph.pages[node]))
    if not ours and set(notes) == {"extra"} and not str(notes["extra"]).lstrip().startswith("{"):
        return str(notes["extra"])
    return _json(notes, ours)


def _note_pages(notes: dict[str, Any], pages: float) -> None:
    """Say the weight, unless *notes* say it already."""
    try:
        said = pages_of(str(notes.get("extra", "")), notes)
    except BadRow:
        said = -1.0
    if said != pages:
        notes["num_pages"] = str(int(pages) if pages.is_integer() else pages)
        notes["page_size"] = "4096"


def _edge_row(
    graph: Graph,
    ends: tuple[int, int],
    kind: Edge,
    allows: tuple[int, int, int],
    label: str,
    ours: dict[str, Any],
) -> list[str]:
    """One edge; what its cells do not say of its masks and flags is said in EXTRA."""
    perm, maybe, flags = allows
    data = label if kind == Edge.REQUEST else "NONE"
    if kind in (Edge.HOLD, Edge.MAP):
        letters = "".join(letter for letter, bit in LETTERS.items() if perm & bit)
        unsaid = not letters and maybe & (R | W | X)
        data = "NONE" if unsaid else letters + ("P" if flags & PRIVATE or not letters else "")
        if kind == Edge.MAP:
            data = letters if letters != "RWX" else ""
    if flags & POTENTIAL:
        ours["potential"] = True
    if kind == Edge.HOLD and graph.kind[ends[1]] == Kind.SPACE and not flags & SERVER:
        ours["server"] = False
    if flags & PRIVATE and "P" not in data:
        ours["private"] = True
    src, dst = graph.names[ends[0]], graph.names[ends[1]]
    plain = masks_of(EdgeRow(0, kind, src, dst, data))
    if plain[:2] != (perm, maybe):
        ours |= {"perm": perm, "maybe": maybe}
    return ["", "", data, kind.name, src, dst, _json({}, ours)]


def _json(notes: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """EXTRA of both; "" if there is nothing to say. What is no JSON is said as text."""
    said = {**notes, **({OURS: ours} if ours else {})}
    return json.dumps(said, default=str) if said else ""


def _verbs(graph: Graph, src: int, dst: int) -> tuple[list[str], list[str]]:
    """Verbs that *src* may do to *dst*: certain ones, and undecided ones."""
    control = graph.control
    states = {v: control.relation(v, effective=True).state(src, dst) for v in control.verbs}
    return [v for v, s in states.items() if s], [v for v, s in states.items() if s is None]


def _controlled(graph: Graph, src: int) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield every PD that *src* may control, with the verbs: certain, and undecided ones."""
    found: dict[int, tuple[list[str], list[str]]] = {}
    for verb in graph.control.verbs:
        sure, may = graph.control.relation(verb, effective=True).row_masks(src)
        for which, mask in enumerate((sure, may & ~sure)):
            for dst in np.flatnonzero(mask).tolist():
                found.setdefault(dst, ([], []))[which].append(verb)
    for dst in sorted(found):
        yield dst, *found[dst]
