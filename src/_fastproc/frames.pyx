"""The frame index: which regions map which frames, by what changes from one to the next.

VMAs of one kind (the same file and offset, or the same address of a fork's children) mostly
hold the same frames. So the index keeps, for each kind, the frames of its last member, a
*template*; a visit compares the words of pagemap with it, many at once, and only where they
differ writes down which members had the frame that went. Frames that one region has alone
are lists of numbers. ``partition.Partition`` makes memory objects of it. Opens no file.

Cost: a comparison for each visited page, and 12 bytes for each change of a page of a template.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memmove, memset

from _fastproc.bits cimport (
    PM_MMAP_EXCLUSIVE_BIT,
    PM_PFN_BITS,
    PM_PRESENT_BIT,
    PM_SWAP_BIT,
    SWAP_TYPES_REAL,
    pm_exclusive,
    pm_file,
    pm_guard,
    pm_pfn,
    pm_present,
    pm_swap,
    pm_swap_type,
)

import numpy as np

cdef enum:
    GROUP = 8          # words that are compared at once
    MOST_TEMPLATES = 8  # of a kind
    SAMPLES = 16       # pages that a template is chosen by

cdef uint64_t NONE = ~<uint64_t>0
cdef uint64_t PFN = (<uint64_t>1 << PM_PFN_BITS) - 1
cdef uint64_t PRESENT = <uint64_t>1 << PM_PRESENT_BIT
cdef uint64_t SWAPPED = <uint64_t>1 << PM_SWAP_BIT
cdef uint64_t FILE = <uint64_t>1 << 61
cdef uint64_t KSM = <uint64_t>1 << 60  # the mark of ``pagemap``
# What makes two words different: not soft-dirty, userfaultfd and guard marks.
cdef uint64_t TELLS = PFN | PRESENT | SWAPPED | FILE | KSM | <uint64_t>1 << PM_MMAP_EXCLUSIVE_BIT

cdef uint64_t[512] NOTHING  # zeros


cdef inline void* _grown(void* old, int64_t* room, size_t item) noexcept nogil:
    # Room for a quarter more; NULL, and nothing changed, if memory ran out.
    cdef:
        int64_t more = room[0] + (room[0] >> 2) + 4
        void* new = realloc(old, more * item)
    if new != NULL:
        room[0] = more
    return new


cdef class FrameIndex:
    """What a reader of pagemap saw. One for each thread: none of it is shared or locked.

    Parameters
    ----------
    zero_pfn, huge_zero_pfn, huge_pages
        The shared zero page, and the first of the pages of the huge one; 2**64 - 1 for none.
    swap
        Whether swap slots count as frames.
    """

    def __cinit__(
        self,
        *,
        uint64_t zero_pfn=NONE,
        uint64_t huge_zero_pfn=NONE,
        uint64_t huge_pages=512,
        bint swap=False,
    ):
        self.zero_pfn = zero_pfn
        self.huge_zero_pfn = huge_zero_pfn
        self.huge_pages = huge_pages
        self.swap = swap

    def __dealloc__(self):
        cdef int32_t i, b
        for i in range(self.n_templates):
            for b in range(self.templates[i].n_blocks):
                free(self.templates[i].blocks[b].word)
                free(self.templates[i].blocks[b].since)
            free(self.templates[i].blocks)
            free(self.templates[i].spans)
        free(self.templates)
        free(self.newest)
        free(self.template_of)
        free(self.alone)
        free(self.low)
        free(self.visits)

    # -- one visit: begin, and for each VMA enter, feed by rising page, leave. All but `enter`
    # return 0, or -1 if memory ran out: the index is then not usable any more.

    cdef int begin(self, int64_t when, int32_t row, int32_t n) noexcept nogil:
        # VMAs row .. row + n - 1 are visited, at this time of the reader's clock.
        cdef:
            void* p
            int32_t i
        if self.n_visits == self.visits_room:
            p = _grown(self.visits, &self.visits_room, sizeof(Visit))
            if p == NULL:
                return -1
            self.visits = <Visit*>p
        self.visits[self.n_visits].when = when
        self.visits[self.n_visits].row = row
        self.visits[self.n_visits].n = n
        self.n_visits += 1
        while self.n_rows + n > self.rows_room:
            p = _grown(self.template_of, &self.rows_room, sizeof(int32_t))
            if p == NULL:
                return -1
            self.template_of = <int32_t*>p
        for i in range(n):
            self.template_of[self.n_rows + i] = -1
        self.n_rows += n
        return 0

    cdef void enter(
        self, int32_t row, int32_t kind, bint shared, int own, uint64_t n_pages
    ) noexcept nogil:
        self.row = row
        self.kind = 2 * kind + shared
        self.shared = shared
        self.own = own
        self.n_pages = n_pages
        self.now = NULL
        self.next_page = 0
        self.at_block = 0

    cdef int feed(
        self, uint64_t page, const uint64_t* words, Py_ssize_t n, int64_t* counts
    ) noexcept nogil:
        # Words of n pages of the VMA from `page` on; pages that were passed over hold nothing.
        # counts: present, swapped, zero.
        cdef:
            Py_ssize_t i = 0, j, k, m
            uint64_t off, differ
            int64_t present = 0, swapped = 0
            const uint64_t* new
            const uint64_t* old
            Block* block
        self.rest = words + n
        if self.now != NULL and self._nothing(self.next_page, page):
            return -1
        while i < n:
            off = (page + i) & (BLOCK - 1)
            m = min(n - i, <Py_ssize_t>(BLOCK - off))
            old = &NOTHING[0]
            if self.now != NULL and self._go_to((page + i) >> BLOCK_BITS):
                block = &self.now.blocks[self.at_block]
                if off < block.room:
                    old = block.word + off
                    m = min(m, <Py_ssize_t>(block.room - off))
            new = words + i
            j = 0
            while j + GROUP <= m:
                differ = 0
                for k in range(GROUP):
                    differ |= (new[j + k] & TELLS) ^ old[j + k]
                if differ:
                    break
                for k in range(GROUP):
                    present += new[j + k] >> PM_PRESENT_BIT
                if self.swap:
                    for k in range(GROUP):
                        swapped += (old[j + k] >> PM_SWAP_BIT) & 1
                j += GROUP
            if j < m:
                # A group that differs, or the rest of a block: one by one.
                k = min(GROUP, m - j)
                k = self._changed(page + i + j, new + j, old + j, k, counts)
                if k < 0:
                    return -1
                j += k
            i += j
        counts[0] += present
        counts[1] += swapped
        self.pairs_ += present + swapped
        self.next_page = page + n
        return 0

    cdef int leave(self) noexcept nogil:
        if self.now != NULL:
            return self._nothing(self.next_page, NONE)
        return 0

    cdef uint64_t _shared_word(
        self, uint64_t word, int64_t* counts, int* failed
    ) noexcept nogil:
        # What a template keeps of a word: 0 for pages that cannot be shared.
        cdef uint64_t pfn
        if pm_present(word):
            pfn = pm_pfn(word)
            counts[0] += 1
            if pfn == self.zero_pfn or (
                pfn >= self.huge_zero_pfn and pfn - self.huge_zero_pfn < self.huge_pages
            ):
                counts[2] += 1
                return 0
            if self.own == OWN_ALL or (self.own == OWN_FILE and pm_file(word)):
                return 0
            self.pairs_ += 1
            if pm_file(word):
                return pfn | PRESENT | FILE
            if word & KSM:
                return pfn | PRESENT | KSM
            if pm_exclusive(word) and not self.shared:
                failed[0] |= self._add_alone(pfn)
                return 0
            return pfn | PRESENT
        if self.swap and pm_swap(word) and not pm_guard(word):
            if pm_swap_type(word) < SWAP_TYPES_REAL:
                counts[1] += 1
                self.pairs_ += 1
                return pm_pfn(word) | SWAPPED
        return 0

    cdef Py_ssize_t _changed(
        self,
        uint64_t page,
        const uint64_t* words,
        const uint64_t* old,
        Py_ssize_t n,
        int64_t* counts,
    ) noexcept nogil:
        # Words that may differ from those of the template. Returns how many were done: not all
        # if the block moved; -1 if memory ran out.
        cdef:
            Py_ssize_t i
            uint64_t word
            int failed = 0
            uint16_t room
        for i in range(n):
            if words[i] & TELLS == old[i]:
                if old[i]:
                    counts[0 if pm_present(old[i]) else 1] += 1
                    self.pairs_ += 1
                continue
            word = self._shared_word(words[i], counts, &failed)
            if word == old[i]:
                continue
            if self.now == NULL:
                if self._choose(page + i, words + i, self.rest - (words + i)):
                    return -1
                if self._word_at(self.now, page + i) != word and self._put(page + i, word):
                    return -1
                return i + 1
            room = self._room_of(page + i)
            if self._put(page + i, word):
                return -1
            if self._room_of(page + i) != room:
                return i + 1
        return -1 if failed else n

    cdef uint16_t _room_of(self, uint64_t page) noexcept nogil:
        # Of the block of this page, 0 if there is none.
        if self._go_to(page >> BLOCK_BITS):
            return self.now.blocks[self.at_block].room
        return 0

    cdef int _choose(self, uint64_t page, const uint64_t* words, Py_ssize_t n) noexcept nogil:
        # Which template of its kind this region goes on from: the one that it has most in common
        # with. A kind has several where children of programs that are laid out alike take turns.
        cdef:
            int32_t t, before = -1, best = -1, before_best = -1, many = 0
            Py_ssize_t i, step = max(1, n // SAMPLES)
            int like, most = -1, sampled = 0
            uint64_t word
            Visit* visit
        if self.kind >= self.kinds_room and self._more_kinds():
            return -1
        t = self.newest[self.kind]
        while t >= 0:
            if self.templates[t].members == MOST_MEMBERS:
                before = t
                t = self.templates[t].older
                continue
            like = sampled = 0
            i = 0
            while i < n:
                word = words[i]
                if pm_present(word) and (pm_file(word) or not pm_exclusive(word)):
                    sampled += 1
                    like += pm_pfn(self._word_at(&self.templates[t], page + i)) == pm_pfn(word)
                i += step
            many += 1
            # The one that was used longest ago comes last, and is given up first.
            if like > most or (like == most and 2 * like < sampled):
                most = like
                best = t
                before_best = before
            if most == sampled:
                break
            before = t
            t = self.templates[t].older
        if best < 0 or (2 * most < sampled and many < MOST_TEMPLATES):
            best = self._new_template(self.kind)
            if best < 0:
                return -1
        elif before_best >= 0:
            self.templates[before_best].older = self.templates[best].older
            self.templates[best].older = self.newest[self.kind]
        self.newest[self.kind] = best
        self.now = &self.templates[best]
        visit = &self.visits[self.n_visits - 1]
        self.template_of[self.n_rows - visit.n + (self.row - visit.row)] = best
        self.ordinal = <uint16_t>self.now.members
        self.now.members += 1
        self.at_block = 0
        return self._nothing(0, page)

    cdef uint64_t _word_at(self, const Template* template_, uint64_t page) noexcept nogil:
        cdef:
            int32_t lo = 0, hi = template_.n_blocks, mid
            const Block* block
        while lo < hi:
            mid = (lo + hi) >> 1
            if template_.blocks[mid].number < page >> BLOCK_BITS:
                lo = mid + 1
            else:
                hi = mid
        if lo == template_.n_blocks:
            return 0
        block = &template_.blocks[lo]
        if block.number != page >> BLOCK_BITS or page & (BLOCK - 1) >= block.room:
            return 0
        return block.word[page & (BLOCK - 1)]

    cdef int _more_kinds(self) noexcept nogil:
        cdef:
            int64_t room = max(self.kind + 1, 2 * self.kinds_room), i
            int32_t* grown = <int32_t*>realloc(self.newest, room * sizeof(int32_t))
        if grown == NULL:
            return -1
        for i in range(self.kinds_room, room):
            grown[i] = -1
        self.newest = grown
        self.kinds_room = <int32_t>room
        return 0

    cdef int32_t _new_template(self, int32_t kind) noexcept nogil:
        # Its number, -1 if memory ran out.
        cdef:
            int32_t t = self.n_templates
            int64_t room = self.templates_room
            void* p
        if t == self.templates_room:
            p = _grown(self.templates, &room, sizeof(Template))
            if p == NULL or room > 0x7FFFFFFF:
                return -1
            self.templates = <Template*>p
            self.templates_room = <int32_t>room
        memset(&self.templates[t], 0, sizeof(Template))
        self.templates[t].kind = kind
        self.templates[t].older = self.newest[kind]
        self.n_templates += 1
        return t

    cdef bint _go_to(self, uint64_t number) noexcept nogil:
        # Put at_block where block `number` is or would be; whether it is. Numbers rise in a visit.
        while (self.at_block < self.now.n_blocks
                and self.now.blocks[self.at_block].number < number):
            self.at_block += 1
        return (self.at_block < self.now.n_blocks
                and self.now.blocks[self.at_block].number == number)

    cdef int _make_block(self, uint64_t number) noexcept nogil:
        cdef:
            Template* t = self.now
            int64_t room = t.blocks_room
            void* p
            Block* block
        if t.n_blocks == t.blocks_room:
            p = _grown(t.blocks, &room, sizeof(Block))
            if p == NULL:
                return -1
            t.blocks = <Block*>p
            t.blocks_room = <int32_t>room
        block = &t.blocks[self.at_block]
        memmove(block + 1, block, (t.n_blocks - self.at_block) * sizeof(Block))
        memset(block, 0, sizeof(Block))
        block.number = number
        block.since_all = self.ordinal
        t.n_blocks += 1
        return 0

    cdef int _widen(self, Block* block, uint64_t off) noexcept nogil:
        # Room for page `off` of the block, and for the rest of this VMA.
        cdef:
            uint64_t first = block.number << BLOCK_BITS
            uint64_t room = self.n_pages - first if self.n_pages > first else 0
            uint64_t i
            void* p
        room = min(max(room, off + 1), <uint64_t>BLOCK)
        p = realloc(block.word, room * sizeof(uint64_t))
        if p == NULL:
            return -1
        block.word = <uint64_t*>p
        if block.since != NULL:
            p = realloc(block.since, room * sizeof(uint16_t))
            if p == NULL:
                return -1
            block.since = <uint16_t*>p
        for i in range(block.room, room):
            block.word[i] = 0
            if block.since != NULL:
                block.since[i] = 0
        block.room = <uint16_t>room
        return 0

    cdef int _put(self, uint64_t page, uint64_t word) noexcept nogil:
        # From this member on, the page of the template holds another word.
        cdef:
            uint64_t off = page & (BLOCK - 1), i
            Block* block
        if not self._go_to(page >> BLOCK_BITS) and self._make_block(page >> BLOCK_BITS):
            return -1
        block = &self.now.blocks[self.at_block]
        if off >= block.room and self._widen(block, off):
            return -1
        if block.word[off]:
            if self._end_span(
                block.word[off], block.since_all if block.since == NULL else block.since[off]
            ):
                return -1
            block.live -= 1
        if block.live == 0:
            free(block.since)
            block.since = NULL
            block.since_all = self.ordinal
        elif block.since == NULL and block.since_all != self.ordinal:
            block.since = <uint16_t*>malloc(block.room * sizeof(uint16_t))
            if block.since == NULL:
                return -1
            for i in range(block.room):
                block.since[i] = block.since_all
        if block.since != NULL:
            block.since[off] = self.ordinal
        block.word[off] = word
        block.live += word != 0
        return 0

    cdef int _end_span(self, uint64_t word, uint16_t first) noexcept nogil:
        # The members from `first` to the one before this had the frame.
        cdef:
            Template* t = self.now
            void* p
        if t.n_spans == t.spans_room:
            p = _grown(t.spans, &t.spans_room, sizeof(Span))
            if p == NULL:
                return -1
            t.spans = <Span*>p
        t.spans[t.n_spans].word = word
        t.spans[t.n_spans].first = first
        t.spans[t.n_spans].last = self.ordinal - 1
        t.n_spans += 1
        return 0

    cdef int _nothing(self, uint64_t page, uint64_t end) noexcept nogil:
        # This member holds no frame in [page, end).
        cdef:
            uint64_t first, off
            Block* block
        if page >= end:
            return 0
        self._go_to(page >> BLOCK_BITS)
        while self.at_block < self.now.n_blocks:
            block = &self.now.blocks[self.at_block]
            first = block.number << BLOCK_BITS
            if first >= end:
                break
            off = page - first if page > first else 0
            while block.live and off < block.room and first + off < end:
                if block.word[off] and self._put(first + off, 0):
                    return -1
                off += 1
            if first + BLOCK > end:
                break
            self.at_block += 1
        return 0

    cdef int _add_alone(self, uint64_t pfn) noexcept nogil:
        cdef:
            void* p
            int64_t last = self.n_alone - 1
        if last < 0 or self.alone[last].row != self.row or self.alone[last].high != pfn >> 32:
            if self.n_alone == self.alone_room:
                p = _grown(self.alone, &self.alone_room, sizeof(Alone))
                if p == NULL:
                    return -1
                self.alone = <Alone*>p
            self.alone[self.n_alone].row = self.row
            self.alone[self.n_alone].high = <uint32_t>(pfn >> 32)
            self.alone[self.n_alone].at = self.n_low
            self.n_alone += 1
        if self.n_low == self.low_room:
            p = _grown(self.low, &self.low_room, sizeof(uint32_t))
            if p == NULL:
                return -1
            self.low = <uint32_t*>p
        self.low[self.n_low] = <uint32_t>pfn
        self.n_low += 1
        return 0

    def visit(
        self,
        const int32_t[::1] kind not None,
        const uint8_t[::1] prot not None,
        const int64_t[::1] indptr not None,
        const uint64_t[::1] words not None,
        int32_t row=0,
        int64_t when=0,
    ):
        """Visit V regions that are read already; ``pagemap.read_frames`` reads and visits at once.

        Parameters
        ----------
        kind : (V,) int32
            As ``maps.VmaTable`` numbers it.
        prot : (V,) uint8
            Bit 8: MAP_SHARED.
        indptr : (V + 1,) int64
        words : (N,) uint64
            ``words[indptr[v]:indptr[v + 1]]`` are the entries of pagemap for all pages of region
            v; bit 60 marks KSM.
        row
            Number of the first region; the others follow. No region is visited twice.
        when
            Time of the visit: what was visited later has a greater one.

        Returns
        -------
        (V, 3) int64
            Pages present, swapped, zero.

        Raises
        ------
        ValueError
            The arrays do not fit each other; nothing was visited.
        MemoryError
            The index is not usable any more.
        """
        cdef:
            Py_ssize_t n = kind.shape[0], v
            int64_t total = words.shape[0], size
            int failed = 0
        if prot.shape[0] != n or indptr.shape[0] != n + 1:
            raise ValueError("kind, prot and indptr are of different lengths")
        if row < 0 or row + n > 0x7FFFFFFF:
            raise ValueError(f"{n} regions from {row} on")
        for v in range(n):
            if not 0 <= indptr[v] <= indptr[v + 1] <= total:
                raise ValueError(f"indptr[{v}] is not within the {total} words")
            if not 0 <= kind[v] < 1 << 30:
                raise ValueError(f"kind {kind[v]}")
        counts = np.zeros((n, 3), np.int64)
        cdef int64_t[:, ::1] counts_ = counts
        with nogil:
            failed = self.begin(when, row, <int32_t>n)
            for v in range(n):
                if failed:
                    break
                size = indptr[v + 1] - indptr[v]
                self.enter(
                    row + <int32_t>v, kind[v], (prot[v] & 8) != 0, OWN_NONE, <uint64_t>size
                )
                if size:
                    failed = self.feed(0, &words[indptr[v]], <Py_ssize_t>size, &counts_[v, 0])
                failed |= self.leave()
        if failed:
            raise MemoryError
        return counts

    @property
    def pairs(self):
        """(region, page) pairs visited: pages present or swapped, but zero pages."""
        return self.pairs_

    @property
    def nbytes(self):
        """Bytes of memory that the index holds."""
        cdef:
            int64_t total
            int32_t i, b
            Template* t
        total = self.templates_room * <int64_t>sizeof(Template) + 4 * <int64_t>self.kinds_room
        total += 4 * self.rows_room
        total += self.alone_room * <int64_t>sizeof(Alone) + 4 * self.low_room
        total += self.visits_room * <int64_t>sizeof(Visit)
        for i in range(self.n_templates):
            t = &self.templates[i]
            total += t.blocks_room * <int64_t>sizeof(Block) + t.spans_room * <int64_t>sizeof(Span)
            for b in range(t.n_blocks):
                total += t.blocks[b].room * (8 if t.blocks[b].since == NULL else 10)
        return total
