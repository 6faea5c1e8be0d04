"""A relation says the same in both forms, and its algebra is Kleene's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmosis.errors import QueryError
from osmosis.graph.bits import pack, transposed, unpack
from osmosis.graph.pds import PDTable
from osmosis.graph.relation import EdgeControl, NoControl, Relation


@st.composite
def pairs_of_relations(draw):
    n = draw(st.sampled_from([1, 3, 64, 65, 70]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    of = rng.integers(0, 4, n).astype(np.int32)
    table = PDTable(np.arange(n))

    def one():
        yes, may = rng.random((4, 4)) < 0.3, rng.random((4, 4)) < 0.3
        form = Relation.from_classes(of, yes, may, pds=table)
        off = ~np.eye(n, dtype=bool)
        sure = yes[np.ix_(of, of)] & off
        return form, sure, (may | yes)[np.ix_(of, of)] & off

    return one(), one()


def states(sure, may):
    return np.where(sure, 2, np.where(may, 1, 0))


def state_of(relation):
    n = len(relation)
    return states(unpack(relation.certain, n), unpack(relation.possible, n))


@settings(max_examples=40, deadline=None)
@given(pairs_of_relations())
def test_classes_and_bits_agree(pair):
    for form, sure, may in pair:
        n = len(form)
        bits = Relation.from_dense(sure, may, pds=form.pds)
        assert form == bits
        for relation in (form, bits):
            np.testing.assert_array_equal(relation.toarray(), sure)
            np.testing.assert_array_equal(relation.tocsr().toarray(), sure)
            np.testing.assert_array_equal(relation.counts(1), sure.sum(axis=1))
            np.testing.assert_array_equal(relation.counts(0), sure.sum(axis=0))
            np.testing.assert_array_equal(relation.T.toarray(), sure.T)
            np.testing.assert_array_equal(relation.unknown.toarray(), may & ~sure)
            assert relation.row(0).rows.tolist() == np.flatnonzero(sure[0]).tolist()
            assert (
                relation.row(0).unknown.rows.tolist() == np.flatnonzero((may & ~sure)[0]).tolist()
            )
            assert relation[n - 1, 0] is bool(sure[n - 1, 0])
            crowned = relation.with_row_and_column(n - 1, row=False, column=True)
            want = sure.copy()
            want[:, n - 1], want[n - 1] = True, False
            np.testing.assert_array_equal(crowned.toarray(), want)
        i, j = np.nonzero(sure)
        assert Relation.from_pairs(n, i, j, *np.nonzero(may)) == bits


@settings(max_examples=40, deadline=None)
@given(pairs_of_relations())
def test_algebra_is_kleenes(pair):
    (a, a_sure, a_may), (b, b_sure, b_may) = pair
    x, y = states(a_sure, a_may), states(b_sure, b_may)
    off = ~np.eye(len(a), dtype=bool)
    for p, q in [
        (a, b),
        (a, Relation.from_dense(b_sure, b_may)),
        (Relation.from_dense(a_sure, a_may), b),
    ]:
        np.testing.assert_array_equal(state_of(p | q), np.maximum(x, y))
        np.testing.assert_array_equal(state_of(p & q), np.minimum(x, y))
        np.testing.assert_array_equal(state_of(p - q), np.minimum(x, 2 - y) * off)


@settings(max_examples=30, deadline=None)
@given(pairs_of_relations(), st.integers(1, 4))
def test_folding_is_the_same_in_both_forms(pair, groups):
    form, sure, may = pair[0]
    n = len(form)
    group = (np.arange(n) * 7 % groups).astype(np.int32)
    table = PDTable(np.arange(groups))
    folded = form.folded(group, groups, table)
    assert folded == Relation.from_dense(sure, may).folded(group, groups, table)
    for g in range(groups):
        for h in range(groups):
            some = sure[np.ix_(group == g, group == h)].any()
            assert folded[g, h] == (bool(some) and g != h)


def test_class_counts_do_not_expand():
    n = 2_000_000  # expanded: 500 GB
    relation = Relation.from_classes(np.arange(n) % 3, np.eye(3, dtype=bool))

    assert relation.counts(1)[0] == -(-n // 3) - 1
    assert (relation | relation - relation).classes is not None
    assert relation[0, 3] is True
    assert relation[0, 0] is False


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="square"):
        Relation.from_classes([0], np.zeros((1, 2), bool))
    with pytest.raises(ValueError, match="do not fit"):
        Relation.from_classes([1], np.zeros((1, 1), bool))
    with pytest.raises(ValueError, match="must be"):
        Relation.from_bits(65, np.zeros((65, 1), np.uint64))
    with pytest.raises(QueryError, match="different models"):
        Relation.empty(2) | Relation.empty(3)
    with pytest.raises(QueryError, match="no PD table"):
        Relation.empty(2).row(0)
    with pytest.raises(QueryError, match="axis"):
        Relation.empty(2).counts(2)
    with pytest.raises(IndexError):
        Relation.empty(2)[2, 0]
    with pytest.raises(IndexError):
        Relation.empty(2)[-1, 0]


@pytest.mark.parametrize("n", [0, 1, 8, 63, 64, 65, 130])
def test_packing_is_reversible(n):
    dense = np.random.default_rng(n).random((3, n)) < 0.5
    np.testing.assert_array_equal(unpack(pack(dense), n), dense)


@pytest.mark.parametrize("n", [0, 1, 5, 63, 64, 65, 130, 700])
def test_a_transpose_of_bits_is_that_of_the_matrix(n):
    dense = np.random.default_rng(n).random((n, n)) < 0.4
    np.testing.assert_array_equal(transposed(pack(dense), n), pack(dense.T))


def test_edge_control_says_what_its_edges_say():
    control = EdgeControl(3, [0, 1], [1, 2], ["kill", "hold"], [True, False])

    assert control.verbs == ("hold", "kill")
    assert control.relation("kill", effective=True)[0, 1]
    assert control.relation("hold", effective=True).state(1, 2) is None
    assert control.finding("kill", 0, 1, effective=True).state is True
    assert control.finding("hold", 1, 2, effective=True).state is None
    assert control.finding("kill", 1, 2, effective=True).state is False
    assert NoControl(3).relation("kill", effective=True).nnz == 0
