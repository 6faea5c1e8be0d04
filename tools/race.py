"""A race, for a sanitizer to see: two threads in one frame index, where each wants its own."""

import threading

import numpy as np

from _fastproc.frames import FrameIndex

N = 100_000
index = FrameIndex()


def visit(thread: int) -> None:
    """Visit the same frames again and again."""
    words = np.arange(N, dtype=np.uint64) + np.uint64(1 << 63 | 1 << 20)
    kind, prot, indptr = np.zeros(1, np.int32), np.full(1, 6, np.uint8), np.array([0, N], np.int64)
    for row in range(5):
        index.visit(kind, prot, indptr, words, 5 * thread + row)


threads = [threading.Thread(target=visit, args=(thread,)) for thread in range(2)]
for one in threads:
    one.start()
for one in threads:
    one.join()
