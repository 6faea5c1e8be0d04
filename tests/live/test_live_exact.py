"""The frame index against every (mapping, frame) pair, read again: on each kind of farm, with each
way of reading, over and over, and while frames are freed and taken by others.

For every frame both sides count the mappings that map it and sum a 64-bit hash of them. What is
captured sleeps, so that its frames stay; who comes and goes beside it is captured with it.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.farm import Farm, Shape
from benchmarks.peers.numpy_capture import mapping_hash

import osmosis
from osmosis.capture import memory
from osmosis.schema import FrameKind, Status

pytestmark = pytest.mark.live

ROUNDS = int(os.environ.get("OSMOSIS_ROUNDS", "1"))  # more for a longer stress
COMMON = {"heap_pages": 3000, "hot_pages": 3000, "small_vmas": 40, "file_mib": 8}
FARMS = {
    "plain": Shape(processes=60, **COMMON),
    "by turns": Shape(processes=60, interleaved=True, **COMMON),
    "reservations": Shape(processes=16, reserve_gib=8, **COMMON),
    "hot": Shape(
        processes=60,
        zygotes=2,
        copies=2500,
        heap_pages=3000,
        hot_pages=3000,
        small_vmas=4,
        file_mib=0,
    ),
    "alone": Shape(processes=12, zygotes=12, heap_pages=2000, hot_pages=2000, segments=1),
}
THREADS = (1, 2, 5)


def summed(frame, value):
    """(distinct frames, pairs of each, sum of the hashes of each), by rising frame."""
    distinct, of = np.unique(frame, return_inverse=True)
    sums = np.zeros(len(distinct), np.uint64)
    np.add.at(sums, of, value)
    return distinct, np.bincount(of, minlength=len(distinct)), sums


def raw(pids, kernel_own):
    """The pairs as pagemap says now; vvar, the vdso's page cache and the zero pages left out."""
    frames, hashes = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for pid in pids:
        with open(f"/proc/{pid}/maps", "rb") as maps, open(f"/proc/{pid}/pagemap", "rb", 0) as file:
            for line in maps:
                span, _, rest = line.partition(b" ")
                start, end = (int(side, 16) for side in span.split(b"-"))
                if start >> 63 or rest.endswith((b"[vvar]\n", b"[vvar_vclock]\n")):
                    continue
                n = (end - start) >> 12
                found = np.frombuffer(os.pread(file.fileno(), n * 8, start >> 9), np.uint64)
                assert len(found) == n
                found = found[found >> np.uint64(63) != 0]
                if rest.endswith(b"[vdso]\n"):
                    found = found[found >> np.uint64(61) & np.uint64(1) == 0]
                pfn = np.unique(found & np.uint64((1 << 55) - 1))
                pfn = pfn[~np.isin(pfn, kernel_own)]
                frames.append(pfn)
                hashes.append(mapping_hash(pid, np.full(len(pfn), start, np.uint64)))
    return summed(np.concatenate(frames), np.concatenate(hashes))


def expanded(snap, pids):
    """The same of a snapshot that kept all frames, mappings of *pids* only.

    Also the anonymous frames of theirs that somebody else maps as well.
    """
    pid = snap["process_pid"][snap["mm_process"]]
    of = np.repeat(np.arange(len(pid)), np.diff(snap["mm_vma_indptr"]))
    ours = np.isin(pid[of], list(pids))
    value, mine = np.zeros(len(of), np.uint64), np.zeros(len(of), np.int64)
    value[snap["vma_region"]] = np.where(ours, mapping_hash(pid[of], snap["vma_start"]), 0)
    mine[snap["vma_region"]] = ours
    runs = zip(snap["run_first"].tolist(), snap["run_last"].tolist(), strict=True)
    regions = [np.arange(first, last + 1) for first, last in runs]
    runs_of = np.repeat(np.arange(len(snap["class_pages"])), np.diff(snap["class_run_indptr"]))
    class_of = np.repeat(runs_of, [len(r) for r in regions])
    region = np.concatenate([*regions, np.empty(0, np.int64)])
    n = len(snap["class_pages"])
    sums = np.zeros(n, np.uint64)
    np.add.at(sums, class_of, value[region])
    count = np.bincount(class_of, mine[region], minlength=n).astype(np.int64)
    members = np.bincount(class_of, minlength=n)
    sizes = np.diff(snap["class_frame_indptr"])
    assert (sizes == snap["class_pages"]).all()
    assert len(np.unique(snap["frame_pfn"])) == len(snap["frame_pfn"])
    at = np.repeat(np.arange(n), sizes)
    mixed = (snap["class_kind"] == FrameKind.ANON) & (count > 0) & (count < members)
    kept = count[at] > 0
    order = np.argsort(snap["frame_pfn"][kept])
    columns = (snap["frame_pfn"], count[at], sums[at])
    return tuple(c[kept][order] for c in columns), snap["frame_pfn"][mixed[at]]


def kernel_own():
    host = memory.probe()
    huge = host.huge_zero_pfn
    return [host.zero_pfn, *(range(huge, huge + memory.HUGE_PAGES) if huge < 1 << 60 else ())]


def assert_exact(snap, pids, want):
    (frames, count, sums), mixed = expanded(snap, pids)
    np.testing.assert_array_equal(frames, want[0])
    np.testing.assert_array_equal(count, want[1])
    np.testing.assert_array_equal(sums, want[2])
    assert not len(mixed)
    read = np.isin(snap["process_pid"][snap["mm_process"]], list(pids))
    assert (snap["mm_status"][read] == Status.READ).all()


@pytest.fixture(scope="module", params=FARMS)
def farm(request):
    with Farm(FARMS[request.param]) as one:
        yield one


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "no scan"])
def test_every_pair(farm, monkeypatch, scan):
    real = memory.probe()
    assert real.scan, "this kernel has PAGEMAP_SCAN; the probe says it has not"
    monkeypatch.setattr(memory, "probe", lambda: replace(real, scan=scan))
    skip = kernel_own()
    want = raw(farm.pids, skip)
    assert want[1].sum() > 10_000
    for _ in range(ROUNDS):
        for threads in THREADS:
            pids = farm.pids[::-1] if threads == 2 else farm.pids
            snap = osmosis.capture(pids, sources=["memory"], frames="all", threads=threads)
            assert_exact(snap, farm.pids, want)
            # Without frame numbers, the same objects.
            less = osmosis.capture(pids, sources=["memory"], threads=threads)
            assert sorted(objects(less)) == sorted(objects(snap))
    after = raw(farm.pids, skip)
    for before, now in zip(want, after, strict=True):
        np.testing.assert_array_equal(before, now)  # nobody moved


def objects(snap):
    """(kind, pages, mappings) of each memory object."""
    sizes = np.add.reduceat(snap["run_last"] - snap["run_first"] + 1, snap["class_run_indptr"][:-1])
    columns = (snap["class_kind"], snap["class_pages"], sizes)
    return zip(*(c.tolist() for c in columns), strict=True)


# Children that take pages, give them back, and exit; each is a new address space.
CHURN = """
import mmap, os, time
while True:
    pid = os.fork()
    if not pid:
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            area = mmap.mmap(-1, 500 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for page in range(500):
                area[page * 4096] = 1
            area.close()
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.fixture
def churners():
    """Two process groups, not of the farm's programs."""
    with ExitStack() as stack:
        pids = []
        for _ in range(2):
            one = subprocess.Popen([sys.executable, "-ISs", "-c", CHURN], start_new_session=True)
            stack.callback(one.wait, 10)
            stack.callback(os.killpg, one.pid, signal.SIGKILL)
            pids.append(one.pid)
        time.sleep(0.3)
        yield pids


def members(sessions):
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdecimal() and os.getsid(int(name)) in sessions:
                found.append(int(name))
    return found


def test_every_pair_while_others_reuse_frames(farm, churners):
    skip = kernel_own()
    want = raw(farm.pids, skip)
    together = seen = 0
    for turn in range(4 * ROUNDS):
        beside = members(churners)
        # Some churners are read before the farm, and some after it.
        pids = [*beside[::2], *farm.pids, *beside[1::2]]
        threads = THREADS[turn % len(THREADS)]
        snap = osmosis.capture(pids, sources=["memory"], frames="all", threads=threads)
        assert_exact(snap, farm.pids, want)
        together += int(np.isin(snap["process_pid"], beside).sum())
        seen += len(beside)
    assert seen >= together > 0
