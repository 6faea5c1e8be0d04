"""Processes that serve a whole space: a namespace's network, a superblock's files, a stdio.

Found by what they hold: the descriptor of the tun device that is the namespace's interface, the
one of /dev/fuse that answers for the superblock, the other end of a container's stdio, the socket
between gVisor's kernel and its file server. And who may be asked through a message bus: everybody
else who is connected to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ALL, POTENTIAL, SERVER, Edge, Edges, Kind
from osmosis.graph.names import Block
from osmosis.relations.cmdline import basename
from osmosis.relations.memory import device_names, owners_of
from osmosis.relations.parts import Parts
from osmosis.relations.roles import Roles
from osmosis.relations.socket_ends import UNIX, Ends
from osmosis.relations.sockets import net_nodes
from osmosis.schema import OpenKind, Status
from osmosis.snapshot import Snapshot

__all__ = ["add_servers"]

BUSES = ("dbus-daemon", "dbus-broker")  # programs that pass messages on between their clients
GENERATIONS = 8  # how far above a container its keeper is looked for

I64 = NDArray[np.int64]


def add_servers(parts: Parts, snap: Snapshot, ends: Ends, named: Roles) -> None:
    """Add REQUEST edges and SERVER holds of network servers, FUSE servers and keepers of stdio.

    And those of a gVisor sandbox, and of the clients of a message bus, which are potential.

    PD row of process p is p + 1. O(tun devices + descriptors + pairs of clients of one bus).
    """
    _add_network(parts, snap)
    _add_fuse(parts, snap)
    _add_keepers(parts, snap)
    _add_sandboxes(parts, snap, ends, named)
    _add_buses(parts, snap, ends)


def _request(
    parts: Parts, clients: NDArray[Any], server: int, label: str, rule: int, *, sure: bool
) -> None:
    clients = np.unique(clients[clients != server])
    parts.edges.append(
        Edges.of(
            clients + 1,
            np.full(len(clients), server + 1),
            Edge.REQUEST,
            perm=ALL if sure else 0,
            maybe=ALL,
            label=parts.label(label),
            rule=rule,
        )
    )


def _serve(parts: Parts, server: int, space: int, rule: int, *, sure: bool) -> None:
    parts.edges.append(
        Edges.of(
            [server + 1],
            [space],
            Edge.HOLD,
            perm=ALL if sure else 0,
            maybe=ALL,
            flags=SERVER,
            rule=rule,
        )
    )


# -- network ---------------------------------------------------------------------------------


def _add_network(parts: Parts, snap: Snapshot) -> None:
    """slirp4netns, pasta, a VPN: who holds the other end of a namespace's tun or tap device.

    Which namespace that is, the descriptor itself tells (TUNGETDEVNETNS). Where it was not asked,
    those with a device of that name may be. A process inside the namespace (QEMU with a tap of its
    own host) serves it with nothing.
    """
    rule = parts.rule(
        "who holds the other end of a tun device is the network of its namespace",
        "/proc/pid/fdinfo: iff; TUNGETDEVNETNS, else RTM_GETLINK",
    )
    nodes = net_nodes(parts, snap)
    net = snap["socketns_net"]
    whole = bool((snap["socketns_status"] != Status.DENIED).all())
    taps = (snap[f"tap_{column}"].tolist() for column in ("process", "name", "space"))
    for process, name, space_of in zip(*taps, strict=True):
        there = (snap["tunnel_name"] == name) & (snap["tunnel_up"] == 1)
        spaces = set(snap["tunnel_space"][there].tolist())
        told = {space_of} if space_of >= 0 else spaces & _named_spaces(snap, process)
        sure = len(told) == 1 or (len(spaces) == 1 and whole)
        for space in sorted(told if len(told) == 1 else spaces):
            if net[space] >= 0 and net[space] == snap["process_ns_net"][process]:
                continue
            members = np.flatnonzero(
                (snap["process_ns_net"] == net[space]) & (snap["process_ns_net"] >= 0)
            )
            threads = snap["thread_process"][
                (snap["thread_ns_net"] == net[space]) & (snap["thread_ns_net"] >= 0)
            ]
            clients = np.concatenate([members, threads])
            _request(parts, clients, process, "NET", rule, sure=sure)
            if nodes[space] >= 0:
                _serve(parts, process, int(nodes[space]), rule, sure=sure)


def _named_spaces(snap: Snapshot, process: int) -> set[int]:
    """Namespaces (rows of socketns) that a process holds a descriptor of, or a member of by pid."""
    of_inode = {inode: i for i, inode in enumerate(snap["socketns_inode"].tolist())}
    mine = snap["fd_open"][snap["fd_process"] == process]
    mine = mine[snap["open_kind"][mine] == OpenKind.NAMESPACE]
    found = {of_inode[i] for i in snap["open_inode"][mine].tolist() if i in of_inode}
    text = snap["process_cmdline"][process]
    words = snap.text(text).split("\0")[1:] if text >= 0 else []
    pids = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 10]
    members = np.flatnonzero(np.isin(snap["process_pid"], pids))
    net = snap["process_ns_net"][members]
    return found | set(np.flatnonzero(np.isin(snap["socketns_net"], net[net >= 0])).tolist())


# -- FUSE ------------------------------------------------------------------------------------


def _add_fuse(parts: Parts, snap: Snapshot) -> None:
    """Who holds files of a FUSE superblock asks the process that answers for it.

    Where the kernel does not tell which connection a descriptor is of (no fuse_connection
    in fdinfo), each may be of any FUSE superblock.
    """
    rule = parts.rule(
        "a FUSE server answers every access to the files of its superblock",
        "/proc/pid/fdinfo: fuse_connection",
    )
    known = snap["fuse_known"] == 1
    told = zip(snap["fuse_process"][known].tolist(), snap["fuse_dev"][known].tolist(), strict=True)
    pairs = [(process, dev, True) for process, dev in told]
    if not known.any():
        served = {
            int(dev)
            for dev, kind in zip(snap["mount_dev"], snap["mount_kind"], strict=True)
            if snap.text(kind).partition(".")[0] in ("fuse", "fuseblk")
        }
        pairs = [(p, dev, False) for p in snap["fuse_process"].tolist() for dev in sorted(served)]
    for process, dev, sure in pairs:
        users = _users(snap, dev)
        _request(parts, users, process, "FILE", rule, sure=sure)
        _serve(parts, process, _file_space(parts, dev), rule, sure=sure)


def _users(snap: Snapshot, dev: int) -> I64:
    """Processes that hold, map, or have as their root something of a superblock."""
    opens = ((snap["open_super"] == dev) | (snap["open_dev"] == dev)) & np.isin(
        snap["open_kind"], (OpenKind.FILE, OpenKind.DIRECTORY, OpenKind.OTHER)
    )
    holders = snap["fd_process"][opens[snap["fd_open"]]]
    objects = np.flatnonzero(snap["object_dev"] == dev)
    mapped = np.isin(snap["vma_object"], objects)
    of_vma = np.repeat(np.arange(len(snap["mm_process"])), np.diff(snap["mm_vma_indptr"]))
    process, mm = owners_of(snap)
    mappers = process[np.isin(mm, of_vma[mapped])]
    # st_dev as stat(2) gives it (gnu_dev_makedev), 0 if it was not read.
    raw = snap["process_root_dev"].astype(np.int64)
    major = raw >> 8 & 0xFFF | raw >> 32 & ~0xFFF
    minor = raw & 0xFF | raw >> 12 & ~0xFF
    inside = np.flatnonzero((raw != 0) & ((major << 32 | minor) == dev))
    return np.unique(np.concatenate([holders, mappers, inside])).astype(np.int64)


def _file_space(parts: Parts, dev: int) -> int:
    """Node of a superblock's space; added if no file of it was seen."""
    name = device_names(np.array([dev], np.uint64))[0]
    for block in parts.blocks:
        if block.kind == Kind.SPACE and block.type == "FILE":
            found = np.flatnonzero(block.names.columns[0] == name)
            if len(found):
                return block.first + int(found[0])
    only = np.empty(1, object)
    only[0] = name
    return parts.nodes(Kind.SPACE, "FILE", Block("FILE_SPACE_{}", (only,)))


# -- stdio -----------------------------------------------------------------------------------


def _add_keepers(parts: Parts, snap: Snapshot) -> None:
    """containerd-shim, conmon: an ancestor from outside that holds the same stdio.

    Outside: in another pid or mount namespace. Whoever writes to it waits for its reader.
    """
    rule = parts.rule(
        "a container's stdio ends at the process that keeps it", "/proc/pid/fd; ns/pid, ns/mnt"
    )
    stdio = np.isin(snap["open_kind"], (OpenKind.PIPE, OpenKind.PTY)) & (snap["open_sure"] == 1)
    fd = np.flatnonzero(stdio[snap["fd_open"]])
    mine = fd[snap["fd_fd"][fd] <= 2]
    held = set(zip(snap["fd_process"][fd].tolist(), snap["fd_open"][fd].tolist(), strict=True))
    row_of = {pid: row for row, pid in enumerate(snap["process_pid"].tolist())}
    ppid = snap["process_ppid"].tolist()
    spaces = [snap[f"process_ns_{kind}"] for kind in ("pid", "mnt")]
    pairs: set[tuple[int, int]] = set()
    wanted = set(
        zip(snap["fd_process"][mine].tolist(), snap["fd_open"][mine].tolist(), strict=True)
    )
    for process, row in sorted(wanted):
        above = process
        for _ in range(GENERATIONS):
            above = row_of.get(ppid[above], -1)
            if above < 0 or above == process:
                break
            apart = any(
                s[above] >= 0 and s[process] >= 0 and s[above] != s[process] for s in spaces
            )
            if apart and (above, row) in held:
                pairs.add((process, above))
                break
    for keeper in sorted({keeper for _, keeper in pairs}):
        clients = np.array([p for p, k in pairs if k == keeper], np.int64)
        _request(parts, clients, keeper, "PIPE", rule, sure=True)


# -- gVisor ----------------------------------------------------------------------------------


def _add_sandboxes(parts: Parts, snap: Snapshot, ends: Ends, named: Roles) -> None:
    """A sentry is the kernel of the processes that it made, and asks its gofer for files.

    Their sockets are pairs, in which nobody was accepted: it is the gofer that opens for others.
    """
    rule = parts.rule(
        "a sandbox asks its gofer for files, and its processes ask the sentry as their kernel",
        "/proc/pid/cmdline, ns/mnt; NETLINK_SOCK_DIAG",
    )
    roles = np.array([role or "" for role in named.role], str)
    sentries, gofers = (np.flatnonzero(roles == role) for role in ("sentry", "gofer"))
    if not len(sentries):
        return
    paired = np.flatnonzero(ends.partner >= 0)
    at, holder = ends.held_by(paired)
    to, other = ends.held_by(ends.partner[paired])
    row_of = {pid: row for row, pid in enumerate(snap["process_pid"].tolist())}
    below: dict[int, list[int]] = {}
    for row, ppid in enumerate(snap["process_ppid"].tolist()):
        below.setdefault(row_of.get(ppid, -1), []).append(row)
    for sentry in sentries.tolist():
        inside = list(below.get(sentry, ()))
        for row in inside:  # it grows: processes below processes
            inside += [child for child in below.get(row, ()) if child not in (sentry, row)]
        mine = np.array([sentry, *inside], np.int64)
        if len(inside):
            _request(parts, mine, sentry, "VMR", rule, sure=True)
        for gofer in gofers.tolist():
            links = np.unique(to[other == gofer])
            clients = np.intersect1d(holder[np.isin(at, links)], mine)
            if len(clients):
                _request(parts, clients, gofer, "FILE", rule, sure=True)


# -- message buses ---------------------------------------------------------------------------


def _add_buses(parts: Parts, snap: Snapshot, ends: Ends) -> None:
    """Clients of one bus may ask each other through it: which of them own a name, only it knows.

    Potential: what is observed is that they are connected to the bus, whom they ask for certain.
    """
    rule = parts.rule(
        "a client of a message bus may ask its other clients through it",
        "NETLINK_SOCK_DIAG; D-Bus specification: message bus names",
    )
    accepted = np.unique(ends.accepted.a)
    accepted = accepted[(snap["socket_family"][accepted] == UNIX) & (ends.partner[accepted] >= 0)]
    at, who = ends.held_by(accepted)
    exe = snap["process_exe"]
    for process in np.unique(who).tolist():
        path = snap.text(exe[process]) if exe[process] >= 0 else ""
        if basename(path) not in BUSES:
            continue
        far = ends.partner[np.unique(accepted[at[who == process]])]
        clients = np.unique(ends.held_by(far)[1])
        clients = clients[clients != process]
        src, dst = (x.reshape(-1) for x in np.meshgrid(clients, clients))
        parts.edges.append(
            Edges.of(
                src[src != dst] + 1,
                dst[src != dst] + 1,
                Edge.REQUEST,
                perm=ALL,
                maybe=ALL,
                flags=POTENTIAL,
                label=parts.label("DBUS"),
                rule=rule,
            )
        )
