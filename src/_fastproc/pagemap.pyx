"""Bulk reads of ``/proc/<pid>/pagemap``. Raises only OSError, ValueError and MemoryError.

What is populated is read in chunks; over what is not, PAGEMAP_SCAN leaps to the next
populated page (*gallop*), so that a reservation of terabytes costs as much as a page.
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memmove
from posix.types cimport off_t
from posix.unistd cimport pread

from _fastproc.bits cimport (
    KPF_KSM_BIT,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    PAGEMAP_SCAN,
    PM_ENTRY_BYTES,
    PM_PRESENT_BIT,
    SWAP_TYPES_REAL,
    page_region,
    pm_file,
    pm_guard,
    pm_pfn,
    pm_present,
    pm_scan_arg,
    pm_swap,
    pm_swap_type,
)
from _fastproc.frames cimport OWN_ALL, OWN_FILE, OWN_NONE, FrameIndex

import os

cdef extern from "sys/ioctl.h" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef enum:
    CHUNK = 2048  # entries read at once
    LEAP = 256    # absent entries after which asking for the next populated page pays

# VmaKind, as in maps.pyx.
cdef enum:
    VDSO = 5
    VVAR = 6
    VSYSCALL = 7

# How a read ended.
DONE, FULL, SHORT = 0, 1, 2

# Internal mark on a returned entry: the frame is KSM's. Bits 59-60 of an entry are unused.
KSM_MARK = 1 << 60


cdef Py_ssize_t _read_entries(
    int fd, uint64_t page, uint64_t* entries, Py_ssize_t n
) noexcept nogil:
    # Returns the entries read (fewer than n only at end of file) or -errno.
    cdef:
        char* dest = <char*>entries
        Py_ssize_t want = n * PM_ENTRY_BYTES, done = 0
        ssize_t got
    while done < want:
        got = pread(fd, dest + done, want - done, <off_t>(page * PM_ENTRY_BYTES) + done)
        if got == 0:
            break
        if got < 0:
            if errno == EINTR:
                continue
            return -errno
        done += got
    return done // PM_ENTRY_BYTES


cdef int64_t _next_populated(
    int fd, uint64_t page, uint64_t end, uint64_t page_bytes
) noexcept nogil:
    # First populated page in [page, end), end if there is none, or -errno.
    cdef:
        pm_scan_arg arg
        page_region found
        int n
    arg.size = sizeof(pm_scan_arg)
    arg.flags = 0  # reading only: never PM_SCAN_WP_MATCHING
    arg.start = page * page_bytes
    arg.end = end * page_bytes
    arg.walk_end = 0
    arg.vec = <uint64_t>&found
    arg.vec_len = 1
    arg.max_pages = 1
    arg.category_inverted = 0
    arg.category_mask = 0
    arg.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
    arg.return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
    while True:
        n = ioctl(fd, PAGEMAP_SCAN, &arg)
        if n >= 0:
            break
        if errno != EINTR:
            return -errno
    return <int64_t>(found.start // page_bytes) if n else <int64_t>end


def has_pagemap_scan(int fd, uint64_t page_bytes=4096):
    """Whether ioctl PAGEMAP_SCAN works on this open pagemap: probed, not guessed."""
    cdef int64_t got
    with nogil:
        got = _next_populated(fd, 0, 1, page_bytes)
    return got >= 0


cdef inline bint _swapped(uint64_t entry) noexcept nogil:
    return pm_swap(entry) and not pm_guard(entry)


cdef inline bint _is_ksm(int kpageflags, uint64_t pfn) noexcept nogil:
    cdef uint64_t flags = 0
    if _read_entries(kpageflags, pfn, &flags, 1) != 1:
        return False
    return (flags >> KPF_KSM_BIT) & 1


cdef struct Rules:  # what becomes of an entry
    uint64_t zero_pfn
    uint64_t huge_zero_pfn
    uint64_t huge_pages
    int kpageflags
    bint swap


cdef Py_ssize_t _keep(
    const uint64_t* raw, Py_ssize_t m, uint8_t kind, Rules* rules, uint64_t* out, int64_t* counts
) noexcept nogil:
    # Moves what is to be kept of the entries of one VMA to out, which may be raw or stand before
    # it; adds to counts. Returns how many were kept. The loops have no branch: they vectorize.
    cdef:
        Py_ssize_t i, n = 0
        uint64_t entry, d, t, present = 0, swapped = 0, zeros = 0
    for i in range(m):
        entry = raw[i]
        present += entry >> PM_PRESENT_BIT
        swapped |= (entry << 1) & ~entry
    if swapped >> PM_PRESENT_BIT or rules.kpageflags >= 0 or kind == VDSO or kind == VVAR:
        return _keep_some(raw, m, kind, rules, out, counts)
    if present == 0:
        return 0
    for i in range(m):
        # The top bit of (x - 1) & ~x tells whether x is 0; that of (t - n) & ~t, whether t < n.
        d = pm_pfn(raw[i]) ^ rules.zero_pfn
        t = pm_pfn(raw[i]) - rules.huge_zero_pfn
        zeros += (((d - 1) & ~d) | ((t - rules.huge_pages) & ~t)) >> 63 & raw[i] >> PM_PRESENT_BIT
    counts[0] += present
    counts[2] += zeros
    if zeros == 0:
        if present == <uint64_t>m:
            if out != raw:
                memmove(out, raw, m * PM_ENTRY_BYTES)
            return m
        for i in range(m):
            entry = raw[i]
            out[n] = entry
            n += <Py_ssize_t>(entry >> PM_PRESENT_BIT)
        return n
    for i in range(m):
        entry = raw[i]
        d = pm_pfn(entry) ^ rules.zero_pfn
        t = pm_pfn(entry) - rules.huge_zero_pfn
        out[n] = entry
        n += <Py_ssize_t>(
            entry >> PM_PRESENT_BIT & ~((((d - 1) & ~d) | ((t - rules.huge_pages) & ~t)) >> 63)
        )
    return n


cdef Py_ssize_t _keep_some(
    const uint64_t* raw, Py_ssize_t m, uint8_t kind, Rules* rules, uint64_t* out, int64_t* counts
) noexcept nogil:
    # As _keep, an entry at a time: swap slots, the kernel's own pages, marks of KSM.
    cdef:
        Py_ssize_t i, n = 0
        uint64_t entry, pfn
    for i in range(m):
        entry = raw[i]
        if pm_present(entry):
            counts[0] += 1
            pfn = pm_pfn(entry)
            if pfn == rules.zero_pfn or (
                pfn >= rules.huge_zero_pfn and pfn - rules.huge_zero_pfn < rules.huge_pages
            ):
                counts[2] += 1
                continue
            if kind == VVAR or (kind == VDSO and pm_file(entry)):
                continue
            if rules.kpageflags >= 0 and not pm_file(entry) and _is_ksm(rules.kpageflags, pfn):
                entry |= <uint64_t>1 << 60
        elif rules.swap and _swapped(entry) and pm_swap_type(entry) < SWAP_TYPES_REAL:
            counts[1] += 1
        else:
            continue
        out[n] = entry
        n += 1
    return n


def read_populated(
    int fd,
    const uint64_t[::1] start not None,
    const uint64_t[::1] end not None,
    const uint8_t[::1] kind not None,
    uint64_t[::1] entries not None,
    int64_t[::1] indptr not None,
    int64_t[:, ::1] counts not None,
    Py_ssize_t vma,
    uint64_t page,
    *,
    uint64_t zero_pfn,
    uint64_t huge_zero_pfn,
    uint64_t huge_pages=512,
    bint swap=False,
    bint scan=True,
    int kpageflags=-1,
    uint64_t page_bytes=4096,
):
    """Read the populated pages of VMAs in address order, into *entries*.

    Parameters
    ----------
    fd
        An open pagemap; every read is a pread.
    start, end : (V,) uint64
        VMAs, bytes, rising, not overlapping.
    kind : (V,) uint8
        VmaKind. The kernel's own frames under vdso and vvar are left out; a vsyscall, which
        pagemap does not know, is passed over.
    entries : (N,) uint64, N >= 2048
        Overwritten with raw entries: present ones, and swapped ones if *swap*; zero pages are
        counted and left out.
    indptr : (V + 1,) int64
        Overwritten: ``entries[indptr[v]:indptr[v + 1]]`` are those of VMA v from this call.
    counts : (V, 3) int64
        Added to: pages present, swapped, zero.
    vma, page
        Where to begin: VMA number, and page number (address // page_bytes) in it; 0 for its
        start. A call that ended FULL names where to go on.
    zero_pfn, huge_zero_pfn
        The shared zero page, and the first of the *huge_pages* of the huge one; 2**64 - 1 for none.
    scan
        Whether PAGEMAP_SCAN works here.
    kpageflags
        An open /proc/kpageflags to mark KSM frames (bit 60), -1 for none.

    Returns
    -------
    (status, vma, page, n)
        DONE, FULL (*entries* has no room for another chunk: go on from vma, page) or SHORT (the
        address space is gone: what was read is to be discarded); n entries were written.

    Notes
    -----
    O(populated pages); releases the GIL. Source: Documentation/admin-guide/mm/pagemap.rst.
    """
    cdef:
        Py_ssize_t n_vmas = start.shape[0], v, i, k, got = 0, n = 0, absent, at
        Py_ssize_t room = entries.shape[0]
        uint64_t p, stop, span_end
        uint64_t* raw
        int64_t leap
        int status = 0
        Rules rules
    if (end.shape[0] != n_vmas or kind.shape[0] != n_vmas or counts.shape[0] != n_vmas
            or counts.shape[1] != 3 or indptr.shape[0] != n_vmas + 1):
        raise ValueError("start, end, kind, counts and indptr are of different lengths")
    if room < CHUNK:
        raise ValueError(f"entries has room for {room}, not for {CHUNK}")
    if not 0 <= vma <= n_vmas:
        raise ValueError(f"VMA {vma} of {n_vmas}")
    for i in range(n_vmas):
        if end[i] <= start[i] or (i and start[i] < end[i - 1]):
            raise ValueError(f"VMA {i} does not follow the one before it")
    # No number of a frame reaches 2**55: these stand for "none".
    rules.zero_pfn = min(zero_pfn, <uint64_t>1 << 62)
    rules.huge_zero_pfn = min(huge_zero_pfn, <uint64_t>1 << 62)
    rules.huge_pages = huge_pages
    rules.kpageflags = kpageflags
    rules.swap = swap

    with nogil:
        for i in range(vma + 1):
            indptr[i] = 0
        v = vma
        p = page
        while v < n_vmas and status == 0 and got >= 0:
            if kind[v] == VSYSCALL or start[v] >= (<uint64_t>1 << 63):
                v += 1
                indptr[v] = n
                continue
            if p < start[v] // page_bytes:
                p = start[v] // page_bytes
            # A span: VMAs that touch are read as one range.
            span_end = end[v] // page_bytes
            i = v + 1
            while i < n_vmas and start[i] == end[i - 1] and kind[i] != VSYSCALL:
                span_end = end[i] // page_bytes
                i += 1
            absent = 0
            while p < span_end:
                if room - n < CHUNK:
                    status = 1
                    break
                stop = p + CHUNK if span_end - p > CHUNK else span_end
                # Read to where they stay; what is not kept is closed up.
                raw = &entries[n]
                got = _read_entries(fd, p, raw, <Py_ssize_t>(stop - p))
                if got != <Py_ssize_t>(stop - p):
                    status = 2
                    break
                k = got
                while k > 0 and not (pm_present(raw[k - 1]) or _swapped(raw[k - 1])):
                    k -= 1
                absent = got - k if k else absent + got
                at = 0
                while at < got:
                    while p >= end[v] // page_bytes:
                        v += 1
                        indptr[v] = n
                    k = <Py_ssize_t>min(end[v] // page_bytes - p, <uint64_t>(got - at))
                    n += _keep(raw + at, k, kind[v], &rules, &entries[n], &counts[v, 0])
                    p += k
                    at += k
                if scan and absent >= LEAP and p < span_end:
                    leap = _next_populated(fd, p, span_end, page_bytes)
                    if leap < 0:
                        got = <Py_ssize_t>leap
                        break
                    p = <uint64_t>leap
                    absent = 0
                    # The leap may have passed whole VMAs.
                    while p < span_end and p >= end[v] // page_bytes:
                        v += 1
                        indptr[v] = n
            if status or got < 0:
                break
            # The span is done: close its last VMAs.
            while v < n_vmas and end[v] // page_bytes <= span_end:
                v += 1
                indptr[v] = n
            p = 0
        for i in range(v + 1, n_vmas + 1):
            indptr[i] = n

    if got < 0:
        if -got == 3:  # ESRCH: the process is gone
            return SHORT, v, p, n
        raise OSError(<int>-got, os.strerror(<int>-got))
    return status, v, p, n


cdef inline void _enter(
    FrameIndex index, int32_t row, int32_t kind, uint8_t prot, uint8_t vma_kind, uint64_t n_pages
) noexcept nogil:
    cdef int own = OWN_NONE
    if vma_kind == VVAR:
        own = OWN_ALL
    elif vma_kind == VDSO:
        own = OWN_FILE
    index.enter(row, kind, (prot & 8) != 0, own, n_pages)


def read_frames(
    int fd,
    const uint64_t[::1] start not None,
    const uint64_t[::1] end not None,
    const uint8_t[::1] vma_kind not None,
    const uint8_t[::1] prot not None,
    const int32_t[::1] kind not None,
    int64_t[:, ::1] counts not None,
    FrameIndex index not None,
    int32_t row,
    int64_t when,
    *,
    bint scan=True,
    int kpageflags=-1,
    uint64_t page_bytes=4096,
):
    """Read the populated pages of VMAs in address order, into a frame index.

    Parameters
    ----------
    fd
        An open pagemap; every read is a pread.
    start, end : (V,) uint64
        VMAs, bytes, rising, not overlapping.
    vma_kind, prot : (V,) uint8, kind : (V,) int32
        As ``maps.VmaTable`` has them. The kernel's own frames under vdso and vvar are counted
        and not indexed; a vsyscall, which pagemap does not know, is passed over.
    counts : (V, 3) int64
        Added to: pages present, swapped, zero.
    index
        Of this thread.
    row
        Number of the first VMA; the others follow.
    when
        Time of the reading, rising from one to the next.
    scan
        Whether PAGEMAP_SCAN works here.
    kpageflags
        An open /proc/kpageflags to mark KSM frames, -1 for none.

    Returns
    -------
    status
        DONE or SHORT (the address space is gone: the rows are to be discarded).

    Raises
    ------
    MemoryError
        The index is not usable any more.

    Notes
    -----
    O(populated pages); releases the GIL. Source: Documentation/admin-guide/mm/pagemap.rst.
    """
    cdef:
        uint64_t[CHUNK] buffer
        Py_ssize_t n_vmas = start.shape[0], v = 0, i, k, at, after, got = 0
        uint64_t p, stop, span_end, vma_end, absent
        int64_t leap
        int status = 0, failed = 0
    if (end.shape[0] != n_vmas or vma_kind.shape[0] != n_vmas or prot.shape[0] != n_vmas
            or kind.shape[0] != n_vmas or counts.shape[0] != n_vmas or counts.shape[1] != 3):
        raise ValueError("start, end, vma_kind, prot, kind and counts are of different lengths")
    if row < 0 or row + n_vmas > 0x7FFFFFFF:
        raise ValueError(f"{n_vmas} VMAs from {row} on")
    for i in range(n_vmas):
        if end[i] <= start[i] or (i and start[i] < end[i - 1]):
            raise ValueError(f"VMA {i} does not follow the one before it")
        if not 0 <= kind[i] < 1 << 30:
            raise ValueError(f"kind {kind[i]}")

    with nogil:
        failed = index.begin(when, row, <int32_t>n_vmas)
        while v < n_vmas and not failed:
            if vma_kind[v] == VSYSCALL or start[v] >= (<uint64_t>1 << 63):
                v += 1
                continue
            # A span: VMAs that touch are read as one range.
            p = start[v] // page_bytes
            span_end = end[v] // page_bytes
            after = v + 1
            while (after < n_vmas and start[after] == end[after - 1]
                    and vma_kind[after] != VSYSCALL):
                span_end = end[after] // page_bytes
                after += 1
            vma_end = end[v] // page_bytes
            _enter(index, row + <int32_t>v, kind[v], prot[v], vma_kind[v], vma_end - p)
            absent = 0
            while p < span_end and not failed:
                stop = p + CHUNK if span_end - p > CHUNK else span_end
                got = _read_entries(fd, p, &buffer[0], <Py_ssize_t>(stop - p))
                if got != <Py_ssize_t>(stop - p):
                    status = 2
                    break
                k = got
                while k and not pm_present(buffer[k - 1]) and (
                    not pm_swap(buffer[k - 1]) or pm_guard(buffer[k - 1])
                ):
                    k -= 1
                absent = <uint64_t>(got - k) if k else absent + <uint64_t>got
                if kpageflags >= 0:
                    for i in range(k):
                        if (pm_present(buffer[i]) and not pm_file(buffer[i])
                                and _is_ksm(kpageflags, pm_pfn(buffer[i]))):
                            buffer[i] |= <uint64_t>1 << 60
                at = 0
                while at < got and not failed:
                    if p >= vma_end:
                        failed = index.leave()
                        v += 1
                        vma_end = end[v] // page_bytes
                        _enter(index, row + <int32_t>v, kind[v], prot[v], vma_kind[v], vma_end - p)
                    k = <Py_ssize_t>min(vma_end - p, <uint64_t>(got - at))
                    failed |= index.feed(
                        p - start[v] // page_bytes, &buffer[at], k, &counts[v, 0]
                    )
                    p += k
                    at += k
                if scan and absent >= LEAP and p < span_end and not failed:
                    leap = _next_populated(fd, p, span_end, page_bytes)
                    if leap < 0:
                        got = <Py_ssize_t>leap
                        break
                    p = <uint64_t>leap
                    absent = 0
                    # The leap may have passed whole VMAs.
                    if p < span_end and p >= vma_end:
                        failed = index.leave()
                        while p >= end[v] // page_bytes:
                            v += 1
                        vma_end = end[v] // page_bytes
                        _enter(
                            index, row + <int32_t>v, kind[v], prot[v], vma_kind[v],
                            vma_end - start[v] // page_bytes,
                        )
            failed |= index.leave()
            v = after
            if status or got < 0:
                break

    if failed:
        raise MemoryError
    if got < 0 and -got != 3:
        raise OSError(<int>-got, os.strerror(<int>-got))
    return SHORT if status or got < 0 else DONE  # ESRCH: the process is gone
