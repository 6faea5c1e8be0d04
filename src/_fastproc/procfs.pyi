from typing import Any

import numpy as np
from numpy.typing import NDArray

SOURCES: tuple[str, ...]  # names of the places of PROC's field "err"
PROC_BYTES: int
THREAD_BYTES: int
PRINT_BYTES: int

def scan(
    procfd: int,  # of /proc
    rows: NDArray[np.uint8],  # (P * PROC_BYTES,) with "pid" set; overwritten
    ours: bool,  # its pids are those of our own pid namespace
    keep: int,  # how many descriptors may stay open
) -> tuple[bytes, bytes]: ...  # arena, threads of THREAD_BYTES each
def fingerprints(
    leaderfds: NDArray[np.int32],  # (N,)
    dirfds: NDArray[np.int32],  # (N,)
    prints: NDArray[np.uint8],  # (N * PRINT_BYTES,), overwritten
    errors: NDArray[np.int32],  # (N,) errno, 0 where read; overwritten
) -> None: ...
def distinct(
    arena: bytes | NDArray[np.uint8],
    spans: NDArray[np.int64],  # (N, 2) start, size; size -1 for none
) -> tuple[list[int], list[bytes]]: ...  # number of each span's text, -1 for none; the texts
def unchanged(
    leaderfds: NDArray[np.int32],  # (N,) -1 to pass one over
    dirfds: NDArray[np.int32],  # (N,)
    prints: bytes | NDArray[np.uint8],  # (N * PRINT_BYTES,) as they were
    faults: NDArray[np.int64],  # (N,) min_flt + maj_flt; -1 if the print is another, or unreadable
) -> None: ...
def parse_stat(text: bytes) -> dict[str, Any]: ...  # ValueError
def parse_status(text: bytes) -> dict[str, Any]: ...  # ValueError
