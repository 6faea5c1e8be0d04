"""``/proc/<pid>/maps`` text to columns. Raises only OSError and ValueError.

Source: show_map_vma() in fs/proc/task_mmu.c. One line is
``start-end perms offset major:minor inode   path``; in the path only a newline is
escaped, as ``\\012``.
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp
from posix.unistd cimport read

import os

import numpy as np

cdef enum:
    PROT_R = 4
    PROT_W = 2
    PROT_X = 1
    SHARED = 8

# osmosis.schema.VmaKind, in its order; a unit test compares the two.
cdef enum:
    ANON
    FILE
    SHM
    HEAP
    STACK
    VDSO
    VVAR
    VSYSCALL
    OTHER


def read_all(int fd, Py_ssize_t hint=65536):
    """Read a /proc file from its current offset to its end; releases the GIL.

    Returns bytes. A maps file opened before its process called execve gives b"".
    """
    cdef:
        Py_ssize_t room = max(hint, 4096), done = 0
        ssize_t got = 0
        char* buffer = <char*>malloc(room)
        char* grown
        int error = 0
    if buffer == NULL:
        raise MemoryError
    try:
        with nogil:
            while True:
                if room - done < 4096:
                    grown = <char*>realloc(buffer, room * 2)
                    if grown == NULL:
                        error = 12
                        break
                    buffer = grown
                    room *= 2
                got = read(fd, buffer + done, room - done)
                if got == 0:
                    break
                if got < 0:
                    if errno == EINTR:
                        continue
                    error = errno
                    break
                done += got
        if error:
            raise OSError(error, os.strerror(error))
        return buffer[:done]
    finally:
        free(buffer)


cdef inline const char* _hex(const char* p, const char* end, uint64_t* value) noexcept nogil:
    # Returns where the digits end; p itself if there is none, or more than 64 bits of them.
    cdef:
        uint64_t v = 0
        const char* begin = p
        char c
    while p < end:
        c = p[0]
        if 48 <= c <= 57:
            v = (v << 4) | <uint64_t>(c - 48)
        elif 97 <= c <= 102:
            v = (v << 4) | <uint64_t>(c - 87)
        else:
            break
        p += 1
    value[0] = v
    return p if p - begin <= 16 else begin


cdef inline const char* _decimal(const char* p, const char* end, uint64_t* value) noexcept nogil:
    # As _hex.
    cdef:
        uint64_t v = 0, digit
        const char* begin = p
    while p < end and 48 <= p[0] <= 57:
        digit = <uint64_t>(p[0] - 48)
        if v > (~<uint64_t>0 - digit) // 10:
            return begin
        v = v * 10 + digit
        p += 1
    value[0] = v
    return p


cdef struct Line:
    uint64_t start
    uint64_t end
    uint64_t offset
    uint64_t dev
    uint64_t inode
    const char* path
    Py_ssize_t path_len
    uint8_t prot


cdef const char* _parse_line(const char* p, const char* end, Line* line) noexcept nogil:
    # Returns the start of the next line, or NULL if this one does not parse.
    cdef:
        const char* q
        uint64_t major = 0, minor = 0
    q = _hex(p, end, &line.start)
    if q == p or q >= end or q[0] != 45:
        return NULL
    p = q + 1
    q = _hex(p, end, &line.end)
    if q == p or end - q < 7 or q[0] != 32 or line.end <= line.start:
        return NULL
    p = q + 1
    line.prot = 0
    if p[0] == 114:
        line.prot |= PROT_R
    elif p[0] != 45:
        return NULL
    if p[1] == 119:
        line.prot |= PROT_W
    elif p[1] != 45:
        return NULL
    if p[2] == 120:
        line.prot |= PROT_X
    elif p[2] != 45:
        return NULL
    if p[3] == 115:
        line.prot |= SHARED
    elif p[3] != 112:
        return NULL
    if p[4] != 32:
        return NULL
    p += 5
    q = _hex(p, end, &line.offset)
    if q == p or q >= end or q[0] != 32:
        return NULL
    p = q + 1
    q = _hex(p, end, &major)
    if q == p or q >= end or q[0] != 58:
        return NULL
    p = q + 1
    q = _hex(p, end, &minor)
    if q == p or q >= end or q[0] != 32:
        return NULL
    if (major | minor) >> 32:
        return NULL
    line.dev = (major << 32) | minor
    p = q + 1
    q = _decimal(p, end, &line.inode)
    if q == p or q >= end or (q[0] != 32 and q[0] != 10):
        return NULL
    p = q
    while p < end and p[0] == 32:
        p += 1
    line.path = p
    while p < end and p[0] != 10:
        p += 1
    if p >= end:
        return NULL
    line.path_len = p - line.path
    return p + 1


cdef inline bint _is(Line* line, const char* name, Py_ssize_t n) noexcept nogil:
    return line.path_len == n and memcmp(line.path, name, n) == 0


cdef inline bint _begins(Line* line, const char* name, Py_ssize_t n) noexcept nogil:
    return line.path_len >= n and memcmp(line.path, name, n) == 0


cdef uint8_t _kind(
    Line* line, uint64_t shm_dev, const uint64_t* huge_devs, int n_huge
) noexcept nogil:
    # A name in brackets is the kernel's only where no file is mapped: a file's path is its
    # owner's choice.
    cdef int i
    if line.dev or line.inode:
        # Shared anonymous memory has no name but what each process gives its own mapping
        # (PR_SET_VMA_ANON_NAME, "[anon_shmem:...]"): it is one object under all of them.
        if line.dev == shm_dev and (
            _begins(line, b"/SYSV", 5) or _is(line, b"/dev/zero (deleted)", 19)
            or _begins(line, b"[anon_shmem:", 12)
        ):
            return SHM
        if _begins(line, b"/SYSV", 5):  # SHM_HUGETLB: its inode number is a shmid too
            for i in range(n_huge):
                if line.dev == huge_devs[i]:
                    return SHM
        return FILE
    if line.path_len == 0 or _begins(line, b"[anon:", 6):
        return ANON
    if _is(line, b"[heap]", 6):
        return HEAP
    if _is(line, b"[stack]", 7):
        return STACK
    if _is(line, b"[vdso]", 6):
        return VDSO
    if _begins(line, b"[vvar", 5):
        return VVAR
    if _is(line, b"[vsyscall]", 10):
        return VSYSCALL
    return OTHER


cdef struct Slot:
    uint64_t a
    uint64_t b
    uint64_t c
    int32_t id  # kind + 1; 0 is an empty slot


cdef class VmaTable:
    """All VMAs of many address spaces, as growing columns; not thread-safe: hold a lock.

    Every VMA gets a *kind* and an *ordinal*: VMAs of the same object, offset and
    permissions are of one kind, as are private anonymous ones with the same start and
    permissions (fork's copies). The ordinal counts the VMAs of a kind. Kinds are what makes
    the members of a memory object come in runs.
    """

    cdef:
        Py_ssize_t n, room
        uint64_t* start
        uint64_t* end
        uint64_t* offset
        uint8_t* prot
        uint8_t* vma_kind
        int32_t* object_
        int32_t* path
        int32_t* kind
        int32_t* ordinal
        int32_t* mm
        int64_t* counts  # present, swapped, zero of each VMA
        # kinds: open addressing
        Slot* slots
        uint64_t n_slots
        int32_t* members  # by kind: VMAs so far
        int32_t n_kinds, kinds_room
        object add_string
        dict objects
        list object_rows
        uint64_t shm_dev
        uint64_t[16] huge_devs
        int n_huge

    def __cinit__(self, add_string, uint64_t shm_dev, huge_devs=()):
        self.add_string = add_string
        self.shm_dev = shm_dev
        if len(huge_devs) > 16:
            raise ValueError(f"{len(huge_devs)} devices, not at most 16")
        for dev in huge_devs:
            self.huge_devs[self.n_huge] = dev
            self.n_huge += 1
        self.objects = {}
        self.object_rows = []
        self.n_slots = 4096
        self.slots = <Slot*>calloc(self.n_slots, sizeof(Slot))
        self.kinds_room = 4096
        self.members = <int32_t*>calloc(self.kinds_room, sizeof(int32_t))
        if self.slots == NULL or self.members == NULL:
            raise MemoryError
        self._grow(4096)

    def __dealloc__(self):
        free(self.start)
        free(self.end)
        free(self.offset)
        free(self.prot)
        free(self.vma_kind)
        free(self.object_)
        free(self.path)
        free(self.kind)
        free(self.ordinal)
        free(self.mm)
        free(self.counts)
        free(self.slots)
        free(self.members)

    def __len__(self):
        return self.n

    cdef int _grow(self, Py_ssize_t room) except -1:
        cdef void* p
        p = realloc(self.start, room * 8)
        if p == NULL:
            raise MemoryError
        self.start = <uint64_t*>p
        p = realloc(self.end, room * 8)
        if p == NULL:
            raise MemoryError
        self.end = <uint64_t*>p
        p = realloc(self.offset, room * 8)
        if p == NULL:
            raise MemoryError
        self.offset = <uint64_t*>p
        p = realloc(self.prot, room)
        if p == NULL:
            raise MemoryError
        self.prot = <uint8_t*>p
        p = realloc(self.vma_kind, room)
        if p == NULL:
            raise MemoryError
        self.vma_kind = <uint8_t*>p
        p = realloc(self.object_, room * 4)
        if p == NULL:
            raise MemoryError
        self.object_ = <int32_t*>p
        p = realloc(self.path, room * 4)
        if p == NULL:
            raise MemoryError
        self.path = <int32_t*>p
        p = realloc(self.kind, room * 4)
        if p == NULL:
            raise MemoryError
        self.kind = <int32_t*>p
        p = realloc(self.ordinal, room * 4)
        if p == NULL:
            raise MemoryError
        self.ordinal = <int32_t*>p
        p = realloc(self.mm, room * 4)
        if p == NULL:
            raise MemoryError
        self.mm = <int32_t*>p
        p = realloc(self.counts, room * 24)
        if p == NULL:
            raise MemoryError
        self.counts = <int64_t*>p
        self.room = room
        return 0

    cdef int _rehash(self) except -1:
        cdef:
            uint64_t i, at, n = self.n_slots * 2
            Slot* old = self.slots
            Slot* slots = <Slot*>calloc(n, sizeof(Slot))
        if slots == NULL:
            raise MemoryError
        for i in range(self.n_slots):
            if old[i].id:
                at = _mix(old[i].a, old[i].b, old[i].c) & (n - 1)
                while slots[at].id:
                    at = (at + 1) & (n - 1)
                slots[at] = old[i]
        free(old)
        self.slots = slots
        self.n_slots = n
        return 0

    cdef int32_t _intern(self, uint64_t a, uint64_t b, uint64_t c) except -1:
        cdef:
            uint64_t at = _mix(a, b, c) & (self.n_slots - 1)
            void* p
        while self.slots[at].id:
            if self.slots[at].a == a and self.slots[at].b == b and self.slots[at].c == c:
                return self.slots[at].id - 1
            at = (at + 1) & (self.n_slots - 1)
        if self.n_kinds == self.kinds_room:
            p = realloc(self.members, self.kinds_room * 2 * sizeof(int32_t))
            if p == NULL:
                raise MemoryError
            self.members = <int32_t*>p
            self.kinds_room *= 2
        self.slots[at].a = a
        self.slots[at].b = b
        self.slots[at].c = c
        self.slots[at].id = self.n_kinds + 1
        self.members[self.n_kinds] = 0
        self.n_kinds += 1
        if <uint64_t>self.n_kinds * 2 > self.n_slots:
            self._rehash()
        return self.n_kinds - 1

    def add(self, const uint8_t[::1] text not None, int32_t mm, int64_t ipc=-1):
        """Add the VMAs of one maps file.

        Parameters
        ----------
        text
            The whole file.
        mm
            Number of the address space, kept in column ``mm``.
        ipc
            Number of its ipc namespace: SysV segments are told apart by it.

        Returns
        -------
        (first, n)
            Rows that were added: ``first .. first + n - 1``.

        Raises
        ------
        ValueError
            A line does not parse (``args[0]`` is the line, bytes); nothing was added.
        """
        cdef:
            Py_ssize_t first = self.n, size = text.shape[0], row, i
            const char* p = NULL
            const char* begin
            const char* end
            const char* q
            const char* last_path = NULL
            Py_ssize_t last_len = -1
            uint64_t last_dev = 0, last_inode = 0
            int32_t last_string = -1, last_object = -1, k
            Line line
            uint8_t kind
            bint segment
        if size == 0:
            return first, 0
        begin = p = <const char*>&text[0]
        end = p + size
        while p < end:
            q = _parse_line(p, end, &line)
            if q == NULL:
                for i in range(first, self.n):
                    self.members[self.kind[i]] -= 1
                self.n = first
                raise ValueError(bytes(p[:min(end - p, 200)]).split(b"\n")[0])
            p = q
            if self.n == self.room:
                self._grow(self.room * 2)
            row = self.n
            kind = _kind(&line, self.shm_dev, self.huge_devs, self.n_huge)
            if not (line.path_len == last_len and last_len >= 0
                    and memcmp(line.path, last_path, last_len) == 0):
                last_string = -1
                if line.path_len:
                    last_string = self.add_string(
                        line.path[:line.path_len].replace(b"\\012", b"\n")
                    )
                last_path = line.path
                last_len = line.path_len
                last_object = -1
            if kind == FILE or kind == SHM:
                if last_object < 0 or line.dev != last_dev or line.inode != last_inode:
                    segment = kind == SHM and _begins(&line, b"/SYSV", 5)
                    last_object = self._object(
                        line.dev, line.inode, ipc if segment else -1, segment, kind, last_string
                    )
                    last_dev = line.dev
                    last_inode = line.inode
                self.object_[row] = last_object
                k = self._intern(
                    (<uint64_t>1 << 62) | <uint64_t>last_object, line.offset, line.prot
                )
            else:
                self.object_[row] = -1
                k = self._intern(line.start, 0, line.prot)
            self.start[row] = line.start
            self.end[row] = line.end
            self.offset[row] = line.offset
            self.prot[row] = line.prot
            self.vma_kind[row] = kind
            self.path[row] = last_string
            self.kind[row] = k
            self.ordinal[row] = self.members[k]
            self.mm[row] = mm
            self.counts[3 * row] = self.counts[3 * row + 1] = self.counts[3 * row + 2] = 0
            self.members[k] += 1
            self.n += 1
        return first, self.n - first

    cdef int32_t _object(
        self, uint64_t dev, uint64_t inode, int64_t ipc, bint segment, uint8_t kind,
        int32_t string,
    ) except -2:
        # Kinds as in osmosis.schema.FileKind: FILE 0, SYSV 1, SHARED_ANON 2.
        cdef int what = 0 if kind == FILE else 1 if segment else 2
        key = (what, dev, inode, ipc)
        row = self.objects.get(key)
        if row is None:
            row = self.objects[key] = len(self.object_rows)
            self.object_rows.append((what, dev, inode, ipc, string))
        return row

    def rows(self, Py_ssize_t first, Py_ssize_t n):
        """Copy of what a reader of pagemap and the index need of *n* rows.

        Returns (start, end) uint64, (vma_kind, prot) uint8, (kind, ordinal) int32.
        """
        if first < 0 or n < 0 or first + n > self.n:
            raise ValueError(f"rows {first} .. {first + n - 1} of {self.n}")
        return (
            _copy(self.start + first, n, np.uint64),
            _copy(self.end + first, n, np.uint64),
            _copy(self.vma_kind + first, n, np.uint8),
            _copy(self.prot + first, n, np.uint8),
            _copy(self.kind + first, n, np.int32),
            _copy(self.ordinal + first, n, np.int32),
        )

    def set_counts(self, Py_ssize_t first, const int64_t[:, ::1] counts not None):
        """Note (n, 3) pages present, swapped and zero of rows ``first .. first + n - 1``."""
        cdef Py_ssize_t n = counts.shape[0], i
        if first < 0 or first + n > self.n or counts.shape[1] != 3:
            raise ValueError(f"rows {first} .. {first + n - 1} of {self.n}")
        for i in range(n):
            self.counts[3 * (first + i)] = counts[i, 0]
            self.counts[3 * (first + i) + 1] = counts[i, 1]
            self.counts[3 * (first + i) + 2] = counts[i, 2]

    def columns(self):
        """All columns by name, each (len(self),)."""
        present, swapped, zero = _copy(self.counts, 3 * self.n, np.int64).reshape(-1, 3).T
        return {
            "present": present,
            "swapped": swapped,
            "zero": zero,
            "start": _copy(self.start, self.n, np.uint64),
            "end": _copy(self.end, self.n, np.uint64),
            "offset": _copy(self.offset, self.n, np.uint64),
            "prot": _copy(self.prot, self.n, np.uint8),
            "vma_kind": _copy(self.vma_kind, self.n, np.uint8),
            "object": _copy(self.object_, self.n, np.int32),
            "path": _copy(self.path, self.n, np.int32),
            "kind": _copy(self.kind, self.n, np.int32),
            "ordinal": _copy(self.ordinal, self.n, np.int32),
            "mm": _copy(self.mm, self.n, np.int32),
        }

    def kind_sizes(self):
        """VMAs of each kind, (number of kinds,) int32."""
        return _copy(self.members, self.n_kinds, np.int32)

    def object_table(self):
        """Mapped objects: list of (FileKind, dev, inode, ipc, path's string id)."""
        return list(self.object_rows)


cdef uint64_t GOLDEN = <uint64_t>0x9E3779B97F4A7C15ULL
cdef uint64_t MIX_1 = <uint64_t>0xBF58476D1CE4E5B9ULL
cdef uint64_t MIX_2 = <uint64_t>0x94D049BB133111EBULL


cdef inline uint64_t _mix(uint64_t a, uint64_t b, uint64_t c) noexcept nogil:
    # Multiply-xorshift over the three words; the finalizer of SplitMix64.
    cdef uint64_t h = (a * GOLDEN) ^ ((b + GOLDEN) * MIX_1) ^ c
    h ^= h >> 30
    h *= MIX_1
    h ^= h >> 27
    h *= MIX_2
    return h ^ (h >> 31)


cdef _copy(void* source, Py_ssize_t n, dtype):
    out = np.empty(n, dtype)
    cdef:
        uint8_t[::1] view
        const uint8_t* p = <const uint8_t*>source
    if n:
        view = out.view(np.uint8)
        memcpy(&view[0], p, view.shape[0])
    return out


cdef extern from "string.h" nogil:
    void* memcpy(void* to, const void* source, size_t n)
