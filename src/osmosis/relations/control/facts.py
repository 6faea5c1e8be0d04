"""Snapshot columns to what the control rules ask of: credentials, slots, and control classes.

A *credential* is one distinct set of ids, capabilities and user namespace. A *slot* is one
credential of one process: its leader's, and one more for each thread whose credentials differ.
A *class* is all processes with equal slots and equal further facts; a rule is evaluated slot by
slot and folded to classes: a process acts, and is acted on, through any of its threads.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.idmaps import IdMaps
from osmosis.relations.control.logic import Condition
from osmosis.relations.control.trees import Trees
from osmosis.schema import NO_ID, HandleKind
from osmosis.snapshot import Snapshot

__all__ = ["IDS", "Classes", "Facts", "Slots"]

IDS = ("ruid", "euid", "suid", "fsuid", "rgid", "egid", "sgid", "fsgid")
_ROOT_CAPS = ("cap_prm", "cap_eff")

Ints = NDArray[np.int64]


class Slots(NamedTuple):
    """Credentials of some processes, those of one process side by side."""

    process: Ints  # (S,) row of the snapshot's process table
    cred: Ints  # (S,) row of Facts' credentials
    leader: NDArray[np.bool_]  # (S,) whether it is the leader's


class Classes(NamedTuple):
    """Processes with equal facts, and the slots of one representative of each class."""

    of: NDArray[np.int32]  # (P + 1,) class by PD row; the kernel's own comes last
    slots: Slots
    starts: Ints  # (K,) first slot of each class

    def fold(self, condition: Condition) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return yes and maybe by class, (K + 1, K + 1); the kernel's row and column are no."""
        yes = self._fold(condition.yes)
        return yes, yes if condition.maybe is condition.yes else self._fold(condition.maybe)

    def _fold(self, array: NDArray[np.bool_]) -> NDArray[np.bool_]:
        n, k = len(self.slots.process), len(self.starts)
        array = np.broadcast_to(array, (n, n))
        if k != n:
            array = np.logical_or.reduceat(array, self.starts, axis=0)
            array = np.logical_or.reduceat(array, self.starts, axis=1)
        result = np.zeros((k + 1, k + 1), bool)
        result[:k, :k] = array
        return result


class Facts:
    """What the rules read, prepared once per snapshot. O(P), and no P x P anything."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.n = snapshot.n_processes
        self.trees = Trees(snapshot)
        self._build_credentials()
        self.kept: dict[str, Any] = {}  # matrices that several verbs share

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.snapshot[name]

    def column_ids(self, column: str) -> Ints:
        """Return a column of ids, as int64, those that cannot be told apart being NO_ID."""
        values = self.snapshot[column].astype(np.int64)
        if not self.trees.outside:  # an id that is not mapped reads as the overflow id
            kind = "uid" if column.endswith("uid") else "gid"
            overflow = self.snapshot.host.get(f"overflow_{kind}") or 65534
            values = np.where(values == overflow, NO_ID, values)
        return values

    def _build_credentials(self) -> None:
        s = self.snapshot
        groups = _GroupSets()
        leader_groups = groups.rows(s["process_group_indptr"], s["group_gid"])
        thread_groups = groups.rows(s["thread_group_indptr"], s["threadgroup_gid"])
        self.group_sets = groups.sets

        def fields(table: str, group_ids: Ints) -> Ints:
            ids = [self.column_ids(f"{table}_{name}") for name in IDS]
            caps = [s[f"{table}_{name}"].view(np.int64) for name in _ROOT_CAPS]
            return np.column_stack([*ids, *caps, s[f"{table}_ns_user"], group_ids])

        both = np.vstack([fields("process", leader_groups), fields("thread", thread_groups)])
        first, of = _distinct(list(both.T))
        rows = both[first]
        self.ids = dict(zip(IDS, rows.T[:8], strict=True))  # (C,) each
        self.cap_prm = rows[:, 8].view(np.uint64)
        self.cap_eff = rows[:, 9].view(np.uint64)
        self.user = rows[:, 10]  # (C,) row of the user namespace
        self.groups = rows[:, 11]  # (C,) index into group_sets
        self.leader_cred = of[: self.n]
        extra: dict[int, set[int]] = {}
        for process, cred in zip(s["thread_process"].tolist(), of[self.n :].tolist(), strict=True):
            if process >= 0 and cred != self.leader_cred[process]:
                extra.setdefault(process, set()).add(cred)
        self.extra = {process: tuple(sorted(creds)) for process, creds in extra.items()}
        keys: dict[tuple[int, ...], int] = {}
        self.cred_set = self.leader_cred.copy()
        for process, creds in self.extra.items():
            key = (int(self.leader_cred[process]), *creds)
            self.cred_set[process] = len(rows) + keys.setdefault(key, len(keys))

    @cached_property
    def maps(self) -> IdMaps:
        """The uid and gid maps of user namespaces."""
        return IdMaps(self.snapshot, self.trees)

    @cached_property
    def ns_pid(self) -> Ints:
        """(P,) row of the pid namespace; what one NSpid entry tells is filled in."""
        s = self.snapshot
        rows = s["process_ns_pid"].astype(np.int64)
        depth = np.diff(s["process_nspid_indptr"])
        known = rows[(rows >= 0) & (depth == 1)]
        if len(known):  # one entry: it is in the pid namespace of the /proc that was read
            rows = np.where((rows < 0) & (depth == 1), known[0], rows)
        return rows

    @cached_property
    def init(self) -> Ints:
        """(P,) 1 if it is the init of its pid namespace, 0 if not, -1 if NSpid was not told."""
        s = self.snapshot
        indptr = s["process_nspid_indptr"]
        told = np.diff(indptr) > 0
        last = np.append(s["nspid_pid"], 0)[indptr[1:] - 1]
        return np.where(told, (last == 1).astype(np.int64), -1)

    @cached_property
    def dead(self) -> NDArray[np.bool_]:
        """(P,) a zombie: nobody is left in it. A leader that exited before its threads is not."""
        gone = np.isin(self.snapshot["process_state"], (ord("Z"), ord("X")))
        return np.asarray(gone & (self.snapshot["process_threads"] <= 1), bool)

    @cached_property
    def view(self) -> Ints:
        """(P,) row of the view of the file tree, -1 if it was not read."""
        rows = self.snapshot["control_view"]
        return rows.astype(np.int64) if len(rows) == self.n else np.full(self.n, -1)

    @cached_property
    def held_namespaces(self) -> tuple[Ints, list[tuple[int, ...]]]:
        """(P,) index into a list of sets: the namespaces that the process holds open."""
        s = self.snapshot
        at = (s["handle_kind"] == HandleKind.NAMESPACE) & (s["handle_namespace"] >= 0)
        held: dict[int, set[int]] = {}
        for i, row in zip(
            s["handle_process"][at].tolist(), s["handle_namespace"][at].tolist(), strict=True
        ):
            held.setdefault(i, set()).add(row)
        index: dict[tuple[int, ...], int] = {(): 0}
        of = np.zeros(self.n, np.int64)
        for i, rows in held.items():
            of[i] = index.setdefault(tuple(sorted(rows)), len(index))
        return of, list(index)

    @cached_property
    def mm_users(self) -> tuple[Ints, list[tuple[int, ...]]]:
        """(P,) index into a list of the user namespaces that its mm may belong to.

        The kernel keeps mm->user_ns, the namespace of the execve, and shows it nowhere; it is
        that of the process or an ancestor, since one only ever moves down. Where the process
        is not dumpable, the owner of its files in /proc is that namespace's root, which rules
        some out (task_dump_owner, fs/proc/base.c).
        """
        s = self.snapshot
        index: dict[tuple[int, ...], int] = {}
        known: dict[tuple[int, int], int] = {}
        of = np.empty(self.n, np.int64)
        owners = np.where(s["process_dumpable"] == 1, NO_ID, self.column_ids("process_mem_uid"))
        users = s["process_ns_user"]
        for i, pair in enumerate(zip(users.tolist(), owners.tolist(), strict=True)):
            if pair not in known:
                known[pair] = index.setdefault(self._mm_candidates(*pair), len(index))
            of[i] = known[pair]
        return of, list(index)

    def _mm_candidates(self, user: int, owner: int) -> tuple[int, ...]:
        chain, complete = self.trees.chain(user)
        rows = [n for n in chain if self.maps.may_be_root(n, owner)]
        return tuple(rows if complete else [*rows, -1])

    def classes(self, *columns: NDArray[np.generic]) -> Classes:
        """Classes of processes with equal credentials and equal *columns*, (P,) each."""
        first, of = _distinct([self.cred_set, *columns])
        slots, starts = self.slots(first)
        return Classes(np.append(len(first), of).astype(np.int32), slots, starts)

    def slots(self, processes: NDArray[np.generic]) -> tuple[Slots, Ints]:
        """Slots of some processes, and where those of each begin."""
        rows = np.asarray(processes, np.int64)
        creds = self.leader_cred[rows]
        if not self.extra:
            return Slots(rows, creds, np.ones(len(rows), bool)), np.arange(len(rows))
        sets = [(int(c), *self.extra.get(int(i), ())) for i, c in zip(rows, creds, strict=True)]
        lengths = np.array([len(x) for x in sets], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64)
        leader = np.zeros(int(lengths.sum()), bool)
        leader[starts] = True
        flat = np.array([c for x in sets for c in x], np.int64)
        return Slots(np.repeat(rows, lengths), flat, leader), starts


class _GroupSets:
    """Numbers for sets of supplementary groups."""

    def __init__(self) -> None:
        self._index: dict[bytes, int] = {}
        self.sets: list[NDArray[np.uint32]] = []

    def rows(self, indptr: Ints, gids: NDArray[np.uint32]) -> Ints:
        bounds = indptr.tolist()
        result = np.empty(len(bounds) - 1, np.int64)
        for i, (start, end) in enumerate(pairwise(bounds)):
            key = gids[start:end].tobytes()
            if key not in self._index:
                self._index[key] = len(self.sets)
                self.sets.append(np.unique(gids[start:end]))
            result[i] = self._index[key]
        return result


def _distinct(columns: list[NDArray[np.generic]]) -> tuple[Ints, Ints]:
    """Rows that stand for the distinct ones, and for each row which; O(rows log rows)."""
    key = np.zeros(len(columns[0]), np.int64)
    first = key
    for column in columns:
        values, inverse = np.unique(column, return_inverse=True)
        _, first, key = np.unique(
            key * max(len(values), 1) + inverse, return_index=True, return_inverse=True
        )
    return first.astype(np.int64), key.astype(np.int64)
