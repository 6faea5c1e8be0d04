"""System V IPC: the segments, semaphores and queues of each ipc namespace, and whose is mapped.

/proc/sysvipc shows the ipc namespace of the task that opens it (sysvipc_proc_open() in
ipc/util.c): a thread of its own enters one after the other, reads, and ends there.

maps prints of a segment its shmid alone, and a process that attached one and then changed its
namespace (or was cloned into another) still maps the old one's. What tells segments apart is the
file handle of the mapped inode, which holds a random generation (shmem_encode_fh() in
mm/shmem.c); where that cannot be asked, the table of the namespace decides, or nothing does.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import Counter
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from _fastproc import nsfs
from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.opens import beside
from osmosis.capture.processes import ProcessRecord
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, NAMESPACES, FileKind, OpenKind, Status, SysvKind

__all__ = ["Segment", "parse_sysvipc", "read_ipc", "settle"]

SOURCE = "ipc"
IPC = NAMESPACES.index("ipc")
CLONE_NEWIPC = 0x08000000  # include/uapi/linux/sched.h
AT_SYMLINK_FOLLOW = 0x400  # include/uapi/linux/fcntl.h
MQUEUE_MAGIC = 0x19800202  # ipc/mqueue.c
FILES = {"shm": SysvKind.SHM, "sem": SysvKind.SEM, "msg": SysvKind.MSG}
# How /proc/sysvipc names the columns that we keep: ipc/shm.c, sem.c, msg.c.
_ID = {"shm": "shmid", "sem": "semid", "msg": "msqid"}
_SIZE = {"shm": "size", "sem": "nsems", "msg": "cbytes"}

Columns = MutableMapping[str, NDArray[Any]]


class Object(NamedTuple):
    """One line of /proc/sysvipc, in the order of table sysv."""

    kind: int
    id: int
    key: int  # as an unsigned number, as maps prints it
    mode: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    size: int
    attached: int


def parse_sysvipc(name: str, text: str) -> list[Object]:
    """Parse ``shm``, ``sem`` or ``msg`` of /proc/sysvipc.

    Raises
    ------
    ValueError
        A line does not fit the first one, which names the columns.

    """
    head, *lines = text.splitlines()
    names = head.split()
    out = []
    for line in lines:
        row = dict(zip(names, line.split(), strict=True))
        uid, gid, cuid, cgid, size = (
            int(row[n]) for n in ("uid", "gid", "cuid", "cgid", _SIZE[name])
        )
        # perms are octal; a segment's hold SHM_DEST (01000) too.
        mode, key = int(row["perms"], 8) & 0o777, int(row["key"]) & 0xFFFF_FFFF
        out.append(
            Object(
                FILES[name],
                int(row[_ID[name]]),
                key,
                mode,
                uid,
                gid,
                cuid,
                cgid,
                size,
                int(row.get("nattch", 0)),
            )
        )
    return out


def read_ipc(
    record: ProcessRecord, columns: Columns, *, ledger: Ledger, everyone: bool
) -> dict[str, NDArray[Any]]:
    """Read the tables sysv and ipcspace, and tell the mapped segments apart.

    Parameters
    ----------
    record
        P processes.
    columns
        Those of the processes, namespaces and memory, of these P processes.
    ledger
        Takes a row for the namespaces that could not be entered.
    everyone
        Whether *record* is of all processes that /proc lists.

    Returns
    -------
    dict of columns
        Those of the two tables, and ``vma_object`` and ``object_*`` if segments are mapped.
        One thread, and a few files for each namespace; one call for each mapping of a segment.

    """
    tables, failed = _read_all(record, columns)
    out: dict[str, list[Any]] = {
        n: [] for n, c in COLUMNS.items() if c.table in ("sysv", "ipcspace")
    }
    for row, found in tables.items():
        out["ipcspace_ipc"].append(row)
        out["ipcspace_status"].append(Status.READ)
        for one in found:
            for name, value in zip([n for n in out if n[:5] == "sysv_"], (row, *one), strict=True):
                out[name].append(value)
    for row, status in failed.items():
        out["ipcspace_ipc"].append(row)
        out["ipcspace_status"].append(status)
    if failed:
        why = "ipc namespaces that could not be entered (CAP_SYS_ADMIN over them is needed)"
        ledger.add(HOST, SOURCE, Status.DENIED, why, len(failed))
    else:
        ledger.add(HOST, SOURCE, Status.READ, "", len(tables))
    made = {name: np.array(v, COLUMNS[name].dtype) for name, v in out.items()}
    everyone = everyone and record.collector.pid_ns == nsfs.INITIAL_PID
    made |= _queues(record, columns)
    return made | _tell_apart(record, columns, tables, ledger, everyone=everyone)


# -- the tables of the namespaces


def _read_all(
    record: ProcessRecord, columns: Columns
) -> tuple[dict[int, list[Object]], dict[int, int]]:
    """Objects by row of the namespace, and a Status for those that could not be read."""
    of = columns["process_ns_ipc"]
    members = {r: np.flatnonzero(of == r).tolist() for r in np.unique(of).tolist() if r >= 0}
    inode = columns["namespace_inode"]
    tables: dict[int, list[Object]] = {}
    failed: dict[int, int] = {}
    ours = os.stat("/proc/self/ns/ipc").st_ino
    libc = ctypes.CDLL(None, use_errno=True)

    def run() -> None:
        # Our own first: from the others there is no way back without their permission.
        for row in sorted(members, key=lambda r: int(inode[r]) != ours):
            try:
                if int(inode[row]) != ours:
                    _enter(libc, record, members[row], int(inode[row]))
                tables[row] = _read_table()
            except PermissionError:
                failed[row] = Status.DENIED
            except (OSError, ProcessGone):
                failed[row] = Status.GONE
            except ValueError:
                failed[row] = Status.PARTIAL

    thread = threading.Thread(target=run, name="osmosis-ipc")
    thread.start()
    thread.join()
    return tables, failed


def _enter(libc: Any, record: ProcessRecord, members: list[int], inode: int) -> None:
    """Move this thread into an ipc namespace by the link of one that is still in it."""
    refused = None
    for i in members:
        held = record.held[i]
        try:
            fd = os.open("ns/ipc", os.O_RDONLY | os.O_CLOEXEC, dir_fd=held.dirfd)
        except PermissionError as exc:
            refused = exc
            continue
        except (FileNotFoundError, ProcessLookupError, ProcessGone):
            continue
        finally:
            held.release()
        try:
            if os.fstat(fd).st_ino != inode:
                continue
            if libc.setns(fd, CLONE_NEWIPC):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            return
        finally:
            os.close(fd)
    raise refused or ProcessGone(0, "nobody is left in the namespace")


def _read_table() -> list[Object]:
    found = []
    for name in FILES:
        try:
            text = Path("/proc/sysvipc", name).read_text()
        except FileNotFoundError:  # a kernel without CONFIG_SYSVIPC
            continue
        found += parse_sysvipc(name, text)
    return found


# -- POSIX message queues


def _queues(record: ProcessRecord, columns: Columns) -> dict[str, NDArray[Any]]:
    """``open_kind`` with the regular files of mqueue filesystems as what they are.

    Each ipc namespace has one, mounted somewhere or not; one open file of each device is asked.
    """
    if "open_kind" not in columns:
        return {}
    kind, dev = columns["open_kind"].copy(), columns["open_dev"]
    candidates = (kind == OpenKind.FILE) & (dev >> np.uint64(32) == 0)  # no block device
    libc = ctypes.CDLL(None, use_errno=True)
    opened = columns["fd_open"]
    at = np.flatnonzero(candidates[opened]) if len(opened) else np.empty(0, np.intp)
    devices, first = np.unique(dev[opened[at]], return_index=True)
    for device, i in zip(devices.tolist(), at[first].tolist(), strict=True):
        held = record.held[int(columns["fd_process"][i])]
        with suppress(ProcessGone):
            there, prefix = beside(held, int(columns["fd_tid"][i]))
            path = f"/proc/self/fd/{there}/{prefix}fd/{int(columns['fd_fd'][i])}"
            if _filesystem(libc, path) == MQUEUE_MAGIC:
                kind[candidates & (dev == device)] = OpenKind.MQUEUE
        held.release()
    return {"open_kind": kind}


def _filesystem(libc: Any, path: str) -> int:
    """Magic number of the filesystem that a link leads to; 0 if it leads nowhere."""
    # struct statfs begins with the type, a machine word: include/uapi/asm-generic/statfs.h.
    facts = (ctypes.c_long * 64)()
    return 0 if libc.statfs(path.encode(), ctypes.byref(facts)) else int(facts[0])


# -- which segment a mapping is of


class Segment(NamedTuple):
    """One mapping of a segment, as maps shows it."""

    vma: int  # row
    mm: int
    ipc: int  # row of the namespace of who maps it, -1 if not known
    id: int
    key: int  # from its name in maps
    end: int  # bytes of the segment that are mapped, from its beginning
    handle: bytes | None  # of the inode; None where it could not be asked


def settle(
    segments: list[Segment], tables: Mapping[int, list[Object]], *, complete: bool
) -> list[tuple[int, bool, list[Segment]]]:
    """Say which mappings are of one segment, and in which namespace it is.

    Parameters
    ----------
    segments
        Every mapping that was seen.
    tables
        Objects of the namespaces that were read, by row.
    complete
        Whether all mappings of this host were seen.

    Returns
    -------
    list of (namespace row or -1, sure, mappings)
        One for each segment. Not sure: the namespace is the one that its users are in now, and
        whether it is that one's segment is not known.

    """
    groups: dict[Any, list[Segment]] = {}
    for one in segments:
        groups.setdefault(one.handle or (one.ipc, one.id), []).append(one)
    claims = Counter((one.ipc, one.id) for one in segments)
    out = []
    for key, found in groups.items():
        fitting = _fitting(found, tables)
        if isinstance(key, bytes):
            out.append((_home(found, fitting, complete=complete), True, found))
        else:
            # Nobody is missing, nobody is too many, and nowhere else is such a segment.
            sure = complete and fitting == {key[0]: claims[key]}
            out.append((key[0], sure, found))
    named = Counter((ipc, found[0].id) for ipc, _, found in out)
    return [(ipc if named[ipc, found[0].id] == 1 else -1, sure, found) for ipc, sure, found in out]


def _fitting(found: list[Segment], tables: Mapping[int, list[Object]]) -> dict[int, int]:
    """Namespaces that have such a segment, and how often it is attached there."""
    one, end = found[0], max(s.end for s in found)
    return {
        row: o.attached
        for row, objects in tables.items()
        for o in objects
        if (o.kind, o.id, o.key) == (SysvKind.SHM, one.id, one.key) and o.size > end - _page()
    }


def _home(found: list[Segment], fitting: Mapping[int, int], *, complete: bool) -> int:
    """Namespace of mappings that are known to be of one segment; -1 if that does not tell.

    The namespace may be gone, and the segment live on in who maps it: one that has the number
    and is attached otherwise is another. Of several, the one that all its users are in.
    """
    seen = len(found)
    fit = {row for row, n in fitting.items() if n == seen or (not complete and n > seen)}
    if len(fit) > 1:
        fit &= {one.ipc for one in found}
    return fit.pop() if len(fit) == 1 else -1


def _page() -> int:
    return os.sysconf("SC_PAGESIZE")


class _Handle(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("data", ctypes.c_ubyte * 128),
    )


def _handle(libc: Any, dirfd: int, name: str) -> bytes | None:
    """Return the file handle of what a link leads to: nothing is opened."""
    handle, mount = _Handle(bytes=128), ctypes.c_int()
    path = name.encode()
    if libc.name_to_handle_at(
        dirfd, path, ctypes.byref(handle), ctypes.byref(mount), AT_SYMLINK_FOLLOW
    ):
        return None
    return bytes([handle.type]) + bytes(handle.data[: handle.bytes])


def _segments(record: ProcessRecord, columns: Columns) -> list[Segment]:
    kind, of = columns["object_kind"], columns["vma_object"]
    rows = np.flatnonzero((of >= 0) & (kind[of] == FileKind.SYSV)).tolist()
    if not rows:
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    mm_of = np.searchsorted(columns["mm_vma_indptr"], rows, "right") - 1
    out = []
    for vma, mm in zip(rows, mm_of.tolist(), strict=True):
        process = int(columns["mm_process"][mm])
        start, end = int(columns["vma_start"][vma]), int(columns["vma_end"][vma])
        handle = None
        if process >= 0:
            held = record.held[process]
            with suppress(ProcessGone):
                handle = _handle(libc, held.dirfd, f"map_files/{start:x}-{end:x}")
            held.release()
        name = record.pool.text(int(columns["vma_path"][vma]))
        digits = name.removeprefix(b"/SYSV")[:8]
        out.append(
            Segment(
                vma,
                mm,
                int(columns["process_ns_ipc"][process]) if process >= 0 else -1,
                int(columns["object_inode"][of[vma]]),
                int(digits, 16),
                int(columns["vma_offset"][vma]) + end - start,
                handle,
            )
        )
    return out


def _tell_apart(
    record: ProcessRecord,
    columns: Columns,
    tables: Mapping[int, list[Object]],
    ledger: Ledger,
    *,
    everyone: bool,
) -> dict[str, NDArray[Any]]:
    """``vma_object`` and table object anew, with one row for each segment."""
    if "vma_object" not in columns:
        return {}
    segments = _segments(record, columns)
    if not segments:
        return {}
    read = np.isin(columns["mm_status"], (Status.READ, Status.HIDDEN))
    complete = everyone and bool((columns["process_mm"] >= 0).all() and read.all())
    vma_object = columns["vma_object"].copy()
    table = {n: columns[n].tolist() for n, c in COLUMNS.items() if c.table == "object"}
    doubtful = 0
    # New rows after the old ones; old rows of segments then go.
    for ipc, sure, found in settle(segments, tables, complete=complete):
        old = int(columns["vma_object"][found[0].vma])
        vma_object[[s.vma for s in found]] = len(table["object_kind"])
        for name, values in table.items():
            values.append({"object_ipc": ipc, "object_sure": sure}.get(name, values[old]))
        doubtful += not sure
    out = {name: np.array(v, COLUMNS[name].dtype) for name, v in table.items()}
    stay = out["object_kind"] != FileKind.SYSV
    stay[len(columns["object_kind"]) :] = True
    number = np.cumsum(stay) - 1
    vma_object = np.where(vma_object >= 0, number[vma_object], vma_object)
    out = {name: column[stay] for name, column in out.items()}
    if doubtful:
        why = "segments: whether they are of the namespace that their users are in now"
        ledger.add(HOST, SOURCE, Status.PARTIAL, why, doubtful)
    return out | {"vma_object": vma_object.astype(np.int32)}
