"""What a comparison says, as records: counts, boundaries, cases, and what changed between them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from osmosis.graph.pds import escape
from osmosis.query.isolation import Isolation

__all__ = [
    "ANSWERS",
    "PARTS",
    "TYPES",
    "Boundary",
    "Case",
    "Change",
    "Comparison",
    "Count",
    "Shift",
    "Way",
]

# Parts of a boundary, and the types of resource that make the first two; "other" has the rest.
PARTS = ("memory", "files", "other", "control", "service")
TYPES = {
    "MO": "memory",
    "SHM": "memory",
    "FILE": "files",
    "DIRECTORY": "files",
    "MOUNT": "files",
}
ANSWERS = ("tcb", "impact_boundary")


class Count(NamedTuple):
    """How many PDs are in an answer, may be in it, or would be if what could be used counted."""

    certain: int = 0
    unknown: int = 0
    potential: int = 0  # not certain as observed, certain with potential=True

    def __str__(self) -> str:
        said = str(self.certain)
        said += f" +{self.unknown}?" if self.unknown else ""
        return said + (f" ({self.potential} potential)" if self.potential else "")


class Way(NamedTuple):
    """Through what one PD affects another: a part of the boundary, and the verb or type in it."""

    part: str  # of PARTS
    name: str = ""  # of control the verb, of what is shared its type; "" of a service

    def __str__(self) -> str:
        return f"{self.part}:{self.name}" if self.name else self.part


@dataclass(frozen=True, slots=True)
class Boundary:
    """One TCB or Impact Boundary, counted.

    A PD is one in ``size`` and in ``roles``, and one in each part and way by which it is a
    member. The kernel, which has every way to everybody, is in ``size`` and ``roles`` alone.
    Who is asked for a service is in ``parts["service"]``, and in ``size`` only on request.
    """

    size: Count
    roles: Mapping[str, Count]  # who, by role; roles without anybody are left out
    parts: Mapping[str, Count]  # all of PARTS
    ways: Mapping[Way, Mapping[str, Count]]  # by role; ways that nobody has are left out

    def through(self, role: str) -> tuple[Way, ...]:
        """Ways by which PDs of *role* are members for certain."""
        return tuple(way for way, who in self.ways.items() if who.get(role, Count()).certain)

    def possibly(self, role: str) -> tuple[Way, ...]:
        """Ways by which PDs of *role* are members, or may be."""
        return tuple(way for way, who in self.ways.items() if any(who.get(role, Count())[:2]))

    def of(self, part: str) -> dict[str, Count]:
        """Count by verb, or by type of resource, within one part."""
        return {
            way.name: Count(*(sum(c) for c in zip(*who.values(), strict=True)))
            for way, who in self.ways.items()
            if way.part == part
        }

    @property
    def verbs(self) -> dict[str, Count]:
        """Controllers, or the controlled, by verb."""
        return self.of("control")

    @property
    def types(self) -> dict[str, Count]:
        """Sharers by type of what is shared."""
        return {**self.of("memory"), **self.of("files"), **self.of("other")}

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            **self.size._asdict(),
            "roles": {role: count._asdict() for role, count in self.roles.items()},
            "parts": {part: count._asdict() for part, count in self.parts.items()},
            "ways": [
                {**way._asdict(), "roles": {role: n._asdict() for role, n in who.items()}}
                for way, who in self.ways.items()
            ],
        }


@dataclass(frozen=True, slots=True)
class Case:
    """The subject in one model; without a subject there, only ``absent`` and ``roles`` speak."""

    name: str
    selector: str
    subject: tuple[str, ...] = ()  # ids of its PDs; several are one subject together
    absent: str = ""  # why there is no answer: the model has no such PD
    roles: Mapping[str, int] = field(default_factory=dict)  # all PDs of the model, by role
    tcb: Boundary | None = None
    impact_boundary: Boundary | None = None
    # By the role of the others, or the selector that chose them; the subject is none of them.
    isolation: Mapping[str, Isolation] = field(default_factory=dict)
    rsi: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # and by type
    fr: Mapping[str, float] = field(default_factory=dict)

    def answer(self, name: str) -> Boundary | None:
        """The "tcb" or the "impact_boundary"."""
        return self.tcb if name == "tcb" else self.impact_boundary

    @property
    def incomplete(self) -> bool:
        """Whether something of it is not known."""
        unknown = any(b is None or b.size.unknown for b in (self.tcb, self.impact_boundary))
        return unknown or any(found.full_score.unknown for found in self.isolation.values())

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; without a subject the answers are None."""
        return {
            "selector": self.selector,
            "subject": list(self.subject),
            "absent": self.absent,
            "roles": dict(self.roles),
            "tcb": None if self.tcb is None else self.tcb.to_dict(),
            "impact_boundary": (
                None if self.impact_boundary is None else self.impact_boundary.to_dict()
            ),
            "isolation": {
                other: {
                    "score": found.score._asdict(),
                    "full_score": found.full_score._asdict(),
                    "layers": {
                        layer: {
                            "state": said.state,
                            "evidence": said.evidence,
                            "source": said.source,
                        }
                        for layer, said in found.items()
                    },
                }
                for other, found in self.isolation.items()
            },
            "rsi": {
                other: {type_: _number(v) for type_, v in values.items()}
                for other, values in self.rsi.items()
            },
            "fr": {other: _number(v) for other, v in self.fr.items()},
        }


class Shift(NamedTuple):
    """Of a role that is a member before and after: the ways that it won and lost."""

    won: tuple[Way, ...]
    lost: tuple[Way, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """From one case to the next: who entered an answer, who left it, and through what.

    Only what is certain on one side and certainly not so on the other is a change.
    """

    before: str
    after: str
    answer: str  # "tcb" or "impact_boundary"
    entered: Mapping[str, tuple[Way, ...]]  # by role
    left: Mapping[str, tuple[Way, ...]]
    stayed: Mapping[str, Shift]  # roles that stayed, by other ways
    gone: tuple[str, ...]  # of those that left, roles that the model after has not at all
    undecided: tuple[str, ...]  # roles that are a member in one and unknown in the other

    def __bool__(self) -> bool:
        return bool(self.entered or self.left or self.stayed)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; a way is text, "control:kill"."""

        def listed(ways: tuple[Way, ...]) -> list[str]:
            return [str(way) for way in ways]

        return {
            "before": self.before,
            "after": self.after,
            "answer": self.answer,
            "entered": {role: listed(ways) for role, ways in self.entered.items()},
            "left": {role: listed(ways) for role, ways in self.left.items()},
            "stayed": {
                role: {"won": listed(shift.won), "lost": listed(shift.lost)}
                for role, shift in self.stayed.items()
            },
            "gone": list(self.gone),
            "undecided": list(self.undecided),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Cases of one subject, in the order given."""

    subject: str | Mapping[str, str]
    cases: Mapping[str, Case] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Case:
        return self.cases[name]

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases.values())

    @property
    def changes(self) -> list[Change]:
        """What is another from each case to the next, TCB and IB; cases without subject skipped."""
        there = [case for case in self if not case.absent]
        return [_change(a, b, answer) for a, b in pairwise(there) for answer in ANSWERS]

    @property
    def others(self) -> tuple[str, ...]:
        """Whom the subject is compared with, in any case."""
        return tuple(dict.fromkeys(other for case in self for other in case.isolation))

    def rows(self) -> list[dict[str, Any]]:
        """The comparison as a flat table, one row per case, the same keys in each.

        ``case``, ``subjects`` (number of PDs); for ``tcb`` and ``ib``: itself (certain members),
        ``_unknown``, ``_potential``, and each of ``PARTS`` (``tcb_memory`` ..., certain ones);
        for each of ``others``: ``layers:app`` and ``layers7:app`` (that separate for certain, of
        all and of the seven of the paper's tool), ``layers_unknown:app``, ``fr:app``. None
        where there is no answer; a fault radius that does not exist is inf.
        """
        return [self._row(case) for case in self]

    def _row(self, case: Case) -> dict[str, Any]:
        row: dict[str, Any] = {"case": case.name, "subjects": len(case.subject)}
        for short, answer in zip(("tcb", "ib"), ANSWERS, strict=True):
            found = case.answer(answer)
            row[short] = found and found.size.certain
            row[f"{short}_unknown"] = found and found.size.unknown
            row[f"{short}_potential"] = found and found.size.potential
            row |= {f"{short}_{part}": found and found.parts[part].certain for part in PARTS}
        for other in self.others:
            between = case.isolation.get(other)
            full = None if between is None else between.full_score
            row[f"layers:{other}"] = None if full is None else full.separated
            row[f"layers7:{other}"] = None if between is None else between.score.separated
            row[f"layers_unknown:{other}"] = None if full is None else full.unknown
            row[f"fr:{other}"] = case.fr.get(other)
        return row

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values; a figure that does not exist is None."""
        return {
            "subject": self.subject if isinstance(self.subject, str) else dict(self.subject),
            "cases": {name: case.to_dict() for name, case in self.cases.items()},
            "changes": [change.to_dict() for change in self.changes],
        }

    def to_json(self, **options: Any) -> str:
        """`to_dict` as JSON text; *options* go to ``json.dumps``."""
        return json.dumps(self.to_dict(), **options)

    def __str__(self) -> str:
        lines = []
        for case in self:
            if case.tcb is None or case.impact_boundary is None:
                lines.append(f"{escape(case.name)}: {escape(case.absent)}")
                continue
            scores = [f"{escape(o)} {found.score}" for o, found in case.isolation.items()]
            said = [f"TCB {_listed(case.tcb)}", f"IB {_listed(case.impact_boundary)}"]
            said += [f"separated from {', '.join(scores)}"] if scores else []
            lines.append(f"{escape(case.name)}: {'; '.join(said)}")
        return "\n".join(lines)


def _listed(found: Boundary) -> str:
    who = ", ".join(f"{escape(role)} {count}" for role, count in found.roles.items())
    return f"{found.size} ({who})" if who else str(found.size)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _change(a: Case, b: Case, answer: str) -> Change:
    before, after = a.answer(answer), b.answer(answer)
    if before is None or after is None:
        raise ValueError(f"{a.name} or {b.name} has no {answer}")
    there = {role: before.roles.get(role, Count()) for role in (*before.roles, *after.roles)}
    now = {role: after.roles.get(role, Count()) for role in there}
    entered, left, stayed, undecided = {}, {}, {}, []
    for role in sorted(there):
        was, is_ = there[role], now[role]
        if was.certain and is_.certain:
            shift = Shift(_only(after, before, role), _only(before, after, role))
            if any(shift):
                stayed[role] = shift
        elif (was.certain and is_.unknown) or (was.unknown and is_.certain):
            undecided.append(role)
        elif is_.certain:
            entered[role] = after.through(role)
        elif was.certain:
            left[role] = before.through(role)
    gone = tuple(role for role in left if role not in b.roles)
    return Change(a.name, b.name, answer, entered, left, stayed, gone, tuple(undecided))


def _only(one: Boundary, other: Boundary, role: str) -> tuple[Way, ...]:
    """Ways that are certain of *role* in one, and certainly not in the other."""
    theirs = other.possibly(role)
    return tuple(way for way in one.through(role) if way not in theirs)
