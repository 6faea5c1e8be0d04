"""What psutil can answer: the table of processes, and which files a process maps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil


def table(pids: Iterable[int]) -> list[tuple[int, int, int, int]]:
    """(pid, ppid, real uid, threads) of each."""
    rows = []
    for pid in pids:
        process = psutil.Process(pid)
        with process.oneshot():
            rows.append((pid, process.ppid(), process.uids().real, process.num_threads()))
    return rows


def mapped_files(pids: Iterable[int]) -> dict[int, set[str]]:
    """Files that each maps (psutil reads smaps for it), without what was unlinked.

    psutil drops " (deleted)" where it finds no such file, and keeps it elsewhere.
    """
    return {
        pid: {m.path for m in psutil.Process(pid).memory_maps() if Path(m.path).is_file()}
        for pid in pids
    }
