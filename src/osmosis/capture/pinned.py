"""Processes pinned by a descriptor of their directory, and the proof that they are the same.

A reused pid gives ESRCH below the old directory. execve keeps pid, start time and directory; it
changes the layout of the mm, which is in the fingerprint with the credentials and namespaces.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from _fastproc import procfs
from osmosis.errors import ProcessGone

__all__ = [
    "CHUNK",
    "CRED",
    "PRINT",
    "PROC",
    "TEXTS",
    "THREAD",
    "Held",
    "reread",
    "same_layout",
    "slurp",
    "unchanged",
    "verify",
    "verify_all",
]

CHUNK = 64  # processes read in one call, without the GIL

# The records that procfs.scan fills: struct Proc, Thread, Print of procfs.pyx, field by field.
CRED = np.dtype(
    [
        ("cap", "<u8", 5),
        ("uid", "<u4", 4),
        ("gid", "<u4", 4),
        ("no_new_privs", "i1"),
        ("seccomp", "i1"),
        ("zero", "V6"),
    ]
)
SPAN = np.dtype([("start", "<i8"), ("size", "<i8")])
PRINT = np.dtype(
    [(name, "<u8") for name in ("start_time", "start_code", "start_stack", "arg_start", "layout")]
    + [("ns", "<u8", 8), ("groups", "<u8"), ("comm", "<u8"), ("cred", CRED), ("pid", "<i8")]
)
TEXTS = ("comm", "exe", "cwd", "root", "cmdline", "label", "cgroup")
PROC = np.dtype(
    [("print", PRINT)]
    + [(name, "<u8") for name in ("vsize", "min_flt", "maj_flt", "root_dev", "root_inode")]
    + [(name, "<u8") for name in ("exe_dev", "exe_inode")]
    + [(name, SPAN) for name in (*TEXTS, "groups", "nspid", "cpus")]
    + [(name, "<i4") for name in ("pid", "tid", "dirfd", "leaderfd", "ppid", "pgid", "sid")]
    + [("tty", "<i4"), ("threads", "<i4"), ("tracer", "<i4"), ("flags", "<u4")]
    + [("mem_uid", "<u4"), ("err", "<i4", len(procfs.SOURCES)), ("oom_adj", "<i2")]
    + [("mem_mode", "<u2"), ("dumpable", "i1"), ("state", "u1"), ("kind", "u1"), ("pad", "u1")]
)
THREAD = np.dtype(
    [
        ("cred", CRED),
        ("ns", "<u8", 6),
        ("root_dev", "<u8"),
        ("root_inode", "<u8"),
        ("groups", SPAN),
        ("row", "<i4"),
        ("tid", "<i4"),
    ]
)
if (PROC.itemsize, THREAD.itemsize, PRINT.itemsize) != (
    procfs.PROC_BYTES,
    procfs.THREAD_BYTES,
    procfs.PRINT_BYTES,
):
    msg = "osmosis and _fastproc do not fit together: build the extensions again"
    raise ImportError(msg)


class Held:
    """One process, pinned by an O_PATH descriptor of its directory.

    ``dirfd`` is of a thread that is alive, for ``openat("maps")`` and the like; ``leaderfd`` is
    of the process: they differ where the leader has called pthread_exit. If there are more
    processes than descriptors, they are opened when asked for, and the process is recognised by
    its start time; ``release`` then gives them back.

    Raises
    ------
    ProcessGone
        From ``dirfd`` and ``leaderfd``: it had to be opened again, and is not there any more.

    """

    __slots__ = (
        "_dirfd",
        "_leaderfd",
        "_lent",
        "_procfd",
        "fingerprint",
        "pid",
        "start_time",
        "tid",
    )

    def __init__(self, procfd: int, row: NDArray[Any]) -> None:
        self.pid = int(row["pid"])
        self.tid = int(row["tid"])
        self.start_time = int(row["print"]["start_time"])
        self.fingerprint: bytes = row["print"].tobytes()
        self._procfd = procfd
        self._dirfd = int(row["dirfd"])
        self._leaderfd = int(row["leaderfd"])
        self._lent = self._dirfd < 0

    def __repr__(self) -> str:
        return f"<Held {self.pid}>"

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
    def dirfd(self) -> int:
        """Descriptor of the directory of a living thread."""
        if self._dirfd < 0:
            self._open()
        return self._dirfd

    @property
    def leaderfd(self) -> int:
        """Descriptor of the directory of the process."""
        if self._leaderfd < 0:
            self._open()
        return self._leaderfd

    def release(self) -> None:
        """Close the descriptors if they were opened for want of room; else do nothing."""
        if self._lent:
            self.close()

    def close(self) -> None:
        """Close the descriptors."""
        fds = {self._dirfd, self._leaderfd} - {-1}
        self._dirfd = self._leaderfd = -1
        self._lent = True
        for fd in fds:
            os.close(fd)

    def _open(self) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            leader = os.open(str(self.pid), flags, dir_fd=self._procfd)
        except FileNotFoundError as exc:
            raise ProcessGone(self.pid) from exc
        try:
            stat = procfs.parse_stat(slurp(leader, "stat"))
            if stat["start_time"] != self.start_time:
                raise ProcessGone(self.pid, "exited, and its pid is another process's now")
            at = leader
            if self.tid != self.pid:
                at = os.open(f"task/{self.tid}", flags, dir_fd=leader)
        except BaseException as exc:
            os.close(leader)
            if isinstance(exc, (ProcessLookupError, FileNotFoundError)):
                raise ProcessGone(self.pid) from exc
            raise
        self._leaderfd, self._dirfd = leader, at


def slurp(dirfd: int, name: str) -> bytes:
    """Read one small file below a pinned directory; OSError."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dirfd)
    with os.fdopen(fd, "rb", buffering=0) as file:
        return file.read()


def reread(held: Held) -> bytes | None:
    """Return the fingerprint as it is now, to compare with ``held.fingerprint``.

    None if the process is gone, or in the middle of execve.
    """
    now, error = np.zeros(PRINT.itemsize, np.uint8), np.ones(1, np.int32)
    with suppress(ProcessGone, OSError):
        fds = np.array([held.leaderfd, held.dirfd], np.int32)
        procfs.fingerprints(fds[:1], fds[1:], now, error)
    held.release()
    return None if error[0] else now.tobytes()


def verify(held: Held) -> bool:
    """Whether the process is still the same program with the same rights as when it was read."""
    return unchanged([held])[0] >= 0


def unchanged(held: Sequence[Held]) -> list[int]:
    """Page faults (min_flt + maj_flt) of all threads of each so far, if it is still the same.

    -1 for one that is gone, in the middle of execve, or another program or one with other rights
    than when it was read. stat is read once for both. About 25 us each, without the GIL.
    """
    fds = np.full((2, len(held)), -1, np.int32)
    for i, one in enumerate(held):
        with suppress(ProcessGone, OSError):
            fds[:, i] = one.leaderfd, one.dirfd
    faults = np.empty(len(held), np.int64)
    try:
        procfs.unchanged(fds[0], fds[1], b"".join([one.fingerprint for one in held]), faults)
    finally:
        for one in held:
            one.release()
    return list(faults.tolist())


def same_layout(held: Held) -> bool:
    """Whether it still has the mm that it was read with; its rights may be others."""
    now = reread(held)
    if now is None:
        return False
    fields = ["start_time", "start_code", "start_stack", "arg_start", "layout", "pid"]
    old = np.frombuffer(held.fingerprint, PRINT)[fields]
    return bool(old[0] == np.frombuffer(now, PRINT)[fields][0])


def verify_all(held: Sequence[Held], *, threads: int = 1) -> NDArray[np.bool_]:
    """``verify`` of many, (len(held),) bool."""
    chunks = [held[i : i + CHUNK] for i in range(0, len(held), CHUNK)]
    with ThreadPoolExecutor(max(1, threads)) as workers:
        faults = [count for part in workers.map(unchanged, chunks) for count in part]
    return np.array(faults, np.int64) >= 0
