"""What the frame index is given on a host larger than this one, made up: no /proc, no memory.

Each process maps 10 000 pages of files that all have, the heap of its program's zygote with 150 of
20 000 pages copied, and pages of its own, so many that all processes together fill the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PROGRAMS = 25
REGIONS = 3  # of each process
FILE_PAGES, HEAP_PAGES, COPIES = 10_000, 20_000, 150
BLOCK = 64  # frames of one process that lie together
PRESENT, FILE, EXCLUSIVE = (np.uint64(1 << bit) for bit in (63, 61, 56))


class Visit(NamedTuple):
    """Arguments of ``FrameIndex.visit``."""

    kind: NDArray[np.int32]
    prot: NDArray[np.uint8]
    indptr: NDArray[np.int64]
    words: NDArray[np.uint64]
    row: int
    when: int


class Host:
    """``visits()`` of each process, by turns of the programs; ``frames``: how many are mapped."""

    def __init__(self, processes: int, memory_bytes: int, *, seed: int = 1) -> None:
        self.processes = processes
        self._rng = np.random.default_rng(seed)
        blocks = memory_bytes // 4096 // BLOCK
        shared = (FILE_PAGES + PROGRAMS * HEAP_PAGES) // BLOCK + 1
        self._own = (blocks - shared) // processes * BLOCK
        assert self._own > COPIES
        self._order = self._rng.permutation(blocks).astype(np.uint64)
        self._taken = 0
        self._files = self._take(FILE_PAGES) | PRESENT | FILE
        self._heaps = [self._take(HEAP_PAGES) | PRESENT for _ in range(PROGRAMS)]
        left = np.zeros(PROGRAMS * HEAP_PAGES, bool)  # heap pages that some child did not copy
        self._left = left.reshape(PROGRAMS, HEAP_PAGES)
        self.frames = self.pairs = 0

    def _take(self, n: int) -> NDArray[np.uint64]:
        """Return n frames that nobody has yet."""
        blocks = -(-n // BLOCK)
        first = self._order[self._taken : self._taken + blocks] * np.uint64(BLOCK)
        self._taken += blocks
        assert len(first) == blocks
        return (first[:, None] + np.arange(BLOCK, dtype=np.uint64)).reshape(-1)[:n]

    def visits(self) -> Iterator[Visit]:
        """Each process once; `frames` and `pairs` are true when all are through."""
        prot = np.array([5, 6, 6], np.uint8)
        own = 0
        for k in range(self.processes):
            program = k % PROGRAMS
            copied = np.unique(self._rng.integers(0, HEAP_PAGES, COPIES))
            mine = self._take(self._own) | PRESENT | EXCLUSIVE
            heap = self._heaps[program].copy()
            heap[copied] = mine[: len(copied)]
            stays = np.ones(HEAP_PAGES, bool)
            stays[copied] = False
            self._left[program] |= stays
            parts = [self._files, heap, mine[len(copied) :]]
            own += len(mine)
            self.pairs += sum(map(len, parts))
            yield Visit(
                kind=np.array([0, 1 + program, 1 + PROGRAMS + program], np.int32),
                prot=prot,
                indptr=np.cumsum([0, *map(len, parts)], dtype=np.int64),
                words=np.concatenate(parts),
                row=REGIONS * k,
                when=k,
            )
        self.frames = FILE_PAGES + int(self._left.sum()) + own
