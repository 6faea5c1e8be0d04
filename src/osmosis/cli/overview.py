"""Who can affect each process of this host, and whom can it affect: TCB and Impact Boundary.

Alone: a table of all processes. Exits with 0 answered, 1 error, 2 usage, 3 answered, but
not all that was asked for could be known.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from osmosis.cli import coverage
from osmosis.cli.describe import pd_json, plus
from osmosis.cli.exits import Code, UsageError, answering
from osmosis.cli.options import All, By, Json, Snapshot, Top
from osmosis.cli.source import Source, open_source
from osmosis.cli.terminal import print_json, print_lines, print_table
from osmosis.graph.bits import unpack
from osmosis.graph.pds import PDTable, escape
from osmosis.graph.relation import Relation
from osmosis.model import Model
from osmosis.query.options import DEFAULT_VERBS

__all__ = ["overview"]

I8 = NDArray[np.int64]
SORTS = ("ib", "tcb", "pages", "pid", "name")
_CLASSES = 3  # of controllers that a cell names

Sort = Annotated[str, typer.Option(metavar="KEY", help=f"Sort by {', '.join(SORTS)}.")]


class Figures(NamedTuple):
    """One value per PD."""

    tcb: I8
    tcb_unknown: I8
    ib: I8
    ib_unknown: I8
    pages: I8  # mapped by another PD as well
    controllers: NDArray[np.int64]  # (P, C) certain controllers by class
    controllers_unknown: I8
    classes: tuple[str, ...]  # (C,) the kernel, then users


def overview(
    ctx: typer.Context,
    snapshot: Snapshot = None,
    by: By = None,
    sort: Sort = "ib",
    top: Top = 40,
    all_: All = False,
    json: Json = False,
) -> None:
    """Show who can affect each process of this host, and whom it can affect."""
    if ctx.invoked_subcommand is None:
        _overview(snapshot, by, sort, None if all_ else top, json)
        return
    given = [
        n for n in ctx.params if (s := ctx.get_parameter_source(n)) and s.name == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(f"write options after the command: {ctx.invoked_subcommand} ...")


@answering
def _overview(snapshot: Any, by: str | None, sort: str, top: int | None, json: bool) -> Code:
    if sort not in SORTS:
        raise UsageError(f"--sort must be one of {', '.join(SORTS)}, not {escape(sort)!r}")
    source = open_source(snapshot, by)
    found = coverage.gaps(source)
    figures = measure(source.model)
    order = _order(source.model.pds, figures, sort)
    if json:
        print_json(_json(source, found, figures, order))
    else:
        _print(source, found, figures, order, by, top)
    undecided = figures.tcb_unknown.any() or figures.ib_unknown.any()
    return Code.INCOMPLETE if found or undecided else Code.ANSWERED


def measure(model: Model) -> Figures:
    """Return the figures of every PD, from whole-host relations. O(P * users + P**2 / 64)."""
    tcb = model.tcb_matrix()
    control = reduce(or_, (model.control_matrix(verb) for verb in DEFAULT_VERBS))
    classes, counts = _by_class(model, control)
    return Figures(
        tcb.counts(1),
        _unknown(tcb, 1),
        tcb.counts(0),
        _unknown(tcb, 0),
        model.pages_shared(),
        counts,
        _unknown(control, 0),
        classes,
    )


def _unknown(relation: Relation, axis: int) -> I8:
    return np.zeros(len(relation), np.int64) if relation.decided else relation.unknown.counts(axis)


def _class_of(model: Model) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Class of each PD as a controller: the kernel alone, then its user."""
    pds = model.pds
    kernel = None if model.kernel is None else model.kernel.row
    number: dict[str, int] = {}
    of = np.empty(len(pds), np.int32)
    users, uids = pds.user, pds.uid.tolist()
    for row in range(len(pds)):
        name = users[row] or (f"uid {uids[row]}" if uids[row] >= 0 else "other")
        if row == kernel:
            name = "kernel"
        elif name == "kernel":
            name = "user kernel"
        of[row] = number.setdefault(str(name), len(number))
    return tuple(number), of


def _by_class(model: Model, control: Relation) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """(P, C) how many PDs of each class may control each PD."""
    classes, of = _class_of(model)
    n = len(of)
    form = control.classes
    if form is not None:  # O(K**2 * C)
        group, yes, _ = form
        members = np.zeros((len(yes), len(classes)), np.int64)
        np.add.at(members, (group, of), 1)
        counts = (yes.T.astype(np.int64) @ members)[group]
        own = np.diagonal(yes)[group]
        counts[np.arange(n), of] -= own  # the diagonal of a relation is empty
        return classes, counts
    inverse = control.T
    one_hot = np.zeros((n, len(classes)), np.float32)
    one_hot[np.arange(n), of] = 1
    counts = np.empty((n, len(classes)), np.int64)
    for first in range(0, n, 1024):
        rows = unpack(inverse.certain[first : first + 1024], n)
        counts[first : first + len(rows)] = np.rint(rows.astype(np.float32) @ one_hot)
    return classes, counts


def _order(pds: PDTable, figures: Figures, sort: str) -> list[int]:
    """Rows in the order of the table: most first, then by pid; names and pids rising."""
    keys: dict[str, Any] = {
        "ib": (pds.pid, -figures.tcb, -figures.ib_unknown, -figures.ib),
        "tcb": (pds.pid, -figures.ib, -figures.tcb_unknown, -figures.tcb),
        "pages": (pds.pid, -figures.pages),
        "pid": (np.arange(len(pds)), pds.pid),
        "name": (pds.pid, [str(name) for name in pds.comm]),
    }
    order: list[int] = np.lexsort(keys[sort]).tolist()
    return order


def _controllers(figures: Figures, row: int) -> str:
    """Who may control a PD, in short: ``kernel, root 12, www 3``."""
    counts = figures.controllers[row]
    named = sorted(
        np.flatnonzero(counts).tolist(), key=lambda c: (figures.classes[c] != "kernel", -counts[c])
    )
    said = [
        escape(figures.classes[c]) + (f" {counts[c]}" if figures.classes[c] != "kernel" else "")
        for c in named[: _CLASSES + 1]
    ]
    rest = named[_CLASSES + 1 :]
    if rest:
        said.append(f"{int(counts[rest].sum())} of {len(rest)} other users")
    if figures.controllers_unknown[row]:
        said.append(f"+{figures.controllers_unknown[row]}?")
    return ", ".join(said) or "nobody"


def _print(
    source: Source,
    found: coverage.Gaps,
    figures: Figures,
    order: list[int],
    by: str | None,
    top: int | None,
) -> None:
    pds = source.model.pds
    containers = by is None and any(pds.container[row] is not None for row in order[:top])
    users = by is None and any(pds.user[row] is not None for row in order[:top])
    if by is None:
        columns = [
            ("PID", "right") if source.host is not None else ("ID", "left"),
            ("NAME", "left"),
        ]
    else:
        columns = [(by.upper(), "left"), ("PROCESSES", "right")]
    columns += [("USER", "left")] * users + [("CONTAINER", "left")] * containers
    columns += [
        ("TCB", "right"),
        ("IB", "right"),
        ("PAGES SHARED", "right"),
        ("CONTROLLED BY", "left"),
    ]
    sizes = None if pds.members is None else np.bincount(pds.members[1], minlength=len(pds))
    rows = []
    for row in order[:top]:
        if sizes is None:
            first: list[object] = [pds.pid[row] if source.host is not None else pds.id[row]]
            first.append(pds.comm[row] or "-")
        else:
            first = [pds.comm[row] or pds.id[row], sizes[row]]
        cells = first + [pds.user[row] or "-"] * users + [pds.container[row] or "-"] * containers
        cells += [
            plus(int(figures.tcb[row]), int(figures.tcb_unknown[row])),
            plus(int(figures.ib[row]), int(figures.ib_unknown[row])),
            figures.pages[row] if row != source.model.data.kernel else "-",
            _controllers(figures, row),
        ]
        rows.append(cells)
    print_lines(*coverage.describe(source, found), "")
    print_table(columns, rows)
    if top is not None and len(order) > top:
        print_lines(f"{len(order) - top} more: --all, or --top N")


def _json(
    source: Source, found: coverage.Gaps, figures: Figures, order: list[int]
) -> dict[str, Any]:
    pds = source.model.pds

    def one(row: int) -> dict[str, Any]:
        counts = figures.controllers[row]
        return {
            **pd_json(pds[row]),
            "tcb": int(figures.tcb[row]),
            "tcb_unknown": int(figures.tcb_unknown[row]),
            "ib": int(figures.ib[row]),
            "ib_unknown": int(figures.ib_unknown[row]),
            "pages_shared": int(figures.pages[row]),
            "controllers": {
                figures.classes[c]: int(counts[c]) for c in np.flatnonzero(counts).tolist()
            },
            "controllers_unknown": int(figures.controllers_unknown[row]),
        }

    return {
        "coverage": coverage.to_json(source, found),
        "rows": [one(row) for row in order],
    }
