"""A race, for a sanitizer to see: two threads in one frame index, without the lock it wants."""

import threading

import numpy as np

from _fastproc.frames import FrameIndex

N = 100_000
index = FrameIndex()


def visit(ordinal: int) -> None:
    """Visit the same frames again and again."""
    entries = np.arange(N, dtype=np.uint64) + np.uint64(1 << 63 | 1 << 20)
    kind, prot, indptr = np.zeros(1, np.int32), np.full(1, 6, np.uint8), np.array([0, N], np.int64)
    for _ in range(5):
        index.visit(kind, np.full(1, ordinal, np.int32), prot, indptr, entries)


threads = [threading.Thread(target=visit, args=(ordinal,)) for ordinal in range(2)]
for one in threads:
    one.start()
for one in threads:
    one.join()
