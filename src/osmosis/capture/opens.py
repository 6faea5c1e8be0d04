"""From descriptors to open files: what tells one open file from another.

A file, directory, pipe or socket is told by (st_dev, inode number, birth time). Anonymous inodes
share one inode number, and each open of a clone device (kvm, tun, fuse ...) has a state of its
own: these are told by the open file description, which kcmp(KCMP_FILE) compares. A pty is told by
its devpts and index, whichever end is held. Of files that a process holds memfds alone are opened,
for reading: their seals are told to nobody else.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _fastproc import fds
from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.mounts import MountReader
from osmosis.capture.pinned import Held, slurp
from osmosis.capture.processes import ProcessRecord
from osmosis.errors import ProcessGone
from osmosis.schema import OpenKind, Status

__all__ = ["PTMX", "TRIES", "Opens", "beside", "device_of", "socket_device"]

TRIES = 4  # descriptors asked for what any descriptor of it tells

PTMX = 5 << 32 | 2  # Documentation/admin-guide/devices.txt
PTS_MAJORS = range(136, 144)
# Devices of which every open has a state of its own: ppp; vfio, tun, cuse, uinput, fuse, kvm,
# vhost-net, uhid, vhost-vsock. Source: Documentation/admin-guide/devices.txt, miscdevice.h.
CLONE = (
    108 << 32,
    *(10 << 32 | minor for minor in (196, 200, 203, 223, 229, 232, 238, 239, 241)),
)
ANONYMOUS = {
    b"anon_inode:[eventfd]": OpenKind.EVENTFD,
    b"anon_inode:[eventpoll]": OpenKind.EPOLL,
    b"anon_inode:[timerfd]": OpenKind.TIMERFD,
    b"anon_inode:[signalfd]": OpenKind.SIGNALFD,
    b"anon_inode:inotify": OpenKind.INOTIFY,
    b"anon_inode:[fanotify]": OpenKind.FANOTIFY,
    b"anon_inode:[io_uring]": OpenKind.IO_URING,
    b"anon_inode:[pidfd]": OpenKind.PIDFD,
}
BY_MODE = {
    stat.S_IFREG: OpenKind.FILE,
    stat.S_IFDIR: OpenKind.DIRECTORY,
    stat.S_IFIFO: OpenKind.PIPE,
    stat.S_IFCHR: OpenKind.CHAR,
    stat.S_IFBLK: OpenKind.BLOCK,
    0: OpenKind.ANON,
}
_MOUNT_ID = re.compile(rb"^mnt_id:\s*(\d+)$", re.MULTILINE)
_TTY_INDEX = re.compile(rb"^tty-index:\s*(\d+)$", re.MULTILINE)
# The slots for registered files, a line each: __io_uring_show_fdinfo() in io_uring/fdinfo.c.
_REGISTERED = re.compile(rb"^UserFiles:[^\n]*\n((?:\s*\d+: [^\n]*\n)*)", re.MULTILINE)
_PID = re.compile(rb"^Pid:\s*(-?\d+)$", re.MULTILINE)

Columns = dict[str, NDArray[Any]]


def beside(held: Held, tid: int) -> tuple[int, str]:
    """Open directory of a process or thread, and what stands before "fd" below it.

    *tid* 0 means the descriptor table of the process, else that of one of its threads.
    """
    return (held.leaderfd, f"task/{tid}/") if tid else (held.dirfd, "")


def device_of(facts: os.stat_result) -> int:
    """st_dev as the tables have it: major << 32 | minor."""
    return os.major(facts.st_dev) << 32 | os.minor(facts.st_dev)


def socket_device() -> int:
    """Device of the filesystem that all sockets are in."""
    with socket.socket(socket.AF_UNIX) as own:
        return device_of(os.fstat(own.fileno()))


class Opens:
    """From descriptors to open files: columns of N descriptors in, table ``open`` out."""

    def __init__(
        self,
        record: ProcessRecord,
        trees: MountReader,
        found: Columns,
        *,
        ledger: Ledger,
        threads: int = 1,
    ) -> None:
        self.record = record
        self.trees = trees
        self.ledger = ledger
        self.threads = threads
        self.pool = record.pool
        self.found = found
        self.n = len(found["fd"])
        self.held = {held.pid: held for held in record.held}
        self.memory = _memory_devices()
        self.kind = self._kinds()
        self.number = np.full(self.n, -1, np.int64)
        self.sure = found["mode"] != fds.NO_MODE

    def table(self) -> tuple[Columns, NDArray[np.int64]]:
        """Columns of table ``open``, and its row for each descriptor."""
        self._read_pidfds()
        self._read_ptys()
        self._compare_files()
        found = self.found
        order = np.lexsort(
            (found["birth"], self.number, found["rdev"], found["dev"], self.kind, found["inode"])
        )
        new = np.ones(self.n, bool)
        new[1:] = False
        for column in (found["birth"], self.number, found["rdev"], found["dev"], self.kind):
            new[1:] |= column[order][1:] != column[order][:-1]
        new[1:] |= found["inode"][order][1:] != found["inode"][order][:-1]
        # One that could not be told apart stands for itself.
        new[1:] |= ~self.sure[order][1:] | ~self.sure[order][:-1]
        of = np.empty(self.n, np.int64)
        of[order] = np.cumsum(new) - 1
        first = order[new]
        name = np.full(len(first), -1, np.int32)
        named = np.flatnonzero(found["name"] >= 0)[::-1]
        name[of[named]] = found["name"][named]
        columns = {
            "open_kind": self.kind[first],
            "open_dev": found["dev"][first],
            "open_inode": found["inode"][first],
            "open_rdev": found["rdev"][first],
            "open_number": self.number[first],
            "open_birth": found["birth"][first],
            "open_super": self._superblocks()[first],
            "open_name": name,
            "open_sure": self.sure[first],
            "open_seals": self._seals(of)[: len(first)],
        }
        return columns, of

    def _kinds(self) -> NDArray[np.uint8]:
        found, mode = self.found, self.found["mode"]
        kind = np.full(self.n, OpenKind.OTHER, np.uint8)
        shape = mode & 0o170000
        for bits, of in BY_MODE.items():
            kind[shape == bits] = of
        # Sockets by their filesystem: O_PATH of a path leads to a file of type socket, too.
        kind[(shape == stat.S_IFSOCK) & (found["dev"] == socket_device())] = OpenKind.SOCKET
        nsfs = device_of(os.stat("/proc/self/ns/mnt"))
        kind[(shape == stat.S_IFREG) & (found["dev"] == nsfs)] = OpenKind.NAMESPACE
        refused = mode == fds.NO_MODE
        kind[refused] = OpenKind.FILE
        for row in np.unique(found["name"][kind == OpenKind.ANON]).tolist():
            of_name = ANONYMOUS.get(self.pool.text(row) if row >= 0 else b"")
            if of_name is not None:
                kind[(found["name"] == row) & (kind == OpenKind.ANON)] = of_name
        major = (found["rdev"] >> np.uint64(32)).astype(np.int64)
        pts = np.isin(major, list(PTS_MAJORS)) | (found["rdev"] == PTMX)
        kind[(kind == OpenKind.CHAR) & pts] = OpenKind.PTY
        return kind

    def _text(self, i: int) -> bytes:
        """Return the fdinfo of descriptor row *i*, b"" if it is not there any more."""
        held = self.held[int(self.found["process"][i])]
        try:
            at, prefix = beside(held, int(self.found["tid"][i]))
            return slurp(at, f"{prefix}fdinfo/{self.found['fd'][i]}")
        except (OSError, ProcessGone):
            return b""
        finally:
            held.release()

    def _info(self, i: int, pattern: re.Pattern[bytes]) -> int | None:
        """Return the number that the fdinfo of descriptor row *i* has, if it has it."""
        got = pattern.search(self._text(i))
        return int(got[1]) if got else None

    def registered(self) -> set[int]:
        """Pids of processes with an io_uring that holds files by itself, or may do so.

        It tells nothing while it is being used: io_uring_show_fdinfo() only tries its lock.
        """
        rings = np.flatnonzero(self.kind == OpenKind.IO_URING)
        return {int(self.found["process"][i]) for i in rings.tolist() if self._has_files(i)}

    def _has_files(self, i: int) -> bool:
        for _ in range(TRIES):
            found = _REGISTERED.search(self._text(i))
            if found:
                return any(not slot.endswith(b"<none>") for slot in found[1].splitlines())
        return True

    def _seals(self, of: NDArray[np.int64]) -> NDArray[np.int32]:
        """F_SEAL_* of each open file: of memfds, -1 if they were not told; else 0.

        O_PATH first: what is then opened is the memfd and nothing that took its number.
        """
        found = self.found
        out = np.zeros(int(of.max(initial=-1)) + 1, np.int32)
        rows = np.flatnonzero(
            (self.kind == OpenKind.FILE) & np.isin(found["dev"], np.array(self.memory, np.uint64))
        )
        tries: dict[int, int] = {}
        for i in rows.tolist():
            row = int(of[i])
            if tries.setdefault(row, 0) == TRIES or (tries[row] and out[row] >= 0):
                continue
            tries[row] += 1
            held = self.held[int(found["process"][i])]
            out[row] = -1
            with suppress(OSError, ProcessGone):
                at, prefix = beside(held, int(found["tid"][i]))
                path = f"{prefix}fd/{found['fd'][i]}"
                out[row] = _seals_of(at, path, int(found["inode"][i]), self.memory)
            held.release()
        return out

    def _read_pidfds(self) -> None:
        for i in np.flatnonzero(self.kind == OpenKind.PIDFD).tolist():
            pid = self._info(i, _PID)
            self.sure[i] = pid is not None
            self.number[i] = -1 if pid is None else pid
            self.found["dev"][i] = self.found["inode"][i] = 0

    def _read_ptys(self) -> None:
        """Both ends of a pty as one: by the devpts instance and the index."""
        found = self.found
        ptys = np.flatnonzero(self.kind == OpenKind.PTY)
        instances = {d for d, kind in self.trees.superblocks.items() if kind == b"devpts"}
        for i in ptys.tolist():
            rdev, dev = int(found["rdev"][i]), int(found["dev"][i])
            if rdev == PTMX:
                index = self._info(i, _TTY_INDEX)
                self.sure[i] = index is not None
                found["inode"][i] = index or 0
                if dev not in instances:
                    dev = self._devpts_beside(i)
                    if not dev and len(instances) == 1:
                        dev = next(iter(instances))
            else:
                # 256 indices a major: MAJOR, MINOR of drivers/tty/pty.c, unix98_pty_init().
                found["inode"][i] = (rdev & 0xFFFFFFFF) + ((rdev >> 32) - PTS_MAJORS[0]) * 256
            found["dev"][i] = dev
            self.sure[i] &= dev != 0
            found["rdev"][i] = found["birth"][i] = 0

    def _devpts_beside(self, i: int) -> int:
        """The instance of a master that was opened by a node outside devpts: mounted beside it.

        devpts_acquire() in fs/devpts/inode.c looks for "pts" in the directory of the node.
        """
        held = self.held[int(self.found["process"][i])]
        row = int(self.found["name"][i])
        if row < 0:
            return 0
        directory = b"root" + self.pool.text(row).rpartition(b"/")[0]
        try:
            with suppress(OSError, ProcessGone):
                there = os.stat(directory + b"/pts/ptmx", dir_fd=held.dirfd)
                if os.major(there.st_rdev) << 32 | os.minor(there.st_rdev) == PTMX:
                    return device_of(there)
        finally:
            held.release()
        return 0

    def _compare_files(self) -> None:
        """Tell anonymous inodes and clone devices apart by their open file descriptions."""
        found, kind = self.found, self.kind
        low, high = OpenKind.EVENTFD, OpenKind.ANON
        by_file = (kind >= low) & (kind <= high) & self.sure
        clones = (kind == OpenKind.CHAR) & np.isin(found["rdev"], np.array(CLONE, np.uint64))
        rows = np.flatnonzero(by_file | clones)
        if not len(rows):
            return
        if not self.record.collector.same_pid_ns:
            self.sure[rows] = False
            why = "/proc is of another pid namespace: kcmp cannot name its processes"
            self.ledger.add(HOST, "kcmp", Status.SKIPPED, why, len(rows))
            return
        pids, of = np.unique(found["process"][rows], return_inverse=True)
        leaders = np.array([self.held[pid].tid for pid in pids.tolist()], np.int32)[of]
        tids = np.where(found["tid"][rows] > 0, found["tid"][rows], leaders).astype(np.int32)
        numbers = found["fd"][rows].astype(np.int32)
        # One open file is of one kind and device: each can be sorted by itself.
        _, group = np.unique(
            np.stack([kind[rows].astype(np.uint64), found["rdev"][rows], found["inode"][rows]]),
            axis=1,
            return_inverse=True,
        )
        group = group.reshape(-1)
        parts = [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)]
        with ThreadPoolExecutor(self.threads) as workers:
            answers = list(workers.map(lambda p: fds.same_files(tids[p], numbers[p]), parts))
        base = undecided = 0
        for part, (number, _errors) in zip(parts, answers, strict=True):
            known = number >= 0
            self.number[rows[part]] = np.where(known, number + base, -1)
            self.sure[rows[part]] = known
            base += int(number.max(initial=-1)) + 1
            undecided += int((~known).sum())
        found["birth"][rows] = 0
        if undecided:
            why = "kcmp could not compare them: refused, or closed meanwhile"
            self.ledger.add(HOST, "kcmp", Status.DENIED, why, undecided)

    def _superblocks(self) -> NDArray[np.uint64]:
        """s_dev of the superblock of each descriptor's file, 0 where it is not known."""
        superblocks = self.trees.superblocks
        by_id = self.trees.by_id
        found = self.found
        out = found["dev"].copy()
        on_disk = np.flatnonzero((self.kind <= OpenKind.DIRECTORY) & (found["dev"] != 0))
        for dev in np.setdiff1d(found["dev"][on_disk], [*self.memory, *superblocks]).tolist():
            rows = on_disk[found["dev"][on_disk] == dev]
            numbers = (self._info(i, _MOUNT_ID) for i in rows[:TRIES].tolist())
            mount = next((by_id[n] for n in numbers if n in by_id), None)
            out[rows] = mount.dev if mount else 0
        return out


def _memory_devices() -> list[int]:
    """Devices of memfds, of ordinary and of huge pages, which are mounted nowhere."""
    found = []
    for flags in (0, getattr(os, "MFD_HUGETLB", 4)):
        with suppress(OSError, AttributeError):
            fd = os.memfd_create("probe", os.MFD_CLOEXEC | flags)
            with os.fdopen(fd, "rb"):
                found.append(device_of(os.fstat(fd)))
    return found


def _seals_of(at: int, path: str, inode: int, devices: list[int]) -> int:
    """Seals of the memfd that a descriptor leads to; OSError."""
    link = os.open(path, os.O_PATH | os.O_CLOEXEC, dir_fd=at)
    try:
        if os.fstat(link).st_ino != inode or device_of(os.fstat(link)) not in devices:
            raise ProcessLookupError(3, "the descriptor is another one's by now")
        own = os.open(f"/proc/self/fd/{link}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(link)
    try:
        return fcntl.fcntl(own, fcntl.F_GET_SEALS)
    finally:
        os.close(own)
