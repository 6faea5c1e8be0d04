"""The frame index by itself: pages that were read before, visited again."""

from __future__ import annotations

import os

import numpy as np
import pytest

from _fastproc import maps, pagemap
from _fastproc.frames import FrameIndex
from benchmarks.farm import Shape
from benchmarks.peers import numpy_capture
from osmosis.capture.memory import ENTRIES
from osmosis.capture.memory_probe import probe


def read_all(pids):
    """What the index is given: (kind, ordinal, prot, indptr, entries) of each process."""
    host = probe()
    strings: dict[bytes, int] = {}
    table = maps.VmaTable(lambda s: strings.setdefault(s, len(strings)), host.shm_dev)
    visits, buffer = [], np.empty(ENTRIES, np.uint64)
    for mm, pid in enumerate(pids):
        with open(f"/proc/{pid}/maps", "rb", 0) as file:
            text = maps.read_all(file.fileno())
        first, n = table.add(text, mm)
        start, end, vma_kind, prot, kind, ordinal = table.rows(first, n)
        indptr, counts = np.zeros(n + 1, np.int64), np.zeros((n, 3), np.int64)
        fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        status, _, _, got = pagemap.read_populated(
            fd, start, end, vma_kind, buffer, indptr, counts, 0, 0,
            zero_pfn=host.zero_pfn, huge_zero_pfn=host.huge_zero_pfn, scan=host.scan,
        )  # fmt: skip
        os.close(fd)
        assert status == pagemap.DONE
        hashes = numpy_capture.mapping_hash(pid, start)
        visits.append((kind, ordinal, prot, indptr, buffer[:got].copy(), hashes))
    return visits


def classes(visits):
    """The twin: distinct frames by the sum of hashes of the regions that map them."""
    frames = np.concatenate([v[4] & np.uint64((1 << 55) - 1) for v in visits])
    hashes = np.concatenate([np.repeat(v[5], np.diff(v[3])) for v in visits])
    number, inverse = np.unique(frames, return_inverse=True)
    sums = np.zeros(len(number), np.uint64)
    np.add.at(sums, inverse, hashes)
    return len(number), np.sort(np.unique(sums, return_counts=True)[1])


@pytest.mark.parametrize("n", [100, 500, 1000])
def test_index(n, farms, beside, table):
    farm = farms(Shape(processes=n))
    visits = read_all(farm.pids)
    pairs = sum(len(v[4]) for v in visits)

    def run():
        index = FrameIndex()
        for kind, ordinal, prot, indptr, entries, _ in visits:
            index.visit(kind, ordinal, prot, indptr, entries)
        return index, index.classes_and_runs()

    (index, found), seconds = beside(run, {}, rounds=5)

    assert index.pairs == pairs
    n_frames, sizes = classes(visits)
    assert int(found["frames"].sum()) == n_frames
    if n == 100:  # classes of equal sets may still be apart here: the capture joins them
        assert len(found["frames"]) >= len(sizes)
    table.add(
        f"index of {n} processes, CPU time per present page",
        [s / pairs * 1e9 for s in seconds["ours"]],
        unit="ns",
        target=10,
    )
    table.add(
        f"index of {n} processes, memory per mapped page", index.nbytes / pairs, unit="B",
        target=0.5, bound=2 if n == 1000 else None,
    )  # fmt: skip
