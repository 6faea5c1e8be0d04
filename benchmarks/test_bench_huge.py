"""Growth beyond this machine, with ``--huge``: 20 000 processes that do not exist, on 1 TiB."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.apart import python

INDEX = """
import json, sys, time
import numpy as np
from _fastproc.frames import FrameIndex
from _fastproc.partition import Partition
from benchmarks.high_water import high_water
from benchmarks.synthetic_frames import REGIONS, Host
n, memory = int(sys.argv[1]), int(sys.argv[2])
host, index, seconds = Host(n, memory), FrameIndex(), 0.0
base = high_water()
for visit in host.visits():
    began = time.process_time()
    index.visit(*visit)
    seconds += time.process_time() - began
began = time.process_time()
found = Partition([index], np.ones(REGIONS * n, np.uint8))
seconds += time.process_time() - began
peak = high_water()
assert index.pairs == host.pairs
assert int(found.pages.sum()) == host.frames
sizes = np.add.reduceat(found.last.astype(np.int64) - found.first + 1, found.indptr[:-1])
assert int((found.pages * sizes).sum()) == host.pairs
json.dump({"seconds": seconds, "pairs": host.pairs, "frames": host.frames, "bytes": index.nbytes,
           "beyond": peak - base, "classes": len(found.pages)}, sys.stdout)
"""

QUERIES = """
import json, sys, time
import numpy as np, scipy.sparse, igraph
from benchmarks import synthetic
from benchmarks.high_water import high_water
n = int(sys.argv[1])
base = high_water()
steps, snap = {}, synthetic.snapshot(n)
columns = sum(c.nbytes for c in snap.columns.values()) / (1 << 20)
def step(name, work):
    began = time.perf_counter()
    out = work()
    steps[name] = time.perf_counter() - began
    return out
model = step("model", snap.model)
some = [model.pds[row] for row in np.linspace(1, n, 16).astype(int).tolist()]
step("the first row of shared_resources", lambda: model.shared_resources(some[0]))
rows = step("15 rows of shared_resources", lambda: [model.shared_resources(x) for x in some[1:]])
tcb = step("TCB of all PDs", model.tcb_matrix)
sizes = step("sizes of all TCBs and IBs", lambda: (tcb.counts(1), tcb.counts(0)))
sharing = step("sharing of all pairs (any access)", model.sharing_matrix)
pages = step("shared_pages() of 16 rows", lambda: model.shared_pages(rows=some))
for x, want in zip(some[1:], rows, strict=True):
    np.testing.assert_array_equal(sharing.row(x.row).rows, want.rows)
other = snap.replace().model()
for x in some[:3]:
    np.testing.assert_array_equal(tcb.row(x.row).rows, other.tcb(other.pds[x.row]).rows)
    assert sizes[0][x.row] == len(tcb.row(x.row).rows)
    shares = np.flatnonzero(pages[some.index(x)].toarray())
    assert set(shares.tolist()) - {x.row} <= set(sharing.row(x.row).rows.tolist())
json.dump({"steps": steps, "beyond": high_water() - base - columns, "columns": columns}, sys.stdout)
"""


@pytest.fixture(autouse=True)
def huge(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--huge"):
        pytest.skip("--huge")


def measured(benchmark: Any, script: str, *arguments: int, rounds: int) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    benchmark.pedantic(
        lambda: runs.append(json.loads(python("-c", script, *map(str, arguments)))), rounds=rounds
    )
    return runs


def test_index_of_a_large_host(benchmark, table):
    few = json.loads(python("-c", INDEX, "5000", str(1 << 38)))
    runs = measured(benchmark, INDEX, 20_000, 1 << 40, rounds=3)
    (one,) = {(r["pairs"], r["frames"], r["bytes"], r["classes"]) for r in runs}
    pairs, frames, size, classes = one
    ns = [r["seconds"] / pairs * 1e9 for r in runs]
    table.add(
        "20000 made up, 1 TiB: index, CPU time per present page", ns, unit="ns", target=10,
        note=f"{pairs:,} pages of {frames:,} frames, {classes:,} classes",
    )  # fmt: skip
    table.add(
        "the same ÷ 5000 made up, 256 GiB",
        [x * few["pairs"] / few["seconds"] / 1e9 for x in ns], target=1.5, bound=6,
    )  # fmt: skip
    table.add(
        "20000 made up, 1 TiB: index, bytes per frame in use", size / frames, unit="B",
        target=8, bound=16, note=f"{size >> 20:,} MiB; {size / pairs:.2f} B a mapped page",
    )  # fmt: skip


def test_queries_of_a_large_host(benchmark, table):
    few = json.loads(python("-c", QUERIES, "5000"))
    runs = measured(benchmark, QUERIES, 20_000, rounds=1)
    for name in runs[0]["steps"]:
        seconds = [r["steps"][name] for r in runs]
        growth = seconds[0] / few["steps"][name]
        table.add(
            f"20000 made up: {name}", seconds, unit="s", note=f"{growth:.2g} times that of 5000"
        )
    table.add(
        "20000 made up: peak memory beyond the interpreter and the snapshot",
        [r["beyond"] for r in runs], unit="MiB",
        note=f"snapshot {runs[0]['columns']:,.0f} MiB; of 5000 {few['beyond']:,.0f} MiB",
    )  # fmt: skip
