"""Every public query and matrix, on random systems, against the slow twin."""

import inspect
import math
import os
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import oracle_queries as oracle
from osmosis.errors import QueryError
from osmosis.formats.csv import read_csv, write_csv
from osmosis.graph.graph import ANY, REQUESTS
from osmosis.graph.sets import PDSet
from osmosis.model import Model
from osmosis.query import metrics
from strategies import RESOURCE_TYPES, SPACE_TYPES, VERBS, graph_of, system_of, systems

prop = settings(
    max_examples=int(os.environ.get("OSMOSIS_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

ACCESS = st.sampled_from(["ANY", "W", "W", "R", "X", "RW", "RWX"])
EDGES = st.just({"HOLD", "MAP"}) | st.sets(
    st.sampled_from(["HOLD", "MAP", "SUBSET", "REQUEST"]), min_size=1
)
KINDS = st.sets(st.sampled_from(["PD", "RESOURCE", "SPACE"]), min_size=1)
DEPTH = st.sampled_from([1, 1, 2, 3, None])
TYPES = st.none() | st.sets(st.sampled_from(RESOURCE_TYPES), min_size=1, max_size=2)
SPACES = st.none() | st.sets(st.sampled_from(SPACE_TYPES), min_size=1, max_size=2)
SOME_VERBS = st.none() | st.sets(st.sampled_from(VERBS), max_size=3)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "access": ACCESS,
        "own_access": ACCESS,
        "types": TYPES,
        "verbs": SOME_VERBS,
        "services": st.booleans(),
        "potential": st.booleans(),
        "depth": DEPTH,
        "through": st.sampled_from(["any", "power"]),
    },
)


@st.composite
def cases(draw, **how):
    """A system, and its model by edges or by runs."""
    system = draw(systems(**how))
    return system, Model(graph_of(system, runs=draw(st.booleans())))


def two_of(system):
    return permutations(system.pds, 2)


def pds(model, *rows):
    return model.pds[rows[0]] if len(rows) == 1 else tuple(model.pds[r] for r in rows)


def pds_of(model, rows):
    return [model.pds[row] for row in rows]


def said(answer):
    """(certain, unknown) of a PDSet or of Nodes, as sets of numbers."""
    if isinstance(answer, PDSet):
        return set(answer.rows.tolist()), set(answer.unknown.rows.tolist())
    return set(answer.nodes.tolist()), set(answer.unknown.nodes.tolist())


def wanted(want):
    return set(want.yes), set(want.unknown)


def as_pairs(relation):
    n = len(relation)
    states = {(i, j): relation.state(i, j) for i in range(n) for j in range(n)}
    return {p for p, s in states.items() if s}, {p for p, s in states.items() if s is None}


def verbs_of(verbs):
    return oracle.DEFAULT_VERBS if verbs is None else verbs


def oracle_options(options):
    return {**options, "verbs": verbs_of(options.get("verbs"))}


# One test for each question; the last test of the file holds the list.


@prop
@given(
    cases(),
    EDGES,
    ACCESS,
    st.sampled_from([None, None, 0, 1, 2, 3]),
    KINDS,
    TYPES | SPACES,
)
def test_bfs(case, edges, access, depth, kinds, types):
    system, model = case
    for x, direction in product(system.pds, ("forward", "backward")):
        options = {"edges": edges, "direction": direction, "access": access, "depth": depth}
        all_of_them = model.bfs(pds(model, x), **options)
        assert said(all_of_them) == wanted(oracle.bfs(system, x, **options))
        options |= {"kinds": kinds, "types": types}
        assert said(model.bfs(pds(model, x), **options)) == wanted(oracle.bfs(system, x, **options))


@prop
@given(cases(), EDGES, ACCESS)
def test_bfs_from_any_node(case, edges, access):
    system, model = case
    for x, direction in product(range(len(system.kinds)), ("forward", "backward")):
        options = {"edges": edges, "direction": direction, "access": access}
        got = model.bfs(f"id:{system.names[x]}", **options)
        assert said(got) == wanted(oracle.bfs(system, x, **options))


@prop
@given(cases(), TYPES, ACCESS, ACCESS, st.booleans())
def test_shared_resources(case, types, access, own, potential):
    system, model = case
    options = {"types": types, "access": access, "own_access": own, "potential": potential}
    for x in system.pds:
        got = model.shared_resources(pds(model, x), **options)

        assert said(got) == wanted(oracle.shared_resources(system, x, **options))


@prop
@given(cases(), TYPES, ACCESS, ACCESS)
def test_sharing_matrix(case, types, access, own):
    system, model = case
    for options in (
        {"types": types, "access": access, "own_access": own},
        {"access": "W"},
        {"own_access": "W", "access": "R"},
    ):
        yes, unknown = as_pairs(model.sharing_matrix(**options))

        for x in system.pds:
            want = oracle.shared_resources(system, x, **options)
            assert {j for i, j in yes if i == x} == want.yes
            assert {j for i, j in unknown if i == x} == want.unknown


@prop
@given(cases(), SPACES)
def test_shared_spaces(case, types):
    system, model = case
    for x in system.pds:
        got = model.shared_spaces(pds(model, x), types=types)

        assert said(got) == wanted(oracle.shared_spaces(system, x, types=types))


@prop
@given(cases(), TYPES, ACCESS)
def test_common_resources_and_shares(case, types, access):
    system, model = case
    for x, y in two_of(system):
        a, b = pds(model, x, y)

        got = model.common_resources(a, b, types=types, access=access)

        assert said(got) == wanted(oracle.common(system, x, y, types=types, access=access))
        sharing = oracle.shared_resources(system, x, types=types, access=access)
        state = True if y in sharing.yes else None if y in sharing.unknown else False
        assert model.shares(a, b, types=types, access=access).state is state


@prop
@given(cases(), SPACES)
def test_common_spaces(case, types):
    system, model = case
    for x, y in two_of(system):
        got = model.common_spaces(*pds(model, x, y), types=types)

        assert said(got) == wanted(oracle.common(system, x, y, kind="SPACE", types=types))


@prop
@given(cases(), SOME_VERBS, st.booleans())
def test_controllers_and_controls(case, verbs, effective):
    system, model = case
    options = {"verbs": verbs_of(verbs), "effective": effective}
    for x in system.pds:
        holders = model.controllers(pds(model, x), verbs=verbs, effective=effective)
        held = model.controls(pds(model, x), verbs=verbs, effective=effective)

        assert said(holders) == wanted(oracle.controllers(system, x, **options))
        assert said(held) == wanted(oracle.controls(system, x, **options))


@prop
@given(cases(), st.sampled_from(VERBS), st.booleans())
def test_may_and_control_matrix(case, verb, effective):
    system, model = case
    matrix = model.control_matrix(verb, effective=effective)

    for i in system.pds:
        for j in system.pds:
            want = oracle.may(system, i, verb, j, effective=effective)
            assert matrix.state(i, j) is {"yes": True, "no": False, "unknown": None}[want]
            if effective and i != j:
                assert model.may(pds(model, i), verb, pds(model, j)).word == want


@prop
@given(cases(), st.sampled_from([1, 2, None]))
def test_services(case, depth):
    system, model = case
    for x in system.pds:
        got = model.services(pds(model, x), depth=depth)

        assert said(got) == wanted(oracle.services(system, x, depth=depth))


@prop
@given(cases())
def test_common_ancestors(case):
    system, model = case
    for x, y in two_of(system):
        got = model.common_ancestors(*pds(model, x, y))

        assert said(got) == wanted(oracle.common_ancestors(system, x, y))


@prop
@given(cases(max_pds=5), OPTIONS)
def test_tcb_and_impact_boundary(case, options):
    system, model = case
    yes, possible = oracle.tcb_pairs(system, **oracle_options(options))
    for x in system.pds:
        tcb = {b for a, b in yes if a == x}, {b for a, b in possible - yes if a == x}
        affected = {a for a, b in yes if b == x}, {a for a, b in possible - yes if b == x}

        assert said(model.tcb(pds(model, x), **options)) == tcb
        assert said(model.impact_boundary(pds(model, x), **options)) == affected


@prop
@given(cases(max_pds=5), OPTIONS)
def test_tcb_matrix(case, options):
    system, model = case
    yes, possible = oracle.tcb_pairs(system, **oracle_options(options))

    matrix = model.tcb_matrix(**options)

    assert as_pairs(matrix) == (yes, possible - yes)
    assert matrix.counts(1).tolist() == [sum(a == x for a, _ in yes) for x in system.pds]
    assert matrix.counts(0).tolist() == [sum(b == x for _, b in yes) for x in system.pds]
    assert not matrix.toarray().diagonal().any()


@prop
@given(cases(max_pds=6), OPTIONS)
def test_the_impact_boundary_is_the_inverse_of_the_tcb(case, options):
    _, model = case
    tcbs = [model.tcb(pd, **options) for pd in model.pds]
    boundaries = [model.impact_boundary(pd, **options) for pd in model.pds]

    for x, boundary in enumerate(boundaries):
        affected, undecided = said(boundary)
        assert affected == {y for y, tcb in enumerate(tcbs) if x in said(tcb)[0]}
        assert undecided == {y for y, tcb in enumerate(tcbs) if x in said(tcb)[1]}


@prop
@given(cases(max_pds=5), OPTIONS, st.data())
def test_of_a_set(case, options, data):
    system, model = case
    rows = data.draw(st.sets(st.sampled_from(list(system.pds)), min_size=1))
    several = PDSet(model.pds, sorted(rows))
    want = oracle_options(options)

    assert said(model.tcb(several, **options)) == wanted(
        oracle.of_set(lambda x: oracle.tcb(system, x, **want), rows)
    )
    assert said(model.impact_boundary(several, **options)) == wanted(
        oracle.of_set(lambda x: oracle.impact_boundary(system, x, **want), rows)
    )
    assert said(model.shared_resources(several)) == wanted(
        oracle.of_set(lambda x: oracle.shared_resources(system, x), rows)
    )
    assert said(model.controllers(several)) == wanted(
        oracle.of_set(lambda x: oracle.controllers(system, x, verbs=oracle.DEFAULT_VERBS), rows)
    )


@prop
@given(cases(max_pds=5), OPTIONS)
def test_the_parts_of_a_tcb(case, options):
    system, model = case
    options.pop("depth", None)
    verbs = verbs_of(options.get("verbs"))
    names = ("access", "own_access", "types", "potential")
    filters = {"access": "W", **{k: v for k, v in options.items() if k in names}}
    for x in system.pds:
        answer = model.tcb(pds(model, x), **options)

        assert said(answer.parts["shared"]) == wanted(oracle.shared_resources(system, x, **filters))
        if verbs:
            assert said(answer.parts["control"]) == wanted(
                oracle.controllers(system, x, verbs=verbs)
            )
        if options.get("services") and x != system.kernel:  # whose TCB is empty
            assert said(answer.parts["service"]) == wanted(oracle.services(system, x))
        for row in said(answer)[0]:
            assert answer.why(model.pds[row]).parts or row == system.kernel


def steps_hold(system, steps, x, y, *, certain):
    """Whether the steps are a path of x to a thing, then one of y to it, that y may write by."""
    mine, its, turned = [], [], False
    for step in steps:
        turned = turned or (bool(mine) and step.source == system.names[y])
        (its if turned else mine).append(step)
    for start, path, need in ((x, mine, 8), (y, its, 8 | 2)):
        at = system.names[start]
        for i, step in enumerate(path):
            assert step.source == at
            at = step.target
            allows = [
                (e.perm if certain else e.maybe) & need == need
                and not (e.flags & oracle.PRIVATE and need & 2 and i + 1 < len(path))
                for e in system.all_links
                if (system.names[e.src], system.names[e.dst], e.kind)
                == (step.source, step.target, step.kind)
            ]
            assert any(allows)
    ends = {path[-1].target for path in (mine, its) if path}
    assert len(ends) == 1
    assert its or y == system.kernel


@prop
@given(cases(max_pds=5))
def test_explain(case):
    system, model = case
    yes, possible = oracle.tcb_pairs(system, verbs=oracle.DEFAULT_VERBS)
    for x, y in two_of(system):
        witness = model.explain(*pds(model, x, y))

        assert witness.state is (True if (x, y) in yes else None if (x, y) in possible else False)
        shared = oracle.shared_resources(system, x, access="W")
        assert not (y in shared.yes and x != system.kernel) or "shared" in witness.paths
        if witness.paths.get("shared"):
            steps_hold(system, witness.paths["shared"], x, y, certain=y in shared.yes)
        for step in witness.paths.get("control", ()):
            assert (step.source, step.target) == (system.names[y], system.names[x])
            if y != system.kernel:
                assert (y, x) in system.control[step.kind, True][not step.certain]


@prop
@given(cases(), st.sampled_from(RESOURCE_TYPES))
def test_rsi(case, type_):
    system, model = case
    matrix = model.rsi_matrix(type_)
    for x, y in two_of(system):
        want = pytest.approx(oracle.rsi(system, x, y, type_), nan_ok=True)

        assert model.rsi(*pds(model, x, y), type_) == want
        assert matrix[x, y] == want


@prop
@given(cases(), st.data(), st.sampled_from([0, 64]))
def test_shared_pages(case, data, few):
    """Whole, and of some rows and columns, in any order and more than once, by either way."""
    system, model = case
    some = st.lists(st.sampled_from(list(system.pds)), max_size=4)
    rows, cols = data.draw(some), data.draw(some)
    want = np.array([[oracle.shared_pages(system, x, y) for y in system.pds] for x in system.pds])

    with mock.patch.object(metrics, "_FEW", few):  # rows that are summed one by one
        assert (model.shared_pages().toarray() == want).all()
        part = model.shared_pages(pds_of(model, rows), pds_of(model, cols)).toarray()
        ratios = model.rsi_matrix("MO", pds_of(model, rows), pds_of(model, cols))

    assert (part == want[np.ix_(rows, cols)]).all()
    np.testing.assert_array_equal(ratios, model.rsi_matrix("MO")[np.ix_(rows, cols)])


@prop
@given(cases(), SPACES, st.booleans())
def test_fr(case, types, kernel):
    system, model = case
    matrix = model.fr_matrix(types=types, kernel=kernel)
    for x, y in two_of(system):
        want = oracle.fr(system, x, y, types=types, kernel=kernel)

        assert model.fr(*pds(model, x, y), types=types, kernel=kernel) == want
        assert matrix[x, y] == want


@prop
@given(cases(max_pds=6), OPTIONS)
def test_group_by(case, options):
    system, model = case
    groups = model.group_by("role")
    of = {}  # row of a PD -> row of its group
    for pd in model.pds:
        alone = pd.role is None or pd.row == system.kernel
        of[pd.row] = groups.pd(pd).row if alone else groups.pd(f"role:{pd.role}").row
    assert len(groups.pds) == len(set(of.values()))
    yes, possible = oracle.tcb_pairs(system, **oracle_options(options))

    def lifted(pairs):
        return {(of[a], of[b]) for a, b in pairs if of[a] != of[b]}

    assert as_pairs(groups.tcb_matrix(**options)) == (
        lifted(yes),
        lifted(possible) - lifted(yes),
    )
    for g in range(len(groups.pds)):
        certain, unknown = said(groups.tcb(groups.pds[g], **options))
        assert certain == {h for a, h in lifted(yes) if a == g}
        assert unknown == {h for a, h in lifted(possible) - lifted(yes) if a == g}


@prop
@given(cases(max_pds=5), OPTIONS)
def test_runs_say_what_their_edges_say(case, options):
    system, _ = case
    edges, runs = Model(graph_of(system)), Model(graph_of(system, runs=True))

    assert edges.sharing_matrix() == runs.sharing_matrix()
    for x in system.pds:
        assert said(edges.tcb(pds(edges, x), **options)) == said(runs.tcb(pds(runs, x), **options))
        assert said(edges.bfs(pds(edges, x))) == said(runs.bfs(pds(runs, x)))


@prop
@given(cases())
def test_the_kernel(case):
    system, model = case
    if system.kernel is None:
        assert model.kernel is None
        return
    assert model.kernel.row == 0
    assert said(model.tcb(model.kernel)) == (set(), set())
    assert said(model.impact_boundary(model.kernel)) == (set(system.pds) - {0}, set())
    for pd in model.pds:
        if pd.row:
            assert 0 in said(model.tcb(pd))[0]
        assert 0 not in said(model.impact_boundary(pd))[0] | said(model.impact_boundary(pd))[1]


@pytest.mark.parametrize("kind", ["certain", "odd"])
def test_what_was_written_reads_back_to_the_same_answers(tmp_path, kind):
    path = tmp_path / "model.csv"

    @prop
    @given(systems(odd=kind == "odd"), OPTIONS)
    def check(system, options):
        model = Model(graph_of(system, runs=True))
        write_csv(model, path)
        back = read_csv(path)
        again = system_of(back.data)

        assert [pd.id for pd in back.pds] == [pd.id for pd in model.pds]
        assert as_pairs(back.tcb_matrix(**options)) == as_pairs(model.tcb_matrix(**options))
        for x in system.pds:
            for direction in ("forward", "backward"):
                want = oracle.bfs(system, x, direction=direction)
                assert wanted(oracle.bfs(again, x, direction=direction)) == wanted(want)
            assert wanted(oracle.services(again, x)) == wanted(oracle.services(system, x))
            for y in system.pds:
                if x != y:
                    assert oracle.fr(again, x, y) == oracle.fr(system, x, y)
                    a, b = oracle.rsi(again, x, y, "MO"), oracle.rsi(system, x, y, "MO")
                    assert a == b or (math.isnan(a) and math.isnan(b))

    check()


# Nothing is left out.

ASKED = {
    "bfs", "shared_resources", "shared_spaces", "common_resources", "common_spaces", "controllers",
    "controls", "services", "common_ancestors", "tcb", "impact_boundary", "shares", "may", "rsi",
    "fr", "explain", "control_matrix", "sharing_matrix", "tcb_matrix", "rsi_matrix", "fr_matrix",
    "shared_pages", "group_by",
}  # fmt: skip
TESTED_ELSEWHERE = {"isolation", "isolation_matrix", "isolation_scores", "pages_shared"}
NOT_QUERIES = {"pd", "find", "expand", "members"}


def test_every_public_query_is_asked_here():
    public = {
        name
        for name, member in inspect.getmembers(Model, inspect.isfunction)
        if not name.startswith("_")
    }

    assert public - NOT_QUERIES - TESTED_ELSEWHERE == ASKED


def test_an_unknown_type_is_an_error():
    model = read_csv(Path(__file__).parents[1] / "data" / "db_and_app.csv")
    for ask in (model.tcb, model.shared_resources, model.bfs, model.shared_spaces):
        with pytest.raises(QueryError, match="NONSENSE"):
            ask("id:PD_10", types={"NONSENSE"})


def test_requests_that_were_not_seen_are_no_type_of_what_is_held():
    data = read_csv(Path(__file__).parents[1] / "data" / "db_and_app.csv").data
    hidden = np.zeros(data.n_pds, np.uint8)
    hidden[1] = ANY
    plain = Model(replace(data, unseen={}))
    model = Model(replace(data, unseen={REQUESTS: hidden}))

    x = model.pds[1]
    assert model.shared_resources(x).unknown == plain.shared_resources(x).unknown
    assert len(model.services(x).unknown) == data.n_pds - 1 - len(model.services(x))
    with pytest.raises(QueryError, match="no type 'REQUEST'"):
        model.shared_resources(x, types={"REQUEST"})


# The files of the paper's tool, where they are.

SHARED = Path(__file__).parents[3] / "shared" / "lintool"
FILES = (
    "lintool_docker-regular.csv",
    "upstream_GPIKV001.output",
    "upstream_qemu_vm_hello.output",
)


def sample(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not beside the repository")
    return read_csv(SHARED / name)


@pytest.mark.parametrize("name", FILES)
def test_the_samples_answer_as_the_oracle(name):
    model = sample(name)
    system = system_of(model.data)

    for x in system.pds:
        pd = pds(model, x)
        assert said(model.bfs(pd)) == wanted(oracle.bfs(system, x))
        for access in ("ANY", "R", "W"):
            got = model.tcb(pd, access=access, depth=None)
            verbs = oracle.DEFAULT_VERBS
            want = oracle.tcb(system, x, access=access, depth=None, verbs=verbs)
            assert said(got) == wanted(want)
        assert said(model.services(pd, depth=None)) == wanted(
            oracle.services(system, x, depth=None)
        )


def names(pdset):
    return {pd.id for pd in pdset}


def test_two_containers():
    model = sample(FILES[0])
    one, other = "id:PD_3718", "id:PD_3783"

    assert model.kernel.comm == "Host Linux"
    assert [pd.row for pd in model.find("comm:sleep")] == [1, 2]
    for a, b in ((one, other), (other, one)):
        tcb = model.tcb(a)
        assert names(tcb) == {"PD_1", b.removeprefix("id:")}
        assert names(tcb.parts["control"]) >= {b.removeprefix("id:")}  # a row HOLD says so
        assert b.removeprefix("id:") not in names(tcb.parts["shared"])
        assert names(model.tcb(a, verbs={"kill"})) == {"PD_1"}
        assert not tcb.unknown
        # Pages of one executable, for reading only.
        assert names(model.shared_resources(a, access="R")) == {"PD_1", b.removeprefix("id:")}
        assert 0 < model.rsi(a, b, "MO") < 1
        assert names(model.services(a)) == {"PD_1"}


def test_an_sel4_system():
    model = sample(FILES[1])

    assert model.kernel is None
    assert [pd.comm for pd in model.pds] == [
        "ROOT_TASK", "GPIKV001", "ramdisk_server", "fs_server", "hello_kvstore",
    ]  # fmt: skip
    kv = "comm:hello_kvstore"
    assert names(model.services(kv)) == {"PD_0", "PD_3"}
    assert names(model.services(kv, depth=None)) == {"PD_0", "PD_2", "PD_3"}
    assert "PD_0" in names(model.shared_resources(kv))
    # No HOLD says a letter: who writes is unknown, never invented.
    for pd in model.pds:
        assert not model.tcb(pd)
        assert names(model.tcb(pd).unknown) == names(model.shared_resources(pd))
    assert model.common_ancestors(kv, "comm:fs_server")
    assert math.isinf(model.fr("id:PD_0", kv, types={"FILE"}))
    assert "MO_4_4" in model.bfs("id:PD_0")


def test_a_virtual_machine():
    model = sample(FILES[2])

    assert model.kernel.comm == "Kernel"
    assert names(model.tcb("comm:hello")) == {"PD_1"}
    assert not model.tcb("comm:hello").unknown
    assert names(model.impact_boundary("id:PD_1")) == {"PD_2"}
    assert not model.impact_boundary("id:PD_2")


@pytest.mark.parametrize("name", FILES)
def test_the_samples_read_back(name, tmp_path):
    model = sample(name)
    write_csv(model, tmp_path / "again.csv")
    again = read_csv(tmp_path / "again.csv")

    assert [pd.id for pd in again.pds] == [pd.id for pd in model.pds]
    assert again.tcb_matrix(access="R", services=True, depth=None) == model.tcb_matrix(
        access="R", services=True, depth=None
    )
    assert list(again.data.names) == list(model.data.names)
    np.testing.assert_array_equal(again.data.pages, model.data.pages)
    for column in ("src", "dst", "kind", "perm", "maybe", "flags"):
        mine, theirs = getattr(again.data.edges, column), getattr(model.data.edges, column)
        np.testing.assert_array_equal(mine, theirs)
