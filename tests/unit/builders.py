"""A Graph from a readable list of edges, for tests.

    graph(
        "a HOLD v1 RW", "v1 MAP mo:MO RW", "b HOLD v2:VMR R private",
        "a REQUEST b", "a HOLD b verb=kill", pds=["a", "b"], kernel="k",
    )

A node is ``name`` or ``name:TYPE``; a type that is written in ``spaces`` makes it a space. A
name in *pds* (or the kernel) is a PD. Permissions are letters, ``-`` for none (ANY only),
nothing for all; ``maybe=RW`` adds possible letters; ``maybe!`` makes the edge itself uncertain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osmosis.graph.graph import (
    ALL,
    ANY,
    POTENTIAL,
    PRIVATE,
    SERVER,
    Edge,
    Edges,
    Graph,
    Kind,
    R,
    Rule,
    Runs,
    W,
    X,
    no_runs,
)
from osmosis.graph.names import Block, Names
from osmosis.graph.pds import PDTable
from osmosis.graph.relation import Control, EdgeControl, NoControl
from osmosis.model import Model

LETTERS = {"R": R, "W": W, "X": X}
FLAGS = {"private": PRIVATE, "potential": POTENTIAL, "server": SERVER}
SPACES = ("SPACE", "MNT", "NET", "FILESYSTEM", "ADDRESS_SPACE", "PHYSICAL_MEMORY")


def mask(letters: str) -> int:
    return ANY | sum(LETTERS[c] for c in letters if c != "-")


def graph(
    *edges: str,
    pds: Sequence[str],
    kernel: str | None = None,
    spaces: Sequence[str] = SPACES,
    pages: Mapping[str, float] | None = None,
    unseen: Mapping[str, Mapping[str, str]] | None = None,
    nodes: Sequence[str] = (),
    control: Control | None = None,
    runs: Runs | None = None,
    columns: Mapping[str, Any] | None = None,
) -> Graph:
    names = list(pds)
    if kernel is not None:
        names = [kernel, *(name for name in pds if name != kernel)]
    n_pds = len(names)
    row = {name: i for i, name in enumerate(names)}
    types: list[str] = []
    type_of = dict.fromkeys(range(n_pds), -1)

    def node(text: str) -> int:
        name, _, kind = text.partition(":")
        if name not in row:
            row[name] = len(names)
            names.append(name)
            type_of[row[name]] = number(kind or "RES")
        elif kind:
            type_of[row[name]] = number(kind)
        return row[name]

    def number(kind: str) -> int:
        if kind not in types:
            types.append(kind)
        return types.index(kind)

    for name in nodes:
        node(name)
    labels: list[str] = []
    columns_of: list[tuple[int, int, int, int, int, int, int]] = []
    for text in edges:
        source, kind, target, *rest = text.split()
        perm, maybe, flags, label = ALL, 0, 0, -1
        for word in rest:
            if word in FLAGS:
                flags |= FLAGS[word]
            elif word == "maybe!":
                maybe, perm = perm, 0
            elif word.startswith("maybe="):
                maybe = mask(word[6:])
            elif word.startswith(("verb=", "for=")):
                name = word.partition("=")[2]
                if name not in labels:
                    labels.append(name)
                label = labels.index(name)
            else:
                perm = mask(word)
        columns_of.append(
            (node(source), node(target), Edge[kind], perm, perm | maybe, flags, label)
        )
    table = np.array(columns_of, np.int64).reshape(-1, 7)
    made = Edges.of(
        table[:, 0],
        table[:, 1],
        0,
        perm=table[:, 3],
        maybe=table[:, 4],
        flags=table[:, 5],
        label=table[:, 6],
        rule=np.zeros(len(table)),
    )
    made = Edges(
        made.src,
        made.dst,
        table[:, 2].astype(np.uint8),
        *(getattr(made, c) for c in ("perm", "maybe", "flags", "label", "rule")),
    )
    kinds = np.array(
        [
            Kind.PD if i < n_pds else Kind.SPACE if types[type_of[i]] in spaces else Kind.RESOURCE
            for i in range(len(names))
        ],
        np.uint8,
    )
    if control is None:
        at = (made.kind == Edge.HOLD) & (made.dst < n_pds)
        verbs = [labels[i] if i >= 0 else "hold" for i in made.label[at].tolist()]
        control = (
            EdgeControl(n_pds, made.src[at], made.dst[at], verbs, (made.perm[at] & ANY) != 0)
            if at.any()
            else NoControl(n_pds)
        )
    weights = np.ones(len(names))
    for name, size in (pages or {}).items():
        weights[row[name]] = size
    blind = {}
    for type_name, masks in (unseen or {}).items():
        column = np.zeros(n_pds, np.uint8)
        for name, letters in masks.items():
            column[row[name]] = mask(letters)
        blind[type_name] = column
    given = dict(columns or {})
    given.setdefault("comm", names[:n_pds])
    given.setdefault("id", names[:n_pds])
    start = 0 if kernel is not None else 1
    return Graph(
        pds=PDTable(np.arange(start, start + n_pds), **given),
        kind=kinds,
        type=np.array([type_of[i] for i in range(len(names))], np.int16),
        types=tuple(types),
        names=Names([Block("{}", (np.array(names, object),))]),
        pages=weights,
        edges=made,
        runs=runs or no_runs(),
        labels=tuple(labels),
        rules=(Rule("a rule of the test", "a file of the test"),),
        control=control,
        kernel=0 if kernel is not None else None,
        unseen=blind,
    )


def model(*edges: str, **options: Any) -> Model:
    return Model(graph(*edges, **options))


def comms(answer: Any) -> set[str]:
    return {pd.comm for pd in answer}
