"""Memory: the VMAs of every address space, and which of them map the same frames.

Once per address space: maps and pagemap are opened, read, and read into the frame index;
then the process is checked to be still the program that was opened. What cannot be read is
in the ledger.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _fastproc import maps, pagemap
from _fastproc.frames import FrameIndex
from _fastproc.partition import Partition
from osmosis.capture import memory_objects as objects
from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.memory_probe import HUGE_PAGES, Host, ambiguous_devices, probe
from osmosis.capture.processes import (
    Held,
    ProcessRecord,
    read_one,
    shared_mm_groups,
    unchanged,
    verify,
)
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, FileKind, Status
from osmosis.snapshot import StringPool

__all__ = ["Host", "MemoryReader", "probe"]

SOURCE = "memory"
BATCH = 16  # address spaces that are read before their processes are looked at again
ENTRIES = 1 << 18  # a reader's buffer: 2 MiB of pagemap entries
GONE_ERRORS = (errno.ENOENT, errno.ESRCH)
DENIED_ERRORS = (errno.EACCES, errno.EPERM)

COUNTS = ("present", "swapped", "zero")

Columns = dict[str, NDArray[Any]]


@dataclass(slots=True)
class _Space:
    """One address space while it is read."""

    row: int  # process it is read through
    status: int = Status.SKIPPED
    reason: str = ""
    first: int = 0  # VMA rows in the table
    n: int = 0
    begin: int = 0  # on the reader's clock: when its reading began, and when it was over
    end: int = 0
    suspect: bool = False  # it may have gained frames since the capture began
    alive: bool = True  # its VMAs count


class MemoryReader:
    """Reads every address space of a record once, and makes columns of it.

    Parameters
    ----------
    record
        P processes, pinned; a torn one is read again in place.
    ledger, pool
        Where gaps and paths go.
    keep_frames
        Keep every frame number (``frames="all"``).
    threads
        Readers; more than there are processors does not help.
    deadline
        time.monotonic() after which no further address space is begun.
    progress
        Called with (done, total) after each address space, from a reader's thread.
    """

    def __init__(
        self,
        record: ProcessRecord,
        *,
        ledger: Ledger,
        pool: StringPool,
        keep_frames: bool = False,
        threads: int = 1,
        deadline: float | None = None,
        progress: Callable[[int, int], None] | None = None,
        host: Host | None = None,
    ) -> None:
        self.record = record
        self.ledger = ledger
        self.host = host or probe()
        self.keep_frames = keep_frames
        self.threads = max(1, threads)
        self.deadline = deadline
        self.progress = progress
        self.table = maps.VmaTable(pool.add, self.host.shm_dev, self.host.huge_devs)
        self._indexes: list[FrameIndex] = []  # one a thread
        self.gone: set[int] = set()  # process rows that exited meanwhile
        self.torn: set[int] = set()  # process rows that would not hold still
        self._pool = pool
        self._lock = threading.Lock()
        self._local = threading.local()
        self._groups = shared_mm_groups(record)
        _, first = np.unique(self._groups, return_index=True)
        self.spaces = [_Space(int(row)) for row in first]
        self._members: list[list[int]] = [[] for _ in self.spaces]
        for row, group in enumerate(self._groups.tolist()):
            self._members[group].append(row)
        # Readings that were thrown away: their VMAs are in the table.
        self._extra: list[_Space] = []
        self._baseline: list[int] = (record.rows["min_flt"] + record.rows["maj_flt"]).tolist()
        self._done = 0
        self._clock = 0
        self._kpageflags = -1

    def _tick(self) -> int:
        with self._lock:
            self._clock += 1
            return self._clock

    # -- reading

    def read(self) -> None:
        """Read all address spaces. A process that fails costs a ledger row, never the capture."""
        if self.host.ksm:
            with suppress(OSError):
                self._kpageflags = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
        try:
            n = len(self.spaces)
            batches = [range(i, min(i + BATCH, n)) for i in range(0, n, BATCH)]
            if self.threads == 1:
                for batch in batches:
                    self._read_batch(batch)
            else:
                with ThreadPoolExecutor(self.threads) as workers:
                    for _ in workers.map(self._read_batch, batches):
                        pass
        finally:
            if self._kpageflags >= 0:
                os.close(self._kpageflags)
        self._note()
        if not self.host.frames:
            why = "frame numbers are hidden (they need CAP_SYS_ADMIN): sharing by file and offset"
            self.ledger.add(HOST, "pagemap", Status.HIDDEN, why)

    def _read_batch(self, mms: Sequence[int]) -> None:
        """Read some address spaces, and those that changed under us once more."""
        total = len(self.spaces)
        for mm in self._attempt(mms):
            self._read_again(mm)
        with self._lock:
            done = range(self._done + 1, self._done + len(mms) + 1)
            self._done += len(mms)
        if self.progress is not None:
            for number in done:
                self.progress(number, total)

    def _attempt(self, mms: Sequence[int]) -> list[int]:
        """Read some address spaces, and then look at their processes: those that changed."""
        changed, read = [], []
        for mm in mms:
            space = self.spaces[mm]
            if self.deadline is not None and time.monotonic() > self.deadline:
                space.reason = "the time budget was used up before it was read"
                continue
            try:
                before = self._faults_before(self._members[mm])
                self._read_once(mm, space, self.record.held[space.row])
                read.append((mm, before))
            except ProcessGone:
                changed.append(mm)
            finally:
                self.record.held[space.row].release()
        # One after the other they cost half as much: the kernel's code and ours stay in the cache.
        held = [self.record.held[row] for mm, _ in read for row in self._members[mm]]
        counts = iter(unchanged(held))
        for mm, before in read:
            faults = [next(counts) for _ in self._members[mm]]
            if min(faults) < 0:
                changed.append(mm)
            # Each process of a shared address space counts the faults that it took itself.
            self.spaces[mm].suspect |= sum(faults) != before
        return changed

    def _read_again(self, mm: int) -> None:
        """Read an address space that changed: once more, with its processes; then only these."""
        members = self._members[mm]
        self._discard(mm)
        if self._read_processes_again(members):
            self.spaces[mm] = _Space(members[0], suspect=True)
            if not self._attempt([mm]):
                return
            self._discard(mm)
            if self._read_processes_again(members):
                self.spaces[mm] = _Space(
                    members[0], Status.TORN, "changed (execve, setuid, setns) each time it was read"
                )

    def _discard(self, mm: int) -> None:
        space = self.spaces[mm]
        space.alive = False
        self._extra.append(space)

    def _read_processes_again(self, members: list[int]) -> bool:
        """Read torn processes anew; those that left, or left the address space, leave *members*.

        Returns whether there is still someone to read it through.
        """
        with self._lock:
            for row in list(members):
                held = self.record.held[row]
                if verify(held):
                    continue
                status = _read_until_steady(self.record, row)
                if status != Status.READ:
                    (self.gone if status == Status.GONE else self.torn).add(row)
                    members.remove(row)
                elif len(members) > 1:
                    # It called execve: it has an address space of its own now, not read here.
                    members.remove(row)
                    self.spaces.append(
                        _Space(row, Status.TORN, "took an address space of its own meanwhile")
                    )
                    self._members.append([row])
        return bool(members)

    def _read_once(self, mm: int, space: _Space, held: Held) -> None:
        try:
            self._read_maps_and_pagemap(mm, space, held)
        except OSError as exc:
            if exc.errno in GONE_ERRORS:
                raise ProcessGone(held.pid) from exc
            if exc.errno in DENIED_ERRORS:
                space.status = Status.DENIED
                space.reason = "reading it needs CAP_SYS_PTRACE, or its ids and no more rights"
            else:
                space.status = Status.PARTIAL
                space.reason = os.strerror(exc.errno or 0)

    def _read_maps_and_pagemap(self, mm: int, space: _Space, held: Held) -> None:
        space.begin = self._tick()
        lines = self._lines()
        try:
            fd = lines.open(held.dirfd)
        except ValueError as exc:
            space.status = Status.PARTIAL
            space.reason = f"a line of maps does not parse: {exc.args[0]!r}"
            return
        try:
            if not len(lines):  # it has given its address space back: it is exiting
                raise ProcessGone(held.pid)
            ipc = int(self.record.rows["print"]["ns"][space.row, 1])
            with self._lock:
                space.first, space.n = self.table.add(lines, mm, ipc)
                rows = self.table.rows(space.first, space.n)
            if lines.overlap:
                # Read by the page: a VMA that was printed may have grown over the next one.
                raise ProcessGone(held.pid, "changed its mappings while they were read")
            self._read_frames(space, held, fd, rows)
        finally:
            os.close(fd)
        space.end = self._tick()

    def _faults_before(self, members: list[int]) -> int:
        with self._lock:
            return sum(self._baseline[row] for row in members)

    def _read_frames(
        self, space: _Space, held: Held, fd: int, rows: tuple[NDArray[Any], ...]
    ) -> None:
        start, end, vma_kind, prot, kind = rows
        counts = np.zeros((space.n, 3), np.int64)
        status = pagemap.read_frames(
            fd,
            start,
            end,
            vma_kind,
            prot,
            kind,
            counts,
            self._index() if self.host.frames else self._new_index(),
            space.first,
            space.begin,
            scan=self.host.scan,
            kpageflags=self._kpageflags if self._kpageflags >= 0 and _merges(held) else -1,
            page_bytes=self.host.page_bytes,
        )
        if status == pagemap.SHORT:
            raise ProcessGone(held.pid)
        with self._lock:
            self.table.set_counts(space.first, counts)
        space.status = Status.READ if self.host.frames else Status.HIDDEN
        space.reason = "" if self.host.frames else "its frame numbers read as 0"

    def _index(self) -> FrameIndex:
        """The index of this thread."""
        if not hasattr(self._local, "index"):
            self._local.index = self._new_index()
            with self._lock:
                self._indexes.append(self._local.index)
        index: FrameIndex = self._local.index
        return index

    def _new_index(self) -> FrameIndex:
        return FrameIndex(
            zero_pfn=self.host.zero_pfn,
            huge_zero_pfn=self.host.huge_zero_pfn,
            huge_pages=HUGE_PAGES,
            swap=self.host.swap,
        )

    def _lines(self) -> maps.Lines:
        if not hasattr(self._local, "lines"):
            self._local.lines = maps.Lines()
        lines: maps.Lines = self._local.lines
        return lines

    def _buffer(self) -> NDArray[np.uint64]:
        if not hasattr(self._local, "entries"):
            self._local.entries = np.empty(ENTRIES, np.uint64)
        entries: NDArray[np.uint64] = self._local.entries
        return entries

    def _note(self) -> None:
        """Ledger rows of all that were read, and of those that were not."""
        said: dict[tuple[int, str], list[int]] = {}
        for space, members in zip(self.spaces, self._members, strict=True):
            pids = said.setdefault((space.status, space.reason), [])
            pids += [self.record.held[row].pid for row in members if row not in self.gone]
        for (status, reason), pids in said.items():
            self.ledger.add_many(pids, SOURCE, status, reason)

    # -- columns

    def columns(self) -> Columns:
        """Tables mm, vma, object, class, run and frame, and ``process_mm``.

        Rows of processes are those of the record as it is now: ``record.drop`` comes after, and
        ``process_mm`` and ``mm_process`` are then the caller's to renumber.
        """
        table = self.table.columns()
        live = [mm for mm, space in enumerate(self.spaces) if self._counts(mm)]
        keep = np.zeros(len(self.table), bool)
        for mm in live:
            space = self.spaces[mm]
            keep[space.first : space.first + space.n] = True
        found = Partition(self._indexes, keep.view(np.uint8))
        region = found.region
        # Rows by address space, in the order of `live`.
        rows = np.concatenate(
            [np.arange(s.first, s.first + s.n) for s in (self.spaces[mm] for mm in live)]
            or [np.empty(0, np.int64)]
        ).astype(np.int64)
        made, frames = self._sort_out(found, table, rows)
        out: Columns = {
            "mm_process": np.array([self.spaces[mm].row for mm in live]),
            "mm_status": np.array([self.spaces[mm].status for mm in live]),
            "mm_vma_indptr": np.concatenate([[0], np.cumsum([self.spaces[m].n for m in live])]),
            "vma_region": region[rows],
            "vma_kind": table["vma_kind"][rows],
            "class_kind": made.kind,
            "class_pages": made.pages,
            "class_run_indptr": made.indptr,
            "run_first": made.first,
            "run_last": made.last,
            **frames,
            **self._object_columns(table, rows),
        }
        as_they_are = np.array_equal(rows, np.arange(len(self.table)))
        for name in ("start", "end", "offset", "prot", "object", "path", *COUNTS):
            out[f"vma_{name}"] = table[name] if as_they_are else table[name][rows]
        process_mm = np.full(len(self.record), -1)
        for number, mm in enumerate(live):
            process_mm[self._members[mm]] = number
        out["process_mm"] = process_mm
        return {k: np.ascontiguousarray(v, COLUMNS[k].dtype) for k, v in out.items()}

    def _counts(self, mm: int) -> bool:
        space = self.spaces[mm]
        return (
            space.alive
            and space.status in (Status.READ, Status.HIDDEN)
            and any(row not in self.gone for row in self._members[mm])
        )

    def _sort_out(
        self,
        found: Partition,
        table: Columns,
        rows: NDArray[np.int64],
    ) -> tuple[objects.Objects, Columns]:
        """Tell reused frames apart, join equal objects, and keep frame numbers if wanted."""
        raw = objects.Objects(found.kind, found.pages, found.indptr, found.first, found.last)
        vma_of = np.empty(len(rows), np.int64)
        vma_of[found.region[rows]] = rows
        suspect = np.array([s.suspect for s in self.spaces], bool)
        facts = objects.Recheck(
            region_mm=table["mm"][vma_of],
            region_object=table["object"][vma_of],
            begin=np.array([s.begin for s in self.spaces], np.int64),
            end=np.array([s.end for s in self.spaces], np.int64),
            suspect=suspect,
            frames_of=lambda wanted: found.frames_of(wanted.view(np.uint8)),
            still=lambda mm, regions: self._still(mm, vma_of[regions], table),
        )
        checked = objects.recheck(raw, facts)
        reused = int(checked.dropped) + found.replaced
        if reused:
            why = "frames were freed and reused while the capture ran: not counted as shared"
            self.ledger.add(HOST, SOURCE, Status.READ, why, reused)
        made, number = raw, np.arange(len(raw))  # no two are alike
        if checked.objects is not raw:
            made, number = objects.merge_equal(checked.objects)
        if not self.keep_frames:
            n = len(made)
            return made, {"class_frame_indptr": np.zeros(n + 1), "frame_pfn": np.empty(0)}
        frame, of = found.frames_of(np.ones(len(raw), np.uint8))
        stay = ~np.isin(frame, checked.taken)
        frame = np.concatenate([frame[stay], checked.frame])
        of = number[np.concatenate([of[stay], checked.of])]
        frame, of = frame[of >= 0], of[of >= 0]
        order = np.lexsort((frame, of))
        indptr = np.concatenate([[0], np.cumsum(np.bincount(of, minlength=len(made)))])
        return made, {"class_frame_indptr": indptr, "frame_pfn": frame[order]}

    def _still(self, mm: int, vmas: NDArray[np.int64], table: Columns) -> NDArray[np.uint64]:
        """Frames that some VMAs of an address space hold now, sorted; empty if it is gone."""
        held = self.record.held[self.spaces[mm].row]
        entries = self._buffer()
        found = []
        vmas = np.sort(vmas)  # by rising address: rows of one address space
        start, end, kind = (table[name][vmas] for name in ("start", "end", "vma_kind"))
        indptr = np.zeros(len(vmas) + 1, np.int64)
        counts = np.zeros((len(vmas), 3), np.int64)
        at = page = 0
        try:
            fd = os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=held.dirfd)
        except (OSError, ProcessGone):
            return np.empty(0, np.uint64)
        try:
            while True:
                status, at, page, n = pagemap.read_populated(
                    fd,
                    start,
                    end,
                    kind,
                    entries,
                    indptr,
                    counts,
                    at,
                    page,
                    zero_pfn=self.host.zero_pfn,
                    huge_zero_pfn=self.host.huge_zero_pfn,
                    huge_pages=HUGE_PAGES,
                    swap=self.host.swap,
                    scan=self.host.scan,
                    page_bytes=self.host.page_bytes,
                )
                pfn = entries[:n] & np.uint64((1 << 55) - 1)
                swapped = entries[:n] >> np.uint64(63) == 0
                found.append(np.where(swapped, pfn | np.uint64(1 << 63), pfn))
                if status != pagemap.FULL:
                    break
        except OSError:
            return np.empty(0, np.uint64)
        finally:
            os.close(fd)
            held.release()
        return np.unique(np.concatenate(found))

    def _object_columns(self, table: Columns, rows: NDArray[np.int64]) -> Columns:
        entries = self.table.object_table()
        ambiguous = ambiguous_devices()
        kinds, rdevs = [], []
        users = np.full(len(entries), -1)
        mapping = rows[table["object"][rows] >= 0][::-1]
        users[table["object"][mapping]] = mapping
        for i, (what, _dev, _inode, _ipc, path) in enumerate(entries):
            rdev = 0
            if what == FileKind.FILE and users[i] >= 0 and self._below_dev(path):
                rdev = self._device_number(int(users[i]), table)
            kinds.append(FileKind.DEVICE if rdev else what)
            rdevs.append(rdev)
        namespace = [ipc for _what, _dev, _inode, ipc, _path in entries]
        return {
            "object_kind": np.array(kinds),
            "object_dev": np.array([dev for _what, dev, *_ in entries], np.uint64),
            "object_inode": np.array([e[2] for e in entries], np.uint64),
            "object_rdev": np.array(rdevs, np.uint64),
            "object_ipc": np.array(namespace),  # inode numbers: the caller makes rows of them
            "object_path": np.array([e[4] for e in entries]),
            "object_sure": np.array([e[1] not in ambiguous for e in entries]),
        }

    def _below_dev(self, path: int) -> bool:
        return path >= 0 and self._pool.text(path).startswith(b"/dev/")

    def _device_number(self, vma: int, table: Columns) -> int:
        """Device number of the character or block device that a VMA maps, 0 for a file."""
        held = self.record.held[self.spaces[int(table["mm"][vma])].row]
        name = f"map_files/{int(table['start'][vma]):x}-{int(table['end'][vma]):x}"
        try:
            facts = os.stat(name, dir_fd=held.dirfd)
        except (OSError, ProcessGone):
            return 0
        finally:
            held.release()
        if not (stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode)):
            return 0
        return os.major(facts.st_rdev) << 32 | os.minor(facts.st_rdev)


def _read_until_steady(record: ProcessRecord, row: int) -> int:
    """READ, GONE (a zombie's memory is gone as well), or TORN: it changes all the time."""
    for _ in range(8):
        if not read_one(record, row):
            return Status.GONE
        if verify(record.held[row]):
            return Status.READ
    return Status.TORN


def _merges(held: Held) -> bool:
    """Whether KSM has merged pages of this process; yes if the kernel does not tell."""
    try:
        fd = os.open("ksm_merging_pages", os.O_RDONLY | os.O_CLOEXEC, dir_fd=held.dirfd)
        with os.fdopen(fd, "rb") as file:
            return int(file.read()) > 0
    except (OSError, ValueError):
        return True
