"""Processes: who they are, read in bulk below one pinned directory each.

What is read first, and checked last by ``verify`` (the caller reads memory, files ... between),
is the fingerprint: pid, start time, the mm's layout, credentials and namespaces. A pid that is
reused gives ESRCH below the pinned directory; execve keeps directory, pid and start time, and
is seen by the layout.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from _fastproc import nsfs, procfs
from osmosis.capture.collector import Collector, room_for_fds
from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.pinned import (
    CHUNK,
    PROC,
    TEXTS,
    THREAD,
    Held,
    reread,
    same_layout,
    slurp,
    unchanged,
    verify,
    verify_all,
)
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, NAMESPACES, NO_ID, Status
from osmosis.snapshot import StringPool

__all__ = [
    "Collector",
    "Held",
    "ProcessRecord",
    "list_pids",
    "read_one",
    "read_processes",
    "reread",
    "shared_mm_groups",
    "unchanged",
    "verify",
    "verify_all",
]

SOURCE = "processes"
OVERFLOW_ID = 65534  # what an id without a mapping reads as

GONE, USER, KERNEL, ZOMBIE, EXITING, A_THREAD = range(6)  # Proc.kind
THREAD_NAMESPACES = ("mnt", "user", "net", "ipc", "uts", "cgroup")  # order of Thread.ns
UID_NAMES = ("ruid", "euid", "suid", "fsuid")
GID_NAMES = ("rgid", "egid", "sgid", "fsgid")
CAP_NAMES = ("cap_inh", "cap_prm", "cap_eff", "cap_bnd", "cap_amb")
DENIALS = (errno.EACCES, errno.EPERM)
# A file that this kernel does not have: nothing was withheld, so the ledger says nothing.
ABSENT = {
    "label": (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP),
    "oom_score_adj": (errno.ENOENT,),
}


def list_pids(
    proc: str | os.PathLike[str] = "/proc", pids: Iterable[int] | None = None
) -> list[int]:
    """Return the thread group ids that *proc* lists, rising; or *pids*, sorted, each once.

    A pid that is asked for and not there is kept: ``read_processes`` enters it in the ledger.
    """
    if pids is not None:
        return sorted({int(pid) for pid in pids if int(pid) > 0})
    with os.scandir(proc) as entries:
        return sorted(int(entry.name) for entry in entries if entry.name.isdecimal())


@dataclass(eq=False)
class ProcessRecord:
    """P processes by rising pid, their texts, and the descriptors that pin them.

    ``rows`` is a (P,) record array of dtype ``PROC``; everything of variable length stands in
    lists beside it, so that one process can be read again in place (``read_one``) and some can
    be left out (``drop``). ``columns`` flattens all of it.
    """

    proc: str
    procfd: int
    pool: StringPool
    ledger: Ledger
    collector: Collector
    rows: NDArray[Any]
    text: dict[str, NDArray[np.int32]]  # field of TEXTS, and uid_map -> (P,) rows of the pool
    groups: list[bytes]  # uint32 each
    nspid: list[bytes]  # int32 each
    cpus: list[bytes | None]  # Cpus_allowed_list of status; None if it was not told
    threads: list[NDArray[Any]]  # dtype THREAD
    thread_groups: list[list[bytes]]  # as groups, one for each thread
    held: list[Held]
    kthreads: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pids(self) -> NDArray[np.int32]:
        """(P,) rising."""
        return np.ascontiguousarray(self.rows["pid"])

    @property
    def ns_inode(self) -> NDArray[np.uint64]:
        """(P, 8) inode numbers, in the order of NAMESPACES; 0 where one was not readable."""
        return np.ascontiguousarray(self.rows["print"]["ns"])

    @property
    def thread_process(self) -> NDArray[np.int32]:
        """(T,) the process row of each thread of table ``thread``."""
        counts = [len(t) for t in self.threads]
        return np.repeat(np.arange(len(self), dtype=np.int32), counts)

    @property
    def thread_rows(self) -> NDArray[Any]:
        """(T,) record array of dtype ``THREAD``: the threads that differ from their process."""
        some = [t for t in self.threads if len(t)]
        return np.concatenate([np.zeros(0, THREAD), *some])

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns of process, group, nspid, thread, threadgroup and kthread.

        All but process_mm, process_ns_* and thread_ns_*: copies, since rows may yet change.
        """
        rows = self.rows
        out: dict[str, Any] = {}
        for name in ("pid", "ppid", "pgid", "sid", "tty", "state", "flags", "threads", "tracer"):
            out[f"process_{name}"] = rows[name]
        for name in ("mem_uid", "mem_mode", "oom_adj", "root_dev", "root_inode"):
            out[f"process_{name}"] = rows[name]
        out["process_start_time"] = rows["print"]["start_time"]
        out["process_dumpable"] = _dumpable(rows, self.collector)
        for name, column in self.text.items():
            out[f"process_{name}"] = column
        _add_credentials(out, "process", rows["print"]["cred"])
        _add_lists(out, "process_group_indptr", "group_gid", self.groups)
        _add_lists(out, "process_nspid_indptr", "nspid_pid", self.nspid)
        threads = self.thread_rows
        out["thread_process"] = self.thread_process
        for name in ("tid", "root_dev", "root_inode"):
            out[f"thread_{name}"] = threads[name]
        _add_credentials(out, "thread", threads["cred"])
        lists = [g for of_process in self.thread_groups for g in of_process]
        _add_lists(out, "thread_group_indptr", "threadgroup_gid", lists)
        out["kthread_pid"] = self.kthreads
        return {k: np.array(v, COLUMNS[k].dtype) for k, v in out.items()}

    def drop(self, gone: NDArray[np.bool_], status: int = Status.GONE, reason: str = "") -> None:
        """Take rows out, and say so in the ledger in place of what it said of them.

        Parameters
        ----------
        gone
            (P,) which rows.
        status, reason
            Why: GONE for a process that exited (the default), TORN for one that changed twice.

        """
        reason = reason or "exited while it was being read"
        for i in np.flatnonzero(gone).tolist():
            self.held[i].close()
            self.ledger.forget(self.held[i].pid)
            self.ledger.add(self.held[i].pid, SOURCE, status, reason)
        stay = np.flatnonzero(~gone)
        self.rows = self.rows[stay]
        self.text = {name: column[stay] for name, column in self.text.items()}
        for name in ("groups", "nspid", "cpus", "threads", "thread_groups", "held"):
            old = getattr(self, name)
            setattr(self, name, [old[i] for i in stay.tolist()])

    def close(self) -> None:
        """Close every descriptor."""
        for one in self.held:
            one.close()
        if self.procfd >= 0:
            os.close(self.procfd)
            self.procfd = -1


def _add_credentials(out: dict[str, Any], table: str, cred: NDArray[Any]) -> None:
    for names, key in ((UID_NAMES, "uid"), (GID_NAMES, "gid"), (CAP_NAMES, "cap")):
        for i, name in enumerate(names):
            out[f"{table}_{name}"] = cred[key][:, i]
    out[f"{table}_no_new_privs"] = cred["no_new_privs"]
    out[f"{table}_seccomp"] = cred["seccomp"]


def _add_lists(out: dict[str, Any], indptr: str, flat: str, lists: list[bytes]) -> None:
    sizes = np.fromiter(map(len, lists), np.int64, len(lists))
    dtype = COLUMNS[flat].dtype
    out[indptr] = np.concatenate([[0], np.cumsum(sizes) // np.dtype(dtype).itemsize])
    out[flat] = np.frombuffer(b"".join(lists), dtype)


def _dumpable(rows: NDArray[Any], collector: Collector) -> NDArray[np.int8]:
    """SUID_DUMP_* by row: what the pidfd told, else what the owner of /proc/pid/mem tells.

    task_dump_owner() (fs/proc/base.c): the file belongs to the euid if dumpable is 1, else to
    the root of the mm's user namespace. So an owner that is not the euid says "not 1" (0 stands
    for 0 or 2), and the same owner says 1 only where the euid is not such a root itself.
    """
    told = rows["dumpable"].copy()
    euid = rows["print"]["cred"]["uid"][:, 1]
    owner = rows["mem_uid"]
    known = (told < 0) & (owner != NO_ID)
    told[known & (owner != euid)] = 0
    foreign = rows["print"]["ns"][:, NAMESPACES.index("user")] != collector.user_ns
    root_like = (euid == 0) | (euid == OVERFLOW_ID) | foreign
    told[known & (owner == euid) & ~root_like] = 1
    return told.astype(np.int8)


@dataclass(slots=True)
class _Part:
    """What one call of scan gave: rows, and the bytes that their spans point into."""

    rows: NDArray[Any]
    arena: bytes
    threads: NDArray[Any]

    def distinct(self, spans: NDArray[Any]) -> tuple[list[int], list[bytes]]:
        """For each span of a field the number of its text, -1 if it was not read; the texts."""
        pairs = np.ascontiguousarray(spans).view(np.int64).reshape(-1, 2)
        return procfs.distinct(self.arena, pairs)

    def texts(self, spans: NDArray[Any]) -> list[bytes | None]:
        """The text of each span of a field; equal ones are one object."""
        of, texts = self.distinct(spans)
        return [texts[i] if i >= 0 else None for i in of]

    def lists(self, spans: NDArray[Any]) -> list[bytes]:
        """As ``texts``; empty where it was not read."""
        return [text or b"" for text in self.texts(spans)]


def _scan(procfd: int, pids: Sequence[int], ours: bool, keep: int) -> _Part:
    rows = np.zeros(len(pids), PROC)
    rows["pid"] = pids
    arena, threads = procfs.scan(procfd, rows.view(np.uint8), ours, keep)
    return _Part(rows, arena, np.frombuffer(threads, THREAD))


def _assemble(record: ProcessRecord, parts: Sequence[_Part]) -> None:
    """Append the user processes of *parts* to the lists of *record*; ledger rows for the rest."""
    ledger, pool = record.ledger, record.pool
    kept, kernel = [], []
    none = np.zeros(0, THREAD)
    for part in parts:
        _note_left_out(ledger, part)
        kernel.append(part.rows["pid"][part.rows["kind"] == KERNEL])
        rows = np.flatnonzero(part.rows["kind"] == USER)
        kept.append(part.rows[rows])
        record.groups += part.lists(kept[-1]["groups"])
        record.nspid += part.lists(kept[-1]["nspid"])
        record.cpus += part.texts(kept[-1]["cpus"])
        for row in rows.tolist():
            threads = none
            if len(part.threads):
                threads = part.threads[part.threads["row"] == row]
                threads = threads[np.argsort(threads["tid"])]
            record.threads.append(threads)
            record.thread_groups.append(part.lists(threads["groups"]) if len(threads) else [])
    record.rows = np.concatenate([record.rows, *kept])
    for name in TEXTS:
        columns = [record.text[name]]
        for part, chosen in zip(parts, kept, strict=True):
            of, texts = part.distinct(chosen[name])
            if name == "label":
                texts = [text.rstrip(b"\n\0") for text in texts]
            # The row of "not read", -1, is the last one.
            columns.append(np.append(pool.add_all(texts), -1)[of])
        record.text[name] = np.concatenate(columns).astype(np.int32)
    record.kthreads = np.concatenate([record.kthreads, *kernel]).astype(np.int32)
    fresh = record.rows[len(record.held) :]
    record.held += [Held(record.procfd, row) for row in fresh]
    _note_read(record, fresh)


def _note_left_out(ledger: Ledger, part: _Part) -> None:
    rows = part.rows
    ledger.add_many(rows["pid"][rows["kind"] == ZOMBIE].tolist(), SOURCE, Status.GONE, "zombie")
    ledger.add_many(rows["pid"][rows["kind"] == EXITING].tolist(), SOURCE, Status.GONE, "exiting")
    for row in rows[rows["kind"] == A_THREAD]:
        why = f"is a thread of process {row['ppid']}"
        ledger.add(int(row["pid"]), SOURCE, Status.SKIPPED, why)
    for row in rows[rows["kind"] == GONE]:
        code = int(row["err"][row["err"] != 0][0])
        if code in (errno.ENOENT, errno.ESRCH):
            status, why = Status.GONE, "exited before it was read"
        elif code in DENIALS:
            status, why = Status.HIDDEN, "/proc hides it from us (hidepid)"
        elif code == errno.EBADMSG:
            status, why = Status.PARTIAL, "stat or status does not parse"
        else:
            status, why = Status.SKIPPED, os.strerror(code)
        ledger.add(int(row["pid"]), SOURCE, status, why)


def _note_read(record: ProcessRecord, rows: NDArray[Any]) -> None:
    """Ledger rows of processes that were read: READ, or what was missing."""
    ledger, pids, partial = record.ledger, rows["pid"], np.zeros(len(rows), bool)
    for at, source in enumerate(procfs.SOURCES):
        codes = rows["err"][:, at].copy()
        if source == "pidfd":
            continue  # dumpable is told below, whichever way it was learnt
        codes[np.isin(codes, ABSENT.get(source, ()))] = 0
        for code in np.unique(codes[codes != 0]).tolist():
            who = codes == code
            partial |= who
            status = Status.GONE if code in (errno.ENOENT, errno.ESRCH) else Status.PARTIAL
            status = Status.DENIED if code in DENIALS else status
            why = "does not parse" if code == errno.EBADMSG else os.strerror(code)
            ledger.add_many(pids[who].tolist(), source, status, why)
    undecided = _dumpable(rows, record.collector) < 0
    ledger.add_many(
        pids[undecided].tolist(),
        "dumpable",
        Status.PARTIAL,
        "PIDFD_GET_INFO does not tell, and the owner of /proc/pid/mem cannot decide",
    )
    ledger.add_many(pids[~partial].tolist(), SOURCE, Status.READ)
    ledger.add_many(pids[partial].tolist(), SOURCE, Status.PARTIAL, "some of its files")


def _read_uid_maps(record: ProcessRecord, which: Sequence[int]) -> None:
    """Fill ``text["uid_map"]`` of some rows: one read a user namespace, not one a process.

    uid_map is readable by all (0444); a member that moved to another namespace meanwhile does
    not speak for the others.
    """
    user = NAMESPACES.index("user")
    column = record.text["uid_map"]
    known: dict[int, int] = {}
    for i in which:
        inode = int(record.rows["print"]["ns"][i, user])
        if inode and inode in known:
            column[i] = known[inode]
            continue
        one = record.held[i]
        try:
            data = slurp(one.dirfd, "uid_map")
            if inode and os.stat("ns/user", dir_fd=one.dirfd).st_ino == inode:
                known[inode] = record.pool.add(data)
            column[i] = record.pool.add(data)
        except (OSError, ProcessGone) as exc:
            record.ledger.add(one.pid, "uid_map", Status.GONE, str(exc))
        finally:
            one.release()


def _note_host(ledger: Ledger, collector: Collector) -> None:
    if collector.hidepid and not collector.may_trace:
        why = f"/proc is mounted with {collector.hidepid}: other users' processes are not shown"
        ledger.add(HOST, SOURCE, Status.HIDDEN, why)
    if collector.pid_ns != nsfs.INITIAL_PID:
        why = "/proc shows one pid namespace, not the initial one: what runs outside is not seen"
        ledger.add(HOST, SOURCE, Status.HIDDEN, why)
    if not collector.same_pid_ns:
        why = "/proc is of another pid namespace: its pids cannot be used in system calls"
        ledger.add(HOST, "pidfd", Status.SKIPPED, why)


def read_processes(
    proc: str | os.PathLike[str],
    pids: Sequence[int],
    *,
    pool: StringPool,
    ledger: Ledger,
    threads: int = 1,
    collector: Collector | None = None,
) -> ProcessRecord:
    """Read every process of *pids* and keep it pinned.

    Parameters
    ----------
    proc
        A mounted procfs.
    pids
        Thread group ids, rising (``list_pids``).
    pool, ledger
        Where texts and gaps go.
    threads
        Threads that read at once; the GIL is released.
    collector
        What we are; ``Collector.probe(proc)`` if not given.

    Returns
    -------
    ProcessRecord
        Userland processes that were alive; zombies, exiting ones and those that vanished are in
        the ledger, kernel threads in ``kthreads``. Close it.

    Raises
    ------
    OSError
        *proc* cannot be opened.

    """
    pids = sorted(set(pids))
    collector = collector or Collector.probe(proc)
    procfd = os.open(proc, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    record = ProcessRecord(
        proc=os.fspath(proc),
        procfd=procfd,
        pool=pool,
        ledger=ledger,
        collector=collector,
        rows=np.zeros(0, PROC),
        text={name: np.zeros(0, np.int32) for name in TEXTS},
        groups=[],
        nspid=[],
        cpus=[],
        threads=[],
        thread_groups=[],
        held=[],
    )
    _note_host(ledger, collector)
    room = room_for_fds()
    chunks, keeps = [], []
    for i in range(0, len(pids), CHUNK):
        chunks.append(pids[i : i + CHUNK])
        keeps.append(max(0, min(len(chunks[-1]) + 4, room)))
        room -= keeps[-1]
    ours = collector.same_pid_ns
    with ThreadPoolExecutor(max(1, threads)) as workers:
        parts = list(workers.map(lambda c, k: _scan(procfd, c, ours, k), chunks, keeps))
    _assemble(record, parts)
    record.text["uid_map"] = np.full(len(record), -1, np.int32)
    _read_uid_maps(record, range(len(record)))
    return record


def read_one(record: ProcessRecord, row: int) -> bool:
    """Read one process again, whole and in place, after it was torn.

    Its ledger rows are forgotten and written anew, those of other sources too: whoever read
    those has to read them again. False if it is not there any more; the caller then leaves it
    out with ``record.drop``. All other rows stay where they are.
    """
    held = record.held[row]
    fresh = ProcessRecord(
        proc=record.proc,
        procfd=record.procfd,
        pool=record.pool,
        ledger=Ledger(record.pool),
        collector=record.collector,
        rows=np.zeros(0, PROC),
        text={name: np.zeros(0, np.int32) for name in TEXTS},
        groups=[],
        nspid=[],
        cpus=[],
        threads=[],
        thread_groups=[],
        held=[],
    )
    part = _scan(record.procfd, [held.pid], record.collector.same_pid_ns, 2)
    if part.rows["kind"][0] != USER:
        return False
    if int(part.rows["print"]["start_time"][0]) != held.start_time:
        Held(record.procfd, part.rows[0]).close()
        return False
    record.ledger.forget(held.pid)
    fresh.ledger = record.ledger
    _assemble(fresh, [part])
    held.close()
    record.rows[row] = fresh.rows[0]
    for name in TEXTS:
        record.text[name][row] = fresh.text[name][0]
    for name in ("groups", "nspid", "cpus", "threads", "thread_groups", "held"):
        getattr(record, name)[row] = getattr(fresh, name)[0]
    record.text["uid_map"][row] = -1
    _read_uid_maps(record, [row])
    return True


def shared_mm_groups(record: ProcessRecord) -> NDArray[np.int32]:
    """Give each process the number of its address space: CLONE_VM shares one.

    Candidates have one layout (start_code, start_stack, arg_start), which fork also copies;
    kcmp(KCMP_VM) decides, in O(n log n) calls for n candidates. Where it may not, each process
    counts as its own, and the ledger says how many were not decided.

    Returns
    -------
    (P,) int32
        From 0, numbered in the order of their first row.

    """
    n = len(record)
    prints = record.rows["print"]
    layout = np.stack([prints[k] for k in ("start_code", "start_stack", "arg_start")], axis=1)
    first = np.arange(n)  # the lowest row of the same mm
    undecided = 0
    why = "/proc is of another pid namespace: kcmp cannot name its processes"
    _, inverse, counts = np.unique(layout, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    for key in np.flatnonzero(counts > 1).tolist():
        rows = np.flatnonzero((inverse == key) & (layout[:, 2] != 0))
        if len(rows) < 2:
            continue
        if not record.collector.same_pid_ns:
            undecided += len(rows)
            continue
        lost, said = _join_by_kcmp(record, rows, first)
        undecided, why = undecided + lost, said or why
    if undecided:
        record.ledger.add(HOST, "kcmp", Status.DENIED, why, undecided)
    return np.unique(first, return_inverse=True)[1].reshape(-1).astype(np.int32)


def _join_by_kcmp(
    record: ProcessRecord, rows: NDArray[np.intp], first: NDArray[np.intp]
) -> tuple[int, str]:
    """Write the lowest row of its mm into *first*; how many were not decided, and why."""
    tids = record.rows["tid"][rows].astype(np.int32)
    row_of = dict(zip(tids.tolist(), rows.tolist(), strict=True))
    try:
        kept, denied, starts = nsfs.sort_by_mm(tids)
    except ProcessLookupError:
        return len(rows), "processes kept exiting while kcmp compared them"
    except OSError as exc:
        return len(rows), f"kcmp: {exc.strerror}"
    for group in np.split(tids[:kept], starts[1:]):
        if len(group) < 2:
            continue
        members = sorted(row_of[tid] for tid in group.tolist())
        # Two that gave their mm back compare equal (both have none): believe only the living.
        members = [i for i in members if same_layout(record.held[i])]
        for i in members:
            first[i] = members[0]
    return denied, "kcmp: Operation not permitted" if denied else ""
