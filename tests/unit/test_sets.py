"""PDSets, answers and selectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmosis.errors import QueryError, SelectorError
from osmosis.graph.pds import PDTable, escape
from osmosis.graph.sets import Answer, PDSet

TABLE = PDTable(np.arange(8), comm=[f"c{i % 6}" for i in range(8)], alias={99: 0})
SETS = st.lists(st.sampled_from([0, 1, 2]), min_size=8, max_size=8)  # no, unknown, yes


def make(states):
    at = np.array(states)
    return PDSet(TABLE, at == 2, at == 1)


def states(answer):
    out = np.zeros(8, int)
    out[answer.unknown.rows] = 1
    out[answer.rows] = 2
    return out.tolist()


@given(SETS, SETS)
def test_set_algebra_is_kleenes(a, b):
    x, y = make(a), make(b)
    assert states(x | y) == [max(p, q) for p, q in zip(a, b, strict=True)]
    assert states(x & y) == [min(p, q) for p, q in zip(a, b, strict=True)]
    assert states(x - y) == [min(p, 2 - q) for p, q in zip(a, b, strict=True)]
    want = [1 if 1 in (p, q) else 2 * (p != q) for p, q in zip(a, b, strict=True)]
    assert states(x ^ y) == want
    assert not set(x.rows.tolist()) & set(x.unknown.rows.tolist())


def test_parts_follow_the_algebra():
    a = PDSet(TABLE, [1, 2], parts={"shared": PDSet(TABLE, [1]), "control": PDSet(TABLE, [2])})
    b = PDSet(TABLE, [2, 3], parts={"control": PDSet(TABLE, [3], [2])})

    assert (a | b).parts["control"].rows.tolist() == [2, 3]
    assert (a & b).parts["control"].rows.tolist() == [2]
    assert (a - b).parts["shared"].rows.tolist() == [1]
    assert not (a - b).parts["control"]
    assert a.why(1).parts == ("shared",)
    with pytest.raises(QueryError, match="not in this answer"):
        a.why(5)


def test_sets_of_different_models_do_not_mix():
    other = PDSet(PDTable(np.arange(8)), [1])
    with pytest.raises(QueryError, match="different models"):
        make([2] * 8) | other
    with pytest.raises(QueryError, match="PDSet"):
        make([2] * 8) & {1}


def test_members_are_found_by_any_selector():
    answer = PDSet(TABLE, [2, 5])
    assert 5 in answer
    assert np.int64(5) in answer
    assert "comm:c2" in answer
    assert TABLE[2] in answer
    assert 3 not in answer
    assert [pd.pid for pd in answer] == answer.pids.tolist() == [2, 5]
    assert answer.pids.dtype == answer.rows.dtype == np.int32


def test_only_a_decided_answer_is_a_bool():
    assert Answer(True, "")
    assert not Answer(False, "")
    with pytest.raises(QueryError, match="undecided"):
        bool(Answer(None, "no way to read it"))


@pytest.mark.parametrize("selector", [12, "pid:12", "comm:nobody", "id:PD_12", "comm:c"])
def test_what_matches_nothing_is_an_error(selector):
    with pytest.raises(SelectorError, match="no such PD"):
        TABLE.row(selector)


def test_errors_list_candidates():
    with pytest.raises(SelectorError) as several:
        TABLE.row("comm:c1")
    assert several.value.candidates == ("pid:1 (c1)", "pid:7 (c1)")
    assert TABLE.rows_of("comm:c1") == [1, 7]
    with pytest.raises(SelectorError) as near:
        TABLE.row("comm:c22")
    assert "comm:c2" in near.value.candidates


@pytest.mark.parametrize("selector", [True, np.True_, 1.0, None, "c1", "nonsense:1", b"pid:1"])
def test_what_is_no_selector_is_refused(selector):
    with pytest.raises(SelectorError, match="no selector"):
        TABLE.row(selector)


def test_an_alias_stands_for_its_row():
    assert TABLE.row(99) == TABLE.row("pid:99") == 0


def test_a_pd_of_another_model_is_found_by_its_key():
    one = PDTable([5, 6], key=["x", "y"], id=["PD_5", "PD_6"])
    two = PDTable([6, 7], key=["y", "z"], id=["PD_6", "PD_7"])
    assert two.row(one[1]) == 0
    assert two[0] == one[1]
    with pytest.raises(SelectorError):
        two.row(one[0])


@given(st.text())
def test_escaped_text_is_printable(text):
    assert escape(text).isprintable()


def test_a_row_out_of_range_is_an_error():
    with pytest.raises(IndexError):
        TABLE[8]
    with pytest.raises(IndexError):
        TABLE[-1]
