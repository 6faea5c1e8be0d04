"""Why a PD is in another's TCB: the path of edges, each with its permission, rule and source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import QueryError
from osmosis.graph.graph import ANY, POTENTIAL, PRIVATE, Edge, R, W, X
from osmosis.graph.pds import escape
from osmosis.graph.relation import unpack
from osmosis.graph.sets import Answer
from osmosis.query.engine import Engine
from osmosis.query.options import DEFAULT_VERBS, POWER_VERBS
from osmosis.query.sharing import Ask, reach
from osmosis.query.tcb import Base, asked, one_step, part_rows, powers, tcb_row
from osmosis.query.walk import Index, Way, walk

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
    index: Index, row: int, node: int, distance: I4, way: Way, last: bool
) -> tuple[int, int, int, int] | None:
    """Return an edge into *node* from one step nearer: (source, kind, mask, rule)."""
    d = int(distance[node])
    at = np.array([node], np.int32)
    for kind in (Edge.HOLD, Edge.MAP):
        edges = index.kinds[kind]
        for e in index.backward[kind].at(at)[0].tolist():
            mask = int(edges.maybe[e] if way.possible else edges.perm[e])
            ends = kind == Edge.HOLD and way.ends_private and edges.flags[e] & PRIVATE
            if (mask & way.need) != way.need or (ends and not last):
                continue
            if edges.flags[e] & POTENTIAL and not way.potential:
                continue
            source = int(edges.src[e])
            if index.is_pd[source] and source != row:
                continue  # met on the way as what x controls: no way to its resources
            if distance[source] == d - 1:
                return int(edges.src[e]), int(kind), mask, int(edges.rule[e])
    runs = index.runs.runs
    if len(runs):
        for k in index.runs.by_dst.at(at)[0].tolist():
            if (int(runs.perm[k]) & way.need) != way.need:
                continue
            sources = runs.source[runs.first[k] : runs.last[k] + 1]
            near = np.flatnonzero(distance[sources] == d - 1)
            if len(near):
                source = int(sources[near[0]])
                return source, int(Edge.MAP), int(runs.perm[k]), int(runs.rule[k])
    return None


def _path(engine: Engine, row: int, node: int, way: Way) -> tuple[Step, ...]:
    """Return the shortest path over HOLD and MAP from a PD to a node."""
    index, names = engine.index, engine.graph.names
    if row == engine.kernel:
        text = "the kernel holds everything with every permission"
        return (Step(names[row], names[node], "HOLD", "RWX", text, ""),)
    # Distances over edges that a path may go on from: a PRIVATE hold counts at the end only.
    steps: list[Step] = []
    distance = _onward(index, row, way)
    at, last = node, True
    if distance[at] < 0 or way.ends_private:
        whole = walk(index, np.array([row], np.int32), (Edge.HOLD, Edge.MAP), way)
        if distance[at] < 0 or whole[at] < distance[at]:
            distance = distance.copy()
            distance[at] = whole[at]
    while at != row:
        found = _edge_before(index, row, at, distance, way, last)
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
        at, last = source, False
    return tuple(reversed(steps))


def _onward(index: Index, row: int, way: Way) -> I4:
    """Distances from a PD to the nodes that a path may go on from."""
    start = np.array([row], np.int32)
    if not way.ends_private:
        return walk(index, start, (Edge.HOLD, Edge.MAP), way)
    hold = index.kinds[Edge.HOLD]
    ids = index.forward[Edge.HOLD].at(start)[0]
    barred = PRIVATE if way.potential else PRIVATE | POTENTIAL
    ids = ids[way.passes(hold, ids, Edge.HOLD) & ((hold.flags[ids] & barred) == 0)]
    first = np.unique(hold.dst[ids])
    first = first[~index.is_pd[first]]
    out = np.full(index.n_nodes, -1, np.int32)
    if len(first):
        on = walk(index, first, (Edge.MAP,), way)
        out = np.where(on >= 0, on + 1, -1).astype(np.int32)
    out[row] = 0
    return out


def _shared(engine: Engine, x: int, y: int, ask: Ask, certain: bool) -> tuple[Step, ...]:
    """Two paths to the one resource that is nearest to both."""
    index = engine.index

    def from_(row: int, need: int) -> I4:
        if row == engine.kernel:
            out = np.ones(index.n_nodes, np.int32)
            out[row] = 0
            return out
        way = Way(need, not certain, ask.potential)
        return walk(index, np.array([row], np.int32), (Edge.HOLD, Edge.MAP), way)

    mine, theirs = from_(x, ask.own), from_(y, ask.access)
    sure, may = reach(index, y if x == engine.kernel else x, ask.own, ask)
    both = (mine > 0) & (theirs > 0) & (sure if certain else may)
    nodes = np.flatnonzero(both)
    if not len(nodes):
        return ()
    node = int(nodes[np.argmin(mine[nodes] + theirs[nodes])])
    ways = [Way(need, not certain, ask.potential) for need in (ask.own, ask.access)]
    return _path(engine, x, node, ways[0]) + _path(engine, y, node, ways[1])


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
    for name, mask in engine.graph.unseen.items():
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
