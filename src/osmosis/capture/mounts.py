"""Mounts: what each process's file tree is made of, read once per tree.

A *tree* is what the processes of one mount namespace and one root directory see; mountinfo
lists for a chrooted process only the mounts at or below its root (show_mountinfo() in
fs/proc_namespace.c). The mount that its root directory itself lies on is looked up in the tree
of a member that is not chrooted. Nothing is opened but /proc and, by O_PATH, root directories.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.capture.ledger import Ledger
from osmosis.capture.pinned import Held, slurp
from osmosis.capture.processes import ProcessRecord
from osmosis.capture.views import Mount, mounts
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, KERNEL_FILESYSTEMS, NAMESPACES, NO_ID, Status, is_served

__all__ = ["MountReader"]

SOURCE = "mounts"
MNT = NAMESPACES.index("mnt")
_MOUNT_ID = re.compile(rb"^mnt_id:\s*(\d+)$", re.MULTILINE)


def is_remote(kind: bytes) -> bool:
    """``is_served`` of a type as mountinfo has it."""
    return is_served(os.fsdecode(kind))


@dataclass(frozen=True, slots=True)
class Root:
    """What lstat tells of the root of a mount."""

    uid: int
    gid: int
    mode: int
    reach: int
    dev: int


UNSEEN = Root(NO_ID, NO_ID, 0, -1, 0)


class MountReader:
    """Reads the tree of every process; what it finds is keyed by pid until rows are final.

    ``trees`` holds, for each tree, the pid that it was read through, a Status and its mounts.
    O(P) plus one mountinfo a tree.
    """

    def __init__(self, record: ProcessRecord, *, ledger: Ledger) -> None:
        self.record = record
        self.ledger = ledger
        self.trees: list[tuple[int, int, list[Mount]]] = []
        self.roots: dict[tuple[int, int], Root] = {}  # (tree, mount id) -> what stands there
        self.tree_of: dict[int, int] = {}  # pid -> tree, -1 if it was not read

    def read(self) -> None:
        """Read every tree; entries in the ledger where one could not be read."""
        record, rows = self.record, self.record.rows
        spaces = record.ns_inode[:, MNT].tolist()
        texts = record.text["root"].tolist()
        roots = zip(rows["root_dev"].tolist(), rows["root_inode"].tolist(), texts, strict=True)
        number: dict[tuple[int, ...], int] = {}
        space_of: list[int] = []
        for i, (space, (device, inode, text)) in enumerate(zip(spaces, roots, strict=True)):
            held = record.held[i]
            if not space or not inode:
                # The link was not readable: the ledger of processes says so.
                self.tree_of[held.pid] = -1
                continue
            key = (space, device, inode, text)
            tree = number.get(key)
            if tree is None or self.trees[tree][1] == Status.GONE:
                status, listed = self._mountinfo(held)
                found = (held.pid, status, listed)
                if tree is None:
                    tree = number[key] = len(self.trees)
                    self.trees.append(found)
                    space_of.append(space)
                else:
                    self.trees[tree] = found
            self.tree_of[held.pid] = tree
        self._find_chroots(space_of, {tree: key[3] for key, tree in number.items()})
        for tree in range(len(self.trees)):
            self._look(tree, self.record.held)
        for pid, tree in self.tree_of.items():
            status = self.trees[tree][1] if tree >= 0 else Status.DENIED
            if status == Status.DENIED:
                self.ledger.add(pid, SOURCE, status, "its mountinfo or its root directory")

    def _mountinfo(self, held: Held) -> tuple[int, list[Mount]]:
        try:
            return Status.READ, list(mounts(slurp(held.dirfd, "mountinfo")))
        except PermissionError:
            return Status.DENIED, []
        except (OSError, ProcessGone):
            return Status.GONE, []
        finally:
            held.release()

    def _find_chroots(self, space_of: list[int], text_of: Mapping[int, int]) -> None:
        """Add the mount of the root directory to trees of chroots."""
        row_of = {held.pid: i for i, held in enumerate(self.record.held)}
        whole: dict[tuple[int, int], Mount] = {}
        for tree, (_pid, status, found) in enumerate(self.trees):
            if status == Status.READ and self.record.pool.text(text_of[tree]) == b"/":
                whole.update({(space_of[tree], mount.id): mount for mount in found})
        for tree, (pid, status, found) in enumerate(self.trees):
            if status != Status.READ or any(mount.point == b"/" for mount in found):
                continue
            root = self.record.pool.text(text_of[tree])
            base = whole.get((space_of[tree], self._root_mount(self.record.held[row_of[pid]])))
            below = None if base is None else _below(root, base.point)
            if base is None or below is None:
                why = "the mount that its root directory lies on is in no tree that was read"
                self.ledger.add(pid, SOURCE, Status.PARTIAL, why)
                self.trees[tree] = (pid, Status.PARTIAL, found)
                continue
            of = base.root.rstrip(b"/") + below
            first = replace(base, id=0, parent=0, root=of or b"/", point=b"/")
            self.trees[tree] = (pid, status, [first, *found])

    def _look(self, tree: int, held: Sequence[Held]) -> None:
        """Owner and mode of the roots of real filesystems, by lstat of one member's tree."""
        pid, status, found = self.trees[tree]
        if status not in (Status.READ, Status.PARTIAL):
            return
        one = held[int(np.searchsorted(self.record.pids, pid))]
        far = [m.point for m in found if is_remote(m.kind)]
        try:
            root = os.open("root", os.O_PATH | os.O_CLOEXEC, dir_fd=one.dirfd)
        except (OSError, ProcessGone):
            return
        finally:
            one.release()
        try:
            for mount in found:
                behind = any(_below(mount.point, point) is not None for point in far)
                if os.fsdecode(mount.kind) in KERNEL_FILESYSTEMS or behind:
                    continue
                seen = _walk(root, mount.point)
                # Something else may be mounted over it.
                if seen is not None and (seen.dev == mount.dev or mount.kind == b"btrfs"):
                    self.roots[tree, mount.id] = seen
        finally:
            os.close(root)

    def _root_mount(self, held: Held) -> int:
        try:
            fd = os.open("root", os.O_PATH | os.O_CLOEXEC, dir_fd=held.dirfd)
        except (OSError, ProcessGone):
            return -1
        try:
            info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            with os.fdopen(info, "rb") as file:
                got = _MOUNT_ID.search(file.read())
            return int(got[1]) if got else -1
        except OSError:
            return -1
        finally:
            os.close(fd)
            held.release()

    def columns(self, row_of: Mapping[int, int]) -> dict[str, NDArray[Any]]:
        """Tables tree, treemember and mount.

        Parameters
        ----------
        row_of
            Row of each process of the snapshot, by pid.

        """
        pool = self.record.pool
        out: dict[str, list[Any]] = {
            n: [] for n, c in COLUMNS.items() if c.table in ("tree", "treemember", "mount")
        }

        def add(table: str, **values: Any) -> None:
            for name, value in values.items():
                out[f"{table}_{name}"].append(value)

        for pid, status, _ in self.trees:
            add("tree", process=row_of.get(pid, -1), status=status)
        for pid, tree in sorted(self.tree_of.items()):
            if pid in row_of:
                add("treemember", process=row_of[pid], tree=tree)
        for tree, (_, _, found) in enumerate(self.trees):
            for one in found:
                read_only = (b"ro" in one.options) | (b"ro" in one.super_options) << 1
                seen = self.roots.get((tree, one.id), UNSEEN)
                options = b",".join(one.options) + b" " + b",".join(one.super_options)
                add(
                    "mount",
                    tree=tree,
                    id=one.id,
                    parent=one.parent,
                    dev=one.dev,
                    root=pool.add(one.root),
                    point=pool.add(one.point),
                    read_only=read_only,
                    kind=pool.add(one.kind),
                    source=pool.add(one.source),
                    options=pool.add(options),
                    propagation=pool.add(one.propagation),
                    uid=seen.uid,
                    gid=seen.gid,
                    mode=seen.mode,
                    reach=seen.reach,
                )
        return {name: np.array(values, COLUMNS[name].dtype) for name, values in out.items()}

    @property
    def superblocks(self) -> dict[int, bytes]:
        """Type of filesystem by s_dev, of everything mounted in some tree."""
        return {m.dev: m.kind for _, _, found in self.trees for m in found}

    @property
    def by_id(self) -> dict[int, Mount]:
        """Mounts by number: the numbers are unique on a host."""
        return {m.id: m for _, _, found in self.trees for m in found if m.id}


def _below(path: bytes, point: bytes) -> bytes | None:
    """What of *path* comes after *point*, with its slash; None if it is not below."""
    point = point.rstrip(b"/")
    if path == point or path.startswith(point + b"/"):
        return path[len(point) :].rstrip(b"/")
    return None


def _walk(root: int, point: bytes) -> Root | None:
    """Look at *point* below the directory *root*, and whether everybody may walk to it.

    Symbolic links stand in no mount point.
    """
    names = [name for name in point.split(b"/") if name]
    everybody, path = 1, b"."
    try:
        facts = os.stat(path, dir_fd=root, follow_symlinks=False)
        for name in names:
            everybody &= stat.S_ISDIR(facts.st_mode) & facts.st_mode & 1
            path = path + b"/" + name
            facts = os.stat(path, dir_fd=root, follow_symlinks=False)
    except OSError:
        return None
    dev = os.major(facts.st_dev) << 32 | os.minor(facts.st_dev)
    return Root(facts.st_uid, facts.st_gid, facts.st_mode, everybody, dev)
