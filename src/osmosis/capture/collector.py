"""The reader itself: what it may see, and how much it may open."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _fastproc import procfs

__all__ = ["Collector", "room_for_fds"]

SPARE_FDS = 512  # left for maps, pagemap, sockets and the program that uses us
CAP_SYS_PTRACE = 19  # include/uapi/linux/capability.h


@dataclass(frozen=True, slots=True)
class Collector:
    """What the reader itself is, as far as it decides what it can see."""

    same_pid_ns: bool  # the pids of this /proc are those of our own system calls
    pid_ns: int  # inode of the pid namespace that /proc shows, 0 if not known
    user_ns: int  # inode of our user namespace
    euid: int
    may_trace: bool  # CAP_SYS_PTRACE in our own user namespace
    hidepid: str  # the mount option of /proc, "" if it hides nothing

    @classmethod
    def probe(cls, proc: str | os.PathLike[str] = "/proc") -> Collector:
        """Look at ourselves through *proc*, and through /proc where that one is another's."""
        base = Path(proc)
        own: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            own = procfs.parse_status((base / "self/status").read_bytes())
        # NSpid counts from the pid namespace of the mount down to ours: one entry, no other
        # namespace between.
        same = own.get("nspid", []) == [os.getpid()]
        return cls(
            same_pid_ns=same,
            pid_ns=_inode(base / ("self/ns/pid" if same else "1/ns/pid")),
            user_ns=_inode(Path("/proc/self/ns/user")),
            euid=os.geteuid(),
            may_trace=bool(own and own["cap"][2] >> CAP_SYS_PTRACE & 1),
            hidepid=_hidepid(base),
        )


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _hidepid(proc: Path) -> str:
    # mountinfo: ... mount point (field 5) ... " - " type source super-options
    try:
        at = os.fsencode(os.path.realpath(proc))
        lines = (proc / "self/mountinfo").read_bytes().splitlines()
    except OSError:
        return ""
    found = ""
    for line in lines:
        left, _, right = line.partition(b" - ")
        fields, kind = left.split(b" "), right.split(b" ")
        if len(fields) > 4 and len(kind) > 2 and kind[0] == b"proc" and fields[4] == at:
            options = kind[2].split(b",")
            found = next((o.decode() for o in options if o.startswith(b"hidepid=")), "")
    return "" if found in ("hidepid=0", "hidepid=off") else found


def room_for_fds() -> int:
    """Raise the soft limit of open files to the hard one; how many more may be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    try:
        used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        used = 64
    return soft - used - SPARE_FDS if soft != resource.RLIM_INFINITY else 1 << 30
