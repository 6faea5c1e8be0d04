"""Bulk reads of the small files of ``/proc/<pid>``: stat, status, ns, cgroup, cmdline ...

Reading and parsing are apart: the parsers take bytes. ``scan`` fills one fixed record a process
(struct Proc, the NumPy dtype ``PROC`` of osmosis.capture.processes) and appends what has no
fixed length to an arena, all with the GIL released. Raises only OSError and ValueError.
"""

from libc.errno cimport EAGAIN, EBADMSG, EINTR, ENOENT, ENOMEM, ESRCH, errno
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memset
from posix.unistd cimport close, read

from _fastproc.bits cimport (
    PF_KTHREAD,
    PIDFD_COREDUMP_ROOT,
    PIDFD_COREDUMP_SKIP,
    PIDFD_COREDUMP_USER,
    PIDFD_GET_INFO,
    PIDFD_INFO_COREDUMP,
    PIDFD_INFO_PID,
    PIDFD_THREAD,
    pidfd_info,
)
from _fastproc.parse cimport (
    Buffer,
    Cred,
    Span,
    Stat,
    append,
    number,
    reserve,
    stat_of,
    status_of,
)

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE 1
    #endif
    #include <dirent.h>
    #include <fcntl.h>
    #include <sys/ioctl.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/sysmacros.h>
    #include <unistd.h>

    static int osmosis_fstatat(int fd, const char *path, int flags,
                               unsigned long long *dev, unsigned long long *ino,
                               unsigned int *uid, unsigned int *mode) {
        struct stat st;
        if (fstatat(fd, path, &st, flags) != 0) return -1;
        *dev = st.st_dev; *ino = st.st_ino; *uid = st.st_uid; *mode = st.st_mode;
        return 0;
    }
    /* The dev and inode that are cached: a FUSE daemon or an NFS server is not asked. */
    static int osmosis_cached_id(int fd, const char *path, unsigned long long *dev,
                                 unsigned long long *ino) {
        struct statx st;
        if (statx(fd, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_INO, &st) != 0) return -1;
        *dev = makedev(st.stx_dev_major, st.stx_dev_minor); *ino = st.stx_ino;
        return 0;
    }
    /* osmosis_next_tid: 0 at the end of the directory, -1 on error. */
    static long osmosis_next_tid(DIR *dir) {
        struct dirent *e;
        long n;
        const char *p;
        for (;;) {
            errno = 0;
            e = readdir(dir);
            if (!e) return errno ? -1 : 0;
            for (n = 0, p = e->d_name; *p >= '0' && *p <= '9' && n < 100000000; p++)
                n = n * 10 + (*p - '0');
            if (!*p && n > 0) return n;
        }
    }
    #ifdef SYS_pidfd_open
    static long osmosis_pidfd_open(int pid, unsigned flags) {
        return syscall(SYS_pidfd_open, pid, flags);
    }
    #else
    static long osmosis_pidfd_open(int pid, unsigned flags) { errno = ENOSYS; return -1; }
    #endif
    """
    ctypedef struct DIR:
        pass
    const int O_RDONLY, O_PATH, O_DIRECTORY, O_CLOEXEC
    int openat(int fd, const char* path, int flags) nogil
    DIR* fdopendir(int fd) nogil
    int closedir(DIR* stream) nogil
    int ioctl(int fd, unsigned long request, ...) nogil
    ssize_t readlinkat(int fd, const char* path, char* buf, size_t size) nogil
    int osmosis_fstatat(
        int fd, const char* path, int flags, unsigned long long* dev, unsigned long long* ino,
        unsigned int* uid, unsigned int* mode,
    ) nogil
    int osmosis_cached_id(
        int fd, const char* path, unsigned long long* dev, unsigned long long* ino
    ) nogil
    long osmosis_next_tid(DIR* stream) nogil
    long osmosis_pidfd_open(int pid, unsigned flags) nogil

cdef enum:
    N_NS = 8
    MAX_CMDLINE = 4096  # bytes kept
    EXEC_PATIENCE = 64  # reads of stat, 6 us each, before a half-made process is taken as it is
    MAX_FILE = 1 << 24  # bytes: 65536 groups of ten digits are under 1 MiB

# As osmosis.schema.NAMESPACES.
cdef const char** NS_NAMES = [
    b"cgroup", b"ipc", b"mnt", b"net", b"pid", b"time", b"user", b"uts",
]
cdef enum:
    NS_CGROUP = 0
    NS_IPC = 1
    NS_MNT = 2
    NS_NET = 3
    NS_USER = 6
    NS_UTS = 7

# What a Proc is (Proc.kind).
cdef enum:
    KIND_GONE = 0     # could not be opened, or stat or status not read: see err
    KIND_USER = 1
    KIND_KERNEL = 2   # kernel thread
    KIND_ZOMBIE = 3
    KIND_EXITING = 4  # has given its address space back, and has no other thread
    KIND_THREAD = 5   # a thread's id, not a process's

# Where an errno stands in Proc.err.
cdef enum:
    E_OPEN = 0
    E_STAT
    E_STATUS
    E_NS
    E_CGROUP
    E_CMDLINE
    E_LABEL
    E_EXE
    E_CWD
    E_ROOT
    E_MEM
    E_OOM
    E_TASK
    E_PIDFD
    N_ERR

SOURCES = (
    "open", "stat", "status", "ns", "cgroup", "cmdline", "label", "exe", "cwd", "root", "mem",
    "oom_score_adj", "task", "pidfd",
)

# What execve, setuid and setns change, and what a reused pid changes: equal bytes, same program.
cdef struct Print:
    uint64_t start_time
    uint64_t start_code
    uint64_t start_stack
    uint64_t arg_start
    uint64_t layout      # ends of code, data, arguments: without ASLR programs start at one place
    uint64_t[N_NS] ns
    uint64_t groups      # hash of the supplementary groups
    uint64_t comm        # hash of the name, only where the mm fields are hidden; else 0
    Cred cred
    int64_t pid

cdef struct Proc:
    Print print
    uint64_t vsize
    uint64_t min_flt
    uint64_t maj_flt
    uint64_t root_dev
    uint64_t root_inode
    uint64_t exe_dev     # st_dev and st_ino of what it runs, 0 where that is not told
    uint64_t exe_inode
    Span comm
    Span exe
    Span cwd
    Span root
    Span cmdline
    Span label
    Span cgroup
    Span groups          # uint32 each
    Span nspid           # int32 each
    Span cpus            # Cpus_allowed_list
    int32_t pid
    int32_t tid          # the thread that dirfd is of: pid unless the leader has exited
    int32_t dirfd        # -1 none
    int32_t leaderfd     # dirfd unless the leader has exited
    int32_t ppid
    int32_t pgid
    int32_t sid
    int32_t tty
    int32_t threads
    int32_t tracer
    uint32_t flags
    uint32_t mem_uid
    int32_t[N_ERR] err
    int16_t oom_adj
    uint16_t mem_mode
    int8_t dumpable
    uint8_t state
    uint8_t kind
    uint8_t pad

cdef struct Thread:
    Cred cred
    uint64_t[6] ns       # mnt user net ipc uts cgroup
    uint64_t root_dev    # st_dev and st_ino of its root: a thread may have its own (CLONE_FS)
    uint64_t root_inode
    Span groups          # in the same arena as the process's
    int32_t row          # of the Proc within this call
    int32_t tid

PROC_BYTES = sizeof(Proc)
THREAD_BYTES = sizeof(Thread)
PRINT_BYTES = sizeof(Print)

cdef int _openat(int dirfd, const char* path, int flags) noexcept nogil:
    cdef int fd
    while True:
        fd = openat(dirfd, path, flags | O_CLOEXEC)
        if fd >= 0:
            return fd
        if errno != EINTR:
            return -errno


cdef int64_t _slurp(int dirfd, const char* path, Buffer* b, int64_t limit) noexcept nogil:
    # Fills b with the file up to its end, or limit bytes. Returns the length or -errno.
    cdef int fd = _openat(dirfd, path, O_RDONLY)
    cdef ssize_t got
    cdef int64_t result = 0
    if fd < 0:
        return fd
    b.used = 0
    while b.used < limit:
        if reserve(b, 1) < 0:
            result = -ENOMEM
            break
        got = read(fd, b.data + b.used, min(b.room, limit) - b.used)
        if got < 0:
            if errno == EINTR:
                continue
            result = -errno
            break
        if got == 0:
            break
        b.used += got
    close(fd)
    return result if result < 0 else b.used


cdef inline uint64_t _hash(const char* data, int64_t n) noexcept nogil:
    # FNV-1a, 64 bits: tells a changed list from the same one; it is no defence.
    cdef uint64_t h = <uint64_t>0xcbf29ce484222325
    cdef int64_t i
    for i in range(n):
        h = (h ^ <uint8_t>data[i]) * <uint64_t>0x100000001b3
    return h


cdef int _read_stat(int dirfd, Buffer* b, Stat* s) noexcept nogil:
    cdef int64_t n
    memset(s, 0, sizeof(Stat))
    n = _slurp(dirfd, b"stat", b, MAX_FILE)
    if n < 0:
        return <int>n
    if n == 0:
        return -ESRCH
    return stat_of(b.data, n, s)


cdef inline bint _half_made(Stat* s) noexcept nogil:
    # load_elf_binary() (fs/binfmt_elf.c) sets start_code and start_stack last: 0 with an address
    # space is a process in the middle of execve, whose exe is the new program's while its
    # arguments are not there yet. 1 is what is shown where the layout is hidden.
    return s.vsize != 0 and s.start_code != 1 and (s.start_code == 0 or s.start_stack == 0)


cdef int _read_ns(int dirfd, uint64_t* ns) noexcept nogil:
    # All eight inode numbers, 0 where one is not to be had. Returns the first -errno, or 0.
    # The text of the link tells the number ("mnt:[4026531841]", ns_get_name() in fs/nsfs.c) for a
    # third of what following it costs.
    cdef char[64] text
    cdef const char* left
    cdef const char* end
    cdef ssize_t n
    cdef int i, failed, result = 0, at = _openat(dirfd, b"ns", O_PATH | O_DIRECTORY)
    for i in range(N_NS):
        ns[i] = 0
        if at < 0:
            continue
        n = readlinkat(at, NS_NAMES[i], text, sizeof(text))
        failed = 0
        if n < 0:
            failed = errno
        else:
            end = text + n
            left = <const char*>memchr(text, c"[", n)
            if left == NULL or number(left + 1, end, &ns[i]) == left + 1:
                failed = EBADMSG
        # ENOENT: this kernel has no such namespace (time: since v5.6).
        if result == 0 and failed != ENOENT:
            result = -failed
    if at < 0:
        return at if at != -ENOENT else 0
    close(at)
    return result


cdef int _read_link(int dirfd, const char* path, Buffer* b, Buffer* arena, Span* at) noexcept nogil:
    cdef ssize_t n
    at.size = -1
    b.used = 0
    while True:
        if reserve(b, max(b.room, <int64_t>4096)) < 0:
            return -ENOMEM
        n = readlinkat(dirfd, path, b.data, b.room)
        if n < 0:
            return -errno
        if n < b.room:
            break
        b.used = b.room  # truncated: grow
        if reserve(b, 1) < 0:
            return -ENOMEM
        b.used = 0
    return append(arena, b.data, n, at)


cdef int _read_text(
    int dirfd, const char* path, int64_t limit, Buffer* b, Buffer* arena, Span* at
) noexcept nogil:
    cdef int64_t n = _slurp(dirfd, path, b, limit)
    at.size = -1
    if n < 0:
        return <int>n
    return append(arena, b.data, n, at)


cdef int8_t _dumpable(int pid, bint thread, int* error) noexcept nogil:
    # SUID_DUMP_* as PIDFD_GET_INFO tells it (since v6.16), or -1. What is probed is whether the
    # kernel sets the bit that was asked for.
    cdef pidfd_info info
    cdef int8_t result = -1
    cdef long fd = osmosis_pidfd_open(pid, PIDFD_THREAD if thread else 0)
    error[0] = 0
    if fd < 0:
        error[0] = errno
        return -1
    memset(&info, 0, sizeof(info))
    info.mask = PIDFD_INFO_PID | PIDFD_INFO_COREDUMP
    if ioctl(<int>fd, PIDFD_GET_INFO, &info) < 0:
        error[0] = errno
    elif info.mask & PIDFD_INFO_COREDUMP and info.pid == <uint32_t>pid:
        if info.coredump_mask & PIDFD_COREDUMP_SKIP:
            result = 0
        elif info.coredump_mask & PIDFD_COREDUMP_USER:
            result = 1
        elif info.coredump_mask & PIDFD_COREDUMP_ROOT:
            result = 2
    close(<int>fd)
    return result


cdef int _living_thread(int leaderfd, Buffer* b, Stat* s, int32_t* tid) noexcept nogil:
    # A thread that still has an address space, for a leader that called pthread_exit. Returns a
    # dirfd of it, or -errno; s is then the thread's stat.
    cdef:
        char[32] name
        int fd = _openat(leaderfd, b"task", O_RDONLY | O_DIRECTORY)
        int found = -ESRCH, at
        long n
        DIR* stream
    if fd < 0:
        return fd
    stream = fdopendir(fd)
    if stream == NULL:
        close(fd)
        return -ENOMEM
    while True:
        n = osmosis_next_tid(stream)
        if n <= 0:
            break
        snprintf(name, sizeof(name), b"task/%ld", n)
        at = _openat(leaderfd, name, O_PATH | O_DIRECTORY)
        if at < 0:
            continue
        if _read_stat(at, b, s) == 0 and s.vsize != 0 and s.state not in (c"Z", c"X", c"x"):
            found, tid[0] = at, <int32_t>n
            break
        close(at)
    closedir(stream)
    return found


cdef void _mm_of(Print* p, Stat* s) noexcept nogil:
    p.start_code, p.start_stack, p.arg_start = s.start_code, s.start_stack, s.arg_start
    p.layout = s.layout


cdef int _threads(
    int procs_row, Proc* r, Buffer* b, Buffer* arena, Buffer* threads
) noexcept nogil:
    # Appends the threads that differ from the process in credentials, root directory or one of
    # six namespaces. The pid namespace is that of the process, and so is the time namespace:
    # setns() into one asks for a single thread (timens_install).
    cdef:
        char[64] name
        int fd = _openat(r.leaderfd, b"task", O_RDONLY | O_DIRECTORY)
        int i, result = 0, failed
        int64_t mark, got
        int32_t tracer, tgid
        long n
        DIR* stream
        Thread t
        Span nspid
        Span unused
        unsigned long long dev = 0, ino = 0
        unsigned int uid = 0, mode = 0
        const char** kinds = [b"mnt", b"user", b"net", b"ipc", b"uts", b"cgroup"]
        int* places = [NS_MNT, NS_USER, NS_NET, NS_IPC, NS_UTS, NS_CGROUP]
        bint differs
    if fd < 0:
        return fd
    stream = fdopendir(fd)
    if stream == NULL:
        close(fd)
        return -ENOMEM
    while True:
        n = osmosis_next_tid(stream)
        if n <= 0:
            break
        if n == r.tid or n == r.pid:
            continue
        snprintf(name, sizeof(name), b"task/%ld/status", n)
        got = _slurp(r.leaderfd, name, b, MAX_FILE)
        if got < 0:
            if got not in (-ENOENT, -ESRCH):
                result = <int>got
            continue  # the thread has ended
        mark = arena.used
        memset(&t, 0, sizeof(t))
        failed = status_of(
            b.data, got, &t.cred, &tracer, &tgid, arena, &t.groups, &nspid, NULL
        )
        if failed < 0:
            arena.used = mark
            result = failed
            continue
        differs = (
            memcmp(&t.cred, &r.print.cred, sizeof(Cred)) != 0
            or t.groups.size != r.groups.size
            or (
                t.groups.size > 0
                and memcmp(
                    arena.data + t.groups.start, arena.data + r.groups.start, t.groups.size
                ) != 0
            )
        )
        for i in range(6):
            snprintf(name, sizeof(name), b"task/%ld/ns/%s", n, kinds[i])
            if osmosis_fstatat(r.leaderfd, name, 0, &dev, &ino, &uid, &mode) == 0:
                t.ns[i] = ino
                # Only two known inodes can differ: an ending thread has none.
                if r.print.ns[places[i]] and ino != r.print.ns[places[i]]:
                    differs = True
        snprintf(name, sizeof(name), b"task/%ld/root", n)
        if osmosis_cached_id(r.leaderfd, name, &dev, &ino) == 0:
            t.root_dev, t.root_inode = dev, ino
            if r.root_inode and (dev != r.root_dev or ino != r.root_inode):
                differs = True
        if not differs:
            arena.used = mark
            continue
        t.row, t.tid = procs_row, <int32_t>n
        if append(threads, &t, sizeof(t), &unused) < 0:
            result = -ENOMEM
            break
    if n < 0 and result == 0:
        result = -errno
    closedir(stream)
    return result


cdef int _printing(
    int leaderfd, int dirfd, Buffer* b, Buffer* arena, Print* p, uint64_t* faults
) noexcept nogil:
    # The fingerprint alone, and the page faults so far; leaves the arena as it was.
    cdef Stat s
    cdef Stat own
    cdef Span groups
    cdef Span nspid
    cdef int32_t tracer, tgid
    cdef int64_t n, mark = arena.used
    cdef int failed
    memset(p, 0, sizeof(Print))
    failed = _read_stat(leaderfd, b, &s)
    if failed < 0:
        return failed
    if _half_made(&s):
        return -EAGAIN
    p.pid, p.start_time = s.pid, s.start_time
    faults[0] = s.min_flt + s.maj_flt
    if s.start_code <= 1:
        p.comm = _hash(b.data + s.comm_start, s.comm_size)
    _mm_of(p, &s)
    if dirfd != leaderfd:
        failed = _read_stat(dirfd, b, &own)
        if failed < 0:
            return failed
        if _half_made(&own):
            return -EAGAIN
        _mm_of(p, &own)
    n = _slurp(dirfd, b"status", b, MAX_FILE)
    if n < 0:
        return <int>n
    failed = status_of(b.data, n, &p.cred, &tracer, &tgid, arena, &groups, &nspid, NULL)
    if failed == 0:
        p.groups = _hash(arena.data + groups.start, groups.size)
        _read_ns(dirfd, &p.ns[0])
    arena.used = mark
    return failed


cdef void _one(
    int procfd, int row, Proc* r, bint ours, Buffer* b, Buffer* arena, Buffer* threads
) noexcept nogil:
    cdef:
        char[32] name
        Stat s
        Stat own
        int64_t n
        int failed = 0, fd, error = 0, _attempt
        int32_t tid, tgid
        unsigned long long dev = 0, ino = 0
        unsigned int uid = 0, mode = 0
        uint64_t value = 0
        int32_t pid = r.pid
    memset(r, 0, sizeof(Proc))
    r.pid = r.tid = pid
    r.dirfd = r.leaderfd = -1
    r.dumpable = r.print.cred.no_new_privs = r.print.cred.seccomp = -1
    r.mem_uid = <uint32_t>-1
    r.comm.size = r.exe.size = r.cwd.size = r.root.size = r.cmdline.size = -1
    r.label.size = r.cgroup.size = r.groups.size = r.nspid.size = r.cpus.size = -1
    snprintf(name, sizeof(name), b"%d", pid)
    fd = _openat(procfd, name, O_PATH | O_DIRECTORY)
    if fd < 0:
        r.err[E_OPEN] = -fd
        return
    r.dirfd = r.leaderfd = fd

    # First, and checked last by the caller: the fields of Print.
    for _attempt in range(EXEC_PATIENCE):
        failed = _read_stat(fd, b, &s)
        if failed < 0 or not _half_made(&s):
            break
    if failed == 0 and s.pid != pid:
        failed = -EBADMSG
    if failed < 0:
        r.err[E_STAT] = -failed
        return
    r.print.pid, r.print.start_time = s.pid, s.start_time
    if s.start_code <= 1:
        # fs/proc/array.c shows 1 (or 0) where it hides the layout: then only the name can tell.
        r.print.comm = _hash(b.data + s.comm_start, s.comm_size)
    _mm_of(&r.print, &s)
    r.ppid, r.pgid, r.sid, r.tty = s.ppid, s.pgid, s.sid, s.tty
    r.threads, r.flags, r.state = s.threads, s.flags, s.state
    r.vsize, r.min_flt, r.maj_flt = s.vsize, s.min_flt, s.maj_flt
    if append(arena, b.data + s.comm_start, s.comm_size, &r.comm) < 0:
        r.err[E_STAT] = ENOMEM
        return
    if s.flags & PF_KTHREAD:
        r.kind = KIND_KERNEL
        return
    if s.vsize == 0:  # no address space: the leader has exited
        if s.threads <= 1:
            r.kind = KIND_ZOMBIE if s.state in (c"Z", c"X", c"x") else KIND_EXITING
            return
        fd = _living_thread(r.leaderfd, b, &own, &tid)
        if fd < 0:
            r.kind = KIND_EXITING
            return
        r.dirfd, r.tid, r.vsize = fd, tid, own.vsize
        _mm_of(&r.print, &own)

    if ours:  # a pid of our own pid namespace: another one's numbers name other processes
        r.dumpable = _dumpable(r.tid, r.tid != r.pid, &error)
        r.err[E_PIDFD] = error
    # Reading on below the pinned directory shows that the pid was not reused before the pidfd.
    n = _slurp(fd, b"status", b, MAX_FILE)
    failed = <int>n if n < 0 else status_of(
        b.data, n, &r.print.cred, &r.tracer, &tgid, arena, &r.groups, &r.nspid, &r.cpus
    )
    if failed < 0:
        r.err[E_STATUS] = -failed
        return
    if tgid != pid:
        r.kind = KIND_THREAD
        r.ppid = tgid
        return
    r.print.groups = _hash(arena.data + r.groups.start, r.groups.size)
    r.err[E_NS] = -_read_ns(fd, &r.print.ns[0])
    r.kind = KIND_USER

    r.err[E_CGROUP] = -_read_text(fd, b"cgroup", MAX_FILE, b, arena, &r.cgroup)
    r.err[E_CMDLINE] = -_read_text(fd, b"cmdline", MAX_CMDLINE, b, arena, &r.cmdline)
    r.err[E_LABEL] = -_read_text(fd, b"attr/current", MAX_CMDLINE, b, arena, &r.label)
    r.err[E_EXE] = -_read_link(fd, b"exe", b, arena, &r.exe)
    r.err[E_CWD] = -_read_link(fd, b"cwd", b, arena, &r.cwd)
    r.err[E_ROOT] = -_read_link(fd, b"root", b, arena, &r.root)
    if osmosis_cached_id(fd, b"exe", &dev, &ino) == 0:
        r.exe_dev, r.exe_inode = dev, ino
    if osmosis_cached_id(fd, b"root", &dev, &ino) == 0:
        r.root_dev, r.root_inode = dev, ino
    elif r.err[E_ROOT] == 0:
        r.err[E_ROOT] = errno
    if osmosis_fstatat(fd, b"mem", 0, &dev, &ino, &uid, &mode) == 0:
        r.mem_uid, r.mem_mode = uid, <uint16_t>(mode & 0o7777)
    else:
        r.err[E_MEM] = errno
    n = _slurp(fd, b"oom_score_adj", b, MAX_FILE)
    if n < 0:
        r.err[E_OOM] = <int32_t>-n
    elif number(b.data, b.data + n, &value) != b.data:
        r.oom_adj = <int16_t>value
    else:
        r.err[E_OOM] = EBADMSG
    if s.threads > 1:
        r.err[E_TASK] = -_threads(row, r, b, arena, threads)


cdef void _shut(Proc* r) noexcept nogil:
    if r.dirfd >= 0 and r.dirfd != r.leaderfd:
        close(r.dirfd)
    if r.leaderfd >= 0:
        close(r.leaderfd)
    r.dirfd = r.leaderfd = -1


def scan(int procfd, uint8_t[::1] rows not None, bint ours, Py_ssize_t keep):
    cdef:
        Py_ssize_t n = rows.shape[0] // <Py_ssize_t>sizeof(Proc), i
        Proc* r
        Buffer b, arena, threads
        bint full
    if rows.shape[0] != n * <Py_ssize_t>sizeof(Proc):
        raise ValueError(f"rows are {sizeof(Proc)} bytes each, not {rows.shape[0]} / n")
    memset(&b, 0, sizeof(b))
    memset(&arena, 0, sizeof(arena))
    memset(&threads, 0, sizeof(threads))
    if n == 0:
        return b"", b""
    r = <Proc*>&rows[0]
    try:
        with nogil:
            full = reserve(&b, 1) < 0 or reserve(&arena, 1) < 0
            if not full:
                for i in range(n):
                    _one(procfd, <int>i, &r[i], ours, &b, &arena, &threads)
                    if r[i].kind != KIND_USER or keep <= 0:
                        _shut(&r[i])
                    else:
                        keep -= 1 + (r[i].dirfd != r[i].leaderfd)
        if full:
            raise OSError(ENOMEM, os.strerror(ENOMEM))
        return arena.data[:arena.used], threads.data[:threads.used] if threads.used else b""
    finally:
        free(b.data)
        free(arena.data)
        free(threads.data)


def fingerprints(
    const int32_t[::1] leaderfds not None,
    const int32_t[::1] dirfds not None,
    uint8_t[::1] prints not None,
    int32_t[::1] errors not None,
):
    cdef:
        Py_ssize_t n = leaderfds.shape[0], i
        Buffer b, arena
        bint full
        int failed
        uint64_t faults
        Print* p
    if dirfds.shape[0] != n or errors.shape[0] != n:
        raise ValueError("leaderfds, dirfds and errors differ in length")
    if prints.shape[0] != n * <Py_ssize_t>sizeof(Print):
        raise ValueError(f"prints wants {sizeof(Print)} bytes for each of {n}")
    if n == 0:
        return
    memset(&b, 0, sizeof(b))
    memset(&arena, 0, sizeof(arena))
    p = <Print*>&prints[0]
    with nogil:
        full = reserve(&b, 1) < 0 or reserve(&arena, 1) < 0
        if not full:
            for i in range(n):
                failed = _printing(leaderfds[i], dirfds[i], &b, &arena, &p[i], &faults)
                errors[i] = -failed
        free(b.data)
        free(arena.data)
    if full:
        raise OSError(ENOMEM, os.strerror(ENOMEM))


def distinct(const uint8_t[::1] arena not None, const int64_t[:, ::1] spans not None):
    cdef:
        Py_ssize_t n = spans.shape[0], i, room = 16
        int64_t start, size, at, other
        int32_t* slots       # number of a text + 1
        int32_t* of
        int32_t* first       # of each text, its first span
        int32_t found = 0
        const char* data = b""  # of an empty list no address is made: a span of it is empty
    if spans.shape[1] != 2:
        raise ValueError("a span is a start and a size")
    for i in range(n):
        if spans[i, 1] > 0 and not 0 <= spans[i, 0] <= arena.shape[0] - spans[i, 1]:
            raise ValueError(f"span {i} is not within the {arena.shape[0]} bytes")
    if n > 0x3FFFFFFF:
        raise ValueError(f"{n} spans")
    while room < 2 * n:
        room *= 2
    if arena.shape[0]:
        data = <const char*>&arena[0]
    slots = <int32_t*>calloc(room, sizeof(int32_t))
    of = <int32_t*>malloc((n + 1) * sizeof(int32_t))
    first = <int32_t*>malloc((n + 1) * sizeof(int32_t))
    try:
        if slots == NULL or of == NULL or first == NULL:
            raise MemoryError
        with nogil:
            for i in range(n):
                start, size = spans[i, 0], spans[i, 1]
                if size < 0:
                    of[i] = -1
                    continue
                if size == 0:
                    start = 0
                at = <int64_t>(_hash(data + start, size) & <uint64_t>(room - 1))
                while slots[at]:
                    other = first[slots[at] - 1]
                    if spans[other, 1] == size and (
                        size == 0 or memcmp(data + spans[other, 0], data + start, size) == 0
                    ):
                        break
                    at = (at + 1) & (room - 1)
                if not slots[at]:
                    first[found] = <int32_t>i
                    found += 1
                    slots[at] = found
                of[i] = slots[at] - 1
        return (
            [of[i] for i in range(n)],
            [
                data[spans[first[i], 0]:spans[first[i], 0] + spans[first[i], 1]]
                if spans[first[i], 1] else b""
                for i in range(found)
            ],
        )
    finally:
        free(slots)
        free(of)
        free(first)


def unchanged(
    const int32_t[::1] leaderfds not None,
    const int32_t[::1] dirfds not None,
    const uint8_t[::1] prints not None,
    int64_t[::1] faults not None,
):
    cdef:
        Py_ssize_t n = leaderfds.shape[0], i
        Buffer b, arena
        Print now
        bint full
        uint64_t count = 0
    if dirfds.shape[0] != n or faults.shape[0] != n:
        raise ValueError("leaderfds, dirfds and faults differ in length")
    if prints.shape[0] != n * <Py_ssize_t>sizeof(Print):
        raise ValueError(f"prints wants {sizeof(Print)} bytes for each of {n}")
    memset(&b, 0, sizeof(b))
    memset(&arena, 0, sizeof(arena))
    with nogil:
        full = reserve(&b, 1) < 0 or reserve(&arena, 1) < 0
        for i in range(n):
            faults[i] = -1
            if full or leaderfds[i] < 0:
                continue
            if _printing(leaderfds[i], dirfds[i], &b, &arena, &now, &count) == 0 and memcmp(
                &now, &prints[i * <Py_ssize_t>sizeof(Print)], sizeof(Print)
            ) == 0:
                faults[i] = <int64_t>count
        free(b.data)
        free(arena.data)
    if full:
        raise OSError(ENOMEM, os.strerror(ENOMEM))


cdef dict _cred_dict(Cred* c):
    return {
        "uid": tuple(c.uid[i] for i in range(4)),
        "gid": tuple(c.gid[i] for i in range(4)),
        "cap": tuple(c.cap[i] for i in range(5)),
        "no_new_privs": c.no_new_privs,
        "seccomp": c.seccomp,
    }


def parse_stat(bytes text not None):
    cdef Stat s
    cdef const char* data = text
    if stat_of(data, len(text), &s) < 0:
        raise ValueError(f"not the text of /proc/pid/stat: {text!r}")
    return {
        "pid": s.pid, "comm": text[s.comm_start:s.comm_start + s.comm_size],
        "state": chr(s.state), "ppid": s.ppid, "pgid": s.pgid, "sid": s.sid, "tty": s.tty,
        "flags": s.flags, "min_flt": s.min_flt, "maj_flt": s.maj_flt, "threads": s.threads,
        "start_time": s.start_time, "vsize": s.vsize, "start_code": s.start_code,
        "start_stack": s.start_stack, "arg_start": s.arg_start,
        "layout": s.layout,
    }


def parse_status(bytes text not None):
    cdef:
        Cred c
        Buffer arena
        Span groups
        Span nspid
        int32_t tracer = -1, tgid = -1
        const char* data = text
        bytes kept
    memset(&arena, 0, sizeof(arena))
    try:
        if reserve(&arena, 1) < 0:
            raise OSError(ENOMEM, os.strerror(ENOMEM))
        if status_of(data, len(text), &c, &tracer, &tgid, &arena, &groups, &nspid, NULL) < 0:
            raise ValueError(f"not the text of /proc/pid/status: {text!r}")
        kept = arena.data[:arena.used]
    finally:
        free(arena.data)
    return {
        **_cred_dict(&c),
        "tgid": tgid,
        "tracer": tracer,
        "groups": _numbers(kept, groups),
        "nspid": _numbers(kept, nspid),
    }


cdef list _numbers(bytes kept, Span at):
    return [
        int.from_bytes(kept[i:i + 4], "little") for i in range(at.start, at.start + at.size, 4)
    ]
