"""Open files: the descriptors of every process, and what tells one open file from another.

A file, directory, pipe or socket is told by (st_dev, inode number, birth time). Anonymous inodes
share one inode number, and each open of a clone device (kvm, tun, fuse ...) has a state of its
own: these are told by the open file description, which kcmp(KCMP_FILE) compares. A pty is told by
its devpts and index, whichever end is held. No file that a process holds is opened.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _fastproc import fds, nsfs
from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.mounts import MountReader
from osmosis.capture.pinned import Held, slurp
from osmosis.capture.processes import ProcessRecord
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, OpenKind, Status

__all__ = ["FileReader", "split_table"]

SOURCE = "files"
CHUNK = 128  # processes in one call: so many directories may have to be opened for it
TRIES = 4  # descriptors asked for the mount of a device that is in no mount table
DENIALS = (1, 13)  # EPERM, EACCES

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
# A registered file a line: __io_uring_show_fdinfo() in io_uring/fdinfo.c; once "<none>" if empty.
_REGISTERED = re.compile(rb"^UserFiles:\s*\d+\n\s*\d+: (?!<none>)", re.MULTILINE)
_PID = re.compile(rb"^Pid:\s*(-?\d+)$", re.MULTILINE)

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Descriptors of some processes; column ``process`` is a pid, ``name`` a row of the pool."""

    columns: Columns
    pids: list[int]
    errors: list[int]  # of each pid, 0 if it was read


def split_table(held: Held, *, comparable: bool = True) -> str:
    """Why the descriptors of a process may be more than those of the thread read; "" if not.

    unshare(CLONE_FILES) gives a thread a table of its own. One that is empty holds nothing: so
    has a thread that is exiting. O(threads) kcmp calls; *comparable*: /proc is of our pid
    namespace. Raises nothing.
    """
    if not comparable:
        return "threads' descriptor tables cannot be compared: /proc is of another pid namespace"
    with suppress(OSError, ProcessGone):
        try:
            at = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=held.leaderfd)
            try:
                tids = np.array([int(tid) for tid in os.listdir(at)], np.int32)  # noqa: PTH208
                tids = tids[tids != held.tid]
                found = nsfs.other_tables(held.tid, tids)
                for tid, state in zip(tids.tolist(), found, strict=True):
                    if state == 1 and _has_descriptors(at, tid):
                        return "a thread of it has a descriptor table of its own, which is not read"
                    if state < 0 and -state != errno.ESRCH:
                        return f"its threads' descriptor tables: kcmp: {os.strerror(-state)}"
            finally:
                os.close(at)
        finally:
            held.release()
    return ""


def _has_descriptors(task: int, tid: int) -> bool:
    """Whether a thread's descriptor table is not empty, or cannot be looked at."""
    try:
        at = os.open(f"{tid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=task)
    except OSError as exc:
        return exc.errno in DENIALS
    try:
        return bool(os.listdir(at))  # noqa: PTH208
    except OSError:
        return False
    finally:
        os.close(at)


class FileReader:
    """Reads the descriptors of every process; keyed by pid until rows are final.

    About 5 us a descriptor and thread, the GIL released, and a readlink for each file that one
    part of the reading had not seen; 60 bytes a descriptor.
    """

    def __init__(
        self, record: ProcessRecord, trees: MountReader, *, ledger: Ledger, threads: int = 1
    ) -> None:
        self.record = record
        self.trees = trees
        self.ledger = ledger
        self.threads = max(1, threads)
        self.parts: list[_Part] = []
        self.read_of: dict[int, Held] = {}
        self.status: dict[int, int] = {}

    def read(self) -> None:
        """Read every process."""
        self._read(list(self.record.held))

    def refresh(self) -> None:
        """Read those again that changed (execve, setuid ...) and were read again since.

        What was read of the program before is thrown away.
        """
        again = [held for held in self.record.held if self.read_of.get(held.pid) is not held]
        if not again:
            return
        pids = np.array([held.pid for held in again], np.int32)
        for part in self.parts:
            stay = ~np.isin(part.columns["process"], pids)
            for name, column in part.columns.items():
                part.columns[name] = column[stay]
        for held in again:
            self.ledger.forget(held.pid, SOURCE)
        self._read(again)

    def _note_split(self, held: list[Held]) -> None:
        """Threads with a descriptor table of their own: what is in it was not read."""
        threads = dict(
            zip(self.record.pids.tolist(), self.record.rows["threads"].tolist(), strict=True)
        )
        ours = self.record.collector.same_pid_ns
        for one in held:
            if threads.get(one.pid, 1) > 1 and self.status[one.pid] == Status.READ:
                why = split_table(one, comparable=ours)
                if why:
                    self.status[one.pid] = Status.PARTIAL
                    self.ledger.add(one.pid, SOURCE, Status.PARTIAL, why)

    def _read(self, held: list[Held]) -> None:
        chunks = [held[i : i + CHUNK] for i in range(0, len(held), CHUNK)] or [held]
        with ThreadPoolExecutor(self.threads) as workers:
            parts = list(workers.map(self._scan, chunks))
        self.parts += parts
        self.read_of |= {one.pid: one for one in held}
        for part in parts:
            for pid, code in zip(part.pids, part.errors, strict=True):
                if code in DENIALS:
                    self.status[pid] = Status.DENIED
                    self.ledger.add(pid, SOURCE, Status.DENIED, "its file descriptors")
                elif code:
                    self.status[pid] = Status.GONE
                    self.ledger.add(pid, SOURCE, Status.GONE, os.strerror(code))
                else:
                    self.status[pid] = Status.READ
        self._note_split(held)

    def _scan(self, chunk: list[Held]) -> _Part:
        at = np.full(len(chunk), -1, np.int32)
        lost = np.zeros(len(chunk), bool)
        for i, held in enumerate(chunk):
            try:
                at[i] = held.dirfd
            except (ProcessGone, OSError):
                lost[i] = True
        pids = np.array([held.pid for held in chunk], np.int32)
        try:
            columns, names, errors = fds.scan(at, pids)
        finally:
            for held in chunk:
                held.release()
        errors[lost] = 3  # ESRCH
        rows = self.record.pool.add_all(names)
        named = columns["name"] >= 0
        columns["name"][named] = rows[columns["name"][named]]
        return _Part(columns, pids.tolist(), errors.tolist())

    def columns(self, row_of: Mapping[int, int]) -> Columns:
        """Tables fdtable, fd and open.

        Parameters
        ----------
        row_of
            Row of each process of the snapshot, by pid; others are left out.

        """
        fields = ("process", "fd", "access", "dev", "inode", "rdev", "birth", "mode", "name")
        pids = np.array(sorted(row_of), np.int32)
        found = {f: np.concatenate([part.columns[f] for part in self.parts]) for f in fields}
        stay = np.isin(found["process"], pids)
        found = {f: column[stay] for f, column in found.items()}
        made = _Opens(self, found)
        opens, of = made.table()
        for pid in made.registered():
            self.status[pid] = Status.PARTIAL
            why = "an io_uring of it holds registered files, which are not told apart"
            self.ledger.add(pid, SOURCE, Status.PARTIAL, why)
        rows = np.array([row_of[pid] for pid in pids.tolist()], np.int32)
        at = np.searchsorted(pids, found["process"])
        self._note_read(row_of, found["process"])
        out = {
            "fdtable_process": rows,
            "fdtable_status": [self.status.get(pid, Status.GONE) for pid in pids.tolist()],
            "fd_process": rows[at] if len(rows) else np.empty(0),
            "fd_fd": found["fd"],
            "fd_access": found["access"],
            "fd_open": of,
            **opens,
        }
        return {name: np.asarray(v).astype(COLUMNS[name].dtype) for name, v in out.items()}

    def _note_read(self, row_of: Mapping[int, int], process: NDArray[np.int32]) -> None:
        read = [pid for pid in row_of if self.status.get(pid) == Status.READ]
        self.ledger.add_many(read, SOURCE, Status.READ)
        self.ledger.add(HOST, SOURCE, Status.READ, "", len(process))


class _Opens:
    """From descriptors to open files: columns of N descriptors in, table ``open`` out."""

    def __init__(self, reader: FileReader, found: Columns) -> None:
        self.reader = reader
        self.record = reader.record
        self.pool = reader.record.pool
        self.found = found
        self.n = len(found["fd"])
        self.held = {held.pid: held for held in reader.record.held}
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
        }
        return columns, of

    def _kinds(self) -> NDArray[np.uint8]:
        found, mode = self.found, self.found["mode"]
        kind = np.full(self.n, OpenKind.OTHER, np.uint8)
        shape = mode & 0o170000
        for bits, of in BY_MODE.items():
            kind[shape == bits] = of
        # Sockets by their filesystem: O_PATH of a path leads to a file of type socket, too.
        with socket.socket(socket.AF_UNIX) as own:
            kind[(shape == stat.S_IFSOCK) & (found["dev"] == _device(os.fstat(own.fileno())))] = (
                OpenKind.SOCKET
            )
        nsfs = _device(os.stat("/proc/self/ns/mnt"))
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
            return slurp(held.dirfd, f"fdinfo/{self.found['fd'][i]}")
        except (OSError, ProcessGone):
            return b""
        finally:
            held.release()

    def _info(self, i: int, pattern: re.Pattern[bytes]) -> int | None:
        """Return the number that the fdinfo of descriptor row *i* has, if it has it."""
        got = pattern.search(self._text(i))
        return int(got[1]) if got else None

    def registered(self) -> set[int]:
        """Pids of processes with an io_uring that holds files by itself."""
        rings = np.flatnonzero(self.kind == OpenKind.IO_URING)
        pids = self.found["process"]
        return {int(pids[i]) for i in rings.tolist() if _REGISTERED.search(self._text(i))}

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
        instances = {d for d, kind in self.reader.trees.superblocks.items() if kind == b"devpts"}
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
                beside = os.stat(directory + b"/pts/ptmx", dir_fd=held.dirfd)
                if os.major(beside.st_rdev) << 32 | os.minor(beside.st_rdev) == PTMX:
                    return _device(beside)
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
            self.reader.ledger.add(HOST, "kcmp", Status.SKIPPED, why, len(rows))
            return
        tid_of = {pid: held.tid for pid, held in self.held.items()}
        tids = np.array([tid_of[pid] for pid in found["process"][rows].tolist()], np.int32)
        numbers = found["fd"][rows].astype(np.int32)
        # One open file is of one kind and device: each can be sorted by itself.
        _, group = np.unique(
            np.stack([kind[rows].astype(np.uint64), found["rdev"][rows], found["inode"][rows]]),
            axis=1,
            return_inverse=True,
        )
        group = group.reshape(-1)
        parts = [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)]
        with ThreadPoolExecutor(self.reader.threads) as workers:
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
            self.reader.ledger.add(HOST, "kcmp", Status.DENIED, why, undecided)

    def _superblocks(self) -> NDArray[np.uint64]:
        """s_dev of the superblock of each descriptor's file, 0 where it is not known."""
        superblocks = self.reader.trees.superblocks
        by_id = self.reader.trees.by_id
        found = self.found
        out = found["dev"].copy()
        on_disk = np.flatnonzero((self.kind <= OpenKind.DIRECTORY) & (found["dev"] != 0))
        for dev in np.setdiff1d(found["dev"][on_disk], [_memory_device(), *superblocks]).tolist():
            rows = on_disk[found["dev"][on_disk] == dev]
            numbers = (self._info(i, _MOUNT_ID) for i in rows[:TRIES].tolist())
            mount = next((by_id[n] for n in numbers if n in by_id), None)
            out[rows] = mount.dev if mount else 0
        return out


def _memory_device() -> int:
    """Device of memfds, which is mounted nowhere."""
    with suppress(OSError, AttributeError):
        fd = os.memfd_create("probe", os.MFD_CLOEXEC)
        with os.fdopen(fd, "rb"):
            return _device(os.fstat(fd))
    return 0


def _device(facts: os.stat_result) -> int:
    return os.major(facts.st_dev) << 32 | os.minor(facts.st_dev)
