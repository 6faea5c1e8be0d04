"""Whole-host figures of this host against the same asked pair by pair, and from plain sets."""

import math
import random
from itertools import product

import numpy as np
import pytest

import osmosis
from osmosis.query.isolation import LAYERS, PAPER_LAYERS

pytestmark = pytest.mark.live
SOME = 12


@pytest.fixture(scope="module")
def model():
    return osmosis.capture().model()


@pytest.fixture(scope="module")
def some(model):
    """The kernel, and processes chosen at random."""
    rows = random.Random(5).sample(range(1, len(model.pds)), min(SOME, len(model.pds) - 1))
    return [model.pds[row] for row in (0, *sorted(rows))]


def test_rsi_of_every_type(model, some):
    data = model.data
    kinds = sorted({data.types[t] for t in np.unique(data.type[data.kind == 1]).tolist()})
    assert {"MO", "FILE", "VMR"} <= set(kinds)
    for kind in kinds:
        matrix = model.rsi_matrix(kind, some, some)
        weight = {pd.row: reached(model, pd, kind) for pd in some}
        for (i, x), (j, y) in product(enumerate(some), repeat=2):
            mine, its = weight[x.row], weight[y.row]
            either = sum(({**mine, **its}).values())
            both = sum(pages for node, pages in mine.items() if node in its)
            want = both / either if either else math.nan
            assert matrix[i, j] == pytest.approx(want, nan_ok=True), (kind, x, y)
            assert model.rsi(x, y, kind) == pytest.approx(want, nan_ok=True)


def reached(model, pd, kind):
    nodes = model.bfs(pd, kinds={"RESOURCE"}, types={kind}).nodes
    return dict(zip(nodes.tolist(), model.data.pages[nodes].tolist(), strict=True))


def test_shared_pages(model, some):
    matrix = model.shared_pages(some, some).toarray()
    pages = {pd.row: reached(model, pd, "MO") for pd in some[1:]}
    for (i, x), (j, y) in product(enumerate(some), repeat=2):
        both = [p for node, p in pages.get(x.row, {}).items() if node in pages.get(y.row, {})]
        assert matrix[i, j] == sum(both)


@pytest.mark.parametrize("kernel", [False, True])
def test_fault_radius(model, some, kernel):
    matrix = model.fr_matrix(some, some, kernel=kernel)
    for (i, x), (j, y) in product(enumerate(some), repeat=2):
        assert matrix[i, j] == model.fr(x, y, kernel=kernel)
    if kernel:  # it serves every space
        assert (matrix[1:, 1:] == 1).all()


def test_isolation_by_layers_and_scores(model, some):
    full, paper = model.isolation_scores(some, some), model.isolation_scores(some, some, paper=True)
    matrices = {layer: model.isolation_matrix(layer) for layer in LAYERS}
    word = {True: "separated", None: "unknown", False: "shared"}
    for (i, x), (j, y) in product(enumerate(some), repeat=2):
        if x.row == y.row:
            continue
        found = model.isolation(x, y)
        states = {layer: word[matrices[layer].state(x.row, y.row)] for layer in LAYERS}
        assert states == {layer: answer.state for layer, answer in found.items()}
        assert (full[0][i, j], full[1][i, j]) == found.full_score[:2]
        assert (paper[0][i, j], paper[1][i, j]) == found.score[:2]
        assert found.score.layers == len(PAPER_LAYERS) == 7


def test_the_quotient_says_who_shares_with_whom(model, some):
    g, sharing = model.graph, model.sharing_matrix()
    kinds = g.vs["kind"]
    usable = [
        e.index
        for e in g.es
        if e["kind"] in ("HOLD", "MAP", "IN") and e["certain"] and not e["potential"]
    ]
    ways = g.subgraph_edges(usable, delete_vertices=False)
    found = {
        pd.row: {v for v in ways.subcomponent(pd.row, mode="out") if kinds[v] == "RESOURCE"}
        for pd in some[1:]
    }
    for x, y in product(some[1:], repeat=2):
        assert sharing[x.row, y.row] == (x.row != y.row and bool(found[x.row] & found[y.row]))
        members = sum(g.vs["size"][v] for v in found[x.row])
        assert members == len(model.bfs(x, kinds={"RESOURCE"}))
