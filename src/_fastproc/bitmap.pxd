# A sparse set of frame numbers: 4 KiB for each 32768 frames of which one is in it.
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from _fastproc.frames cimport scatter

cdef enum:
    PART_BITS = 15
    PART_BYTES = 1 << 12

cdef struct Part:
    uint64_t number
    uint8_t* bits

cdef struct Bitmap:
    Part* parts          # open addressing
    uint64_t n_slots, n
    uint64_t last_number
    uint8_t* last


cdef inline uint8_t* part_of(Bitmap* b, uint64_t number, bint make) noexcept nogil:
    # NULL if there is none, or memory ran out.
    cdef:
        uint64_t at, i, n
        Part* grown
    if number == b.last_number:
        return b.last
    at = scatter(number) & (b.n_slots - 1)
    while b.parts[at].bits != NULL:
        if b.parts[at].number == number:
            b.last_number = number
            b.last = b.parts[at].bits
            return b.last
        at = (at + 1) & (b.n_slots - 1)
    if not make:
        return NULL
    if 2 * b.n >= b.n_slots:
        n = 2 * b.n_slots
        grown = <Part*>calloc(n, sizeof(Part))
        if grown == NULL:
            return NULL
        for i in range(b.n_slots):
            if b.parts[i].bits != NULL:
                at = scatter(b.parts[i].number) & (n - 1)
                while grown[at].bits != NULL:
                    at = (at + 1) & (n - 1)
                grown[at] = b.parts[i]
        free(b.parts)
        b.parts = grown
        b.n_slots = n
        at = scatter(number) & (n - 1)
        while b.parts[at].bits != NULL:
            at = (at + 1) & (n - 1)
    b.parts[at].bits = <uint8_t*>calloc(1, PART_BYTES)
    if b.parts[at].bits == NULL:
        return NULL
    b.parts[at].number = number
    b.n += 1
    b.last_number = number
    b.last = b.parts[at].bits
    return b.last


cdef inline int put(Bitmap* b, uint64_t frame) noexcept nogil:
    # Whether it was set before; -1 if memory ran out.
    cdef:
        uint8_t* bits = part_of(b, frame >> PART_BITS, True)
        uint64_t at = (frame >> 3) & (PART_BYTES - 1)
        uint8_t bit = <uint8_t>(1 << (frame & 7))
    if bits == NULL:
        return -1
    if bits[at] & bit:
        return 1
    bits[at] |= bit
    return 0


cdef inline bint has(Bitmap* b, uint64_t frame) noexcept nogil:
    cdef uint8_t* bits = part_of(b, frame >> PART_BITS, False)
    return bits != NULL and (bits[(frame >> 3) & (PART_BYTES - 1)] >> (frame & 7)) & 1


cdef inline int new_bitmap(Bitmap* b) noexcept nogil:
    memset(b, 0, sizeof(Bitmap))
    b.n_slots = 64
    b.last_number = ~<uint64_t>0
    b.parts = <Part*>calloc(b.n_slots, sizeof(Part))
    return 0 if b.parts != NULL else -1


cdef inline void free_bitmap(Bitmap* b) noexcept nogil:
    cdef uint64_t i
    if b.parts != NULL:
        for i in range(b.n_slots):
            free(b.parts[i].bits)
    free(b.parts)
    b.parts = NULL
