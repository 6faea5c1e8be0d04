"""The Trusted Computing Base of a PD, and its inverse, the Impact Boundary.

One step: ``T[i, j]``, j can affect i, because they share what j can write, because j may
control i, or, on request, because i asks j for a service. The kernel is in every TCB; nothing
is in the kernel's. More steps are products of T with itself, or with the relation of those
verbs that give the actor the target's powers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from _fastproc import reach
from osmosis.errors import QueryError
from osmosis.graph.bits import Bits, unpack
from osmosis.graph.graph import Kind
from osmosis.graph.relation import Relation
from osmosis.query.engine import Engine
from osmosis.query.options import POWER_VERBS, access_mask, depth_of, types_of, verbs_of
from osmosis.query.services import clients_row, services_row
from osmosis.query.sharing import Ask, Row

__all__ = [
    "PARTS",
    "Base",
    "asked",
    "impact_row",
    "one_step",
    "part_rows",
    "powers",
    "tcb_relation",
    "tcb_row",
]

Bools = NDArray[np.bool_]
PARTS = ("shared", "control", "service")


class Base(NamedTuple):
    """What a question about TCB or IB asks for, checked."""

    ask: Ask
    verbs: tuple[str, ...]  # that the model provides, sorted
    controlled: bool  # whether any verb was asked for
    services: bool
    depth: int | None
    through: str

    @property
    def one_step(self) -> Base:
        """The same question, one step."""
        return self._replace(depth=1, through="any")


def asked(
    engine: Engine,
    *,
    access: str | Iterable[str] = "W",
    own_access: str | Iterable[str] = "ANY",
    types: str | Iterable[str] | None = None,
    verbs: str | Iterable[str] | None = None,
    services: bool = False,
    potential: bool = False,
    depth: int | None = 1,
    through: str = "any",
) -> Base:
    """Return the options of tcb and impact_boundary as one checked record.

    Raises
    ------
    QueryError
        A type, verb, access, depth or through is not known.

    """
    if through not in ("any", "power"):
        raise QueryError(f'through must be "any" or "power", not {through!r}')
    provided, some = verbs_of(engine.controls.provided, verbs)
    ask = Ask(
        access_mask(own_access),
        access_mask(access),
        types_of(engine.graph, types),
        Kind.RESOURCE,
        bool(potential),
    )
    return Base(ask, tuple(sorted(provided)), some, bool(services), depth_of(depth), through)


# -- one step


def _control(engine: Engine, base: Base) -> Relation:
    """``C[i, j]``: j may do one of the verbs to i."""
    return engine.controls.union(base.verbs, base.controlled).T


def _control_row(engine: Engine, base: Base, row: int, *, acting: bool) -> Row:
    return Row(*engine.controls.masks_of(row, base.verbs, base.controlled, acting=acting))


def one_step(engine: Engine, base: Base) -> Relation:
    """Return ``T[i, j]``: j is in the TCB of i in one step."""

    def make() -> Relation:
        out = engine.sharing(base.ask) | _control(engine, base)
        if base.services:
            out = out | engine.services()
        if engine.kernel is not None:
            out = out.with_row_and_column(engine.kernel, row=False, column=True)
        return out.named(engine.graph.pds)

    made: Relation = engine.once(("step", base.one_step), make)
    return made


def _parts_forward(
    engine: Engine, row: int, base: Base, *, services: bool = True
) -> dict[str, Row]:
    n = engine.n
    if row == engine.kernel:
        return {part: Row.none(n) for part in PARTS}
    return {
        "shared": engine.shared_row(row, base.ask),
        "control": _control_row(engine, base, row, acting=False),
        "service": services_row(engine.index, row) if services else Row.none(n),
    }


def _parts_backward(
    engine: Engine, row: int, base: Base, *, services: bool = True
) -> dict[str, Row]:
    """Whose shared, control and service part has *row* in it."""
    index, kernel = engine.index, engine.kernel
    control = _control_row(engine, base, row, acting=True)
    if row != kernel:
        shared = engine.shared_row(row, base.ask.swapped)
    else:
        shared = engine.shares(base.ask).of_kernel()
    service = clients_row(index, row) if services else Row.none(engine.n)
    if kernel is not None:
        for one in (shared, control, service):
            one.drop(kernel)
    return {"shared": shared, "control": control, "service": service}


def _united(engine: Engine, parts: dict[str, Row], row: int, base: Base, forward: bool) -> Row:
    out = Row.none(engine.n)
    out.add(parts["shared"])
    out.add(parts["control"])
    if base.services:
        out.add(parts["service"])
    kernel = engine.kernel
    if kernel is not None:
        if forward and row != kernel:
            out.sure[kernel] = out.may[kernel] = True
        elif not forward and row == kernel:
            out.sure[:] = out.may[:] = True
    return out.drop(row)


# -- more steps


def powers(engine: Engine) -> Relation:
    """``Q[j, k]``: k may take over j."""

    def make() -> Relation:
        return engine.controls.any_of(POWER_VERBS, effective=True).T

    made: Relation = engine.once("power", make)
    return made


def spread(bits: Bits, start: Bools, steps: int | None) -> Bools:
    """Return *start* and all that at most *steps* rows of *bits* lead to; None for no bound."""
    seen = start.copy()
    frontier = np.flatnonzero(start)
    while len(frontier) and steps != 0:
        met = np.bitwise_or.reduce(bits[frontier], axis=0)
        fresh = unpack(met[None], len(start))[0] & ~seen
        seen |= fresh
        frontier = np.flatnonzero(fresh)
        steps = None if steps is None else steps - 1
    return seen


def product(a: Bits, b: Bits, n: int) -> Bits:
    """Boolean matrix product of bit rows.

    O(bits of a * words), and less where rows fill up.
    """
    if not n:
        return a
    return reach.bit_product(np.ascontiguousarray(a), np.ascontiguousarray(b))


def closure(bits: Bits, n: int, steps: int | None) -> Bits:
    """Return the union of 1 .. steps products of *bits* with itself; None for all of them."""
    out = bits
    if steps is None:
        while True:
            more = out | product(out, out, n)
            if np.array_equal(more, out):
                return out
            out = more
    for _ in range(steps - 1):
        more = bits | product(out, bits, n)
        if np.array_equal(more, out):
            break
        out = more
    return out


def tcb_relation(engine: Engine, base: Base) -> Relation:
    """``T[i, j]``: j is in the TCB of i, with the depth asked for."""
    if base.depth == 0:
        return Relation.empty(engine.n, pds=engine.graph.pds)
    step = one_step(engine, base)
    if base.depth == 1:
        return step

    def make() -> Relation:
        n = engine.n

        def several(possible: bool) -> Bits:
            first = step.possible if possible else step.certain
            if base.through == "any":
                return closure(first, n, base.depth)
            power = powers(engine)
            bits = power.possible if possible else power.certain
            steps = None if base.depth is None else base.depth - 1
            return first | product(first, closure(bits, n, steps), n)

        decided = step.decided and (base.through == "any" or powers(engine).decided)
        return Relation.from_bits(
            n, several(False), None if decided else several(True), pds=engine.graph.pds
        )

    made: Relation = engine.once(("tcb", base), make)
    return made


def _further(engine: Engine, base: Base, start: Row, forward: bool) -> Row:
    """Add what the PDs of *start* lead to in the steps that are left."""
    relation = powers(engine) if base.through == "power" else one_step(engine, base)
    if not forward:
        relation = relation.T
    steps = None if base.depth is None else base.depth - 1
    return Row(
        spread(relation.certain, start.sure, steps), spread(relation.possible, start.may, steps)
    )


def tcb_row(engine: Engine, row: int, base: Base) -> Row:
    """Who can affect the PD *row*."""
    if base.depth == 0:
        return Row.none(engine.n)
    if engine.made(("step", base.one_step)):
        out = engine.row(one_step(engine, base), row)
    else:
        out = _united(
            engine, _parts_forward(engine, row, base, services=base.services), row, base, True
        )
    if base.depth != 1:
        out = _further(engine, base, out, True)
    return out.drop(row)


def impact_row(engine: Engine, row: int, base: Base) -> Row:
    """Whom the PD *row* can affect: exactly those in whose TCB it is."""
    if base.depth == 0:
        return Row.none(engine.n)
    if base.depth != 1 and base.through == "power":
        # Back over the powers first: the one step of T is the first of every path.
        start = Row.none(engine.n)
        start.sure[row] = start.may[row] = True
        last = _further(engine, base, start, False)
        back = one_step(engine, base).T
        return Row(spread_once(back.certain, last.sure), spread_once(back.possible, last.may)).drop(
            row
        )
    if engine.made(("step", base.one_step)):
        out = engine.row(one_step(engine, base).T, row)
    else:
        out = _united(
            engine, _parts_backward(engine, row, base, services=base.services), row, base, False
        )
    if base.depth != 1:
        out = _further(engine, base, out, False)
    return out.drop(row)


def spread_once(bits: Bits, start: Bools) -> Bools:
    """Return all that one row of *bits* leads to from *start*."""
    rows = bits[np.flatnonzero(start)]
    if not len(rows):
        return np.zeros(len(start), bool)
    met: Bools = unpack(np.bitwise_or.reduce(rows, axis=0)[None], len(start))[0]
    return met


def part_rows(engine: Engine, row: int, base: Base, *, forward: bool) -> dict[str, Row]:
    """Return the answer by part: shared, control, service.

    Of more than one step, a part has those whose last step (of a TCB; the first one, of an
    impact boundary) is by it. Services are told apart even where they are not members.
    """
    one = _parts_forward if forward else _parts_backward
    if base.depth == 0:
        return {part: Row.none(engine.n) for part in PARTS}
    direct = one(engine, row, base)
    if base.depth == 1:
        return direct
    before = base._replace(depth=None if base.depth is None else base.depth - 1)
    inner = (tcb_row if forward else impact_row)(engine, row, before)
    steps = {
        "shared": engine.sharing(base.ask),
        "control": _control(engine, base),
        "service": engine.services(),
    }
    if base.through == "power":
        if not forward:  # the powers come first: the step next to the member is of any part
            inner = Row.none(engine.n)
            inner.sure[row] = inner.may[row] = True
            inner = _further(engine, base, inner, False)
        else:
            steps = {"control": powers(engine)}
    for part, relation in steps.items():
        turned = relation if forward else relation.T
        direct[part].add(
            Row(
                spread_once(turned.certain, inner.sure),
                spread_once(turned.possible, inner.may),
            )
        )
    return {part: found.drop(row) for part, found in direct.items()}
