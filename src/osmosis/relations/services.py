"""Services: who asks whom, by the connections that are open now.

Asked are those who hold the end that answers, and those who hold the listening socket that made
it. Where nothing tells which end asked first, each may be the one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ALL, ANY, REQUESTS, Edge, Edges
from osmosis.relations.files import not_all_read
from osmosis.relations.memory import owners_of, ranges
from osmosis.relations.parts import Parts
from osmosis.relations.roles import Roles
from osmosis.relations.servers import add_servers
from osmosis.relations.socket_ends import UNIX, Ends, Pairs
from osmosis.snapshot import Snapshot

__all__ = ["add_services"]

ANCESTORS = 64  # generations looked back for the process that accepted

I64 = NDArray[np.int64]


def add_services(parts: Parts, snap: Snapshot, ends: Ends, named: Roles) -> None:
    """Add REQUEST edges over sockets, and those to processes that serve a whole space.

    *ends* is what ``add_sockets`` found, *named* what ``roles.name`` did.
    O(connections x holders of their ends).
    """
    asks = _Asks(snap, ends)
    asks.connections()
    asks.waiting()
    asks.one_way()
    asks.untold()
    asks.add(parts)
    _add_kernel(parts, snap)
    add_servers(parts, snap, ends, named)
    parts.unseen_by(REQUESTS, not_all_read(snap) + 1, ANY)


def _add_kernel(parts: Parts, snap: Snapshot) -> None:
    """The kernel serves everybody; who maps memory that was read has an edge for that already."""
    rest = np.setdiff1d(np.arange(snap.n_processes), owners_of(snap)[0])
    rule = parts.rule("the kernel answers every system call", "the kernel itself")
    kernel = np.zeros(len(rest), np.int64)
    parts.edges.append(Edges.of(rest + 1, kernel, Edge.REQUEST, rule=rule))


class _Asks:
    """(client, server, certain) as they are found."""

    def __init__(self, snap: Snapshot, ends: Ends) -> None:
        self.snap = snap
        self.ends = ends
        self.src: list[I64] = []
        self.dst: list[I64] = []
        self.sure: list[NDArray[np.bool_]] = []

    def ask(self, pairs: Pairs) -> None:
        """Holders of socket row a ask those of row b."""
        at, src = self.ends.held_by(pairs.a)
        low = self.ends.holder_indptr[pairs.b[at]]
        n = self.ends.holder_indptr[pairs.b[at] + 1] - low
        self.src.append(np.repeat(src, n))
        self.dst.append(self.ends.holders[np.repeat(low, n) + ranges(n)])
        self.sure.append(np.repeat(pairs.sure[at], n))

    def connections(self) -> None:
        """Pairs of ends of which one was accepted."""
        snap, ends = self.snap, self.ends
        made = self._accepted()
        is_unix = snap["socket_family"] == UNIX
        named = (snap["socket_name"] >= 0) | (snap["socket_vfs_inode"] != 0)
        paired = np.flatnonzero(ends.partner >= 0)
        other = ends.partner[paired]
        # The listener may have been closed since: its name is still that of the accepted end.
        alone = is_unix[paired] & ~made[paired] & ~made[other] & named[paired] & ~named[other]
        stream = snap["socket_type"] != 2
        made[paired[alone & stream[paired]]] = True  # its name tells it
        server = made[paired] & ~made[other]
        self.ask(Pairs(other[server], paired[server], np.ones(int(server.sum()), bool)))
        self._listeners(paired[server])
        # Both or neither: either may have asked. Ends of a socketpair have no names, and ask not.
        unclear = made[paired] == made[other]
        both_named = named[paired] & named[other] & stream[paired]
        unclear &= ~is_unix[paired] | (made[paired] & made[other]) | both_named
        unclear &= paired != other
        self.ask(Pairs(other[unclear], paired[unclear], np.zeros(int(unclear.sum()), bool)))
        maybe = ends.possible
        for a, b in ((maybe.a, maybe.b), (maybe.b, maybe.a)):
            server = made[b]
            self.ask(Pairs(a[server], b[server], np.zeros(int(server.sum()), bool)))

    def _accepted(self) -> NDArray[np.bool_]:
        """(S,) whether a listener made this end."""
        ends = self.ends
        made = np.zeros(len(ends.partner), bool)
        made[ends.accepted.a] = True
        made[ends.waiting.a[self.snap["socket_family"][ends.waiting.a] != UNIX]] = True
        return made

    def untold(self) -> None:
        """Connections without another end, where some namespace does not tell what it translates.

        Each that nobody accepted may be to each that somebody did, of the same protocol. One pair
        of processes is asked about once: O(clients x servers) at most.
        """
        snap, ends = self.snap, self.ends
        if not (snap["socketns_nat"] == 0).any():
            return
        made = self._accepted()
        for protocol in np.unique(snap["socket_protocol"][ends.astray]).tolist():
            rows = ends.astray[snap["socket_protocol"][ends.astray] == protocol]
            client, server = (
                np.unique(ends.held_by(rows[made[rows] == answers])[1]) for answers in (0, 1)
            )
            self.src.append(np.repeat(client, len(server)))
            self.dst.append(np.tile(server, len(client)))
            self.sure.append(np.zeros(len(client) * len(server), bool))

    def _listeners(self, accepted: I64) -> None:
        """Clients of accepted ends ask the holders of the listener that made them, too.

        Certain if one of these holds the accepted end, or is an ancestor of one who does: a
        listener of the same name may have taken the place of the one that made it.
        """
        snap, ends = self.snap, self.ends
        mine = np.zeros(len(ends.partner) + 1, bool)
        mine[accepted] = True
        pick = mine[ends.accepted.a]
        end, listener = ends.accepted.a[pick], ends.accepted.b[pick]
        single = ends.accepted.sure[pick]
        # By socket file there can be only one: while an end lives, its inode is not used again.
        on_disk = (snap["socket_family"][end] == UNIX) & (snap["socket_vfs_inode"][end] != 0)
        n = len(ends.partner)
        on_disk &= np.bincount(end, minlength=n)[end] == 1
        related = self._related(end, listener)
        single |= np.bincount(end[related], minlength=n)[end] == 1
        self.ask(Pairs(ends.partner[end], listener, on_disk | (related & single)))

    def _related(self, end: I64, listener: I64) -> NDArray[np.bool_]:
        """Whether a holder of the one is, or descends from, a holder of the other."""
        snap, ends = self.snap, self.ends
        at, who = ends.held_by(end)
        pids = snap["process_pid"]
        parent_row = np.full(len(pids), -1, np.int64)
        order = np.argsort(pids, kind="stable")
        where = np.searchsorted(pids[order], snap["process_ppid"])
        where = np.minimum(where, max(len(pids) - 1, 0))
        if len(pids):
            found = pids[order][where] == snap["process_ppid"]
            parent_row[found] = order[where[found]]
        low = ends.holder_indptr[listener[at]]
        n = ends.holder_indptr[listener[at] + 1] - low
        of = np.repeat(at, n)
        child = np.repeat(who, n)
        boss = ends.holders[np.repeat(low, n) + ranges(n)]
        out = np.zeros(len(end), bool)
        for _ in range(ANCESTORS):
            out[of[child == boss]] = True
            keep = (child >= 0) & ~out[of]
            if not keep.any():
                break
            of, child, boss = of[keep], parent_row[child[keep]], boss[keep]
        return out

    def waiting(self) -> None:
        """Clients whose connection waits ask the holders of the listener."""
        ends, snap = self.ends, self.snap
        a, b, sure = ends.waiting.a, ends.waiting.b, ends.waiting.sure
        is_unix = snap["socket_family"][a] == UNIX
        client = np.where(is_unix, a, ends.partner[a])
        known = client >= 0
        self.ask(Pairs(client[known], b[known], sure[known]))

    def one_way(self) -> None:
        """Who sends to a socket asks its holders."""
        self.ask(self.ends.one_way)

    def add(self, parts: Parts) -> None:
        """Add one edge for each pair of processes, certain if one connection is."""
        src, dst = (np.concatenate(part) for part in (self.src, self.dst))
        sure = np.concatenate(self.sure)
        apart = src != dst
        src, dst, sure = src[apart], dst[apart], sure[apart]
        key, number = np.unique(src * np.int64(parts.n_pds) + dst, return_inverse=True)
        if not len(key):
            return
        certain = np.zeros(len(key), bool)
        certain[number.reshape(-1)[sure]] = True
        rule = parts.rule(
            "a client asks those who hold the socket that answers", "NETLINK_SOCK_DIAG"
        )
        parts.edges.append(
            Edges.of(
                key // parts.n_pds + 1,
                key % parts.n_pds + 1,
                Edge.REQUEST,
                perm=np.where(certain, ALL, 0),
                maybe=ALL,
                label=parts.label("SOCKET"),
                rule=rule,
            )
        )
