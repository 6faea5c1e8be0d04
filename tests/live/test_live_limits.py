"""What a capture keeps to: a budget of time, one reader an address space, the caller's niceness."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest
from children import child

import osmosis
from osmosis.capture.memory import BATCH, MemoryReader
from osmosis.schema import Status

pytestmark = pytest.mark.live
OVER = "the time budget was used up before it was read"


@contextmanager
def sleepers(n):
    made = [subprocess.Popen(["sleep", "600"]) for _ in range(n)]
    try:
        yield sorted(one.pid for one in made)
    finally:
        for one in made:
            one.kill()
            one.wait()


def memory_rows(snap):
    return {row.pid: (row.status, row.reason) for row in snap.coverage if row.source == "memory"}


def test_a_budget_of_nothing_leaves_out_all_memory_and_says_so():
    with sleepers(3) as pids:
        snap = osmosis.capture(pids, budget_s=0)
        assert snap["process_pid"].tolist() == pids
        assert snap["process_mm"].tolist() == [-1, -1, -1]
        assert {memory_rows(snap)[pid] for pid in pids} == {("skipped", OVER)}
        assert not snap.coverage.complete
        # Without having seen any memory nobody is said to share none.
        model = snap.model()
        a, b = (model.pd(f"pid:{pid}") for pid in pids[:2])
        assert b in model.shared_resources(a, types={"MO"}, access="W").unknown
        assert model.shares(a, b, types={"MO"}).state is None


@pytest.mark.parametrize("threads", [1, 2])
def test_a_budget_that_ends_midway_keeps_what_was_read(threads):
    with sleepers(4 * BATCH) as pids:
        done = []

        def slowly(number, total):
            done.append((number, total))
            if number % BATCH == 0:
                time.sleep(1.5)

        began = time.monotonic()
        snap = osmosis.capture(
            pids, sources=["memory"], threads=threads, budget_s=1.2, progress=slowly
        )
        assert time.monotonic() - began < 60
        said = memory_rows(snap)
        got = Counter(said[pid] for pid in pids)
        assert set(got) == {("read", ""), ("skipped", OVER)}
        read = [pid for pid in pids if said[pid][0] == "read"]
        mm = dict(zip(snap["process_pid"].tolist(), snap["process_mm"].tolist(), strict=True))
        assert [pid for pid in pids if mm[pid] >= 0] == read
        assert set(snap["mm_status"].tolist()) == {Status.READ}
        # What was read is whole: the same as of a capture of these alone.
        alone = osmosis.capture(read, sources=["memory"])
        for column in ("vma_start", "vma_present", "class_pages"):
            assert sorted(snap[column].tolist()) == sorted(alone[column].tolist()), column
        # Those passed over count as done.
        assert sorted(done) == [(k + 1, 4 * BATCH) for k in range(4 * BATCH)]


def test_an_address_space_has_one_reader_at_a_time(monkeypatch):
    busy, most, readers = Counter(), Counter(), set()
    lock = threading.Lock()
    read = MemoryReader._read_maps_and_pagemap

    def watched(self, mm, space, held):
        names = [self.record.held[row].pid for row in self._members[mm]]
        with lock:
            readers.add(threading.get_ident())
            busy.update(names)
            for name in names:
                most[name] = max(most[name], busy[name])
        try:
            time.sleep(0.002)
            read(self, mm, space, held)
        finally:
            with lock:
                busy.subtract(names)

    monkeypatch.setattr(MemoryReader, "_read_maps_and_pagemap", watched)
    with child() as c, sleepers(3 * BATCH) as pids:
        twin = c.ask("clone_vm()")
        snap = osmosis.capture([*pids, c.pid, twin], sources=["memory"], threads=4)
    assert snap.n_processes == len(pids) + 2
    assert len(readers) > 1
    assert set(most) == {*pids, c.pid, twin}
    assert set(most.values()) == {1}


NICE = """
import os, sys, threading
import osmosis
os.nice(7)
seen = set()
def look(done, total):
    me = threading.get_native_id()
    seen.add((me, os.getpriority(os.PRIO_PROCESS, me)))
osmosis.capture([int(pid) for pid in sys.argv[1:]], threads=2, progress=look)
print(sorted({nice for _, nice in seen}), len(seen), os.getpriority(os.PRIO_PROCESS, 0))
"""


def test_threads_that_read_are_as_nice_as_their_caller():
    with sleepers(3 * BATCH) as pids:
        done = subprocess.run(
            [sys.executable, "-c", NICE, *map(str, pids)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    nice, readers, own = done.stdout.split("] ")[0] + "]", *done.stdout.split("] ")[1].split()
    base = os.getpriority(os.PRIO_PROCESS, 0)
    assert (nice, own) == (f"[{min(19, base + 7)}]", str(min(19, base + 7)))
    assert int(readers) >= 1
