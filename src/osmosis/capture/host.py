"""``capture()``: all sources in their order, and the facts of the host."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.capture.control import opens_by_handle, read_control
from osmosis.capture.control_sockets import read_control_sockets
from osmosis.capture.files import FileReader
from osmosis.capture.ipc import read_ipc
from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.mapped_files import FileTable, read_mapped_files
from osmosis.capture.memory import MemoryReader
from osmosis.capture.mounts import MountReader
from osmosis.capture.namespaces import add_pinned, read_namespaces
from osmosis.capture.processes import (
    THREAD_NAMESPACES,
    Collector,
    ProcessRecord,
    list_pids,
    read_one,
    read_processes,
    verify_all,
)
from osmosis.capture.quotas import read_quotas
from osmosis.capture.sockets import SocketReader
from osmosis.schema import NAMESPACES, Status
from osmosis.snapshot import Snapshot, StringPool

__all__ = ["SOURCES", "capture"]

# Modules of capture/ that may be asked for by name; processes are always read.
SOURCES = frozenset(
    {"control", "files", "ipc", "memory", "mounts", "namespaces", "quotas", "sockets"}
)
# Counters of /proc/vmstat that tell of frames that moved without a page fault.
MOVED = ("pgmigrate_success", "thp_collapse_alloc", "ksm_swpin_copy", "cow_ksm")


def capture(
    pids: Iterable[int] | None = None,
    *,
    sources: str | Collection[str] | None = None,
    frames: str = "classes",
    threads: int | None = None,
    budget_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    proc: str | os.PathLike[str] = "/proc",
) -> Snapshot:
    """Capture the isolation state of this host. Reads only; never stops a process.

    Parameters
    ----------
    pids
        Only these processes; None for all. What the others share is then not known to the
        snapshot.
    sources
        Names (or one name) of what to read beside the processes themselves, from ``SOURCES``; None
        for all.
    frames
        ``"classes"`` keeps which mappings share frames, ``"all"`` every frame number too (for
        ``snapshot.model(memory="runs" | "pages")``).
    threads
        Threads that read; None for one a processor that we may run on.
    budget_s
        Seconds after which no further address space is begun: those left out are in the ledger.
    progress
        Called with (address spaces done, in all), from the threads that read.
    proc
        Root of the procfs to read.

    Returns
    -------
    Snapshot
        Without privilege too: what could not be read is in ``snapshot.coverage``.

    Raises
    ------
    ValueError
        An argument is not one of those named above.
    OSError
        *proc* cannot be opened.

    Notes
    -----
    About the time that the kernel takes to print maps and pagemap of every process; memory: 4
    bytes per frame seen and about 100 per VMA.
    """
    if isinstance(sources, str):
        sources = (sources,)
    wanted = SOURCES if sources is None else frozenset(sources)
    if not wanted <= SOURCES | {"processes"}:
        unknown = ", ".join(sorted(wanted - SOURCES))
        msg = f"unknown sources: {unknown}; there are {', '.join(sorted(SOURCES))}"
        raise ValueError(msg)
    if frames not in ("classes", "all"):
        msg = f'frames must be "classes" or "all", not {frames!r}'
        raise ValueError(msg)
    if threads is not None and threads < 1:
        msg = f"threads must be 1 or more, not {threads}"
        raise ValueError(msg)
    threads = threads or len(os.sched_getaffinity(0))
    deadline = None if budget_s is None else time.monotonic() + budget_s
    pool = StringPool()
    ledger = Ledger(pool)
    started = datetime.now(UTC)
    vmstat = _vmstat()
    collector = Collector.probe(proc)
    record = read_processes(
        proc, list_pids(proc, pids), pool=pool, ledger=ledger, threads=threads, collector=collector
    )
    with record:
        columns: dict[str, NDArray[Any]] = {}
        gone: set[int] = set()
        torn: set[int] = set()
        trees = MountReader(record, ledger=ledger)
        files = FileReader(record, trees, ledger=ledger, threads=threads)
        # Files are told apart by their mounts. Read before the last look at each process.
        if wanted & {"files", "mounts"}:
            trees.read()
        sockets = SocketReader(record, files, ledger=ledger)
        if "files" in wanted:
            files.read()
        if "sockets" in wanted:
            sockets.read()
        if "files" in wanted:
            files.look_for_flights(sockets.empty)
        if "memory" in wanted:
            reader = MemoryReader(
                record,
                ledger=ledger,
                pool=pool,
                keep_frames=frames == "all",
                threads=threads,
                deadline=deadline,
                progress=progress,
            )
            reader.read()
            columns |= reader.columns()
            gone, torn = reader.gone, reader.torn
        else:
            gone = _reread_torn(record, threads)
            ledger.add(HOST, "memory", Status.SKIPPED, "was not asked for")
        if "files" in wanted:
            files.refresh()
        if "namespaces" in wanted:
            columns |= read_namespaces(proc, record, record.held, ledger=ledger)
            columns |= _namespace_rows_of_objects(columns)
        else:
            ledger.add(HOST, "namespaces", Status.SKIPPED, "was not asked for")
            columns.pop("object_ipc", None)
        columns |= record.columns
        columns = _drop(record, columns, gone, torn)
        row_of = {pid: row for row, pid in enumerate(columns["process_pid"].tolist())}
        if "files" in wanted:
            columns |= files.columns(row_of)
        else:
            ledger.add(HOST, "files", Status.SKIPPED, "was not asked for")
        if "sockets" in wanted:
            columns |= sockets.columns(row_of, columns)
        else:
            ledger.add(HOST, "sockets", Status.SKIPPED, "was not asked for")
        if wanted & {"files", "mounts"}:
            columns |= trees.columns(row_of)
        if "namespaces" in wanted:
            columns |= add_pinned(columns, pool=pool, ledger=ledger)
        if "mounts" not in wanted:
            ledger.add(HOST, "mounts", Status.SKIPPED, "was not asked for")
        if "ipc" in wanted and "namespaces" in wanted:
            everyone = pids is None and not (collector.hidepid and not collector.may_trace)
            columns |= read_ipc(record, columns, ledger=ledger, everyone=everyone)
        else:
            ledger.add(HOST, "ipc", Status.SKIPPED, "was not asked for, or namespaces were not")
        if {"control", "namespaces"} <= wanted:
            if "files" not in wanted:
                # What they are is not asked for, what power they give is: no row, no entry.
                files = FileReader(record, trees, ledger=Ledger(pool), threads=threads)
                files.read()
                files.look_for_flights()
                files.columns(row_of)
            columns |= read_control(record, columns, files, ledger=ledger)
            columns |= _control_files(record, trees, columns, ledger=ledger)
        else:
            ledger.add(HOST, "control", Status.SKIPPED, "was not asked for, or namespaces were not")
        if "quotas" in wanted:
            columns |= read_quotas(record, ledger=ledger)
        else:
            ledger.add(HOST, "quotas", Status.SKIPPED, "was not asked for")
        columns |= ledger.columns(row_of)
        columns |= pool.columns()
    host = _host_facts(proc, collector, started, vmstat, threads)
    host["sources"] = sorted(wanted | {"processes"})
    host["pids"] = "all" if pids is None else "some"
    return Snapshot(_complete(columns, len(row_of)), host)


def _control_files(
    record: ProcessRecord,
    trees: MountReader,
    columns: dict[str, NDArray[Any]],
    *,
    ledger: Ledger,
) -> dict[str, NDArray[Any]]:
    """Tables ctlfile, ctlplace and daemon, of what the other sources found."""
    if not trees.trees:
        return {}
    table = FileTable(record, trees.by_id)
    daemons: dict[str, NDArray[Any]] = {}
    try:
        if "object_kind" in columns:
            read_mapped_files(table, columns, ledger=ledger)
        if "socket_inode" in columns and "fd_open" in columns:
            daemons = read_control_sockets(table, columns, ledger=ledger)
    finally:
        table.close()
    return table.columns() | daemons


def _reread_torn(record: ProcessRecord, threads: int) -> set[int]:
    """Without memory to wait for: check every process last, and read torn ones once more."""
    steady = verify_all(record.held, threads=threads)
    return {row for row in np.flatnonzero(~steady).tolist() if not read_one(record, row)}


def _namespace_rows_of_objects(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """``object_ipc`` as rows of table namespace; the memory reader knows inode numbers only."""
    if "object_ipc" not in columns:
        return {}
    ipc = columns["namespace_kind"] == NAMESPACES.index("ipc")
    rows = np.flatnonzero(ipc)
    row_of = dict(zip(columns["namespace_inode"][rows].tolist(), rows.tolist(), strict=True))
    inodes = columns["object_ipc"].tolist()
    return {"object_ipc": np.array([row_of.get(inode, -1) for inode in inodes], np.int32)}


def _drop(
    record: ProcessRecord, columns: dict[str, NDArray[Any]], gone: set[int], torn: set[int]
) -> dict[str, NDArray[Any]]:
    """Leave out the processes that exited or would not hold still, and renumber rows."""
    n = len(record)
    out = np.zeros(n, bool)
    leaving = np.zeros(n, bool)
    out[list(gone)] = True
    leaving[list(torn)] = True
    if not (out | leaving).any():
        return columns
    stay = np.flatnonzero(~(out | leaving))
    new_row = np.full(n, -1, np.int64)
    new_row[stay] = np.arange(len(stay))
    threads_stay = new_row[record.thread_process] >= 0
    record.drop(leaving, Status.TORN, "changed (execve, setuid, setns) each time it was read")
    record.drop(out[~leaving])
    columns = columns | record.columns
    for name, column in columns.items():
        if name.startswith("process_ns_") or name == "process_mm":
            columns[name] = column[stay]
        elif name.startswith("thread_ns_"):
            columns[name] = column[threads_stay]
    if "mm_process" in columns:
        # The first process that stays speaks for an address space.
        speaker = np.full(len(columns["mm_process"]), -1, np.int32)
        mm = columns["process_mm"]
        rows = np.flatnonzero(mm >= 0)[::-1]
        speaker[mm[rows]] = rows
        columns["mm_process"] = speaker
    return columns


def _complete(columns: dict[str, NDArray[Any]], n: int) -> dict[str, NDArray[Any]]:
    """Columns of sources that were not asked for: -1, "not known", for every process."""
    for name in ("mm", *(f"ns_{kind}" for kind in NAMESPACES)):
        columns.setdefault(f"process_{name}", np.full(n, -1, np.int32))
    for kind in THREAD_NAMESPACES:
        columns.setdefault(f"thread_ns_{kind}", np.full(len(columns["thread_tid"]), -1, np.int32))
    if "object_kind" in columns:
        columns.setdefault("object_ipc", np.full(len(columns["object_kind"]), -1, np.int32))
    return columns


def _vmstat() -> dict[str, int]:
    with suppress(OSError):
        lines = Path("/proc/vmstat").read_text().splitlines()
        return {k: int(v) for k, v in map(str.split, lines) if k in MOVED}
    return {}


def _read(path: str | Path) -> str | None:
    with suppress(OSError):
        return Path(path).read_text(errors="surrogateescape").strip()
    return None


def _int(path: str | Path) -> int | None:
    with suppress(ValueError, TypeError):
        return int(_read(path) or "")
    return None


def _host_facts(
    proc: str | os.PathLike[str],
    collector: Collector,
    started: datetime,
    vmstat: dict[str, int],
    threads: int,
) -> dict[str, Any]:
    """Facts that queries and people need to read the columns; JSON values only."""
    base = Path(proc)
    after = _vmstat()
    status = _read("/proc/self/status") or ""
    caps = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff")]
    uname = os.uname()
    return {
        "boot_id": _read(base / "sys/kernel/random/boot_id")
        or _read("/proc/sys/kernel/random/boot_id"),
        "kernel": uname.release,
        "machine": uname.machine,
        "hostname": uname.nodename,
        "captured_at": started.isoformat(timespec="milliseconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 6),
        "threads": threads,
        "page_size": os.sysconf("SC_PAGESIZE"),
        "ticks_per_second": os.sysconf("SC_CLK_TCK"),
        "processors": os.sysconf("SC_NPROCESSORS_ONLN"),
        "memory_pages": os.sysconf("SC_PHYS_PAGES"),
        "proc": os.fspath(proc),
        "hidepid": collector.hidepid,
        "same_pid_ns": collector.same_pid_ns,
        "pid_ns": collector.pid_ns,
        "user_ns": collector.user_ns,
        "euid": collector.euid,
        "cap_eff": caps[0] if caps else None,
        "yama": _int(base / "sys/kernel/yama/ptrace_scope"),
        "lsm": _read("/sys/kernel/security/lsm"),
        "overflow_uid": _int(base / "sys/kernel/overflowuid"),
        "overflow_gid": _int(base / "sys/kernel/overflowgid"),
        "vmstat": {k: after[k] - vmstat[k] for k in after if k in vmstat},
        "nsfs_handles": opens_by_handle(),
        "users": _users(),
    }


def _users() -> dict[str, str]:
    """Names of uids, as this host's passwd database lists them."""
    names: dict[str, str] = {}
    with suppress(OSError):
        for entry in pwd.getpwall():
            names.setdefault(str(entry.pw_uid), entry.pw_name)
    return names
