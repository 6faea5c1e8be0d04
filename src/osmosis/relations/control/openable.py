"""Which files a process could open for writing: a way through its mounts, and the file's mode.

The way: a mount of its own that shows the file's place in its superblock, writable, with
nothing mounted over it. Search permission is certain for those whom permissions do not stop,
and where everybody may walk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.facts import Facts
from osmosis.relations.control.files import WRITE, Owners, permitted
from osmosis.relations.control.rules import raised
from osmosis.relations.mounts import threads_elsewhere
from osmosis.schema import Status

__all__ = ["FIXED", "TEXT", "Openable", "openable"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Names = tuple[bytes, ...]

TEXT, FIXED, ACL = 1, 2, 4  # bits of ctlfile_flags
NO, OPEN, SHUT, PERHAPS = 0, 1, 2, 3  # ways to a file
_DIRECTORY, _FORMAT = 0o040000, 0o170000
# Filesystems whose server decides who may do what.
_SERVED = frozenset(b"9p afs autofs ceph cifs fuse fuseblk lustre nfs nfs4 smb3 virtiofs".split())


def openable(facts: Facts) -> Openable:
    """Return the ways to the snapshot's files, made once."""
    if "openable" not in facts.kept:
        facts.kept["openable"] = Openable(facts)
    made: Openable = facts.kept["openable"]
    return made


class Openable:
    """F files of table ctlfile, by T trees of table tree, a last one being "not read"."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        s = facts.snapshot
        self.n = len(s["ctlfile_uid"])
        self.flags = s["ctlfile_flags"]
        self.status = s["ctlfile_status"]
        self.owners = Owners(
            s["ctlfile_uid"].astype(np.int64),
            s["ctlfile_gid"].astype(np.int64),
            s["ctlfile_mode"].astype(np.int64),
        )
        self.tree = np.full(facts.n, -1)
        member = s["treemember_process"]
        self.tree[member[member >= 0]] = s["treemember_tree"][member >= 0]
        read = np.append(s["tree_status"], Status.SKIPPED) == Status.READ
        self.tree = np.where(read[self.tree], self.tree, -1)
        self.tree[threads_elsewhere(s)] = -1  # what a thread of it sees was not read
        self._ways: dict[tuple[int, bool], tuple[Bools, Bools, Bools]] = {}
        self._bytes: dict[int, bytes] = {}

    def text(self, row: int) -> bytes:
        """Return a string of the snapshot, each looked up once."""
        if row not in self._bytes:
            self._bytes[row] = self.facts.snapshot.bytes(row)
        return self._bytes[row]

    def may_write(
        self, processes: Ints, creds: Ints, *, writable: bool = True
    ) -> tuple[Bools, Bools]:
        """Yes and maybe, (S, F): the credential may open the file for writing.

        *writable* False asks nothing of the mount: a socket on a read-only one can be connected
        to.
        """
        trees = self.tree[processes]
        keys, of = np.unique(np.column_stack([trees, creds]), axis=0, return_inverse=True)
        trees, creds = keys[:, 0], keys[:, 1]
        yes, maybe = self._by_mode(creds)
        free = self._walks(creds)[:, None]
        shut_or_open, plain, possible = self._all_ways(trees, writable)
        yes = yes & (plain | (shut_or_open & free))
        maybe = maybe & possible
        known = np.isin(self.status, (Status.READ, Status.SKIPPED))
        yes &= known
        maybe = (maybe | yes) | ~known
        maybe[:, self.status == Status.SKIPPED] = False
        yes[:, self.status == Status.SKIPPED] = False
        of = of.reshape(-1)
        return yes[of], maybe[of]

    def _walks(self, creds: Ints) -> Bools:
        """(len(creds),) whether no directory stops it: privileged over every inode."""
        facts = self.facts
        caps = facts.cap_eff[creds]
        has = raised(caps, "CAP_DAC_READ_SEARCH") | raised(caps, "CAP_DAC_OVERRIDE")
        initial = facts.trees.initial_user
        return has & (facts.user[creds] == initial) if initial is not None else has & False

    def _by_mode(self, creds: Ints) -> tuple[Bools, Bools]:
        facts = self.facts
        yes, maybe = permitted(facts, creds, self.owners, WRITE)
        acl = (self.flags & ACL != 0) & (self.owners.mode & 0o070 != 0)
        if acl.any():  # its entries are not known: only the owner's bits and privilege count
            uid, gid, mode = self.owners
            least, _ = permitted(facts, creds, Owners(uid, gid, mode & 0o700), WRITE)
            yes = np.where(acl, least, yes)
            maybe = maybe | acl
        return yes, maybe | yes

    def _all_ways(self, trees: Ints, writable: bool) -> tuple[Bools, Bools, Bools]:
        """By actor and file: a way for the privileged, one for everybody, perhaps one."""
        some = np.zeros((len(trees), self.n), bool)
        plain, possible = some.copy(), some.copy()
        for tree in np.unique(trees).tolist():
            if (tree, writable) not in self._ways:
                self._ways[tree, writable] = self._of_tree(tree, writable)
            at = trees == tree
            some[at], plain[at], possible[at] = self._ways[tree, writable]
        return some, plain, possible

    def _of_tree(self, tree: int, writable: bool) -> tuple[Bools, Bools, Bools]:
        some, plain = np.zeros(self.n, bool), np.zeros(self.n, bool)
        possible = some.copy()
        if tree < 0:
            return some, plain, ~possible
        s = self.facts.snapshot
        seen = _Tree(self, tree, writable)
        for file, dev, path, clear, sure in zip(
            s["ctlplace_file"].tolist(),
            s["ctlplace_dev"].tolist(),
            s["ctlplace_path"].tolist(),
            s["ctlplace_clear"].tolist(),
            s["ctlplace_sure"].tolist(),
            strict=True,
        ):
            way = seen.way(dev, path, clear, linked=s["ctlfile_links"][file] > 1)
            possible[file] |= way != NO
            if sure:
                some[file] |= way in (OPEN, SHUT)
                plain[file] |= way == OPEN
        return some, plain, possible


class _Tree:
    """What one tree shows of each superblock."""

    def __init__(self, files: Openable, tree: int, writable: bool) -> None:
        s = files.facts.snapshot
        self.files = files
        rows = np.flatnonzero(s["mount_tree"] == tree).tolist()
        ids = {int(s["mount_id"][row]): row for row in rows}
        self.point = {row: _names(files.text(int(s["mount_point"][row]))) for row in rows}
        self.on: dict[tuple[int, Names], int] = {}
        self.base = -1
        for row in rows:
            if not self.point[row] and int(s["mount_parent"][row]) not in ids:
                self.base = row
            if int(s["mount_id"][row]) == 0:
                self.base = row
                break
        for row in rows:
            if row != self.base:
                # Of a chroot, what stands on the mount that its root directory lies on.
                parent = ids.get(int(s["mount_parent"][row]), self.base)
                self.on[parent, self.point[row]] = row
        self.by_dev: dict[int, list[int]] = {}
        for row in rows:
            if not writable or not s["mount_read_only"][row]:
                self.by_dev.setdefault(int(s["mount_dev"][row]), []).append(row)
        self._top: dict[Names, int] = {}

    def way(self, dev: int, path: int, clear: int, *, linked: bool) -> int:
        """How it leads to a place: NO, OPEN to all, SHUT to some, PERHAPS."""
        if not dev:
            return PERHAPS if self.by_dev else NO
        rows = self.by_dev.get(dev, [])
        if path < 0:
            return PERHAPS if rows else NO
        best = NO
        at = _names(self.files.text(path))
        free = _names(self.files.text(clear)) if clear >= 0 else None
        for row in rows:
            best = _better(best, self._through(row, at, free, linked=linked))
        return best

    def _through(self, row: int, at: Names, free: Names | None, *, linked: bool) -> int:
        s = self.files.facts.snapshot
        root = self._root(row)
        directory = int(s["mount_mode"][row]) & _FORMAT in (0, _DIRECTORY)
        elsewhere = PERHAPS if linked and directory else NO  # by another name
        if at[: len(root)] != root:
            return elsewhere
        if self._at((*self.point[row], *at[len(root) :])) != row:
            return elsewhere
        if self._uncertain(row):
            return PERHAPS
        walked = root == at or (free is not None and root[: len(free)] == free)
        return OPEN if walked and s["mount_reach"][row] == 1 else SHUT

    def _root(self, row: int) -> Names:
        return _names(self.files.text(int(self.files.facts["mount_root"][row])))

    def _uncertain(self, row: int) -> bool:
        """Whether its server decides, or ids are not what they seem there."""
        s = self.files.facts.snapshot
        kind = self.files.text(int(s["mount_kind"][row]))
        options = self.files.text(int(s["mount_options"][row])).partition(b" ")[0]
        served = kind in _SERVED or kind.startswith(b"fuse.")
        return served or b"idmapped" in options.split(b",")

    def _at(self, names: Names) -> int:
        """The mount that a path ends on; that of each directory is looked up once."""
        if names not in self._top:
            row = self._at(names[:-1]) if names else self.base
            while (row, names) in self.on:
                row = self.on[row, names]
            self._top[names] = row
        return self._top[names]


def _names(path: bytes) -> Names:
    return tuple(name for name in path.split(b"/") if name)


def _better(x: int, y: int) -> int:
    """Return the more certain of two ways."""
    rank = (NO, PERHAPS, SHUT, OPEN)
    return max(x, y, key=rank.index)
