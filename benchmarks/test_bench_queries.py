"""Every query, of one PD and of the whole host, beside graph libraries that are asked the same."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import pytest

import osmosis
from benchmarks.conftest import ROUNDS
from benchmarks.peers import networkx_queries, rustworkx_queries
from benchmarks.peers.edges import Expanded
from osmosis.model import Model

ASKED = 12


def model_of(snap):
    """A model that has answered nothing yet."""
    return snap.replace().model()


def some_rows(n, k, seed=7):
    return np.sort(np.random.default_rng(seed).choice(np.arange(1, n + 1), k, replace=False))


def each(work, arguments):
    """Seconds of each call."""
    out = []
    for argument in arguments:
        began = time.perf_counter()
        work(*argument)
        out.append(time.perf_counter() - began)
    return out


def p50(work, arguments):
    """Median microseconds of a call, in each of some rounds over all arguments."""
    return [1e6 * statistics.median(each(work, arguments)) for _ in range(ROUNDS)]


@pytest.mark.parametrize("access", ["ANY", "W"])
@pytest.mark.parametrize("n", [100, 1000])
def test_graph_libraries(n, access, made, beside, table):
    """Who shares with x: the libraries are asked for 3 PDs, we for all and for some."""
    snap = made(n)
    graph = snap.model().data
    edges = Expanded(snap.model())
    write = access == "W"
    peers = {"networkx": networkx_queries.Peer(edges), "rustworkx": rustworkx_queries.Peer(edges)}
    rows = some_rows(n, 3).tolist()
    answers: dict[str, list[set[int]]] = {}
    relation, seconds = beside(
        lambda: Model(graph).sharing_matrix(access=access),
        {
            name: lambda peer=peer: [peer.shared(row, write=write) for row in rows]
            for name, peer in peers.items()
        },
        clock=time.perf_counter,
        answers=answers,
    )

    for name in peers:
        for row, found in zip(rows, answers[name], strict=True):
            want = set(np.flatnonzero(relation.row_masks(row)[0]).tolist()) - {graph.kernel}
            assert found == want, name
    cold = Model(graph)
    cold.shared_resources(cold.pds[1], access=access)  # the index of the graph is made once
    ours = each(
        lambda row: cold.shared_resources(cold.pds[int(row)], access=access),
        [(row,) for row in some_rows(n, ASKED)],
    )
    single = statistics.median(ours)
    for name in peers:
        one = [s / len(rows) for s in seconds[name]]
        table.add(
            f"{name}, who shares with x ({access}), for each of {n} ÷ ours for all",
            [s * n / whole for s, whole in zip(one, seconds["ours"], strict=True)],
            target=300 if name == "networkx" and n == 1000 and not write else None,
            more_is_better=True,
            bound=10 if n == 1000 and not write else None,
            note=f"{len(edges):,} edges; {1e3 * statistics.median(one):.3g} ms a query",
        )
        table.add(
            f"{name}, one such query ({access}) ÷ one of ours, cold, {n}",
            [s / single for s in one],
            more_is_better=True,
            note=f"ours {1e3 * single:.3g} ms",
        )


@pytest.mark.parametrize("source", ["synthetic1000", "synthetic5000", "farm1000", "farm5000"])
def test_whole_host_queries(source, made, room, beside, table, small):
    n = int(source.lstrip("abcdefghijklmnopqrstuvwxyz"))
    if small and n > 1000:
        pytest.skip("--small")
    if source.startswith("farm"):
        path = room / f"{source}.osm"
        if not path.exists():
            pytest.skip("the farm was not captured in this run")
        snap = osmosis.load(path)
    else:
        snap = made(n)
    model = model_of(snap)
    cold = model_of(snap)
    rows = some_rows(n, ASKED)
    target = n == 5000
    first = each(lambda: cold.shared_resources(cold.pds[1]), [()])
    table.add(f"{source}: the first row of shared_resources", [s * 1e3 for s in first], unit="ms",
              note="with what all later rows use")  # fmt: skip
    row_seconds = each(lambda row: cold.shared_resources(cold.pds[int(row)]).rows,
                       [(row,) for row in rows])  # fmt: skip
    table.add(f"{source}: cold row of shared_resources", [s * 1e3 for s in row_seconds],
              unit="ms", target=3 if target else None)  # fmt: skip

    # Each from nothing but the graph: what a model keeps for later questions is not there yet.
    whole: dict[str, Any] = {}
    sharing, seconds = beside(
        lambda: Model(model.data).sharing_matrix(),
        {
            "tcb": lambda: Model(model.data).tcb_matrix(),
            "pages": lambda: Model(model.data).shared_pages(),
        },
        clock=time.perf_counter,
        answers=whole,
    )
    for row in rows[:4].tolist():
        want = cold.shared_resources(cold.pds[row])
        np.testing.assert_array_equal(sharing.row(row).rows, want.rows)
        np.testing.assert_array_equal(sharing.row(row).unknown.rows, want.unknown.rows)
    table.add(f"{source}: sharing of all pairs (any access)", seconds["ours"], unit="s",
              target=2.5 if target else None)  # fmt: skip

    tcb = whole["tcb"]
    table.add(f"{source}: TCB of all PDs", seconds["tcb"], unit="s",
              target=2.5 if target else None)  # fmt: skip
    for row in rows[:4].tolist():
        np.testing.assert_array_equal(tcb.row(row).rows, cold.tcb(cold.pds[row]).rows)

    pairs = [
        (int(a), int(b)) for a, b in zip(some_rows(n, 60, 1), some_rows(n, 60, 2), strict=True)
    ]
    table.add(f"{source}: a pair, sharing[i, j]", p50(lambda a, b: sharing[a, b], pairs),
              unit="us", target=1 if target else None)  # fmt: skip
    table.add(f"{source}: a warm row, sharing.row(i)", p50(lambda a, _: sharing.row(a), pairs),
              unit="us", target=15 if target else None)  # fmt: skip
    model.sharing_matrix()
    asked = [(model.pds[a], model.pds[b]) for a, b in pairs]
    table.add(f"{source}: model.shares(x, y)", p50(model.shares, asked), unit="us",
              target=1 if target else None)  # fmt: skip
    assert [model.shares(x, y).state for x, y in asked] == [sharing.state(a, b) for a, b in pairs]
    table.add(f"{source}: model.shares(x, y) with its reason",
              p50(lambda x, y: model.shares(x, y).reason, asked[:20]), unit="us")  # fmt: skip
    other = [(cold.pds[a], cold.pds[b]) for a, b in pairs]
    table.add(f"{source}: model.shares(x, y), cold",
              1e6 * statistics.median(each(cold.shares, other)), unit="us")  # fmt: skip

    pages = whole["pages"]
    table.add(f"{source}: shared_pages() of all pairs", seconds["pages"], unit="s",
              target=2 if target else None)  # fmt: skip
    some = rows[:3]
    want = frames_by_row(snap, some)
    np.testing.assert_array_equal(pages[some][:, 1:].toarray(), want)

    x, y = model.pds[int(rows[0])], model.pds[int(rows[1])]
    for name, work in {
        "tcb(x)": lambda: model.tcb(x),
        "impact_boundary(x)": lambda: model.impact_boundary(x),
        "controllers(x)": lambda: model.controllers(x),
        "bfs(x)": lambda: model.bfs(x),
        "rsi(x, y, MO)": lambda: model.rsi(x, y, "MO"),
        "isolation(x, y)": lambda: dict(model.isolation(x, y)),
        "explain(x, y)": lambda: model.explain(x, y),
        "fr(x, y, kernel=True)": lambda: model.fr(x, y, kernel=True),
    }.items():
        try:
            work()
        except (osmosis.OsmosisError, AttributeError):
            continue
        table.add(f"{source}: {name}", [s * 1e3 for s in each(work, [()] * ROUNDS)], unit="ms")


def frames_by_row(snap, rows):
    """The twin of shared_pages, by the columns of the snapshot, for some rows of the model."""
    process_of = np.empty(len(snap["vma_region"]), np.int64)
    of_mm = np.repeat(np.arange(len(snap["mm_process"])), np.diff(snap["mm_vma_indptr"]))
    process_of[snap["vma_region"]] = snap["mm_process"][of_mm]
    out = np.zeros((len(rows), snap.n_processes), np.int64)
    at = {int(row) - 1: k for k, row in enumerate(rows)}
    wanted = np.zeros(snap.n_processes, bool)
    wanted[list(at)] = True
    before = np.concatenate([[0], np.cumsum(wanted[process_of])])
    hit = before[snap["run_last"] + 1] > before[snap["run_first"]]
    classes = np.repeat(np.arange(len(snap["class_pages"])), np.diff(snap["class_run_indptr"]))
    for c in np.unique(classes[hit]).tolist():
        runs = slice(snap["class_run_indptr"][c], snap["class_run_indptr"][c + 1])
        spans = zip(snap["run_first"][runs].tolist(), snap["run_last"][runs].tolist(), strict=True)
        members = np.unique(np.concatenate([process_of[a : b + 1] for a, b in spans]))
        for member in members[wanted[members]].tolist():
            out[at[member], members] += snap["class_pages"][c]
    return out
