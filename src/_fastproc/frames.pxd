# The frame index from within: what ``pagemap`` feeds and ``partition`` reads.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    BLOCK_BITS = 9
    BLOCK = 1 << BLOCK_BITS  # pages
    MOST_MEMBERS = 0xFFFF    # of a template: the next one begins another

# FrameKind, as in osmosis.schema; a unit test compares the two.
cdef enum:
    K_ANON
    K_FILE
    K_KSM
    K_HUGETLB
    K_SWAP
    K_DEVICE
    # Not in the schema: anonymous, and no other address space mapped it when it was seen.
    K_LONE

# Which pages of a VMA are the kernel's own.
cdef enum:
    OWN_NONE
    OWN_FILE
    OWN_ALL

# What the last member of a template held: pagemap words of shared frames, 0 for none.
cdef struct Block:
    uint64_t* word
    uint16_t* since      # member that each has been there from; NULL: all from since_all
    uint64_t number      # page of the VMA >> BLOCK_BITS
    uint16_t since_all
    uint16_t room        # pages
    uint16_t live        # words that are not 0

# Members first to last of a template had a frame.
cdef packed struct Span:
    uint64_t word
    uint16_t first
    uint16_t last

cdef struct Template:
    int32_t kind         # 2 * kind of the VMA, + 1 if shared
    int32_t older        # template of the same kind, -1 for none
    int32_t members
    int32_t n_blocks
    int32_t blocks_room
    Block* blocks        # by rising number
    Span* spans
    int64_t n_spans
    int64_t spans_room

# Frames that one region had alone: low halves of their numbers, from `at` on.
cdef struct Alone:
    int64_t at
    int32_t row
    uint32_t high

# Rows row .. row + n - 1 were visited.
cdef struct Visit:
    int64_t when
    int32_t row
    int32_t n

cdef class FrameIndex:
    cdef:
        Template* templates
        int32_t n_templates, templates_room
        int32_t* newest      # by kind of template, -1 for none
        int32_t kinds_room
        int32_t* template_of  # visited rows, visit by visit; -1 for none
        int64_t n_rows, rows_room
        Alone* alone
        int64_t n_alone, alone_room
        uint32_t* low
        int64_t n_low, low_room
        Visit* visits
        int64_t n_visits, visits_room
        int64_t pairs_
        uint64_t zero_pfn, huge_zero_pfn, huge_pages
        bint swap
        # The region that is being visited.
        Template* now        # NULL: no frame that can be shared so far
        uint64_t n_pages, next_page
        const uint64_t* rest  # end of the words that are being fed
        int32_t row, kind, at_block
        uint16_t ordinal
        int own
        bint shared

    cdef int begin(self, int64_t when, int32_t row, int32_t n) noexcept nogil
    cdef void enter(
        self, int32_t row, int32_t kind, bint shared, int own, uint64_t n_pages
    ) noexcept nogil
    cdef int feed(
        self, uint64_t page, const uint64_t* words, Py_ssize_t n, int64_t* counts
    ) noexcept nogil
    cdef int leave(self) noexcept nogil

    cdef Py_ssize_t _changed(
        self,
        uint64_t page,
        const uint64_t* words,
        const uint64_t* old,
        Py_ssize_t n,
        int64_t* counts,
    ) noexcept nogil
    cdef uint16_t _room_of(self, uint64_t page) noexcept nogil
    cdef int _choose(self, uint64_t page, const uint64_t* words, Py_ssize_t n) noexcept nogil
    cdef uint64_t _word_at(self, const Template* template_, uint64_t page) noexcept nogil
    cdef int _more_kinds(self) noexcept nogil
    cdef int _widen(self, Block* block, uint64_t off) noexcept nogil
    cdef int32_t _new_template(self, int32_t kind) noexcept nogil
    cdef bint _go_to(self, uint64_t number) noexcept nogil
    cdef int _make_block(self, uint64_t number) noexcept nogil
    cdef int _put(self, uint64_t page, uint64_t word) noexcept nogil
    cdef int _end_span(self, uint64_t word, uint16_t first) noexcept nogil
    cdef int _nothing(self, uint64_t page, uint64_t end) noexcept nogil
    cdef int _add_alone(self, uint64_t pfn) noexcept nogil
    cdef uint64_t _shared_word(self, uint64_t word, int64_t* counts, int* failed) noexcept nogil


cdef inline int kind_of(uint64_t word, bint shared) noexcept nogil:
    """FrameKind of a word as a template keeps it."""
    if not word >> 63:
        return K_SWAP
    if (word >> 61) & 1:
        return K_FILE
    if (word >> 60) & 1:
        return K_KSM
    return K_DEVICE if shared else K_ANON


cdef inline uint64_t scatter(uint64_t number) noexcept nogil:
    cdef uint64_t h = number * <uint64_t>0x9E3779B97F4A7C15ULL
    return h ^ (h >> 29)
