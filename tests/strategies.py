"""Random systems for property tests: small, and full of what is odd.

A system is made in the oracle's own terms, then turned into a Graph in two forms: every MAP edge
by itself, or the certain ones of resources as runs.
"""

from random import Random

import numpy as np
from hypothesis import strategies as st

from oracle_queries import POTENTIAL, PRIVATE, SERVER, Link, System
from osmosis.graph.graph import Edge, Edges, Graph, Kind, Runs, no_runs
from osmosis.graph.names import Block, Names
from osmosis.graph.pds import PDTable
from osmosis.graph.relation import Finding, Relation

RESOURCE_TYPES = ("VMR", "MO", "FILE")
SPACE_TYPES = ("VMR", "MO", "NET")
VERBS = ("kill", "trace-attach", "limit", "rewrite", "daemon", "join:user", "cgroup-freeze", "hold")
# (certain, possible): what a certain edge, a doubtful one and a half-known one allow.
CERTAIN = ((15, 15), (14, 14), (12, 12), (10, 10), (9, 9), (8, 8))
DOUBTFUL = ((8, 15), (12, 14), (8, 10), (0, 15), (0, 8), (0, 12))


@st.composite
def systems(draw, *, max_pds=6, odd=True):
    """One random system; *odd* ones have doubts, potential edges, and what was not seen.

    Its edges come from a seed: drawn one by one they are too few and too alike to be of use.
    """
    n = draw(st.integers(1, max_pds))
    n_resources = draw(st.integers(0, 5))
    n_spaces = draw(st.integers(0, 4))
    few = draw(st.sampled_from([0.3, 1, 1, 1.5]))  # edges per node, about
    rng = Random(draw(st.integers(0, 2**32)))
    kinds = ["PD"] * n + ["RESOURCE"] * n_resources + ["SPACE"] * n_spaces
    types = [None] * n
    types += [rng.choice(RESOURCE_TYPES) for _ in range(n_resources)]
    types += [rng.choice(SPACE_TYPES) for _ in range(n_spaces)]
    names = [f"PD_{i}" for i in range(n)]
    names += [f"{t}_1_{i}" for i, t in enumerate(types[n : n + n_resources])]
    names += [f"{t}_SPACE_{i}" for i, t in enumerate(types[n + n_resources :])]
    pds = range(n)
    resources = range(n, n + n_resources)
    spaces = range(n + n_resources, len(kinds))

    def pairs(src, dst, most):
        if src and dst:
            for _ in range(rng.randint(0, round(most * few))):
                yield rng.choice(src), rng.choice(dst)

    def mask():
        return rng.choice(CERTAIN + DOUBTFUL if odd and rng.random() < 0.5 else CERTAIN)

    def flag(*some):
        return rng.choice(some) if rng.random() < 0.4 else 0

    potential = POTENTIAL if odd else 0
    links = []
    for a, b in pairs(pds, resources, 2 * n):
        links.append(Link(a, b, "HOLD", *mask(), flag(PRIVATE, PRIVATE, potential)))
    for a, b in pairs(pds, spaces, n + 1):
        links.append(
            Link(a, b, "HOLD", *mask(), flag(PRIVATE, potential) | rng.choice([0, SERVER]))
        )
    for a, b in pairs(pds, pds, 2):
        if a != b:
            links.append(Link(a, b, "HOLD", *mask(), flag(PRIVATE, potential), "hold"))
    for group in (resources, spaces):
        for a, b in pairs(group, group, 4):
            links.append(Link(a, b, "MAP", *mask(), flag(0, potential)))
    for a, b in [*pairs(resources, spaces, 4), *pairs(spaces, spaces, 2)]:
        links.append(Link(a, b, "SUBSET"))
    asked = [*SPACE_TYPES, "EP", None, *(names[s] for s in spaces)]
    for a, b in pairs(pds, pds, n):
        there = rng.choice([(15, 15), (15, 15), (0, 15)]) if odd else (15, 15)
        if a != b:
            links.append(Link(a, b, "REQUEST", *there, flag(0, potential), rng.choice(asked)))
    rng.shuffle(links)
    pages = [rng.choice([1.0, 2.0, 7.0, 0.25, 0.0]) if t == "MO" else 1.0 for t in types]
    pages = [1.0 if kinds[i] != "RESOURCE" else w for i, w in enumerate(pages)]
    said = {}
    for verb in rng.sample(VERBS, rng.randint(0, 4)):
        yes = set(pairs(pds, pds, 3))
        possible = yes | (set(pairs(pds, pds, 2)) if odd else set())
        less = {pair for pair in yes if not odd or rng.random() < 0.7}
        said[verb, False] = (yes, possible)
        said[verb, True] = (less, less | (possible - yes))
    hidden = {}
    if odd and rng.random() < 0.4:
        for t in rng.sample((*RESOURCE_TYPES, "NET"), rng.randint(1, 2)):
            hidden[t] = [rng.choice([0, 0, 0, 8, 12, 15]) for _ in pds]
    return System(
        n, kinds, types, links, kernel=rng.choice([0, None]), control=said, unseen=hidden,
        pages=pages, names=names,
    )  # fmt: skip


class SaidControl:
    """Control in class form, as the system's pairs say it: a class for each PD."""

    def __init__(self, system):
        self.system = system
        self.verbs = tuple(sorted({verb for verb, _ in system.control}))

    def relation(self, verb, *, effective):
        n = self.system.n
        yes, maybe = np.zeros((2, n, n), bool)
        sure, possible = self.system.control.get((verb, effective), (set(), set()))
        for i, j in sure:
            yes[i, j] = True
        for i, j in possible:
            maybe[i, j] = True
        return Relation.from_classes(np.arange(n), yes, maybe)

    def finding(self, verb, i, j, *, effective):
        return Finding(self.relation(verb, effective=effective).state(i, j), f"{verb} was said")


def _runs(system, links):
    """*links*, each a certain MAP, as runs over sources in node order."""
    sources = sorted({e.src for e in links})
    at = {node: i for i, node in enumerate(sources)}
    runs = []
    for dst, perm in sorted({(e.dst, e.perm) for e in links}):
        mine = sorted({at[e.src] for e in links if (e.dst, e.perm) == (dst, perm)})
        for i in mine:
            if runs and runs[-1][2:] == [dst, perm] and runs[-1][1] == i - 1:
                runs[-1][1] = i
            else:
                runs.append([i, i, dst, perm])
    first, last, dst, perm = np.array(runs, np.int64).reshape(len(runs), 4).T
    return Runs(
        np.array(sources, np.int32),
        first.astype(np.int32),
        last.astype(np.int32),
        dst.astype(np.int32),
        perm.astype(np.uint8),
        np.full(len(runs), -1, np.int16),
    )


def graph_of(system, *, runs=False):
    """Return the Graph of *system*; with *runs*, certain MAPs of resources stand as runs."""
    links, run_links = list(system.links), []
    if runs:
        run_links = [
            e
            for e in links
            if e.kind == "MAP" and e.perm == e.maybe and not e.flags
            and system.kinds[e.src] == "RESOURCE"
        ]  # fmt: skip
        links = [e for e in links if e not in run_links]
    types = sorted({t for t in system.types if t is not None} | set(system.unseen))
    labels = sorted({e.label for e in system.links if e.label is not None})
    kinds = {"PD": Kind.PD, "RESOURCE": Kind.RESOURCE, "SPACE": Kind.SPACE}
    parts = [
        Edges.of(
            [e.src for e in links],
            [e.dst for e in links],
            [Edge[e.kind] for e in links],
            perm=[e.perm for e in links],
            maybe=[e.maybe for e in links],
            flags=[e.flags for e in links],
            label=[-1 if e.label is None else labels.index(e.label) for e in links],
        )
    ]
    return Graph(
        pds=PDTable(
            range(system.n),
            id=system.names[: system.n],
            comm=[f"pd{i}" for i in range(system.n)],
            role=[None if i % 3 == 0 else f"role{i % 3}" for i in range(system.n)],
        ),
        kind=np.array([kinds[k] for k in system.kinds], np.uint8),
        type=np.array([-1 if t is None else types.index(t) for t in system.types], np.int16),
        types=tuple(types),
        names=Names([Block("{}", (np.array(system.names, object),))]),
        pages=np.array(system.pages or [1.0] * len(system.kinds), np.float64),
        edges=Edges.concatenate(parts),
        runs=_runs(system, run_links) if run_links else no_runs(),
        labels=tuple(labels),
        rules=(),
        control=SaidControl(system),
        kernel=system.kernel,
        unseen={t: np.array(masks, np.uint8) for t, masks in system.unseen.items()},
    )


def system_of(graph, *, effective=True):
    """Return what the oracle needs to know of a Graph, edge by edge."""
    names = [graph.names[i] for i in range(len(graph.kind))]
    links = []
    e = graph.edges
    for k in range(len(e)):
        label = graph.labels[e.label[k]] if e.label[k] >= 0 else None
        ends = int(e.src[k]), int(e.dst[k])
        kind = ("HOLD", "MAP", "SUBSET", "REQUEST")[e.kind[k]]
        links.append(Link(*ends, kind, int(e.perm[k]), int(e.maybe[k]), int(e.flags[k]), label))
    r = graph.runs
    for k in range(len(r)):
        for i in range(r.first[k], r.last[k] + 1):
            mask = int(r.perm[k])
            links.append(Link(int(r.source[i]), int(r.dst[k]), "MAP", mask, mask))
    control = {}
    for verb in graph.control.verbs:
        for how in (True, False):
            relation = graph.control.relation(verb, effective=how)
            pairs = [(i, j) for i in range(graph.n_pds) for j in range(graph.n_pds)]
            yes = {p for p in pairs if relation.state(*p) is True}
            maybe = {p for p in pairs if relation.state(*p) is not False}
            control[verb, how] = (yes, maybe)
    return System(
        graph.n_pds,
        [("PD", "RESOURCE", "SPACE")[k] for k in graph.kind],
        [None if t < 0 else graph.types[t] for t in graph.type],
        links,
        kernel=graph.kernel,
        control=control,
        unseen={t: [int(m) for m in masks] for t, masks in graph.unseen.items()},
        pages=graph.pages.tolist(),
        names=names,
    )
