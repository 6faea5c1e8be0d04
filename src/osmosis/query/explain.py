"""Why a PD is in another's TCB: the path of edges, each with its permission, rule and source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import QueryError
from osmosis.graph.bits import unpack
from osmosis.graph.graph import ANY, POTENTIAL, PRIVATE, Edge, R, W, X
from osmosis.graph.pds import escape
from osmosis.graph.sets import Answer
from osmosis.query.engine import Engine
from osmosis.query.options import DEFAULT_VERBS, POWER_VERBS
from osmosis.query.sharing import Ask, wanted_nodes
from osmosis.query.tcb import Base, asked, one_step, part_rows, powers, tcb_row
from osmosis.query.walk import Index, Reached, Way, walk

__all__ = ["Step", "Witness", "best", "explain", "letters"]

I4 = NDArray[np.int32]


def letters(mask: int) -> str:
    """Return a mask as text: "RW", or "-" where it has no letter."""
    return "".join(name for name, bit in (("R", R), ("W", W), ("X", X)) if mask & bit) or "-"


@dataclass(frozen=True, slots=True)
class Step:
    """One edge of a witness, from node to node as the edge goes."""

    source: str
    target: str
    kind: str  # HOLD, MAP, REQUEST, or the verb of a control edge
    permission: str
    rule: str
    read_from: str
    certain: bool = True
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = f"{escape(self.source)} --{escape(self.kind)}"
        said += f" {self.permission}" if self.permission else ""
        said += f"--> {escape(self.target)}"
        told = [escape(t) for t in (self.rule, self.read_from) if t]
        if not self.certain:
            told.insert(0, "not certain")
        told += [escape(n) for n in self.notes]
        return f"{said}  ({'; '.join(told)})" if told else said


@dataclass(frozen=True, slots=True)
class Witness:
    """Why y is in the TCB of x; false if it is not, and undecided if that is not known.

    ``paths`` are lists of steps, by part: "shared" has the path of x to a resource, then the
    path of y to the same one; "control" one step from y to x for each verb; "service" the
    requests of x.
    """

    x: str
    y: str
    state: bool | None
    paths: dict[str, tuple[Step, ...]]
    reason: str
    caveats: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(Answer(self.state, self.reason))

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes on the paths, each once, in order."""
        seen: dict[str, None] = {}
        for path in self.paths.values():
            for step in path:
                seen.update({step.source: None, step.target: None})
        return list(seen)

    def __str__(self) -> str:
        word = {True: "is", False: "is not", None: "may be"}[self.state]
        lines = [f"{escape(self.y)} {word} in the TCB of {escape(self.x)}: {escape(self.reason)}"]
        for part, path in self.paths.items():
            lines.append(f"  {part}:")
            lines += [f"    {step}" for step in path]
        lines += [f"  caveat: {escape(c)}" for c in self.caveats]
        return "\n".join(lines)


def best(witnesses: Iterable[Witness]) -> Witness:
    """Return the first certain witness, else an undecided one, else any."""
    found: Witness | None = None
    for one in witnesses:
        if one.state:
            return one
        if found is None or (found.state is False and one.state is None):
            found = one
    if found is None:
        raise QueryError("nothing to explain: x or y stands for no PD")
    return found


def _told(engine: Engine, rule: int, node: int) -> tuple[str, str, tuple[str, ...]]:
    rules = engine.graph.rules
    text, source = rules[rule] if 0 <= rule < len(rules) else ("", "")
    notes = engine.graph.notes.get(node, {})
    return text, source, tuple(f"{k} {v}" for k, v in notes.items())


def _edge_before(
    index: Index, row: int, node: int, d: int, reached: Reached, way: Way, last: bool
) -> tuple[int, int, int, int] | None:
    """Return an edge into *node*, which is at distance *d*: (source, kind, mask, rule).

    Its source is at distance d - 1 by *reached*.
    """
    # A PD that was met on the way is one that x controls: no way to its resources.
    near = reached.nodes[reached.distance == d - 1]
    near = near[~index.is_pd[near] | (near == row)]
    at = np.array([node], np.int32)
    for kind in (Edge.HOLD, Edge.MAP):
        edges = index.kinds[kind]
        ids = index.backward[kind].at(at)[0]
        keep = way.passes(edges, ids, kind)
        if not way.potential:
            keep &= (edges.flags[ids] & POTENTIAL) == 0
        if kind == Edge.HOLD and way.ends_private and not last:
            keep &= (edges.flags[ids] & PRIVATE) == 0
        ids = ids[keep & np.isin(edges.src[ids], near)]
        if len(ids):
            e = int(ids[0])
            mask = int(edges.maybe[e] if way.possible else edges.perm[e])
            return int(edges.src[e]), int(kind), mask, int(edges.rule[e])
    runs = index.runs.runs
    ids = index.runs.by_dst.at(at)[0]
    ids = ids[(runs.perm[ids] & way.need) == way.need]
    positions = np.sort(index.runs.by_node.at(near)[0])
    if len(ids) and len(positions):
        first = np.searchsorted(positions, runs.first[ids])
        first[first == len(positions)] = 0
        found = positions[first]
        hit = np.flatnonzero((found >= runs.first[ids]) & (found <= runs.last[ids]))
        if len(hit):
            k = int(ids[hit[0]])
            source = int(runs.source[found[hit[0]]])
            return source, int(Edge.MAP), int(runs.perm[k]), int(runs.rule[k])
    return None


def _path(engine: Engine, row: int, node: int, way: Way, whole: Reached) -> tuple[Step, ...]:
    """Return the shortest path over HOLD and MAP from a PD to a node; *whole* is the PD's walk."""
    index, names = engine.index, engine.graph.names
    if row == engine.kernel:
        text = "the kernel holds everything with every permission"
        return (Step(names[row], names[node], "HOLD", "RWX", text, ""),)
    # Distances over edges that a path may go on from: a PRIVATE hold counts at the end only.
    reached = _onward(index, row, way) if way.ends_private else whole
    near = [int(found.of(np.array([node], np.int32))[0]) for found in (reached, whole)]
    d = min(at for at in near if at >= 0)
    steps: list[Step] = []
    at, last = node, True
    while at != row:
        found = _edge_before(index, row, at, d, reached, way, last)
        if found is None:
            break
        source, kind, mask, rule = found
        text, read_from, notes = _told(engine, rule, at)
        steps.append(
            Step(
                names[source],
                names[at],
                Edge(kind).name,
                letters(mask),
                text,
                read_from,
                not way.possible,
                notes,
            )
        )
        at, last, d = source, False, d - 1
    return tuple(reversed(steps))


def _onward(index: Index, row: int, way: Way) -> Reached:
    """Nodes that a path from a PD may go on from, where a PRIVATE hold ends it."""
    start = np.array([row], np.int32)
    hold = index.kinds[Edge.HOLD]
    ids = index.forward[Edge.HOLD].at(start)[0]
    barred = PRIVATE if way.potential else PRIVATE | POTENTIAL
    ids = ids[way.passes(hold, ids, Edge.HOLD) & ((hold.flags[ids] & barred) == 0)]
    first = np.unique(hold.dst[ids])
    on = walk(index, first[~index.is_pd[first]], (Edge.MAP,), way)
    at = int(np.searchsorted(on.nodes, row))
    return Reached(np.insert(on.nodes, at, row), np.insert(on.distance + 1, at, 0))


def _shared(engine: Engine, x: int, y: int, ask: Ask, certain: bool) -> tuple[Step, ...]:
    """Two paths to the one resource that is nearest to both."""
    index = engine.index
    ways = [Way(need, not certain, ask.potential) for need in (ask.own, ask.access)]
    mine, theirs = (
        walk(index, np.array([row], np.int32), (Edge.HOLD, Edge.MAP), way)
        for row, way in zip((x, y), ways, strict=True)
    )
    nodes = mine.nodes[wanted_nodes(index, ask.kind, ask.types)[mine.nodes]]
    far = theirs.of(nodes)
    nodes, far = nodes[far >= 0], far[far >= 0]
    if not len(nodes):
        return ()
    node = int(nodes[np.argmin(mine.of(nodes) + far)])
    return _path(engine, x, node, ways[0], mine) + _path(engine, y, node, ways[1], theirs)


def _controlled(engine: Engine, x: int, y: int, base: Base) -> tuple[tuple[Step, ...], list[str]]:
    names = engine.graph.names
    if y == engine.kernel:
        text = "the kernel holds everything with every permission"
        return (Step(names[y], names[x], "HOLD", "RWX", text, ""),), []
    yes, may = engine.controls.verbs_between(y, x, base.verbs)
    order = {verb: k for k, verb in enumerate(DEFAULT_VERBS)}
    steps, caveats = [], []
    for verb in sorted([*yes, *may], key=lambda v: (v not in yes, order.get(v, 99), v)):
        found = engine.controls.may(y, verb, x)
        said = found.rule or found.reason
        notes = (found.reason,) if found.rule else ()
        step = Step(names[y], names[x], verb, "", said, found.source, found.state is True, notes)
        steps.append(step)
        caveats += [c for c in found.caveats if c not in caveats]
    return tuple(steps), caveats


def _service(engine: Engine, x: int, y: int) -> tuple[Step, ...]:
    index, graph = engine.index, engine.graph
    asked_for = index.kinds[Edge.REQUEST]
    steps = []
    for e in index.forward[Edge.REQUEST].at(np.array([x], np.int32))[0].tolist():
        if asked_for.dst[e] == y:
            text, read_from, notes = _told(engine, int(asked_for.rule[e]), y)
            label = int(asked_for.label[e])
            what = (graph.labels[label],) if label >= 0 else ()
            certain = bool(asked_for.perm[e] & ANY)
            steps.append(
                Step(
                    graph.names[x],
                    graph.names[y],
                    "REQUEST",
                    "",
                    text,
                    read_from,
                    certain,
                    what + notes,
                )
            )
    return tuple(steps)


def explain(engine: Engine, x: int, y: int, **options: Any) -> Witness:
    """Return why y is in ``tcb(x, **options)``, or that it is not, and what is unknown."""
    base = asked(engine, **options)
    names = engine.graph.names
    if x == y:
        return Witness(names[x], names[y], False, {}, "a PD is in none of its own answers")
    if base.depth != 1:
        chain = _chain(engine, x, y, base)
        if chain is not None:
            return chain
    row = tcb_row(engine, x, base)
    state = True if row.sure[y] else None if row.may[y] else False
    if x == engine.kernel:
        return Witness(names[x], names[y], False, {}, "nothing is in the kernel's TCB")
    paths: dict[str, tuple[Step, ...]] = {}
    caveats: list[str] = []
    undecided = []
    for part, found in part_rows(engine, x, base, forward=True).items():
        if not found.may[y]:
            continue
        certain = bool(found.sure[y])
        if part == "shared":
            path = _shared(engine, x, y, base.ask, certain)
            if not certain:
                undecided.append(_unseen_types(engine, x, y, base.ask))
        elif part == "control":
            path, caveats = _controlled(engine, x, y, base)
        else:
            path = _service(engine, x, y)
        if path:
            paths[part] = path
    if state is True:
        said = " and ".join(paths) or "the kernel is in every TCB"
    elif state is None:
        said = "; ".join(u for u in undecided if u) or "not decided: " + ", ".join(paths)
    else:
        said = "they share nothing with that access, and no verb applies"
    return Witness(names[x], names[y], state, paths, said, tuple(caveats))


def _unseen_types(engine: Engine, x: int, y: int, ask: Ask) -> str:
    blind = []
    for name, mask in engine.graph.unseen_types.items():
        if ask.types is not None and name not in ask.types:
            continue
        if (mask[x] & ask.own) == ask.own or (mask[y] & ask.access) == ask.access:
            blind.append(name)
    return f"could not be seen whole: {', '.join(sorted(blind))}" if blind else ""


def _chain(engine: Engine, x: int, y: int, base: Base) -> Witness | None:
    """Witness of more than one step: the least chain of one-step members, each explained."""
    from_x = tcb_row(engine, x, base)
    if not from_x.may[y] or x == engine.kernel:
        return None
    one = base.one_step
    state = True if from_x.sure[y] else None
    hops = _hops(engine, x, y, base, certain=state is True)
    if len(hops) <= 1:
        return None
    paths: dict[str, tuple[Step, ...]] = {}
    caveats: list[str] = []
    for k, (a, b, power) in enumerate(hops, 1):
        options = one._replace(verbs=tuple(sorted(engine_power(engine)))) if power else one
        step = _controlled(engine, a, b, options) if power else None
        if step is not None:
            paths[f"step {k} control"] = step[0]
            caveats += [c for c in step[1] if c not in caveats]
            continue
        for part, found in part_rows(engine, a, one, forward=True).items():
            if not found.may[b] or (part == "service" and not base.services):
                continue
            if part == "shared":
                path = _shared(engine, a, b, base.ask, bool(found.sure[b]))
            elif part == "control":
                path, more = _controlled(engine, a, b, one)
                caveats += [c for c in more if c not in caveats]
            else:
                path = _service(engine, a, b)
            if path:
                paths[f"step {k} {part}"] = path
    names = engine.graph.names
    return Witness(names[x], names[y], state, paths, f"in {len(hops)} steps", tuple(caveats))


def engine_power(engine: Engine) -> list[str]:
    """Verbs of the model that give the actor the target's powers."""
    return [verb for verb in POWER_VERBS if verb in engine.controls.provided]


def _hops(
    engine: Engine, x: int, y: int, base: Base, *, certain: bool
) -> list[tuple[int, int, bool]]:
    """Least chain x -> ... -> y: (from, to, whether by a verb of power)."""

    def row(relation: Any, at: int) -> NDArray[np.bool_]:
        bits = relation.certain if certain else relation.possible
        found: NDArray[np.bool_] = unpack(bits[at : at + 1], engine.n)[0]
        return found

    step = one_step(engine, base)
    on = powers(engine) if base.through == "power" else step
    before = np.full(engine.n, -1, np.int32)
    fresh = np.flatnonzero(row(step, x))
    before[fresh] = x
    while len(fresh) and before[y] < 0:
        further = []
        for at in fresh.tolist():
            new = np.flatnonzero(row(on, at) & (before < 0))
            before[new] = at
            further.append(new)
        fresh = np.concatenate(further)
    if before[y] < 0:
        return []
    chain, at = [], y
    while at != x:
        source = int(before[at])
        chain.append((source, at, base.through == "power" and source != x))
        at = source
    return chain[::-1]
