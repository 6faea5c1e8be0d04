"""Open files: the descriptors of every process, and of its threads that have a table of their own.

What they lead to is told apart in opens.py. A descriptor that was sent over a unix socket and not
received yet is in no table, and so is a file that an io_uring has registered: whose socket or ring
that is, is known, and what it leads to is not.
"""

from __future__ import annotations

import errno
import os
import socket
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
from osmosis.capture.opens import TRIES, Columns, Opens, beside, socket_device
from osmosis.capture.pinned import Held, slurp
from osmosis.capture.processes import ProcessRecord
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, Status

__all__ = ["FileReader"]

SOURCE = "files"
CHUNK = 128  # processes in one call: so many directories may have to be opened for it
DENIALS = (1, 13)  # EPERM, EACCES
NO_SOCKETS = np.empty(0, np.uint64)
IN_FLIGHT = "descriptors in flight wait at a socket of it: what they lead to is not told"
REGISTERED = "an io_uring of it holds registered files, or may: they are not told apart"


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Descriptors of some processes.

    Column ``process`` is a pid, ``tid`` the thread whose table it is or 0 for that of the process,
    ``name`` a row of the pool.
    """

    columns: Columns
    pids: list[int]
    errors: list[int]  # of each pid, 0 if it was read
    split: dict[int, str]  # pid: why there may be more than was read


def own_tables(held: Held, *, comparable: bool = True) -> tuple[list[int], str]:
    """Threads whose descriptor table is not that of the thread that is read, one for each table.

    And why that is not known of all its threads, "" if it is. unshare(CLONE_FILES) makes such a
    table; a thread that is exiting has none. O(threads times tables) kcmp calls; *comparable*:
    /proc is of our pid namespace. *held* is not released. Raises nothing.
    """
    if not comparable:
        return (
            [],
            "threads' descriptor tables cannot be compared: /proc is of another pid namespace",
        )
    try:
        at = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=held.leaderfd)
        try:
            rest = np.array([int(tid) for tid in os.listdir(at)], np.int32)  # noqa: PTH208
        finally:
            os.close(at)
    except (OSError, ProcessGone):
        return [], ""
    found: list[int] = []
    one, rest = held.tid, rest[rest != held.tid]
    while True:
        states = np.array(nsfs.other_tables(one, rest), np.int64)
        refused = -states[(states < 0) & (states != -errno.ESRCH)]
        if len(refused):
            return found, f"its threads' descriptor tables: kcmp: {os.strerror(int(refused[0]))}"
        if one == held.tid or (states >= 0).any():  # else it is the one that has ended
            rest = rest[states == 1]
        if not len(rest):
            return found, ""
        one, rest = int(rest[0]), rest[1:]
        found.append(one)


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
        self.receivers: set[int] = set()  # pids of those to whom descriptors are in flight

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

    def _read(self, held: list[Held]) -> None:
        chunks = [held[i : i + CHUNK] for i in range(0, len(held), CHUNK)] or [held]
        rows = self.record.rows
        threaded = set(rows["pid"][rows["threads"] > 1].tolist())
        with ThreadPoolExecutor(self.threads) as workers:
            parts = list(workers.map(lambda chunk: self._scan(chunk, threaded), chunks))
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
                elif pid in part.split:
                    self.status[pid] = Status.PARTIAL
                    self.ledger.add(pid, SOURCE, Status.PARTIAL, part.split[pid])
                else:
                    self.status[pid] = Status.READ

    def _scan(self, chunk: list[Held], threaded: set[int]) -> _Part:
        at = np.full(len(chunk), -1, np.int32)
        lost = np.zeros(len(chunk), bool)
        for i, held in enumerate(chunk):
            try:
                at[i] = held.dirfd
            except (ProcessGone, OSError):
                lost[i] = True
        pids = np.array([held.pid for held in chunk], np.int32)
        more, split = self._threads(chunk, threaded)
        numbers = np.arange(len(chunk) + len(more), dtype=np.int32)
        try:
            every = np.concatenate([at, np.array([one[2] for one in more], np.int32)])
            columns, names, errors = fds.scan(every, numbers)
        finally:
            for held in chunk:
                held.release()
            for *_, fd in more:
                os.close(fd)
        tids = np.concatenate([np.zeros(len(chunk)), [one[1] for one in more]]).astype(np.int32)
        columns["tid"] = tids[columns["process"]]
        owners = np.concatenate([pids, np.array([one[0] for one in more], np.int32)])
        columns["process"] = owners[columns["process"]]
        for (pid, *_), code in zip(more, errors[len(chunk) :].tolist(), strict=True):
            if code in DENIALS:
                split[pid] = "the descriptor table that a thread of it has for its own"
        errors = errors[: len(chunk)]
        errors[lost] = errno.ESRCH
        rows = self.record.pool.add_all(names)
        named = columns["name"] >= 0
        columns["name"][named] = rows[columns["name"][named]]
        return _Part(columns, pids.tolist(), errors.tolist(), split)

    def _threads(
        self, chunk: list[Held], threaded: set[int]
    ) -> tuple[list[tuple[int, int, int]], dict[int, str]]:
        """(pid, tid, open directory) of threads with own tables; and what is not known."""
        ours = self.record.collector.same_pid_ns
        more: list[tuple[int, int, int]] = []
        split: dict[int, str] = {}
        for held in chunk:
            if held.pid not in threaded:
                continue
            tids, why = own_tables(held, comparable=ours)
            if why:
                split[held.pid] = why
            for tid in tids:
                with suppress(OSError, ProcessGone):
                    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
                    fd = os.open(f"task/{tid}", flags, dir_fd=held.leaderfd)
                    more.append((held.pid, tid, fd))
        return more, split

    def look_for_flights(self, empty: NDArray[np.uint64] = NO_SOCKETS) -> None:
        """Find the processes with a socket at which descriptors wait to be received.

        Parameters
        ----------
        empty
            Inode numbers of sockets that are known to have none.

        Notes
        -----
        unix_show_fdinfo() in net/unix/af_unix.c counts them: at the socket that they were sent
        to, or at the listener whose connection was not accepted yet. One fdinfo a socket.
        """
        fields = ("process", "tid", "fd", "inode")
        device = socket_device()
        at = [part.columns["dev"] == device for part in self.parts]
        pid, tid, fd, inode = (
            np.concatenate(
                [np.empty(0, np.uint64)]
                + [part.columns[f][rows] for part, rows in zip(self.parts, at, strict=True)]
            )
            for f in fields
        )
        stay = ~np.isin(inode, empty)
        pid, tid, fd, inode = pid[stay], tid[stay], fd[stay], inode[stay]
        silent = not _tells_flights()
        loaded: list[NDArray[np.uint64]] = []
        left = np.arange(len(inode))
        for _ in range(TRIES):  # a descriptor may be closed by now
            rows = left[np.unique(inode[left], return_index=True)[1]]
            if not len(rows):
                break
            n = self._numbers(pid[rows], tid[rows], fd[rows])
            loaded.append(inode[rows[(n > 0) | (n == fds.NO_LINE) & silent]])
            left = np.setdiff1d(left, rows)
            left = left[~np.isin(inode[left], inode[rows[n != fds.UNREADABLE]])]
        self.receivers = set(pid[np.isin(inode, np.concatenate([NO_SOCKETS, *loaded]))].tolist())

    def _numbers(
        self, pids: NDArray[Any], tids: NDArray[Any], numbers: NDArray[Any]
    ) -> NDArray[np.int64]:
        """What the fdinfo of each socket says of descriptors in flight to it."""
        held = {one.pid: one for one in self.record.held}

        def ask(rows: NDArray[np.intp]) -> NDArray[np.int64]:
            at = np.full(len(rows), -1, np.int32)
            opened = []
            chunk = [held[pid] for pid in pids[rows].tolist()]
            try:
                for i, (one, tid) in enumerate(zip(chunk, tids[rows].tolist(), strict=True)):
                    with suppress(OSError, ProcessGone):
                        at[i], prefix = beside(one, tid)
                        if prefix:
                            at[i] = os.open(prefix, os.O_PATH | os.O_CLOEXEC, dir_fd=int(at[i]))
                            opened.append(int(at[i]))
                return fds.info_numbers(at, numbers[rows].astype(np.int32), b"scm_fds:")
            finally:
                for fd in opened:
                    os.close(fd)
                for one in chunk:
                    one.release()

        order = np.argsort(pids, kind="stable")
        chunks = [order[i : i + CHUNK] for i in range(0, len(order), CHUNK)]
        out = np.empty(len(pids), np.int64)
        with ThreadPoolExecutor(self.threads) as workers:
            for rows, found in zip(chunks, workers.map(ask, chunks), strict=True):
                out[rows] = found
        return out

    def columns(self, row_of: Mapping[int, int]) -> Columns:
        """Tables fdtable, fd and open.

        Parameters
        ----------
        row_of
            Row of each process of the snapshot, by pid; others are left out.

        """
        fields = ("process", "tid", "fd", "access", "dev", "inode", "rdev", "birth", "mode", "name")
        pids = np.array(sorted(row_of), np.int32)
        found = {f: np.concatenate([part.columns[f] for part in self.parts]) for f in fields}
        stay = np.isin(found["process"], pids)
        found = {f: column[stay] for f, column in found.items()}
        made = Opens(self.record, self.trees, found, ledger=self.ledger, threads=self.threads)
        opens, of = made.table()
        for hidden, why in ((made.registered(), REGISTERED), (self.receivers, IN_FLIGHT)):
            for pid in sorted(hidden & set(row_of)):
                if self.status.get(pid) in (Status.READ, Status.PARTIAL):
                    self.status[pid] = Status.PARTIAL
                    self.ledger.add(pid, SOURCE, Status.PARTIAL, why)
        rows = np.array([row_of[pid] for pid in pids.tolist()], np.int32)
        at = np.searchsorted(pids, found["process"])
        self._note_read(row_of, found["process"])
        out = {
            "fdtable_process": rows,
            "fdtable_status": [self.status.get(pid, Status.GONE) for pid in pids.tolist()],
            "fd_process": rows[at] if len(rows) else np.empty(0),
            "fd_fd": found["fd"],
            "fd_tid": found["tid"],
            "fd_access": found["access"],
            "fd_open": of,
            **opens,
        }
        return {name: np.asarray(v).astype(COLUMNS[name].dtype) for name, v in out.items()}

    def _note_read(self, row_of: Mapping[int, int], process: NDArray[np.int32]) -> None:
        read = [pid for pid in row_of if self.status.get(pid) == Status.READ]
        self.ledger.add_many(read, SOURCE, Status.READ)
        self.ledger.add(HOST, SOURCE, Status.READ, "", len(process))


def _tells_flights() -> bool:
    """Whether this kernel counts descriptors in flight (Linux 5.7): ask it of a socket of ours."""
    with socket.socket(socket.AF_UNIX) as own, suppress(OSError):
        at = os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)
        try:
            return b"\nscm_fds:" in slurp(at, f"fdinfo/{own.fileno()}")
        finally:
            os.close(at)
    return False
