"""Save and load."""

from __future__ import annotations

import time

import numpy as np
import pytest

import osmosis


@pytest.mark.parametrize("n", [1000, 5000])
def test_save_and_load(n, made, room, beside, table, small):
    if small and n > 1000:
        pytest.skip("--small")
    snap, path = made(n), room / f"synthetic{n}.osm"
    loaded, seconds = beside(
        lambda: osmosis.load(path), {"save": lambda: snap.save(path)}, clock=time.perf_counter,
    )  # fmt: skip

    for name, column in snap.columns.items():
        np.testing.assert_array_equal(loaded[name], column)
    columns = sum(c.nbytes for c in snap.columns.values()) >> 20
    note = f"{path.stat().st_size / (1 << 20):.1f} MiB for {columns} MiB of columns"
    table.add(
        f"load {n} synthetic processes", seconds["ours"], unit="s",
        target=1 if n == 5000 else None, note=note,
    )  # fmt: skip
    table.add(f"save {n} synthetic processes", seconds["save"], unit="s")


@pytest.mark.parametrize("n", [1000, 5000])
def test_model(n, made, beside, table, small):
    if small and n > 1000:
        pytest.skip("--small")
    snap = made(n)
    model, seconds = beside(lambda: snap.replace().model(), {}, clock=time.perf_counter)

    assert len(model.pds) == n + 1
    edges = int((model.data.runs.last - model.data.runs.first + 1).sum())
    table.add(
        f"model of {n} synthetic processes", seconds["ours"], unit="s",
        note=f"{len(model.data.kind):,} nodes, {edges + len(model.data.edges):,} edges",
    )  # fmt: skip
