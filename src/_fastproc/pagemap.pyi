import numpy as np
from numpy.typing import NDArray

from _fastproc.frames import FrameIndex

DONE: int
FULL: int
SHORT: int
KSM_MARK: int  # bit of a returned entry

def has_pagemap_scan(fd: int, page_bytes: int = 4096) -> bool: ...
def read_populated(
    fd: int,
    start: NDArray[np.uint64],  # (V,) bytes, rising
    end: NDArray[np.uint64],  # (V,)
    kind: NDArray[np.uint8],  # (V,) VmaKind
    entries: NDArray[np.uint64],  # (N,) N >= 2048, overwritten
    indptr: NDArray[np.int64],  # (V + 1,) overwritten
    counts: NDArray[np.int64],  # (V, 3) present, swapped, zero: added to
    vma: int,
    page: int,
    *,
    zero_pfn: int,
    huge_zero_pfn: int,
    huge_pages: int = 512,
    swap: bool = False,
    scan: bool = True,
    kpageflags: int = -1,
    page_bytes: int = 4096,
) -> tuple[int, int, int, int]: ...  # status, vma, page, entries written; OSError, ValueError
def read_frames(
    fd: int,
    start: NDArray[np.uint64],  # (V,) bytes, rising
    end: NDArray[np.uint64],  # (V,)
    vma_kind: NDArray[np.uint8],  # (V,) VmaKind
    prot: NDArray[np.uint8],  # (V,) bit 8: MAP_SHARED
    kind: NDArray[np.int32],  # (V,)
    counts: NDArray[np.int64],  # (V, 3) present, swapped, zero: added to
    index: FrameIndex,
    row: int,  # of the first VMA
    when: int,
    *,
    scan: bool = True,
    kpageflags: int = -1,
    page_bytes: int = 4096,
) -> int: ...  # DONE or SHORT; OSError, ValueError, MemoryError
