"""What the kernel tells of a namespace's descriptor; who shares an mm or a fd table (kcmp)."""

from libc.errno cimport EPERM, ESRCH, errno
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from _fastproc.bits cimport (
    KCMP_FILES,
    KCMP_VM,
    NS_GET_ID,
    NS_GET_OWNER_UID,
    NS_GET_PARENT,
    NS_GET_USERNS,
    PID_NS_INIT_INO,
    USER_NS_INIT_INO,
)

import os

cdef extern from *:
    """
    #include <errno.h>
    #include <sys/ioctl.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #ifdef SYS_kcmp
    static long osmosis_kcmp(int a, int b, int type) { return syscall(SYS_kcmp, a, b, type, 0, 0); }
    #else
    static long osmosis_kcmp(int a, int b, int type) { errno = ENOSYS; return -1; }
    #endif
    """
    int ioctl(int fd, unsigned long request, ...) nogil
    long osmosis_kcmp(int a, int b, int kind) nogil

# Inode numbers of the initial namespaces.
INITIAL_USER = <unsigned int>USER_NS_INIT_INO
INITIAL_PID = <unsigned int>PID_NS_INIT_INO

cdef enum:
    MAX_PASSES = 16  # of sort_by_mm, each after one more process exited in the middle


def namespace_id(int fd):
    cdef uint64_t number = 0
    if ioctl(fd, <unsigned long>NS_GET_ID, &number) < 0:
        raise OSError(errno, os.strerror(errno))
    return number


def namespace_owner(int fd):
    cdef uint32_t uid = 0
    if ioctl(fd, <unsigned long>NS_GET_OWNER_UID, &uid) < 0:
        raise OSError(errno, os.strerror(errno))
    return uid


def namespace_parent(int fd):
    cdef int other = ioctl(fd, <unsigned long>NS_GET_PARENT)
    if other < 0:
        raise OSError(errno, os.strerror(errno))
    return other


def namespace_user(int fd):
    cdef int other = ioctl(fd, <unsigned long>NS_GET_USERNS)
    if other < 0:
        raise OSError(errno, os.strerror(errno))
    return other


def other_tables(int tid, const int32_t[::1] tids not None):
    cdef:
        Py_ssize_t i, n = tids.shape[0]
        int32_t* states
        long found
    states = <int32_t*>malloc((n + 1) * sizeof(int32_t))
    if states == NULL:
        raise MemoryError
    try:
        with nogil:
            for i in range(n):
                found = osmosis_kcmp(tid, tids[i], KCMP_FILES)
                states[i] = -errno if found < 0 else found != 0
        return [states[i] for i in range(n)]
    finally:
        free(states)


cdef Py_ssize_t _comparable(int32_t* pids, Py_ssize_t n, Py_ssize_t* denied) noexcept nogil:
    # Moves those that can be compared (with themselves) to the front. Their number, or -errno.
    cdef Py_ssize_t i, kept = 0
    for i in range(n):
        if osmosis_kcmp(pids[i], pids[i], KCMP_VM) == 0:
            pids[kept] = pids[i]
            kept += 1
        elif errno == EPERM:
            denied[0] += 1
        elif errno != ESRCH:
            return -errno
    return kept


cdef int _merge_sort(int32_t* pids, int32_t* scratch, Py_ssize_t n) noexcept nogil:
    # By the kernel's (obfuscated, stable) order of mm pointers: O(n log n) calls. 0 or -errno.
    cdef Py_ssize_t width = 1, low, mid, high, i, j, k
    cdef long order
    while width < n:
        low = 0
        while low < n:
            mid = min(low + width, n)
            high = min(low + 2 * width, n)
            i, j, k = low, mid, low
            while i < mid and j < high:
                order = osmosis_kcmp(pids[i], pids[j], KCMP_VM)
                if order < 0:
                    return -errno
                if order == 2:  # the second is the lower
                    scratch[k] = pids[j]
                    j += 1
                else:
                    scratch[k] = pids[i]
                    i += 1
                k += 1
            if i < mid:
                memcpy(scratch + k, pids + i, (mid - i) * sizeof(int32_t))
            elif j < high:
                memcpy(scratch + k, pids + j, (high - j) * sizeof(int32_t))
            low += 2 * width
        memcpy(pids, scratch, n * sizeof(int32_t))
        width *= 2
    return 0


cdef int _mark(const int32_t* pids, int32_t* starts, Py_ssize_t n) noexcept nogil:
    # starts[i] = 1 where pids[i] begins another mm than pids[i - 1]. 0 or -errno.
    cdef Py_ssize_t i
    cdef long order
    for i in range(1, n):
        order = osmosis_kcmp(pids[i - 1], pids[i], KCMP_VM)
        if order < 0:
            return -errno
        starts[i] = order != 0
    return 0


def sort_by_mm(int32_t[::1] pids not None):
    cdef:
        Py_ssize_t n = pids.shape[0], kept = n, denied = 0, i
        int32_t* scratch
        int failed = -ESRCH
        int tries = 0
    if n == 0:
        return 0, 0, []
    scratch = <int32_t*>malloc(n * sizeof(int32_t))
    if scratch == NULL:
        raise MemoryError
    try:
        with nogil:
            while failed == -ESRCH and tries < MAX_PASSES:
                tries += 1
                kept = _comparable(&pids[0], kept, &denied)
                if kept < 0:
                    failed = <int>kept
                    break
                failed = _merge_sort(&pids[0], scratch, kept)
                if failed == 0:
                    failed = _mark(&pids[0], scratch, kept)
        if failed:
            raise OSError(-failed, os.strerror(-failed))
        return kept, denied, [0] * (kept > 0) + [i for i in range(1, kept) if scratch[i]]
    finally:
        free(scratch)
