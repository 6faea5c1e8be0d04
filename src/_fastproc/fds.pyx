"""File descriptors of many processes as columns: one lstat and one statx each, a readlink if new.

The mode bits of a link in /proc/<pid>/fd tell how it was opened: 0400 for reading, 0200 for
writing, neither for O_PATH (proc_fd_link() and tid_fd_update_inode() in fs/proc/fd.c). What it
leads to is told by statx(2) with AT_STATX_DONT_SYNC, which asks no server: a FUSE daemon or an
NFS host that hangs does not make us hang. Raises only OSError and ValueError.
"""
from libc.errno cimport EACCES, EAGAIN, EINTR, ENOENT, ENOMEM, EPERM, ESRCH, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport atoi, atoll, calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, strstr
from posix.unistd cimport close, read

from _fastproc.bits cimport KCMP_FILE

import numpy as np

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE 1
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/sysmacros.h>
    #include <unistd.h>

    struct fds_facts { uint64_t dev, inode, rdev; int64_t birth; uint32_t mode; };

    static int fds_open_dir(int at) {
        return openat(at, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    static long fds_list(int fd, char* buffer, long size) {
        return syscall(SYS_getdents64, fd, buffer, size);
    }
    /* One struct linux_dirent64: 8 inode, 8 offset, 2 length, 1 type, name. */
    static inline unsigned fds_length(const char* entry) {
        return *(const uint16_t*)(entry + 16);
    }
    static int fds_link_mode(int at, const char* name) {
        struct stat st;
        return fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) ? -1 : (int)(st.st_mode & 0777);
    }
    static int fds_target(int at, const char* name, struct fds_facts* out) {
        struct statx st;
        unsigned want = STATX_TYPE | STATX_MODE | STATX_INO | STATX_BTIME;
        if (statx(at, name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, want, &st)) return -1;
        out->dev = (uint64_t)st.stx_dev_major << 32 | st.stx_dev_minor;
        out->inode = st.stx_ino;
        out->rdev = (uint64_t)st.stx_rdev_major << 32 | st.stx_rdev_minor;
        out->mode = st.stx_mode;
        out->birth = 0;
        if (st.stx_mask & STATX_BTIME)
            out->birth = st.stx_btime.tv_sec * 1000000000LL + st.stx_btime.tv_nsec;
        return 0;
    }
    /* Asking for nothing gives st_dev even where all else is refused (FUSE without allow_other:
       fuse_getattr() in fs/fuse/dir.c). */
    static uint64_t fds_device(int at, const char* name) {
        struct statx st;
        if (statx(at, name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &st)) return 0;
        return (uint64_t)st.stx_dev_major << 32 | st.stx_dev_minor;
    }
    #ifdef SYS_kcmp
    static long fds_kcmp(int a, int b, int type, unsigned long x, unsigned long y) {
        return syscall(SYS_kcmp, a, b, type, x, y);
    }
    #else
    static long fds_kcmp(int a, int b, int type, unsigned long x, unsigned long y) {
        errno = ENOSYS;
        return -1;
    }
    #endif
    static long fds_readlink(int at, const char* name, char* out, long size) {
        return readlinkat(at, name, out, size);
    }
    static int fds_open(int at, const char* name) {
        return openat(at, name, O_RDONLY | O_CLOEXEC);
    }
    """
    struct fds_facts:
        uint64_t dev
        uint64_t inode
        uint64_t rdev
        int64_t birth
        uint32_t mode
    int fds_open_dir(int at) nogil
    long fds_list(int fd, char* buffer, long size) nogil
    unsigned fds_length(const char* entry) nogil
    int fds_link_mode(int at, const char* name) nogil
    int fds_target(int at, const char* name, fds_facts* out) nogil
    uint64_t fds_device(int at, const char* name) nogil
    long fds_readlink(int at, const char* name, char* out, long size) nogil
    long fds_kcmp(int a, int b, int kind, unsigned long x, unsigned long y) nogil
    int fds_open(int at, const char* name) nogil

cdef enum:
    LIST_BYTES = 32768
    NAME_BYTES = 4096
    INFO_BYTES = 4096
    S_IFMT = 0o170000
    REFUSED = 0xFFFFFFFF  # st_mode of what could not be looked at
    NO_LINE_ = -1
    UNREADABLE_ = -2
    REPEATED = 32  # names that are no paths, remembered
    MAX_PASSES = 8  # of same_files, each after some descriptor was closed in the middle

# Bits of `access`.
READ, WRITE = 4, 2
NO_MODE = <unsigned int>REFUSED
# What `info_numbers` gives where there is no number.
NO_LINE, UNREADABLE = NO_LINE_, UNREADABLE_


cdef struct Entry:
    uint64_t dev
    uint64_t inode
    uint64_t rdev
    int64_t birth
    uint32_t mode
    int32_t process
    int32_t fd
    int32_t name     # of the arena's names, -1 for "as the first one of its (dev, inode)"
    uint8_t access

cdef struct Seen:
    uint64_t dev
    uint64_t inode
    int32_t entry    # + 1; 0 is an empty slot

cdef struct Table:
    Entry* entries
    int64_t n, room
    Seen* seen
    uint64_t slots, used
    char* arena
    int64_t arena_n, arena_room
    int64_t* ends    # of each name in the arena
    int64_t names, names_room
    int32_t[REPEATED] repeated  # the last names in the arena that are no paths
    uint64_t repeats


cdef uint64_t _scatter(uint64_t a, uint64_t b) noexcept nogil:
    cdef uint64_t h = (a * <uint64_t>0x9E3779B97F4A7C15ULL) ^ b
    h ^= h >> 30
    h *= <uint64_t>0xBF58476D1CE4E5B9ULL
    return h ^ (h >> 27)


cdef int _grow_seen(Table* t) noexcept nogil:
    cdef:
        uint64_t i, at, n = t.slots * 2
        Seen* grown = <Seen*>calloc(n, sizeof(Seen))
    if grown == NULL:
        return -ENOMEM
    for i in range(t.slots):
        if t.seen[i].entry:
            at = _scatter(t.seen[i].dev, t.seen[i].inode) & (n - 1)
            while grown[at].entry:
                at = (at + 1) & (n - 1)
            grown[at] = t.seen[i]
    free(t.seen)
    t.seen = grown
    t.slots = n
    return 0


cdef int _is_new(Table* t, uint64_t dev, uint64_t inode) noexcept nogil:
    # 1 if (dev, inode) was not seen before, and it is now; 0; or -ENOMEM.
    cdef uint64_t at
    if t.used * 2 >= t.slots and _grow_seen(t):
        return -ENOMEM
    at = _scatter(dev, inode) & (t.slots - 1)
    while t.seen[at].entry:
        if t.seen[at].dev == dev and t.seen[at].inode == inode:
            return 0
        at = (at + 1) & (t.slots - 1)
    t.seen[at].dev = dev
    t.seen[at].inode = inode
    t.seen[at].entry = 1
    t.used += 1
    return 1


cdef int _add_name(Table* t, const char* name, int64_t size) noexcept nogil:
    # Number of the name, or -ENOMEM. What is no path repeats a handful of texts: the last of
    # those are looked through.
    cdef:
        int64_t begin
        uint64_t k
        int32_t i
        char* arena
        int64_t* ends
        bint path = size > 0 and name[0] == 47
    if not path:
        for k in range(min(t.repeats, <uint64_t>REPEATED)):
            i = t.repeated[k]
            begin = t.ends[i - 1] if i else 0
            if t.ends[i] - begin == size and memcmp(t.arena + begin, name, size) == 0:
                return i
    while t.arena_room - t.arena_n < size:
        arena = <char*>realloc(t.arena, t.arena_room * 2)
        if arena == NULL:
            return -ENOMEM
        t.arena = arena
        t.arena_room *= 2
    if t.names == t.names_room:
        ends = <int64_t*>realloc(t.ends, t.names_room * 2 * sizeof(int64_t))
        if ends == NULL:
            return -ENOMEM
        t.ends = ends
        t.names_room *= 2
    memcpy(t.arena + t.arena_n, name, size)
    t.arena_n += size
    t.ends[t.names] = t.arena_n
    if not path:
        t.repeated[t.repeats % REPEATED] = <int32_t>t.names
        t.repeats += 1
    t.names += 1
    return <int>(t.names - 1)


cdef long _shorten(const char* text, long size, uint64_t inode) noexcept nogil:
    # Length of the name up to its colon if all that follows is the inode number: pipe:[7],
    # socket:[7] (pipefs_dname() in fs/pipe.c, sockfs_dname() in net/socket.c). Else *size*.
    cdef:
        char[64] wanted
        long kind = 0, length
    if size >= 5 and memcmp(text, b"pipe:", 5) == 0:
        kind = 5
    elif size >= 7 and memcmp(text, b"socket:", 7) == 0:
        kind = 7
    if kind == 0:
        return size
    length = snprintf(wanted, sizeof(wanted), b"[%llu]", <unsigned long long>inode)
    if length == size - kind and memcmp(text + kind, wanted, length) == 0:
        return kind
    return size


cdef int _add_fd(Table* t, int32_t process, int at, const char* name, char* text) noexcept nogil:
    # 0, also if the descriptor is closed by now; or -errno.
    cdef:
        fds_facts facts
        Entry* grown
        Entry* entry
        int link = fds_link_mode(at, name), fresh, refused
        long size
    if link < 0:
        return 0 if errno == ENOENT else -errno
    if fds_target(at, name, &facts):
        if errno == ENOENT:
            return 0
        if errno == ESRCH:
            return -ESRCH
        if errno == EACCES or errno == EPERM:
            # The process is closed to us, or only the filesystem: then the link can be read.
            refused = errno
            if fds_readlink(at, name, text, NAME_BYTES) < 0:
                return -refused
        # A dead mount (ENOTCONN ...): it is open all the same, and not known.
        facts.dev = fds_device(at, name)
        facts.inode = facts.rdev = 0
        facts.birth = 0
        facts.mode = <uint32_t>REFUSED
    if t.n == t.room:
        grown = <Entry*>realloc(t.entries, t.room * 2 * sizeof(Entry))
        if grown == NULL:
            return -ENOMEM
        t.entries = grown
        t.room *= 2
    entry = &t.entries[t.n]
    entry.process = process
    entry.fd = atoi(name)
    entry.dev = facts.dev
    entry.inode = facts.inode
    entry.rdev = facts.rdev
    entry.birth = facts.birth
    entry.mode = facts.mode
    entry.access = (4 if link & 0o400 else 0) | (2 if link & 0o200 else 0)
    entry.name = -1
    # Anonymous inodes (no file type) share one inode number: each tells its own kind.
    fresh = 1
    if facts.mode & S_IFMT and facts.mode != <uint32_t>REFUSED:
        fresh = _is_new(t, facts.dev, facts.inode)
        if fresh < 0:
            return fresh
    if fresh:
        size = fds_readlink(at, name, text, NAME_BYTES)
        if size >= 0:
            if facts.mode & S_IFMT and facts.mode != <uint32_t>REFUSED:
                size = _shorten(text, size, facts.inode)
            entry.name = _add_name(t, text, size)
            if entry.name == -ENOMEM:
                return -ENOMEM
    t.n += 1
    return 0


cdef int _add_process(Table* t, int32_t process, int dirfd, char* list, char* text) noexcept nogil:
    # Descriptors of one process; -errno, with what was added taken back.
    cdef:
        int at = fds_open_dir(dirfd), failed = 0
        int64_t before = t.n
        long got, p
    if at < 0:
        return -errno
    while True:
        got = fds_list(at, list, LIST_BYTES)
        if got < 0 and errno == EINTR:
            continue
        if got <= 0:
            failed = -errno if got < 0 else 0
            break
        p = 0
        while p < got and not failed:
            if 48 <= list[p + 19] <= 57:
                failed = _add_fd(t, process, at, list + p + 19, text)
            p += fds_length(list + p)
        if failed:
            break
    close(at)
    if failed:
        t.n = before
    return failed


cdef _column(Table* t, int64_t offset, dtype):
    # One field of all entries.
    cdef int64_t n = t.n
    if n == 0:
        return np.empty(0, dtype)
    whole = np.asarray(<uint8_t[:n * <int64_t>sizeof(Entry)]><uint8_t*>t.entries)
    wide = whole.reshape(n, sizeof(Entry))[:, offset:offset + np.dtype(dtype).itemsize]
    return np.ascontiguousarray(wide).view(dtype).reshape(n)


def scan(const int32_t[::1] dirfds not None, const int32_t[::1] process not None):
    """Read the descriptors of many processes; releases the GIL.

    Parameters
    ----------
    dirfds : (P,) int32
        Open directories /proc/<pid>, -1 to pass one over.
    process : (P,) int32
        What column ``process`` says of each.

    Returns
    -------
    (columns, names, errors)
        ``columns``: dict of (N,) arrays ``process``, ``fd``, ``access`` (4 read, 2 write, 0 for
        O_PATH), ``mode`` (st_mode, ``NO_MODE`` if it was refused), ``dev`` and ``rdev``
        (major << 32 | minor), ``inode``, ``birth`` (ns since 1970, 0 if not told), ``name`` (number
        in *names*, -1: as the first entry of the same dev and inode). ``names``: list of bytes,
        where ``pipe:`` and ``socket:`` alone stand for the link with the entry's inode in brackets.
        ``errors``: (P,) int32, 0 or the errno for which a process has no entry.
    """
    cdef:
        Table t
        Py_ssize_t i, n = dirfds.shape[0]
        char[LIST_BYTES] listing
        char[NAME_BYTES] text
        int failed = 0
    if process.shape[0] != n:
        raise ValueError(f"{n} directories but {process.shape[0]} processes")
    errors = np.zeros(n, np.int32)
    cdef int32_t[::1] errors_ = errors
    t.n = t.arena_n = t.names = 0
    t.used = t.repeats = 0
    t.room = 1024
    t.slots = 2048
    t.arena_room = 65536
    t.names_room = 1024
    t.entries = <Entry*>malloc(t.room * sizeof(Entry))
    t.seen = <Seen*>calloc(t.slots, sizeof(Seen))
    t.arena = <char*>malloc(t.arena_room)
    t.ends = <int64_t*>malloc(t.names_room * sizeof(int64_t))
    try:
        if t.entries == NULL or t.seen == NULL or t.arena == NULL or t.ends == NULL:
            raise MemoryError
        with nogil:
            for i in range(n):
                if dirfds[i] < 0:
                    continue
                failed = _add_process(&t, process[i], dirfds[i], &listing[0], &text[0])
                if failed == -ENOMEM:
                    break
                errors_[i] = -failed
        if failed == -ENOMEM:
            raise MemoryError
        columns = {
            "dev": _column(&t, 0, np.uint64),
            "inode": _column(&t, 8, np.uint64),
            "rdev": _column(&t, 16, np.uint64),
            "birth": _column(&t, 24, np.int64),
            "mode": _column(&t, 32, np.uint32),
            "process": _column(&t, 36, np.int32),
            "fd": _column(&t, 40, np.int32),
            "name": _column(&t, 44, np.int32),
            "access": _column(&t, 48, np.uint8),
        }
        names = []
        for i in range(t.names):
            begin = t.ends[i - 1] if i else 0
            names.append(t.arena[begin:t.ends[i]])
        return columns, names, errors
    finally:
        free(t.entries)
        free(t.seen)
        free(t.arena)
        free(t.ends)


cdef int64_t _info(int dirfd, int fd, const char* key, int64_t size, char* text) noexcept nogil:
    # The number after *key* in the fdinfo of a descriptor, NO_LINE, or UNREADABLE.
    cdef:
        char[32] name
        char* found
        int at
        long got, n = 0
    snprintf(name, sizeof(name), b"fdinfo/%d", fd)
    at = fds_open(dirfd, name)
    if at < 0:
        return UNREADABLE_
    while n < INFO_BYTES - 1:
        got = read(at, text + n, INFO_BYTES - 1 - n)
        if got < 0 and errno == EINTR:
            continue
        if got <= 0:
            break
        n += got
    close(at)
    if n == 0:
        return UNREADABLE_
    text[n] = 0
    found = strstr(text, key)
    while found != NULL and found != text and found[-1] != 10:  # only at the start of a line
        found = strstr(found + 1, key)
    return NO_LINE_ if found == NULL else atoll(found + size)


def info_numbers(const int32_t[::1] dirfds not None, const int32_t[::1] fds not None, bytes key):
    """Read one number of the fdinfo of many descriptors; releases the GIL.

    Parameters
    ----------
    dirfds, fds : (N,) int32
        The open directory of each one's process (/proc/<pid>), -1 to pass it over; and its number.
    key
        What stands before the number, such as ``b"scm_fds:"``.

    Returns
    -------
    (N,) int64
        ``NO_LINE`` where there is no such line in the first 4 KiB, ``UNREADABLE`` where there is
        no such file. About 7 us each.
    """
    cdef:
        Py_ssize_t i, n = dirfds.shape[0]
        char[INFO_BYTES] text
        const char* word = key
        int64_t size = len(key)
    if fds.shape[0] != n:
        raise ValueError(f"{n} directories but {fds.shape[0]} descriptors")
    out = np.full(n, UNREADABLE_, np.int64)
    cdef int64_t[::1] out_ = out
    with nogil:
        for i in range(n):
            if dirfds[i] >= 0:
                out_[i] = _info(dirfds[i], fds[i], word, size, &text[0])
    return out


cdef struct Sort:
    const int32_t* tid
    const int32_t* fd
    int32_t* order
    int32_t* scratch
    int32_t* failed  # of each: 0, or the errno for which it cannot be compared
    Py_ssize_t died  # how many of them came to fail in this pass


cdef bint _fails(Sort* s, int32_t i) noexcept nogil:
    # Whether i cannot be compared even with itself: closed, exited, or not ours to see.
    if s.failed[i] == 0 and fds_kcmp(s.tid[i], s.tid[i], KCMP_FILE, s.fd[i], s.fd[i]) < 0:
        s.failed[i] = errno
        s.died += 1
    return s.failed[i] != 0


cdef int _order(Sort* s, int32_t i, int32_t j) noexcept nogil:
    # 0 the same open file, 1 i stands before j, 2 after it. What fails stands last.
    cdef long found
    if s.failed[i] or s.failed[j]:
        return 1 if s.failed[j] else 2
    found = fds_kcmp(s.tid[i], s.tid[j], KCMP_FILE, s.fd[i], s.fd[j])
    if found < 0:
        if _fails(s, i):
            return 2
        _fails(s, j)
        s.died += 1  # if neither fails, one did just then: this pass does not count
        return 1
    return <int>found


cdef void _sort_files(Sort* s, Py_ssize_t n) noexcept nogil:
    # By the kernel's order of file pointers, which is stable: O(n log n) calls.
    cdef Py_ssize_t width = 1, low, mid, high, i, j, k
    while width < n:
        low = 0
        while low < n:
            mid = min(low + width, n)
            high = min(low + 2 * width, n)
            i, j, k = low, mid, low
            while i < mid and j < high:
                if _order(s, s.order[i], s.order[j]) == 2:
                    s.scratch[k] = s.order[j]
                    j += 1
                else:
                    s.scratch[k] = s.order[i]
                    i += 1
                k += 1
            if i < mid:
                memcpy(s.scratch + k, s.order + i, (mid - i) * sizeof(int32_t))
            elif j < high:
                memcpy(s.scratch + k, s.order + j, (high - j) * sizeof(int32_t))
            low += 2 * width
        memcpy(s.order, s.scratch, n * sizeof(int32_t))
        width *= 2


def same_files(const int32_t[::1] tids not None, const int32_t[::1] fds not None):
    """Tell which descriptors lead to one open file description (kcmp, KCMP_FILE).

    Parameters
    ----------
    tids, fds : (N,) int32
        A thread of each process, in our own pid namespace, and a descriptor of it.

    Returns
    -------
    (number, errors)
        ``number``: (N,) int32 from 0, equal where the open file is the same; -1 where that could
        not be told. ``errors``: (N,) int32, then the errno (EPERM, or EBADF and ESRCH for one that
        was closed meanwhile; EAGAIN if they kept being closed). O(N log N) calls.
    """
    cdef:
        Py_ssize_t n = tids.shape[0], kept, i
        int tries = 0, found
        Sort s
    if fds.shape[0] != n:
        raise ValueError(f"{n} threads but {fds.shape[0]} descriptors")
    number = np.full(n, -1, np.int32)
    errors = np.zeros(n, np.int32)
    order = np.arange(n, dtype=np.int32)
    scratch = np.empty(n, np.int32)
    if n == 0:
        return number, errors
    cdef int32_t[::1] number_ = number, errors_ = errors, order_ = order, scratch_ = scratch
    cdef int32_t last = 0
    s.tid, s.fd = &tids[0], &fds[0]
    s.order, s.scratch, s.failed = &order_[0], &scratch_[0], &errors_[0]
    with nogil:
        kept = 0
        for i in range(n):
            if not _fails(&s, <int32_t>i):
                s.order[kept] = <int32_t>i
                kept += 1
        while tries < MAX_PASSES:
            tries += 1
            s.died = 0
            _sort_files(&s, kept)
            if s.died == 0:
                for i in range(kept):
                    if i:
                        found = _order(&s, s.order[i - 1], s.order[i])
                        last += found != 0
                    number_[s.order[i]] = last
            if s.died == 0:
                break
            last = 0
            found = 0
            for i in range(kept):
                if s.failed[s.order[i]] == 0:
                    s.order[found] = s.order[i]
                    found += 1
            kept = found
    if s.died:
        number[:] = -1
        errors[errors == 0] = EAGAIN
    return number, errors
