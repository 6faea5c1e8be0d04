"""The snapshots of an evaluation, as models: saved in the repository, or of a run just made."""

from __future__ import annotations

import json
from pathlib import Path

import osmosis
from benchmarks.evaluation.mechanisms import MECHANISMS
from benchmarks.evaluation.run import SAVED
from osmosis.model import Model
from osmosis.snapshot import Snapshot

__all__ = ["SAVED", "models", "reasons", "snapshots"]


def snapshots(folder: Path = SAVED) -> dict[str, Snapshot]:
    """Return the snapshot of each mechanism that has one, in the order of the comparison."""
    paths = {name: folder / f"{name}.osm" for name in MECHANISMS}
    return {name: osmosis.load(path) for name, path in paths.items() if path.exists()}


def models(folder: Path = SAVED) -> dict[str, Model]:
    """Return the models of these snapshots."""
    return {name: snapshot.model() for name, snapshot in snapshots(folder).items()}


def reasons(folder: Path) -> dict[str, str]:
    """Return why mechanisms have no snapshot, as the run that made *folder* said it."""
    found = {}
    for name in MECHANISMS:
        path = folder / f"{name}.json"
        said = json.loads(path.read_text()) if path.exists() else {}
        if why := said.get("cannot") or said.get("failed"):
            found[name] = why
    return found
