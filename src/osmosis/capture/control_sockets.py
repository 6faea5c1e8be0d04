"""Control sockets: sockets where connecting is power over others, found by who listens there.

A daemon is a process that holds a listening unix socket and whose program is one of those
below. The socket file is looked for at the name it was bound to, below the daemon's own root;
it is it if device and inode are those that the kernel gives for the socket.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.capture.ledger import Ledger
from osmosis.capture.mapped_files import FileTable
from osmosis.capture.mounts import is_remote
from osmosis.capture.places import FILE_ACL, NOWHERE, look
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, OpenKind, Status

__all__ = ["read_control_sockets"]

SOURCE = "control_sockets"
PROGRAMS = frozenset(
    b"dockerd containerd podman crio systemd dbus-daemon dbus-broker dbus-broker-launch libvirtd "
    b"virtqemud virtlxcd snapd".split()
)
AF_UNIX, LISTENING = 1, 10


def read_control_sockets(
    table: FileTable, columns: Mapping[str, NDArray[Any]], *, ledger: Ledger
) -> dict[str, NDArray[Any]]:
    """Read table daemon; the socket files go to *table*.

    Parameters
    ----------
    table
        Takes the socket files.
    columns
        Tables fd, open and socket, with the processes as they stand in the record.
    ledger
        Takes one row for each daemon whose socket file was not found.

    Returns
    -------
    dict of columns
        One row for each listening socket of each daemon. O(P + descriptors of daemons).
    """
    record = table.record
    out: dict[str, list[Any]] = {n: [] for n, c in COLUMNS.items() if c.table == "daemon"}
    listening = np.flatnonzero(
        (columns["socket_family"] == AF_UNIX)
        & (columns["socket_state"] == LISTENING)
        & (columns["socket_vfs_inode"] != 0)
    )
    socket_of = dict(
        zip(columns["socket_inode"][listening].tolist(), listening.tolist(), strict=True)
    )
    held = _held(columns)
    files: dict[int, int] = {}
    for process, text in enumerate(record.text["exe"].tolist()):
        exe = record.pool.text(text) if text >= 0 else b""
        name = exe.removesuffix(b" (deleted)").rpartition(b"/")[2]
        if name not in PROGRAMS:
            continue
        trusted = _trusted(table, process)
        for inode in held.get(process, ()):
            socket = socket_of.get(inode)
            if socket is None:
                continue
            if socket not in files:
                files[socket] = _add_file(table, process, socket, columns)
                if files[socket] < 0:
                    pid = record.held[process].pid
                    ledger.add(pid, SOURCE, Status.GONE, "the file of a listening socket")
            values = {
                "process": process,
                "file": files[socket],
                "name": record.pool.add(name),
                "trusted": trusted,
            }
            for key, value in values.items():
                out[f"daemon_{key}"].append(value)
    return {key: np.array(v, COLUMNS[key].dtype) for key, v in out.items()}


def _held(columns: Mapping[str, NDArray[Any]]) -> dict[int, set[int]]:
    """Inodes of the sockets that each process holds."""
    kind = np.append(columns["open_kind"], 255)[columns["fd_open"]]
    at = np.flatnonzero(kind == OpenKind.SOCKET)
    inode = columns["open_inode"][columns["fd_open"][at]]
    found: dict[int, set[int]] = {}
    for process, number in zip(columns["fd_process"][at].tolist(), inode.tolist(), strict=True):
        found.setdefault(process, set()).add(number)
    return found


def _trusted(table: FileTable, process: int) -> bool:
    """Whether root owns the program and nobody else may write to it: anybody may take a name."""
    held = table.record.held[process]
    try:
        seen = look(held.dirfd, b"exe", follow=True)
    except (OSError, ProcessGone):
        return False
    finally:
        held.release()
    return seen.uid == 0 and not seen.mode & (stat.S_IWGRP | stat.S_IWOTH)


def _add_file(
    table: FileTable, process: int, socket: int, columns: Mapping[str, NDArray[Any]]
) -> int:
    record = table.record
    text = int(columns["socket_name"][socket])
    # What was bound with its NUL is told with it.
    name = record.pool.text(text).partition(b"\0")[0] if text >= 0 else b""
    if not name.startswith(b"/"):
        return -1
    held = record.held[process]
    seen = None
    with suppress(OSError, ProcessGone):
        root = os.open("root", os.O_PATH | os.O_CLOEXEC, dir_fd=held.dirfd)
        try:
            # Symbolic links such as /var/run are followed below that root.
            path = _real(root, name)
            seen = look(root, path.lstrip(b"/"))
        finally:
            os.close(root)
    held.release()
    if seen is None or not stat.S_ISSOCK(seen.mode):
        return -1
    mount = table.walker.mounts.get(seen.mount)
    dev = int(columns["socket_vfs_dev"][socket])
    if seen.inode & 0xFFFFFFFF != int(columns["socket_vfs_inode"][socket]):
        return -1
    if mount is not None and dev not in (mount.dev, seen.dev):
        return -1
    far = mount is None or is_remote(mount.kind)
    found = None if far else table.find(process, path, seen)
    place, acl = found or (NOWHERE._replace(dev=mount.dev if mount else 0), True)
    file = table.add(seen, socket=socket, flags=FILE_ACL if acl else 0)
    table.add_place(file, place, sure=found is not None)
    return file


def _real(root: int, path: bytes) -> bytes:
    """*path* below directory *root*, its symbolic links followed; OSError."""
    done, todo, steps = b"", [n for n in path.split(b"/") if n], 0
    while todo:
        name = todo.pop(0)
        if name in (b".", b".."):
            done = done.rpartition(b"/")[0] if name == b".." else done
            continue
        here = done + b"/" + name
        if stat.S_ISLNK(look(root, here.lstrip(b"/")).mode):
            steps += 1
            if steps > 40:  # MAXSYMLINKS, include/linux/namei.h
                raise OSError(40, os.strerror(40))
            target = os.readlink(here.lstrip(b"/"), dir_fd=root)
            done = b"" if target.startswith(b"/") else done
            todo = [n for n in target.split(b"/") if n] + todo
        else:
            done = here
    return done
