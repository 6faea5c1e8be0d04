"""Sockets: what sock_diag tells of every socket of every network namespace.

A netlink socket answers for the namespace that it was made in. So one thread, which does
nothing else and ends then, enters one namespace after the other; no other thread ever leaves
the one it is in. A socket is told by its inode number, which is one over all namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _fastproc import sockdiag
from osmosis.capture.files import FileReader
from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.netdevices import read_addresses, read_translations, read_tunnels
from osmosis.capture.opens import beside
from osmosis.capture.pinned import Held, slurp
from osmosis.capture.processes import THREAD_NAMESPACES, ProcessRecord
from osmosis.errors import ProcessGone
from osmosis.schema import COLUMNS, NAMESPACES, Status

__all__ = ["ROW", "SocketReader", "decode"]

SOURCE = "sockets"
NET = NAMESPACES.index("net")
CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
NETLINK_SOCK_DIAG = 4  # include/uapi/linux/netlink.h
SOCK_DIAG_BY_FAMILY = 20
DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
SYS_PIDFD_GETFD = 438  # every architecture: include/uapi/asm-generic/unistd.h
SIOCGSKNS = 0x894C  # include/uapi/linux/sockios.h
TUNGETDEVNETNS = 0x54E3  # include/uapi/linux/if_tun.h: _IO('T', 227)
PATIENCE_S = 10
TRIES = 3
# Everything but TIME_WAIT (6), which nobody holds, and requests (3 and 12).
STATES = 0xFFFFFFFF & ~(1 << 6 | 1 << 3 | 1 << 12)
UNIX_SHOW = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x40  # name, vfs, peer, icons, queue length, uid
TYPE_OF = {6: 1, 17: 2, 136: 2, 132: 1}  # SOCK_* of an inet protocol
TUN, FUSE = 10 << 32 | 200, 10 << 32 | 229  # Documentation/admin-guide/devices.txt
# Names of protocols whose sockets are in no table until they are bound or connected.
UNHASHED = {
    b"TCP": "inet 6",
    b"MPTCP": "inet 6",
    b"UDP": "inet 17",
    b"UDP-Lite": "inet 136",
    b"UDPLITE": "inet 136",
    b"SCTP": "inet 132",
    b"NETLINK": "netlink",
}
# Of these no two are ever connected: each by itself talks to the kernel, or to all of a network.
ALONE = {b"ALG", b"PACKET", b"XDP", b"RAW", b"PING"}
FAMILY_OF = {b"UNIX": 1, b"UNIX-STREAM": 1, b"NETLINK": 16, b"PACKET": 17, b"AF_VSOCK": 40}

# struct Row of sockdiag.pyx, field by field.
ROW = np.dtype(
    [(name, "<u8") for name in ("inode", "cookie", "peer", "local_hi", "local_lo")]
    + [(name, "<u8") for name in ("remote_hi", "remote_lo", "vfs_dev", "vfs_inode")]
    + [("name_start", "<i8"), ("name_size", "<i8")]
    + [(name, "<u4") for name in ("local_port", "remote_port", "device", "uid", "queue")]
    + [("protocol", "<u2")]
    + [(name, "u1") for name in ("family", "type", "state", "shutdown", "v6only")]
    + [("pad", "V5")]
)
if ROW.itemsize != sockdiag.ROW_BYTES:
    msg = "osmosis and _fastproc do not fit together: build the extensions again"
    raise ImportError(msg)

COPIED = (
    *("inode", "cookie", "peer", "local_hi", "local_lo", "remote_hi", "remote_lo", "vfs_dev"),
    *("vfs_inode", "local_port", "remote_port", "device", "uid", "queue", "protocol", "family"),
    *("type", "state", "shutdown", "v6only"),
)


@dataclass(slots=True, eq=False)
class _Part:
    """The answer to one request."""

    net: int  # inode of the namespace
    rows: NDArray[Any]
    names: list[bytes | None]
    waiting: NDArray[np.int64]


@dataclass(slots=True, eq=False)
class _Space:
    """One network namespace: what was read in it."""

    inode: int
    status: int = Status.DENIED
    why: str = ""
    missed: list[str] = field(default_factory=list)  # names of requests
    parts: list[_Part] = field(default_factory=list)
    addresses: list[tuple[int, int]] = field(default_factory=list)
    tunnels: list[tuple[bytes, bool]] = field(default_factory=list)
    translated: list[tuple[int, ...]] = field(default_factory=list)
    nat: bool = True  # the translated connections are known


def decode(data: bytes, net: int = 0, protocol: int = 0) -> tuple[_Part, bool, bool]:
    """Turn the messages of one answer into rows; whether it ended, and changed meanwhile.

    Raises
    ------
    OSError
        The answer is an error.
    ValueError
        It does not parse.

    """
    n, m, done, changed = sockdiag.measure(data)
    rows = np.zeros(n, ROW)
    waiting = np.zeros((m, 2), np.int64)
    sockdiag.parse(data, rows.view(np.uint8), waiting)
    if protocol:
        rows["protocol"] = protocol
        rows["type"] = TYPE_OF.get(protocol, 0)
    names: list[bytes | None] = [None] * n
    for i in np.flatnonzero(rows["name_size"] >= 0).tolist():
        at = int(rows["name_start"][i])
        names[i] = data[at : at + int(rows["name_size"][i])]
    return _Part(net, rows, names, waiting), done, changed


def _ask(request: bytes) -> bytes:
    """Everything that the kernel answers to one dump request; OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as link:
        link.settimeout(PATIENCE_S)
        link.send(
            struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, DUMP, 1, 0) + request
        )
        parts = []
        while True:
            part = link.recv(1 << 17)
            parts.append(part)
            if not part or sockdiag.measure(part)[2]:
                return b"".join(parts)


def _requests() -> Iterator[tuple[str, bytes, int]]:
    """(name, request, inet protocol) of what there may be here, by /proc/net/protocols.

    A request for more would have the kernel load a module that nobody uses.
    """
    yield "unix", struct.pack("=BBHIIIII", 1, 0, 0, 0xFFFFFFFF, 0, UNIX_SHOW, 0, 0), 0
    used: dict[str, int] = {}
    with suppress(OSError, ValueError):
        for line in Path("/proc/thread-self/net/protocols").read_text().splitlines()[1:]:
            words = line.split()
            used[words[0]] = int(words[2])
    inet = (("TCP", 6), ("UDP", 17), ("UDP-Lite", 136), ("SCTP", 132))
    for name, protocol in inet:
        for family in (socket.AF_INET, socket.AF_INET6):
            six = {"UDP-Lite": "UDPLITEv6"}.get(name, name + "v6")
            there = used.get(name if family == socket.AF_INET else six, 0)
            if protocol in (6, 17) or there:
                head = struct.pack("=BBBBI", family, protocol, 0, protocol, STATES)
                yield f"inet {protocol}", head + bytes(48), protocol
    yield "netlink", struct.pack("=BBHIIII", 16, 255, 0, 0, 0, 0, 0), 0
    if used.get("PACKET", 1):
        yield "packet", struct.pack("=BBHIIII", 17, 0, 0, 0, 0, 0, 0), 0
    if used.get("AF_VSOCK"):
        yield "vsock", struct.pack("=BBHIIIII", 40, 0, 0, 0xFFFFFFFF, 0, 0, 0, 0), 0


class SocketReader:
    """Reads sockets of every network namespace that a process or thread of *record* is in.

    About 1 us a socket and 100 us a namespace. Namespaces are known by inode number until
    ``columns``, processes by pid.
    """

    def __init__(self, record: ProcessRecord, files: FileReader, *, ledger: Ledger) -> None:
        self.record = record
        self.files = files
        self.ledger = ledger
        self.spaces: list[_Space] = []
        self.lost: dict[int, tuple[int, bytes]] = {}  # inode: (Status, protocol's name)
        self.taps: list[tuple[int, bytes, int]] = []  # pid, name, inode of the namespace or 0
        self.fuses: list[tuple[int, int]] = []

    def read(self) -> None:
        """Read everything; what cannot be read is in the ledger."""
        self._in_thread(self._visit)
        self._read_servers()
        self._look_for_the_lost()
        for space in self.spaces:
            if space.status != Status.READ:
                self.ledger.add(HOST, SOURCE, space.status, f"net:[{space.inode}]: {space.why}")

    def _in_thread(self, work: Callable[[], None]) -> None:
        """Run *work* in a thread that ends then: it may stay in another namespace."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as exc:  # handed over to the caller
                failed.append(exc)

        visitor = threading.Thread(target=run, name="osmosis-sockets")
        visitor.start()
        visitor.join()
        if failed:
            raise failed[0]

    # -- in the thread of its own -----------------------------------------------------------

    def _visit(self) -> None:
        here = os.stat("/proc/thread-self/ns/net").st_ino
        inodes = self.record.ns_inode[:, NET]
        threads = self.record.thread_rows["ns"][:, THREAD_NAMESPACES.index("net")]
        held = self._held_spaces()
        # Our own as well: it may translate what others send.
        more = np.array([here, *sorted(held)], np.uint64)
        every = np.unique(np.concatenate([inodes, threads, more]))
        wanted = [int(n) for n in every if n]
        wanted.sort(key=lambda n: n != here)
        for inode in wanted:
            space = _Space(inode)
            self.spaces.append(space)
            if inode == here:
                self._read_space(space)
                continue
            try:
                fd = self._open(inode, held.get(inode, []))
            except OSError as exc:
                space.why = exc.strerror or str(exc)
                continue
            try:
                self._enter(space, fd)
            finally:
                os.close(fd)
            here = 0

    def _enter(self, space: _Space, fd: int) -> None:
        """Enter the namespace behind *fd* with the calling thread, and read it."""
        if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
            space.why = f"setns: {os.strerror(ctypes.get_errno())}"
        else:
            self._read_space(space)

    def _held_spaces(self) -> dict[int, list[tuple[int, str]]]:
        """(pid, path of fd) of each descriptor of a network namespace, by its inode number."""
        found: dict[int, list[tuple[int, str]]] = {}
        nsfs = os.stat("/proc/self/ns/net").st_dev
        dev = os.major(nsfs) << 32 | os.minor(nsfs)
        pool = self.record.pool
        names: dict[int, bool] = {}
        for part in self.files.parts:
            column = part.columns
            rows = np.flatnonzero(column["dev"] == dev)
            for i in rows[column["name"][rows] >= 0].tolist():
                if pool.text(int(column["name"][i])).startswith(b"net:["):
                    names[int(column["inode"][i])] = True
            for i in rows.tolist():
                if int(column["inode"][i]) in names:
                    tid, fd = int(column["tid"][i]), int(column["fd"][i])
                    path = f"task/{tid}/fd/{fd}" if tid else f"fd/{fd}"
                    pair = (int(column["process"][i]), path)
                    found.setdefault(int(column["inode"][i]), []).append(pair)
        return found

    def _open(self, inode: int, by: list[tuple[int, str]]) -> int:
        """Descriptor of a namespace, through any member, thread or holder of it; OSError."""
        denied: OSError | None = None
        record = self.record
        threads = record.thread_rows
        at = THREAD_NAMESPACES.index("net")
        where = [
            (record.held[i], "ns/net") for i in np.flatnonzero(record.ns_inode[:, NET] == inode)
        ]
        where += [
            (record.held[record.thread_process[i]], f"task/{threads['tid'][i]}/ns/net")
            for i in np.flatnonzero(threads["ns"][:, at] == inode).tolist()
        ]
        held = {one.pid: one for one in record.held}
        where += [(held[pid], path) for pid, path in by if pid in held]
        for one, path in where:
            try:
                dirfd = one.leaderfd if path.startswith("task") else one.dirfd
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dirfd)
            except PermissionError as exc:
                denied = exc
                continue
            except (OSError, ProcessGone):
                continue
            finally:
                one.release()
            if os.fstat(fd).st_ino == inode:
                return fd
            os.close(fd)
        raise denied or FileNotFoundError(2, "nobody is in it any more")

    def _read_space(self, space: _Space) -> None:
        said = []
        for name, request, protocol in _requests():
            try:
                space.parts.append(self._dump(space.inode, request, protocol))
            except (OSError, ValueError) as exc:
                space.missed.append(name)
                said.append(f"{name}: {exc}")
        space.status = Status.PARTIAL if said else Status.READ
        space.why = "; ".join(said)
        with suppress(OSError, ValueError, struct.error):
            space.addresses = read_addresses()
        with suppress(OSError, ValueError, struct.error):
            space.tunnels = read_tunnels()
        try:
            space.translated = read_translations()
        except (OSError, ValueError, struct.error) as exc:
            space.nat = False
            why = f"net:[{space.inode}]: connections that it translates are not told: {exc}"
            self.ledger.add(HOST, SOURCE, Status.PARTIAL, why)

    def _dump(self, net: int, request: bytes, protocol: int) -> _Part:
        for _ in range(TRIES):
            part, _done, changed = decode(_ask(request), net, protocol)
            if not changed:
                break
        return part

    # -- what descriptors tell --------------------------------------------------------------

    def _descriptors(self, rdev: int) -> Iterator[tuple[tuple[int, int, int], int, bytes]]:
        """((pid, tid, number), inode, fdinfo) of every descriptor of a device."""
        held = {one.pid: one for one in self.record.held}
        for part in self.files.parts:
            column = part.columns
            for i in np.flatnonzero(column["rdev"] == rdev).tolist():
                pid, tid, fd = (int(column[name][i]) for name in ("process", "tid", "fd"))
                with suppress(OSError, ProcessGone, KeyError), closing(_Release(held[pid])):
                    at, prefix = beside(held[pid], tid)
                    text = slurp(at, f"{prefix}fdinfo/{fd}")
                    yield (pid, tid, fd), int(column["inode"][i]), text

    def _read_servers(self) -> None:
        # tun_chr_show_fdinfo() in drivers/net/tun.c; fuse_dev_show_fdinfo() in fs/fuse/dev.c.
        for by, inode, text in self._descriptors(TUN):
            if (m := re.search(rb"^iff:\t(.+)$", text, re.MULTILINE)) is not None:
                self.taps.append((by[0], m[1], self._space_behind(by, inode, TUNGETDEVNETNS)))
        for by, _inode, text in self._descriptors(FUSE):
            m = re.search(rb"^fuse_connection:\s*(\d+)$", text, re.MULTILINE)
            self.fuses.append((by[0], int(m[1]) if m else -1))

    def _look_for_the_lost(self) -> None:
        """Find out about sockets that are held and were in no answer.

        Most are not bound yet: those are in no table. Some are of a namespace that nobody is in:
        the socket itself leads there (SIOCGSKNS). What it is, its xattr tells; sock_ioctl(),
        sockfs_xattr_get() in net/socket.c.
        """
        with socket.socket(socket.AF_UNIX) as own:
            st = os.fstat(own.fileno())
        sockfs = os.major(st.st_dev) << 32 | os.minor(st.st_dev)
        known = [part.rows["inode"] for space in self.spaces for part in space.parts]
        seen = np.unique(np.concatenate([np.zeros(0, np.uint64), *known]))
        where: dict[int, list[tuple[int, int, int]]] = {}
        for part in self.files.parts:
            column = part.columns
            rows = np.flatnonzero(column["dev"] == sockfs)
            for i in rows[~np.isin(column["inode"][rows], seen)].tolist():
                one = int(column["process"][i]), int(column["tid"][i]), int(column["fd"][i])
                where.setdefault(int(column["inode"][i]), []).append(one)
        held = {one.pid: one for one in self.record.held}
        before = len(self.spaces)
        for inode, found in where.items():
            self._look_at(inode, sorted(found, key=_of_process)[:TRIES], held)
        # A namespace that was found this way may have listed others of them.
        for space in self.spaces[before:]:
            for answer in space.parts:
                for inode in answer.rows["inode"].tolist():
                    self.lost.pop(inode, None)
        hidden = sum(status == Status.HIDDEN for status, _ in self.lost.values())
        if hidden:
            why = "sockets that are held, and in no table of a namespace that could be read"
            self.ledger.add(HOST, SOURCE, Status.HIDDEN, why, hidden)

    def _look_at(self, inode: int, by: list[tuple[int, int, int]], held: dict[int, Held]) -> None:
        name = b""
        for pid, tid, number in by:
            with suppress(OSError, ProcessGone, KeyError), closing(_Release(held[pid])):
                at, prefix = beside(held[pid], tid)
                path = f"/proc/self/fd/{at}/{prefix}fd/{number}"
                if os.stat(path).st_ino == inode:
                    name = os.getxattr(path, "system.sockprotoname").rstrip(b"\0")
                    break
        kind = name.removesuffix(b"v6")
        if kind in ALONE:
            self.lost[inode] = (Status.SKIPPED, name)
            return
        self.lost[inode] = (Status.HIDDEN, name)
        for one in by:
            home = self._space_behind(one, inode, SIOCGSKNS)
            space = next((s for s in self.spaces if s.inode == home), None)
            if space is not None:
                asked = space.status in (Status.READ, Status.PARTIAL)
                if asked and UNHASHED.get(kind, name) not in (*space.missed, name):
                    self.lost[inode] = (Status.SKIPPED, name)
                return

    def _space_behind(self, by: tuple[int, int, int], inode: int, request: int) -> int:
        """Inode of the namespace that a descriptor leads to by an ioctl, 0 if it is not told.

        The namespace is read, if it was not yet.
        """
        pid, tid, number = by
        if tid or not self.record.collector.same_pid_ns:
            return 0  # pidfd_getfd takes from the process's table
        try:
            fd = _namespace_of(pid, number, inode, request)
        except OSError:
            return 0
        try:
            home = os.fstat(fd).st_ino
            if all(space.inode != home for space in self.spaces):
                space = _Space(home)
                self.spaces.append(space)
                self._in_thread(functools.partial(self._enter, space, fd))
            return home
        finally:
            os.close(fd)

    @property
    def empty(self) -> NDArray[np.uint64]:
        """Inode numbers of sockets at which no descriptor can wait to be received.

        Unix sockets alone take descriptors. A stream sends each with some byte, and a listener
        has what its connections have; a datagram may be empty, and of several the queue's length
        is that of the first (unix_inq_len() in net/unix/af_unix.c).
        """
        rows = [part.rows for space in self.spaces for part in space.parts]
        empty = [
            r["inode"][(r["family"] != 1) | (r["type"] == 1) & (r["queue"] == 0)] for r in rows
        ]
        return np.concatenate([np.zeros(0, np.uint64), *empty])

    # -- out ----------------------------------------------------------------------------------

    def columns(
        self, row_of: dict[int, int], namespaces: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Tables socket, socketwait, socketns, address, nat, tunnel, tap and fuse.

        Parameters
        ----------
        row_of
            Row of each process of the snapshot, by pid; others are left out.
        namespaces
            Columns of table namespace; without them every ``net`` is -1.

        """
        net_row: dict[int, int] = {}
        if "namespace_kind" in namespaces:
            rows = np.flatnonzero(namespaces["namespace_kind"] == NET)
            inodes = namespaces["namespace_inode"][rows].tolist()
            net_row = dict(zip(inodes, rows.tolist(), strict=True))
        pool = self.record.pool
        parts = [part for space in self.spaces for part in space.parts]
        rows_ = np.concatenate([np.zeros(0, ROW), *(part.rows for part in parts)])
        n, lost = len(rows_), sorted(self.lost)
        out: dict[str, Any] = {f"socket_{name}": rows_[name] for name in COPIED}
        of_space = {space.inode: i for i, space in enumerate(self.spaces)}
        out["socket_space"] = np.repeat(
            np.array([of_space[part.net] for part in parts], np.int32),
            [len(part.rows) for part in parts],
        )
        out["socket_status"] = np.full(n, Status.READ)
        out["socket_name"] = np.concatenate(
            [np.zeros(0, np.int32), *(pool.add_all(part.names) for part in parts)]
        )
        more = {
            "socket_inode": lost,
            "socket_status": [self.lost[i][0] for i in lost],
            "socket_family": [_family(self.lost[i][1]) for i in lost],
            "socket_name": pool.add_all([self.lost[i][1] or None for i in lost]),
            "socket_space": np.full(len(lost), -1),
            "socket_shutdown": np.full(len(lost), 255),
        }
        for name, column in out.items():
            tail = more.get(name, np.zeros(len(lost)))
            dtype = COLUMNS[name].dtype
            out[name] = np.concatenate([column.astype(dtype), np.asarray(tail).astype(dtype)])
        starts = np.cumsum([0, *(len(part.rows) for part in parts)])
        waits = [
            part.waiting + np.array([start, 0]) for part, start in zip(parts, starts, strict=False)
        ]
        waiting = np.concatenate([np.zeros((0, 2), np.int64), *waits])
        out |= {"socketwait_socket": waiting[:, 0], "socketwait_client": waiting[:, 1]}
        out |= {
            "socketns_net": [net_row.get(space.inode, -1) for space in self.spaces],
            "socketns_inode": [space.inode for space in self.spaces],
            "socketns_status": [space.status for space in self.spaces],
            "socketns_nat": [space.nat for space in self.spaces],
        }
        out |= self._tables(row_of)
        self._note_unheld(rows_)
        self.ledger.add(HOST, SOURCE, Status.READ, "", n)
        return {name: np.asarray(v).astype(COLUMNS[name].dtype) for name, v in out.items()}

    def _note_unheld(self, rows: NDArray[Any]) -> None:
        """Count connected sockets that nobody holds, where every process was asked.

        They are in flight over a unix socket, registered with io_uring, or the kernel's.
        """
        if any(status != Status.READ for status in self.files.status.values()):
            return
        inodes = [part.columns["inode"] for part in self.files.parts]
        connected = ((rows["family"] == 1) & (rows["peer"] != 0)) | (rows["remote_port"] != 0)
        connected &= (rows["inode"] != 0) & (rows["family"] != 16) & (rows["state"] == 1)
        unheld = ~np.isin(rows["inode"][connected], np.concatenate([np.zeros(0), *inodes]))
        if unheld.any():
            why = "connected sockets that no process read has a descriptor of: perhaps in flight"
            self.ledger.add(HOST, SOURCE, Status.PARTIAL, why, int(unheld.sum()))

    def _tables(self, row_of: dict[int, int]) -> dict[str, Any]:
        addresses = [(i, *a) for i, space in enumerate(self.spaces) for a in space.addresses]
        tunnels = [(i, *t) for i, space in enumerate(self.spaces) for t in space.tunnels]
        nats = [(i, *t) for i, space in enumerate(self.spaces) for t in space.translated]
        names = COLUMNS_OF_NAT
        table = np.array(nats, object).reshape(-1, len(names)).T
        pool = self.record.pool
        of_space = {space.inode: i for i, space in enumerate(self.spaces)}
        taps = sorted(
            {
                (row_of[pid], name, of_space.get(home, -1))
                for pid, name, home in self.taps
                if pid in row_of
            }
        )
        fuses = sorted({(row_of[pid], dev) for pid, dev in self.fuses if pid in row_of})
        return {
            "address_space": [a[0] for a in addresses],
            "address_hi": np.array([a[1] for a in addresses], np.uint64),
            "address_lo": np.array([a[2] for a in addresses], np.uint64),
            "tunnel_space": [t[0] for t in tunnels],
            "tunnel_name": pool.add_all([t[1] for t in tunnels]),
            "tunnel_up": [t[2] for t in tunnels],
            **{f"nat_{name}": column for name, column in zip(names, table, strict=True)},
            "tap_process": [t[0] for t in taps],
            "tap_name": pool.add_all([t[1] for t in taps]),
            "tap_space": [t[2] for t in taps],
            "fuse_process": [f[0] for f in fuses],
            "fuse_dev": np.array([_number(f[1]) for f in fuses], np.uint64),
            "fuse_known": [f[1] >= 0 for f in fuses],
        }


COLUMNS_OF_NAT = (
    *("space", "protocol", "src_hi", "src_lo", "src_port", "dst_hi", "dst_lo", "dst_port"),
    *("back_src_hi", "back_src_lo", "back_src_port"),
    *("back_dst_hi", "back_dst_lo", "back_dst_port"),
)


def _namespace_of(pid: int, number: int, inode: int, request: int) -> int:
    """Descriptor of the network namespace of a process's socket or tun device; OSError.

    It is looked at through a descriptor of our own, for a moment, as a readlink of
    /proc/pid/fd does inside the kernel: nothing is read from it or set.
    """
    pidfd = os.pidfd_open(pid)
    try:
        own = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
        if own < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(pidfd)
    try:
        if os.fstat(own).st_ino != inode:
            raise ProcessLookupError(3, "the descriptor is another one's by now")
        return fcntl.ioctl(own, request)
    finally:
        os.close(own)


def _of_process(one: tuple[int, int, int]) -> bool:
    """Sort key of (pid, tid, fd): the process's own table first."""
    return one[1] != 0


class _Release:
    """Gives a process's descriptors back at the end of a with block, if they were lent."""

    def __init__(self, held: Held) -> None:
        self.close = held.release


def _number(dev: int) -> int:
    """Major << 32 | minor of a dev_t as the kernel keeps it; 0 if it is not known."""
    return 0 if dev < 0 else (dev >> 20) << 32 | dev & 0xFFFFF


def _family(name: bytes) -> int:
    if name in FAMILY_OF:
        return FAMILY_OF[name]
    if name.removesuffix(b"v6") in {*UNHASHED, b"RAW", b"PING"}:
        return socket.AF_INET6 if name.endswith(b"v6") else socket.AF_INET
    return 0
