"""The joins over spans against sets of Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _fastproc import reach
from osmosis.graph.relation import pack, unpack


def i8(values):
    return np.array(values, np.int64)


def i4(values):
    return np.array(values, np.int32)


def columns(sets):
    """Sets as spans, by hand."""
    indptr, first, last = [0], [], []
    for one in sets:
        for k in sorted(one):
            if len(first) > indptr[-1] and last[-1] == k - 1:
                last[-1] = k
            else:
                first.append(k)
                last.append(k)
        indptr.append(len(first))
    return i8(indptr), i4(first), i4(last)


@st.composite
def systems(draw):
    n = draw(st.integers(1, 150))
    size = draw(st.integers(0, 12))
    places = st.integers(0, n - 1)
    # Dense, sparse and broken sets: each path of the joins.
    some = st.one_of(
        st.sets(places, max_size=4),
        st.sets(places, max_size=n),
        st.tuples(places, places).map(lambda p: set(range(min(p), max(p) + 1))),
        st.just(set(range(0, n, 2))),
    )
    a = draw(st.lists(some, min_size=size, max_size=size))
    b = draw(st.lists(some, min_size=size, max_size=size))
    return n, a, b, draw(st.permutations(range(n)))


@given(systems())
def test_meeting_bits(system):
    n, a, b, place = system
    bits = reach.meeting_bits(*columns(a), *columns(b), i4(place))
    want = {(place[i], place[j]) for x, y in zip(a, b, strict=True) for i in x for j in y}
    got = {(i, j) for i in range(n) for j in range(n) if int(bits[i, j >> 6]) >> (j & 63) & 1}
    assert got == want


@given(systems())
def test_a_join_is_the_same_row_by_row(system):
    n, a, b, place = system
    join = reach.Join(*columns(a), *columns(b), i4(place))
    want = {(place[i], place[j]) for x, y in zip(a, b, strict=True) for i in x for j in y}
    got = {(i, int(j)) for i in range(n) for j in np.flatnonzero(join.row(i))}
    assert got == want
    assert (join.bits() == reach.meeting_bits(*columns(a), *columns(b), i4(place))).all()


def test_a_join_refuses_what_does_not_fit():
    one = i8([0, 1]), i4([0]), i4([1])
    assert reach.Join(*one, *one, i4([1, 0])).row(0).tolist() == [True, True]
    with pytest.raises(ValueError, match="row 2 of 2"):
        reach.Join(*one, *one, i4([1, 0])).row(2)
    with pytest.raises(ValueError, match="permutation"):
        reach.Join(*one, *one, i4([1, 1]))
    with pytest.raises(ValueError, match="span"):
        reach.Join(*one, *one, i4([0]))
    with pytest.raises(ValueError, match="numbers of columns"):
        reach.Join(*one, i8([0]), i4([]), i4([]), i4([1, 0]))


@given(systems(), st.data())
def test_meeting_sums_and_row_sums(system, data):
    n, a, _, place = system
    weight = data.draw(st.lists(st.integers(0, 9), min_size=len(a), max_size=len(a)))
    want = np.zeros((n, n), np.int64)
    for one, pages in zip(a, weight, strict=True):
        for i in one:
            for j in one:
                want[place[i], place[j]] += pages
    at = np.argsort(place)  # place by row of want
    rows = data.draw(st.lists(st.integers(0, n - 1), unique=True))
    cols = data.draw(st.lists(st.integers(0, n - 1)))
    for r, c in ((range(n), range(n)), (rows, cols)):
        asked = *columns(a), i8(weight), i4(at[list(r)]), i4(at[list(c)]), n
        indptr, indices, values = reach.meeting_sums(*asked)
        got = np.zeros((len(r), len(c)), np.int64)
        for i in range(len(r)):
            row = slice(indptr[i], indptr[i + 1])
            assert (np.diff(indices[row]) > 0).all()
            got[i, indices[row]] = values[row]
        assert (got == want[np.ix_(r, c)]).all()
        assert (values != 0).all()
        size = want.diagonal()
        either = size[list(r)][:, None] + size[list(c)][None, :] - got
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(reach.meeting_ratios(*asked), got / either)
    some = data.draw(st.lists(st.integers(0, n - 1), max_size=3))
    rows = reach.row_sums(*columns(a), i8(weight), i4(some), n)
    for k, i in enumerate(some):
        assert (rows[k] == want[place[i]][place]).all()


@given(st.lists(st.integers(0, 9), max_size=30))
def test_grouped(ends):
    indptr, order = reach.grouped(i4(ends), 10)
    for k in range(10):
        assert order[indptr[k] : indptr[k + 1]].tolist() == [
            e for e, v in enumerate(ends) if v == k
        ]


def test_grouped_refuses_what_is_outside():
    for end in (-1, 3):
        with pytest.raises(ValueError, match="not within 0"):
            reach.grouped(i4([0, end]), 3)


@given(st.data())
def test_spans(data):
    holder = data.draw(st.lists(st.integers(0, 30), max_size=40))
    cut = st.integers(0, len(holder))
    slices = data.draw(st.lists(st.lists(st.tuples(cut, cut).map(sorted), max_size=5), max_size=6))
    indptr = np.cumsum([0, *map(len, slices)])
    flat = [one for some in slices for one in some]
    got = reach.spans(i8(indptr), i8([a for a, _ in flat]), i8([b for _, b in flat]), i4(holder))
    want = columns([{h for a, b in some for h in holder[a:b]} for some in slices])
    for x, y in zip(got, want, strict=True):
        assert x.tolist() == y.tolist()


@pytest.mark.parametrize(("first", "last"), [([3], [2]), ([-1], [2]), ([0], [9]), ([4, 1], [5, 2])])
def test_spans_outside_are_refused(first, last):
    with pytest.raises(ValueError, match="span"):
        reach.meeting_sums(i8([0, len(first)]), i4(first), i4(last), i8([1]), i4([]), i4([]), 6)
    with pytest.raises(ValueError, match="slice"):
        reach.spans(i8([0, 1]), i8([0]), i8([3]), i4([1, 2]))
    for sums in (reach.meeting_sums, reach.meeting_ratios):
        with pytest.raises(ValueError, match="comes twice"):
            sums(i8([0]), i4([]), i4([]), i8([]), i4([0, 0]), i4([]), 2)
        with pytest.raises(ValueError, match="place 2 of 2"):
            sums(i8([0]), i4([]), i4([]), i8([]), i4([]), i4([2]), 2)
        with pytest.raises(ValueError, match="weights"):
            sums(i8([0]), i4([]), i4([]), i8([1]), i4([]), i4([]), 2)


@given(st.integers(0, 5), st.integers(1, 150), st.integers(1, 140), st.data())
def test_bit_product(m, n, columns_of_b, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    a = rng.random((m, n)) < data.draw(st.sampled_from([0.02, 0.5, 1]))
    b = rng.random((n, columns_of_b)) < data.draw(st.sampled_from([0.01, 0.3, 1]))
    got = reach.bit_product(pack(a), pack(b))
    want = (a.astype(int) @ b.astype(int)) > 0
    assert (unpack(got, columns_of_b) == want).all()


def test_bit_product_refuses_what_does_not_fit():
    b = np.zeros((3, 1), np.uint64)
    with pytest.raises(ValueError, match="2 words"):
        reach.bit_product(np.zeros((1, 2), np.uint64), b)
    with pytest.raises(ValueError, match="bit from 3 on"):
        reach.bit_product(np.array([[8]], np.uint64), b)
