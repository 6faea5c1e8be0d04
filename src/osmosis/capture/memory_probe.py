"""What this kernel lets us see of frames: found by trying, on our own pages."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from _fastproc import pagemap

__all__ = ["HUGE_PAGES", "NONE", "Host", "ambiguous_devices", "probe"]

NONE = (1 << 64) - 1  # no frame has this number
HUGE_PAGES = 512  # base pages in the huge zero page


@dataclass(frozen=True, slots=True)
class Host:
    """What this kernel lets us see of frames: found by trying, on our own pages."""

    page_bytes: int
    frames: bool  # frame numbers are shown (CAP_SYS_ADMIN)
    scan: bool  # ioctl PAGEMAP_SCAN works
    zero_pfn: int
    huge_zero_pfn: int
    shm_dev: int  # device of shared anonymous memory and SysV segments
    huge_devs: tuple[int, ...]  # those of SysV segments of huge pages, one a page size
    swap: bool  # some area is in /proc/swaps
    ksm: bool  # KSM has merged pages
    keep: tuple[mmap.mmap, ...] = field(repr=False)  # holds the huge zero page where it is


def _own_entries(address: int, n: int, page: int) -> NDArray[np.uint64]:
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        return np.frombuffer(os.pread(file.fileno(), 8 * n, address // page * 8), np.uint64)


def _address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def _pfn(entry: np.uint64) -> int:
    # Bit 63: present; bits 0-54: PFN (Documentation/admin-guide/mm/pagemap.rst).
    return int(entry) & ((1 << 55) - 1) if int(entry) >> 63 else NONE


def probe() -> Host:
    """Find out by trying; O(1), a few pages of our own."""
    page = os.sysconf("SC_PAGESIZE")
    private = mmap.mmap(-1, page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    private[0:1]  # a read fault: the zero page
    huge = mmap.mmap(-1, 2 * HUGE_PAGES * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    shared = mmap.mmap(-1, page, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    zero = huge_zero = NONE
    frames = scan = False
    with suppress(OSError):
        zero = _pfn(_own_entries(_address(private), 1, page)[0])
        with suppress(AttributeError, OSError):
            huge.madvise(mmap.MADV_HUGEPAGE)
        at = -(-_address(huge) // (HUGE_PAGES * page)) * HUGE_PAGES * page
        ctypes.string_at(at, 1)
        entries = _own_entries(at, HUGE_PAGES, page)
        first = _pfn(entries[0])
        if first not in (NONE, zero, 0) and _pfn(entries[-1]) == first + HUGE_PAGES - 1:
            huge_zero = first
        frames = zero not in (0, NONE)
        with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
            scan = pagemap.has_pagemap_scan(file.fileno(), page)
    shared_at = f"{_address(shared):x}-"
    shm_dev = 1
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        if line.startswith(shared_at):
            major, minor = line.split()[3].split(":")
            shm_dev = int(major, 16) << 32 | int(minor, 16)
    swap = ksm = False
    with suppress(OSError):
        swap = len(Path("/proc/swaps").read_text().splitlines()) > 1
    with suppress(OSError, ValueError):
        ksm = int(Path("/sys/kernel/mm/ksm/pages_shared").read_text()) > 0
    return Host(
        page_bytes=page,
        frames=frames,
        scan=scan,
        zero_pfn=zero if frames else NONE,
        huge_zero_pfn=huge_zero if frames else NONE,
        shm_dev=shm_dev,
        huge_devs=_huge_devices(),
        swap=swap,
        ksm=ksm,
        keep=(private, huge, shared),
    )


def _huge_devices() -> tuple[int, ...]:
    """Devices of the kernel's own hugetlbfs mounts: an empty memfd tells each, without a page."""
    found = []
    with suppress(OSError, AttributeError):
        for path in Path("/sys/kernel/mm/hugepages").iterdir():
            size = int(path.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
            # include/uapi/linux/memfd.h: the logarithm of the page size, from bit 26.
            shift = (size.bit_length() - 1) << 26
            fd = os.memfd_create("probe", os.MFD_CLOEXEC | os.MFD_HUGETLB | shift)
            dev = os.fstat(fd).st_dev
            os.close(fd)
            found.append(os.major(dev) << 32 | os.minor(dev))
    return tuple(found[:16])


def ambiguous_devices() -> set[int]:
    """Devices whose inode numbers name several files: a btrfs has one set a subvolume."""
    found = set()
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            left, _, right = line.partition(b" - ")
            if right.split(b" ")[0] in (b"btrfs", b"bcachefs"):
                major, minor = left.split(b" ")[2].split(b":")
                found.add(int(major) << 32 | int(minor))
    return found
