"""The rows of a CSV of the paper's tool: what each cell may say, and what damage looks like.

Nothing here builds a graph: ``Tables.read`` sorts a text into nodes and edges that fit together,
and every row that does not is an error with its line, or is dropped and counted.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from osmosis.errors import FormatError
from osmosis.graph.graph import ALL, ANY, POTENTIAL, PRIVATE, Edge, Kind, R, W, X

__all__ = [
    "HEADER",
    "LETTERS",
    "OURS",
    "BadRow",
    "CsvCoverage",
    "Dropped",
    "EdgeRow",
    "Node",
    "Tables",
    "masks_of",
    "pages_of",
]

HEADER = ["NODE_TYPE", "NODE_ID", "DATA", "EDGE_TYPE", "EDGE_FROM", "EDGE_TO", "EXTRA"]
KINDS = {"PD": Kind.PD, "RESOURCE": Kind.RESOURCE, "RESOURCE_SPACE": Kind.SPACE}
EDGES = {edge.name: edge for edge in Edge}
OURS = "osmosis"  # the key of EXTRA that only this module writes
LETTERS = {"R": R, "W": W, "X": X}
BAD_PERMISSIONS = re.compile("[^RWX]")
BAD_HOLD_PERMISSIONS = re.compile("[^RWXP]")
# The older form of a memory object: address_pages_pagebits, the address in hex.
OLD_EXTRA = re.compile(r"\s*(?:0[xX])?[0-9a-fA-F]+_([0-9]{1,15})_([0-9]{1,2})")
# What each kind of edge may join.
ENDS = {
    Edge.HOLD: {(Kind.PD, Kind.PD), (Kind.PD, Kind.RESOURCE), (Kind.PD, Kind.SPACE)},
    Edge.MAP: {(Kind.RESOURCE, Kind.RESOURCE), (Kind.SPACE, Kind.SPACE)},
    Edge.SUBSET: {(Kind.RESOURCE, Kind.SPACE), (Kind.SPACE, Kind.SPACE)},
    Edge.REQUEST: {(Kind.PD, Kind.PD)},
}


@dataclass(frozen=True, slots=True)
class Dropped:
    """One row that was not understood and left out; ``line`` counts from 1."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class CsvCoverage(Sequence[Dropped]):
    """What ``read_csv(strict=False)`` left out, by line: the ledger of a CSV."""

    gaps: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.gaps)

    def __getitem__(self, i: Any) -> Any:
        return self.gaps[i]

    @property
    def complete(self) -> bool:
        """Whether every row was taken."""
        return not self.gaps

    def counts(self) -> dict[tuple[str, str], int]:
        """How many rows were dropped, as a ledger counts: by (source, status)."""
        return {("csv", "skipped"): len(self.gaps)} if self.gaps else {}


@dataclass(slots=True)
class Node:
    """One node, as its row says it."""

    line: int
    id: str
    kind: Kind
    data: str
    pages: float = 1.0
    notes: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class EdgeRow:
    """One edge, as its row says it; ends by name."""

    line: int
    kind: Edge
    src: str
    dst: str
    data: str
    ours: Mapping[str, Any] = field(default_factory=dict)


class BadRow(Exception):
    """Why a row is not of the schema."""


class Tables:
    """The rows of one file, sorted into nodes and edges."""

    def __init__(self, path: str, *, strict: bool) -> None:
        self.path = path
        self.strict = strict
        self.nodes: dict[str, Node] = {}
        self.edges: list[EdgeRow] = []
        self.dropped: list[Dropped] = []

    def fail(self, line: int, why: str) -> None:
        """Raise FormatError, or note the row and go on."""
        if self.strict:
            raise FormatError(self.path, line, why)
        self.dropped.append(Dropped(line, why))

    def read(self, text: str) -> None:
        """Take every row of *text*, then see that edges join nodes that are there."""
        for line, row in _rows(text, self):
            try:
                self._take(line, row)
            except BadRow as bad:
                self.fail(line, str(bad))
        edges, self.edges = self.edges, []
        for edge in edges:
            if why := self._joins_badly(edge):
                self.fail(edge.line, why)
            else:
                self.edges.append(edge)

    def _take(self, line: int, row: list[str]) -> None:
        if len(row) != len(HEADER):
            raise BadRow(f"{len(row)} columns, not {len(HEADER)}")
        node_type, node_id, data, edge_type, src, dst, extra = row
        if node_type:
            if edge_type or src or dst:
                raise BadRow("both a node and an edge")
            if node_type not in KINDS:
                raise BadRow(f"{node_type!r} is no type of node")
            if not node_id:
                raise BadRow("a node without an id")
            if node_id in self.nodes:
                first = self.nodes[node_id].line
                raise BadRow(f"{node_id!r} is there already, in line {first}")
            kind = KINDS[node_type]
            if kind != Kind.PD and not data:
                raise BadRow(f"{node_id!r} has no type")
            notes, ours = _extra(extra)
            if kind == Kind.PD:
                _check_unseen(ours)
            pages = pages_of(extra, notes) if kind == Kind.RESOURCE and data == "MO" else 1.0
            self.nodes[node_id] = Node(line, node_id, kind, data, pages, notes, ours)
        elif edge_type:
            if node_id:
                raise BadRow("both a node and an edge")
            if edge_type not in EDGES:
                raise BadRow(f"{edge_type!r} is no type of edge")
            _, ours = _extra(extra)
            edge = EdgeRow(line, EDGES[edge_type], src, dst, data, ours)
            masks_of(edge)  # its permissions are of the schema
            for name in ("verbs", "maybe_verbs"):
                _check_verbs(ours, name)
            self.edges.append(edge)
        else:
            raise BadRow("neither a node nor an edge")

    def _joins_badly(self, edge: EdgeRow) -> str | None:
        for end in (edge.src, edge.dst):
            if end not in self.nodes:
                return f"{edge.kind.name} {edge.src} -> {edge.dst}: there is no node {end!r}"
        src, dst = self.nodes[edge.src].kind, self.nodes[edge.dst].kind
        if (src, dst) not in ENDS[edge.kind]:
            return f"{edge.kind.name} cannot join a {src.name} to a {dst.name}"
        return None


def _rows(text: str, tables: Tables) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields) of every row below the header; blank lines are passed over."""
    lines = io.StringIO(text, newline="\n").readlines()
    at = _header(lines, tables.path)
    while at < len(lines):
        reader = csv.reader(_without_nul(lines, at), strict=True)
        begin, base = at, at
        try:
            for row in reader:
                begin, at = at, base + reader.line_num
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue
                if at == len(lines):
                    _whole(lines[-1], row)
                yield begin + 1, row
        except (csv.Error, BadRow) as bad:
            # In a quoted field that never ends, the lines that it took are still rows.
            begin = at if isinstance(bad, csv.Error) else begin
            tables.fail(begin + 1, str(bad))
            at = begin + 1


def _without_nul(lines: list[str], first: int) -> Iterator[str]:
    for i in range(first, len(lines)):
        line = lines[i]
        if "\0" in line:
            raise csv.Error("a NUL byte")
        yield line


def _header(lines: list[str], path: str) -> int:
    """Index of the line after the header; what stands before it is a console's."""
    for i, line in enumerate(lines):
        bare = line.removeprefix("\ufeff").strip().replace('"', "")
        if bare.split(",") == HEADER:
            return i + 1
        if bare.startswith(HEADER[0] + ","):
            raise FormatError(path, i + 1, f"the header is not {','.join(HEADER)}")
    raise FormatError(path, 0, f"no header {','.join(HEADER)}")


def _whole(line: str, row: list[str]) -> None:
    """Raise unless a last line without a line end can be trusted: 4096_1_12 may end ..._1."""
    if not line.endswith("\n") and (
        len(row) != len(HEADER) or (row[-1] and not line.rstrip().endswith('"'))
    ):
        raise BadRow("the file ends in the middle of a row")


def _extra(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """EXTRA as (notes, what write_csv added)."""
    if not text.lstrip().startswith("{"):
        return ({"extra": text} if text else {}), {}
    try:
        notes = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadRow(f"EXTRA is not JSON: {exc}") from exc
    ours = notes.pop(OURS, {})
    if not isinstance(ours, dict):
        raise BadRow(f"EXTRA: {OURS!r} is not an object")
    return notes, ours


def pages_of(extra: str, notes: Mapping[str, Any]) -> float:
    """Weight of a memory object in units of 4 KiB; 1 where EXTRA does not say."""
    if "num_pages" in notes or "page_size" in notes:
        n = _number(notes.get("num_pages", 1), "num_pages")
        return n * _number(notes.get("page_size", 4096), "page_size") / 4096
    if old := OLD_EXTRA.fullmatch(extra.rstrip()):
        return int(old[1]) * 2.0 ** (int(old[2]) - 12)
    return 1.0


def _number(value: Any, name: str) -> float:
    """A count that a JSON EXTRA gives, as a number or as text."""
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < 2**63 or isinstance(value, bool):
        raise BadRow(f"EXTRA: {name} is {value!r}")
    return number


def masks_of(edge: EdgeRow, private: str = "copy") -> tuple[int, int, int]:
    """Return (perm, maybe, flags) of one edge; the kind of its end is not looked at."""
    text = "" if edge.data == "NONE" else edge.data
    perm = maybe = ALL
    flags = 0
    if edge.kind in (Edge.HOLD, Edge.MAP):
        bad = BAD_HOLD_PERMISSIONS if edge.kind == Edge.HOLD else BAD_PERMISSIONS
        if unknown := bad.search(text):
            raise BadRow(f"{edge.kind.name} has the permission {unknown[0]!r}")
        if text:
            perm = maybe = ANY | sum({LETTERS[c] for c in text if c != "P"})
        elif edge.kind == Edge.HOLD:
            perm = ANY
        if ("P" in text or edge.ours.get("private") is True) and private == "copy":
            flags |= PRIVATE
    if edge.kind == Edge.SUBSET and (unknown := BAD_HOLD_PERMISSIONS.search(text)):
        raise BadRow(f"SUBSET has the permission {unknown[0]!r}")
    perm, maybe = _mask(edge.ours, "perm", perm), _mask(edge.ours, "maybe", maybe)
    if perm & ~maybe:
        raise BadRow(f"EXTRA: perm {perm} is more than maybe {maybe}")
    return perm, maybe, flags | (POTENTIAL if edge.ours.get("potential") else 0)


def _check_verbs(ours: Mapping[str, Any], name: str) -> None:
    verbs = ours.get(name, [])
    if not isinstance(verbs, list) or not all(isinstance(verb, str) for verb in verbs):
        raise BadRow(f"EXTRA: {name} is not a list of names")


def _check_unseen(ours: Mapping[str, Any]) -> None:
    unseen = ours.get("unseen", {})
    if not isinstance(unseen, dict):
        raise BadRow("EXTRA: unseen is not an object")
    for name in unseen:
        _mask(unseen, name, 0)


def _mask(ours: Mapping[str, Any], name: str, default: int) -> int:
    mask = ours.get(name, default)
    if type(mask) is not int or not 0 <= mask <= ALL:
        raise BadRow(f"EXTRA: {name} is {mask!r}, not a mask")
    return mask
