"""On random graphs: fast answers are the slow ones, inverses are inverses, forms are equal."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import product

import numpy as np
import pytest
from builders import graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osmosis.graph.graph import ALL, ANY, POTENTIAL, PRIVATE, Edge, Graph, Kind, Runs, W, no_runs
from osmosis.model import Model
from osmosis.query.options import DEFAULT_VERBS, POWER_VERBS, access_mask
from osmosis.query.walk import Index

PDS = ["k", "a", "b", "c", "d", "e"]
RESOURCES = ["v1:VMR", "v2:VMR", "v3:VMR", "f1:FILE", "f2:FILE", "m1:MO", "m2:MO"]
SPACES = ["s1:NET", "s2:NET", "s3:MNT"]
NODES = [*RESOURCES, *SPACES]
PERMS = ["", "R", "W", "RW", "RWX", "-", "- maybe=RW", "R maybe=W", "maybe!", "RW maybe!"]


def line(source, kind, target, *more):
    return st.tuples(source, st.just(kind), target, *more).map(lambda t: " ".join(t).strip())


def one_of(*names):
    return st.sampled_from([n for group in names for n in group])


perm = st.sampled_from(PERMS)
flag = st.sampled_from(["", "", "", "private", "potential"])
verb = st.sampled_from(["", "verb=kill", "verb=trace-attach", "verb=join:user", "verb=stop"])
sure = st.sampled_from(["", "", "maybe!"])
EDGE = st.one_of(
    line(one_of(PDS), "HOLD", one_of(RESOURCES), perm, flag),
    line(one_of(PDS), "HOLD", one_of(RESOURCES), perm, flag),
    line(one_of(PDS), "HOLD", one_of(SPACES), perm, st.sampled_from(["", "server"])),
    line(one_of(PDS), "HOLD", one_of(PDS[1:]), sure, verb),
    line(one_of(RESOURCES), "MAP", one_of(RESOURCES), perm),
    line(one_of(SPACES), "MAP", one_of(SPACES), perm),
    line(one_of(RESOURCES), "SUBSET", one_of(SPACES)),
    line(one_of(PDS), "REQUEST", one_of(PDS), sure, st.sampled_from(["", "for=NET", "for=s3"])),
)


@st.composite
def graphs(draw, blind=True):
    edges = [e for e in draw(st.lists(EDGE, max_size=24)) if e.split()[0] != e.split()[2]]
    unseen = {}
    if blind and draw(st.booleans()):
        letters = st.sampled_from(["", "R", "RW", "RWX"])
        unseen = draw(
            st.dictionaries(
                st.sampled_from(["FILE", "MO", "SOCKET", "NET"]),
                st.dictionaries(one_of(PDS[1:]), letters, max_size=2),
                max_size=2,
            )
        )
    kernel = draw(st.sampled_from(["k", None]))
    made = graph(*edges, pds=PDS, kernel=kernel, nodes=NODES, unseen=unseen)
    n_runs = draw(st.integers(0, 4))
    if n_runs:
        nodes = np.flatnonzero(made.kind == Kind.RESOURCE).astype(np.int32)
        source = np.array(draw(st.permutations(nodes[:4].tolist())), np.int32)
        first = np.array([draw(st.integers(0, 3)) for _ in range(n_runs)], np.int32)
        last = np.array([draw(st.integers(int(f), 3)) for f in first], np.int32)
        dst = np.array([draw(st.sampled_from(nodes.tolist())) for _ in range(n_runs)], np.int32)
        masks = np.array(
            [draw(st.sampled_from([ALL, ANY, ANY | 4, ANY | 6])) for _ in range(n_runs)], np.uint8
        )
        runs = Runs(source, first, last, dst, masks, np.zeros(n_runs, np.int16))
        made = dataclasses.replace(made, runs=runs)
    return made


RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


# -- the slow twin: one edge at a time, from the definition


class Slow:
    def __init__(self, g: Graph) -> None:
        self.g = g
        self.p = g.n_pds
        self.out: list[list[tuple[int, int, int, int, int]]] = [[] for _ in g.kind]
        for edges in (g.edges, g.runs.expand()):
            for e in range(len(edges)):
                src, dst, kind = int(edges.src[e]), int(edges.dst[e]), int(edges.kind[e])
                if src == g.kernel and kind == Edge.HOLD:
                    continue
                self.out[src].append(
                    (dst, kind, int(edges.perm[e]), int(edges.maybe[e]), int(edges.flags[e]))
                )
        if g.kernel is not None:
            for node in range(len(g.kind)):
                if node != g.kernel:
                    self.out[g.kernel].append((node, Edge.HOLD, ALL, ALL, 0))
        self.bfs = cache(self._bfs)

    def _bfs(self, start, kinds, need, possible, depth=None, potential=False):
        seen, expanded, frontier, d = set(), {start}, {start}, 0
        while frontier and (depth is None or d < depth):
            d += 1
            further = set()
            for node in frontier:
                for dst, kind, yes, may, flags in self.out[node]:
                    is_pd = dst < self.p
                    mask = may if possible else yes
                    wanted = need if kind in (Edge.HOLD, Edge.MAP) else ANY
                    if kind not in kinds or mask & wanted != wanted:
                        continue
                    if flags & POTENTIAL and not potential and not (kind == Edge.HOLD and is_pd):
                        continue
                    seen.add(dst)
                    if is_pd and (kind != Edge.REQUEST or dst == self.g.kernel):
                        continue
                    if kind == Edge.HOLD and flags & PRIVATE and need & W:
                        continue
                    further.add(dst)
            frontier = further - expanded
            expanded |= frontier
        return frozenset(seen - {start})

    def reached(self, x, need, possible, kind, types, potential=False):
        nodes = self.bfs(x, (Edge.HOLD, Edge.MAP), need, possible, None, potential)
        return {
            n
            for n in nodes
            if self.g.kind[n] == kind and (types is None or self.g.types[self.g.type[n]] in types)
        }

    def shared(self, x, own, access, possible, kind=Kind.RESOURCE, types=None, potential=False):
        k = self.g.kernel
        if x == k:
            return set()
        mine = self.reached(x, own, possible, kind, types, potential)
        out = set()
        for y in range(self.p):
            if y == x:
                continue
            if y == k:
                if mine:
                    out.add(y)
            elif mine & self.reached(y, access, possible, kind, types, potential):
                out.add(y)
        if possible:
            for name, masks in self.g.unseen.items():
                if types is not None and name not in types:
                    continue
                if (kind == Kind.SPACE) != (name == "NET"):
                    continue
                blind_x = int(masks[x]) & own == own
                for y in range(self.p):
                    if y == k:
                        if blind_x:
                            out.add(y)
                        continue
                    blind_y = int(masks[y]) & access == access
                    y_may = self.reached(y, access, True, kind, {name}, potential)
                    x_may = self.reached(x, own, True, kind, {name}, potential)
                    if (blind_x and (blind_y or y_may)) or (blind_y and x_may):
                        out.add(y)
        return out - {x}

    def controllers(self, x, verbs, possible):
        k = self.g.kernel
        if x == k:
            return set()
        out = {k} if k is not None else set()
        for verb in verbs:
            if verb in self.g.control.verbs:
                relation = self.g.control.relation(verb, effective=True)
                for y in range(self.p):
                    state = relation.state(y, x)
                    if state or (possible and state is None):
                        out.add(y)
        return out - {x}

    def step(self, x, possible, own, access, verbs, services, types):
        k = self.g.kernel
        if x == k:
            return set()
        out = self.shared(x, own, access, possible, types=types)
        out |= self.controllers(x, verbs, possible) if verbs else set()
        if services:
            out |= self.bfs(x, (Edge.REQUEST,), ANY, possible, 1)
        if k is not None:
            out.add(k)
        return out - {x}

    def tcb(self, x, possible, depth, through, *args):
        found = level = self.step(x, possible, *args)
        d = 1
        while depth is None or d < depth:
            d += 1
            new = set()
            for y in level:
                if through == "any":
                    new |= self.step(y, possible, *args)
                else:
                    new |= self.controllers(y, POWER_VERBS, possible)
            if new <= found:
                break
            found, level = found | new, new
        return found - {x}


def halves(answer):
    return set(answer.rows.tolist()), set(answer.unknown.rows.tolist())


def want(yes, may):
    return set(yes), set(may) - set(yes)


KINDS = [("HOLD",), ("MAP",), ("HOLD", "MAP"), ("REQUEST",), ("HOLD", "MAP", "SUBSET", "REQUEST")]


@RELAXED
@given(
    graphs(),
    st.sampled_from(KINDS),
    st.sampled_from(["ANY", "R", "W", "RW"]),
    st.sampled_from([None, 0, 1, 2, 3]),
)
def test_bfs_is_the_slow_one_and_backward_is_its_inverse(g, kinds, access, depth):
    model, slow = Model(g), Slow(g)
    walked, need = tuple(Edge[k] for k in kinds), access_mask(access)
    forward = {}
    for node in range(len(g.kind)):
        yes = slow.bfs(node, walked, need, False, depth)
        may = slow.bfs(node, walked, need, True, depth)
        forward[node] = want(yes, may | yes)
        got = model.bfs(f"id:{g.names[node]}", edges=kinds, access=access, depth=depth)
        assert (set(got.nodes.tolist()), set(got.unknown.nodes.tolist())) == forward[node]
    for node in range(len(g.kind)):
        got = model.bfs(
            f"id:{g.names[node]}", edges=kinds, access=access, depth=depth, direction="backward"
        )
        assert set(got.nodes.tolist()) == {s for s in forward if node in forward[s][0]}
        assert set(got.unknown.nodes.tolist()) == {s for s in forward if node in forward[s][1]}


@RELAXED
@given(
    graphs(),
    st.sampled_from(["ANY", "R", "W", "RW"]),
    st.sampled_from(["ANY", "W"]),
    st.sampled_from([None, ["FILE"], ["MO", "VMR"]]),
    st.booleans(),
)
def test_sharing_is_the_slow_one_by_row_and_by_matrix(g, access, own, types, potential):
    masks = access_mask(own), access_mask(access)
    slow = Slow(g)
    options = {"access": access, "own_access": own, "types": types}
    rows, whole = Model(g), Model(g).sharing_matrix(**options)
    for x in range(g.n_pds):
        yes, may = (slow.shared(x, *masks, p, types=types) for p in (False, True))
        assert halves(whole.row(x)) == want(yes, may)
        assert halves(rows.shared_resources(g.pds[x], **options)) == want(yes, may)
        far = [slow.shared(x, *masks, p, types=types, potential=True) for p in (False, True)]
        got = rows.shared_resources(g.pds[x], **options, potential=potential)
        assert halves(got) == (want(*far) if potential else want(yes, may))
        spaces = [slow.shared(x, ANY, ANY, p, Kind.SPACE) for p in (False, True)]
        assert halves(rows.shared_spaces(g.pds[x])) == want(*spaces)


@RELAXED
@given(
    graphs(),
    st.booleans(),
    st.sampled_from(["ANY", "W"]),
    st.sampled_from([None, ["FILE"], ["MO", "VMR"]]),
)
def test_a_pair_is_the_bit_of_the_matrix(g, after, access, types):
    model = Model(g)
    whole = (model if after else Model(g)).sharing_matrix(access=access, types=types)
    for x, y in product(range(g.n_pds), repeat=2):
        found = model.shares(model.pds[x], model.pds[y], access=access, types=types)
        assert found.state is whole.state(x, y)
        # The reason, which is worked out on its own, is of an answer of the same state.
        slow = model._shares(model.pds[x], model.pds[y], types, access)
        assert (found.state, found.reason) == (slow.state, slow.reason)
        assert found == slow
        assert hash(found) == hash(slow)
        assert found.caveats == ()


OPTIONS = st.fixed_dictionaries(
    {
        "access": st.sampled_from(["W", "R", "ANY"]),
        "own_access": st.sampled_from(["ANY", "W"]),
        "verbs": st.sampled_from([None, (), ("kill",), ("stop", "kill")]),
        "services": st.booleans(),
        "types": st.sampled_from([None, ("FILE",)]),
    }
)


@RELAXED
@given(graphs(), OPTIONS)
def test_tcb_is_the_slow_one_and_the_boundary_is_its_inverse(g, options):
    slow = Slow(g)
    verbs = DEFAULT_VERBS if options["verbs"] is None else options["verbs"]
    args = (
        access_mask(options["own_access"]),
        access_mask(options["access"]),
        verbs,
        options["services"],
        options["types"],
    )
    for depth, through in [(1, "any"), (2, "any"), (None, "any"), (2, "power"), (None, "power")]:
        asked = {**options, "depth": depth, "through": through}
        rows, whole = Model(g), Model(g).tcb_matrix(**asked)
        wanted = {
            x: want(*(slow.tcb(x, p, depth, through, *args) for p in (False, True)))
            for x in range(g.n_pds)
        }
        for x in range(g.n_pds):
            assert halves(rows.tcb(g.pds[x], **asked)) == wanted[x], (depth, through)
            assert halves(whole.row(x)) == wanted[x], (depth, through)
            inverse = tuple({y for y in wanted if x in wanted[y][side]} for side in (0, 1))
            assert halves(rows.impact_boundary(g.pds[x], **asked)) == inverse, (depth, through)
            assert halves(whole.T.row(x)) == inverse


@RELAXED
@given(graphs())
def test_runs_are_the_edges_that_they_stand_for(g):
    from osmosis.graph.graph import Edges

    flat = dataclasses.replace(
        g, edges=Edges.concatenate([g.edges, g.runs.expand()]), runs=no_runs()
    )
    a, b = Model(g), Model(flat)
    assert (a.shared_pages() != b.shared_pages()).nnz == 0
    np.testing.assert_array_equal(a.rsi_matrix("MO"), b.rsi_matrix("MO"))
    np.testing.assert_array_equal(a.fr_matrix(kernel=True), b.fr_matrix(kernel=True))
    assert a.tcb_matrix() == b.tcb_matrix()
    for x in range(g.n_pds):
        one, two = g.pds[x], flat.pds[x]
        for y in range(g.n_pds):
            first = a.common_resources(one, g.pds[y], access="R")
            second = b.common_resources(two, flat.pds[y], access="R")
            assert first.ids == second.ids
            assert first.unknown.ids == second.unknown.ids
    assert a.graph.ecount() == b.graph.ecount()


@RELAXED
@given(graphs(), st.lists(st.sampled_from(["x", "y", None]), min_size=6, max_size=6))
def test_a_group_has_what_its_members_have(g, names):
    base = Model(g)
    value = {pd.row: name for pd, name in zip(g.pds, names, strict=True)}
    model = base.group_by(lambda pd: value[pd.row])
    of = model._grouping.of
    n = len(model.pds)

    def folded(rows):
        yes = {(int(of[i]), int(of[j])) for i in rows for j in rows[i][0]}
        may = {(int(of[i]), int(of[j])) for i in rows for j in rows[i][1]}
        return [
            (
                {h for (x, h) in yes if x == v and h != v},
                {h for (x, h) in may - yes if x == v and h != v},
            )
            for v in range(n)
        ]

    asked = [{}, {"depth": None}, {"depth": 2, "through": "power", "services": True}]
    for options in asked:
        wanted = folded({x: halves(base.tcb(g.pds[x], **options)) for x in range(g.n_pds)})
        whole = model.tcb_matrix(**options)
        for x in range(n):
            pd = model.pds[x]
            assert halves(model.tcb(pd, **options)) == wanted[x]
            assert halves(whole.row(x)) == wanted[x]
            assert halves(model.impact_boundary(pd, **options)) == halves(whole.T.row(x))
    pages = model.shared_pages().toarray()
    for x, y in product(range(n), repeat=2):
        a, b = model.pds[x], model.pds[y]
        if g.kernel is None or x != of[g.kernel] != y:
            mine = model.common_resources(a, b, types="MO")
            assert pages[x, y] == len(mine)
        np.testing.assert_equal(model.rsi_matrix("FILE")[x, y], model.rsi(a, b, "FILE"))
        assert model.fr_matrix()[x, y] == model.fr(a, b)


@RELAXED
@given(graphs())
def test_every_member_has_a_witness_of_real_edges(g):
    model = Model(g)
    drawn = {(e.source_vertex["name"], e["kind"], e.target_vertex["name"]) for e in model.graph.es}
    for x in range(g.n_pds):
        members = model.tcb(g.pds[x])
        for y in range(g.n_pds):
            witness = model.explain(g.pds[x], g.pds[y])
            state = True if y in members.rows else None if y in members.unknown.rows else False
            assert witness.state is state
            for part, steps in witness.paths.items():
                if state and part == "shared":
                    assert {(s.source, s.kind, s.target) for s in steps} <= drawn
                    ends = [s.target for s in steps]
                    assert len(ends) > len(set(ends)) or len(steps) > 1
            assert str(witness)


@RELAXED
@given(graphs())
def test_the_figures_of_a_pair_are_those_of_the_matrix(g):
    model = Model(g)
    rsi, fr = model.rsi_matrix("MO"), model.fr_matrix(types="NET", kernel=True)
    for x, y in product(range(g.n_pds), repeat=2):
        a, b = g.pds[x], g.pds[y]
        np.testing.assert_equal(rsi[x, y], model.rsi(a, b, "MO"))
        assert fr[x, y] == model.fr(a, b, types="NET", kernel=True)


@pytest.mark.parametrize("access", ["ANY", "W"])
def test_a_model_without_edges_answers(access):
    model = Model(graph(pds=["a", "b"]))
    assert not model.tcb(1, access=access)
    assert model.tcb_matrix().nnz == 0


def test_only_doubts_that_count_are_walked_twice():
    doubt = "a HOLD f:FILE R maybe=RW potential"
    index = Index(graph(doubt, "b HOLD f R", "a REQUEST b maybe!", pds=["a", "b"]))

    assert not index.doubtful((Edge.HOLD, Edge.MAP))
    assert index.doubtful((Edge.HOLD, Edge.MAP), potential=True)
    assert index.doubtful((Edge.REQUEST,))
    observed = Index(graph("a HOLD f:FILE R maybe=RW", pds=["a"]))
    assert observed.doubtful((Edge.HOLD,))
