"""Captures while hundreds of processes a second are made, exec and exit: nothing is mixed up.

Families of processes are exec'ed apart from one another and have private memory only: a frame
that two families seem to share was freed by one and taken over by the other in between.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

import osmosis
from osmosis.schema import FrameKind

pytestmark = pytest.mark.live

SECONDS = 12

# Takes and gives back pages as fast as it can.
TOUCH = """
import ctypes, mmap, os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    area = mmap.mmap(-1, 300 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(300):
        area[page * 4096] = 1
    area.close()
"""

# Forks children that write some of its pages, live a few milliseconds, and exit.
FORK = """
import mmap, os, random, signal, sys, time
area = mmap.mmap(-1, 400 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(400):
    area[page * 4096] = 1
alive = []
while True:
    pid = os.fork()
    if not pid:
        for page in random.sample(range(400), 150):
            area[page * 4096] = 2
        time.sleep(0.02)
        os._exit(0)
    alive.append(pid)
    area[random.randrange(400) * 4096] = 3
    if len(alive) > 4:
        os.waitpid(alive.pop(0), 0)
"""

# Forks and execs: a new program each time.
SPAWN = """
import os, sys
while True:
    pid = os.posix_spawn(sys.argv[1], [sys.argv[1], "-c", ":"], {})
    os.waitpid(pid, 0)
"""

# One process that becomes the other of two programs again and again, and says so in its arguments.
SWITCH = 'exec "$2" "$0" "$2" "$1"\n'


@pytest.fixture
def churn(tmp_path):
    """Family -> pid of its first process."""
    sh = os.path.realpath("/bin/sh")
    one, two = (str(tmp_path / name) for name in ("program-one", "program-two"))
    for path in (one, two):
        shutil.copy(sh, path)
    script = tmp_path / "switch"
    script.write_text(SWITCH)
    python = [sys.executable, "-ISs", "-c"]
    commands = {
        **{f"touch{i}": [*python, TOUCH, str(i % 2)] for i in range(4)},
        **{f"fork{i}": [*python, FORK] for i in range(3)},
        "spawn": [*python, SPAWN, one],
        **{f"switch{i}": [one, str(script), one, two] for i in range(3)},
    }
    with ExitStack() as stack:
        pids = {}
        for name, command in commands.items():
            # A group of its own, so that its children can be ended with it.
            process = subprocess.Popen(command, start_new_session=True)
            stack.callback(end, process)
            pids[name] = process.pid
        time.sleep(0.3)
        yield pids, (one, two)


def end(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def families(snap, roots):
    """(P,) family of each process, -1 for one that belongs to none: by parents."""
    row = {pid: i for i, pid in enumerate(snap["process_pid"].tolist())}
    number = {pid: i for i, pid in enumerate(roots.values())}
    out = np.full(snap.n_processes, -1)
    for pid, at in row.items():
        up = pid
        while up in row and up not in number:
            up = int(snap["process_ppid"][row[up]])
        out[at] = number.get(up, -1)
    return out


def regions(snap):
    """By region: address space and mapped object."""
    of = np.repeat(np.arange(len(snap["mm_process"])), np.diff(snap["mm_vma_indptr"]))
    mm, mapped = np.empty_like(of), np.empty_like(of)
    mm[snap["vma_region"]] = of
    mapped[snap["vma_region"]] = snap["vma_object"]
    return mm, mapped


def false_pairs(snap, roots):
    """Anonymous classes of two families, and page-cache classes of two files."""
    family = families(snap, roots)
    by_mm = np.full(len(snap["mm_process"]), -1)
    by_mm[snap["process_mm"][snap["process_mm"] >= 0]] = family[snap["process_mm"] >= 0]
    mm, mapped = regions(snap)
    found = []
    for c in range(len(snap["class_pages"])):
        runs = range(snap["class_run_indptr"][c], snap["class_run_indptr"][c + 1])
        mine = np.concatenate(
            [np.arange(snap["run_first"][r], snap["run_last"][r] + 1) for r in runs]
        )
        if snap["class_kind"][c] == FrameKind.FILE:
            names = set(mapped[mine].tolist())
            if len(names) > 1:
                found.append(("files", names, int(snap["class_pages"][c])))
        else:
            names = set(by_mm[mm[mine]].tolist()) - {-1}
            if len(names) > 1:
                found.append(("families", names, int(snap["class_pages"][c])))
    return found


def mixtures(snap, roots, programs):
    """Processes whose name, program, arguments and mappings are not all of one program."""
    found = []
    switching = {pid for name, pid in roots.items() if name.startswith("switch")}
    seen = 0
    for p, pid in enumerate(snap["process_pid"].tolist()):
        if pid not in switching:
            continue
        seen += 1
        exe, comm = snap.text(snap["process_exe"][p]), snap.text(snap["process_comm"][p])
        arguments = snap.text(snap["process_cmdline"][p]).split("\0")
        mm = snap["process_mm"][p]
        mapped = set()
        if mm >= 0:
            vmas = range(snap["mm_vma_indptr"][mm], snap["mm_vma_indptr"][mm + 1])
            paths = {snap.text(snap["vma_path"][v]) for v in vmas}
            mapped = paths & set(programs)
        facts = {exe, str(Path(exe).with_name(comm)), arguments[0], *mapped}
        if facts - {""} != {exe} or exe not in programs:
            found.append((pid, exe, comm, arguments, mapped))
    return found, seen


def members(roots):
    """Pids of all families now: each is a session of its own."""
    found, sessions = [], set(roots.values())
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdecimal() and os.getsid(int(name)) in sessions:
                found.append(int(name))
    return found


def made():
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("processes"):
            return int(line.split()[1])
    return 0


def test_nothing_is_mixed_up_while_processes_come_and_go(churn):
    roots, programs = churn
    start, before = time.monotonic(), made()
    taken = told = switched = gone = 0
    while time.monotonic() - start < SECONDS:
        snap = osmosis.capture(
            members(roots),
            sources={"memory", "namespaces"},
            threads=1 + taken % 3,
            frames=("classes", "all")[taken % 2],
        )
        taken += 1
        assert not false_pairs(snap, roots)
        wrong, seen = mixtures(snap, roots, programs)
        assert not wrong
        switched += seen
        pids = set(snap["process_pid"].tolist())
        for row in snap.coverage:
            if row.status == "gone":
                gone += 1
                assert row.pid not in pids
            if "reused" in row.reason:
                told += row.count
        # Whoever is in it has a row that says how its memory was read.
        rows = {row.pid for row in snap.coverage if row.source == "memory"}
        assert pids <= rows
        assert set(roots.values()) <= pids | {row.pid for row in snap.coverage}
        snap.model()
    rate = (made() - before) / (time.monotonic() - start)
    print(f"{taken} captures, {rate:.0f} new a second, {gone} gone, {told} reused, {switched} read")
    assert taken > 3
    assert rate > 50
    assert switched > taken  # some of the three are read each time, whole
    assert told > 0  # frames did go from one to another meanwhile: there was something to see
