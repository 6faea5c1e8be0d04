"""Which layers separate two PDs: separated, shared or unknown, each with its evidence.

A layer is a fact of each PD that can be compared: equal is shared, different is separated, and
what was not read is unknown: missing data is no isolation. Facts come from ``Graph.layers``: by
layer ``{"value": (P,), "source": text, "names": {value: text}}``, -1 for "not known"; or, where
equal and different do not say it all, ``{"value": (P,) class, "matrix": f, "source": text}``,
where f takes n classes and returns (n, n) bool separated, (n, n) bool separated or not known,
and n texts. Without a fact they come from the spaces of the layer's types that both hold. The
kernel makes every layer and stands outside none: it shares all of them with everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from osmosis.errors import QueryError
from osmosis.graph.graph import ANY, POTENTIAL, Edge, Graph, Kind
from osmosis.graph.pds import PDTable, escape
from osmosis.graph.relation import Relation

__all__ = [
    "LAYERS",
    "PAPER_LAYERS",
    "Isolation",
    "LayerAnswer",
    "Score",
    "isolation",
    "isolation_matrix",
    "scores",
]

# Each layer, and the types of space that tell it where the graph has no fact of its own.
LAYERS: Mapping[str, tuple[str, ...]] = {
    "mnt": ("MNT",),
    "ipc": ("IPC",),
    "net": ("NET",),
    "pid": ("PID",),
    "user": ("USER",),
    "uts": ("UTS",),
    "time": ("TIME",),
    "cgroup": ("CGROUP", "PAGE_QUOTA", "PID_QUOTA", "CPU_QUOTA", "IO_QUOTA"),
    "uid": (),
    "mac": ("APPARMOR_PROFILE", "LSM_LABEL"),
    "seccomp": (),
    "rootfs": (),
    "vm": (),
}
# The seven that the paper's tool counts.
PAPER_LAYERS = ("mnt", "ipc", "net", "cgroup", "mac", "seccomp", "vm")

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LayerAnswer:
    """What one layer does between two PDs."""

    state: str  # "separated", "shared" or "unknown"
    evidence: str
    source: str = ""

    def __bool__(self) -> bool:
        """Whether the layer separates them; an error if that is unknown."""
        if self.state == "unknown":
            raise QueryError(f"undecided, ask .state instead: {escape(self.evidence)}")
        return self.state == "separated"

    def __str__(self) -> str:
        return f"{self.state}: {escape(self.evidence)}"


class Score(NamedTuple):
    """How many layers separate, out of how many; what is unknown may or may not."""

    separated: int
    unknown: int
    layers: int

    def __str__(self) -> str:
        doubt = f" (+{self.unknown} unknown)" if self.unknown else ""
        return f"{self.separated}/{self.layers}{doubt}"


class Isolation(Mapping[str, LayerAnswer]):
    """The layers between two PDs, by name, in the order of ``LAYERS``."""

    def __init__(self, answers: Mapping[str, LayerAnswer]) -> None:
        self._answers = dict(answers)

    def __getitem__(self, layer: str) -> LayerAnswer:
        return self._answers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def __repr__(self) -> str:
        said = ", ".join(f"{name}: {answer.state}" for name, answer in self.items())
        return f"<Isolation {self.full_score}: {said}>"

    @property
    def score(self) -> Score:
        """As the paper's tool counts: seven layers."""
        return self._count(PAPER_LAYERS)

    @property
    def full_score(self) -> Score:
        """Of all layers."""
        return self._count(tuple(self._answers))

    def _count(self, layers: tuple[str, ...]) -> Score:
        states = [self._answers[name].state for name in layers]
        return Score(states.count("separated"), states.count("unknown"), len(layers))


@dataclass(frozen=True, slots=True)
class _Facts:
    """One layer of all PDs by classes: what PDs of one class have is told once."""

    of: NDArray[np.int32]  # class of each row that was asked for
    separated: Bools  # (K, K) for certain
    maybe: Bools  # (K, K) separated, or not known
    says: tuple[str, ...]  # (K,)
    source: str


def _by_value(fact: Mapping[str, Any], rows: NDArray[Any] | slice) -> _Facts:
    values = np.asarray(fact["value"])[rows]
    distinct, of = np.unique(values, return_inverse=True)
    if "matrix" in fact:
        separated, maybe, texts = fact["matrix"](distinct)
        return _Facts(of.astype(np.int32), separated, maybe, texts, str(fact["source"]))
    known = distinct != -1
    differ = ~np.eye(len(distinct), dtype=bool)
    both = known[:, None] & known[None, :]
    names = fact.get("names", {})
    says = tuple(str(names.get(v, v)) if v != -1 else "not known" for v in distinct.tolist())
    return _Facts(
        of.astype(np.int32), differ & both, differ & both | ~both, says, str(fact["source"])
    )


def _by_spaces(graph: Graph, types: tuple[str, ...]) -> _Facts:
    """Layer by the sets of spaces that PDs hold; one that holds none is not known."""
    n = graph.n_pds
    wanted = np.array([name in types for name in graph.types] + [False])
    edges = graph.edges
    use = (edges.kind == Edge.HOLD) & (graph.kind[edges.dst] == Kind.SPACE)
    use &= wanted[graph.type[edges.dst]] & ((edges.flags & POTENTIAL) == 0)
    use = np.flatnonzero(use & ((edges.maybe & ANY) != 0))
    certain = (edges.perm[use] & ANY) != 0
    sure: list[list[int]] = [[] for _ in range(n)]
    may: list[list[int]] = [[] for _ in range(n)]
    ends = zip(edges.src[use].tolist(), edges.dst[use].tolist(), certain.tolist(), strict=True)
    for src, dst, is_certain in ends:
        may[src].append(dst)
        if is_certain:
            sure[src].append(dst)
    unseen = len(graph.kind)  # a node that stands for one that was not seen at all
    for name in graph.unseen.keys() & set(types):  # it may hold any space of that type
        every = np.flatnonzero(wanted[graph.type] & (graph.kind == Kind.SPACE)).tolist()
        for row in np.flatnonzero(graph.unseen[name] & ANY).tolist():
            may[row] += [*every, unseen]
    keys = [(frozenset(s), frozenset(m)) for s, m in zip(sure, may, strict=True)]
    classes = list(dict.fromkeys(keys))
    at = {key: i for i, key in enumerate(classes)}

    def held(sets: Iterable[frozenset[int]]) -> csr_array:
        """(K, N + 1) csr_array of 1: which sets have which spaces."""
        listed = [sorted(one) for one in sets]
        indptr = np.concatenate([[0], np.cumsum([len(one) for one in listed])])
        columns = np.array([space for one in listed for space in one], np.int64)
        ones = np.ones(len(columns), np.int32)
        return csr_array((ones, columns, indptr), shape=(len(listed), unseen + 1))

    has, may_have = held(s for s, _ in classes), held(m for _, m in classes)
    some = np.diff(has.indptr) > 0
    separated = (may_have @ may_have.T).toarray() == 0
    separated &= some[:, None] & some[None, :]
    maybe = (has @ has.T).toarray() == 0
    says = tuple(
        ", ".join(sorted(escape(graph.names[s]) for s in a)) or "not known" for a, _ in classes
    )
    of = np.array([at[key] for key in keys], np.int32)
    return _Facts(of, separated, maybe, says, "the spaces that they hold")


def _facts(graph: Graph, layer: str, rows: NDArray[Any] | slice) -> _Facts:
    if layer not in LAYERS:
        raise QueryError(f"no layer {escape(str(layer))!r}; known are {', '.join(LAYERS)}")
    fact = graph.layers.get(layer)
    if fact is not None:
        return _by_value(fact, rows)
    found = _by_spaces(graph, LAYERS[layer])
    return replace(found, of=found.of[rows])


def isolation(graph: Graph, x: NDArray[np.int32], y: NDArray[np.int32]) -> Isolation:
    """Every layer between two PDs, or two sets: separated only if every pair of them is.

    Parameters
    ----------
    graph
        The system.
    x, y
        Rows of PDs.

    Returns
    -------
    Isolation
        O(P + pairs) for each layer.

    """
    return Isolation({layer: _between(graph, layer, x, y) for layer in LAYERS})


def _between(graph: Graph, layer: str, x: NDArray[np.int32], y: NDArray[np.int32]) -> LayerAnswer:
    if graph.kernel is not None and (graph.kernel in x or graph.kernel in y):
        return LayerAnswer("shared", "the kernel, which makes the layer, is outside none")
    if np.intersect1d(x, y).size:
        return LayerAnswer("shared", "one protection domain")
    facts = _facts(graph, layer, np.concatenate([x, y]))
    a, b = np.unique(facts.of[: len(x)]), np.unique(facts.of[len(x) :])
    at = np.ix_(a, b)
    for state, found in (
        ("shared", ~facts.maybe[at]),
        ("unknown", ~facts.separated[at]),
        ("separated", facts.separated[at]),
    ):
        if found.any():
            i, j = np.argwhere(found)[0]
            mine, its = facts.says[a[i]], facts.says[b[j]]
            evidence = mine if mine == its else f"{mine} | {its}"
            return LayerAnswer(state, evidence, facts.source)
    return LayerAnswer("unknown", "no protection domain to compare")


def isolation_matrix(
    graph: Graph,
    layer: str,
    *,
    group: NDArray[np.int32] | None = None,
    pds: PDTable | None = None,
) -> Relation:
    """All pairs of one layer: ``S[i, j]``, the layer separates i and j for certain.

    ``.unknown`` are the pairs that it may separate. Class form, O(P + K**2) for K distinct facts.

    Parameters
    ----------
    graph
        The system.
    layer
        One of ``LAYERS``.
    group, pds
        (P,) group of each PD, and the table of the G groups, which then are the rows: separated
        only if every pair of their members is.

    Raises
    ------
    QueryError
        There is no such layer.

    """
    facts = _facts(graph, layer, slice(None))
    kernel = graph.kernel
    if group is None or pds is None:
        made = Relation.from_classes(facts.of, facts.separated, facts.maybe, pds=graph.pds)
    else:
        has = np.zeros((len(pds), len(facts.says)), np.float32)
        has[group, facts.of] = 1

        def every(holds: Bools) -> Bools:
            out: Bools = has @ (~holds).astype(np.float32) @ has.T == 0
            return out

        made = Relation.from_dense(every(facts.separated), every(facts.maybe), pds=pds)
        kernel = None if kernel is None else int(group[kernel])
    return made if kernel is None else made.with_row_and_column(kernel, row=False, column=False)


def scores(
    relations: Iterable[Relation], rows: NDArray[np.int32], cols: NDArray[np.int32]
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return how many of the layers' *relations* hold of each row and column, and how many may.

    PDs with equal facts in every layer are compared once; two bytes for each pair.
    """
    known = list(relations)
    forms = [relation.classes for relation in known]
    classed = [form for form in forms if form is not None]
    if len(classed) < len(known):  # groups
        separated, unknown = np.zeros((2, len(rows), len(cols)), np.int8)
        for relation in known:
            for k, row in enumerate(rows.tolist()):
                sure, may = relation.row_masks(row)
                separated[k] += sure[cols]
                unknown[k] += (may & ~sure)[cols]
        return separated, unknown
    kinds, of = np.unique(np.stack([form[0] for form in classed]), axis=1, return_inverse=True)
    small = np.zeros((2, kinds.shape[1], kinds.shape[1]), np.int8)
    for (_, yes, maybe), mine in zip(classed, kinds, strict=True):
        pairs = np.ix_(mine, mine)
        small[0] += yes[pairs]
        small[1] += (maybe & ~yes)[pairs]
    of = of.reshape(-1)
    separated, unknown = (one[of[rows]][:, of[cols]] for one in small)
    itself = rows[:, None] == cols[None, :]
    separated[itself] = unknown[itself] = 0
    return separated, unknown
