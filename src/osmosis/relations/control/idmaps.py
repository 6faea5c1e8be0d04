"""The uid and gid maps of user namespaces, in the collector's ids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.trees import Trees
from osmosis.schema import NO_ID
from osmosis.snapshot import Snapshot

__all__ = ["IdMaps"]

Extents = list[tuple[int, int, int]]  # (first inside, first outside, length)


def _parse(text: bytes) -> Extents:
    lines = (line.split() for line in text.splitlines())
    return [(int(a), int(b), int(n)) for a, b, n in (x for x in lines if len(x) == 3)]


class IdMaps:
    """What each user namespace maps; of the initial one, everything.

    /proc/pid/uid_map shows the outer ids as the reader's own namespace has them, so both
    sides are in the collector's ids, unless the reader is inside: then they are its parent's.
    """

    def __init__(self, snapshot: Snapshot, trees: Trees) -> None:
        self._initial = trees.initial_user
        self._maps: dict[tuple[int, str], Extents] = {}
        if not trees.outside:
            return  # the collector's ids and those of the maps need not be the same
        s = snapshot
        for row, uid, gid in zip(
            s["userns_namespace"].tolist(),
            s["userns_uid_map"].tolist(),
            s["userns_gid_map"].tolist(),
            strict=True,
        ):
            for kind, text in (("uid", uid), ("gid", gid)):
                if text >= 0:
                    self._maps[row, kind] = _parse(s.bytes(text))
        pairs = zip(s["process_ns_user"].tolist(), s["process_uid_map"].tolist(), strict=True)
        for row, text in set(pairs):
            if row >= 0 and text >= 0:
                self._maps.setdefault((row, "uid"), _parse(s.bytes(text)))

    def may_be_root(self, row: int, owner: int) -> bool:
        """Whether files of a process that is not dumpable, of that namespace, have that owner."""
        if owner == NO_ID:
            return True
        if row == self._initial:
            return owner == 0
        extents = self._maps.get((row, "uid"))
        if extents is None:
            return True
        outside = [b - a for a, b, n in extents if a <= 0 < a + n]
        return owner == (outside[0] if outside else 0)  # else GLOBAL_ROOT_UID

    def root(self, row: int, kind: str) -> int:
        """Id of the namespace's root, 0 if it maps none, NO_ID if its map was not read."""
        if row == self._initial:
            return 0
        extents = self._maps.get((row, kind))
        if extents is None:
            return NO_ID
        outside = [b - a for a, b, n in extents if a <= 0 < a + n]
        return outside[0] if outside else 0

    def mapped(
        self, row: int, kind: str, ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Yes and maybe, (len(ids),): the namespace has a name for the id."""
        if row == self._initial:
            return np.ones(len(ids), bool), np.ones(len(ids), bool)
        extents = self._maps.get((row, kind))
        if extents is None:
            return np.zeros(len(ids), bool), np.ones(len(ids), bool)
        yes = np.zeros(len(ids), bool)
        for _, outside, n in extents:
            yes |= (ids >= outside) & (ids < outside + n)
        yes &= ids != NO_ID
        return yes, yes | (ids == NO_ID)
