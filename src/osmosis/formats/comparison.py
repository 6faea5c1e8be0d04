"""A comparison as tables of text: a column for each case, or where they are many a row; Markdown.

Certain members, then ``+3?`` for undecided ones and ``~2`` for those that only what could be
used, and was not observed, makes members. Every name is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from osmosis.graph.pds import escape
from osmosis.query.comparison import (
    PARTS,
    Boundary,
    Case,
    Change,
    Comparison,
    Count,
    Way,
)
from osmosis.query.isolation import LAYERS, Isolation, Score

__all__ = ["LEGEND", "Table", "as_columns", "as_rows", "change_lines", "to_markdown", "who_rows"]

MOST_COLUMNS = 4  # cases that stand side by side in a terminal of 100 characters
NONE = "-"
LEGEND = (
    "8 +3? ~2: certain members, undecided ones, and those by what could be used but was not "
    "observed. The kernel has every way to all: parts and verbs are of the others. Layers, as the "
    "paper's tool counts (of 7) and of all: x separates, - is shared, ? is not known."
)
_STATES = {"separated": "x", "shared": NONE, "unknown": "?"}
_WORDS = {"tcb": "TCB", "impact_boundary": "IB"}

Table = tuple[list[str], list[list[str]]]  # heads, and rows of cells


def count(found: Count | None) -> str:
    """``8 +3? ~2``; "-" of nobody."""
    if found is None or not any(found):
        return NONE
    said = str(found.certain)
    said += f" +{found.unknown}?" if found.unknown else ""
    return said + (f" ~{found.potential}" if found.potential else "")


def score(found: Score | None) -> str:
    """``4/7 +1?``."""
    if found is None:
        return NONE
    doubt = f" +{found.unknown}?" if found.unknown else ""
    return f"{found.separated}/{found.layers}{doubt}"


def number(value: float | None) -> str:
    """Return a figure with two decimals at most; "-" of none, "none" of no distance."""
    if value is None or math.isnan(value):
        return NONE
    return "none" if math.isinf(value) else f"{value:.2f}".rstrip("0").rstrip(".")


def as_columns(found: Comparison, *, layers: bool = False) -> Table:
    """Return one column per case, one row per figure; with *layers*, each layer by itself."""
    cases = list(found)
    rows: list[list[str]] = []

    def add(head: str, cells: Iterable[str], depth: int = 0) -> None:
        rows.append(["  " * depth + head, *cells])

    add("subject", [_subject(case) for case in cases])
    for answer, word in _WORDS.items():
        sides = [case.answer(answer) for case in cases]
        add(word, [count(_size(side)) for side in sides])
        for role in _roles(sides):
            add(escape(role), [count(_role(side, role)) for side in sides], 1)
        for part in PARTS:
            cells = [count(_part(side, part)) for side in sides]
            ways = _ways(sides, part)
            if ways or set(cells) - {NONE}:
                add(f"by {part}", cells, 1)
            for way in ways:
                each = [count(_of(side, way)) for side in sides]
                add(escape(way.name), each, 2)
    for other in found.others:
        between = [case.isolation.get(other) for case in cases]
        add(f"layers to {escape(other)}", [_scores(side) for side in between])
        if layers:
            for layer in LAYERS:
                add(layer, [NONE if b is None else _STATES[b[layer].state] for b in between], 1)
        for type_ in _shared_types(cases, other):
            cells = [number(case.rsi.get(other, {}).get(type_)) for case in cases]
            add(f"RSI {escape(type_)}", cells, 1)
        add("fault radius", [number(case.fr.get(other)) for case in cases], 1)
    return ["", *(escape(case.name) for case in cases)], rows


def as_rows(found: Comparison, others: Sequence[str] = ()) -> Table:
    """Return one row per case: TCB by part, IB, and scores to *others*, if any, else to "app"."""
    shown = [other for other in (others or ("app",)) if other in found.others]
    heads = ["", "TCB", *PARTS, "IB", *(f"layers to {escape(other)}" for other in shown)]
    rows = []
    for case in found:
        tcb, ib = case.tcb, case.impact_boundary
        cells = [escape(case.name), count(_size(tcb))]
        cells += [count(_part(tcb, part)) for part in PARTS]
        cells += [count(_size(ib))]
        between = [case.isolation.get(other) for other in shown]
        cells += [score(None if b is None else b.score) for b in between]
        rows.append(cells)
    return heads, rows


def who_rows(found: Comparison, answer: str) -> Table:
    """Return one row per case: who is in its "tcb", or "impact_boundary", by role."""
    return ["", f"in the {_WORDS[answer]}"], [
        [escape(case.name), _who(case, case.answer(answer))] for case in found
    ]


def change_lines(found: Comparison) -> list[str]:
    """Say from each case to the next who left and who entered, and through what."""
    lines = [line for change in found.changes for line in _change(change)]
    return lines + [f"{escape(case.name)}: {escape(case.absent)}" for case in found if case.absent]


def to_markdown(found: Comparison, *, layers: bool = False) -> str:
    """Return tables for Markdown: columns up to four cases, else rows, then what changed."""
    many = len(found) > MOST_COLUMNS
    heads, rows = as_rows(found) if many else as_columns(found, layers=layers)
    for answer in _WORDS if many else ():
        head, cells = who_rows(found, answer)
        heads = heads + head[1:]
        rows = [row + cell[1:] for row, cell in zip(rows, cells, strict=True)]
    out = [_line(heads), "|---" * len(heads) + "|", *(_line(row) for row in rows), ""]
    out += [LEGEND, ""]
    out += [f"- {_marked(line)}" for line in change_lines(found)]
    return "\n".join(out).rstrip() + "\n"


# -- cells


def _subject(case: Case) -> str:
    if case.absent:
        return "none"
    return escape(case.subject[0]) if len(case.subject) == 1 else f"{len(case.subject)} PDs"


def _roles(sides: Sequence[Boundary | None]) -> list[str]:
    """Roles in any side: the kernel first, then by name."""
    every = {role for side in sides if side is not None for role in side.roles}
    return sorted(every, key=lambda role: (role != "kernel", role))


def _ways(sides: Sequence[Boundary | None], part: str) -> list[Way]:
    every = {way for side in sides if side is not None for way in side.ways if way.part == part}
    return sorted(way for way in every if way.name)


def _size(side: Boundary | None) -> Count | None:
    return None if side is None else side.size


def _role(side: Boundary | None, role: str) -> Count | None:
    return None if side is None else side.roles.get(role)


def _part(side: Boundary | None, part: str) -> Count | None:
    return None if side is None else side.parts[part]


def _of(side: Boundary | None, way: Way) -> Count | None:
    return None if side is None else side.of(way.part).get(way.name)


def _scores(between: Isolation | None) -> str:
    return NONE if between is None else f"{score(between.score)}, {score(between.full_score)}"


def _shared_types(cases: Sequence[Case], other: str) -> list[str]:
    """Types of which subject and other have something in common, in any case."""
    return sorted(
        {t for case in cases for t, value in case.rsi.get(other, {}).items() if value > 0}
    )


def _who(case: Case, side: Boundary | None) -> str:
    if side is None:
        return escape(case.absent)
    order = _roles([side])
    said = [f"{escape(role)} {count(side.roles[role])}" for role in order]
    return ", ".join(s.removesuffix(" 1") for s in said) or NONE


# -- changes


def _change(change: Change) -> list[str]:
    head = f"{escape(change.before)} -> {escape(change.after)}, {_WORDS[change.answer]}"
    lines = []
    for role, ways in change.left.items():
        there = " (there is none)" if role in change.gone else ""
        lines.append(f"{escape(role)} left{there}; it was in by {_through(ways)}")
    for role, ways in change.entered.items():
        lines.append(f"{escape(role)} entered by {_through(ways)}")
    for role, shift in change.stayed.items():
        said = [f"now by {_through(shift.won)}"] if shift.won else []
        said += [f"no more by {_through(shift.lost)}"] if shift.lost else []
        lines.append(f"{escape(role)} stayed, {', '.join(said)}")
    if change.undecided:
        lines.append(f"{', '.join(map(escape, change.undecided))}: known of one side only")
    return [f"{head}: {line}" for line in lines] or [f"{head}: nobody left or entered"]


def _through(ways: Sequence[Way]) -> str:
    parts: dict[str, list[str]] = {}
    for way in ways:
        parts.setdefault(way.part, []).append(escape(way.name))
    said = [f"{part} ({', '.join(names)})" if any(names) else part for part, names in parts.items()]
    return " and ".join(said) or "being the kernel"


# -- Markdown


def _marked(text: str) -> str:
    r"""Return text in which nothing is markup: ``\|``, and entities for < and &."""
    said = text.replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "|*_`[]" else c for c in said)


def _line(cells: Sequence[str]) -> str:
    said = []
    for cell in cells:
        indent = len(cell) - len(cell.lstrip(" "))
        said.append("&nbsp;" * indent + _marked(cell.lstrip(" ")))
    return "| " + " | ".join(said) + " |"
