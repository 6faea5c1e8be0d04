"""What smem can answer: resident and unshared memory of each process, from smaps."""

from __future__ import annotations

import shutil
import subprocess


def missing() -> bool:
    """Whether smem is not installed."""
    return shutil.which("smem") is None


def memory(program: str) -> dict[int, tuple[int, int]]:
    """Pid to (RSS, USS) in KiB, of the processes whose command line matches a regular expression.

    The others' smaps are not read.
    """
    command = ["smem", "-H", "-c", "pid rss uss", "-P", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    return {pid: (rss, uss) for pid, rss, uss in rows}
