"""The frame index by itself: pages that were read before, visited again."""

from __future__ import annotations

import os

import numpy as np
import pytest

from _fastproc import maps
from _fastproc.frames import FrameIndex
from _fastproc.partition import Partition
from benchmarks.farm import Shape
from osmosis.capture.memory_probe import probe

WITHOUT_FRAMES = (5, 6, 7)  # VmaKind: vdso, vvar, vsyscall


def read_all(pids):
    """What the index is given: (kind, prot, indptr, words of all pages) of each process."""
    host = probe()
    strings: dict[bytes, int] = {}
    table = maps.VmaTable(lambda s: strings.setdefault(s, len(strings)), host.shm_dev)
    visits, lines = [], maps.Lines()
    for mm, pid in enumerate(pids):
        at = os.open(f"/proc/{pid}", os.O_PATH)
        fd = lines.open(at)
        os.close(at)
        start, end, vma_kind, prot, kind = table.rows(*table.add(lines, mm))
        words = []
        for a, b, what in zip(start.tolist(), end.tolist(), vma_kind.tolist(), strict=True):
            size = 0 if what in WITHOUT_FRAMES else (b - a) // 4096
            words.append(np.frombuffer(os.pread(fd, size * 8, a // 4096 * 8), np.uint64))
        os.close(fd)
        indptr = np.concatenate([[0], np.cumsum([len(w) for w in words])]).astype(np.int64)
        visits.append((kind, prot, indptr, np.concatenate(words)))
    return visits


def hashed(visits, zero):
    """The twin: each frame, and the sum of the hashes of the regions that map it; the hashes."""
    regions = sum(len(v[0]) for v in visits)
    hashes = np.random.default_rng(1).integers(0, 1 << 63, regions, dtype=np.uint64)
    words = np.concatenate([v[3] for v in visits])
    region = np.repeat(np.arange(regions), np.concatenate([np.diff(v[2]) for v in visits]))
    frames = words & np.uint64((1 << 55) - 1)
    there = (words >> np.uint64(63) != 0) & (frames != zero)
    number, inverse = np.unique(frames[there], return_inverse=True)
    sums = np.zeros(len(number), np.uint64)
    np.add.at(sums, inverse, hashes[region[there]])
    return number, sums, hashes


def expanded(found, hashes):
    """The same, from memory objects."""
    by_region = np.zeros(len(hashes), np.uint64)
    by_region[found.region] = hashes
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(by_region)])
    runs = before[found.last.astype(np.int64) + 1] - before[found.first]
    classes = np.add.reduceat(runs, found.indptr[:-1])
    frame, of = found.frames_of(np.ones(len(found.kind), np.uint8))
    order = np.argsort(frame)
    return frame[order], classes[of[order]]


def index_all(visits, threads=1):
    zero = probe().zero_pfn
    indexes = [FrameIndex(zero_pfn=zero) for _ in range(threads)]
    row = 0
    for when, (kind, prot, indptr, words) in enumerate(visits):
        indexes[when % threads].visit(kind, prot, indptr, words, row, when)
        row += len(kind)
    return indexes, Partition(indexes, np.ones(row, np.uint8))


@pytest.mark.parametrize("n", [100, 500, 1000])
def test_index(n, farms, beside, table):
    farm = farms(Shape(processes=n))
    visits = read_all(farm.pids)
    (indexes, found), seconds = beside(lambda: index_all(visits), {})

    (index,) = indexes
    number, sums, hashes = hashed(visits, probe().zero_pfn)
    for one in (found, index_all(visits, 2)[1]):
        got, classes = expanded(one, hashes)
        np.testing.assert_array_equal(got, number)
        np.testing.assert_array_equal(classes, sums)
        assert int(one.pages.sum()) == len(number)
    table.add(
        f"index of {n} processes, CPU time per present page",
        [s / index.pairs * 1e9 for s in seconds["ours"]],
        unit="ns",
        target=10,
    )
    table.add(
        f"index of {n} processes, memory per mapped page", index.nbytes / index.pairs, unit="B",
        target=0.5, bound=2 if n == 1000 else None,
    )  # fmt: skip


SHAPES = {
    "interleaved": Shape(processes=400, interleaved=True),
    "reserved": Shape(processes=100, reserve_gib=1),
    "small": Shape(processes=60, heap_pages=700, hot_pages=500, copies=400, small_vmas=600),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_index_is_exact(shape, farms):
    visits = read_all(farms(SHAPES[shape]).pids)
    number, sums, hashes = hashed(visits, probe().zero_pfn)
    for threads in (1, 2, 5):
        indexes, found = index_all(visits, threads)
        got, classes = expanded(found, hashes)
        np.testing.assert_array_equal(got, number)
        np.testing.assert_array_equal(classes, sums)
        assert found.replaced == 0
        pairs = np.concatenate([[0], np.cumsum(found.last - found.first + 1, dtype=np.int64)])
        each = pairs[found.indptr[1:]] - pairs[found.indptr[:-1]]
        assert int((each * found.pages).sum()) == sum(index.pairs for index in indexes)
