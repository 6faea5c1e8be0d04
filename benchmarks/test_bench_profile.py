"""Where the time of a capture goes, with ``--profile``: the rows that docs/performance.md quotes.

perf samples a process that captures a farm again and again with one thread; samples are counted by
the file that the code is of, and the extensions' by function. Only this part needs `perf`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.apart import ENVIRONMENT, ROOT
from benchmarks.farm import Shape

SECONDS = 8
SCRIPT = """
import json, sys, time
import osmosis
pids = json.load(sys.stdin)
osmosis.capture(pids, threads=1)
until = time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    osmosis.capture(pids, threads=1)
"""
SYMBOL = re.compile(r"\[[.k]\] (?:__pyx_\w*\d)?(\S+)")  # without what Cython puts before a name
# Whose code it is, by the name of the file.
OWNERS = (
    (r"\[kernel|\[guest", "kernel"),
    (r"^frames\.", "frames: the index"),
    (r"^pagemap\.", "pagemap: decoding"),
    (r"^maps\.", "maps: parsing"),
    (r"^(procfs|fds|nsfs|sockdiag|reach)\.", "the other extensions"),
    (r"python", "the Python interpreter"),
    (r"multiarray|umath|_core|numpy|openblas|scipy", "NumPy"),
)


def owner(file: str) -> str:
    return next((name for pattern, name in OWNERS if re.search(pattern, file)), "libc and others")


def samples(data: Path, sort: str) -> list[tuple[float, str]]:
    """(percent, key) of perf's report."""
    command = ["perf", "report", "-i", str(data), "--stdio", "--no-children", "-g", "none",
               "--sort", sort, "--percent-limit", "0"]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^\s+([\d.]+)%\s+(.*\S)\s*$", text, re.MULTILINE)
    return [(float(percent), key) for percent, key in rows]


def test_profile_of_a_capture(farms, table, request, tmp_path):
    if not request.config.getoption("--profile"):
        pytest.skip("--profile")
    if shutil.which("perf") is None:
        pytest.skip("perf is not installed")
    farm = farms(Shape(processes=500))
    data = tmp_path / "perf.data"
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "-o", str(data), "--",
               sys.executable, "-c", SCRIPT, str(SECONDS)]  # fmt: skip
    done = subprocess.run(
        command, input=json.dumps(farm.pids), text=True, capture_output=True, cwd=ROOT,
        env=ENVIRONMENT,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"perf: {done.stderr.strip().splitlines()[-1]}")

    of: Counter[str] = Counter()
    for percent, file in samples(data, "dso"):
        of[owner(file)] += percent
    assert 98 < sum(of.values()) < 102
    functions = samples(data, "dso,symbol")
    for name, percent in of.most_common():
        inside = [(p, SYMBOL.search(key)) for p, key in functions if owner(key) == name]
        most = ", ".join(f"{at[1]} {p:.0f}" for p, at in inside[:3] if at and p >= 1)
        table.add(f"profile of capture(): {name}", percent, unit="%", note=most)
