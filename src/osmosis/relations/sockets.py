"""Sockets: a connection is one resource that both its ends hold, whoever holds an end.

A socket without a known other end is a resource of its own; so is one that listens. A
connection that nobody has accepted yet is held by those who hold the listening socket.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ALL, ANY, Edge, Edges, Kind, R, W
from osmosis.graph.names import Block
from osmosis.relations.files import not_all_read
from osmosis.relations.parts import Parts
from osmosis.relations.socket_ends import UNIX, Ends, find_ends
from osmosis.schema import NAMESPACES, Status
from osmosis.snapshot import Snapshot

__all__ = ["add_sockets", "net_nodes"]

FAMILIES = {1: "unix", 2: "inet", 10: "inet6", 16: "netlink", 17: "packet", 40: "vsock"}
STATES = {1: "connected", 2: "connecting", 7: "unconnected", 10: "listening"}
IN_NETWORK = (2, 10, 16, 17)  # families that a network namespace carries
NO_MORE_SENT = 2  # of socket_shutdown: SEND_SHUTDOWN, include/net/sock.h
NOT_TOLD = 255

I64 = NDArray[np.int64]


def add_sockets(parts: Parts, snap: Snapshot) -> Ends:
    """Add SOCKET resources, who holds them, and what could not be seen of them.

    PD row of process p is p + 1. Namespaces must have been added. O(S log S + F log F) for S
    sockets and F descriptors. Returns the joins, for ``add_services``.
    """
    ends = find_ends(snap)
    node, stray = _add_nodes(parts, snap, ends)
    _add_holds(parts, snap, ends, node, stray)
    _add_network(parts, snap, ends, node)
    _add_unseen(parts, snap, ends)
    return ends


def _add_nodes(parts: Parts, snap: Snapshot, ends: Ends) -> tuple[I64, I64]:
    """Node of each row of table socket, -1 for none; and of each stray's inode."""
    n = len(snap["socket_inode"])
    rows = np.arange(n)
    lead = np.where(ends.partner >= 0, np.minimum(rows, ends.partner), rows)
    # An unaccepted unix connection is its client's socket; an inet one has an end of its own.
    kept = snap["socket_inode"] != 0
    kept[ends.waiting.a] = True
    kept |= kept[ends.partner] & (ends.partner >= 0)
    held = np.diff(ends.holder_indptr) > 0
    held[ends.waiting.a] = True
    used = np.zeros(n, bool)
    used[lead[held & kept]] = True
    of = np.flatnonzero(used)
    inodes = _lower(snap["socket_inode"][of], _others(snap, ends, of))
    strays = np.unique(ends.strays[:, 1])
    names = np.concatenate([inodes.astype(np.int64), strays]).astype(object)
    again = np.zeros(len(names), bool)
    _, number, counts = np.unique(inodes, return_inverse=True, return_counts=True)
    again[: len(of)] = (counts[number.reshape(-1)] > 1) | (inodes == 0)
    cookies = snap["socket_cookie"][of].tolist()
    for i in np.flatnonzero(again).tolist():
        names[i] = f"{names[i]}_{cookies[i]}"

    def note(i: int) -> Mapping[str, Any]:
        return _note(snap, ends, int(of[i])) if i < len(of) else {}

    first = parts.nodes(Kind.RESOURCE, "SOCKET", Block("SOCKET_{}", (names,)), note=note)
    node = np.full(n, -1, np.int64)
    node[of] = first + np.arange(len(of))
    node = np.where(kept, node[lead], -1) if n else node
    stray_node = first + len(of) + np.searchsorted(strays, ends.strays[:, 1])
    return node, stray_node


def _lower(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the lower number of each, 0 being none."""
    return np.where((a == 0) | ((b != 0) & (b < a)), b, a)


def _others(snap: Snapshot, ends: Ends, rows: I64) -> NDArray[np.uint64]:
    partner = ends.partner[rows]
    return np.where(partner >= 0, snap["socket_inode"][partner], 0).astype(np.uint64)


def _note(snap: Snapshot, ends: Ends, row: int) -> Mapping[str, Any]:
    """What is told of a connection: family, state, and both sides by name.

    Where addresses are translated on the way, also what each side sees as the other one's.
    """
    other = int(ends.partner[row])
    told = {
        "family": FAMILIES.get(int(snap["socket_family"][row]), "unknown"),
        "state": STATES.get(int(snap["socket_state"][row]), "closing"),
        "local": _name(snap, row, "local"),
        "remote": _name(snap, other, "local") if other >= 0 else _name(snap, row, "remote"),
    }
    if other >= 0 and int(snap["socket_family"][row]) in (2, 10):
        sees = {"local": _name(snap, row, "remote"), "remote": _name(snap, other, "remote")}
        told |= {
            f"{side}_sees": sees[side]
            for side, far in (("local", "remote"), ("remote", "local"))
            if sees[side] != told[far]
        }
    if snap["socket_status"][row] != Status.READ:
        told["state"] = "unbound" if snap["socket_status"][row] == Status.SKIPPED else "unknown"
    return {key: text for key, text in told.items() if text}


def _name(snap: Snapshot, row: int, side: str) -> str:
    family = int(snap["socket_family"][row])
    if family == UNIX:
        at = snap["socket_name"][row]
        if side == "remote" or at < 0 or snap["socket_status"][row] != Status.READ:
            return ""
        text = snap.text(at)
        return "@" + text[1:] if text.startswith("\0") else text.rstrip("\0")
    port = int(snap[f"socket_{side}_port"][row])
    if family not in (2, 10) or not port:
        return str(port) if port else ""
    hi, lo = int(snap[f"socket_{side}_hi"][row]), int(snap[f"socket_{side}_lo"][row])
    address = ipaddress.IPv6Address(hi << 64 | lo)
    return f"{address.ipv4_mapped}:{port}" if address.ipv4_mapped else f"[{address}]:{port}"


def _mask(snap: Snapshot, rows: I64) -> NDArray[np.uint8]:
    """What holding an end allows: no W once it has shut down sending."""
    shutdown = snap["socket_shutdown"][rows]
    closed = (shutdown != NOT_TOLD) & ((shutdown & NO_MORE_SENT) != 0)
    return np.where(closed, ANY | R, ANY | R | W).astype(np.uint8)


def _add_holds(parts: Parts, snap: Snapshot, ends: Ends, node: I64, stray: I64) -> None:
    process: list[I64] = []
    target: list[I64] = []
    perm: list[NDArray[Any]] = []
    maybe: list[NDArray[Any]] = []

    def hold(holders: I64, nodes: I64, sure: Any, possible: Any) -> None:
        keep = nodes >= 0
        process.append(holders[keep])
        target.append(nodes[keep])
        perm.append(np.broadcast_to(np.asarray(sure, np.uint8), holders.shape)[keep])
        maybe.append(np.broadcast_to(np.asarray(possible, np.uint8), holders.shape)[keep])

    rows = np.arange(len(node))
    at, who = ends.held_by(rows)
    mask = _mask(snap, rows)
    hold(who, node[at], mask[at], mask[at])
    hold(ends.strays[:, 0], stray, ANY | R | W, ANY | R | W)
    # Connections that wait belong to those who may accept them; each of two ends that are not
    # sure to be one connection may be the other.
    pairs = ends.waiting
    at, who = ends.held_by(pairs.b)
    hold(who, node[pairs.a[at]], np.where(pairs.sure[at], ANY | R | W, 0), ANY | R | W)
    for a, b in ((ends.possible.a, ends.possible.b), (ends.possible.b, ends.possible.a)):
        at, who = ends.held_by(a)
        hold(who, node[b[at]], 0, mask[a[at]])
    # What is sent one way is read at the other end; an answer needs a name to go to.
    pairs = ends.one_way
    at, who = ends.held_by(pairs.b)
    client = pairs.a[at]
    named = (snap["socket_family"][client] != UNIX) | (snap["socket_name"][client] >= 0)
    hold(
        who,
        node[client],
        np.where(pairs.sure[at], ANY | R, 0),
        np.where(named, ANY | R | W, ANY | R),
    )
    rule = parts.rule(
        "a connection is held by all who hold either end of it",
        "NETLINK_SOCK_DIAG; /proc/pid/fd",
    )
    columns = [np.concatenate(part) for part in (process, target, perm, maybe)]
    key = columns[0] * np.int64(parts.n_nodes) + columns[1]
    order = np.argsort(key, kind="stable")
    key = key[order]
    if not len(key):
        return
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    certain, possible = (
        np.bitwise_or.reduceat(column[order].astype(np.uint8), starts) for column in columns[2:]
    )
    parts.edges.append(
        Edges.of(
            columns[0][order][starts] + 1,
            columns[1][order][starts],
            Edge.HOLD,
            perm=certain,
            maybe=possible | certain,
            rule=rule,
        )
    )


def net_nodes(parts: Parts, snap: Snapshot) -> I64:
    """Node of the NET space of each row of table socketns, -1 for none."""
    of_namespace = np.full(len(snap["namespace_kind"]), -1, np.int64)
    rows = np.flatnonzero(snap["namespace_kind"] == NAMESPACES.index("net"))
    found: dict[int, int] = {}
    for block in parts.blocks:
        if block.kind == Kind.SPACE and block.type == "NET":
            for i, inode in enumerate(block.names.columns[0].tolist()):
                found.setdefault(int(inode), block.first + i)
    inodes = snap["namespace_inode"][rows].tolist()
    of_namespace[rows] = [found.get(int(inode), -1) for inode in inodes]
    return np.array(
        [
            of_namespace[net] if net >= 0 else found.get(int(inode), -1)
            for net, inode in zip(
                snap["socketns_net"].tolist(), snap["socketns_inode"].tolist(), strict=True
            )
        ],
        np.int64,
    )


def _add_network(parts: Parts, snap: Snapshot, ends: Ends, node: I64) -> None:
    """Sockets of a network stand in the namespace that carries them, if it is one."""
    space = snap["socket_space"]
    other = np.where(ends.partner >= 0, space[ends.partner], space) if len(space) else space
    carried = np.isin(snap["socket_family"], IN_NETWORK) & (space >= 0) & (space == other)
    rows = np.flatnonzero(carried & (node >= 0))
    home = net_nodes(parts, snap)[space[rows]] if len(rows) else np.zeros(0, np.int64)
    pairs = np.unique(np.stack([node[rows], home])[:, home >= 0], axis=1)
    rule = parts.rule("a network namespace carries its sockets", "NETLINK_SOCK_DIAG")
    parts.edges.append(Edges.of(pairs[0], pairs[1], Edge.SUBSET, rule=rule))


def _add_unseen(parts: Parts, snap: Snapshot, ends: Ends) -> None:
    """Processes whose descriptors were not read, and holders of sockets that are not known."""
    parts.unseen_by("SOCKET", not_all_read(snap) + 1, ALL)
    hidden = np.flatnonzero(snap["socket_status"] == Status.HIDDEN)
    _, who = ends.held_by(hidden)
    parts.unseen_by("SOCKET", np.unique(np.concatenate([who, ends.strays[:, 0]])) + 1, ALL)
    # A connection through a namespace that does not tell what it translates may lead anywhere.
    if (snap["socketns_nat"] == 0).any():
        _, who = ends.held_by(ends.astray)
        parts.unseen_by("SOCKET", np.unique(who) + 1, ANY | R | W)
