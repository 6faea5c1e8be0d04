"""What changed between two moments, or two hosts: PDs, who can affect whom, and shared memory.

PDs are matched by key (boot, pid, start time), which no reuse of a pid confuses, or by role,
which outlives restarts. A pair counts as new or gone only if both sides are decided.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import QueryError
from osmosis.graph.pds import escape

if TYPE_CHECKING:
    from osmosis.graph.relation import Relation
    from osmosis.model import Model
    from osmosis.snapshot import Snapshot

__all__ = ["Changed", "Difference", "MemoryChange", "Pairs", "diff"]

# Columns of a PD that are told when they change; the key is what stays.
FACTS = ("comm", "exe", "uid", "container", "unit", "user", "role", "cgroup")


@dataclass(frozen=True, slots=True)
class Changed:
    """One PD of both sides that is no longer what it was."""

    key: str
    facts: dict[str, tuple[Any, Any]]  # column -> (before, after)


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """Memory that two PDs share, in pages of the host, before and after."""

    x: str
    y: str
    before: int
    after: int


@dataclass(frozen=True, slots=True, eq=False)
class Pairs(Sequence[tuple[str, str]]):
    """Pairs (x, y) of keys, kept as rows: "y is in TCB(x)"."""

    keys: Sequence[str]
    x: NDArray[np.int64]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return self.keys[self.x[i]], self.keys[self.y[i]]

    def of_x(self, key: str) -> list[str]:
        """Keys y of the pairs (key, y): what became of TCB(key)."""
        return [y for x, y in self if x == key]

    def of_y(self, key: str) -> list[str]:
        """Keys x of the pairs (x, key): what became of IB(key)."""
        return [x for x, y in self if y == key]


@dataclass(frozen=True, slots=True)
class Difference:
    """What another moment has, and what it has no more.

    ``entered`` and ``left`` are pairs of PDs of both sides: (x, y), y is in TCB(x), so that x is
    in IB(y). Those of PDs that appeared or went are counted by ``appeared`` and ``gone`` alone.
    ``undecided`` are pairs that one side decides and the other cannot.
    """

    by: str
    appeared: tuple[str, ...]
    gone: tuple[str, ...]
    changed: tuple[Changed, ...]
    entered: Pairs
    left: Pairs
    undecided: Pairs
    memory: tuple[MemoryChange, ...]
    names: dict[str, str] = field(repr=False, default_factory=dict)  # key -> how people call it

    def __bool__(self) -> bool:
        return any(
            map(len, (self.appeared, self.gone, self.changed, self.entered, self.left, self.memory))
        )

    def tcb(self, key: str) -> tuple[list[str], list[str]]:
        """Return who entered the TCB of *key*, and who left it."""
        return self.entered.of_x(key), self.left.of_x(key)

    def impact_boundary(self, key: str) -> tuple[list[str], list[str]]:
        """Return who entered the IB of *key*, and who left it."""
        return self.entered.of_y(key), self.left.of_y(key)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "by": self.by,
            "appeared": list(self.appeared),
            "gone": list(self.gone),
            "changed": [{"key": c.key, "facts": c.facts} for c in self.changed],
            "entered": [list(pair) for pair in self.entered],
            "left": [list(pair) for pair in self.left],
            "undecided": [list(pair) for pair in self.undecided],
            "memory": [
                {"x": m.x, "y": m.y, "before": m.before, "after": m.after} for m in self.memory
            ],
            "names": self.names,
        }

    def to_json(self, **options: Any) -> str:
        """`to_dict` as JSON text; *options* go to ``json.dumps``."""
        return json.dumps(self.to_dict(), **options)

    def __str__(self) -> str:
        def named(key: str) -> str:
            return escape(self.names.get(key, key))

        lines = [f"+ {named(key)}" for key in self.appeared]
        lines += [f"- {named(key)}" for key in self.gone]
        for change in self.changed:
            told = ", ".join(
                f"{name} {escape(str(a))} -> {escape(str(b))}"
                for name, (a, b) in change.facts.items()
            )
            lines.append(f"~ {named(change.key)}: {told}")
        for pairs, said in ((self.entered, "entered"), (self.left, "left")):
            lines += [f"  {named(y)} {said} the TCB of {named(x)}" for x, y in pairs]
        lines += [
            f"  {named(m.x)} and {named(m.y)} share {m.after} pages, were {m.before}"
            for m in self.memory
        ]
        return "\n".join(lines) or "no difference"


def diff(
    a: Model | Snapshot, b: Model | Snapshot, *, by: str = "process", **options: Any
) -> Difference:
    """Return what changed from *a* to *b*.

    Parameters
    ----------
    a, b
        Snapshots, or models of them.
    by
        ``"process"``: PDs are matched by key. ``"role"``: all PDs of one role are one, so that
        a service that was restarted is still itself; PDs without a role are left out.
    options
        Of ``Model.tcb``: which TCB is compared.

    Returns
    -------
    Difference
        O(P**2) bits, and one object per pair only when it is asked for.

    Raises
    ------
    QueryError
        *by* is neither, or two PDs of one side have one key.

    """
    if by not in ("process", "role"):
        raise QueryError(f'by must be "process" or "role", not {by!r}')
    before, after = (_model(side, by) for side in (a, b))
    mine, theirs = _keys(before, by), _keys(after, by)
    both = [key for key in mine if key in theirs]
    rows_a = np.array([mine[key] for key in both], np.int64)
    rows_b = np.array([theirs[key] for key in both], np.int64)
    tcb_a = _states(before.tcb_matrix(**options), rows_a)
    tcb_b = _states(after.tcb_matrix(**options), rows_b)

    def pairs(found: NDArray[np.bool_]) -> Pairs:
        return Pairs(both, *np.nonzero(found))

    named = [(before, mine), (after, theirs)]
    return Difference(
        by=by,
        appeared=tuple(key for key in theirs if key not in mine),
        gone=tuple(key for key in mine if key not in theirs),
        changed=tuple(_changed(before, after, mine, theirs, both, by)),
        entered=pairs(tcb_b[0] & ~tcb_a[1]),
        left=pairs(tcb_a[0] & ~tcb_b[1]),
        undecided=pairs((tcb_a[0] ^ tcb_a[1]) ^ (tcb_b[0] ^ tcb_b[1])),
        memory=tuple(_memory(before, after, both, rows_a, rows_b)),
        names={key: str(m.pds[row]) for m, keys in named for key, row in keys.items()},
    )


def _model(side: Any, by: str) -> Any:
    model = side.model() if hasattr(side, "model") else side
    return model.group_by("role") if by == "role" else model


def _keys(model: Model, by: str) -> dict[str, int]:
    """Row of each PD by what it is matched by."""
    column = model.pds.role if by == "role" else model.pds.key
    keys = [(key, row) for row, key in enumerate(column.tolist()) if key]
    several = [key for key, n in Counter(key for key, _ in keys).items() if n > 1]
    if several:
        raise QueryError(f"several PDs have the {by} key {escape(several[0])!r}")
    return dict(keys)


def _states(
    relation: Relation, rows: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(certain, certain or possible) between *rows*, dense."""
    sure = relation.toarray()[np.ix_(rows, rows)]
    return sure, sure | relation.unknown.toarray()[np.ix_(rows, rows)]


def _changed(
    before: Model,
    after: Model,
    mine: dict[str, int],
    theirs: dict[str, int],
    both: list[str],
    by: str,
) -> list[Changed]:
    out = []
    for key in both if by == "process" else ():
        a, b = before.pds[mine[key]], after.pds[theirs[key]]
        facts = {
            name: (getattr(a, name), getattr(b, name))
            for name in FACTS
            if getattr(a, name) != getattr(b, name)
        }
        if facts:
            out.append(Changed(key, facts))
    return out


def _memory(
    before: Model,
    after: Model,
    keys: list[str],
    rows_a: NDArray[np.int64],
    rows_b: NDArray[np.int64],
) -> list[MemoryChange]:
    """Pairs whose shared pages differ, each once."""
    a, b = before.shared_pages().tocsr(), after.shared_pages().tocsr()
    a, b = a[rows_a][:, rows_a], b[rows_b][:, rows_b]
    i, j = (a - b).nonzero()
    above = i < j
    return [
        MemoryChange(keys[x], keys[y], int(a[x, y]), int(b[x, y]))
        for x, y in zip(i[above].tolist(), j[above].tolist(), strict=True)
    ]
