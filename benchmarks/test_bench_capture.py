"""Capture of real processes against the floor and against other ways to read the same."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import osmosis
from benchmarks.conftest import captured, ratios
from benchmarks.farm import Shape
from benchmarks.peers import (
    c_reader,
    numpy_capture,
    page_graph,
    plain_python,
    psutil_queries,
    smem_queries,
)
from osmosis.capture.ledger import Ledger
from osmosis.capture.memory import MemoryReader
from osmosis.capture.memory_probe import probe
from osmosis.capture.processes import list_pids, read_processes
from osmosis.snapshot import StringPool

PLAIN = Shape(processes=500)
RESERVED = Shape(processes=300, reserve_gib=8)
INTERLEAVED = Shape(processes=500, interleaved=True)


def skipped_frames() -> list[int]:
    """Frames that are the kernel's own: the zero page, and the huge one."""
    host = probe()
    huge = (
        [] if host.huge_zero_pfn >= 1 << 60 else range(host.huge_zero_pfn, host.huge_zero_pfn + 512)
    )
    return [host.zero_pfn, *huge]


def memory_only(pids: list[int], threads: int = 1) -> Any:
    """``read()`` of the memory of processes that are pinned already; returns what runs it."""
    pool = StringPool()
    record = read_processes("/proc", list_pids("/proc", pids), pool=pool, ledger=Ledger(pool))

    def run() -> dict[str, Any]:
        reader = MemoryReader(record, ledger=Ledger(pool), pool=pool, threads=threads)
        reader.read()
        return reader.columns()

    return run, record


def test_memory_against_the_bare_reader(farms, beside, table):
    farm = farms(PLAIN)
    run, record = memory_only(farm.pids)
    answers: dict[str, Any] = {}
    with record:
        columns, seconds = beside(
            run,
            {
                "floor": lambda: c_reader.read_all(farm.pids),
                "capture": lambda: captured(farm, threads=1),
            },
            answers=answers,
        )

    assert int(columns["vma_present"].sum()) == answers["floor"].present
    assert len(columns["vma_start"]) == answers["floor"].vmas + len(farm.pids)  # and vsyscall
    table.add(
        "memory (maps, pagemap, index) ÷ bare C loop, one thread",
        ratios(seconds["ours"], seconds["floor"]),
        target=1.35,
        bound=4,
        note=f"CPU time, {len(farm.pids)} processes",
    )
    table.add(
        "the whole capture() ÷ the same bare C loop",
        ratios(seconds["capture"], seconds["floor"]),
        bound=6,
        note="and credentials, namespaces, checks",
    )
    per = [s / len(farm.pids) * 1e6 for s in seconds["floor"]]
    table.add("the bare C loop itself, per process", per, unit="us")


def test_memory_of_interleaved_zygotes(farms, beside, table):
    farm = farms(INTERLEAVED)
    run, record = memory_only(farm.pids)
    answers: dict[str, Any] = {}
    with record:
        columns, seconds = beside(
            run, {"floor": lambda: c_reader.read_all(farm.pids)}, answers=answers
        )

    assert int(columns["vma_present"].sum()) == answers["floor"].present
    table.add(
        "memory ÷ bare C loop, children of four zygotes by turns",
        ratios(seconds["ours"], seconds["floor"]),
        bound=4,
    )


def test_memory_with_reservations_against_naive_reading(farms, beside, table):
    farm = farms(RESERVED)
    run, record = memory_only(farm.pids)
    answers: dict[str, Any] = {}
    with record:
        columns, seconds = beside(
            run,
            {
                "naive": lambda: c_reader.read_all(farm.pids[:40], gallop=False),
                "floor": lambda: c_reader.read_all(farm.pids),
            },
            answers=answers,
        )

    assert int(columns["vma_present"].sum()) == answers["floor"].present
    each = [s * len(farm.pids) / 40 for s in seconds["naive"]]
    table.add(
        "memory ÷ naive reading of every VMA, 8 GiB reservations",
        ratios(seconds["ours"], each),
        target=0.40,
        bound=0.8,
    )
    table.add("bare gallop ÷ bare naive", ratios(seconds["floor"], each))


def test_two_threads_against_one(farms, beside, table):
    farm = farms(PLAIN)
    answers: dict[str, Any] = {}
    snap, seconds = beside(
        lambda: captured(farm, threads=2),
        {"one": lambda: captured(farm, threads=1)},
        clock=time.perf_counter,
        answers=answers,
    )

    mine, theirs = map(numpy_capture.signature, (snap, answers["one"]))
    np.testing.assert_array_equal(mine, theirs)
    table.add(
        "two threads ÷ one, wall",
        ratios(seconds["ours"], seconds["one"]),
        target=0.65,
        bound=1.3,
    )


def test_against_numpy(farms, beside, table):
    pids, skip = farms(PLAIN).pids[::4], skipped_frames()
    answers: dict[str, Any] = {}
    snap, seconds = beside(
        lambda: captured_pids(pids),
        {"numpy": lambda: numpy_capture.capture(pids, skip)},
        answers=answers,
    )

    want, present = answers["numpy"]
    np.testing.assert_array_equal(numpy_capture.signature(snap), want)
    assert int(snap["vma_present"].sum()) == present
    table.add(
        "NumPy-only capture ÷ capture()",
        ratios(seconds["numpy"], seconds["ours"]),
        more_is_better=True,
        bound=3,
        note="CPU time, the same memory objects",
    )


def test_against_plain_python(farms, beside, table):
    """A page at a time: kept in a set for each frame; and as the nodes of a graph."""
    farm = farms(PLAIN)
    pids, skip = farm.pids[:40], skipped_frames()
    few = pids[:4]
    answers: dict[str, Any] = {}
    _, seconds = beside(
        lambda: captured_pids(pids),
        {
            "sets": lambda: plain_python.capture(few, skip),
            "graph": lambda: page_graph.capture(few, skip),
            "model": lambda: captured_pids(pids).model(),
        },
        answers=answers,
    )

    model = captured_pids(few).model()
    rows = [model.pds.row(pid) for pid in few]
    pages = model.shared_pages().toarray()
    where = list(zip(rows, few, strict=True))
    got = {(a, b): pages[i, j] for i, a in where for j, b in where if a <= b}
    assert got == dict(plain_python.shared_pages(answers["sets"]))
    assert got == dict(page_graph.shared_pages(answers["graph"]))
    scale = len(pids) / len(few)
    graph = answers["graph"]
    table.add(
        "plain Python, a page at a time, into a graph ÷ capture() and model",
        [r * scale for r in ratios(seconds["graph"], seconds["model"])],
        target=300,
        more_is_better=True,
        bound=20,
        note=f"networkx; {len(few)} processes: {len(graph):,} nodes, {graph.size():,} edges",
    )
    table.add(
        "plain Python, a page at a time, into sets ÷ capture()",
        [r * scale for r in ratios(seconds["sets"], seconds["ours"])],
        more_is_better=True,
        bound=10,
        note="no graph: the reading alone",
    )


def children() -> float:
    """CPU time of ours, and of the processes that we ran and that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def test_against_smem(farms, beside, table):
    if smem_queries.missing():
        pytest.skip("smem is not installed")
    farm = farms(PLAIN)
    answers: dict[str, Any] = {}
    snap, seconds = beside(
        lambda: captured(farm, threads=1, sources=["memory"]),
        {"smem": lambda: smem_queries.memory("osmosis-bench.*/farm")},
        clock=children,
        answers=answers,
    )

    process = np.repeat(snap["mm_process"], np.diff(snap["mm_vma_indptr"]))
    resident = np.bincount(process, snap["vma_present"].astype(np.int64) - snap["vma_zero"])
    # Alone: pages of the memory objects that one mapping maps.
    of_region = np.empty(len(process), np.int64)
    of_region[snap["vma_region"]] = process
    first = snap["class_run_indptr"][:-1]
    sizes = np.add.reduceat(snap["run_last"] - snap["run_first"] + 1, first)
    lone = np.flatnonzero(sizes == 1)
    holder = of_region[snap["run_first"][first[lone]]]
    alone = np.bincount(holder, snap["class_pages"][lone], len(resident))
    for row, pid in enumerate(snap["process_pid"].tolist()):
        rss, uss = answers["smem"][pid]
        assert rss == 4 * resident[row]
        # What only it and its zygote, which is not captured, map: a few pages of the stack.
        assert 0 <= 4 * alone[row] - uss <= 4 * 16
    table.add(
        "smem, resident and unshared memory of each ÷ capture() of who maps what",
        ratios(seconds["smem"], seconds["ours"]),
        more_is_better=True,
        bound=1,
        note="CPU time; it reads smaps",
    )


def test_against_psutil(farms, beside, table):
    farm = farms(PLAIN)
    answers: dict[str, Any] = {}
    snap, seconds = beside(
        lambda: captured(farm, threads=1, sources=[]),
        {
            "psutil": lambda: psutil_queries.table(farm.pids),
            "maps": lambda: psutil_queries.mapped_files(farm.pids[:10]),
        },
        answers=answers,
    )

    columns = ("pid", "ppid", "ruid", "threads")
    got = zip(*(snap[f"process_{c}"].tolist() for c in columns), strict=True)
    assert list(got) == answers["psutil"]
    table.add(
        "psutil, 4 facts of each process ÷ capture() of all facts but memory",
        ratios(seconds["psutil"], seconds["ours"]),
        more_is_better=True,
    )
    assert files_of(captured(farm, sources=["memory"]), farm.pids[:10]) == answers["maps"]
    each = [s / 10 * 1e3 for s in seconds["maps"]]
    table.add("psutil, files that one process maps (smaps)", each, unit="ms")


def files_of(snap: Any, pids: list[int]) -> dict[int, set[str]]:
    found = {}
    rows = {pid: k for k, pid in enumerate(snap["process_pid"][snap["mm_process"]].tolist())}
    for pid in pids:
        a, b = snap["mm_vma_indptr"][rows[pid] : rows[pid] + 2]
        names = {snap.text(int(k)) for k in snap["vma_path"][a:b] if k >= 0}
        found[pid] = {name for name in names if Path(name).is_file()}
    return found


def captured_pids(pids: list[int]) -> Any:
    return osmosis.capture(pids, threads=1, sources=["memory"])
