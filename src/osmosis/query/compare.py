"""Several models side by side: who is in the TCB and the IB of one subject, by what, as which role.

The subject is a selector that each model understands (``role:db``), so that snapshots of two
hosts, or of two isolation mechanisms, compare.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from osmosis.errors import QueryError, SelectorError
from osmosis.graph.pds import escape
from osmosis.graph.sets import PDSet
from osmosis.query.isolation import Isolation, Score, isolation

if TYPE_CHECKING:
    from osmosis.model import Model

__all__ = ["Case", "Change", "Comparison", "Members", "compare"]

PARTS = ("shared", "control", "service")


@dataclass(frozen=True, slots=True)
class Members:
    """One TCB or IB: how many, by what, and who by role."""

    size: int
    unknown: int
    parts: Mapping[str, int]  # members by part; one by several parts counts in each
    verbs: Mapping[str, int]
    types: Mapping[str, int]  # of what is shared
    roles: Mapping[str, int]
    unknown_roles: Mapping[str, int]
    through: Mapping[str, tuple[str, ...]]  # by role: the parts, verbs and types


@dataclass(frozen=True, slots=True)
class Case:
    """The subject in one model."""

    name: str
    subject: tuple[str, ...]  # ids of its PDs
    tcb: Members
    impact_boundary: Members
    isolation: Mapping[str, Isolation]  # by the role of the others
    rsi: Mapping[str, Mapping[str, float]]  # by role and type: the most of any pair
    fr: Mapping[str, float]  # by role: the least of any pair


@dataclass(frozen=True, slots=True)
class Change:
    """From one case to the next: roles that left or entered an answer, and through what."""

    before: str
    after: str
    answer: str  # "tcb" or "impact_boundary"
    entered: Mapping[str, tuple[str, ...]]
    left: Mapping[str, tuple[str, ...]]
    undecided: tuple[str, ...]  # roles that are a member in one and unknown in the other


@dataclass(frozen=True, slots=True)
class Comparison:
    """Cases of one subject, in the order given."""

    subject: str
    cases: Mapping[str, Case] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Case:
        return self.cases[name]

    @property
    def changes(self) -> list[Change]:
        """What is another from each case to the next."""
        cases = list(self.cases.values())
        return [
            _change(a, b, answer)
            for a, b in pairwise(cases)
            for answer in ("tcb", "impact_boundary")
        ]

    def rows(self) -> list[dict[str, str]]:
        """The comparison as a table: one row per case, cells of text."""
        return [_table_row(case) for case in self.cases.values()]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values; a distance that does not exist is None."""
        return {
            "subject": self.subject,
            "cases": {name: _plain(case) for name, case in self.cases.items()},
            "changes": [asdict(change) for change in self.changes],
        }

    def to_json(self, **options: Any) -> str:
        """`to_dict` as JSON text; *options* go to ``json.dumps``."""
        return json.dumps(self.to_dict(), **options)

    def __str__(self) -> str:
        rows = self.rows()
        if not rows:
            return f"nothing to compare for {escape(self.subject)}"
        heads = list(rows[0])
        width = [max(len(h), *(len(row[h]) for row in rows)) for h in heads]
        lines = [[*heads], *([row[h] for h in heads] for row in rows)]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, width, strict=True)).rstrip()
            for line in lines
        )


def compare(
    models: Mapping[str, Model], *, subject: str, types: tuple[str, ...] = ("MO", "FILE")
) -> Comparison:
    """Put *models* side by side, from the point of view of one subject.

    Parameters
    ----------
    models
        Name of each case, and its model; their order is kept.
    subject
        A selector; what it matches in each model is one subject, several PDs together.
    types
        Resources whose RSI is asked for, as far as a model knows them.

    Returns
    -------
    Comparison
        O(members) per case; RSI and FR once per role and pair.

    Raises
    ------
    SelectorError
        A model has no such PD; it says which model.

    """
    if not models:
        raise QueryError("there is no model to compare")
    cases = {name: _case(name, model, subject, types) for name, model in models.items()}
    return Comparison(subject, cases)


def _case(name: str, model: Model, subject: str, types: tuple[str, ...]) -> Case:
    if model.pds is not model.data.pds:
        raise QueryError("compare wants models of single PDs, not of groups")
    found = model.find(subject)
    if not found:
        raise SelectorError(subject, f"matches nothing in the model {escape(name)!r}")
    rows = np.array([pd.row for pd in found], np.int32)
    who = PDSet(model.pds, rows)
    others = _by_role(model, rows)
    known = [t for t in types if t in model.data.types]
    return Case(
        name,
        tuple(pd.id for pd in found),
        _members(model, model.tcb(who)),
        _members(model, model.impact_boundary(who)),
        {role: isolation(model.data, rows, theirs) for role, theirs in others.items()},
        {
            role: {t: _most_shared(model, rows, theirs, t) for t in known}
            for role, theirs in others.items()
        },
        {role: _nearest(model, rows, theirs) for role, theirs in others.items()},
    )


def _role(model: Model, row: int) -> str:
    """Role of a PD; without one, the kernel is itself and any other is "other"."""
    pds = model.pds
    return pds.role[row] or ("kernel" if row == model.data.kernel else "other")


def _by_role(model: Model, subject: Any) -> dict[str, Any]:
    """Rows of the PDs of every named role but the subject's; "other" is left out."""
    out: dict[str, list[int]] = {}
    for row in range(len(model.pds)):
        role = _role(model, row)
        if row not in subject and role not in ("other", "kernel"):
            out.setdefault(role, []).append(row)
    return {role: np.array(rows, np.int32) for role, rows in sorted(out.items())}


def _most_shared(model: Model, x: Any, y: Any, type_: str) -> float:
    sets = PDSet(model.pds, x), PDSet(model.pds, y)
    block = np.asarray(model.rsi_matrix(type_, *sets))
    known = block[~np.isnan(block)]
    return float(known.max()) if len(known) else math.nan


def _nearest(model: Model, x: Any, y: Any) -> float:
    sets = PDSet(model.pds, x), PDSet(model.pds, y)
    return float(np.min(model.fr_matrix(*sets), initial=math.inf))


def _members(model: Model, answer: PDSet) -> Members:
    verbs: Counter[str] = Counter()
    types: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    through: dict[str, set[str]] = {}
    for row in answer.rows.tolist():
        role = _role(model, row)
        roles[role] += 1
        why = answer.why(model.pds[row])
        verbs.update(why.verbs)
        types.update(why.types)
        through.setdefault(role, set()).update((*why.parts, *why.verbs, *why.types))
    parts = {part: len(answer.parts[part]) for part in PARTS if part in answer.parts}
    unknown = Counter(_role(model, row) for row in answer.unknown.rows.tolist())
    return Members(
        len(answer),
        len(answer.unknown),
        parts,
        dict(sorted(verbs.items())),
        dict(sorted(types.items())),
        dict(sorted(roles.items())),
        dict(sorted(unknown.items())),
        {role: tuple(sorted(reasons)) for role, reasons in sorted(through.items())},
    )


def _change(a: Case, b: Case, answer: str) -> Change:
    before: Members = getattr(a, answer)
    after: Members = getattr(b, answer)
    unsure = (before.roles.keys() & after.unknown_roles.keys()) - after.roles.keys()
    unsure |= (after.roles.keys() & before.unknown_roles.keys()) - before.roles.keys()

    def only(one: Members, other: Members) -> dict[str, tuple[str, ...]]:
        roles = one.roles.keys() - other.roles.keys() - unsure
        return {role: one.through[role] for role in sorted(roles)}

    entered, left = only(after, before), only(before, after)
    return Change(a.name, b.name, answer, entered, left, tuple(sorted(unsure)))


def _plain(case: Case) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "subject": list(case.subject),
        "tcb": asdict(case.tcb),
        "impact_boundary": asdict(case.impact_boundary),
        "isolation": {
            role: {
                "score": _score(found.score),
                "full_score": _score(found.full_score),
                "layers": {name: asdict(answer) for name, answer in found.items()},
            }
            for role, found in case.isolation.items()
        },
        "rsi": {
            role: {t: number(v) for t, v in values.items()} for role, values in case.rsi.items()
        },
        "fr": {role: number(v) for role, v in case.fr.items()},
    }


def _score(score: Score) -> dict[str, int]:
    return dict(score._asdict())


def _counted(members: Members) -> str:
    doubt = f" (+{members.unknown}?)" if members.unknown else ""
    return f"{members.size}{doubt}"


def _table_row(case: Case) -> dict[str, str]:
    def listed(members: Members) -> str:
        return ", ".join(f"{escape(role)} {n}" for role, n in members.roles.items()) or "-"

    scores = ", ".join(f"{escape(r)} {found.score}" for r, found in case.isolation.items())
    return {
        "case": escape(case.name),
        "TCB": _counted(case.tcb),
        **{part: str(case.tcb.parts.get(part, 0)) for part in PARTS},
        "in the TCB": listed(case.tcb),
        "IB": _counted(case.impact_boundary),
        "in the IB": listed(case.impact_boundary),
        "isolation": scores or "-",
    }
