"""A Snapshot of processes and sockets from a few calls, for tests of the socket relations.

w = World()
a, b = w.process(), w.process(net=1)
s = w.socket(family=1, peer=..., ...); w.hold(a, s)
model = w.model()
"""

from __future__ import annotations

import ipaddress

import numpy as np

from osmosis.schema import COLUMNS, NAMESPACES, OpenKind, Status
from osmosis.snapshot import Snapshot, StringPool, empty_columns

NET = NAMESPACES.index("net")


def halves(address):
    """(hi, lo) of an address; IPv4 as IPv4-mapped."""
    ip = ipaddress.ip_address(address)
    number = int(ip) if ip.version == 6 else 0xFFFF << 32 | int(ip)
    return number >> 64, number & (1 << 64) - 1


class World:
    """Process p has pid 100 + p; namespace n has inode 500 + n and is row n of both tables."""

    def __init__(self, spaces=2):
        self.pool = StringPool()
        self.rows = {name: [] for name in COLUMNS}
        self.sources = ["files", "sockets"]
        self.opens = {}
        self.spaces = spaces
        for n in range(spaces):
            self.add("namespace", kind=NET, inode=500 + n, id=0, owner=0, parent=-1, user=-2)
            self.add("socketns", net=n, inode=500 + n, status=Status.READ, nat=1)

    def add(self, table, **values):
        for name, column in COLUMNS.items():
            if column.table == table and column.indptr is None:
                default = -1 if column.refers else 0
                self.rows[name].append(values.get(name.removeprefix(table + "_"), default))
        wrong = [v for v in values if f"{table}_{v}" not in COLUMNS]
        assert not wrong, wrong
        column = next(c for c in COLUMNS if COLUMNS[c].table == table and not COLUMNS[c].indptr)
        return len(self.rows[column]) - 1

    def text(self, data):
        return self.pool.add(data)

    def process(self, net=0, parent=-1, read=True, cmdline=b""):
        pid = 100 + len(self.rows["process_pid"])
        ppid = 100 + parent if parent >= 0 else 1
        row = self.add(
            "process",
            pid=pid,
            ppid=ppid,
            ns_net=net,
            comm=self.text(b"p"),
            cmdline=self.text(cmdline),
            start_time=pid,
        )
        self.add("fdtable", process=row, status=Status.READ if read else Status.DENIED)
        return row

    def hold(self, process, socket=None, inode=None, fd=None):
        if inode is None:
            inode = self.rows["socket_inode"][socket]
        if inode not in self.opens:
            self.opens[inode] = self.add(
                "open", kind=OpenKind.SOCKET, inode=inode, dev=8, sure=1, number=-1
            )
        n = len(self.rows["fd_fd"]) if fd is None else fd
        self.add("fd", process=process, fd=n, access=6, open=self.opens[inode])

    def socket(self, *by, inode=None, family=1, state=1, shutdown=0, space=0, **values):
        if inode is None:
            inode = 1000 + len(self.rows["socket_inode"])
        values.setdefault("type", 1)
        for side in ("local", "remote"):
            if side in values:
                address, port = values.pop(side)
                values[f"{side}_hi"], values[f"{side}_lo"] = halves(address)
                values[f"{side}_port"] = port
        if isinstance(values.get("name"), bytes):
            values["name"] = self.text(values["name"])
        row = self.add(
            "socket",
            inode=inode,
            family=family,
            state=state,
            shutdown=shutdown,
            space=space,
            cookie=inode + 7,
            **values,
        )
        for process in by:
            self.hold(process, row)
        return row

    def tcp(self, *by, local, remote=("0.0.0.0", 0), state=1, space=0, **values):
        family = 10 if ":" in local[0] else 2
        values = {"protocol": 6, "type": 1, **values}
        return self.socket(
            *by, family=family, local=local, remote=remote, state=state, space=space, **values
        )

    def pair(self, a, b, **values):
        """A unix connection between processes a and b; the rows of its ends."""
        first = self.socket(a, **values)
        second = self.socket(b, peer=self.rows["socket_inode"][first], space=values.get("space", 0))
        self.rows["socket_peer"][first] = self.rows["socket_inode"][second]
        return first, second

    def nat(self, space, src, dst, back_src, back_dst, protocol=6):
        values = {}
        ends = {"src": src, "dst": dst, "back_src": back_src, "back_dst": back_dst}
        for name, (address, port) in ends.items():
            values[f"{name}_hi"], values[f"{name}_lo"] = halves(address)
            values[f"{name}_port"] = port
        self.add("nat", space=space, protocol=protocol, **values)

    def address(self, space, address):
        hi, lo = halves(address)
        self.add("address", space=space, hi=hi, lo=lo)

    def snapshot(self):
        columns = {
            name: np.array(values, COLUMNS[name].dtype)
            for name, values in self.rows.items()
            if values
        }
        n = len(self.rows["process_pid"])
        for name, column in COLUMNS.items():
            if column.table == "process" and column.indptr:
                columns[name] = np.zeros(n + 1, np.int64)
        columns |= self.pool.columns()
        return Snapshot({**empty_columns(), **columns}, {"sources": self.sources})

    def model(self):
        return self.snapshot().model()


def asked(model, process):
    """(certain, possible) pids - 100 that a process asks, the kernel left out."""
    found = model.services(model.pds[process + 1])
    return tuple({p - 100 for p in s.pids.tolist() if p} for s in (found, found.unknown))


def sockets(model, a, b, access="ANY"):
    """SOCKET nodes that both hold for certain."""
    x, y = model.pds[a + 1], model.pds[b + 1]
    return set(model.common_resources(x, y, types={"SOCKET"}, access=access).ids)


def shares(model, a, b, access="ANY"):
    """True, False or None: whether b, with *access*, holds a SOCKET that a holds."""
    return model.shares(model.pds[a + 1], model.pds[b + 1], types={"SOCKET"}, access=access).state
