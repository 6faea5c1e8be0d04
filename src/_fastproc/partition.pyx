"""Memory objects of what frame indexes hold: frames that the same regions map. Opens no file.

Spans (members of a template that had a frame) are sorted by frame; the spans of a frame, written
as runs of regions, are its mappers; frames of one kind with the same mappers are one class. A frame
that was seen as two things was freed and used again: each of its lives counts by itself.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport bsearch, free, malloc, qsort, realloc
from libc.string cimport memset

from _fastproc.bitmap cimport Bitmap, free_bitmap, has, new_bitmap, put
from _fastproc.classes cimport ClassTable, Pair
from _fastproc.frames cimport (
    K_ANON,
    K_LONE,
    K_SWAP,
    Block,
    FrameIndex,
    Template,
    Visit,
    kind_of,
)

from itertools import pairwise

import numpy as np

cdef enum:
    DIGIT = 11           # bits of a radix
    KIND_BITS = 3        # of a key, below the frame number

cdef uint64_t PFN = (<uint64_t>1 << 55) - 1
cdef uint64_t SWAP_KEY = <uint64_t>1 << 63

# Regions first to last map a frame: key = swap slot (bit 63) | frame number << 3 | FrameKind.
cdef struct Held:
    uint64_t key
    int32_t first
    int32_t last

# One region's sighting of a frame that was several things.
cdef struct Sighting:
    uint64_t frame
    int64_t when
    int32_t row
    int32_t kind


cdef int _by_time(const void* a, const void* b) noexcept nogil:
    # By frame, then as the regions were visited.
    cdef:
        const Sighting* x = <const Sighting*>a
        const Sighting* y = <const Sighting*>b
    if x.frame != y.frame:
        return 1 if x.frame > y.frame else -1
    if x.when != y.when:
        return 1 if x.when > y.when else -1
    if x.row != y.row:
        return 1 if x.row > y.row else -1
    return (x.kind > y.kind) - (x.kind < y.kind)


cdef int _by_value(const void* a, const void* b) noexcept nogil:
    cdef:
        uint64_t x = (<const uint64_t*>a)[0]
        uint64_t y = (<const uint64_t*>b)[0]
    return (x > y) - (x < y)


cdef int _sort_by_key(Held* held, Held* other, int64_t n) noexcept nogil:
    # Radix sort, stable; returns whether the answer is in `other`.
    cdef:
        int64_t[6][2048] count
        int64_t i, at, c
        int d, swapped = 0
        uint64_t key
        Held* from_ = held
        Held* to = other
        Held* keep
    memset(&count[0][0], 0, sizeof(count))
    for i in range(n):
        key = held[i].key
        for d in range(6):
            count[d][(key >> (DIGIT * d)) & 2047] += 1
    for d in range(6):
        if n == 0 or count[d][(held[0].key >> (DIGIT * d)) & 2047] == n:
            continue
        at = 0
        for i in range(2048):
            c = count[d][i]
            count[d][i] = at
            at += c
        for i in range(n):
            key = (from_[i].key >> (DIGIT * d)) & 2047
            to[count[d][key]] = from_[i]
            count[d][key] += 1
        keep = from_
        from_ = to
        to = keep
        swapped = 1 - swapped
    return swapped


cdef struct _Lives:
    Sighting* seen
    Pair* runs
    int64_t room


cdef class Partition:
    """What frame indexes hold, together: classes of frames with the same mappers.

    Parameters
    ----------
    indexes : list of FrameIndex
        One a thread; between them no row was visited twice. They are kept, and not to be
        visited again.
    keep : (N,) bool as uint8
        By row: whether the region counts. The others are as if nobody had mapped what they map,
        but for what they tell of frames that were freed and used again.

    Attributes
    ----------
    region : (N,) int32
        By row: number of the region, -1 for those that do not count. Regions with like frames
        stand together.
    kind : (C,) uint8, pages : (C,) int64
        FrameKind and number of distinct frames of each class; no two classes are alike.
    indptr : (C + 1,) int64
        Mappers of class c are the runs ``indptr[c]`` to ``indptr[c + 1]``:
    first, last : (R,) int32
        regions, both included; by rising number, and none touches the next.
    replaced : int
        Lives of frames that ended while it was read: the frame came back as another kind of
        page, or though one region had had it alone.

    Raises
    ------
    ValueError
        A row is out of range or was visited twice.

    Notes
    -----
    O(spans) time and 32 bytes for each, while it is made.
    """

    cdef:
        readonly object region, kind, pages, indptr, first, last
        readonly int64_t replaced
        object indexes
        # By frame, rising: those that are in a span, and those that were several things.
        uint64_t* frames
        int32_t* class_of
        int64_t n_frames
        int32_t* class_alone  # by row: class of the frames that it has alone
        int64_t n_rows
        uint64_t* several     # rising
        int32_t* class_several
        int64_t n_several, several_room
        ClassTable classes

    def __dealloc__(self):
        free(self.frames)
        free(self.class_of)
        free(self.class_alone)
        free(self.several)
        free(self.class_several)

    def __init__(self, indexes, const uint8_t[::1] keep not None):
        self.indexes = list(indexes)
        self.n_rows = keep.shape[0]
        self.classes = ClassTable()
        order, bases, row_of = self._number(keep)
        self._sort(order, bases, row_of)
        self._take_out()

    cdef _number(self, const uint8_t[::1] keep):
        # Number the members of all templates, those of a kind together.
        # Returns the templates in that order, [(index, template)], first member of each by index
        # and template, and the row of each member. Sets `region`.
        cdef:
            FrameIndex index
            int64_t total = 0, members, i, k, at, n = self.n_rows
            int32_t t, row
            Visit* visit
        kinds, numbers, which = [], [], []
        for number, one in enumerate(self.indexes):
            index = one
            mine = np.empty(index.n_templates, np.int32)
            sizes = np.empty(index.n_templates, np.int64)
            _describe(index, mine, sizes)
            kinds.append(mine)
            numbers.append(sizes)
            which.append(np.full(len(mine), number, np.int32))
        if n > 0x7FFFFFFF:
            raise ValueError(f"{n} regions")
        kind = np.concatenate([np.empty(0, np.int32), *kinds])
        order = np.argsort(kind, kind="stable")
        size = np.concatenate([np.empty(0, np.int64), *numbers])
        base = np.empty(len(size), np.int64)
        base[order] = np.cumsum(size[order]) - size[order]
        starts = np.concatenate([[0], np.cumsum([len(mine) for mine in kinds])]).astype(np.int64)
        bases = [base[a:b] for a, b in pairwise(starts)]
        members = size.sum()
        row_of = np.empty(members, np.int32)
        region = np.full(n, -1, np.int32)
        cdef:
            int32_t[::1] row_ = row_of, region_ = region
            int64_t[::1] next_
        for one, mine in zip(self.indexes, bases, strict=True):
            index = one
            next_ = mine.copy()
            at = 0
            for i in range(index.n_visits):
                visit = &index.visits[i]
                if visit.row + visit.n > n:
                    raise ValueError(f"row {visit.row + visit.n - 1} of {n}")
                for k in range(visit.n):
                    row = visit.row + <int32_t>k
                    if region_[row] != -1:
                        raise ValueError(f"row {row} was visited twice")
                    region_[row] = -2
                    t = index.template_of[at + k]
                    if t >= 0:
                        row_[next_[t]] = row
                        next_[t] += 1
                        region_[row] = -3
                at += visit.n
        total = 0
        for i in range(members):
            if keep[row_[i]]:
                region_[row_[i]] = <int32_t>total
                total += 1
        # Then those that share nothing, as they come.
        for i in range(n):
            if not keep[i]:
                region_[i] = -1
            elif region_[i] < 0 and region_[i] != -3:
                region_[i] = <int32_t>total
                total += 1
        self.region = region
        which_of = np.concatenate([np.empty(0, np.int32), *which])
        pairs = np.empty((len(order), 2), np.int32)
        pairs[:, 0] = which_of[order]
        pairs[:, 1] = order - starts[which_of[order]]
        return pairs, bases, row_of

    cdef _sort(self, const int32_t[:, ::1] order, bases, const int32_t[::1] row_of):
        cdef:
            FrameIndex index
            Template* t
            int64_t n = 0, i, j, k, members = row_of.shape[0], widest = 0
            int32_t b
            Held* held = NULL
            Held* other = NULL
            Pair* runs = NULL
            Bitmap alone, several
            int64_t[::1] bases_
            const int32_t[::1] region = self.region
            # Members that count, before each member.
            int32_t[::1] before = np.zeros(members + 1, np.int32)
            int failed = 0
        for i in range(members):
            before[i + 1] = before[i] + (region[row_of[i]] >= 0)
        for i in range(order.shape[0]):
            index = self.indexes[order[i, 0]]
            t = &index.templates[order[i, 1]]
            n += t.n_spans
            for b in range(t.n_blocks):
                n += t.blocks[b].live
        held = <Held*>malloc((n + 1) * sizeof(Held))
        other = <Held*>malloc((n + 1) * sizeof(Held))
        failed = new_bitmap(&alone) | new_bitmap(&several)
        try:
            if held == NULL or other == NULL or failed:
                raise MemoryError
            k = 0
            for i in range(order.shape[0]):
                index = self.indexes[order[i, 0]]
                bases_ = bases[order[i, 0]]
                k += _gather(&index.templates[order[i, 1]], bases_[order[i, 1]], held + k)
            for one in self.indexes:
                index = one
                with nogil:
                    failed |= _mark(index, &alone, &several)
            if failed:
                raise MemoryError
            with nogil:
                if _sort_by_key(held, other, n):
                    held, other = other, held
                k = 0
                i = 0
                while i < n:
                    j = i
                    while j < n and held[j].key >> KIND_BITS == held[i].key >> KIND_BITS:
                        j += 1
                    k += 1
                    widest = max(widest, j - i)
                    i = j
            free(other)
            other = NULL
            self.frames = <uint64_t*>malloc((k + 1) * sizeof(uint64_t))
            self.class_of = <int32_t*>malloc((k + 1) * sizeof(int32_t))
            runs = <Pair*>malloc((widest + 1) * sizeof(Pair))
            if self.frames == NULL or self.class_of == NULL or runs == NULL:
                raise MemoryError
            with nogil:
                failed = self._group(held, n, &before[0], runs, &alone, &several)
            if failed:
                raise MemoryError
            self._count_alone(&several)
            self._tell_lives(held, n, row_of, &several)
        finally:
            free(held)
            free(other)
            free(runs)
            free_bitmap(&alone)
            free_bitmap(&several)

    cdef int _group(
        self,
        const Held* held,
        int64_t n,
        const int32_t* before,
        Pair* runs,
        Bitmap* alone,
        Bitmap* several,
    ) noexcept nogil:
        # Classes of the frames in spans; those that were several things are left to _tell_lives.
        cdef:
            int64_t i = 0, j, m
            uint64_t frame
            int32_t c
            bint one
        while i < n:
            frame = held[i].key >> KIND_BITS
            one = True
            m = 0
            j = i
            while j < n and held[j].key >> KIND_BITS == frame:
                if held[j].key != held[i].key:
                    one = False
                runs[m].first = before[held[j].first]
                runs[m].last = before[held[j].last + 1] - 1
                m += runs[m].first <= runs[m].last
                j += 1
            if not held[i].key & SWAP_KEY and (
                not one or has(alone, frame) or has(several, frame)
            ):
                if put(several, frame) < 0:
                    return -1
            else:
                c = self.classes.add(<uint8_t>(held[i].key & 7), runs, m, 1)
                if c == -1:
                    return -1
                if c >= 0:
                    self.frames[self.n_frames] = frame
                    self.class_of[self.n_frames] = c
                    self.n_frames += 1
            i = j
        return 0

    cdef _count_alone(self, Bitmap* several):
        # A class for each region that has frames alone.
        cdef:
            FrameIndex index
            int64_t i
            int64_t[::1] count = np.zeros(self.n_rows + 1, np.int64)
            const int32_t[::1] region = self.region
            Pair run
            int32_t c
        self.class_alone = <int32_t*>malloc((self.n_rows + 1) * sizeof(int32_t))
        if self.class_alone == NULL:
            raise MemoryError
        for one in self.indexes:
            index = one
            for i in range(index.n_alone):
                count[index.alone[i].row] += _end(index, i) - index.alone[i].at
            if several.n:
                with nogil:
                    _leave_out(index, several, &count[0])
        for i in range(self.n_rows):
            c = -1
            if count[i] and region[i] >= 0:
                run.first = run.last = region[i]
                c = self.classes.add(K_ANON, &run, 1, count[i])
                if c == -1:
                    raise MemoryError
            self.class_alone[i] = c

    cdef _tell_lives(
        self, const Held* held, int64_t n, const int32_t[::1] row_of, Bitmap* several
    ):
        # Frames that were several things: follow each through time.
        cdef:
            FrameIndex index
            int64_t n_alone = 0, i, j
            int64_t[::1] when
            Sighting* alone
            int failed
        if several.n == 0:
            return
        when = np.zeros(self.n_rows + 1, np.int64)
        for one in self.indexes:
            index = one
            for i in range(index.n_visits):
                for j in range(index.visits[i].n):
                    when[index.visits[i].row + j] = index.visits[i].when
            n_alone += _seen_alone(index, several, &when[0], NULL)
        alone = <Sighting*>malloc((n_alone + 1) * sizeof(Sighting))
        if alone == NULL:
            raise MemoryError
        i = 0
        for one in self.indexes:
            i += _seen_alone(one, several, &when[0], alone + i)
        region = self.region
        cdef const int32_t[::1] region_ = region
        with nogil:
            qsort(alone, n_alone, sizeof(Sighting), _by_time)
            failed = self._follow(
                held, n, alone, n_alone, &row_of[0] if row_of.shape[0] else NULL, &when[0],
                &region_[0], several,
            )
        free(alone)
        if failed:
            raise MemoryError

    cdef int _follow(
        self,
        const Held* held,
        int64_t n,
        const Sighting* alone,
        int64_t n_alone,
        const int32_t* row_of,
        const int64_t* when,
        const int32_t* region,
        Bitmap* several,
    ) noexcept nogil:
        # Held and alone both rise by frame.
        cdef:
            int64_t h = 0, a = 0, m, i, j
            uint64_t frame
            _Lives lives
            int failed = 0
        memset(&lives, 0, sizeof(lives))
        while not failed:
            while h < n and (
                held[h].key & SWAP_KEY or not has(several, held[h].key >> KIND_BITS)
            ):
                h += 1
            if h >= n and a >= n_alone:
                break
            if h >= n or (a < n_alone and alone[a].frame < held[h].key >> KIND_BITS):
                frame = alone[a].frame
            else:
                frame = held[h].key >> KIND_BITS
            # Every sighting of this frame.
            i = h
            m = 0
            while i < n and held[i].key >> KIND_BITS == frame:
                m += held[i].last - held[i].first + 1
                i += 1
            j = a
            while j < n_alone and alone[j].frame == frame:
                j += 1
            m += j - a
            if _room_for(&lives, m):
                failed = 1
                break
            m = 0
            while h < i:
                for j in range(held[h].first, held[h].last + 1):
                    lives.seen[m].frame = frame
                    lives.seen[m].row = row_of[j]
                    lives.seen[m].when = when[row_of[j]]
                    lives.seen[m].kind = held[h].key & 7
                    m += 1
                h += 1
            while a < n_alone and alone[a].frame == frame:
                lives.seen[m] = alone[a]
                m += 1
                a += 1
            failed = self._live(frame, &lives, m, region)
        free(lives.seen)
        free(lives.runs)
        return failed

    cdef int _live(
        self, uint64_t frame, _Lives* lives, int64_t n, const int32_t* region
    ) noexcept nogil:
        cdef:
            int64_t i, m = 0
            int32_t kind, c = -2
            void* p
        if self.n_several == self.several_room:
            self.several_room = 2 * self.several_room + 16
            p = realloc(self.several, self.several_room * sizeof(uint64_t))
            if p == NULL:
                return -1
            self.several = <uint64_t*>p
            p = realloc(self.class_several, self.several_room * sizeof(int32_t))
            if p == NULL:
                return -1
            self.class_several = <int32_t*>p
        qsort(lives.seen, n, sizeof(Sighting), _by_time)
        kind = lives.seen[0].kind
        for i in range(n):
            if i and lives.seen[i].row == lives.seen[i - 1].row:
                continue  # this region maps the frame twice (KSM does that)
            if i and (lives.seen[i].kind != kind or kind == K_LONE):
                # The frame was freed and is something else now: who had it, had another page.
                # So too if one of the two had it alone: an address space that is older than
                # both sightings does not come to share another's anonymous page.
                c = self.classes.add(K_ANON if kind == K_LONE else <uint8_t>kind, lives.runs, m, 1)
                if c == -1:
                    return -1
                self.replaced += 1
                kind = lives.seen[i].kind
                m = 0
            if region[lives.seen[i].row] >= 0:
                lives.runs[m].first = lives.runs[m].last = region[lives.seen[i].row]
                m += 1
        c = self.classes.add(K_ANON if kind == K_LONE else <uint8_t>kind, lives.runs, m, 1)
        if c == -1:
            return -1
        self.several[self.n_several] = frame
        self.class_several[self.n_several] = c
        self.n_several += 1
        return 0

    cdef _take_out(self):
        cdef:
            ClassTable found = self.classes
            int64_t i
        self.kind = np.empty(found.n, np.uint8)
        self.pages = np.empty(found.n, np.int64)
        self.indptr = np.empty(found.n + 1, np.int64)
        self.first = np.empty(found.n_runs, np.int32)
        self.last = np.empty(found.n_runs, np.int32)
        cdef:
            uint8_t[::1] kind = self.kind
            int64_t[::1] pages = self.pages, indptr = self.indptr
            int32_t[::1] first = self.first, last = self.last
        for i in range(found.n):
            kind[i] = found.kind[i]
            pages[i] = found.pages[i]
        for i in range(found.n + 1):
            indptr[i] = found.indptr[i]
        for i in range(found.n_runs):
            first[i] = found.runs[i].first
            last[i] = found.runs[i].last
        self.classes = None

    def frames_of(self, const uint8_t[::1] wanted not None):
        """Frames of some classes.

        Parameters
        ----------
        wanted : (C,) uint8
            Whether the frames of each class are wanted.

        Returns
        -------
        (frame, of)
            (N,) uint64 frame numbers (bit 63 set: a swap slot), each once and in no order, and
            (N,) int64 classes: of a frame with several lives, that of the last.

        Raises
        ------
        ValueError
            *wanted* is not of length C.
        """
        cdef:
            FrameIndex index
            int64_t n = 0, i, k, round_
            int32_t c
            uint64_t[::1] frame_
            int64_t[::1] of_
            uint64_t number
        if wanted.shape[0] != len(self.kind):
            raise ValueError(f"wanted is of length {wanted.shape[0]}, not {len(self.kind)}")
        for round_ in range(2):
            # Counted first, then written.
            if round_:
                frame = np.empty(n, np.uint64)
                of = np.empty(n, np.int64)
                frame_ = frame
                of_ = of
            n = 0
            for i in range(self.n_frames):
                if wanted[self.class_of[i]]:
                    if round_:
                        frame_[n] = self.frames[i] & PFN
                        if self.frames[i] >> 60:
                            frame_[n] |= SWAP_KEY
                        of_[n] = self.class_of[i]
                    n += 1
            for i in range(self.n_several):
                c = self.class_several[i]
                if c >= 0 and wanted[c]:
                    if round_:
                        frame_[n] = self.several[i]
                        of_[n] = c
                    n += 1
            for one in self.indexes:
                index = one
                for i in range(index.n_alone):
                    c = self.class_alone[index.alone[i].row]
                    if c < 0 or not wanted[c]:
                        continue
                    for k in range(index.alone[i].at, _end(index, i)):
                        number = (<uint64_t>index.alone[i].high << 32) | index.low[k]
                        if self.n_several and bsearch(
                            &number, self.several, self.n_several, sizeof(uint64_t), _by_value
                        ) != NULL:
                            continue
                        if round_:
                            frame_[n] = number
                            of_[n] = c
                        n += 1
        return frame, of


cdef int _room_for(_Lives* lives, int64_t n) noexcept nogil:
    cdef void* p
    if n <= lives.room:
        return 0
    p = realloc(lives.seen, 2 * n * sizeof(Sighting))
    if p == NULL:
        return -1
    lives.seen = <Sighting*>p
    p = realloc(lives.runs, 2 * n * sizeof(Pair))
    if p == NULL:
        return -1
    lives.runs = <Pair*>p
    lives.room = 2 * n
    return 0


cdef _describe(FrameIndex index, int32_t[::1] kind, int64_t[::1] members):
    cdef int32_t t
    for t in range(index.n_templates):
        kind[t] = index.templates[t].kind
        members[t] = index.templates[t].members


cdef inline uint64_t _key(uint64_t word, bint shared) noexcept nogil:
    cdef int kind = kind_of(word, shared)
    return (SWAP_KEY if kind == K_SWAP else 0) | (word & PFN) << KIND_BITS | <uint64_t>kind


cdef int64_t _gather(const Template* t, int64_t base, Held* out) noexcept nogil:
    # Spans that ended, and those that lasted to the last member. How many.
    cdef:
        int64_t i, n = 0
        int32_t b, off
        bint shared = t.kind & 1
        const Block* block
    for i in range(t.n_spans):
        out[n].key = _key(t.spans[i].word, shared)
        out[n].first = <int32_t>(base + t.spans[i].first)
        out[n].last = <int32_t>(base + t.spans[i].last)
        n += 1
    for b in range(t.n_blocks):
        block = &t.blocks[b]
        for off in range(block.room):
            if block.word[off]:
                out[n].key = _key(block.word[off], shared)
                out[n].first = <int32_t>(
                    base + (block.since_all if block.since == NULL else block.since[off])
                )
                out[n].last = <int32_t>(base + t.members - 1)
                n += 1
    return n


cdef inline int64_t _end(FrameIndex index, int64_t i) noexcept nogil:
    return index.alone[i + 1].at if i + 1 < index.n_alone else index.n_low


cdef int _mark(FrameIndex index, Bitmap* alone, Bitmap* several) noexcept nogil:
    # Frames that someone had alone, and those that were so twice. -1 if memory ran out.
    cdef:
        int64_t i, k
        uint64_t number
        int got
    for i in range(index.n_alone):
        for k in range(index.alone[i].at, _end(index, i)):
            number = (<uint64_t>index.alone[i].high << 32) | index.low[k]
            got = put(alone, number)
            if got < 0 or (got == 1 and put(several, number) < 0):
                return -1
    return 0


cdef void _leave_out(FrameIndex index, Bitmap* several, int64_t* count) noexcept nogil:
    cdef int64_t i, k
    for i in range(index.n_alone):
        for k in range(index.alone[i].at, _end(index, i)):
            if has(several, (<uint64_t>index.alone[i].high << 32) | index.low[k]):
                count[index.alone[i].row] -= 1


cdef int64_t _seen_alone(
    FrameIndex index, Bitmap* several, const int64_t* when, Sighting* out
) noexcept nogil:
    # Sightings of frames that were several things; counted only if `out` is NULL.
    cdef:
        int64_t i, k, n = 0
        uint64_t number
    for i in range(index.n_alone):
        for k in range(index.alone[i].at, _end(index, i)):
            number = (<uint64_t>index.alone[i].high << 32) | index.low[k]
            if has(several, number):
                if out != NULL:
                    out[n].frame = number
                    out[n].row = index.alone[i].row
                    out[n].when = when[out[n].row]
                    out[n].kind = K_LONE
                n += 1
    return n
