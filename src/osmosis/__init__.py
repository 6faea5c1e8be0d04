"""Who can affect a Linux process, whom can it affect, and through what.

``osmosis.capture()`` records the host, ``.model()`` makes the OSmosis graph of it, and the
model answers: ``model.tcb(pid)``, ``model.impact_boundary(pid)``, ``model.controllers(pid)``.
"""

from osmosis.archive import load
from osmosis.capture.host import capture
from osmosis.errors import (
    AccessDenied,
    FormatError,
    MalformedProc,
    OsmosisError,
    ProcessError,
    ProcessGone,
    QueryError,
    SelectorError,
    SnapshotError,
)
from osmosis.formats.csv import read_csv, write_csv
from osmosis.graph.pds import PD
from osmosis.graph.relation import Relation
from osmosis.graph.sets import Answer, Nodes, PDSet
from osmosis.model import Model
from osmosis.query.compare import compare
from osmosis.query.comparison import Comparison
from osmosis.query.diff import Difference, diff
from osmosis.query.explain import Witness
from osmosis.query.isolation import Isolation
from osmosis.snapshot import Coverage, Snapshot

__version__ = "0.1.0"

__all__ = [
    "PD",
    "AccessDenied",
    "Answer",
    "Comparison",
    "Coverage",
    "Difference",
    "FormatError",
    "Isolation",
    "MalformedProc",
    "Model",
    "Nodes",
    "OsmosisError",
    "PDSet",
    "ProcessError",
    "ProcessGone",
    "QueryError",
    "Relation",
    "SelectorError",
    "Snapshot",
    "SnapshotError",
    "Witness",
    "capture",
    "compare",
    "diff",
    "load",
    "read_csv",
    "write_csv",
]
