"""``osmosis isolation A B``: the layers that separate two."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from osmosis.cli import coverage
from osmosis.cli.describe import name_of, pd_json, pick
from osmosis.cli.exits import Code, answering
from osmosis.cli.options import By, Json, Other, Selector, Snapshot
from osmosis.cli.source import open_source
from osmosis.cli.terminal import print_json, print_lines, print_table
from osmosis.graph.pds import PD
from osmosis.model import Model
from osmosis.query.isolation import isolation as layers_between

__all__ = ["isolation"]


@answering
def isolation(
    selector: Selector,
    other: Other,
    snapshot: Snapshot = None,
    json: Json = False,
    by: By = None,
) -> Code:
    """Show which layers separate two: namespaces, cgroup, uid, LSM, seccomp, root ..."""
    source = open_source(snapshot, by)
    x, y = pick(source.model, selector), pick(source.model, other)
    layers = layers_between(source.model.data, _members(source.model, x), _members(source.model, y))
    found = coverage.gaps(source, [x.row, y.row])
    score = layers.full_score
    if json:
        print_json(
            {
                "question": "isolation",
                "of": pd_json(x),
                "by": pd_json(y),
                "score": dict(layers.score._asdict()),
                "full_score": dict(score._asdict()),
                "layers": {name: asdict(answer) for name, answer in layers.items()},
                "coverage": coverage.to_json(source, found),
            }
        )
    else:
        print_lines(f"{name_of(x)} and {name_of(y)}: separated by {score} layers", "")
        print_table(
            [("LAYER", "left"), ("STATE", "left"), ("EVIDENCE", "left")],
            [(name, answer.state, answer.evidence) for name, answer in layers.items()],
        )
    return Code.INCOMPLETE if found or score.unknown else Code.ANSWERED


def _members(model: Model, pd: PD) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Rows of the graph that a PD or a group stands for."""
    below = model.pds.members
    rows = [pd.row] if below is None else np.flatnonzero(below[1] == pd.row)
    return np.asarray(rows, np.int32)
