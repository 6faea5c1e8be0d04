"""How a relation hands its nodes and edges to ``build``: parts that are numbered together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import Edges, Kind, Rule, Runs
from osmosis.graph.names import Block

__all__ = ["NodeBlock", "Parts"]

Note = Callable[[int], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class NodeBlock:
    """Consecutive nodes of one kind and type."""

    first: int
    kind: Kind
    type: str
    names: Block
    pages: NDArray[np.float64] | None  # (n,) weights in 4 KiB, None for 1
    note: Note | None  # (position in the block) -> what is told of the node


@dataclass(slots=True, eq=False)
class Parts:
    """Everything that relations have added so far; PDs are nodes 0 .. n_pds - 1."""

    n_pds: int
    blocks: list[NodeBlock] = field(default_factory=list)
    edges: list[Edges] = field(default_factory=list)
    runs: Runs | None = None
    rules: list[Rule] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    unseen: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)

    @property
    def n_nodes(self) -> int:
        """Nodes so far, PDs included."""
        last = self.blocks[-1] if self.blocks else None
        return self.n_pds if last is None else last.first + len(last.names)

    def nodes(
        self,
        kind: Kind,
        node_type: str,
        names: Block,
        *,
        pages: NDArray[np.float64] | None = None,
        note: Note | None = None,
    ) -> int:
        """Add nodes; returns the first one's number."""
        first = self.n_nodes
        self.blocks.append(NodeBlock(first, kind, node_type, names, pages, note))
        return first

    def rule(self, text: str, source: str) -> int:
        """Number of a rule, for the ``rule`` column of edges."""
        rule = Rule(text, source)
        if rule not in self.rules:
            self.rules.append(rule)
        return self.rules.index(rule)

    def label(self, text: str) -> int:
        """Number of a label, for the ``label`` column of edges."""
        if text not in self.labels:
            self.labels.append(text)
        return self.labels.index(text)

    def unseen_by(self, node_type: str, rows: NDArray[Any], mask: int) -> None:
        """PDs *rows* may hold more of *node_type* than was read, with *mask* at most."""
        masks = self.unseen.setdefault(node_type, np.zeros(self.n_pds, np.uint8))
        masks[rows] |= np.uint8(mask)


@dataclass(frozen=True, slots=True, eq=False)
class BlockNotes:
    """``graph.names.Notes`` over the blocks' own functions."""

    blocks: tuple[NodeBlock, ...]

    def get(self, node: int, default: Any, /) -> Any:
        """Return what is known of *node*, or *default*."""
        for block in self.blocks:
            if block.first <= node < block.first + len(block.names):
                return block.note(node - block.first) if block.note else default
        return default
