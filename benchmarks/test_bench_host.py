"""A whole host: capture, model, every TCB and IB; the command line; growth with the processes."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import pytest

import osmosis
from benchmarks.apart import python
from benchmarks.conftest import captured, ratios
from benchmarks.farm import Shape
from benchmarks.peers import c_reader

FEW = 100  # processes of a farm, for what one of few costs

SCRIPT = """
import json, sys, time
import numpy, scipy.sparse, igraph
import osmosis
from benchmarks.high_water import high_water
pids = json.load(sys.stdin)
base = high_water()
times = {}
def step(name, work):
    began = time.perf_counter()
    out = work()
    times[name] = time.perf_counter() - began
    return out
snap = step("capture", lambda: osmosis.capture(pids))
model = step("model", snap.model)
tcb = step("tcb", model.tcb_matrix)
sizes = step("sizes", lambda: (tcb.counts(1), tcb.counts(0)))
peak = high_water()
step("save", lambda: snap.save(sys.argv[1]))
columns = sum(c.nbytes for c in snap.columns.values())
json.dump({"times": times, "beyond": peak - base - columns / (1 << 20),
           "columns": columns, "tcb": sizes[0].tolist(), "ib": sizes[1].tolist()}, sys.stdout)
"""

# Only the capture, of all that the command line captures; threads, sources as it has them.
CAPTURE = """
import json, sys, time
import osmosis
began = time.perf_counter()
snap = osmosis.capture()
json.dump([time.perf_counter() - began, snap["process_pid"].tolist()], sys.stdout)
"""


@pytest.mark.parametrize("n", [100, 1000, 2000, 5000])
def test_whole_host(n, farms, beside, table, small, room):
    """Capture, model, every PD's TCB and IB, in a process of its own: times and peak memory."""
    if small and n > 1000:
        pytest.skip("--small")
    farm = farms(Shape(processes=n))
    path = room / f"farm{n}.osm"
    floor = c_reader.read_all(farm.pids)
    runs: list[dict[str, Any]] = []
    beside(
        lambda: runs.append(
            json.loads(python("-c", SCRIPT, str(path), stdin=json.dumps(farm.pids)))
        ),
        {},
        budget=30,
    )

    snap = osmosis.load(path)
    assert snap.n_processes == n
    assert int(snap["vma_present"].sum()) == floor.present
    tcb = snap.model().tcb_matrix()
    for got in runs:
        assert tcb.T.counts(1).tolist() == got["ib"]
        assert tcb.counts(1).tolist() == got["tcb"]
    steps = ("capture", "model", "tcb", "sizes")
    middle = {k: statistics.median(got["times"][k] for got in runs) for k in steps}
    table.add(
        f"{n} processes: capture + model + every TCB and IB, two threads",
        [sum(got["times"][k] for k in steps) for got in runs],
        unit="s",
        target=5 if n == 1000 else None,
        note=", ".join(f"{k} {seconds:.2f}" for k, seconds in middle.items()),
    )
    columns = runs[-1]["columns"]
    table.add(
        f"{n} processes: peak memory beyond the interpreter and the snapshot",
        [got["beyond"] for got in runs],
        unit="MiB",
        target=1024 if n == 5000 else None,
        note=f"snapshot {columns >> 20} MiB, saved {path.stat().st_size >> 10} KiB",
    )
    table.add(
        f"{n} processes: capture, per process",
        [got["times"]["capture"] / n * 1e6 for got in runs],
        unit="us",
        note=f"wall, two threads; bare C loop {floor.cpu_ns / n / 1000:.0f} us, one thread",
    )


@pytest.mark.parametrize("n", [1000, 5000])
def test_growth(n, farms, beside, table, small):
    """What a process costs among many ÷ among few of the same farm; and what the kernel takes."""
    if small and n > 1000:
        pytest.skip("--small")
    farm = farms(Shape(processes=n))
    few = farm.pids[:: n // FEW][:FEW]
    answers: dict[str, Any] = {}
    snap, seconds = beside(
        lambda: captured(farm, threads=1),
        {
            "few": lambda: osmosis.capture(few, threads=1),
            "floor": lambda: c_reader.read_all(farm.pids),
            "few of the floor": lambda: c_reader.read_all(few),
        },
        answers=answers,
        budget=60,
    )

    assert int(snap["vma_present"].sum()) == answers["floor"].present
    assert int(answers["few"]["vma_present"].sum()) == answers["few of the floor"].present
    scale = len(few) / n
    growth = [r * scale for r in ratios(seconds["ours"], seconds["few"])]
    kernel = [r * scale for r in ratios(seconds["floor"], seconds["few of the floor"])]
    table.add(
        f"growth: capture of {n} ÷ capture of {len(few)} of them, per process",
        growth,
        target=1.2,
        bound=4,
        note=f"CPU time, one thread; the bare C loop grows {statistics.median(kernel):.2f} times",
    )
    of_few = statistics.median(ratios(seconds["few"], seconds["few of the floor"]))
    table.add(
        f"the whole capture() of {n} ÷ the bare C loop, one thread",
        ratios(seconds["ours"], seconds["floor"]),
        bound=10,
        note=f"of {len(few)} of them {of_few:.2f}",
    )


@pytest.mark.parametrize("n", [1000, 5000])
def test_command_line(n, farms, beside, table, small):
    """``osmosis`` from its start to its table ÷ the capture of the same host, by turns."""
    if small and n > 1000:
        pytest.skip("--small")
    farm = farms(Shape(processes=n))
    alone: list[float] = []
    pids: list[int] = []

    def capture() -> None:
        seconds, pids[:] = json.loads(python("-c", CAPTURE))
        alone.append(seconds)

    shown, seconds = beside(
        # 3: answered, and something of this host could not be read.
        lambda: python("-m", "osmosis", "--top", "1000000", codes=(0, 3)),
        {"capture": capture},
        clock=time.perf_counter,
        budget=60,
    )

    assert set(farm.pids) <= set(pids)
    words = {word for line in shown.splitlines() for word in line.split()}
    assert {str(pid) for pid in farm.pids} <= words
    table.add(
        f"`osmosis` from start to table ÷ capture() of that host, {n}",
        ratios(seconds["ours"], alone),
        target=2,
        bound=4,
        note=f"wall, two threads; {len(pids)} processes, capture {statistics.median(alone):.2f} s",
    )
