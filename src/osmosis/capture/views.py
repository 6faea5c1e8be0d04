"""What the processes of each mount namespace see: procfs and cgroup mounts, bound namespaces.

Read once per view, a view being (mount namespace, root directory): a chrooted member sees less.
Everything is looked at through one member's ``root`` link, by ``O_PATH`` and ``lstat`` alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.capture.ledger import Ledger
from osmosis.capture.processes import Held, ProcessRecord
from osmosis.capture.tables import Tables, namespace_rows
from osmosis.errors import ProcessGone
from osmosis.schema import Status

__all__ = ["Mount", "cgroup_controllers", "mounts", "read_views"]

SOURCE = "views"
HIDEPID = {b"off": 0, b"noaccess": 1, b"invisible": 2, b"ptraceable": 4}
_LINK = re.compile(r"(\w+):\[(\d+)\]")
_ESCAPE = re.compile(rb"\\([0-7]{3})")
# Of v1, options that say how a hierarchy is mounted, and not which it is.
_NOT_CONTROLLERS = {"rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"}


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (Documentation/filesystems/proc.rst, 3.5)."""

    id: int
    root: bytes  # what of the filesystem is mounted
    point: bytes  # where, from the reader's root
    options: tuple[bytes, ...]  # of the mount
    kind: bytes
    super_options: tuple[bytes, ...]
    parent: int  # id of the mount it stands on
    dev: int  # of the superblock, major << 32 | minor
    propagation: bytes  # the optional fields
    source: bytes

    @property
    def writable(self) -> bool:
        """Whether neither the mount nor the superblock is read-only."""
        return b"ro" not in self.options and b"ro" not in self.super_options


def mounts(text: bytes) -> Iterator[Mount]:
    """Parse mountinfo; a line that does not parse is left out."""
    for line in text.splitlines():
        left, _, right = line.partition(b" - ")
        fields, ends = left.split(b" "), right.split(b" ")
        if len(fields) < 6 or len(ends) < 3 or not (fields[0] + fields[1]).isdigit():
            continue
        major, _, minor = fields[2].partition(b":")
        if not (major + minor).isdigit():
            continue
        yield Mount(
            int(fields[0]),
            _unescape(fields[3]),
            _unescape(fields[4]),
            tuple(fields[5].split(b",")),
            ends[0],
            tuple(ends[2].split(b",")),
            int(fields[1]),
            int(major or b"0") << 32 | int(minor or b"0"),
            b" ".join(fields[6:]),
            _unescape(ends[1]),
        )


def cgroup_controllers(super_options: tuple[bytes, ...]) -> str:
    """Spell the hierarchy of a v1 mount as one text, whatever the order of its options."""
    names = [os.fsdecode(x) for x in super_options]
    kept = [x for x in names if x not in _NOT_CONTROLLERS and ("=" not in x or x[:5] == "name=")]
    return ",".join(sorted(kept))


def _unescape(path: bytes) -> bytes:
    return _ESCAPE.sub(lambda m: bytes([int(m[1], 8)]), path)


def read_views(
    record: ProcessRecord, namespaces: Mapping[str, NDArray[Any]], *, ledger: Ledger
) -> dict[str, NDArray[Any]]:
    """Read the tables control (column view), userns, view, procmount, nsmount and cgroupmount.

    Parameters
    ----------
    record
        P processes.
    namespaces
        The columns that ``read_namespaces`` gave.
    ledger
        Takes one row for each process whose view could not be read.

    Returns
    -------
    dict of columns
        O(P), plus a few system calls a view and mount.

    """
    reader = _Reader(record, namespaces, ledger)
    reader.run()
    return reader.columns()


class _Reader:
    def __init__(
        self, record: ProcessRecord, namespaces: Mapping[str, NDArray[Any]], ledger: Ledger
    ) -> None:
        self.record = record
        self.ledger = ledger
        self.ns = namespaces
        self.row_of = namespace_rows(namespaces)
        self.out = Tables("userns", "view", "procmount", "nsmount", "cgroupmount")
        self.add = self.out.add
        self.of = np.full(len(record), -1, np.int32)

    def columns(self) -> dict[str, NDArray[Any]]:
        return {**self.out.columns(), "control_view": self.of}

    def run(self) -> None:
        rows = self.record.rows
        mnt = self.ns["process_ns_mnt"].tolist()
        roots = zip(rows["root_dev"].tolist(), rows["root_inode"].tolist(), strict=True)
        view_of: dict[tuple[int, int, int], int] = {}
        for i, (space, (device, inode)) in enumerate(zip(mnt, roots, strict=True)):
            if space < 0 or not inode:
                continue  # the link was not readable: the ledger of processes says so
            key = (space, device, inode)
            if key not in view_of:
                status = self.read(i, len(view_of))
                if status != Status.READ:
                    self.ledger.add(self.record.held[i].pid, SOURCE, status, "its mountinfo")
                if status == Status.GONE:
                    continue
                view_of[key] = len(view_of)
                self.add("view", process=i, mnt=space, status=status)
            self.of[i] = view_of[key]
        self.read_maps()

    def read(self, i: int, view: int) -> int:
        held = self.record.held[i]
        kept = {name: len(values) for name, values in self.out.rows.items()}
        try:
            with _Opened("mountinfo", held.dirfd) as fd:
                text = _slurp(fd)
            with _Opened("root", held.dirfd, os.O_PATH) as root:
                for mount in mounts(text):
                    self.read_mount(root, mount, view)
        except PermissionError:
            status = Status.DENIED
        except (OSError, ProcessGone):
            status = Status.GONE
        else:
            status = Status.READ
        finally:
            held.release()
        if status != Status.READ:
            for name, n in kept.items():
                del self.out.rows[name][n:]
        return status

    def read_mount(self, root: int, mount: Mount, view: int) -> None:
        if mount.kind == b"proc" and mount.root == b"/":
            self.read_proc(root, mount, view)
        elif mount.kind in (b"cgroup", b"cgroup2"):
            names = cgroup_controllers(mount.super_options) if mount.kind == b"cgroup" else ""
            controllers = names.encode()
            reach = _reach(root, mount.point)
            if reach is None or not _on_top(root, mount):
                return
            self.add(
                "cgroupmount",
                view=view,
                controllers=self.record.pool.add(controllers),
                root=self.record.pool.add(mount.root),
                writable=mount.writable,
                reach=reach,
                delegate=b"nsdelegate" in mount.super_options,
            )
        elif mount.kind == b"nsfs" and (m := _LINK.fullmatch(os.fsdecode(mount.root))):
            row = self.row_of.get((m[1], int(m[2])))
            if row is not None:
                self.add("nsmount", view=view, namespace=row)

    def read_proc(self, root: int, mount: Mount, view: int) -> None:
        reach = _reach(root, mount.point)
        if reach is None or not _on_top(root, mount):
            return
        options = dict(x.partition(b"=")[::2] for x in mount.super_options)
        hide = options.get(b"hidepid", b"0")
        self.add(
            "procmount",
            view=view,
            pid=self.shows(root, mount.point),
            writable=mount.writable,
            reach=reach,
            hidepid=HIDEPID[hide] if hide in HIDEPID else int(hide),
            gid=int(options.get(b"gid", b"0")),
        )

    def shows(self, root: int, point: bytes) -> int:
        """Row of the pid namespace that a procfs shows, -2 if that cannot be told.

        We stand in it if it is ours or one above ours: NSpid then has one number for each
        namespace from that one down to ours. Else its pid 1 tells.
        """
        point = _under(point)
        try:
            with _Opened(point + b"/self/status", root) as fd:
                numbers = re.search(rb"^NSpid:(.*)$", _slurp(fd), re.MULTILINE)
            row = self._pid_namespace(point + b"/self/ns/pid", root)
            for _ in numbers[1].split()[1:] if numbers else ():
                row = int(self.ns["namespace_parent"][row]) if row >= 0 else -2
            return row if row >= 0 and numbers else -2
        except OSError:
            return self._pid_namespace(point + b"/1/ns/pid", root)

    def _pid_namespace(self, path: bytes, root: int) -> int:
        try:
            link = _LINK.fullmatch(os.fsdecode(os.readlink(path, dir_fd=root)))
        except OSError:
            return -2
        return self.row_of.get(("pid", int(link[2])), -2) if link else -2

    def read_maps(self) -> None:
        users = self.ns["process_ns_user"]
        distinct, first = np.unique(users, return_index=True)
        pool = self.record.pool
        for row, i in zip(distinct.tolist(), first.tolist(), strict=True):
            if row < 0:
                continue
            held: Held = self.record.held[i]
            texts = []
            for name in ("uid_map", "gid_map"):
                try:
                    with _Opened(name, held.dirfd) as fd:
                        texts.append(pool.add(_slurp(fd)))
                except (OSError, ProcessGone):
                    texts.append(-1)
            held.release()
            self.add("userns", namespace=row, uid_map=texts[0], gid_map=texts[1])


class _Opened:
    """A descriptor for the length of a with block."""

    def __init__(self, path: str | bytes, dir_fd: int, flags: int = os.O_RDONLY) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _slurp(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def _under(point: bytes) -> bytes:
    return point.lstrip(b"/") or b"."


def _reach(root: int, point: bytes) -> int | None:
    """1 if every directory down to *point* lets everybody through, 0 if not; None: not there.

    Symbolic links stand in no mount point. Extended ACLs only matter where the group bits, the
    mask, allow something: with them the answer is 0, which is "not known to be everybody".
    """
    names = [b".", *point.strip(b"/").split(b"/")] if point != b"/" else [b"."]
    everybody, path = 1, b"."
    for name in names:
        path = path + b"/" + name
        try:
            mode = os.stat(path, dir_fd=root, follow_symlinks=False).st_mode
        except OSError:
            return None
        if not stat.S_ISDIR(mode):
            return None
        everybody &= mode & 1
    return everybody


def _on_top(root: int, mount: Mount) -> bool:
    """Whether what stands at the mount point is this mount, and no other one over it."""
    try:
        with _Opened(_under(mount.point), root, os.O_PATH) as fd:
            text = Path(f"/proc/self/fdinfo/{fd}").read_bytes()
    except OSError:
        return False
    found = re.search(rb"^mnt_id:\s*(\d+)$", text, re.MULTILINE)
    return found is not None and int(found[1]) == mount.id
