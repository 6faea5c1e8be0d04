"""All pairs that meet in a set, from sets written as spans. Opens no file.

Column c is a set of places 0 .. n - 1, as disjoint spans, rising. A pair of spans is a
rectangle of the n x n table, and a rectangle is four entries of its difference array: thousands
of sets of thousands of members cost what their spans do. Tables are made in blocks of rows, so
that memory stays bounded.
"""
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memmove, memset

import numpy as np

cdef int64_t BLOCK_ENTRIES = 1 << 23  # of the difference array: 64 MiB

cdef struct Pair:
    int32_t first
    int32_t last


cdef int _by_first(const void* a, const void* b) noexcept nogil:
    cdef:
        int32_t x = (<const Pair*>a).first
        int32_t y = (<const Pair*>b).first
    return (x > y) - (x < y)


cdef int _check(const int64_t[::1] indptr, Py_ssize_t total) except -1:
    cdef Py_ssize_t c
    if indptr.shape[0] < 1 or indptr[0] != 0 or indptr[indptr.shape[0] - 1] != total:
        raise ValueError("indptr does not divide the rows")
    for c in range(indptr.shape[0] - 1):
        if indptr[c + 1] < indptr[c]:
            raise ValueError(f"indptr falls at {c}")
    return 0


cdef int _check_spans(
    const int64_t[::1] indptr, const int32_t[::1] first, const int32_t[::1] last, Py_ssize_t n
) except -1:
    cdef Py_ssize_t c, i
    if first.shape[0] != last.shape[0]:
        raise ValueError("first and last are of different lengths")
    _check(indptr, first.shape[0])
    for c in range(indptr.shape[0] - 1):
        for i in range(indptr[c], indptr[c + 1]):
            if not 0 <= first[i] <= last[i] < n or (i > indptr[c] and first[i] <= last[i - 1]):
                raise ValueError(f"span {i} is not within 0 .. {n - 1}, or not rising")
    return 0


def grouped(const int32_t[::1] ends not None, Py_ssize_t n):
    """Where each of 0 .. n - 1 stands in *ends*.

    Parameters
    ----------
    ends : (E,) int32
        Numbers 0 .. n - 1.
    n
        One more than the largest.

    Returns
    -------
    (indptr, order)
        (n + 1,) int32, (E,) int32: k stands at ``order[indptr[k]:indptr[k + 1]]``, ascending.
        O(E + n).
    """
    cdef Py_ssize_t e, total = ends.shape[0]
    if total >= 1 << 31:
        raise ValueError(f"{total} ends are too many for int32")
    starts, places = np.zeros(n + 1, np.int32), np.empty(total, np.int32)
    cdef:
        int32_t[::1] indptr = starts, order = places
        int32_t k
    for e in range(total):
        if not 0 <= ends[e] < n:
            raise ValueError(f"end {e} is {ends[e]}, not within 0 .. {n - 1}")
    with nogil:
        for e in range(total):
            indptr[ends[e] + 1] += 1
        for e in range(n):
            indptr[e + 1] += indptr[e]
        for e in range(total):
            k = ends[e]
            order[indptr[k]] = <int32_t>e
            indptr[k] += 1
        for e in range(n, 0, -1):  # each start has become the next one
            indptr[e] = indptr[e - 1]
        indptr[0] = 0
    return starts, places


def spans(
    const int64_t[::1] indptr not None,
    const int64_t[::1] low not None,
    const int64_t[::1] high not None,
    const int32_t[::1] holder not None,
):
    """Sets of holders as spans.

    Parameters
    ----------
    indptr : (C + 1,) int64
        Slices of set c: ``indptr[c]`` to ``indptr[c + 1]``.
    low, high : (R,) int64
        Slices ``holder[low:high]``; their union is the set.
    holder : (H,) int32
        Places; the answer is short where neighbours hold neighbouring places.

    Returns
    -------
    (indptr, first, last)
        (C + 1,) int64, (S,) int32, (S,) int32: disjoint spans, rising, not touching.
        O(slices + pieces * log) where a piece is a stretch of *holder* that goes on by 0 or 1.
    """
    cdef:
        Py_ssize_t n_sets = indptr.shape[0] - 1, n_holders = holder.shape[0], c, i
        int64_t k, m, room = 1024, out_room = 1024, at = 0, start
        Pair* pairs
        Pair* out
        void* grown
        bint sorted_, failed = False
    if low.shape[0] != high.shape[0]:
        raise ValueError("low and high are of different lengths")
    _check(indptr, low.shape[0])
    for i in range(low.shape[0]):
        if not 0 <= low[i] <= high[i] <= n_holders:
            raise ValueError(f"slice {i} is not within the {n_holders} holders")
    ends = np.empty(n_holders, np.int64)  # one past the piece that k is in
    out_indptr = np.zeros(n_sets + 1, np.int64)
    cdef:
        int64_t[::1] end = ends, indptr_ = out_indptr
    pairs = <Pair*>malloc(room * sizeof(Pair))
    out = <Pair*>malloc(out_room * sizeof(Pair))
    if pairs == NULL or out == NULL:
        free(pairs)
        free(out)
        raise MemoryError
    with nogil:
        for k in range(n_holders - 1, -1, -1):
            if k + 1 < n_holders and 0 <= <int64_t>holder[k + 1] - holder[k] <= 1:
                end[k] = end[k + 1]
            else:
                end[k] = k + 1
        for c in range(n_sets):
            m = 0
            sorted_ = True
            for i in range(indptr[c], indptr[c + 1]):
                k = low[i]
                while k < high[i]:
                    if m == room:
                        room *= 2
                        grown = realloc(pairs, room * sizeof(Pair))
                        if grown == NULL:
                            failed = True
                            break
                        pairs = <Pair*>grown
                    pairs[m].first = holder[k]
                    k = end[k] if end[k] < high[i] else high[i]
                    pairs[m].last = holder[k - 1]
                    if m and pairs[m].first < pairs[m - 1].first:
                        sorted_ = False
                    m += 1
                if failed:
                    break
            if failed:
                break
            if not sorted_:
                qsort(pairs, m, sizeof(Pair), _by_first)
            if at + m > out_room:
                out_room = 2 * (at + m)
                grown = realloc(out, out_room * sizeof(Pair))
                if grown == NULL:
                    failed = True
                    break
                out = <Pair*>grown
            start = at
            for k in range(m):
                if at > start and pairs[k].first <= out[at - 1].last + 1:
                    if pairs[k].last > out[at - 1].last:
                        out[at - 1].last = pairs[k].last
                else:
                    out[at] = pairs[k]
                    at += 1
            indptr_[c + 1] = at
    free(pairs)
    if failed:
        free(out)
        raise MemoryError
    first = np.empty(at, np.int32)
    last = np.empty(at, np.int32)
    cdef int32_t[::1] first_ = first, last_ = last
    for k in range(at):
        first_[k] = out[k].first
        last_[k] = out[k].last
    free(out)
    return out_indptr, first, last


cdef void _rectangles(
    int64_t* table,
    Py_ssize_t n,
    int64_t top,
    int64_t bottom,
    const int32_t* a_first,
    const int32_t* a_last,
    int64_t a_n,
    const int32_t* b_first,
    const int32_t* b_last,
    int64_t b_n,
    int64_t weight,
) noexcept nogil:
    # Add weight over (a x b), rows top .. bottom - 1, to a difference array of rows of n + 1.
    cdef:
        int64_t i, j, above, below
        int64_t* row
        int64_t* after
    for i in range(a_n):
        if a_last[i] < top:
            continue
        if a_first[i] >= bottom:
            break
        above = a_first[i] if a_first[i] > top else top
        below = a_last[i] + 1
        row = table + (above - top) * (n + 1)
        for j in range(b_n):
            row[b_first[j]] += weight
            row[b_last[j] + 1] -= weight
        if below < bottom:
            after = table + (below - top) * (n + 1)
            for j in range(b_n):
                after[b_first[j]] -= weight
                after[b_last[j] + 1] += weight


cdef int64_t _size(const int32_t* first, const int32_t* last, int64_t n) noexcept nogil:
    cdef int64_t i, total = 0
    for i in range(n):
        total += last[i] - first[i] + 1
    return total


def meeting_bits(
    const int64_t[::1] a_indptr not None,
    const int32_t[::1] a_first not None,
    const int32_t[::1] a_last not None,
    const int64_t[::1] b_indptr not None,
    const int32_t[::1] b_first not None,
    const int32_t[::1] b_last not None,
    const int32_t[::1] place not None,
):
    """Which pairs (i, j) have a column c with i in a[c] and j in b[c].

    Parameters
    ----------
    a_indptr, b_indptr : (C + 1,) int64
    a_first, a_last, b_first, b_last : int32
        Columns as spans, as ``spans`` gives them.
    place : (n,) int32
        Row and column of the answer for each place; a permutation.

    Returns
    -------
    (n, (n + 63) // 64) uint64
        Bit ``j & 63`` of word ``j >> 6``. O(n**2 + sum over columns of min(spans of a * spans of
        b, members of a * n / 64)).
    """
    cdef:
        Py_ssize_t n = place.shape[0], n_sets = a_indptr.shape[0] - 1, c, words = (n + 63) // 64
        int64_t an, bn, rows, top, bottom, i, j, k, total
        int64_t* table = NULL
        uint64_t* mask = NULL
        uint64_t* row
        int64_t* line
    if b_indptr.shape[0] != a_indptr.shape[0]:
        raise ValueError("a and b have different numbers of columns")
    _check_spans(a_indptr, a_first, a_last, n)
    _check_spans(b_indptr, b_first, b_last, n)
    if n and not np.array_equal(np.sort(place), np.arange(n)):
        raise ValueError("place is not a permutation")
    out = np.zeros((n, words), np.uint64)
    if n == 0 or n_sets == 0 or a_first.shape[0] == 0 or b_first.shape[0] == 0:
        return out
    cdef uint64_t[:, ::1] bits = out
    rows = BLOCK_ENTRIES // (n + 1)
    rows = min(max(rows, 16), n)
    table = <int64_t*>malloc((rows * (n + 1) + 1) * sizeof(int64_t))
    mask = <uint64_t*>malloc(words * sizeof(uint64_t))
    whole = np.zeros(n_sets, np.uint8)  # columns that are written as whole rows
    cdef unsigned char[::1] whole_ = whole
    if table == NULL or mask == NULL:
        free(table)
        free(mask)
        raise MemoryError
    with nogil:
        for c in range(n_sets):
            an = a_indptr[c + 1] - a_indptr[c]
            bn = b_indptr[c + 1] - b_indptr[c]
            if an == 0 or bn == 0:
                whole_[c] = 1
                continue
            total = _size(&a_first[a_indptr[c]], &a_last[a_indptr[c]], an)
            if 4 * an * bn <= total * words + 2 * words:
                continue
            whole_[c] = 1
            memset(mask, 0, words * sizeof(uint64_t))
            for k in range(b_indptr[c], b_indptr[c + 1]):
                for j in range(b_first[k], b_last[k] + 1):
                    mask[place[j] >> 6] |= <uint64_t>1 << (place[j] & 63)
            for k in range(a_indptr[c], a_indptr[c + 1]):
                for i in range(a_first[k], a_last[k] + 1):
                    row = &bits[place[i], 0]
                    for j in range(words):
                        row[j] |= mask[j]
        top = 0
        while top < n:
            bottom = min(top + rows, <int64_t>n)
            memset(table, 0, (bottom - top) * (n + 1) * sizeof(int64_t))
            for c in range(n_sets):
                if whole_[c]:
                    continue
                _rectangles(
                    table, n, top, bottom,
                    &a_first[a_indptr[c]], &a_last[a_indptr[c]], a_indptr[c + 1] - a_indptr[c],
                    &b_first[b_indptr[c]], &b_last[b_indptr[c]], b_indptr[c + 1] - b_indptr[c],
                    1,
                )
            for i in range(top, bottom):
                line = table + (i - top) * (n + 1)
                if i > top:
                    for j in range(n):
                        line[j] += line[j - n - 1]
                row = &bits[place[i], 0]
                total = 0
                for j in range(n):
                    total += line[j]
                    row[place[j] >> 6] |= <uint64_t>(total > 0) << (place[j] & 63)
            top = bottom
    free(table)
    free(mask)
    return out


cdef class Join:
    """Two sides of C columns each, checked once, to be asked who meets whom.

    Parameters
    ----------
    a_indptr, b_indptr : (C + 1,) int64
    a_first, a_last, b_first, b_last : int32
        Columns as spans, as ``spans`` gives them; kept, and not to be written to any more.
    place : (n,) int32
        Row and column of the answer for each place; a permutation.
    """
    cdef:
        readonly object sides
        const int64_t[::1] a_indptr, b_indptr
        const int32_t[::1] a_first, a_last, b_first, b_last, place
        int32_t[::1] column, at
        Py_ssize_t n

    def __init__(self, a_indptr, a_first, a_last, b_indptr, b_first, b_last, place):
        cdef Py_ssize_t c, i
        self.sides = (a_indptr, a_first, a_last, b_indptr, b_first, b_last, place)
        self.a_indptr, self.a_first, self.a_last = a_indptr, a_first, a_last
        self.b_indptr, self.b_first, self.b_last = b_indptr, b_first, b_last
        self.place = place
        self.n = self.place.shape[0]
        if self.b_indptr.shape[0] != self.a_indptr.shape[0]:
            raise ValueError("a and b have different numbers of columns")
        _check_spans(self.a_indptr, self.a_first, self.a_last, self.n)
        _check_spans(self.b_indptr, self.b_first, self.b_last, self.n)
        order = np.argsort(place).astype(np.int32)
        if not np.array_equal(np.asarray(place)[order], np.arange(self.n)):
            raise ValueError("place is not a permutation")
        self.at = order
        self.column = np.empty(self.a_first.shape[0], np.int32)
        for c in range(self.a_indptr.shape[0] - 1):
            for i in range(self.a_indptr[c], self.a_indptr[c + 1]):
                self.column[i] = <int32_t>c

    def bits(self):
        """All pairs: see ``meeting_bits``."""
        return meeting_bits(*self.sides)

    def row(self, Py_ssize_t i):
        """Row i of ``bits``, as (n,) bool. O(spans of a + spans of b in the columns of i + n)."""
        cdef:
            Py_ssize_t k, s, n = self.n, n_spans = self.a_first.shape[0]
            int32_t p, c
            int64_t total = 0
        if not 0 <= i < n:
            raise ValueError(f"row {i} of {n}")
        out = np.zeros(n, np.uint8)
        change = np.zeros(n + 1, np.int64)
        cdef:
            unsigned char[::1] found = out
            int64_t[::1] table = change
        p = self.at[i]
        with nogil:
            for k in range(n_spans):
                if self.a_first[k] <= p and p <= self.a_last[k]:
                    c = self.column[k]
                    for s in range(self.b_indptr[c], self.b_indptr[c + 1]):
                        table[self.b_first[s]] += 1
                        table[self.b_last[s] + 1] -= 1
            for k in range(n):
                total += table[k]
                found[self.place[k]] = total > 0
        return out.view(bool)


cdef int64_t _check_sums(
    const int64_t[::1] indptr,
    const int32_t[::1] first,
    const int32_t[::1] last,
    const int64_t[::1] weight,
    const int32_t[::1] cols,
    Py_ssize_t n,
) except -1:
    cdef Py_ssize_t j
    if weight.shape[0] != indptr.shape[0] - 1:
        raise ValueError(f"{weight.shape[0]} weights of {indptr.shape[0] - 1} columns")
    _check_spans(indptr, first, last, n)
    for j in range(cols.shape[0]):
        if not 0 <= cols[j] < n:
            raise ValueError(f"place {cols[j]} of {n}")
    return 0


def _numbers(const int32_t[::1] rows not None, Py_ssize_t n):
    # Which of *rows* each place is, or -1.
    cdef Py_ssize_t i
    out = np.full(n, -1, np.int32)
    cdef int32_t[::1] number = out
    for i in range(rows.shape[0]):
        if not 0 <= rows[i] < n or number[rows[i]] >= 0:
            raise ValueError(f"row {i} is no place of {n}, or comes twice")
        number[rows[i]] = <int32_t>i
    return out


cdef class _Table:
    # Rows of the n x n table of summed weights, one after another, in blocks of rows.
    cdef:
        const int64_t[::1] indptr, weight
        const int32_t[::1] first, last
        int64_t* table
        int64_t* line
        int64_t n, rows, top

    def __cinit__(self, indptr, first, last, weight, Py_ssize_t n):
        self.indptr, self.first, self.last, self.weight = indptr, first, last, weight
        self.n, self.top = n, -1
        self.rows = min(max(BLOCK_ENTRIES // (n + 1), 16), n)
        self.table = <int64_t*>malloc((self.rows * (n + 1) + 1) * sizeof(int64_t))
        self.line = <int64_t*>malloc((n + 1) * sizeof(int64_t))
        if self.table == NULL or self.line == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.table)
        free(self.line)

    cdef int64_t* at(self, int64_t i) noexcept nogil:
        # Row i. Rows are asked for rising; those between two of one block are passed over.
        cdef int64_t c, j, k, an, below, total = 0, width = self.n + 1
        cdef int64_t* row
        if self.top < 0 or i >= self.top + self.rows:
            self.top = i
            below = min(i + self.rows, self.n)
            memset(self.table, 0, (below - i) * width * sizeof(int64_t))
            for c in range(self.weight.shape[0]):
                k = self.indptr[c]
                an = self.indptr[c + 1] - k
                if an:
                    _rectangles(
                        self.table, self.n, i, below, &self.first[k], &self.last[k], an,
                        &self.first[k], &self.last[k], an, self.weight[c],
                    )
            for k in range(1, below - i):
                row = self.table + k * width
                for j in range(width):
                    row[j] += row[j - width]
        row = self.table + (i - self.top) * width
        for j in range(self.n):
            total += row[j]
            self.line[j] = total
        return self.line


def meeting_sums(
    const int64_t[::1] indptr not None,
    const int32_t[::1] first not None,
    const int32_t[::1] last not None,
    const int64_t[::1] weight not None,
    const int32_t[::1] rows not None,
    const int32_t[::1] cols not None,
    Py_ssize_t n,
):
    """For each of *rows* with each of *cols* the weight of all columns that both are in, as CSR.

    Parameters
    ----------
    indptr, first, last
        C columns as spans of places 0 .. n - 1.
    weight : (C,) int64
        Not negative.
    rows : (r,) int32
        Place of each row of the answer, each at most once.
    cols : (c,) int32
        Place of each column of the answer.
    n
        Number of places.

    Returns
    -------
    (indptr, indices, data)
        (r + 1,) int64, (nnz,) int32, rising in each row, (nnz,) int64, none of them 0.
        O(n**2 + sum over columns of spans**2), and 12 bytes for each pair that is not 0.
    """
    cdef:
        int64_t r = rows.shape[0], i, j, k, at, most, start, n_cols = cols.shape[0]
        int64_t* line
        _Table table
    _check_sums(indptr, first, last, weight, cols, n)
    cdef const int32_t[::1] number = _numbers(rows, n)
    change = np.zeros(n + 1, np.int64)
    np.add.at(change, np.asarray(first), 1)
    np.add.at(change, np.asarray(last) + 1, -1)
    met = np.cumsum(change[:n]) > 0  # the other places share nothing
    out_indptr = np.zeros(r + 1, np.int64)
    filled = np.asarray(met[np.asarray(rows)], np.int64)
    most = int(met[np.asarray(cols)].sum())
    # Row k is written where it will stand if no pair is 0, and moved down if some are. What is
    # not written to costs no memory.
    room = most * int(filled.sum())
    indices, data = np.empty(room, np.int32), np.empty(room, np.int64)
    if not room:
        return out_indptr, indices, data
    begins = (np.cumsum(filled) - filled) * most
    cdef:
        const int64_t[::1] begin = begins
        const unsigned char[::1] met_ = met.view(np.uint8)
        int32_t[::1] indices_ = indices
        int64_t[::1] data_ = data, indptr_ = out_indptr
    table = _Table(indptr, first, last, weight, n)
    with nogil:
        for i in range(n):
            if number[i] < 0 or not met_[i]:
                continue
            line = table.at(i)
            start = at = begin[number[i]]
            for j in range(n_cols):
                if line[cols[j]]:
                    indices_[at] = <int32_t>j
                    data_[at] = line[cols[j]]
                    at += 1
            indptr_[number[i] + 1] = at - start
        at = 0
        for i in range(r):
            k = indptr_[i + 1]
            if k and begin[i] != at:
                memmove(&indices_[at], &indices_[begin[i]], k * sizeof(int32_t))
                memmove(&data_[at], &data_[begin[i]], k * sizeof(int64_t))
            at += k
            indptr_[i + 1] = at
    indices, data = indices[:at], data[:at]
    if 2 * at < room:
        return out_indptr, indices.copy(), data.copy()
    return out_indptr, indices, data


def meeting_ratios(
    const int64_t[::1] indptr not None,
    const int32_t[::1] first not None,
    const int32_t[::1] last not None,
    const int64_t[::1] weight not None,
    const int32_t[::1] rows not None,
    const int32_t[::1] cols not None,
    Py_ssize_t n,
):
    """For each of *rows* with each of *cols* the weight that both have by that either has.

    Parameters
    ----------
    indptr, first, last, weight, rows, cols, n
        As for ``meeting_sums``.

    Returns
    -------
    (r, c) float64
        NaN where neither has any. O(n**2 + sum over columns of spans**2).
    """
    cdef:
        int64_t i, j, both, either, n_cols = cols.shape[0]
        int64_t* line
        _Table table
    _check_sums(indptr, first, last, weight, cols, n)
    cdef const int32_t[::1] number = _numbers(rows, n)
    each = np.repeat(np.asarray(weight), np.diff(np.asarray(indptr)))
    change = np.zeros(n + 1, np.int64)
    np.add.at(change, np.asarray(first), each)
    np.add.at(change, np.asarray(last) + 1, -each)
    sizes = np.cumsum(change[:n])
    out = np.empty((rows.shape[0], n_cols), np.float64)
    if not out.size:
        return out
    cdef:
        const int64_t[::1] size = sizes
        double[:, ::1] ratio = out
        double nan = np.nan
    table = _Table(indptr, first, last, weight, n)
    with nogil:
        for i in range(n):
            if number[i] < 0:
                continue
            line = table.at(i)
            for j in range(n_cols):
                both = line[cols[j]]
                either = size[i] + size[cols[j]] - both
                ratio[number[i], j] = <double>both / <double>either if either else nan
    return out


def row_sums(
    const int64_t[::1] indptr not None,
    const int32_t[::1] first not None,
    const int32_t[::1] last not None,
    const int64_t[::1] weight not None,
    const int32_t[::1] places not None,
    Py_ssize_t n,
):
    """Some rows of ``meeting_sums``, dense and by place.

    Returns
    -------
    (len(places), n) int64
        O(columns * places * log(spans) + spans of the columns that a place is in).
    """
    cdef:
        Py_ssize_t n_sets = indptr.shape[0] - 1, c, k
        int64_t lo, hi, mid, i
        int32_t p
    if weight.shape[0] != n_sets:
        raise ValueError(f"{weight.shape[0]} weights of {n_sets} columns")
    _check_spans(indptr, first, last, n)
    out = np.zeros((places.shape[0], n + 1), np.int64)
    cdef int64_t[:, ::1] table = out
    with nogil:
        for k in range(places.shape[0]):
            p = places[k]
            for c in range(n_sets):
                lo = indptr[c]
                hi = indptr[c + 1]
                while lo < hi:  # the last span that begins at p or before
                    mid = (lo + hi) >> 1
                    if first[mid] <= p:
                        lo = mid + 1
                    else:
                        hi = mid
                if lo == indptr[c] or last[lo - 1] < p:
                    continue
                for i in range(indptr[c], indptr[c + 1]):
                    table[k, first[i]] += weight[c]
                    table[k, last[i] + 1] -= weight[c]
    return np.cumsum(out[:, :n], axis=1)


def bit_product(const uint64_t[:, ::1] a not None, const uint64_t[:, ::1] b not None):
    """Boolean product of two matrices of bits.

    Parameters
    ----------
    a : (m, k) uint64
        Bit ``j & 63`` of word ``j >> 6`` of row i: i leads to j.
    b : (n, w) uint64
        No bit of *a* from n on is set.

    Returns
    -------
    (m, w) uint64
        Row i is the union of the rows of *b* that row i of *a* has. O(bits of a * w), and less
        where rows fill up: a row that has all that *b* has is done.
    """
    cdef:
        Py_ssize_t m = a.shape[0], k = a.shape[1], n = b.shape[0], w = b.shape[1]
        Py_ssize_t i, j, x, since
        uint64_t bits
        bint full
    if k != (n + 63) // 64:
        raise ValueError(f"{k} words of a do not stand for the {n} rows of b")
    if n & 63 and m and (np.asarray(a)[:, k - 1] >> np.uint64(n & 63)).any():
        raise ValueError(f"a has a bit from {n} on")
    out = np.zeros((m, w), np.uint64)
    if not m or not n or not w:
        return out
    every = np.bitwise_or.reduce(np.asarray(b), axis=0)
    cdef:
        uint64_t[:, ::1] found = out
        const uint64_t[::1] most = every
    with nogil:
        for i in range(m):
            since = 0
            full = False
            for x in range(k):
                bits = a[i, x]
                while bits:
                    j = 64 * x + _lowest(bits)
                    bits &= bits - 1
                    _join(&found[i, 0], &b[j, 0], w)
                    since += 1
                    if since == 16:
                        since = 0
                        full = _equal(&found[i, 0], &most[0], w)
                        if full:
                            break
                if full:
                    break
    return out


cdef inline Py_ssize_t _lowest(uint64_t bits) noexcept nogil:
    # Number of the lowest bit that is set, by halves.
    cdef Py_ssize_t at = 0
    if <uint32_t>bits == 0:
        at += 32
        bits >>= 32
    if <uint16_t>bits == 0:
        at += 16
        bits >>= 16
    if bits & 255 == 0:
        at += 8
        bits >>= 8
    if bits & 15 == 0:
        at += 4
        bits >>= 4
    if bits & 3 == 0:
        at += 2
        bits >>= 2
    return at + (bits & 1 == 0)


cdef inline void _join(uint64_t* into, const uint64_t* other, Py_ssize_t w) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(w):
        into[i] |= other[i]


cdef inline bint _equal(const uint64_t* a, const uint64_t* b, Py_ssize_t w) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(w):
        if a[i] != b[i]:
            return False
    return True
