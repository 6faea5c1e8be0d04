"""Frames to memory objects: which frames do exactly the same regions map? Opens no file.

Streaming partition refinement. Every frame seen so far belongs to one class, the set of
regions that mapped it; visiting a region moves its frames to the classes "as before, and
this region". A class that a visit empties hands its set over, so that sets are copied only
where a class really splits. Sets are runs over (kind, ordinal), see ``maps.VmaTable``.

Cost: one table look-up per visited page, 4 bytes per frame of memory touched, and the runs.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcpy, memset

from _fastproc.bits cimport pm_exclusive, pm_file, pm_pfn, pm_present

import numpy as np

cdef enum:
    CHUNK_BITS = 15
    CHUNK_FRAMES = 1 << CHUNK_BITS

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
    N_KINDS

cdef uint64_t SWAP_KEY = <uint64_t>1 << 63
cdef uint64_t NO_CHUNK = ~<uint64_t>0

cdef struct Run:
    int32_t kind
    int32_t first
    int32_t last

cdef struct Class:
    int64_t frames
    int64_t shy      # of them, first seen mapped by others too (bit 56 clear)
    Run* runs
    int32_t n_runs
    int32_t room
    int32_t child    # of the visit in `stamp`
    uint8_t kind
    uint64_t stamp   # visit that split it last
    uint64_t born    # visit that made it

cdef struct Chunk:
    uint64_t number
    int32_t* of      # class of each frame, 0 for none

cdef struct Pair:
    int32_t first
    int32_t last


cdef inline uint64_t _scatter(uint64_t number) noexcept nogil:
    cdef uint64_t h = number * <uint64_t>0x9E3779B97F4A7C15ULL
    return h ^ (h >> 29)


cdef class FrameIndex:
    """The partition of frames by the set of regions that map them.

    Not thread-safe: hold a lock around each call. ``visit`` releases the GIL.

    Frame numbers may be sparse and of any size: the table of frames is made of chunks of 32768
    that exist where a frame was seen.
    """

    cdef:
        Class* classes
        int32_t n_classes, classes_room, free_class
        Chunk* chunks          # open addressing by chunk number
        uint64_t n_slots, n_chunks
        uint64_t last_number
        int32_t* last_of
        uint64_t visit_id
        int32_t* touched
        int32_t n_touched, touched_room
        int64_t replaced_
        int64_t pairs_

    def __cinit__(self):
        cdef int32_t k
        self.classes_room = 1024
        self.classes = <Class*>calloc(self.classes_room, sizeof(Class))
        self.n_slots = 256
        self.chunks = <Chunk*>calloc(self.n_slots, sizeof(Chunk))
        self.touched_room = 1024
        self.touched = <int32_t*>malloc(self.touched_room * sizeof(int32_t))
        if self.classes == NULL or self.chunks == NULL or self.touched == NULL:
            raise MemoryError
        # Class 0 is nobody's; 1 .. N_KINDS are "no region yet", by kind.
        self.n_classes = 1 + N_KINDS
        for k in range(N_KINDS):
            self.classes[1 + k].kind = <uint8_t>k
        self.free_class = -1
        self.last_number = NO_CHUNK

    def __dealloc__(self):
        cdef int64_t i
        if self.classes != NULL:
            for i in range(self.n_classes):
                free(self.classes[i].runs)
        if self.chunks != NULL:
            for i in range(<int64_t>self.n_slots):
                free(self.chunks[i].of)
        free(self.classes)
        free(self.chunks)
        free(self.touched)

    cdef int32_t* _chunk(self, uint64_t number) noexcept nogil:
        # The classes of a chunk of frames, made if it is new; NULL if memory ran out.
        cdef:
            uint64_t at
            uint64_t i, n
            Chunk* grown
        if number == self.last_number:
            return self.last_of
        at = _scatter(number) & (self.n_slots - 1)
        while self.chunks[at].of != NULL:
            if self.chunks[at].number == number:
                self.last_number = number
                self.last_of = self.chunks[at].of
                return self.last_of
            at = (at + 1) & (self.n_slots - 1)
        if self.n_chunks * 2 >= self.n_slots:
            n = self.n_slots * 2
            grown = <Chunk*>calloc(n, sizeof(Chunk))
            if grown == NULL:
                return NULL
            for i in range(self.n_slots):
                if self.chunks[i].of != NULL:
                    at = _scatter(self.chunks[i].number) & (n - 1)
                    while grown[at].of != NULL:
                        at = (at + 1) & (n - 1)
                    grown[at] = self.chunks[i]
            free(self.chunks)
            self.chunks = grown
            self.n_slots = n
            at = _scatter(number) & (n - 1)
            while self.chunks[at].of != NULL:
                at = (at + 1) & (n - 1)
        self.chunks[at].of = <int32_t*>calloc(CHUNK_FRAMES, sizeof(int32_t))
        if self.chunks[at].of == NULL:
            return NULL
        self.chunks[at].number = number
        self.n_chunks += 1
        self.last_number = number
        self.last_of = self.chunks[at].of
        return self.last_of

    cdef int32_t _new_class(self, uint8_t kind) noexcept nogil:
        # A class without frames or runs, -1 if memory ran out.
        cdef:
            int32_t c
            Class* grown
        if self.free_class >= 0:
            c = self.free_class
            self.free_class = self.classes[c].child
        else:
            if self.n_classes == self.classes_room:
                if self.classes_room > 0x3FFFFFFF:
                    return -1
                grown = <Class*>realloc(self.classes, 2 * self.classes_room * sizeof(Class))
                if grown == NULL:
                    return -1
                self.classes = grown
                self.classes_room *= 2
            c = self.n_classes
            self.n_classes += 1
        memset(&self.classes[c], 0, sizeof(Class))
        self.classes[c].kind = kind
        self.classes[c].born = self.visit_id
        return c

    cdef int _touch(self, int32_t c) noexcept nogil:
        cdef int32_t* grown
        if self.n_touched == self.touched_room:
            grown = <int32_t*>realloc(self.touched, 2 * self.touched_room * sizeof(int32_t))
            if grown == NULL:
                return -1
            self.touched = grown
            self.touched_room *= 2
        self.touched[self.n_touched] = c
        self.n_touched += 1
        return 0

    cdef int _append(self, Class* c, int32_t kind, int32_t ordinal) noexcept nogil:
        # Add region (kind, ordinal) to the set of c.
        cdef:
            Run* grown
            Run* run
            int32_t room
        if c.n_runs:
            run = &c.runs[c.n_runs - 1]
            if run.kind == kind:
                if run.last + 1 == ordinal:
                    run.last = ordinal
                    return 0
                if run.first - 1 == ordinal:
                    run.first = ordinal
                    return 0
        if c.n_runs == c.room:
            room = c.room * 2 if c.room else 1
            grown = <Run*>realloc(c.runs, room * sizeof(Run))
            if grown == NULL:
                return -1
            c.runs = grown
            c.room = room
        run = &c.runs[c.n_runs]
        run.kind = kind
        run.first = ordinal
        run.last = ordinal
        c.n_runs += 1
        return 0

    cdef int _visit(
        self, int32_t kind, int32_t ordinal, bint shared, const uint64_t* entries, Py_ssize_t n
    ) noexcept nogil:
        # Returns 0, or -1 if memory ran out.
        cdef:
            Py_ssize_t i
            uint64_t entry, key
            int32_t* of
            int32_t c, child
            uint8_t frame_kind
            bint shy
            Class* parent
        self.visit_id += 1
        self.n_touched = 0
        for i in range(n):
            entry = entries[i]
            if pm_present(entry):
                key = pm_pfn(entry)
                if pm_file(entry):
                    frame_kind = K_FILE
                elif (entry >> 60) & 1:
                    frame_kind = K_KSM
                elif shared:
                    frame_kind = K_DEVICE
                elif pm_exclusive(entry):
                    frame_kind = K_LONE
                else:
                    frame_kind = K_ANON
                shy = not pm_exclusive(entry)
            else:
                key = SWAP_KEY | pm_pfn(entry)
                frame_kind = K_SWAP
                shy = False
            of = self._chunk(key >> CHUNK_BITS)
            if of == NULL:
                return -1
            c = of[key & (CHUNK_FRAMES - 1)]
            if c == 0:
                c = 1 + frame_kind
            elif self.classes[c].born == self.visit_id:
                continue  # this region maps the frame twice (KSM does that)
            elif self.classes[c].kind != frame_kind or frame_kind == K_LONE:
                # The frame was freed and is something else now: who had it, had another page.
                # So too if one of the two had it alone: an address space that is older than
                # both sightings does not come to share another's anonymous page.
                self.replaced_ += 1
                c = 1 + frame_kind
            parent = &self.classes[c]
            if parent.stamp != self.visit_id:
                if self._touch(c):
                    return -1
                child = self._new_class(frame_kind)
                if child < 0:
                    return -1
                parent = &self.classes[c]
                parent.stamp = self.visit_id
                parent.child = child
            child = parent.child
            if c > N_KINDS:
                parent.frames -= 1
                if parent.shy and shy:
                    parent.shy -= 1
                    self.classes[child].shy += 1
            elif shy:
                self.classes[child].shy += 1
            self.classes[child].frames += 1
            of[key & (CHUNK_FRAMES - 1)] = child
        for i in range(self.n_touched):
            if self._settle(self.touched[i], kind, ordinal):
                return -1
        self.pairs_ += n
        return 0

    cdef int _settle(self, int32_t c, int32_t kind, int32_t ordinal) noexcept nogil:
        # After a visit: give the child of c its set, c's own where c is empty now.
        cdef:
            Class* parent = &self.classes[c]
            Class* child = &self.classes[parent.child]
        if parent.frames == 0 and c > N_KINDS:
            child.runs = parent.runs
            child.n_runs = parent.n_runs
            child.room = parent.room
            parent.runs = NULL
            parent.n_runs = 0
            parent.room = 0
            parent.child = self.free_class
            self.free_class = c
        elif parent.n_runs:
            child.runs = <Run*>malloc((parent.n_runs + 1) * sizeof(Run))
            if child.runs == NULL:
                return -1
            memcpy(child.runs, parent.runs, parent.n_runs * sizeof(Run))
            child.n_runs = parent.n_runs
            child.room = parent.n_runs + 1
        return self._append(child, kind, ordinal)

    def visit(
        self,
        const int32_t[::1] kind not None,
        const int32_t[::1] ordinal not None,
        const uint8_t[::1] prot not None,
        const int64_t[::1] indptr not None,
        const uint64_t[::1] entries not None,
    ):
        """Visit V regions: region v maps the frames ``entries[indptr[v]:indptr[v + 1]]``.

        Parameters
        ----------
        kind, ordinal : (V,) int32
            The region, as ``maps.VmaTable`` numbers it.
        prot : (V,) uint8
            Bit 8: MAP_SHARED.
        indptr : (V + 1,) int64
        entries : (N,) uint64
            pagemap entries, present or swapped, zero pages left out; bit 60 marks KSM.

        Raises
        ------
        ValueError
            The arrays do not fit each other; nothing was visited.
        MemoryError
            The index is not usable any more.
        """
        cdef:
            Py_ssize_t n = kind.shape[0], v
            int64_t total = entries.shape[0]
            int failed = 0
        if ordinal.shape[0] != n or prot.shape[0] != n or indptr.shape[0] != n + 1:
            raise ValueError("kind, ordinal, prot and indptr are of different lengths")
        for v in range(n):
            if not 0 <= indptr[v] <= indptr[v + 1] <= total:
                raise ValueError(f"indptr[{v}] is not within the {total} entries")
        if n == 0 or total == 0:
            return
        with nogil:
            for v in range(n):
                if indptr[v + 1] > indptr[v]:
                    failed = self._visit(
                        kind[v], ordinal[v], prot[v] & 8, &entries[indptr[v]],
                        <Py_ssize_t>(indptr[v + 1] - indptr[v]),
                    )
                    if failed:
                        break
        if failed:
            raise MemoryError

    @property
    def replaced(self):
        """Frames that came back as another kind of page: freed and reused meanwhile."""
        return self.replaced_

    @property
    def pairs(self):
        """(region, frame) pairs visited."""
        return self.pairs_

    @property
    def nbytes(self):
        """Bytes of memory that the index holds."""
        cdef:
            int64_t total = self.classes_room * <int64_t>sizeof(Class)
            int32_t i
        total += self.n_slots * sizeof(Chunk) + self.n_chunks * CHUNK_FRAMES * 4
        for i in range(self.n_classes):
            total += self.classes[i].room * <int64_t>sizeof(Run)
        return total

    def classes_and_runs(self):
        """The partition so far.

        Returns
        -------
        dict of ndarray
            ``id`` (C,) int32, the internal number that ``frames_of`` speaks of; ``kind`` (C,)
            uint8, FrameKind; ``frames``, ``shy`` (C,) int64: distinct frames, and those of them
            that looked shared when first seen; ``indptr`` (C + 1,) int64 into the runs:
            ``run_kind``, ``run_first``, ``run_last`` (R,) int32.
        """
        cdef:
            int32_t i
            int64_t n = 0, r = 0, at = 0, k = 0
        for i in range(1 + N_KINDS, self.n_classes):
            if self.classes[i].n_runs and self.classes[i].frames > 0:
                n += 1
                r += self.classes[i].n_runs
        ids = np.empty(n, np.int32)
        kinds = np.empty(n, np.uint8)
        frames = np.empty(n, np.int64)
        shy = np.empty(n, np.int64)
        indptr = np.zeros(n + 1, np.int64)
        runs = np.empty((3, r), np.int32)
        cdef:
            int32_t[::1] ids_ = ids
            uint8_t[::1] kinds_ = kinds
            int64_t[::1] frames_ = frames, shy_ = shy, indptr_ = indptr
            int32_t[:, ::1] runs_ = runs
            int32_t j
        with nogil:
            for i in range(1 + N_KINDS, self.n_classes):
                if self.classes[i].n_runs == 0 or self.classes[i].frames <= 0:
                    continue
                ids_[k] = i
                kinds_[k] = K_ANON if self.classes[i].kind == K_LONE else self.classes[i].kind
                frames_[k] = self.classes[i].frames
                # A hint: of a frame that left, nobody knows whether it was among them.
                shy_[k] = min(self.classes[i].shy, self.classes[i].frames)
                for j in range(self.classes[i].n_runs):
                    runs_[0, at] = self.classes[i].runs[j].kind
                    runs_[1, at] = self.classes[i].runs[j].first
                    runs_[2, at] = self.classes[i].runs[j].last
                    at += 1
                k += 1
                indptr_[k] = at
        return {
            "id": ids, "kind": kinds, "frames": frames, "shy": shy, "indptr": indptr,
            "run_kind": runs[0], "run_first": runs[1], "run_last": runs[2],
        }

    def frames_of(self, const uint8_t[::1] wanted not None):
        """Frames of some classes.

        Parameters
        ----------
        wanted : (>= largest id + 1,) uint8
            By internal class number: whether its frames are wanted.

        Returns
        -------
        (frame, id)
            (N,) uint64 frame numbers (bit 63 set: a swap slot), rising within a chunk, and
            (N,) int32 class numbers.
        """
        cdef:
            uint64_t s
            int64_t n = 0, i
            int32_t c
            Py_ssize_t limit = wanted.shape[0]
        for s in range(self.n_slots):
            if self.chunks[s].of != NULL:
                for i in range(CHUNK_FRAMES):
                    c = self.chunks[s].of[i]
                    if c and c < limit and wanted[c]:
                        n += 1
        frame = np.empty(n, np.uint64)
        ids = np.empty(n, np.int32)
        cdef:
            uint64_t[::1] frame_ = frame
            int32_t[::1] ids_ = ids
        n = 0
        with nogil:
            for s in range(self.n_slots):
                if self.chunks[s].of == NULL:
                    continue
                for i in range(CHUNK_FRAMES):
                    c = self.chunks[s].of[i]
                    if c and c < limit and wanted[c]:
                        frame_[n] = (self.chunks[s].number << CHUNK_BITS) | <uint64_t>i
                        ids_[n] = c
                        n += 1
        return frame, ids


cdef int _by_first(const void* a, const void* b) noexcept nogil:
    cdef:
        int32_t x = (<const Pair*>a).first
        int32_t y = (<const Pair*>b).first
    return (x > y) - (x < y)


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
                h1 = _scatter(h1 ^ ((<uint64_t>of[i] << 32) | <uint64_t>ol[i]))
                h1 ^= h1 >> 32
                h2 += (<uint64_t>ol[i] << 32) | <uint64_t>of[i]
                h2 *= <uint64_t>0xBF58476D1CE4E5B9ULL
                h2 ^= h2 >> 31
            oh[c, 0] = h1
            oh[c, 1] = h2
            oi[c + 1] = at
    free(pairs)
    return out_indptr, out_first[:at].copy(), out_last[:at].copy(), hashes
