# Classes of frames, as ``partition`` finds them one by one.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

# Regions first to last.
cdef struct Pair:
    int32_t first
    int32_t last

cdef class ClassTable:
    cdef:
        uint8_t* kind
        int64_t* pages
        int64_t* indptr
        int32_t n, room
        Pair* runs
        int64_t n_runs, runs_room
        int32_t* slots
        uint64_t n_slots

    cdef int32_t add(self, uint8_t kind, Pair* runs, int64_t n, int64_t pages) noexcept nogil
    cdef uint64_t _hash(self, uint8_t kind, const Pair* runs, int64_t n) noexcept nogil
    cdef int _grow(self) noexcept nogil
    cdef int _rehash(self) noexcept nogil
