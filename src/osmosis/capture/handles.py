"""What processes hold that gives power over others: pty masters, listeners, tracees, memory.

Found among the descriptors that files.py has read; nothing held is opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.capture.files import FileReader
from osmosis.capture.ledger import Ledger
from osmosis.capture.opens import PTMX, beside, device_of
from osmosis.capture.processes import Held, ProcessRecord
from osmosis.capture.tables import Tables, namespace_rows
from osmosis.errors import ProcessGone
from osmosis.schema import HandleKind, Status

__all__ = ["read_handles", "terminal_index"]

SOURCE = "handles"
PTMX_DEV = os.makedev(5, 2)  # Documentation/admin-guide/devices.txt
S_IFMT = 0o170000
PTS_MAJOR = 136
# FAN_CLASS_CONTENT and FAN_CLASS_PRE_CONTENT: groups that answer permission events.
# include/uapi/linux/fanotify.h
PERMISSION_CLASSES = 0x4 | 0x8
LISTENERS = {
    b"anon_inode:seccomp notify": HandleKind.SECCOMP,
    b"anon_inode:[userfaultfd]": HandleKind.USERFAULT,
    b"anon_inode:[fanotify]": HandleKind.FANOTIFY,
}
_NAMESPACE = re.compile(r"(\w+):\[(\d+)\]")
_MEMORY = re.compile(r".*/(\d+)(?:/task/(\d+))?/mem")
FORKNOEXEC = 0x40  # PF_FORKNOEXEC: no execve since its fork. include/linux/sched.h


def terminal_index(tty: int) -> int:
    """Index of the pty of a ``tty_nr``, -1 if it is none (new_encode_dev, linux/kdev_t.h)."""
    major, minor = tty >> 8 & 0xFFF, tty & 0xFF | tty >> 12 & 0xFFF00
    return minor if major == PTS_MAJOR else -1


def read_handles(
    record: ProcessRecord,
    namespaces: Mapping[str, NDArray[Any]],
    files: FileReader,
    *,
    ledger: Ledger,
) -> dict[str, NDArray[Any]]:
    """Read table handle, and ``control_untraced`` and ``control_fds``.

    *files* has read the descriptors of the same processes. O(descriptors) in NumPy, and a few
    calls for each that gives power.
    """
    reader = _Reader(record, namespaces, files, ledger)
    reader.note_tables()
    for part in files.parts:
        reader.look_at(part.columns)
    for i in np.flatnonzero(record.rows["tracer"] > 0).tolist():
        with suppress(OSError, ProcessGone):
            reader.read_tracers(i, record.held[i])
        record.held[i].release()
    return reader.columns()


class _Reader:
    def __init__(
        self,
        record: ProcessRecord,
        namespaces: Mapping[str, NDArray[Any]],
        files: FileReader,
        ledger: Ledger,
    ) -> None:
        self.record = record
        self.files = files
        self.ledger = ledger
        self.row_of = namespace_rows(namespaces)
        self.row_of_pid = {pid: i for i, pid in enumerate(record.pids.tolist())}
        self.out = Tables("handle")
        self.untraced = np.zeros(len(record), np.int32)
        self.fds = np.full(len(record), Status.READ, np.uint8)

    def columns(self) -> dict[str, NDArray[Any]]:
        columns = self.out.columns()
        return {**columns, "control_untraced": self.untraced, "control_fds": self.fds}

    def add(
        self,
        process: int,
        kind: int,
        *,
        number: int = 0,
        node: int = 0,
        target: int = -1,
        namespace: int = -1,
    ) -> None:
        self.out.add(
            "handle",
            process=process,
            kind=kind,
            number=number,
            node=node,
            target=target,
            namespace=namespace,
        )

    def note_tables(self) -> None:
        """Whose descriptors were not read, or not all of them."""
        reasons = {
            Status.DENIED: "its file descriptors",
            Status.PARTIAL: "some of its file descriptors are not told (source files)",
        }
        for i, pid in enumerate(self.record.pids.tolist()):
            self.fds[i] = status = self.files.status.get(pid, Status.GONE)
            if status in reasons:
                self.ledger.add(pid, SOURCE, status, reasons[status])

    def look_at(self, found: Mapping[str, NDArray[Any]]) -> None:
        """Everything that gives power among descriptors, as ``FileReader`` keeps them."""
        pool, name, rdev = self.record.pool, found["name"], found["rdev"]
        for row in np.unique(name[(found["mode"] & S_IFMT == 0) & (name >= 0)]).tolist():
            kind = LISTENERS.get(pool.text(row))
            if kind is not None:
                self.each(found, name == row, self.add_listener, kind)
        self.each(found, found["dev"] == self.nsfs, self.add_namespace)
        device = found["mode"] & S_IFMT == stat.S_IFCHR
        self.each(found, device & (rdev == PTMX), self.read_master)
        pids, rows = self.record.pids, self.record.rows
        own = np.array([terminal_index(tty) for tty in rows["tty"].tolist()], np.int64)
        row = np.minimum(np.searchsorted(pids, found["process"]), max(len(pids) - 1, 0))
        ours = own[row] if len(own) else np.empty(0, np.int64)
        here = device & (ours >= 0) & (rdev == (PTS_MAJOR << 32 | np.maximum(ours, 0)))
        self.each(found, here, self.add_terminal)
        # /proc/pid/mem, of this procfs or another one.
        known = self.files.trees.superblocks
        others = np.array([d for d, kind in known.items() if kind != b"proc"], np.uint64)
        memory = (found["mode"] == stat.S_IFREG | 0o600) & (found["access"] & 2 != 0)
        self.each(found, memory & ~np.isin(found["dev"], others), self.read_memory)

    @property
    def nsfs(self) -> int:
        return device_of(os.stat("/proc/self/ns/mnt"))

    def each(
        self,
        found: Mapping[str, NDArray[Any]],
        which: NDArray[np.bool_],
        work: Callable[..., None],
        *more: Any,
    ) -> None:
        """Call *work* with process row, directory and what stands before "fd", and number."""
        for j in np.flatnonzero(which).tolist():
            i = self.row_of_pid.get(int(found["process"][j]))
            if i is None:
                continue
            held = self.record.held[i]
            with suppress(OSError, ProcessGone):  # closed meanwhile
                at, prefix = beside(held, int(found["tid"][j]))
                work(i, at, prefix, int(found["fd"][j]), *more)
            held.release()

    def add_listener(self, i: int, dirfd: int, prefix: str, fd: int, kind: int) -> None:
        if kind != HandleKind.FANOTIFY or self.asks_permission(dirfd, f"{prefix}fdinfo/{fd}"):
            self.add(i, kind)

    def add_namespace(self, i: int, dirfd: int, prefix: str, fd: int) -> None:
        m = _NAMESPACE.fullmatch(os.readlink(f"{prefix}fd/{fd}", dir_fd=dirfd))
        row = self.row_of.get((m[1], int(m[2]))) if m else None
        if row is not None:
            self.add(i, HandleKind.NAMESPACE, namespace=row)

    def add_terminal(self, i: int, dirfd: int, prefix: str, fd: int) -> None:
        st = os.stat(f"{prefix}fd/{fd}", dir_fd=dirfd)
        terminal = terminal_index(int(self.record.rows["tty"][i]))
        if stat.S_ISCHR(st.st_mode) and st.st_rdev == os.makedev(PTS_MAJOR, terminal):
            self.add(i, HandleKind.TERMINAL, number=terminal, node=st.st_dev)

    def read_memory(self, i: int, dirfd: int, prefix: str, fd: int) -> None:
        """/proc/pid/mem, open for writing: rights were asked when it was opened, and not again.

        It leads to the address space of then (mem_open() in fs/proc/base.c): for certain that of
        now, ``number`` 1, if the process has called no execve since it was forked. One of another
        procfs is of a process that is not told, ``target`` -1.
        """
        path = f"{prefix}fd/{fd}"
        named = _MEMORY.fullmatch(os.readlink(path, dir_fd=dirfd))
        if named is None:
            return
        st = os.stat(path, dir_fd=dirfd)
        mode = os.stat(path, dir_fd=dirfd, follow_symlinks=False).st_mode
        if st.st_mode != stat.S_IFREG | 0o600 or st.st_size or not mode & 0o200:
            return
        if st.st_dev != os.fstat(self.record.procfd).st_dev:
            if os.major(st.st_dev) == 0:
                self.add(i, HandleKind.MEMORY)
            return
        path = f"{named[1]}/task/{named[2]}/mem" if named[2] else f"{named[1]}/mem"
        with suppress(FileNotFoundError, ProcessLookupError):
            # The inode lives as long as the file is open: a like number is a like process.
            if os.stat(path, dir_fd=self.record.procfd).st_ino != st.st_ino:
                return
            tgid = _field(_read(self.record.procfd, f"{named[1]}/status"), b"Tgid")
            target = self.row_of_pid.get(tgid)
            if target is not None:
                sure = bool(self.record.rows[target]["flags"] & FORKNOEXEC)
                sure &= self.record.held[target].tid == tgid  # flags of the leader itself
                self.add(i, HandleKind.MEMORY, number=int(sure), target=target)

    def asks_permission(self, dirfd: int, path: str) -> bool:
        found = re.search(rb"fanotify flags:([0-9a-f]+)", _read(dirfd, path))
        return found is None or bool(int(found[1], 16) & PERMISSION_CLASSES)

    def read_master(self, i: int, dirfd: int, prefix: str, fd: int) -> None:
        link = os.readlink(f"{prefix}fd/{fd}", dir_fd=dirfd)
        st = os.stat(f"{prefix}fd/{fd}", dir_fd=dirfd)
        found = re.search(rb"tty-index:\s*(\d+)", _read(dirfd, f"{prefix}fdinfo/{fd}"))
        if st.st_rdev != PTMX_DEV or not stat.S_ISCHR(st.st_mode) or found is None:
            return
        node = 0
        # devpts_mntget: the instance is that of the node, or is mounted on "pts" beside it.
        directory = "root" + link.rpartition("/")[0]
        for path in (f"{directory}/pts/ptmx", f"{directory}/ptmx"):
            with suppress(OSError):
                there = os.stat(path, dir_fd=dirfd)
                if there.st_rdev == PTMX_DEV and not node:
                    node = there.st_dev
        self.add(i, HandleKind.PTY_MASTER, number=int(found[1]), node=node)

    def read_tracers(self, i: int, held: Held) -> None:
        free, tracers = 0, set()
        for tid in _names(held.leaderfd, "task"):
            with suppress(FileNotFoundError, ProcessLookupError):
                by = _field(_read(held.leaderfd, f"task/{tid}/status"), b"TracerPid")
                free += by == 0
                tracers.add(by)
        self.untraced[i] = free
        for number in tracers - {0}:
            tracer = self.row_of_pid.get(number)
            if tracer is None:  # a thread of its process
                with suppress(OSError):
                    text = _read(self.record.procfd, f"{number}/status")
                    tracer = self.row_of_pid.get(_field(text, b"Tgid"))
            if tracer is not None:
                self.add(tracer, HandleKind.TRACER, target=i)


def _field(text: bytes, name: bytes) -> int:
    found = re.search(rb"^" + name + rb":\s*(\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _names(dirfd: int, path: str) -> list[str]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dirfd)
    try:
        return os.listdir(fd)  # noqa: PTH208  # a descriptor has no Path
    finally:
        os.close(fd)


def _read(dirfd: int, path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dirfd)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)
