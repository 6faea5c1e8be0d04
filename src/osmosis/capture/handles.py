"""What processes hold that gives power over others: pty masters, listeners, tracees, memory.

Found by the links of their descriptors; nothing held is opened. A descriptor in flight over a
unix socket, or registered with io_uring, is not seen.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.capture.files import split_table
from osmosis.capture.ledger import Ledger
from osmosis.capture.processes import Held, ProcessRecord
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, NAMESPACES, HandleKind, Status

__all__ = ["read_handles", "terminal_index"]

SOURCE = "handles"
PTMX = os.makedev(5, 2)  # Documentation/admin-guide/devices.txt
PTS_MAJOR = 136
# FAN_CLASS_CONTENT and FAN_CLASS_PRE_CONTENT: groups that answer permission events.
# include/uapi/linux/fanotify.h
PERMISSION_CLASSES = 0x4 | 0x8
LISTENERS = {
    "anon_inode:seccomp notify": HandleKind.SECCOMP,
    "anon_inode:[userfaultfd]": HandleKind.USERFAULT,
    "anon_inode:[fanotify]": HandleKind.FANOTIFY,
}
_NAMESPACE = re.compile(r"(\w+):\[(\d+)\]")
_MEMORY = re.compile(r".*/(\d+)(?:/task/(\d+))?/mem")
FORKNOEXEC = 0x40  # PF_FORKNOEXEC: no execve since its fork. include/linux/sched.h


def terminal_index(tty: int) -> int:
    """Index of the pty of a ``tty_nr``, -1 if it is none (new_encode_dev, linux/kdev_t.h)."""
    major, minor = tty >> 8 & 0xFFF, tty & 0xFF | tty >> 12 & 0xFFF00
    return minor if major == PTS_MAJOR else -1


def read_handles(
    record: ProcessRecord, namespaces: Mapping[str, NDArray[Any]], *, ledger: Ledger
) -> dict[str, NDArray[Any]]:
    """Read table handle, and ``control_untraced`` and ``control_fds``.

    O(descriptors of all processes): one readlink each.
    """
    reader = _Reader(record, namespaces, ledger)
    for i in range(len(record)):
        reader.read(i)
    return reader.columns()


class _Reader:
    def __init__(
        self, record: ProcessRecord, namespaces: Mapping[str, NDArray[Any]], ledger: Ledger
    ) -> None:
        self.record = record
        self.ledger = ledger
        pairs = zip(
            namespaces["namespace_kind"].tolist(),
            namespaces["namespace_inode"].tolist(),
            strict=True,
        )
        self.row_of = {(NAMESPACES[k], inode): row for row, (k, inode) in enumerate(pairs)}
        self.row_of_pid = {pid: i for i, pid in enumerate(record.pids.tolist())}
        self.out: dict[str, list[int]] = {n: [] for n, c in COLUMNS.items() if c.table == "handle"}
        self.untraced = np.zeros(len(record), np.int32)
        self.fds = np.full(len(record), Status.READ, np.uint8)

    def columns(self) -> dict[str, NDArray[Any]]:
        columns = {name: np.array(v, COLUMNS[name].dtype) for name, v in self.out.items()}
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
        row = (process, kind, number, node, target, namespace)
        for name, value in zip(self.out, row, strict=True):
            self.out[name].append(value)

    def read(self, i: int) -> None:
        held = self.record.held[i]
        row = self.record.rows[i]
        try:
            if row["tracer"] > 0:
                self.read_tracers(i, held)
            terminal = terminal_index(int(row["tty"]))
            for fd in _names(held.dirfd, "fd"):
                with suppress(FileNotFoundError):  # closed meanwhile
                    self.look_at(i, held.dirfd, fd, terminal)
            if row["threads"] > 1:
                why = split_table(held, comparable=self.record.collector.same_pid_ns)
                if why:
                    self.fds[i] = Status.PARTIAL
                    self.ledger.add(held.pid, SOURCE, Status.PARTIAL, why)
        except PermissionError:
            self.fds[i] = Status.DENIED
            self.ledger.add(held.pid, SOURCE, Status.DENIED, "its file descriptors")
        except (OSError, ProcessGone):
            self.fds[i] = Status.GONE
        finally:
            held.release()

    def look_at(self, i: int, dirfd: int, fd: str, terminal: int) -> None:
        link = os.readlink(f"fd/{fd}", dir_fd=dirfd)
        if link in LISTENERS:
            kind = LISTENERS[link]
            if kind != HandleKind.FANOTIFY or self.asks_permission(dirfd, fd):
                self.add(i, kind)
        elif (m := _NAMESPACE.fullmatch(link)) and m[1] in NAMESPACES:
            row = self.row_of.get((m[1], int(m[2])))
            if row is not None:
                self.add(i, HandleKind.NAMESPACE, namespace=row)
        elif link.endswith("/mem"):
            self.read_memory(i, dirfd, fd, link)
        elif link.endswith("ptmx"):
            self.read_master(i, dirfd, fd, link)
        elif terminal >= 0 and link.endswith(f"/{terminal}"):
            st = os.stat(f"fd/{fd}", dir_fd=dirfd)
            if stat.S_ISCHR(st.st_mode) and st.st_rdev == os.makedev(PTS_MAJOR, terminal):
                self.add(i, HandleKind.TERMINAL, number=terminal, node=st.st_dev)

    def read_memory(self, i: int, dirfd: int, fd: str, link: str) -> None:
        """/proc/pid/mem, open for writing: rights were asked when it was opened, and not again.

        It leads to the address space of then (mem_open() in fs/proc/base.c): for certain that of
        now, ``number`` 1, if the process has called no execve since it was forked. One of another
        procfs is of a process that is not told, ``target`` -1.
        """
        named = _MEMORY.fullmatch(link)
        st = os.stat(f"fd/{fd}", dir_fd=dirfd)
        mode = os.stat(f"fd/{fd}", dir_fd=dirfd, follow_symlinks=False).st_mode
        if named is None or st.st_mode != stat.S_IFREG | 0o600 or st.st_size or not mode & 0o200:
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

    def asks_permission(self, dirfd: int, fd: str) -> bool:
        found = re.search(rb"fanotify flags:([0-9a-f]+)", _read(dirfd, f"fdinfo/{fd}"))
        return found is None or bool(int(found[1], 16) & PERMISSION_CLASSES)

    def read_master(self, i: int, dirfd: int, fd: str, link: str) -> None:
        st = os.stat(f"fd/{fd}", dir_fd=dirfd)
        found = re.search(rb"tty-index:\s*(\d+)", _read(dirfd, f"fdinfo/{fd}"))
        if st.st_rdev != PTMX or not stat.S_ISCHR(st.st_mode) or found is None:
            return
        node = 0
        # devpts_mntget: the instance is that of the node, or is mounted on "pts" beside it.
        directory = "root" + link.rpartition("/")[0]
        for path in (f"{directory}/pts/ptmx", f"{directory}/ptmx"):
            with suppress(OSError):
                beside = os.stat(path, dir_fd=dirfd)
                if beside.st_rdev == PTMX and not node:
                    node = beside.st_dev
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
