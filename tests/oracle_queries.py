"""The slow twin of every query: plain loops over dicts and sets, from the definitions alone.

It shares no code with ``osmosis.query``. A question is asked twice, once of the edges that are
certain and once of those that are possible; what only the second finds is unknown. The permission
bits are written out again: R 4, W 2, X 1, and 8 for "there at all".
"""

from dataclasses import dataclass, field
from itertools import product
from math import inf, nan

PRIVATE, POTENTIAL, SERVER = 1, 2, 4
BITS = {"R": 4, "W": 2, "X": 1}
DEFAULT_VERBS = (
    "kill", "kill-group", "trace-attach", "mem-write", "end-namespace", "cgroup-kill",
    "limit", "terminal", "supervise", "daemon", "rewrite", "hold",
)  # fmt: skip
RESOURCE_TYPES = (
    "VMR", "MO", "FILE", "MOUNT", "PIPE", "SOCKET", "SHM", "MQUEUE", "DEVICE", "CPU",
)  # fmt: skip
POWERS = ("trace-attach", "rewrite", "join:user", "daemon")


@dataclass(frozen=True)
class Link:
    """One edge, with the names of things where the implementation has numbers."""

    src: int
    dst: int
    kind: str  # HOLD MAP SUBSET REQUEST
    perm: int = 15
    maybe: int = 15
    flags: int = 0
    label: str | None = None


@dataclass
class System:
    """One system: nodes 0 .. n-1 are PDs; ``kinds`` and ``types`` have one value per node."""

    n: int
    kinds: list[str]
    types: list[str | None]
    links: list[Link]
    kernel: int | None = None
    # (verb, effective) -> (pairs that may for certain, pairs that may)
    control: dict[tuple[str, bool], tuple[set, set]] = field(default_factory=dict)
    unseen: dict[str, list[int]] = field(default_factory=dict)
    pages: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.all_links = list(self.links)
        # A HOLD of a PD is control: it has no letter of R W X, unless a link says one.
        for (verb, effective), (yes, possible) in self.control.items():
            if verb in DEFAULT_VERBS and effective:
                for a, b in possible:
                    perm = 8 if (a, b) in yes else 0
                    self.all_links.append(Link(a, b, "HOLD", perm, 8))
        if self.kernel is not None:  # it holds everything with every permission
            for node in range(len(self.kinds)):
                if node != self.kernel:
                    flags = SERVER if self.kinds[node] == "SPACE" else 0
                    self.all_links.append(Link(self.kernel, node, "HOLD", flags=flags))

    @property
    def pds(self):
        return range(self.n)


@dataclass(frozen=True)
class Said:
    """An answer: what is certain, and what could not be decided."""

    yes: frozenset
    unknown: frozenset

    @classmethod
    def of(cls, yes, possible):
        return cls(frozenset(yes), frozenset(possible) - frozenset(yes))

    @property
    def possible(self):
        return self.yes | self.unknown


def needed(access):
    if access == "ANY":
        return 8
    return 8 | sum(BITS[letter] for letter in set(access))


# The paper's primitive.


def walk(system, start, *, edges, direction, access, depth, certain, potential=False):
    """Nodes on paths of 1 .. depth edges from (or to) *start*, itself left out.

    A path is remembered by its end and by what it may not do any more: forward, a HOLD into a PD
    ends it, and a private HOLD takes W from what follows; backward, both are asked of the HOLD
    that would come before what was walked already.
    """
    need = needed(access)
    usable = [
        e
        for e in system.all_links
        if e.kind in edges
        and (potential or not e.flags & POTENTIAL or _is_control(system, e))
        and (e.kind not in ("HOLD", "MAP") or (e.perm if certain else e.maybe) & need == need)
        and (e.kind in ("HOLD", "MAP") or (e.perm if certain else e.maybe) & 8)
    ]
    at = {}
    for e in usable:
        at.setdefault(e.src if direction == "forward" else e.dst, []).append(e)
    found = set()
    states, seen, steps = {(start, False, True)}, set(), 0
    while states and (depth is None or steps < depth):
        steps += 1
        following = set()
        for node, stopped, first in states:
            if stopped or (node == system.kernel and not first):  # paths end at the kernel
                continue
            for e in at.get(node, ()):
                ends = _is_control(system, e)
                keeps = e.kind == "HOLD" and e.flags & PRIVATE and need & 2
                if direction == "forward":
                    following.add((e.dst, bool(ends or keeps), False))
                elif first or not (ends or keeps):
                    following.add((e.src, False, False))
        following -= seen
        seen |= following
        found |= {node for node, _, _ in following}
        states = following
    return found - {start}


def _is_control(system, link):
    return link.kind == "HOLD" and system.kinds[link.dst] == "PD"


def bfs(
    system, start, *, edges=("HOLD", "MAP"), direction="forward", access="ANY", depth=None,
    kinds=("PD", "RESOURCE", "SPACE"), types=None, potential=False,
):  # fmt: skip
    def asked(certain):
        return {
            node
            for node in walk(
                system, start, edges=edges, direction=direction, access=access, depth=depth,
                certain=certain, potential=potential,
            )
            if system.kinds[node] in kinds
            and (types is None or system.types[node] in types)
        }  # fmt: skip

    return Said.of(asked(True), asked(False))


# What two PDs reach in common.


def _reached(system, x, kind, types, access, potential):
    return bfs(system, x, access=access, kinds=(kind,), types=types, potential=potential)


def _unseen(system, x, kind, types, access):
    """Types of which *x* may hold something that could not be read, with that access.

    A name that resources and spaces both have as a type speaks of resources.
    """
    need = needed(access)
    return {
        t
        for t, masks in system.unseen.items()
        if (kind == "RESOURCE") == (t in RESOURCE_TYPES)
        and (types is None or t in types)
        and x != system.kernel
        and masks[x] & need == need
    }


def _shared(system, x, y, kind, types, access, own_access, potential):
    """yes, unknown or no: do x (with own_access) and y (with access) reach one thing."""
    if x == y or x == system.kernel:
        return "no"
    mine = _reached(system, x, kind, types, own_access, potential)
    its = _reached(system, y, kind, types, access, potential)
    if mine.yes & its.yes:
        return "yes"
    if mine.possible & its.possible:
        return "unknown"
    my_types = {system.types[r] for r in mine.possible} | _unseen(
        system, x, kind, types, own_access
    )
    its_types = {system.types[r] for r in its.possible} | _unseen(system, y, kind, types, access)
    if (
        my_types & _unseen(system, y, kind, types, access)
        or its_types & _unseen(system, x, kind, types, own_access)
        or (y == system.kernel and _unseen(system, x, kind, types, own_access))
    ):
        return "unknown"
    return "no"


def _each(system, x, ask):
    said = {y: ask(x, y) for y in system.pds}
    yes = {y for y, s in said.items() if s == "yes"}
    return Said.of(yes, {y for y, s in said.items() if s != "no"})


def shared_resources(system, x, *, types=None, access="ANY", own_access="ANY", potential=False):
    return _each(
        system, x,
        lambda a, b: _shared(system, a, b, "RESOURCE", types, access, own_access, potential),
    )  # fmt: skip


def shared_spaces(system, x, *, types=None):
    return _each(system, x, lambda a, b: _shared(system, a, b, "SPACE", types, "ANY", "ANY", False))


def common(system, x, y, *, kind="RESOURCE", types=None, access="ANY"):
    """Nodes that both reach: x with ANY, y with *access*."""
    mine = _reached(system, x, kind, types, "ANY", False)
    its = _reached(system, y, kind, types, access, False)
    return Said.of(mine.yes & its.yes, mine.possible & its.possible)


# Control.


def may(system, x, verb, y, *, effective=True):
    if x == y or y == system.kernel:
        return "no"
    if x == system.kernel:
        return "yes"
    yes, possible = system.control.get((verb, effective), (set(), set()))
    return "yes" if (x, y) in yes else "unknown" if (x, y) in possible else "no"


def _any(states):
    states = set(states)
    return "yes" if "yes" in states else "unknown" if "unknown" in states else "no"


def controllers(system, x, *, verbs, effective=True):
    return _each(
        system, x, lambda a, b: _any(may(system, b, v, a, effective=effective) for v in verbs)
    )


def controls(system, x, *, verbs, effective=True):
    return _each(
        system, x, lambda a, b: _any(may(system, a, v, b, effective=effective) for v in verbs)
    )


# Services.


def services(system, x, *, depth=1):
    return bfs(system, x, edges=("REQUEST",), depth=depth, kinds=("PD",))


def common_ancestors(system, x, y):
    mine, its = services(system, x, depth=None), services(system, y, depth=None)
    return Said.of(mine.yes & its.yes, mine.possible & its.possible)


# TCB and IB.


def one_step(system, *, access, own_access, types, verbs, services_too, potential):
    """(x, y): y is in the TCB of x at depth 1, as (certain pairs, possible pairs)."""
    yes, possible = set(), set()
    for x in system.pds:
        if x == system.kernel:
            continue
        parts = [
            shared_resources(
                system, x, types=types, access=access, own_access=own_access, potential=potential
            ),
            controllers(system, x, verbs=verbs),
        ]
        if services_too:
            parts.append(services(system, x))
        if system.kernel is not None:
            parts.append(Said.of({system.kernel}, {system.kernel}))
        for part in parts:
            yes |= {(x, y) for y in part.yes}
            possible |= {(x, y) for y in part.possible}
    return yes, possible


def closure(first, onward, depth):
    """first, first . onward, first . onward . onward ...: *depth* terms, united."""
    if depth == 0:
        return set()
    total, last, terms = set(first), set(first), 1
    while depth is None or terms < depth:
        terms += 1
        last = {(x, z) for x, y in last for w, z in onward if y == w}
        if depth is None and last <= total:
            break
        if not last or (depth is not None and terms > 50):
            break
        total |= last
    return {(x, y) for x, y in total if x != y}


def tcb_pairs(
    system, *, verbs, access="W", own_access="ANY", types=None, services=False, potential=False,
    depth=1, through="any",
):  # fmt: skip
    """All pairs (x, y) with y in TCB(x), as (certain, possible)."""
    steps = one_step(
        system, access=access, own_access=own_access, types=types, verbs=verbs,
        services_too=services, potential=potential,
    )  # fmt: skip
    if through == "any":
        onward = steps
    else:
        onward = (set(), set())
        for x in system.pds:
            power = controllers(system, x, verbs=POWERS)
            onward[0].update((x, y) for y in power.yes)
            onward[1].update((x, y) for y in power.possible)
    return tuple(closure(s, o, depth) for s, o in zip(steps, onward, strict=True))


def tcb(system, x, **options):
    yes, possible = tcb_pairs(system, **options)
    return Said.of({b for a, b in yes if a == x}, {b for a, b in possible if a == x})


def impact_boundary(system, x, **options):
    yes, possible = tcb_pairs(system, **options)
    return Said.of({a for a, b in yes if b == x}, {a for a, b in possible if b == x})


def of_set(ask, members):
    """Q(S) = (union of Q(s)) without S."""
    said = [ask(x) for x in members]
    yes = frozenset().union(*(s.yes for s in said)) - set(members)
    return Said.of(yes, frozenset().union(*(s.possible for s in said)) - set(members))


# Numbers.


def rsi(system, x, y, type_):
    def weigh(nodes):
        return sum(system.pages[r] if system.types[r] == "MO" else 1.0 for r in nodes)

    a = bfs(system, x, kinds=("RESOURCE",), types=(type_,)).yes
    b = bfs(system, y, kinds=("RESOURCE",), types=(type_,)).yes
    either = weigh(a | b)
    return weigh(a & b) / either if either else nan


def shared_pages(system, x, y):
    """Pages of the memory objects that both reach; the kernel is nobody's neighbour."""
    if system.kernel in (x, y):
        return 0
    both = [bfs(system, z, kinds=("RESOURCE",), types=("MO",)).yes for z in (x, y)]
    return int(sum(system.pages[r] for r in both[0] & both[1]))


def fr(system, x, y, *, types=None, kernel=False):
    """Least depth of a PD, neither x nor y, that both come to over flattened REQUESTs."""
    asks = set()
    holds = [e for e in system.all_links if e.kind == "HOLD" and not e.flags & POTENTIAL]
    members = [e for e in system.all_links if e.kind == "SUBSET"]
    for e in system.links:
        if (
            e.kind == "REQUEST"
            and e.perm & 8
            and not e.flags & POTENTIAL
            and (types is None or _asked_type(system, e.label) in types)
        ):
            asks.add((e.src, e.dst))
    for h, m, s in product(holds, members, holds):
        if (
            h.src != system.kernel and h.perm & 8 and s.perm & 8 and m.perm & 8
            and system.kinds[h.dst] == "RESOURCE" and m.src == h.dst
            and s.dst == m.dst and s.flags & SERVER
            and (types is None or system.types[m.dst] in types)
        ):  # fmt: skip
            asks.add((h.src, s.src))

    def depths(start):
        at = {start: 0}
        queue = [start]
        for node in queue:
            for a, b in asks:
                if a != node or b in at or (b == system.kernel and not kernel):
                    continue
                if a == system.kernel and (a != start or not kernel):  # paths end there
                    continue
                at[b] = at[a] + 1
                queue.append(b)
        return at

    mine, its = depths(x), depths(y)
    return min(
        (min(mine[z], its[z]) for z in mine.keys() & its.keys() - {x, y}),
        default=inf,
    )


def _asked_type(system, label):
    """REQUEST names a type, or a space, which has one."""
    if label in system.names:
        return system.types[system.names.index(label)]
    return label


def layer(system, x, y, types):
    """separated, shared or unknown: by the spaces of the types that the two hold, observed."""
    if x == y or system.kernel in (x, y):
        return "shared"

    def held(z, bit):
        return {
            e.dst
            for e in system.links
            if e.kind == "HOLD" and e.src == z and not e.flags & POTENTIAL
            and system.kinds[e.dst] == "SPACE" and system.types[e.dst] in types
            and (e.maybe if bit else e.perm) & 8
        }  # fmt: skip

    every = {s for s, k in enumerate(system.kinds) if k == "SPACE" and system.types[s] in types}
    a, b = held(x, False), held(y, False)
    if a & b:
        return "shared"
    a_may, b_may = held(x, True), held(y, True)
    for may, z in ((a_may, x), (b_may, y)):
        if any(system.unseen[t][z] & 8 for t in types if t in system.unseen):
            may |= every | {"one that nobody saw"}
    if a and b and not a_may & b_may:
        return "separated"
    return "unknown"
