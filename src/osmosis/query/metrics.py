"""Figures for pairs: shared pages, the resource sharing index, and the fault radius."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from _fastproc import reach
from osmosis.errors import QueryError
from osmosis.graph.graph import ANY, POTENTIAL, SERVER, Edge, Kind
from osmosis.graph.sets import Nodes
from osmosis.query.engine import Engine
from osmosis.query.options import type_mask, types_of
from osmosis.query.reach import (
    Incidence,
    certain_spans,
    incidence,
    reached_alone,
    shareable,
    spans,
)
from osmosis.query.walk import Way, distinct, gathered

__all__ = [
    "fault_radii",
    "fault_radius",
    "pages_shared",
    "requests",
    "rsi_matrix",
    "rsi_of_sets",
    "shared_pages",
]

I4 = NDArray[np.int32]
F8 = NDArray[np.float64]


def _columns(engine: Engine, types: frozenset[str]) -> Incidence:
    """Which PDs reach which resources of the types, with ANY; kept."""

    def make() -> Incidence:
        index = engine.index
        mask = type_mask(engine.graph, types)
        return incidence(index, Way(ANY), Kind.RESOURCE, mask)

    made: Incidence = engine.once(("columns", types), make)
    return made


def _matrix(columns: Incidence, group: I4, n: int) -> csr_array:
    """(n, C) csr_array of 1: which of n groups reach which column."""
    col = np.repeat(np.arange(len(columns.nodes)), columns.counts)
    pairs = distinct(group[columns.pds].astype(np.int64) * max(len(columns.nodes), 1) + col)
    rows, cols = np.divmod(pairs, max(len(columns.nodes), 1))
    indptr = np.searchsorted(rows, np.arange(n + 1))
    return csr_array((np.ones(len(cols), np.float64), cols, indptr), shape=(n, len(columns.nodes)))


def weights(engine: Engine, types: frozenset[str], group: I4, n: int) -> tuple[csr_array, F8]:
    """Return the (n, C) incidence of groups and resources, and the (C,) pages of each."""
    columns = _columns(engine, types)
    return _matrix(columns, group, n), engine.graph.pages[columns.nodes]


def shared_pages(
    engine: Engine, group: I4, n: int, rows: I4 | None = None, cols: I4 | None = None
) -> csr_array:
    """Return base pages (4 KiB) that both reach, of memory objects, as int64.

    The diagonal is a PD's own distinct pages. Time O(n**2 + sum over memory objects of spans of
    holders**2), and 12 bytes for each pair that shares; of a few rows O(spans + n).
    """
    held = _held(engine, frozenset(["MO"]), group, n)
    if held is not None:
        return held.sums(rows, cols)
    matrix, pages = weights(engine, frozenset(["MO"]), group, n)
    left = matrix if rows is None else matrix[rows]
    right = matrix if cols is None else matrix[cols]
    out = csr_array(left * pages[None, :]) @ right.T
    out = csr_array(out).astype(np.int64)
    out.eliminate_zeros()
    return csr_array(out)


def pages_shared(engine: Engine, group: I4, n: int) -> NDArray[np.int64]:
    """Return (n,) base pages of each group that another one, not the kernel, reaches as well.

    Of memory objects, and of what is certain; each counts once. The kernel has 0: it reaches
    all. O(spans), where `shared_pages` is O(n**2).
    """
    index = engine.index
    mos = np.array([t for t, name in enumerate(engine.graph.types) if name == "MO"], np.int64)
    if len(group) == n:
        columns, by_place = certain_spans(index, Way(ANY), Kind.RESOURCE), index.by_place
    else:
        only = np.flatnonzero(shareable(index) & np.isin(engine.graph.type, mos))
        way, value = Way(ANY), group.astype(np.int32)
        columns = spans(index, way, Kind.RESOURCE, None, only=only.astype(np.int32), value=value)
        by_place = np.arange(n, dtype=np.int32)
    column = np.repeat(np.arange(len(columns.nodes)), np.diff(columns.indptr))
    size = np.bincount(
        column, weights=columns.last - columns.first + 1, minlength=len(columns.nodes)
    )
    weight = engine.graph.pages[columns.nodes].astype(np.float64)
    weight[(size < 2) | ~np.isin(engine.graph.type[columns.nodes], mos)] = 0
    change = np.bincount(columns.first, weights=weight[column], minlength=n + 1)
    change -= np.bincount(columns.last + 1, weights=weight[column], minlength=n + 1)
    out = np.zeros(n, np.int64)
    out[by_place] = np.rint(np.cumsum(change)[:n]).astype(np.int64)
    return out


_FEW = 64  # rows that are summed one by one


class _Held(NamedTuple):
    """What each of n groups reaches, as columns of spans of places, and what each column weighs.

    Resources that two groups may reach are a column each; what a group alone reaches is one
    column with it.
    """

    indptr: NDArray[np.int64]  # (C + 1,)
    first: I4
    last: I4
    weight: NDArray[np.int64]  # (C,) pages of a memory object in 4 KiB, else 1
    place: I4  # (n,) of each group
    by_place: I4  # (n,) group at each place

    @property
    def size(self) -> F8:
        """(n,) weight of all that each group reaches."""
        n = len(self.place)
        each = np.repeat(self.weight, np.diff(self.indptr))
        change = np.zeros(n + 1, np.int64)
        np.add.at(change, self.first, each)
        np.add.at(change, self.last + 1, -each)
        return np.cumsum(change)[self.place].astype(np.float64)

    def sums(self, rows: I4 | None, cols: I4 | None) -> csr_array:
        """Return the weight that each of *rows* and each of *cols* have in common."""
        n = len(self.place)
        if rows is not None and len(rows) <= _FEW:
            dense = np.empty((len(rows), n), np.int64)
            dense[:, self.by_place] = reach.row_sums(*self[:4], self.place[rows], n)
            return csr_array(dense if cols is None else dense[:, cols])
        some, again = _once(n, rows)
        columns = self.place if cols is None else self.place[cols]
        indptr, indices, data = reach.meeting_sums(*self[:4], self.place[some], columns, n)
        # With an indptr of int64 SciPy would turn the indices into int64 too.
        narrow = indptr.astype(indices.dtype) if len(data) < 1 << 31 else indptr
        out = csr_array((data, indices, narrow), shape=(len(some), len(columns)))
        return out if again is None else csr_array(out[again])

    def ratios(self, rows: I4 | None, cols: I4 | None) -> F8:
        """Return what each pair has in common by what either has; NaN where neither has any."""
        n = len(self.place)
        some, again = _once(n, rows)
        columns = self.place if cols is None else self.place[cols]
        out = reach.meeting_ratios(*self[:4], self.place[some], columns, n)
        return out if again is None else out[again]


def _once(n: int, rows: I4 | None) -> tuple[I4, I4 | None]:
    """*rows*, or all n, without repetition, and where each is then found if that changed them."""
    if rows is None:
        return np.arange(n, dtype=np.int32), None
    some, again = np.unique(rows, return_inverse=True)
    if len(some) == len(rows):
        return rows, None
    return some, again.astype(np.int32)


def _held(engine: Engine, types: frozenset[str], group: I4, n: int) -> _Held | None:
    """What each group certainly reaches of the types; kept. None where a weight is no integer."""
    index = engine.index
    each = len(group) == n  # every PD is its own group

    def make() -> _Held | None:
        way, pages = Way(ANY), engine.graph.pages
        wanted = _of_types(engine, types) & (engine.graph.kind == Kind.RESOURCE)
        if (pages[wanted] != np.floor(pages[wanted])).any() or (pages[wanted] < 0).any():
            return None
        if each:
            columns = certain_spans(index, way, Kind.RESOURCE)
            columns = columns.take(np.flatnonzero(wanted[columns.nodes]))
            place, by_place = index.place, index.by_place
        else:
            only = np.flatnonzero(shareable(index) & wanted).astype(np.int32)
            columns = spans(
                index, way, Kind.RESOURCE, None, only=only, value=group.astype(np.int32)
            )
            place = by_place = np.arange(n, dtype=np.int32)
        nodes, pds = reached_alone(index, way, wanted)
        alone = np.bincount(group[pds], weights=pages[nodes], minlength=n).astype(np.int64)
        owners = np.flatnonzero(alone)
        at = place[owners].astype(np.int32)
        end = columns.indptr[-1]
        return _Held(
            np.concatenate([columns.indptr, end + 1 + np.arange(len(owners))]),
            np.concatenate([columns.first, at]),
            np.concatenate([columns.last, at]),
            np.concatenate([pages[columns.nodes].astype(np.int64), alone[owners]]),
            place,
            by_place,
        )

    made: _Held | None = engine.once(("held", types, None if each else group.tobytes()), make)
    return made


def rsi_matrix(
    engine: Engine, type_name: str, group: I4, n: int, rows: I4 | None, cols: I4 | None
) -> F8:
    """Return |A & B| / |A | B| of the resources of one type, by pages; NaN of two empty sets.

    Of what is certain: resources that could not be seen are in neither set.

    Raises
    ------
    QueryError
        The type is not known.

    """
    if not isinstance(type_name, str):
        raise QueryError(f"rsi wants one type, not {type_name!r}")
    types = types_of(engine.graph, type_name) or frozenset()
    held = _held(engine, types, group, n)
    if held is not None:
        out, size = held.ratios(rows, cols), held.size
    else:
        out, size = _ratios(engine, types, group, n, rows, cols)
    kernel = engine.kernel
    if kernel is not None:  # it reaches all of them
        everything = (engine.graph.kind == Kind.RESOURCE) & _of_types(engine, types)
        total = float(engine.graph.pages[everything].sum())
        at = int(group[kernel])
        row_rows = np.arange(n) if rows is None else rows
        row_cols = np.arange(n) if cols is None else cols
        share = np.full(n, np.nan) if total == 0 else size / total
        if total > 0:
            share[at] = 1.0
        out[row_rows == at, :] = share[row_cols]
        out[:, row_cols == at] = share[row_rows][:, None]
    return out


def _ratios(
    engine: Engine, types: frozenset[str], group: I4, n: int, rows: I4 | None, cols: I4 | None
) -> tuple[F8, F8]:
    """Return `_Held.ratios` and its size where weights are no integers: of small models."""
    matrix, pages = weights(engine, types, group, n)
    left = matrix if rows is None else matrix[rows]
    right = matrix if cols is None else matrix[cols]
    both: F8 = np.asarray((csr_array(left * pages[None, :]) @ right.T).toarray(), np.float64)
    size = np.asarray(matrix @ pages, np.float64).ravel()
    either = (
        (size if rows is None else size[rows])[:, None]
        + (size if cols is None else size[cols])[None, :]
        - both
    )
    out = np.full(either.shape, np.nan)
    np.divide(both, either, out=out, where=either > 0)
    return out, size


def _of_types(engine: Engine, types: frozenset[str] | None) -> NDArray[np.bool_]:
    mask = type_mask(engine.graph, types)
    if mask is None:
        return np.ones(len(engine.graph.kind), bool)
    return mask[engine.graph.type]


def rsi_of_sets(a: Nodes, b: Nodes, pages: F8) -> float:
    """Return the index of two sets of nodes."""
    both = float(pages[np.intersect1d(a.nodes, b.nodes, assume_unique=True)].sum())
    either = float(pages[distinct(np.concatenate([a.nodes, b.nodes]))].sum())
    return both / either if either > 0 else float("nan")


# -- fault radius


def requests(engine: Engine, types: str | Iterable[str] | None, *, kernel: bool) -> tuple[I4, I4]:
    """Return REQUEST edges after flattening, as (src, dst) rows, once each.

    A PD that directly holds a resource, which is a direct member of a space, asks each PD that
    holds the space as its server. With *kernel* the kernel serves every space.

    Raises
    ------
    QueryError
        A type is not known.

    """
    graph, index = engine.graph, engine.index
    wanted = types_of(graph, types, requests=True)
    mask = type_mask(graph, wanted)
    asked = index.kinds[Edge.REQUEST]
    ids = np.arange(len(asked))
    keep = Way(ANY).passes(asked, ids, Edge.REQUEST) & ((asked.flags & POTENTIAL) == 0)
    if wanted is not None:
        named = np.array([*(_space_type(engine, label, wanted) for label in graph.labels), False])
        keep &= named[asked.label]
    src, dst = [asked.src[keep]], [asked.dst[keep]]

    subset = index.kinds[Edge.SUBSET]
    ids = np.arange(len(subset))
    part = Way(ANY).passes(subset, ids, Edge.SUBSET) & ((subset.flags & POTENTIAL) == 0)
    part &= (graph.kind[subset.src] == Kind.RESOURCE) & (graph.kind[subset.dst] == Kind.SPACE)
    if mask is not None:
        part &= mask[graph.type[subset.dst]]
    hold = index.kinds[Edge.HOLD]
    ids = np.arange(len(hold))
    real = Way(ANY).passes(hold, ids, Edge.HOLD) & ((hold.flags & POTENTIAL) == 0)
    served = real & ((hold.flags & SERVER) != 0) & (graph.kind[hold.dst] == Kind.SPACE)
    direct = real & (graph.kind[hold.dst] == Kind.RESOURCE)

    n, p = index.n_nodes, index.n_pds

    def incidences(rows: I4, cols: I4, shape: tuple[int, int]) -> csr_array:
        return csr_array((np.ones(len(rows), np.int8), (rows, cols)), shape=shape).astype(bool)

    holds = incidences(hold.src[direct], hold.dst[direct], (p, n))
    member = incidences(subset.src[part], subset.dst[part], (n, n))
    spaces = csr_array(holds @ member)  # which PD uses which space
    users, servers = (spaces @ incidences(hold.dst[served], hold.src[served], (n, p))).nonzero()
    src.append(users.astype(np.int32))
    dst.append(servers.astype(np.int32))
    if kernel and index.kernel is not None:
        users = np.unique(spaces.nonzero()[0]).astype(np.int32)
        src.append(users)
        dst.append(np.full(len(users), index.kernel, np.int32))
    pairs = distinct(np.concatenate(src).astype(np.int64) * max(p, 1) + np.concatenate(dst))
    out_src, out_dst = np.divmod(pairs, max(p, 1))
    good = out_src != out_dst
    if not kernel and index.kernel is not None:
        good &= (out_src != index.kernel) & (out_dst != index.kernel)
    return out_src[good].astype(np.int32), out_dst[good].astype(np.int32)


def _space_type(engine: Engine, label: str, wanted: frozenset[str]) -> bool:
    """Whether what a REQUEST is asked for counts: a type, or a space of such a type."""
    if label in wanted:
        return True
    node = engine.graph.names.find(label)
    if node is None or engine.graph.kind[node] != Kind.SPACE:
        return False
    return engine.graph.types[engine.graph.type[node]] in wanted


class _Depths(NamedTuple):
    """How many REQUESTs away PDs are, by classes of PDs that ask the same ones."""

    of: I4  # (P,) class of each PD
    depth: NDArray[np.float32]  # (U, S) least steps from a PD of the class; inf of none
    column: I4  # (P,) column of each PD that is asked by any; -1


def _depths(engine: Engine, types: frozenset[str] | None, *, kernel: bool) -> _Depths:
    """Return the depths of all PDs; kept. A path ends at the kernel. O(U * requests)."""
    p = max(engine.n, 1)

    def make() -> _Depths:
        src, dst = requests(engine, types, kernel=kernel)  # rising
        order = np.argsort(src, kind="stable")
        src, dst = src[order], dst[order]
        starts = np.searchsorted(src, np.arange(p + 1))
        number: dict[bytes, int] = {}
        of = np.array(
            [number.setdefault(dst[a:b].tobytes(), len(number)) for a, b in pairwise(starts)],
            np.int32,
        )
        _, first = np.unique(of, return_index=True)  # a PD of each class
        counts = (starts[1:] - starts[:-1])[first]
        fresh = np.repeat(np.arange(len(first)) * p, counts) + dst[gathered(starts[first], counts)]
        servers, column = np.unique(dst), np.full(p, -1, np.int32)
        column[servers] = np.arange(len(servers), dtype=np.int32)
        out = np.full((len(first), len(servers)), np.inf, np.float32)
        d = 1
        while len(fresh):
            at, z = np.divmod(fresh, p)
            out[at, column[z]] = d
            if engine.kernel is not None:
                fresh, z = fresh[z != engine.kernel], z[z != engine.kernel]
            counts = starts[z + 1] - starts[z]
            found = distinct(np.repeat(fresh - z, counts) + dst[gathered(starts[z], counts)])
            at, z = np.divmod(found, p)
            fresh = found[np.isinf(out[at, column[z]])]
            d += 1
        return _Depths(of, out, column)

    made: _Depths = engine.once(("depths", types, kernel), make)
    return made


def _of_set(known: _Depths, rows: I4) -> NDArray[np.float32]:
    """(S,) least depth from any of *rows*; inf of those that are of them."""
    some = known.depth[distinct(known.of[rows])]
    out: NDArray[np.float32] = some.min(axis=0, initial=np.inf)
    own = known.column[rows]
    out[own[own >= 0]] = np.inf
    return out


def fault_radius(
    engine: Engine, x: I4, y: I4, types: str | Iterable[str] | None, *, kernel: bool
) -> float:
    """Return the least depth at which a third PD is asked by both; inf if none is.

    Parameters
    ----------
    engine
        Of the graph.
    x, y
        Rows of the members of either side.
    types
        Of the spaces that are flattened and asked for.
    kernel
        Whether the kernel counts, as the server of every space.

    """
    known = _depths(engine, types_of(engine.graph, types, requests=True), kernel=kernel)
    a, b = _of_set(known, x), _of_set(known, y)
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.minimum(a[both], b[both]).min(initial=np.inf))


def fault_radii(
    engine: Engine,
    types: str | Iterable[str] | None,
    group: I4,
    n: int,
    *,
    kernel: bool,
    rows: I4,
    cols: I4,
) -> F8:
    """Return the fault radius of every pair of rows and columns, of n groups of PDs.

    Groups that ask alike, and that nobody asks, are worked out once: O(kinds**2 * PDs asked), and
    8 bytes for each pair.
    """
    known = _depths(engine, types_of(engine.graph, types, requests=True), kernel=kernel)
    order = np.argsort(group, kind="stable").astype(np.int32)
    starts = np.searchsorted(group[order], np.arange(n + 1))
    asked = distinct(np.concatenate([rows, cols]))
    kinds: dict[bytes, int] = {}
    depths: list[NDArray[np.float32]] = []
    of = np.zeros(n, np.int32)
    for g in asked.tolist():
        members = order[starts[g] : starts[g + 1]]
        own = known.column[members]
        key = distinct(known.of[members]).tobytes() + b"|" + distinct(own[own >= 0]).tobytes()
        if key not in kinds:
            kinds[key] = len(depths)
            depths.append(_of_set(known, members))
        of[g] = kinds[key]
    small = np.full((len(depths), len(depths)), np.inf)
    table = np.array(depths, np.float32).reshape(len(depths), known.depth.shape[1])
    for k, mine in enumerate(depths):
        met = np.flatnonzero(np.isfinite(mine))
        if len(met):
            theirs = table[:, met]
            least = np.minimum(theirs, mine[met][None, :])
            small[k] = np.where(np.isinf(theirs), np.inf, least).min(axis=1)
    return small[np.ix_(of[rows], of[cols])]
