"""A capture in NumPy only: whole VMAs are read, and frames told apart by a sum of hashes.

Frames that the same mappings map get the same sum, over those mappings, of a 64-bit hash of
(pid, start). So it is exact but for collisions of 64 bits, and it is what osmosis's classes
are compared with: ``signature`` makes the same table from a snapshot.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.schema import FrameKind
from osmosis.snapshot import Snapshot

U64 = NDArray[np.uint64]
PAGE = 4096


def mapping_hash(pid: Any, start: Any) -> U64:
    """64-bit hash of a mapping."""
    return mix(np.asarray(start, np.uint64) ^ (np.asarray(pid, np.uint64) << np.uint64(48)))


def mix(h: U64) -> U64:
    """64-bit hash of each (SplitMix64's finalizer)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(h ^ (h >> np.uint64(31)), np.uint64)


def _maps(pid: int) -> tuple[U64, U64, NDArray[np.uint8]]:
    starts, ends, kinds = [], [], []
    with open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            span, _, rest = line.partition(b" ")
            start, _, end = span.partition(b"-")
            if len(start) > 15:  # vsyscall
                continue
            starts.append(int(start, 16))
            ends.append(int(end, 16))
            vvar = rest.endswith((b"[vvar]\n", b"[vvar_vclock]\n"))
            kinds.append(1 if vvar else 2 if rest.endswith(b"[vdso]\n") else 0)
    return np.array(starts, np.uint64), np.array(ends, np.uint64), np.array(kinds, np.uint8)


def capture(pids: Iterable[int], skip: Iterable[int]) -> tuple[NDArray[Any], int]:
    """Return (C, 3) uint64 rows (hash, is file, pages), sorted, and present pages that were read.

    *skip* are frames of the kernel's own: the zero page.
    """
    sums = np.zeros(1 << 22, np.uint64)
    file_page = np.zeros(1 << 22, bool)
    seen = 0
    kernel_own = np.array(list(skip), np.uint64)
    for pid in pids:
        start, end, kind = _maps(pid)
        fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        parts, of = [], []
        breaks = np.flatnonzero(start[1:] != end[:-1]) + 1
        for first, last in zip(
            np.concatenate([[0], breaks]), np.concatenate([breaks, [len(start)]]), strict=True
        ):
            n = int(end[last - 1] - start[first]) // PAGE
            entries = np.frombuffer(os.pread(fd, 8 * n, int(start[first]) // PAGE * 8), np.uint64)
            at = np.flatnonzero(entries >> np.uint64(63))
            parts.append(entries[at])
            address = start[first] + at.astype(np.uint64) * np.uint64(PAGE)
            of.append(np.searchsorted(start, address, "right") - 1)
        os.close(fd)
        entries, vma = np.concatenate(parts), np.concatenate(of)
        seen += len(entries)
        is_file = (entries >> np.uint64(61)) & np.uint64(1) != 0
        pfn = entries & np.uint64((1 << 55) - 1)
        keep = ~np.isin(pfn, kernel_own)
        keep &= ~((kind[vma] == 1) | ((kind[vma] == 2) & is_file))
        pfn, vma, is_file = pfn[keep], vma[keep], is_file[keep]
        top = int(pfn.max(initial=np.uint64(0)))
        while top >= len(sums):
            sums = np.concatenate([sums, np.zeros_like(sums)])
            file_page = np.concatenate([file_page, np.zeros_like(file_page)])
        # Where a process maps a frame twice through one VMA (KSM does that) it counts once.
        pairs = np.unique(pfn * np.uint64(len(start)) + vma.astype(np.uint64))
        pfn, number = pairs // np.uint64(len(start)), pairs % np.uint64(len(start))
        file_page[pfn] = False
        file_page[
            pfn[
                np.isin(
                    pfn,
                    np.unique(
                        entries[(entries >> np.uint64(61)) & np.uint64(1) != 0]
                        & np.uint64((1 << 55) - 1)
                    ),
                )
            ]
        ] = True
        np.add.at(sums, pfn, mapping_hash(pid, start)[number.astype(np.int64)])
    frames = np.flatnonzero(sums)
    return _counted(sums[frames], file_page[frames], np.ones(len(frames), np.int64)), seen


def _counted(hashes: U64, is_file: NDArray[Any], pages: NDArray[Any]) -> NDArray[Any]:
    rows, inverse = np.unique(
        np.stack([hashes, is_file.astype(np.uint64)]), axis=1, return_inverse=True
    )
    total = np.bincount(inverse.reshape(-1), pages).astype(np.uint64)
    return np.concatenate([rows, total[None]]).T


def signature(snap: Snapshot) -> NDArray[Any]:
    """Return the same table from a snapshot's classes."""
    pid = snap["process_pid"][snap["mm_process"]]
    of = np.repeat(np.arange(len(pid)), np.diff(snap["mm_vma_indptr"]))
    by_region = np.zeros(len(of) + 1, np.uint64)
    by_region[1:][snap["vma_region"]] = mapping_hash(pid[of], snap["vma_start"])
    before = np.cumsum(by_region, dtype=np.uint64)
    runs = before[snap["run_last"] + 1] - before[snap["run_first"]]
    indptr = snap["class_run_indptr"]
    hashes = np.add.reduceat(runs, indptr[:-1]) if len(runs) else runs
    return _counted(hashes, snap["class_kind"] == FrameKind.FILE, snap["class_pages"])
