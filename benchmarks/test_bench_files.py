"""Descriptors of real processes against the system calls that reading them takes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.conftest import captured, ratios
from benchmarks.farm import Shape
from benchmarks.peers import c_descriptors
from benchmarks.peers.numpy_capture import mix
from osmosis.schema import OpenKind
from osmosis.snapshot import Snapshot


def shape(processes: int, descriptors: int) -> Shape:
    """Processes that have little but descriptors."""
    return Shape(
        processes=processes, heap_pages=100, hot_pages=100, copies=5, own_pages=4, small_vmas=5,
        segments=0, file_mib=0, descriptors=descriptors,
    )  # fmt: skip


def checksum(snap: Snapshot) -> int:
    """The bare reader's sum, from the columns of a snapshot."""
    pid = snap["process_pid"][snap["fd_process"]].astype(np.uint64)
    of = snap["fd_open"]
    at = pid << np.uint64(32) | snap["fd_fd"].astype(np.uint64)
    h = mix(at * np.uint64(8) + snap["fd_access"].astype(np.uint64))
    for name in ("dev", "inode", "rdev"):
        h = mix(h + snap[f"open_{name}"][of])
    return int(h.sum(dtype=np.uint64))


@pytest.mark.parametrize("n", [1000, 5000])
def test_descriptors(n, farms, beside, table, small):
    """The capture of files less the capture of nothing but processes ÷ the bare calls."""
    if small and n > 1000:
        pytest.skip("--small")
    farm = farms(shape(n, 100))
    answers: dict[str, Any] = {}
    snap, seconds = beside(
        lambda: captured(farm, threads=1, sources=["files"]),
        {
            "processes": lambda: captured(farm, threads=1, sources=[]),
            "floor": lambda: c_descriptors.read_all(farm.pids),
        },
        answers=answers,
    )

    floor = answers["floor"]
    assert len(snap["fd_fd"]) == floor.descriptors >= 100 * n
    assert checksum(snap) == floor.sum
    anonymous = (snap["open_kind"] >= OpenKind.EVENTFD) & (snap["open_kind"] <= OpenKind.ANON)
    assert int(anonymous.sum()) == floor.anonymous
    extra = [a - b for a, b in zip(seconds["ours"], seconds["processes"], strict=True)]
    each = 1e6 * floor.cpu_ns / 1e9 / floor.descriptors
    table.add(
        f"descriptors of {n} processes, extra capture ÷ bare system calls",
        ratios(extra, seconds["floor"]),
        target=2,
        bound=4,
        note=f"CPU time, one thread, {floor.descriptors:,} descriptors; the calls {each:.2f} us "
        f"each, kcmp {floor.kcmp_ns / floor.cpu_ns:.0%} of it",
    )


def most_blocks(work: Callable[[], Any]) -> int:
    """Most blocks of memory that Python's objects held more than before, while *work* ran.

    Looked at whenever a function, of Python or of C, is called or returns: the lists and objects
    that it makes are there then.
    """
    most = before = sys.getallocatedblocks()

    def look(_frame: Any, _event: str, _arg: Any) -> None:
        nonlocal most
        most = max(most, sys.getallocatedblocks())

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return most - before


def test_python_objects_of_a_descriptor(farms, table):
    """As many processes with ten times the descriptors: how many more objects, at the most."""
    blocks, descriptors = [], []
    for each in (30, 300):
        farm = farms(shape(300, each))
        snap = captured(farm, threads=1, sources=["files"])
        blocks.append(most_blocks(lambda f=farm: captured(f, threads=1, sources=["files"])))
        descriptors.append(len(snap["fd_fd"]))
    more = (blocks[1] - blocks[0]) / (descriptors[1] - descriptors[0])
    table.add(
        "Python objects (blocks of memory) for one descriptor more",
        more,
        target=0.1,
        bound=0.3,
        note=f"at their most; {descriptors[0]:,} and {descriptors[1]:,} descriptors",
    )
