"""The trees of user and pid namespaces: who is above whom, and whose capability reaches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from osmosis.schema import NAMESPACES, NO_ID
from osmosis.snapshot import Snapshot

__all__ = ["Trees"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_INITIAL, _UNREADABLE = -1, -2
_INITIAL_USER = 0xEFFF_FFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h
_OVERFLOW = 65534
_USER, _PID = NAMESPACES.index("user"), NAMESPACES.index("pid")


class Trees:
    """Namespaces by row; row -1 is one that could not be read, so arrays have a last entry."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.kind = snapshot["namespace_kind"]
        self.parent = snapshot["namespace_parent"].astype(np.int64)
        self.user = snapshot["namespace_user"].astype(np.int64)
        self.owner = snapshot["namespace_owner"].astype(np.int64)
        self.n = len(self.kind)
        is_user = self.kind == _USER
        initial = np.flatnonzero(is_user & (self.parent == _INITIAL))
        self.initial_user = int(initial[0]) if len(initial) else None
        # A collector inside a user namespace reads every id that it has not as one number.
        mine = snapshot.host.get("user_ns")
        self.outside = mine == _INITIAL_USER if mine else self.initial_user is not None
        if not self.outside:
            overflow = snapshot.host.get("overflow_uid") or _OVERFLOW
            self.owner = np.where(self.owner == overflow, NO_ID, self.owner)

    def chain(self, row: int) -> tuple[list[int], bool]:
        """Return *row* and its ancestors, and whether the last of them is the initial one."""
        rows: list[int] = []
        while row >= 0 and row not in rows:
            rows.append(row)
            row = int(self.parent[row])
        return rows, row == _INITIAL and bool(rows)

    @property
    def blind(self) -> list[int]:
        """Namespaces of which it was not read who owns them, or what is above them."""
        tree = np.isin(self.kind, (_USER, _PID))
        at = (self.user == _UNREADABLE) | (tree & (self.parent == _UNREADABLE))
        return [int(row) for row in np.flatnonzero(at)]

    def above(self, row: int) -> list[int]:
        """Namespaces that ioctls lead to from it: its parents, and the user namespaces above."""
        found: list[int] = []
        todo = [row]
        while todo:
            at = todo.pop()
            for other in (int(self.parent[at]), int(self.user[at])):
                if other >= 0 and other not in found:
                    found.append(other)
                    todo.append(other)
        return found

    def sees(self) -> tuple[Bools, Bools]:
        """Yes and maybe, (N + 1, N + 1): pid namespace x is y, or an ancestor of y."""
        yes = np.zeros((self.n + 1, self.n + 1), bool)
        maybe = yes.copy()
        pids = np.flatnonzero(self.kind == _PID)
        initial = pids[self.parent[pids] == _INITIAL]
        for y in pids.tolist():
            rows, complete = self.chain(y)
            yes[rows, y] = True
            maybe[pids, y] = not complete
        maybe[:, -1] = maybe[-1, :] = True
        yes[initial, -1] = True  # the initial one is above every other
        for y in pids.tolist():
            yes[initial, y] = True
        return yes, maybe | yes

    def capable(self, user: Ints, euid: Ints, has: Bools) -> tuple[Bools, Bools]:
        """CAP(a, c, N): yes and maybe, (C, N + 1), of C credentials over every user namespace.

        cap_capable (security/commoncap.c): going up from N, at the caller's own namespace its
        effective set decides; and whoever made a namespace has every capability over it, from
        the parent that it was made in.

        Parameters
        ----------
        user, euid, has
            (C,) row of the user namespace, effective uid, and whether CapEff has the capability.

        """
        key = np.column_stack([user, euid, has.astype(np.int64)])
        distinct, inverse = np.unique(key, axis=0, return_inverse=True)
        user, euid, has = distinct[:, 0], distinct[:, 1], distinct[:, 2].astype(bool)
        yes = np.zeros((len(distinct), self.n + 1), bool)
        maybe = yes.copy()
        in_initial = np.zeros(len(user), bool)
        if self.initial_user is not None:
            in_initial = user == self.initial_user
        place = np.full(self.n + 1, -1)
        for n in np.flatnonzero(self.kind == _USER).tolist():
            rows, complete = self.chain(n)
            place[rows] = np.arange(len(rows))
            at = place[user]  # -1 for an unread namespace: place[-1] is never set
            below = np.array([-1, *rows])[np.maximum(at, 0)]  # the child on the way down to N
            made, made_maybe = _same(np.append(self.owner, NO_ID)[below], euid)
            child = (at > 0) & (below >= 0)
            found = at >= 0
            yes[:, n] = found & (has | (child & made))
            maybe[:, n] = found & (has | (child & made_maybe))
            if not complete:
                yes[:, n] |= in_initial & has
                maybe[:, n] |= ~found
            else:  # a caller of an unread namespace may stand at any step of the chain
                owners = self.owner[rows[:-1]]
                any_owner = ((owners[:, None] == euid) | (owners[:, None] == NO_ID)).any(axis=0)
                any_owner |= (euid == NO_ID) & (len(rows) > 1)
                maybe[:, n] |= (user < 0) & (has | any_owner)
            place[rows] = -1
        yes[:, -1] = in_initial & has
        maybe[:, -1] = True
        inverse = inverse.reshape(-1)
        return yes[inverse], (maybe | yes)[inverse]


def _same(x: Ints, y: Ints) -> tuple[Bools, Bools]:
    equal = (x == y) & (x != NO_ID)
    return equal, equal | (x == NO_ID) | (y == NO_ID)
