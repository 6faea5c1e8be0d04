"""Namespaces: one row for each that a process is in, and for those above them.

A namespace is opened through one member's link, and it is the same one if the inode number is.
From its descriptor the kernel tells its id, owner and parents; those are in the table too, even
if no process is in them.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _fastproc import nsfs
from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.processes import THREAD_NAMESPACES, Held, ProcessRecord
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, NAMESPACES, NO_ID, OpenKind, Status
from osmosis.snapshot import StringPool

__all__ = ["add_pinned", "read_namespaces"]

SOURCE = "namespaces"
INITIAL, UNREADABLE = -1, -2  # of parent and user
USER, PID = NAMESPACES.index("user"), NAMESPACES.index("pid")
INITIAL_INODE = {USER: nsfs.INITIAL_USER, PID: nsfs.INITIAL_PID}
_NAME = re.compile(rb"(\w+?)(?:_for_children)?:\[(\d+)\]")
MAX_DEPTH = 64  # the kernel nests pid and user namespaces 32 deep


@dataclass(slots=True)
class _Table:
    """Rows of table ``namespace`` as they are found; (kind, inode) names one while we read."""

    row: dict[tuple[int, int], int] = field(default_factory=dict)
    id: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    user: list[int] = field(default_factory=list)
    read: list[bool] = field(default_factory=list)

    def place(self, kind: int, inode: int) -> int:
        """Row of a namespace, added with nothing known if it is new."""
        row = self.row.setdefault((kind, inode), len(self.row))
        if row == len(self.id):
            initial = INITIAL if INITIAL_INODE.get(kind) == inode else UNREADABLE
            self.id.append(0)
            self.owner.append(NO_ID)
            # Kinds that do not nest have no parent, which is as known as the initial one's.
            self.parent.append(initial if kind in (USER, PID) else INITIAL)
            self.user.append(initial if kind == USER else UNREADABLE)
            self.read.append(False)
        return row

    def fill(self, fd: int, kind: int, depth: int = 0) -> int:
        """Row of the namespace behind *fd*, with all that the kernel tells of it and above it."""
        row = self.place(kind, os.fstat(fd).st_ino)
        if self.read[row] or depth > MAX_DEPTH:
            return row
        self.read[row] = True
        # ENOTTY before the kernel had NS_GET_ID.
        with suppress(OSError):
            self.id[row] = nsfs.namespace_id(fd)
        if kind == USER:
            with suppress(OSError):
                self.owner[row] = nsfs.namespace_owner(fd)
        if kind in (USER, PID):
            self.parent[row] = self._above(fd, kind, self.parent[row], nsfs.namespace_parent, depth)
        if kind == USER:
            self.user[row] = self.parent[row]  # NS_GET_USERNS of one is its parent
        else:
            self.user[row] = self._above(fd, USER, self.user[row], nsfs.namespace_user, depth)
        return row

    def _above(self, fd: int, kind: int, otherwise: int, ask: Any, depth: int) -> int:
        # EPERM: there is none above, or it is outside the caller's own namespace.
        try:
            other = ask(fd)
        except OSError:
            return otherwise
        try:
            return self.fill(other, kind, depth + 1)
        finally:
            os.close(other)


def read_namespaces(
    proc: str | os.PathLike[str],
    record: ProcessRecord,
    held: list[Held],
    *,
    ledger: Ledger,
) -> dict[str, NDArray[Any]]:
    """Read table ``namespace``, and the columns that point into it.

    The columns fit *record* as it is: call this again after ``drop`` or ``read_one`` (it costs
    tens of microseconds a namespace).

    Parameters
    ----------
    proc
        The procfs that *record* was read from.
    record, held
        P processes, and the descriptors that pin them.
    ledger
        Takes a row for every namespace that is known by its number alone.

    Returns
    -------
    dict of columns
        ``namespace_*``, ``process_ns_*`` (P,) and ``thread_ns_*`` (T,); -1 where a process's
        link was not readable. O(P) plus three ioctls a distinct namespace.

    """
    if os.fspath(proc) != record.proc:
        msg = f"the record was read from {record.proc}, not from {os.fspath(proc)}"
        raise ValueError(msg)
    table = _Table()
    out: dict[str, Any] = {}
    inodes = record.ns_inode
    blind: dict[str, int] = {}
    for kind, name in enumerate(NAMESPACES):
        out[f"process_ns_{name}"] = _column(table, kind, inodes[:, kind])
        for inode, rows in _members(inodes[:, kind]):
            where = ((held[i], f"ns/{name}") for i in rows.tolist())
            if not _open_one(table, kind, inode, where):
                blind[name] = blind.get(name, 0) + 1
    threads, of = record.thread_rows, record.thread_process
    for at, name in enumerate(THREAD_NAMESPACES):
        kind = NAMESPACES.index(name)
        out[f"thread_ns_{name}"] = _column(table, kind, threads["ns"][:, at])
        for inode, rows in _members(threads["ns"][:, at]):
            if table.read[table.place(kind, inode)]:
                continue
            where = ((held[of[i]], f"task/{threads['tid'][i]}/ns/{name}") for i in rows.tolist())
            if not _open_one(table, kind, inode, where, leader=True):
                blind[name] = blind.get(name, 0) + 1
    for name, count in blind.items():
        why = f"the {name} namespace's members ended or refused: only its number is known"
        ledger.add(HOST, SOURCE, Status.PARTIAL, why, count)
    if not blind:
        ledger.add(HOST, SOURCE, Status.READ, "", len(table.row))
    kinds, numbers = zip(*table.row, strict=True) if table.row else ((), ())
    out |= {
        "namespace_kind": kinds,
        "namespace_inode": numbers,
        "namespace_id": table.id,
        "namespace_owner": table.owner,
        "namespace_parent": table.parent,
        "namespace_user": table.user,
    }
    return {name: np.array(values, COLUMNS[name].dtype) for name, values in out.items()}


def add_pinned(
    columns: dict[str, NDArray[Any]], *, pool: StringPool, ledger: Ledger
) -> dict[str, NDArray[Any]]:
    """Return table ``namespace`` with those that live by a descriptor or a bind mount alone.

    Found by names such as ``net:[4026532008]`` in the tables open and mount, which *columns* has
    if they were read. They are not opened: only the number is known, as the ledger says. Rows
    that are there keep their places.
    """
    found: set[tuple[int, int]] = set()
    for kinds, names, wanted in (
        ("open_kind", "open_name", OpenKind.NAMESPACE),
        ("mount_kind", "mount_root", pool.add(b"nsfs")),
    ):
        if kinds in columns:
            for row in np.unique(columns[names][columns[kinds] == wanted]).tolist():
                said = _NAME.fullmatch(pool.text(row)) if row >= 0 else None
                if said and said[1].decode() in NAMESPACES:
                    found.add((NAMESPACES.index(said[1].decode()), int(said[2])))
    old = columns["namespace_kind"].tolist(), columns["namespace_inode"].tolist()
    new = sorted(found - set(zip(*old, strict=True)))
    if not new:
        return {}
    why = "namespaces without a process, kept by a descriptor or a bind mount: only numbers known"
    ledger.add(HOST, SOURCE, Status.PARTIAL, why, len(new))
    kind = np.array([k for k, _ in new])
    rows = {
        "kind": kind,
        "inode": np.array([inode for _, inode in new]),
        "id": np.zeros(len(new)),
        "owner": np.full(len(new), NO_ID),
        "parent": np.where(np.isin(kind, (USER, PID)), UNREADABLE, INITIAL),
        "user": np.full(len(new), UNREADABLE),
    }
    return {
        (full := f"namespace_{name}"): np.concatenate(
            [columns[full], values.astype(COLUMNS[full].dtype)]
        )
        for name, values in rows.items()
    }


def _members(inodes: NDArray[np.uint64]) -> list[tuple[int, NDArray[np.intp]]]:
    """Each distinct inode but 0, with the rows that have it."""
    order = np.argsort(inodes, kind="stable")
    if not len(order):
        return []
    distinct, starts = np.unique(inodes[order], return_index=True)
    parts = np.split(order, starts[1:])
    return [(int(n), rows) for n, rows in zip(distinct, parts, strict=True) if n]


def _column(table: _Table, kind: int, inodes: NDArray[np.uint64]) -> NDArray[np.int32]:
    distinct, inverse = np.unique(inodes, return_inverse=True)
    rows = [table.place(kind, int(n)) if n else -1 for n in distinct]
    return np.array(rows, np.int32)[inverse.reshape(-1)] if len(rows) else np.zeros(0, np.int32)


def _open_one(table: _Table, kind: int, inode: int, where: Any, *, leader: bool = False) -> bool:
    """Read the namespace through the first member that still is in it."""
    if table.read[table.place(kind, inode)]:
        return True
    for one, path in where:
        try:
            at = one.leaderfd if leader else one.dirfd
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
        except ProcessGone:
            continue
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise
            continue
        finally:
            one.release()
        try:
            if os.fstat(fd).st_ino == inode:
                table.fill(fd, kind)
                return True
        finally:
            os.close(fd)
    return False
