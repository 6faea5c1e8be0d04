"""Layers between two PDs: what is not known separates nobody."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle_queries as oracle
from osmosis.errors import QueryError
from osmosis.formats.csv import read_csv
from osmosis.model import Model
from osmosis.query.isolation import LAYERS, PAPER_LAYERS, isolation, isolation_matrix
from strategies import graph_of, systems

HEADER = "NODE_TYPE,NODE_ID,DATA,EDGE_TYPE,EDGE_FROM,EDGE_TO,EXTRA\n"
SAMPLE = Path(__file__).parents[3] / "shared" / "lintool" / "lintool_docker-regular.csv"


@pytest.fixture
def containers(tmp_path):
    """A, B and C: A and B differ in mnt, share ipc; C holds nothing; net of B is two."""
    path = tmp_path / "in.csv"
    path.write_text(
        HEADER
        + "PD,PD_1,Kernel,,,,\nPD,PD_2,a,,,,\nPD,PD_3,b,,,,\nPD,PD_4,c,,,,\n"
        + "".join(
            f"RESOURCE_SPACE,{name},{name.split('_')[0]},,,,\n"
            for name in ("MNT_1", "MNT_2", "IPC_1", "NET_1", "NET_2")
        )
        + ",,,HOLD,PD_2,MNT_1,\n,,,HOLD,PD_3,MNT_2,\n"
        + ",,,HOLD,PD_2,IPC_1,\n,,,HOLD,PD_3,IPC_1,\n"
        + ",,,HOLD,PD_2,NET_1,\n,,,HOLD,PD_3,NET_1,\n,,,HOLD,PD_3,NET_2,\n"
    )
    return read_csv(path)


def states(graph, x, y):
    found = isolation(graph, np.atleast_1d(x), np.atleast_1d(y))
    return {layer: answer.state for layer, answer in found.items() if answer.state != "unknown"}


def test_by_the_spaces_that_they_hold(containers):
    assert states(containers.data, 1, 2) == {
        "mnt": "separated",
        "ipc": "shared",
        "net": "shared",
    }
    assert states(containers.data, 1, 3) == {}
    found = isolation(containers.data, np.array([1]), np.array([2]))
    assert found["mnt"].evidence == "MNT_1 | MNT_2"
    assert found.score == (1, 4, 7)
    assert str(found.score) == "1/7 (+4 unknown)"
    assert found.full_score.layers == len(found) == len(LAYERS)
    assert bool(found["mnt"])
    assert not found["ipc"]
    with pytest.raises(QueryError, match="undecided"):
        bool(found["uid"])


def test_nothing_separates_from_the_kernel_or_from_oneself(containers):
    assert set(states(containers.data, 0, 1).values()) == {"shared"}
    assert set(states(containers.data, 2, 2).values()) == {"shared"}
    assert len(states(containers.data, 0, 1)) == len(LAYERS)


def test_by_facts_of_the_graph(containers):
    facts = {"uid": {"value": np.array([-1, 0, 1000, 0]), "source": "status", "names": {0: "root"}}}
    graph = replace(containers.data, layers=facts)

    assert states(graph, 1, 2)["uid"] == "separated"
    assert states(graph, 1, 3)["uid"] == "shared"
    answer = isolation(graph, np.array([1]), np.array([2]))["uid"]
    assert (answer.evidence, answer.source) == ("root | 1000", "status")


def test_a_set_is_separated_only_if_every_pair_is(containers):
    values = np.array([-1, 1, 2, 3])
    facts = {"uid": {"value": values, "source": "s"}}
    graph = replace(containers.data, layers=facts)
    assert states(graph, [1], [2, 3])["uid"] == "separated"

    values[3] = -1
    assert "uid" not in states(graph, [1], [2, 3])
    values[3] = 1
    assert states(graph, [1], [2, 3])["uid"] == "shared"


def test_a_space_that_was_not_seen_is_not_another_one(containers):
    graph = replace(containers.data, unseen={"MNT": np.array([0, 15, 0, 0], np.uint8)})

    assert "mnt" not in states(graph, 1, 2)


def test_an_unknown_layer_is_an_error(containers):
    with pytest.raises(QueryError, match="mnt"):
        isolation_matrix(containers.data, "moat")


def test_what_a_csv_says_of_filters_and_users(tmp_path):
    path = tmp_path / "in.csv"

    def row(number, extra):
        return f'PD,PD_{number},x,,,,"{extra}"\n'.replace("'", '""')

    path.write_text(
        HEADER
        + row(1, "{'uid_host': 0, 'seccomp': 2, 'allowed_syscalls': ['read', 'write']}")
        + row(2, "{'uid_host': 5, 'seccomp': 2, 'allowed_syscalls': ['write', 'read']}")
        + row(3, "{'seccomp': 2}")
        + row(4, "{'uid_host': 5, 'seccomp': 0}")
    )
    graph = read_csv(path).data

    assert states(graph, 0, 1) == {"uid": "separated", "seccomp": "shared"}
    assert states(graph, 0, 2) == {}
    assert states(graph, 1, 3) == {"uid": "shared", "seccomp": "separated"}


@settings(deadline=None)
@given(systems(), st.data())
def test_the_matrix_is_every_pair(system, data):
    value = st.lists(st.integers(-1, 2), min_size=system.n, max_size=system.n)
    facts = {"uid": {"value": np.array(data.draw(value)), "source": "s"}}
    graph = replace(graph_of(system), layers=facts)
    for layer in ("uid", "net", "mnt"):
        matrix = isolation_matrix(graph, layer)
        for i in system.pds:
            for j in system.pds:
                if i != j:
                    state = isolation(graph, np.array([i]), np.array([j]))[layer].state
                    want = {"separated": True, "unknown": None, "shared": False}[state]
                    assert matrix.state(i, j) is want
                    assert matrix.state(j, i) is want


@settings(deadline=None)
@given(systems())
def test_the_matrices_are_what_the_definition_says(system):
    model = Model(graph_of(system))
    matrices = {name: model.isolation_matrix(name) for name in LAYERS}
    word = {True: "separated", None: "unknown", False: "shared"}
    for i in system.pds:
        for j in system.pds:
            for name in ("net", "mnt", "cgroup"):
                want = oracle.layer(system, i, j, LAYERS[name])
                assert word[matrices[name].state(i, j)] == want


@settings(deadline=None)
@given(systems(), st.booleans())
def test_the_scores_are_those_of_every_pair(system, grouped):
    model = Model(graph_of(system))
    model = model.group_by("role") if grouped else model
    some = [*model.pds][:3]
    whole = {paper: model.isolation_scores(paper=paper) for paper in (False, True)}
    part = model.isolation_scores(some, some[:1])
    for x in model.pds:
        for y in model.pds:
            if x.row == y.row:
                continue
            found = model.isolation(x, y)
            for paper, score in ((False, found.full_score), (True, found.score)):
                separated, unknown = whole[paper]
                assert (separated[x.row, y.row], unknown[x.row, y.row]) == score[:2]
    for mine, all_of_it in zip(part, whole[False], strict=True):
        assert (mine == all_of_it[: len(some), :1]).all()


@settings(deadline=None)
@given(systems(), st.data())
def test_groups_are_separated_if_every_pair_is(system, data):
    value = st.lists(st.integers(-1, 1), min_size=system.n, max_size=system.n)
    facts = {"uid": {"value": np.array(data.draw(value)), "source": "s"}}
    model = Model(replace(graph_of(system), layers=facts))
    groups = model.group_by("role")
    of = np.array([groups.pd(pd).row for pd in model.pds], np.int32)
    for layer in ("uid", "net"):
        matrix = isolation_matrix(model.data, layer, group=of, pds=groups.pds)
        for g in range(len(groups.pds)):
            for h in set(range(len(groups.pds))) - {g}:
                mine, theirs = np.flatnonzero(of == g), np.flatnonzero(of == h)
                state = isolation(model.data, mine, theirs)[layer].state
                assert matrix.state(g, h) is {"separated": True, "unknown": None}.get(state, False)


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample is not beside the repository")
def test_two_containers_of_the_sample():
    graph = read_csv(SAMPLE).data

    assert states(graph, 1, 2) == {
        "mnt": "separated",
        "ipc": "separated",
        "net": "separated",
        "cgroup": "separated",
        "mac": "shared",
        "uid": "shared",
        "seccomp": "shared",
    }
    score = isolation(graph, np.array([1]), np.array([2])).score
    assert score.separated == 4  # as the paper's tool says of two Docker containers
    assert set(PAPER_LAYERS) <= set(LAYERS)
