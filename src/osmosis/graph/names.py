"""The names of nodes, made when asked for: a million of them is a few arrays of numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Block", "Names", "Notes"]


class Notes(Protocol):
    """What is told of a node beyond its name: ``notes.get(node, {})`` is a small mapping."""

    def get(self, node: int, default: Any, /) -> Any:
        """Return what is known of *node*, or *default*."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Names of consecutive nodes: ``template`` filled with one number from each column.

    ``Block("VMR_{}_{}", (mm, index))`` names ``VMR_812_3``. A block of given names has
    template ``"{}"`` and one object array of str.
    """

    template: str
    columns: tuple[NDArray[Any], ...]

    def __len__(self) -> int:
        return len(self.columns[0])


class Names(Sequence[str]):
    """Names of all nodes, block after block; ``names[node]``, and ``names.find(name)``."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(blocks)
        self._starts = np.concatenate([[0], np.cumsum([len(b) for b in blocks])]).astype(np.int64)
        self._indices: dict[int, dict[str, int]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, node: Any) -> Any:
        if isinstance(node, slice):
            return [self[i] for i in range(*node.indices(len(self)))]
        if not 0 <= node < len(self):
            raise IndexError(node)
        k = int(np.searchsorted(self._starts, node, "right")) - 1
        at = int(node) - int(self._starts[k])
        block = self.blocks[k]
        return block.template.format(*(column[at] for column in block.columns))

    def find(self, name: str) -> int | None:
        """Node of that name, or None. O(N) numbers compared; text columns are indexed once."""
        for k, block in enumerate(self.blocks):
            at = self._find_in(k, block, name)
            if at is not None:
                return int(self._starts[k]) + at
        return None

    def _find_in(self, k: int, block: Block, name: str) -> int | None:
        if any(column.dtype.kind not in "iu" for column in block.columns):
            index = self._indices.get(k)
            if index is None:
                start = int(self._starts[k])
                index = self._indices[k] = {}
                for at in range(len(block)):
                    index.setdefault(self[start + at], at)
            return index.get(name)
        pattern = re.escape(block.template).replace(re.escape("{}"), "(-?[0-9]{1,20})")
        found = re.fullmatch(pattern, name)
        if found is None or not len(block):
            return None
        hit = np.ones(len(block), bool)
        for column, digits in zip(block.columns, found.groups(), strict=True):
            hit &= column == int(digits)
        for at in np.flatnonzero(hit)[:1].tolist():
            if self[int(self._starts[k]) + at] == name:  # "VMR_012" is not "VMR_12"
                return int(at)
        return None
