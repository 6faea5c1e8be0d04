"""Sets of regions, written as runs: the fewest for each, and equal ones found. Opens no file."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memset

from _fastproc.frames cimport scatter

import numpy as np


cdef int _by_first(const void* a, const void* b) noexcept nogil:
    cdef:
        int32_t x = (<const Pair*>a).first
        int32_t y = (<const Pair*>b).first
    return (x > y) - (x < y)


cdef class ClassTable:
    """Growing: kind and runs of each class, and a table to find one by them."""

    def __cinit__(self):
        self.room = 1024
        self.runs_room = 4096
        self.n_slots = 4096
        self.kind = <uint8_t*>malloc(self.room)
        self.pages = <int64_t*>malloc(self.room * 8)
        self.indptr = <int64_t*>malloc((self.room + 1) * 8)
        self.runs = <Pair*>malloc(self.runs_room * sizeof(Pair))
        self.slots = <int32_t*>malloc(self.n_slots * 4)
        if (self.kind == NULL or self.pages == NULL or self.indptr == NULL or self.runs == NULL
                or self.slots == NULL):
            raise MemoryError
        self.indptr[0] = 0
        memset(self.slots, 0xFF, self.n_slots * 4)

    def __dealloc__(self):
        free(self.kind)
        free(self.pages)
        free(self.indptr)
        free(self.runs)
        free(self.slots)

    cdef uint64_t _hash(self, uint8_t kind, const Pair* runs, int64_t n) noexcept nogil:
        cdef:
            uint64_t h = kind + 0x51
            int64_t i
        for i in range(n):
            h = scatter(h ^ ((<uint64_t>runs[i].first << 32) | <uint64_t>runs[i].last))
            h ^= h >> 32
        return h

    cdef int _grow(self) noexcept nogil:
        cdef:
            void* p
            int32_t room = self.room * 2
        if self.room > 0x3FFFFFFF:
            return -1
        p = realloc(self.kind, room)
        if p == NULL:
            return -1
        self.kind = <uint8_t*>p
        p = realloc(self.pages, <size_t>room * 8)
        if p == NULL:
            return -1
        self.pages = <int64_t*>p
        p = realloc(self.indptr, (<size_t>room + 1) * 8)
        if p == NULL:
            return -1
        self.indptr = <int64_t*>p
        self.room = room
        return 0

    cdef int _rehash(self) noexcept nogil:
        cdef:
            uint64_t n = self.n_slots * 2, at
            int32_t* slots = <int32_t*>malloc(n * 4)
            int32_t c
        if slots == NULL:
            return -1
        memset(slots, 0xFF, n * 4)
        for c in range(self.n):
            at = self._hash(
                self.kind[c], &self.runs[self.indptr[c]], self.indptr[c + 1] - self.indptr[c]
            ) & (n - 1)
            while slots[at] >= 0:
                at = (at + 1) & (n - 1)
            slots[at] = c
        free(self.slots)
        self.slots = slots
        self.n_slots = n
        return 0

    cdef int32_t add(self, uint8_t kind, Pair* runs, int64_t n, int64_t pages) noexcept nogil:
        # The class with these mappers, pages more of it. Runs are sorted and joined in place.
        # -1 if memory ran out, -2 if there are no mappers.
        cdef:
            int64_t i, m = 0
            uint64_t at
            int32_t c
            void* p
        for i in range(1, n):
            if runs[i].first < runs[i - 1].first:
                qsort(runs, n, sizeof(Pair), _by_first)
                break
        for i in range(n):
            if m and runs[i].first <= runs[m - 1].last + 1:
                if runs[i].last > runs[m - 1].last:
                    runs[m - 1].last = runs[i].last
            else:
                runs[m] = runs[i]
                m += 1
        if m == 0:
            return -2
        at = self._hash(kind, runs, m) & (self.n_slots - 1)
        while self.slots[at] >= 0:
            c = self.slots[at]
            if self.kind[c] == kind and self.indptr[c + 1] - self.indptr[c] == m:
                for i in range(m):
                    if (self.runs[self.indptr[c] + i].first != runs[i].first
                            or self.runs[self.indptr[c] + i].last != runs[i].last):
                        break
                else:
                    self.pages[c] += pages
                    return c
            at = (at + 1) & (self.n_slots - 1)
        if self.n == self.room and self._grow():
            return -1
        while self.n_runs + m > self.runs_room:
            p = realloc(self.runs, 2 * self.runs_room * sizeof(Pair))
            if p == NULL:
                return -1
            self.runs = <Pair*>p
            self.runs_room *= 2
        c = self.n
        self.kind[c] = kind
        self.pages[c] = pages
        for i in range(m):
            self.runs[self.n_runs + i] = runs[i]
        self.n_runs += m
        self.indptr[c + 1] = self.n_runs
        self.slots[at] = c
        self.n += 1
        if 2 * <uint64_t>self.n > self.n_slots and self._rehash():
            return -1
        return c


def canonical(
    const int64_t[::1] indptr not None,
    const int32_t[::1] first not None,
    const int32_t[::1] last not None,
):
    """Sort the runs of each class and join those that touch or overlap.

    Parameters
    ----------
    indptr : (C + 1,) int64
        Runs of class c: ``indptr[c]`` to ``indptr[c + 1]``.
    first, last : (R,) int32
        Regions; a run with first > last is empty and goes.

    Returns
    -------
    (indptr, first, last, hash)
        The same sets with the fewest runs, and (C, 2) uint64: equal sets have equal hashes.
    """
    cdef:
        Py_ssize_t n = indptr.shape[0] - 1, c, i, k, m, at = 0
        Pair* pairs
        int64_t widest = 0
        bint sorted_
        uint64_t h1, h2
    if n < 0 or indptr[0] != 0 or indptr[n] != first.shape[0] or first.shape[0] != last.shape[0]:
        raise ValueError("indptr does not divide the runs")
    for c in range(n):
        if indptr[c + 1] < indptr[c]:
            raise ValueError(f"indptr falls at {c}")
        widest = max(widest, indptr[c + 1] - indptr[c])
    out_indptr = np.zeros(n + 1, np.int64)
    out_first = np.empty(first.shape[0], np.int32)
    out_last = np.empty(first.shape[0], np.int32)
    hashes = np.zeros((n, 2), np.uint64)
    cdef:
        int64_t[::1] oi = out_indptr
        int32_t[::1] of = out_first, ol = out_last
        uint64_t[:, ::1] oh = hashes
    pairs = <Pair*>malloc((widest + 1) * sizeof(Pair))
    if pairs == NULL:
        raise MemoryError
    with nogil:
        for c in range(n):
            m = 0
            sorted_ = True
            for i in range(indptr[c], indptr[c + 1]):
                if first[i] <= last[i]:
                    pairs[m].first = first[i]
                    pairs[m].last = last[i]
                    if m and pairs[m].first < pairs[m - 1].first:
                        sorted_ = False
                    m += 1
            if not sorted_:
                qsort(pairs, m, sizeof(Pair), _by_first)
            k = at
            for i in range(m):
                if at > k and pairs[i].first <= ol[at - 1] + 1:
                    if pairs[i].last > ol[at - 1]:
                        ol[at - 1] = pairs[i].last
                else:
                    of[at] = pairs[i].first
                    ol[at] = pairs[i].last
                    at += 1
            h1 = 0x51
            h2 = 0xA7
            for i in range(k, at):
                h1 = scatter(h1 ^ ((<uint64_t>of[i] << 32) | <uint64_t>ol[i]))
                h1 ^= h1 >> 32
                h2 += (<uint64_t>ol[i] << 32) | <uint64_t>of[i]
                h2 *= <uint64_t>0xBF58476D1CE4E5B9ULL
                h2 ^= h2 >> 31
            oh[c, 0] = h1
            oh[c, 1] = h2
            oi[c + 1] = at
    free(pairs)
    return out_indptr, out_first[:at].copy(), out_last[:at].copy(), hashes
