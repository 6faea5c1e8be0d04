"""``/proc/<pid>/maps`` text to columns. Raises only OSError and ValueError.

Source: show_map_vma() in fs/proc/task_mmu.c. One line is
``start-end perms offset major:minor inode   path``; in the path only a newline is
escaped, as ``\\012``.
"""
from libc.errno cimport EINTR, ENOMEM, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy
from posix.unistd cimport close, read

import os

import numpy as np

cdef extern from "<fcntl.h>" nogil:
    const int O_RDONLY, O_CLOEXEC
    int openat(int fd, const char* path, int flags)

cdef enum:
    PAGE = 4096         # the kernel prints that much at once
    FIRST_TEXT = 65536  # bytes of a fresh buffer
    MAX_SHOWN = 200     # bytes of a line that does not parse

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


cdef class Lines:
    """Lines of one maps file, parsed; keeps its buffers from one file to the next.

    One object a thread: it is not for two at once.
    """

    cdef:
        char* text
        Py_ssize_t size, text_room
        Line* line
        Py_ssize_t n, room
        readonly bint overlap  # a line begins before the one above it ends

    def __dealloc__(self):
        free(self.text)
        free(self.line)

    def __len__(self):
        return self.n

    cdef int _read(self, int fd) noexcept nogil:
        # From its offset to its end; 0 or -errno.
        cdef:
            ssize_t got
            char* grown
        self.size = 0
        while True:
            if self.text_room - self.size < PAGE:
                grown = <char*>realloc(self.text, 2 * self.text_room + FIRST_TEXT)
                if grown == NULL:
                    return -ENOMEM
                self.text = grown
                self.text_room = 2 * self.text_room + FIRST_TEXT
            got = read(fd, self.text + self.size, self.text_room - self.size)
            if got == 0:
                return 0
            if got > 0:
                self.size += got
            elif errno != EINTR:
                return -errno

    cdef Py_ssize_t _parse(self) noexcept nogil:
        # -1 if all of the text parses, -2 for want of memory, else where the bad line begins.
        cdef:
            const char* p = self.text
            const char* q
            const char* end = self.text + self.size
            Line* grown
        self.n = 0
        self.overlap = False
        while p < end:
            if self.n == self.room:
                grown = <Line*>realloc(self.line, (2 * self.room + 512) * sizeof(Line))
                if grown == NULL:
                    return -2
                self.line = grown
                self.room = 2 * self.room + 512
            q = _parse_line(p, end, &self.line[self.n])
            if q == NULL:
                self.n = 0
                return p - self.text
            if self.n and self.line[self.n].start < self.line[self.n - 1].end:
                self.overlap = True
            self.n += 1
            p = q
        return -1

    cdef int _raise(self, Py_ssize_t bad) except -1:
        if bad == -2:
            raise MemoryError
        if bad >= 0:
            raise ValueError(
                self.text[bad:min(self.size, bad + MAX_SHOWN)].split(b"\n")[0]
            )
        return 0

    def parse(self, const uint8_t[::1] text not None):
        """Parse a whole file. ValueError: a line does not (``args[0]`` is the line, bytes)."""
        cdef char* grown
        if text.shape[0] > self.text_room:
            grown = <char*>realloc(self.text, text.shape[0])
            if grown == NULL:
                raise MemoryError
            self.text, self.text_room = grown, text.shape[0]
        self.size = text.shape[0]
        if self.size:
            memcpy(self.text, &text[0], self.size)
        self._raise(self._parse())

    def open(self, int dirfd):
        """Open maps and pagemap of a process, and read and parse maps; releases the GIL.

        Both are open before either is read: after an execve the one of before reads nothing, so
        that no text of one program meets the pages of another.

        Parameters
        ----------
        dirfd
            An open directory ``/proc/<pid>``.

        Returns
        -------
        int
            A descriptor of pagemap, the caller's to close. Without any line (``len(self)`` 0) the
            process has no address space any more.

        Raises
        ------
        OSError, ValueError
            The latter as in ``parse``. Nothing is left open.
        """
        cdef:
            int maps_fd, fd = -1, failed = 0
            Py_ssize_t bad = -1
        with nogil:
            maps_fd = openat(dirfd, b"maps", O_RDONLY | O_CLOEXEC)
            if maps_fd >= 0:
                fd = openat(dirfd, b"pagemap", O_RDONLY | O_CLOEXEC)
            if fd < 0:
                failed = -errno
            else:
                failed = self._read(maps_fd)
            if maps_fd >= 0:
                close(maps_fd)
            if not failed:
                bad = self._parse()
            if fd >= 0 and (failed or bad != -1):
                close(fd)
        if failed:
            raise OSError(-failed, os.strerror(-failed))
        self._raise(bad)
        return fd


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


cdef struct Text:  # a path that was seen
    uint64_t hash
    int64_t at     # in the arena
    int32_t size
    int32_t id     # its number + 1; 0 is an empty slot

cdef struct Thing:  # a mapped object
    uint64_t dev
    uint64_t inode
    int64_t ipc
    int32_t what
    int32_t id     # its row + 1; 0 is an empty slot


cdef class VmaTable:
    """All VMAs of many address spaces, as growing columns; not thread-safe: hold a lock.

    Every VMA gets a *kind*: VMAs of the same object, offset and permissions are of one kind, as
    are private anonymous ones with the same start and permissions (fork's copies). The index
    compares each with the last one of its kind.
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
        int32_t* mm
        int64_t* counts  # present, swapped, zero of each VMA
        # kinds: open addressing
        Slot* slots
        uint64_t n_slots
        int32_t n_kinds
        # paths and objects: open addressing too, so that only new ones ask Python
        Text* texts
        uint64_t n_text_slots, n_texts
        char* arena
        int64_t arena_used, arena_room
        Thing* things
        uint64_t n_thing_slots
        object add_string
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
        self.object_rows = []
        self.n_text_slots = self.n_thing_slots = 1024
        self.texts = <Text*>calloc(self.n_text_slots, sizeof(Text))
        self.things = <Thing*>calloc(self.n_thing_slots, sizeof(Thing))
        if self.texts == NULL or self.things == NULL:
            raise MemoryError
        self.n_slots = 4096
        self.slots = <Slot*>calloc(self.n_slots, sizeof(Slot))
        if self.slots == NULL:
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
        free(self.mm)
        free(self.counts)
        free(self.slots)
        free(self.texts)
        free(self.arena)
        free(self.things)

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
        while self.slots[at].id:
            if self.slots[at].a == a and self.slots[at].b == b and self.slots[at].c == c:
                return self.slots[at].id - 1
            at = (at + 1) & (self.n_slots - 1)
        self.slots[at].a = a
        self.slots[at].b = b
        self.slots[at].c = c
        self.slots[at].id = self.n_kinds + 1
        self.n_kinds += 1
        if <uint64_t>self.n_kinds * 2 > self.n_slots:
            self._rehash()
        return self.n_kinds - 1

    cdef int32_t _string(self, Line* line) except -2:
        # The number of the path of a line.
        cdef:
            uint64_t hash = _hash(line.path, line.path_len), i, at, n
            Text* slot
            Text* grown
            char* arena
            int64_t room
        at = hash & (self.n_text_slots - 1)
        while True:
            slot = &self.texts[at]
            if not slot.id:
                break
            if slot.hash == hash and slot.size == line.path_len and memcmp(
                self.arena + slot.at, line.path, line.path_len
            ) == 0:
                return slot.id - 1
            at = (at + 1) & (self.n_text_slots - 1)
        number = self.add_string(line.path[:line.path_len].replace(b"\\012", b"\n"))
        if self.arena_room - self.arena_used < line.path_len:
            room = 2 * self.arena_room + line.path_len + PAGE
            arena = <char*>realloc(self.arena, room)
            if arena == NULL:
                raise MemoryError
            self.arena, self.arena_room = arena, room
        memcpy(self.arena + self.arena_used, line.path, line.path_len)
        slot.hash, slot.at, slot.size = hash, self.arena_used, <int32_t>line.path_len
        slot.id = <int32_t>number + 1
        self.arena_used += line.path_len
        self.n_texts += 1
        if self.n_texts * 2 > self.n_text_slots:
            n = self.n_text_slots * 2
            grown = <Text*>calloc(n, sizeof(Text))
            if grown == NULL:
                raise MemoryError
            for i in range(self.n_text_slots):
                if self.texts[i].id:
                    at = self.texts[i].hash & (n - 1)
                    while grown[at].id:
                        at = (at + 1) & (n - 1)
                    grown[at] = self.texts[i]
            free(self.texts)
            self.texts, self.n_text_slots = grown, n
        return <int32_t>number

    def add(self, lines not None, int32_t mm, int64_t ipc=-1):
        """Add the VMAs of one maps file.

        Parameters
        ----------
        lines
            ``Lines``, or the whole text.
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
            As ``Lines.parse``; nothing was added.
        """
        cdef Lines parsed
        if isinstance(lines, Lines):
            parsed = lines
        else:
            parsed = Lines()
            parsed.parse(lines)
        return self._add(parsed, mm, ipc)

    cdef _add(self, Lines lines, int32_t mm, int64_t ipc):
        cdef:
            Py_ssize_t first = self.n, row, i
            Line* line
            Line* last = NULL
            int32_t string = -1, object_ = -1, k
            uint8_t kind
            bint segment
        for i in range(lines.n):
            line = &lines.line[i]
            if self.n == self.room:
                self._grow(self.room * 2)
            row = self.n
            kind = _kind(line, self.shm_dev, self.huge_devs, self.n_huge)
            if last == NULL or line.path_len != last.path_len or memcmp(
                line.path, last.path, line.path_len
            ) != 0:
                string = self._string(line) if line.path_len else -1
                object_ = -1
            if kind == FILE or kind == SHM:
                if object_ < 0 or line.dev != last.dev or line.inode != last.inode:
                    segment = kind == SHM and _begins(line, b"/SYSV", 5)
                    object_ = self._object(
                        line.dev, line.inode, ipc if segment else -1, segment, kind, string
                    )
                self.object_[row] = object_
                k = self._intern(
                    (<uint64_t>1 << 62) | <uint64_t>object_, line.offset, line.prot
                )
            else:
                object_ = -1
                self.object_[row] = -1
                k = self._intern(line.start, 0, line.prot)
            last = line
            self.start[row] = line.start
            self.end[row] = line.end
            self.offset[row] = line.offset
            self.prot[row] = line.prot
            self.vma_kind[row] = kind
            self.path[row] = string
            self.kind[row] = k
            self.mm[row] = mm
            self.counts[3 * row] = self.counts[3 * row + 1] = self.counts[3 * row + 2] = 0
            self.n += 1
        return first, self.n - first

    cdef int32_t _object(
        self, uint64_t dev, uint64_t inode, int64_t ipc, bint segment, uint8_t kind,
        int32_t string,
    ) except -2:
        # Kinds as in osmosis.schema.FileKind: FILE 0, SYSV 1, SHARED_ANON 2.
        cdef:
            int what = 0 if kind == FILE else 1 if segment else 2
            uint64_t i, n, at = _mix(dev, inode, <uint64_t>(ipc * 4 + what))
            Thing* slot
            Thing* grown
        at &= self.n_thing_slots - 1
        while True:
            slot = &self.things[at]
            if not slot.id:
                break
            if slot.dev == dev and slot.inode == inode and slot.ipc == ipc and slot.what == what:
                return slot.id - 1
            at = (at + 1) & (self.n_thing_slots - 1)
        slot.dev, slot.inode, slot.ipc, slot.what = dev, inode, ipc, what
        self.object_rows.append((what, dev, inode, ipc, string))
        slot.id = <int32_t>len(self.object_rows)
        if <uint64_t>len(self.object_rows) * 2 > self.n_thing_slots:
            n = self.n_thing_slots * 2
            grown = <Thing*>calloc(n, sizeof(Thing))
            if grown == NULL:
                raise MemoryError
            for i in range(self.n_thing_slots):
                slot = &self.things[i]
                if slot.id:
                    at = _mix(slot.dev, slot.inode, <uint64_t>(slot.ipc * 4 + slot.what)) & (n - 1)
                    while grown[at].id:
                        at = (at + 1) & (n - 1)
                    grown[at] = slot[0]
            free(self.things)
            self.things, self.n_thing_slots = grown, n
        return <int32_t>len(self.object_rows) - 1

    def rows(self, Py_ssize_t first, Py_ssize_t n):
        """Copy of what a reader of pagemap and the index need of *n* rows.

        Returns (start, end) uint64, (vma_kind, prot) uint8, kind int32.
        """
        if first < 0 or n < 0 or first + n > self.n:
            raise ValueError(f"rows {first} .. {first + n - 1} of {self.n}")
        return (
            _copy(self.start + first, n, np.uint64),
            _copy(self.end + first, n, np.uint64),
            _copy(self.vma_kind + first, n, np.uint8),
            _copy(self.prot + first, n, np.uint8),
            _copy(self.kind + first, n, np.int32),
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
            "mm": _copy(self.mm, self.n, np.int32),
        }

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


cdef inline uint64_t _hash(const char* text, Py_ssize_t n) noexcept nogil:
    # Eight bytes at a time. Equal hashes are compared byte by byte.
    cdef uint64_t h = <uint64_t>n, word
    while n >= 8:
        memcpy(&word, text, 8)
        h = _mix(h, word, 0)
        text += 8
        n -= 8
    word = 0
    memcpy(&word, text, n)
    return _mix(h, word, 1)


cdef _copy(void* source, Py_ssize_t n, dtype):
    out = np.empty(n, dtype)
    cdef:
        uint8_t[::1] view
        const uint8_t* p = <const uint8_t*>source
    if n:
        view = out.view(np.uint8)
        memcpy(&view[0], p, view.shape[0])
    return out
