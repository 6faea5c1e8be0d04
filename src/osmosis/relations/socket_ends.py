"""Which sockets are the two ends of one connection, and who listens: joins over table socket.

Everything is told by what the kernel keeps: the peer's inode number of a unix socket, both
addresses of an inet one. What two candidates fit is possible for each, and certain for none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.memory import ranges
from osmosis.schema import OpenKind, Status
from osmosis.snapshot import Snapshot

__all__ = ["UNIX", "Ends", "Pairs", "find_ends"]

UNIX, INET, INET6, NETLINK, VSOCK = 1, 2, 10, 16, 40  # AF_*
ESTABLISHED, CLOSED, CLOSE_WAIT, LISTEN = 1, 7, 8, 10  # include/net/tcp_states.h
CONNECTED = (1, 4, 5, 8, 9, 11)  # from ESTABLISHED until both sides have closed
STREAM, DGRAM, SEQPACKET = 1, 2, 5
TCP, UDP = 6, 17
HOPS = 4  # translations of one connection, one after the other

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """K pairs of rows, and whether each is certain."""

    a: I64
    b: I64
    sure: Mask

    @classmethod
    def of(cls, *parts: tuple[Any, Any, Any]) -> Pairs:
        """Concatenate (a, b, sure) parts; a scalar *sure* stands for all."""
        a = [np.asarray(p[0], np.int64) for p in parts]
        b = [np.asarray(p[1], np.int64) for p in parts]
        sure = [np.broadcast_to(np.asarray(p[2], bool), len(p[0])) for p in parts]
        none = np.zeros(0, np.int64)
        return cls(
            np.concatenate([none, *a]),
            np.concatenate([none, *b]),
            np.concatenate([np.zeros(0, bool), *sure]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """What is known of S sockets; rows are those of table socket."""

    partner: I64  # (S,) the other end, if it is certain; -1
    possible: Pairs  # other ends that are not certain
    one_way: Pairs  # a sends to b, and b to no one in particular
    waiting: Pairs  # a, a client (unix) or the unaccepted end (inet), waits at listener b
    accepted: Pairs  # a is an end that listener b made
    holders: I64  # process rows
    holder_indptr: I64  # (S + 1,)
    strays: I64  # (process, inode) pairs of held sockets that are in no row, (K, 2)
    astray: I64  # connected inet ends of which no other end was found

    def held_by(self, rows: I64) -> tuple[I64, I64]:
        """(position in *rows*, process) of every holder of each."""
        low = self.holder_indptr[rows]
        n = self.holder_indptr[rows + 1] - low
        return np.repeat(np.arange(len(rows)), n), self.holders[np.repeat(low, n) + ranges(n)]


def find_ends(snap: Snapshot) -> Ends:
    """Join table socket with itself and with the descriptors. O(S log S + F log F)."""
    holders, indptr, strays = _holders(snap)
    partner = np.full(len(snap["socket_inode"]), -1, np.int64)
    one_way = [_pair_unix(snap, partner)]
    listeners = _inet_listeners(snap)
    live = _inet_ends(snap)
    possible = _pair_inet(snap, partner, live)
    one_way += [_datagrams(snap, partner, live), _netlink(snap)]
    waiting, accepted = _at_listeners(snap, listeners, live)
    return Ends(
        partner,
        Pairs.of(*possible),
        Pairs.of(*one_way),
        Pairs.of(_waiting_unix(snap), waiting),
        Pairs.of(_accepted_unix(snap), accepted),
        holders,
        indptr,
        strays,
        live[partner[live] < 0],
    )


def _match(keys: I64, wanted: I64) -> tuple[I64, I64]:
    """All (position in wanted, position in keys) with equal values."""
    order = np.argsort(keys, kind="stable")
    low = np.searchsorted(keys[order], wanted, "left")
    n = np.searchsorted(keys[order], wanted, "right") - low
    return np.repeat(np.arange(len(wanted)), n), order[np.repeat(low, n) + ranges(n)]


def _number(*sides: list[NDArray[Any]]) -> list[I64]:
    """Number equal tuples alike over several lists of columns."""
    columns = [np.concatenate(parts) for parts in zip(*sides, strict=True)]
    order = np.lexsort(columns)
    new = np.zeros(len(order), bool)
    for column in columns:
        ordered = column[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(new)
    return np.split(number, np.cumsum([len(side[0]) for side in sides])[:-1])


# -- who holds what --------------------------------------------------------------------------


def _holders(snap: Snapshot) -> tuple[I64, I64, I64]:
    inode = snap["socket_inode"]
    fd = np.flatnonzero(snap["open_kind"][snap["fd_open"]] == OpenKind.SOCKET)
    pairs = np.unique(
        np.stack(
            [snap["fd_process"][fd].astype(np.uint64), snap["open_inode"][snap["fd_open"][fd]]]
        ),
        axis=1,
    )
    at, row = _match(inode.astype(np.int64), pairs[1].astype(np.int64))
    stray = np.ones(pairs.shape[1], bool)
    stray[at] = False
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row, minlength=len(inode))
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return pairs[0][at[order]].astype(np.int64), indptr, pairs[:, stray].T.astype(np.int64)


# -- unix ------------------------------------------------------------------------------------


def _unix(snap: Snapshot) -> I64:
    is_unix = (snap["socket_family"] == UNIX) & (snap["socket_status"] == Status.READ)
    return np.flatnonzero(is_unix & (snap["socket_inode"] != 0))


def _pair_unix(snap: Snapshot, partner: I64) -> tuple[I64, I64, Any]:
    """Both ends that name each other; returns those that are named and do not name back."""
    rows = _unix(snap)
    peer = snap["socket_peer"][rows].astype(np.int64)
    at, to = _match(snap["socket_inode"][rows].astype(np.int64), np.where(peer == 0, -1, peer))
    mutual = (peer[to] == snap["socket_inode"][rows[at]].astype(np.int64)) & (at != to)
    partner[rows[at[mutual]]] = rows[to[mutual]]
    lone = ~mutual & (at != to)
    return rows[at[lone]], rows[to[lone]], True


def _waiting_unix(snap: Snapshot) -> tuple[I64, I64, Any]:
    rows = _unix(snap)
    at, client = _match(
        snap["socket_inode"][rows].astype(np.int64), snap["socketwait_client"].astype(np.int64)
    )
    return rows[client], snap["socketwait_socket"][at].astype(np.int64), True


def _accepted_unix(snap: Snapshot) -> tuple[I64, I64, Any]:
    """Connected ends that carry the name of a listener: it was given to them by accept().

    By the socket file where there is one. An abstract name belongs to its network namespace,
    and an accepted socket to that of its client: the same one (unix_find_abstract()).
    """
    rows = _unix(snap)
    name, vfs = snap["socket_name"][rows], snap["socket_vfs_inode"][rows]
    named = (name >= 0) | (vfs != 0)
    state = snap["socket_state"][rows]
    rows, vfs = rows[named], vfs[named]
    state = state[named]
    on_disk = vfs != 0
    listens = state == LISTEN
    key = [
        on_disk.astype(np.int64),
        np.where(on_disk, snap["socket_vfs_dev"][rows], 0).astype(np.int64),
        np.where(on_disk, vfs, 0).astype(np.int64),
        np.where(on_disk, -1, snap["socket_name"][rows]).astype(np.int64),
        np.where(on_disk, -1, snap["socket_space"][rows]).astype(np.int64),
        snap["socket_type"][rows].astype(np.int64),
    ]
    (number,) = _number(key)
    made = np.flatnonzero((state == ESTABLISHED) & ~listens)
    at, to = _match(number[listens], number[made])
    return rows[made[at]], rows[np.flatnonzero(listens)[to]], True


# -- inet ------------------------------------------------------------------------------------


def _is_inet(snap: Snapshot) -> Mask:
    family = snap["socket_family"]
    is_inet: Mask = (family == INET) | (family == INET6) | (family == VSOCK)
    is_inet &= snap["socket_status"] == Status.READ
    return is_inet


def _inet_ends(snap: Snapshot) -> I64:
    """Rows of connected inet sockets that somebody holds, or has yet to accept."""
    state = snap["socket_state"]
    alive = (snap["socket_inode"] != 0) | np.isin(state, (ESTABLISHED, CLOSE_WAIT))
    connected = np.isin(state, CONNECTED) & (snap["socket_remote_port"] != 0)
    return np.flatnonzero(_is_inet(snap) & alive & connected)


def _inet_listeners(snap: Snapshot) -> I64:
    return np.flatnonzero(_is_inet(snap) & (snap["socket_state"] == LISTEN))


def _tuple(snap: Snapshot, rows: I64, *, turned: bool) -> list[NDArray[Any]]:
    sides = ("remote", "local") if turned else ("local", "remote")
    return [
        snap["socket_protocol"][rows],
        snap["socket_family"][rows] == VSOCK,
        *(snap[f"socket_{side}_{part}"][rows] for side in sides for part in ("hi", "lo", "port")),
    ]


def _loopback(hi: NDArray[np.uint64], lo: NDArray[np.uint64]) -> Mask:
    mapped = (lo >> np.uint64(24)) == 0xFFFF7F  # 127.0.0.0/8
    out: Mask = (hi == 0) & (mapped | (lo == 1))
    return out


def _is_local(snap: Snapshot, space: NDArray[Any], hi: Any, lo: Any) -> Mask:
    """Whether an address is one of the namespace's own, loopback included."""
    mine, asked = _number(
        [snap["address_space"], snap["address_hi"], snap["address_lo"]], [space, hi, lo]
    )
    out: Mask = np.isin(asked, mine) | _loopback(hi, lo)
    return out


def _pair_inet(snap: Snapshot, partner: I64, rows: I64) -> list[tuple[Any, Any, Any]]:
    """Ends whose addresses are each other's: here, elsewhere, and behind translated addresses."""
    space = snap["socket_space"][rows]
    here, there = _number(
        [space, *_tuple(snap, rows, turned=False)], [space, *_tuple(snap, rows, turned=True)]
    )
    at, to = _match(here, there)
    possible = [_settle(partner, rows, at[at != to], to[at != to])]
    # Across namespaces: an address of loopback, or of one's own, leads nowhere else.
    free = (partner[rows] < 0) & ~np.isin(np.arange(len(rows)), at)
    hi, lo = (snap[f"socket_remote_{part}"][rows] for part in ("hi", "lo"))
    out = np.flatnonzero(free & ~_is_local(snap, space, hi, lo))
    left = rows[out]
    here, there = _number(_tuple(snap, left, turned=False), _tuple(snap, left, turned=True))
    at, to = _match(here, there)
    apart = snap["socket_space"][left[at]] != snap["socket_space"][left[to]]
    possible.append(_settle(partner, left, at[apart], to[apart]))
    if len(snap["nat_space"]):
        possible.append(_translated(snap, partner, rows))
    return possible


def _settle(partner: I64, rows: I64, at: I64, to: I64) -> tuple[I64, I64, Any]:
    """Write the pairs that are the only ones of both their ends; return the others, once each.

    Each pair comes in both directions.
    """
    n = len(rows)
    alone = (np.bincount(at, minlength=n)[at] == 1) & (np.bincount(to, minlength=n)[to] == 1)
    partner[rows[at[alone]]] = rows[to[alone]]
    rest = ~alone & (at < to)
    return rows[at[rest]], rows[to[rest]], False


def _translated(snap: Snapshot, partner: I64, rows: I64) -> tuple[I64, I64, Any]:
    """Follow connections through conntrack to the ends that have the translated addresses."""
    left = rows[partner[rows] < 0]
    found_a, found_b = [], []
    for source, entry in _hops(snap, left):
        far = ("back_dst", "back_src")
        there, here = _number(_tuple_of_nat(snap, entry, far), _turned(snap, left))
        i, j = _match(here, there)
        found_a.append(source[i])
        found_b.append(j)
    if not found_a:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), False
    a, b = np.concatenate(found_a), np.concatenate(found_b)
    both = np.unique(np.stack([np.concatenate([a, b]), np.concatenate([b, a])]), axis=1)
    apart = both[0] != both[1]
    return _settle(partner, left, both[0][apart], both[1][apart])


def _tuple_of_nat(snap: Snapshot, entry: I64, sides: tuple[str, str]) -> list[NDArray[Any]]:
    parts = [snap[f"nat_{side}_{name}"][entry] for side in sides for name in ("hi", "lo", "port")]
    return [snap["nat_protocol"][entry], *parts]


def _turned(snap: Snapshot, rows: I64, *, turned: bool = True) -> list[NDArray[Any]]:
    """Addresses of sockets as a translation gives them: no vsock has any."""
    protocol, _, *rest = _tuple(snap, rows, turned=turned)
    return [protocol, *rest]


def _hops(snap: Snapshot, rows: I64) -> Iterator[tuple[I64, I64]]:
    """(position in *rows*, row of table nat) of the first, second .. HOPS-th translation."""
    every = np.arange(len(snap["nat_space"]))
    sent = _tuple_of_nat(snap, every, ("src", "dst"))
    far = _tuple_of_nat(snap, every, ("back_dst", "back_src"))
    sent_id, far_id, key = _number(sent, far, _turned(snap, rows, turned=False))
    bound = np.zeros(len(every), bool)
    for side in ("src", "dst"):
        bound |= _loopback(snap[f"nat_{side}_hi"], snap[f"nat_{side}_lo"])
    source = np.arange(len(rows))
    for _ in range(HOPS):
        at, entry = _match(sent_id, key)
        # Loopback addresses mean something in their own namespace only.
        home = snap["socket_space"][rows[source[at]]] == snap["nat_space"][entry]
        keep = home | ~bound[entry]
        source, entry = source[at[keep]], entry[keep]
        if not len(source):
            return
        yield source, entry
        key = far_id[entry]


def _fits(snap: Snapshot, bound: I64, hi: Any, lo: Any, device: Any) -> NDArray[np.int8]:
    """How well each bound socket takes what is sent to an address: 2 exactly, 1 as any, 0 not."""
    own_hi, own_lo = snap["socket_local_hi"][bound], snap["socket_local_lo"][bound]
    is_v4 = (hi == 0) & ((lo >> np.uint64(32)) == 0xFFFF)
    any_v4 = (own_hi == 0) & (own_lo == 0xFFFF << 32)
    any_v6 = (own_hi == 0) & (own_lo == 0)
    takes = (any_v4 & is_v4) | (any_v6 & (~is_v4 | (snap["socket_v6only"][bound] != 1)))
    exact = (own_hi == hi) & (own_lo == lo)
    wanted = snap["socket_device"][bound]
    fits = np.where(exact, 2, np.where(takes, 1, 0))
    fits[(wanted != 0) & (device != 0) & (wanted != device)] = 0
    return fits.astype(np.int8)


def _best(at: I64, to: I64, fits: NDArray[np.int8]) -> tuple[I64, I64, Mask]:
    """Of the candidates of each *at* those that fit best; certain if it is one."""
    if not len(at):
        return at, to, np.zeros(0, bool)
    best = np.zeros(int(at.max()) + 1, np.int8)
    np.maximum.at(best, at, fits)
    keep = (fits > 0) & (fits == best[at])
    at, to = at[keep], to[keep]
    alone = np.bincount(at)[at] == 1 if len(at) else np.zeros(0, bool)
    return at, to, alone


def _at_listeners(
    snap: Snapshot, listeners: I64, rows: I64
) -> tuple[tuple[I64, I64, Any], tuple[I64, I64, Any]]:
    """(unaccepted end, listener) and (accepted end, listener), by the local port."""

    def port(of: I64) -> list[NDArray[Any]]:
        names = ("space", "protocol", "local_port")
        return [*(snap[f"socket_{name}"][of] for name in names), snap["socket_family"][of] == VSOCK]

    rows = rows[snap["socket_protocol"][rows] != UDP]
    mine, theirs = _number(port(listeners), port(rows))
    at, to = _match(mine, theirs)
    end = rows[at]
    hi, lo, device = (snap[f"socket_{x}"][end] for x in ("local_hi", "local_lo", "device"))
    fits = _fits(snap, listeners[to], hi, lo, device)
    fits[snap["socket_family"][end] == VSOCK] = 1
    at, to, sure = _best(at, to, fits)
    end, listener = rows[at], listeners[to]
    waits = snap["socket_inode"][end] == 0
    return (end[waits], listener[waits], sure[waits]), (end[~waits], listener[~waits], sure[~waits])


def _datagrams(snap: Snapshot, partner: I64, rows: I64) -> tuple[I64, I64, Any]:
    """Connected UDP sockets, and the unconnected one that gets what they send.

    In the same namespace that is certain; in another one that has the address, and where the
    address is translated on the way, possible: no answer has been seen.
    """
    rows = rows[(snap["socket_protocol"][rows] == UDP) & (partner[rows] < 0)]
    state = snap["socket_state"]
    open_ = _is_inet(snap) & (snap["socket_protocol"] == UDP) & (state == CLOSED)
    bound = np.flatnonzero(open_ & (snap["socket_local_port"] != 0) & (snap["socket_inode"] != 0))
    hops = list(_hops(snap, rows))
    # What is translated goes elsewhere, even where a local socket would take it.
    straight = snap["socketns_nat"][snap["socket_space"][rows]] == 1
    for source, _ in hops:
        straight[source] = False
    to = [snap[f"socket_remote_{name}"][rows] for name in ("hi", "lo", "port")]
    found = [_takers(snap, bound, rows, to, straight)]
    for source, entry in hops:
        to = [snap[f"nat_back_src_{name}"][entry] for name in ("hi", "lo", "port")]
        found.append(_takers(snap, bound, rows[source], to, np.zeros(len(source), bool)))
    client, server, sure = (np.concatenate(part) for part in zip(*found, strict=True))
    return client, server, sure


def _takers(
    snap: Snapshot, bound: I64, rows: I64, to: list[NDArray[Any]], straight: Mask
) -> tuple[I64, I64, Mask]:
    """(client, server, certain): which of *bound* takes what each of *rows* sends to an address."""
    at, server = _match(snap["socket_local_port"][bound].astype(np.int64), to[2].astype(np.int64))
    hi, lo = to[0][at], to[1][at]
    fits = _fits(snap, bound[server], hi, lo, snap["socket_device"][rows[at]])
    home, away = snap["socket_space"][rows[at]], snap["socket_space"][bound[server]]
    same = home == away
    local = _is_local(snap, home, hi, lo)
    reach = np.where(local, same, ~same & _is_local(snap, away, hi, lo) & ~_loopback(hi, lo))
    fits[~reach] = 0
    at, server, sure = _best(at, server, fits)
    here = snap["socket_space"][rows[at]] == snap["socket_space"][bound[server]]
    return rows[at], bound[server], sure & here & straight[at]


def _netlink(snap: Snapshot) -> tuple[I64, I64, Any]:
    """Netlink sockets that are connected to another one's port."""
    rows = np.flatnonzero(
        (snap["socket_family"] == NETLINK)
        & (snap["socket_status"] == Status.READ)
        & (snap["socket_inode"] != 0)
    )
    peer = snap["socket_peer"][rows]
    sends = np.flatnonzero(peer != 0)
    head = [snap["socket_space"][rows], snap["socket_protocol"][rows]]
    mine, asked = _number(
        [*head, snap["socket_local_port"][rows].astype(np.uint64)],
        [head[0][sends], head[1][sends], peer[sends]],
    )
    at, to = _match(mine, asked)
    apart = sends[at] != to
    return rows[sends[at[apart]]], rows[to[apart]], True
