"""The quotient says what the full graph says: what is reached, by which permissions, over paths."""

import doctest
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from builders import graph
from hypothesis import given
from hypothesis import strategies as st
from test_queries_against_oracle import prop

import oracle_queries as oracle
from osmosis.errors import QueryError
from osmosis.graph.graph import PRIVATE
from osmosis.model import Model
from osmosis.query import quotient
from strategies import graph_of, systems


@pytest.fixture(params=[0, 4], ids=["all ranges", "few ranges"])
def direct(request):
    with mock.patch.object(quotient, "_DIRECT", request.param):
        yield


def walked(g, start, letter):
    """Vertices that a path of HOLD, MAP and IN from a PD comes to, by plain loops."""

    def passes(e):
        allowed = letter in e["perm"] if letter else True
        return e["certain"] and allowed and not e["potential"] and e["verb"] is None

    found, fresh = set(), [(start, False)]
    while fresh:
        vertex, ended = fresh.pop()
        for e in () if ended else g.es[g.incident(vertex, "out")]:
            if e["kind"] in ("HOLD", "MAP", "IN") and passes(e):
                state = e.target, bool(e["private"] and letter == "W")
                if state not in found:
                    found.add(state)
                    fresh.append(state)
    return {vertex for vertex, _ in found}


@pytest.mark.usefixtures("direct")
@prop
@given(systems(max_pds=8), st.booleans(), st.sampled_from(["", "R", "W"]))
def test_what_a_pd_reaches(system, runs, letter):
    model = Model(graph_of(system, runs=runs))
    g = model.graph
    for x in system.pds:
        if x == system.kernel:
            continue
        want = oracle.bfs(system, x, access=letter or "ANY", kinds=("RESOURCE", "SPACE")).yes

        vertices = [v for v in walked(g, x, letter) if g.vs[v]["kind"] != "RANGE"]
        members = [model.members(v).nodes.tolist() for v in vertices]

        assert sorted(n for some in members for n in some) == sorted(want)


@pytest.mark.usefixtures("direct")
@prop
@given(systems(max_pds=8), st.booleans(), st.sampled_from(["", "R", "W"]))
def test_who_shares_with_whom(system, runs, letter):
    model = Model(graph_of(system, runs=runs))
    g = model.graph
    reached = {}
    for x in system.pds:
        if x != system.kernel:
            found = walked(g, x, letter)
            reached[x] = {v for v in found if g.vs[v]["kind"] == "RESOURCE"}
    access = letter or "ANY"
    relation = model.sharing_matrix(access=access, own_access=access)
    for x, mine in reached.items():
        for y, its in reached.items():
            assert relation[x, y] == (x != y and bool(mine & its))


@pytest.mark.usefixtures("direct")
@prop
@given(systems(max_pds=8), st.booleans())
def test_every_path_is_one_of_the_full_graph(system, runs):
    """Each edge of the quotient, its ranges left out, is an edge to every member from a member."""
    model = Model(graph_of(system, runs=runs))
    g, full = model.graph, model.expand()
    links = {(e.source, e.target, e["kind"], e["perm"], e["flags"]) for e in full.es}
    below = {v.index: [v.index] for v in g.vs if v["kind"] != "RANGE"}
    order = [v.index for v in g.vs if v["kind"] == "RANGE"]
    for v in order:
        into = [e.source for e in g.es.select(_target=v)]
        below[v] = sorted({w for u in into for w in below.get(u, [])})
    for e in g.es:
        if e["kind"] == "IN":
            continue
        for source in below[e.source]:
            for target in model.members(e.target).nodes.tolist():
                sources = model.members(source).nodes.tolist()
                assert any((s, target, e["kind"], e["perm"], e["flags"]) in links for s in sources)
    stood_for = {
        (model._quotient.of[e.source], model._quotient.of[e.target], e["kind"], e["perm"])
        for e in full.es
        if e["verb"] is None
    }
    said = {
        (source, e.target, e["kind"], e["perm"])
        for e in g.es
        if e["kind"] != "IN" and e["verb"] is None
        for source in below[e.source]
    }
    assert said == stood_for


@prop
@given(systems(max_pds=8), st.booleans())
def test_components_are_those_of_the_full_graph(system, runs):
    model = Model(graph_of(system, runs=runs))
    of = model._quotient.of

    def parts(made, nodes):
        kept = made.subgraph_edges(
            [e.index for e in made.es if e["verb"] is None and e.source != system.kernel],
            delete_vertices=False,
        )
        number = kept.connected_components("weak").membership
        first = {}
        return [first.setdefault(number[v], k) for k, v in enumerate(nodes)]

    nodes = range(len(system.kinds))
    assert parts(model.graph, of.tolist()) == parts(model.expand(), nodes)


def farm(n, pages):
    """n PDs that hold one mapping each, and pages that all but one in a row map."""
    rng = np.random.default_rng(3)
    lines = [f"p{i} HOLD v{i}:VMR RW private" for i in range(n)]
    for k in range(pages):
        left = set(rng.choice(n, 3, replace=False).tolist())
        lines += [f"v{i} MAP m{k}:MO R" for i in range(n) if i not in left]
    return graph(*lines, pds=[f"p{i}" for i in range(n)])


def as_runs(g):
    """The same graph with MAP as runs."""
    import dataclasses

    from osmosis.graph.graph import Edge, Edges, Runs

    e = g.edges
    maps = e.kind == Edge.MAP
    source = np.unique(e.src[maps])
    at = np.searchsorted(source, e.src[maps])
    runs = []
    for dst in np.unique(e.dst[maps]):
        mine = np.sort(at[e.dst[maps] == dst])
        cut = np.flatnonzero(np.diff(mine) != 1)
        firsts = mine[np.concatenate([[0], cut + 1])]
        lasts = mine[np.concatenate([cut, [len(mine) - 1]])]
        runs += [(a, b, dst) for a, b in zip(firsts, lasts, strict=True)]
    first, last, dst = np.array(runs, np.int32).T.copy()
    perm = np.full(len(first), e.perm[maps][0], np.uint8)
    none = np.full(len(first), -1, np.int16)
    rest = Edges(*(getattr(e, c)[~maps] for c in Edges.__slots__))
    made = Runs(source.astype(np.int32), first, last, dst, perm, none)
    return dataclasses.replace(g, edges=rest, runs=made)


def test_pages_that_many_share_cost_an_edge_or_two_for_each_run():
    g = as_runs(farm(200, 60))
    model = Model(g)

    made = model.graph

    assert made.ecount() < 200 + 4 * len(g.runs) + 2 * 200 * 8
    assert made.ecount() < len(g.runs.expand()) / 4
    heaviest = max(made.vs.select(kind="RANGE"), key=lambda v: v["size"])
    assert len(model.members(heaviest.index)) == heaviest["size"] > 4
    for x in (0, 57, 199):
        names = {made.vs[v]["name"] for v in walked(made, x, "R")} & {f"m{k}" for k in range(60)}
        assert names == set(model.bfs(model.pds[x], types={"MO"}))


def test_alike_is_one_vertex_and_what_differs_is_not():
    model = Model(
        graph(
            "a HOLD v1:VMR RW", "a HOLD v2:VMR RW", "a HOLD v3:VMR R", "a HOLD v4:VMR RW private",
            "v1 MAP m1:MO RW", "v2 MAP m2:MO RW", "v2 MAP m3:MO RW", "b HOLD w:VMR R",
            "w MAP m3 R", "a HOLD f1:FILE R", "a HOLD f2:FILE R", "f1 SUBSET s1:MNT",
            "f2 SUBSET s2:MNT", "a HOLD b verb=kill", "v1 SUBSET s:SPACE", "v2 SUBSET s",
            pds=["a", "b"], pages={"m1": 3, "m2": 4, "m3": 9},
        )
    )  # fmt: skip
    g = model.graph
    together = {tuple(model.members(v.index).ids) for v in g.vs}

    assert g.vs[0]["name"], g.vs[1]["name"] == ("a", "b")
    assert {("v1", "v2"), ("v3",), ("v4",), ("m1", "m2"), ("m3",), ("f1",), ("f2",)} <= together
    one = g.vs.find(name="m1")
    assert (one["size"], one["pages"]) == (2, 7)
    hold = g.es[g.get_eid(0, g.vs.find(name="v4").index)]
    assert (hold["perm"], hold["private"], hold["flags"]) == ("RW", True, PRIVATE)
    with pytest.raises(QueryError, match="no vertex 99"):
        model.members(99)


def test_expand_of_some_has_what_they_reach():
    model = Model(
        graph(
            "a HOLD v:VMR RW", "v MAP m:MO R", "b HOLD w:VMR RW", "w MAP n:MO R", "w MAP m R",
            "a HOLD b verb=kill", "b HOLD a verb=kill", "c HOLD w R potential",
            pds=["k", "a", "b", "c"], kernel="k",
        )
    )  # fmt: skip
    whole, some = model.expand(), model.expand("id:a")

    assert set(whole.vs["name"]) == {"k", "a", "b", "c", "v", "w", "m", "n"}
    assert some.vs["name"] == ["k", "a", "b", "c", "v", "m"]
    assert {(e.source, e.target) for e in some.es if e["kind"] == "MAP"} == {(4, 5)}
    assert not [e for e in some.es if e["verb"] == "kill"]
    assert [e["verb"] for e in model.expand(["id:a", "id:b"]).es if e["verb"]] == ["kill"] * 2
    assert {v["name"] for v in model.expand("id:c").vs} >= {"w", "n", "m"}  # it could


def test_the_examples_of_the_docs(monkeypatch):
    here = Path(__file__).parents[2]
    monkeypatch.chdir(here / "tests" / "data")

    found = doctest.testfile(str(here / "docs" / "model.md"), module_relative=False)

    assert found.failed == 0 < found.attempted
