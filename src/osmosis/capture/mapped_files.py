"""Mapped regular files: owner, mode and place of each, looked at once through a link of map_files.

The link leads to the very file that is mapped, whatever stands at its path now. Where the file
lies is then looked for at its path, below the root of the process or ours; only what has the
same device, inode and mount is it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.mounts import is_remote
from osmosis.capture.places import FILE_ACL, FILE_FIXED, NOWHERE, Place, Seen, Walker, has_acl, look
from osmosis.capture.processes import ProcessRecord
from osmosis.capture.views import Mount
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, NAMESPACES, NO_ID, FileKind, Status

__all__ = ["FileTable", "read_mapped_files"]

SOURCE = "mapped_files"
MNT = NAMESPACES.index("mnt")
FILE_TEXT = 1  # some process runs it: ETXTBSY
TRIES = 4  # mappings of one object that are tried, each in another address space


class FileTable:
    """Rows of tables ctlfile and ctlplace while they are filled."""

    def __init__(self, record: ProcessRecord, mounts: Mapping[int, Mount]) -> None:
        self.record = record
        self.walker = Walker(mounts)
        self.our_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._out: dict[str, list[Any]] = {
            n: [] for n, c in COLUMNS.items() if c.table in ("ctlfile", "ctlplace")
        }

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.our_root)

    def add(
        self,
        seen: Seen | None,
        *,
        obj: int = -1,
        socket: int = -1,
        status: int = Status.READ,
        flags: int = 0,
    ) -> int:
        """Add one file; return its row."""
        row = len(self._out["ctlfile_uid"])
        flags |= FILE_FIXED if seen and seen.fixed else 0
        values = {
            "object": obj,
            "socket": socket,
            "status": status,
            "uid": seen.uid if seen else NO_ID,
            "gid": seen.gid if seen else NO_ID,
            "mode": seen.mode if seen else 0,
            "flags": flags,
            "links": min(seen.links, NO_ID) if seen else 0,
        }
        for name, value in values.items():
            self._out[f"ctlfile_{name}"].append(value)
        return row

    def add_place(self, file: int, place: Place, *, sure: bool) -> None:
        """Add one place of a file."""
        pool = self.record.pool
        values = {
            "file": file,
            "dev": place.dev,
            "path": pool.add(place.path),
            "clear": pool.add(place.clear),
            "sure": sure,
        }
        for name, value in values.items():
            self._out[f"ctlplace_{name}"].append(value)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns of both tables."""
        return {name: np.array(v, COLUMNS[name].dtype) for name, v in self._out.items()}

    def find(self, process: int, path: bytes, like: Seen) -> tuple[Place, bool] | None:
        """Where the file at *path* lies, and whether it has an ACL; None if it is not there."""
        held = self.record.held[process]
        text = int(self.record.text["root"][process])
        shown = self.record.pool.text(text) if text >= 0 else b"/"
        inner = path[len(shown) :] if path.startswith(shown + b"/") else path
        for ours in (False, True):
            key: tuple[int, ...] = ()
            try:
                if ours:
                    root, name = os.dup(self.our_root), path
                else:
                    root = os.open("root", os.O_PATH | os.O_CLOEXEC, dir_fd=held.dirfd)
                    rows = self.record.rows[process]
                    at = int(rows["root_dev"]), int(rows["root_inode"])
                    key = (*at, int(rows["print"]["ns"][MNT]))
                    name = inner
            except (OSError, ProcessGone):
                continue
            finally:
                held.release()
            try:
                found = self.walker.find(key, root, name)
                if found and found[0].identity == like.identity:
                    return found[1], has_acl(root, name.strip(b"/"))
            finally:
                os.close(root)
        return None


def read_mapped_files(
    table: FileTable, columns: Mapping[str, NDArray[Any]], *, ledger: Ledger
) -> None:
    """Look at every regular file that somebody maps.

    Parameters
    ----------
    table
        Takes the rows.
    columns
        Tables object, vma and mm, with the processes as they stand in the record.
    ledger
        Takes one row that counts the files that could not be looked at.

    Notes
    -----
    O(mapped files): one statx and one readlink each, and one statx a directory.
    """
    mappings = _mappings(columns)
    texts = _running(table.record)
    unread = 0
    for obj in np.flatnonzero(columns["object_kind"] == FileKind.FILE).tolist():
        seen, path, process, status = _see(table.record, mappings.get(obj, ()))
        if seen is None:
            unread += 1
            table.add(None, obj=obj, status=status)
            continue
        if not stat.S_ISREG(seen.mode) or not seen.links:
            table.add(seen, obj=obj, status=Status.SKIPPED)  # a memfd, or deleted
            continue
        _add_file(table, obj, seen, path, process, busy=(seen.dev, seen.inode) in texts)
    if unread:
        ledger.add(HOST, SOURCE, Status.PARTIAL, "mapped files not looked at", unread)


def _add_file(
    table: FileTable, obj: int, seen: Seen, path: bytes, process: int, *, busy: bool
) -> None:
    mount = table.walker.mounts.get(seen.mount)
    far = mount is None or is_remote(mount.kind)
    found = None if far else table.find(process, path, seen)
    place, acl = found or (NOWHERE._replace(dev=mount.dev if mount else 0), True)
    flags = (FILE_TEXT if busy else 0) | (FILE_ACL if acl else 0)
    file = table.add(seen, obj=obj, flags=flags)
    table.add_place(file, place, sure=found is not None)
    if mount is not None and mount.kind == b"overlay":
        table.add_place(file, _layer(table, mount, place.path, seen), sure=False)


def _mappings(columns: Mapping[str, NDArray[Any]]) -> dict[int, list[tuple[int, int, int]]]:
    """Some mappings (process, start, end) of each object."""
    spans = np.diff(columns["mm_vma_indptr"])
    process = np.repeat(columns["mm_process"], spans)
    obj = columns["vma_object"]
    found: dict[int, list[tuple[int, int, int]]] = {}
    rows = np.flatnonzero((obj >= 0) & (process >= 0))
    key = obj[rows].astype(np.int64) << 32 | process[rows]
    rows = rows[np.unique(key, return_index=True)[1]]  # one of each address space
    order = np.argsort(obj[rows], kind="stable")
    rows = rows[order]
    _, first = np.unique(obj[rows], return_index=True)
    for start in first.tolist():
        for row in rows[start : start + TRIES].tolist():
            if obj[row] == obj[rows[start]]:
                one = (
                    int(process[row]),
                    int(columns["vma_start"][row]),
                    int(columns["vma_end"][row]),
                )
                found.setdefault(int(obj[row]), []).append(one)
    return found


def _see(record: ProcessRecord, mappings: Any) -> tuple[Seen | None, bytes, int, int]:
    status = int(Status.GONE)
    for process, start, end in mappings:
        held = record.held[process]
        name = b"map_files/%x-%x" % (start, end)
        try:
            path = os.readlink(name, dir_fd=held.dirfd)
            seen = look(held.dirfd, name, follow=True)
        except PermissionError:
            status = Status.DENIED
            continue
        except (OSError, ProcessGone):
            continue
        finally:
            held.release()
        return seen, path, process, Status.READ
    return None, b"", -1, status


def _running(record: ProcessRecord) -> set[tuple[int, int]]:
    """(st_dev, st_ino) of the programs that run: nobody may write to them."""
    pairs = np.unique(np.stack([record.rows["exe_dev"], record.rows["exe_inode"]]), axis=1)
    return {
        (os.major(dev) << 32 | os.minor(dev), inode)
        for dev, inode in pairs.T.tolist()
        if dev or inode
    }


def _layer(table: FileTable, mount: Mount, path: bytes | None, like: Seen) -> Place:
    """Where the file of an overlay lies itself: in the first of its layers that has it.

    Layers are named as the one that mounted it saw them; where our root shows the same file
    there we take it for that.
    """
    if path is None:
        return NOWHERE
    for layer in _layers(mount.super_options) or ():
        real = os.path.realpath(layer)
        found = table.walker.find((), table.our_root, real + path)
        if found is not None:
            seen, place = found
            same = (seen.mode, seen.uid, seen.gid, seen.size, seen.mtime)
            if same == (like.mode, like.uid, like.gid, like.size, like.mtime):
                return place
            return NOWHERE
        if table.walker.find((), table.our_root, real) is None:
            return NOWHERE
    return NOWHERE


def _layers(options: tuple[bytes, ...]) -> list[bytes] | None:
    """Directories of an overlay, the upper one first; None if one of them is not told."""
    upper: list[bytes] = []
    lower: list[bytes] = []
    for option in options:
        name, _, value = option.partition(b"=")
        if b"\\" in value:
            return None
        if name == b"upperdir":
            upper = [value]
        elif name == b"lowerdir":
            lower = [part for part in value.split(b":") if part]
        elif name in (b"lowerdir+", b"datadir+"):
            lower.append(value)
    # Runtimes name lower layers from the directory that holds the folders of all layers.
    home = upper[0].rsplit(b"/", 2)[0] if upper else b""
    full = [p if p.startswith(b"/") else home + b"/" + p for p in (*upper, *lower)]
    return full if all(p.startswith(b"/") for p in full) else None
