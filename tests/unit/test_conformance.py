"""What another tool may rely on at the face: types, frozen columns, sets where one is meant."""

import pickle

import numpy as np
import pytest
from builders import comms, model
from plain_snapshots import Plain

from osmosis.errors import (
    AccessDenied,
    FormatError,
    MalformedProc,
    ProcessError,
    ProcessGone,
    QueryError,
    SelectorError,
    SnapshotError,
)
from osmosis.formats.csv import read_csv

EDGES = (
    "a HOLD v1:VMR RW",
    "v1 MAP mo:MO RW",
    "b HOLD v2:VMR R",
    "v2 MAP mo R",
    "c HOLD v3:VMR RW private",
    "v3 MAP mo",
    "a HOLD b verb=kill",
    "c HOLD a maybe! verb=kill",
    "d HOLD n:NET server",
    "c HOLD n",
    "e HOLD file:FILE RW",
)


@pytest.fixture
def m():
    return model(*EDGES, pds=["a", "b", "c", "d", "e"], kernel="k")


# -- columns and sets


@pytest.mark.parametrize("name", ["pid", "start_time", "uid", "comm", "key"])
def test_columns_of_the_pds_are_frozen(m, name):
    column = getattr(m.pds, name)
    with pytest.raises(ValueError, match="read-only"):
        column[0] = column[1]


def test_the_table_does_not_freeze_what_it_was_given():
    pids = np.arange(1, 3, dtype=np.int32)
    model(pds=["a", "b"], columns={"uid": (uids := np.zeros(2, np.int64))})
    pids[0] = uids[0] = 7
    assert pids[0] == uids[0] == 7


def test_rows_and_pids_of_an_answer_are_frozen_int32(m):
    answer = m.tcb("comm:b")
    assert answer.rows.dtype == answer.pids.dtype == np.int32
    for column in (answer.rows, answer.pids):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 1


@pytest.mark.parametrize("absent", [4711, np.int64(4711), np.uint8(200), -1])
def test_a_pid_that_the_model_does_not_have_is_no_member(m, absent):
    assert absent not in m.tcb("comm:b")
    assert absent not in m.tcb("comm:b").unknown


def test_a_pd_that_the_model_does_not_have_is_no_member(m):
    other = model(pds=["x", "y", "z"]).pd("comm:z")
    assert other not in m.tcb("comm:b")


@pytest.mark.parametrize("slip", ["comm:nobody", "b", None, 1.0, True, {1}])
def test_a_slip_is_not_read_as_no_member(m, slip):
    with pytest.raises(SelectorError):
        slip in m.tcb("comm:b")  # noqa: B015  # it raises


def test_sets_are_ordered_by_their_members(m):
    one, two = m.tcb("comm:e"), m.tcb("comm:b")
    assert one < two
    assert two > one
    assert one <= two <= two
    assert not two < two  # a proper subset
    assert not two <= one


def test_bytes_are_not_a_list_of_pids(m):
    with pytest.raises(SelectorError):
        m.tcb(b"\x01\x02")


# -- selectors


def test_an_unknown_selector_lists_what_there_is(m):
    with pytest.raises(SelectorError) as caught:
        m.pd("comm:quite-another-name")
    assert caught.value.candidates[:2] == ("comm:k", "comm:a")
    with pytest.raises(SelectorError) as caught:
        m.pd("pid:4711")
    assert caught.value.candidates == ("pid:5", "pid:4", "pid:3")
    with pytest.raises(LookupError):
        m.pd(4711)
    with pytest.raises(SelectorError) as caught:
        m.pd("user:nobody")  # the model knows no uid, and -1 is none
    assert caught.value.candidates == ()


def test_a_type_that_no_model_has_is_an_error(m):
    # Filesystems are spaces of type FILE: an empty answer to FILESYSTEM would be a false no.
    live = model("a HOLD f:FILE", pds=["a"])
    for name in ("FILESYSTEM", "ADDRESS_SPACE", "PHYSICAL_MEMORY"):
        with pytest.raises(QueryError, match="no type"):
            live.shared_spaces("comm:a", types=name)


def test_a_channel_that_is_asked_for_is_a_type_of_the_fault_radius():
    model_of = model(
        "a REQUEST s for=EP", "b REQUEST s for=EP", "a REQUEST t for=net", "b REQUEST t for=net",
        "t HOLD net:NET server", pds=["a", "b", "s", "t"],
    )  # fmt: skip
    assert model_of.fr("comm:a", "comm:b", types="EP") == 1
    assert model_of.fr_matrix(types={"EP"})[0, 1] == 1
    for name in ("net", "SUCH"):  # a space is no type, and there is no such
        with pytest.raises(QueryError, match="no type"):
            model_of.fr("comm:a", "comm:b", types=name)
    with pytest.raises(QueryError, match="no type"):
        model_of.rsi("comm:a", "comm:b", "EP")


# -- sets where one PD is usual


def test_may_of_sets_is_yes_if_one_may(m):
    assert m.may(["comm:a", "comm:d"], "kill", "comm:b").state is True
    assert m.may("comm:a", "kill", ["comm:b", "comm:d"]).state is True
    assert m.may(["comm:d", "comm:e"], "kill", "comm:b").state is False
    assert m.may(["comm:c", "comm:e"], "kill", "comm:a").state is None
    assert m.may([], "kill", "comm:a").state is False


def test_a_member_is_no_target_of_its_own_set(m):
    pair = ["comm:a", "comm:b"]
    assert m.may(pair, "kill", "comm:b").state is False
    assert comms(m.controls(pair)) == set()
    assert m.explain(pair, "comm:b").state is False


def test_what_an_undecided_member_may_is_undecided(m):
    maybe_c = m.controllers("comm:a", verbs="kill")  # the kernel, and c perhaps
    assert comms(maybe_c.unknown) == {"c"}
    assert m.may(maybe_c.unknown | m.tcb([]), "kill", "comm:b").state is False
    a = m.controllers("comm:b", verbs="kill") - m.tcb("comm:e")
    assert m.may(a, "kill", "comm:b").state is True


@pytest.mark.parametrize("verb", [{"kill"}, ["kill"], None, 9])
def test_may_wants_one_verb(m, verb):
    with pytest.raises(QueryError, match="one verb"):
        m.may("comm:a", verb, "comm:b")


def test_shares_of_sets_is_yes_if_two_members_do(m):
    assert m.shares(["comm:d", "comm:a"], "comm:b").state is True
    assert m.shares("comm:b", ["comm:d", "comm:a"], access="W").state is True
    assert m.shares("comm:a", ["comm:d", "comm:b"], access="W").state is False
    assert "kernel" in m.shares("comm:e", ["comm:k", "comm:a"]).reason
    assert m.shares("comm:a", "comm:a").state is False
    assert m.shares("comm:a", []).state is False


def test_shares_of_sets_agrees_with_the_row(m):
    for x in m.pds:
        row = m.shared_resources(x, access="R")
        for y in m.pds:
            assert m.shares(x, y, access="R").state is (y in row)
            assert m.shares(x, row, access="R").state is bool(row)


def test_explain_of_sets(m):
    assert m.explain("comm:b", ["comm:d", "comm:a"]).y == "a"
    assert m.explain("comm:b", ["comm:d", "comm:e"]).state is False
    with pytest.raises(QueryError, match="no PD"):
        m.explain("comm:b", [])


@pytest.mark.parametrize("through", ["any", "power"])
@pytest.mark.parametrize("depth", [1, 2, 3, None])
@pytest.mark.parametrize("services", [False, True])
def test_every_member_has_a_part(through, depth, services):
    chain = model(
        "b HOLD a verb=kill", "c HOLD b verb=trace-attach", "d HOLD c verb=kill",
        "e HOLD a verb=trace-attach", "f HOLD e verb=trace-attach", "b HOLD r:FILE RW",
        "g HOLD r R", "f REQUEST g", "h HOLD f maybe! verb=trace-attach",
        pds=list("abcdefgh"), kernel="k",
    )  # fmt: skip
    for ask in (chain.tcb, chain.impact_boundary):
        for x in chain.pds:
            answer = ask(x, depth=depth, through=through, services=services)
            parts = answer.parts
            told = parts["shared"] | parts["control"]
            told = told | parts["service"] if services else told
            assert comms(told) == comms(answer)
            assert comms(told.unknown) == comms(answer.unknown)
            for y in [*answer, *answer.unknown]:
                assert answer.why(y).parts


# -- relations


def test_a_relation_is_indexed_by_rows_and_by_pds(m):
    r = m.tcb_matrix()
    a, b = m.pd("comm:a"), m.pd("comm:b")
    assert r[b, a] is r[b.row, np.int32(a.row)] is True
    assert r[a, b] is False
    assert r.row(b) == r.row(b.row) == m.tcb(b)
    for bad in (1.5, "1", None):
        with pytest.raises(TypeError):
            r[bad, 0]
    for bad in (-1, len(m.pds)):
        with pytest.raises(IndexError):
            r[bad, 0]


@pytest.mark.parametrize("nodes", [[], ["f:FILE"]])
def test_a_model_without_pds_answers_nothing(nodes):
    empty = model(pds=[], nodes=nodes)
    for matrix in (empty.tcb_matrix(), empty.sharing_matrix(), empty.control_matrix("kill")):
        assert matrix.toarray().shape == (0, 0)
    assert empty.shared_pages().shape == empty.fr_matrix().shape == (0, 0)
    assert empty.kernel is None
    assert not empty.find(1)


# -- errors


@pytest.mark.parametrize(
    "error",
    [
        SelectorError("comm:x", "no such PD", ("comm:y",)),
        FormatError("f.csv", 3, "no node"),
        SnapshotError("process_pid", "is not rising"),
        QueryError("no type"),
        ProcessError(5, "odd"),
        ProcessGone(5),
        AccessDenied(6),
        MalformedProc("/proc/1/stat", b"?"),
    ],
)
def test_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


# -- the record


@pytest.mark.parametrize(
    "values", [[-1], [1.5], ["root"], [None], np.array([2**40]), np.array([-1]), 5]
)
def test_replace_never_changes_a_value_to_fit(values):
    snap = Plain(1).snapshot()
    with pytest.raises(SnapshotError, match="process_ruid"):
        snap.replace(process_ruid=values)


def test_replace_takes_any_type_that_holds_the_values():
    for dtype in (np.uint8, np.int64, np.float64):
        snap = Plain(2).snapshot().replace(process_ruid=np.array([1, 2], dtype))
        assert snap["process_ruid"].dtype == np.uint32
        assert snap["process_ruid"].tolist() == [1, 2]


def test_coverage_says_how_complete_it_is():
    assert repr(Plain(1).snapshot().coverage).startswith("<Coverage of ")


# -- the paper's tool's CSV

CSV = """NODE_TYPE,NODE_ID,DATA,EDGE_TYPE,EDGE_FROM,EDGE_TO,EXTRA
PD,PD_1,a,,,,
PD,PD_2,b,,,,
"""


@pytest.mark.parametrize("kernel", [2, "", b"PD_2"])
def test_a_kernel_that_is_no_pd_of_the_file_is_an_error(tmp_path, kernel):
    path = tmp_path / "x.csv"
    path.write_text(CSV)
    with pytest.raises(SelectorError):
        read_csv(path, kernel=kernel)
    assert read_csv(path).kernel is None
    assert read_csv(path, kernel="b").kernel.id == read_csv(path, kernel="PD_2").kernel.id
