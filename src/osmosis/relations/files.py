"""Open and mapped files: one node per file, whoever opened or mapped it, and who holds it.

A descriptor is held with the mode that it was opened with; a mapping with that of its VMA.
Anonymous inodes (eventfd, epoll ...) are nodes of their own types, told apart by the open file
description; what could not be told apart is ``unseen`` of that type. Sockets are left to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ALL, ANY, POTENTIAL, SERVER, Edge, Edges, Kind, R, W, X
from osmosis.graph.names import Block
from osmosis.relations.file_links import add_links
from osmosis.relations.memory import SHARED, add_object_holds, device_names, owners_of
from osmosis.relations.parts import Parts
from osmosis.schema import NAMESPACES, FileKind, OpenKind, Status
from osmosis.snapshot import Snapshot

__all__ = ["OPEN_TYPES", "add_files", "link_text", "not_all_read"]

# Types of the resources that a descriptor may lead to, sockets and message queues aside.
ANONYMOUS = {
    OpenKind.EVENTFD: "EVENTFD",
    OpenKind.EPOLL: "EPOLL",
    OpenKind.TIMERFD: "TIMERFD",
    OpenKind.SIGNALFD: "SIGNALFD",
    OpenKind.INOTIFY: "INOTIFY",
    OpenKind.FANOTIFY: "FANOTIFY",
    OpenKind.IO_URING: "IO_URING",
    OpenKind.ANON: "ANON",
}
OPEN_TYPES = ("FILE", "DIRECTORY", "PIPE", "DEVICE", *ANONYMOUS.values())

# Devices without state, as (major, minor): null, zero, full, random, urandom.
# Source: Documentation/admin-guide/devices.txt. They carry nothing from one user to another.
STATELESS = np.array([1 << 32 | minor for minor in (3, 5, 7, 8, 9)], np.uint64)
# /dev/tty0 and /dev/console: terminals that stand for another one; and majors of such ones.
ALIASES = np.array([4 << 32, 5 << 32 | 1], np.uint64)
CONSOLES = np.array([4, 166, 188, 204, 229], np.uint64)
TTY = 5 << 32  # /dev/tty: the terminal of the session that opened it
PTS_MAJOR, PTS_MAJORS = 136, 8
# Filesystems of which st_dev and st_ino may name several files: subvolume snapshots.
REPEATING = {"bcachefs"}
# Their control calls ask for no mode: inotify_add_watch, fanotify_mark; tcsetattr and tcflow
# (tty_ioctl() in drivers/tty/tty_io.c).
WRITE_ANYWAY = (OpenKind.INOTIFY, OpenKind.FANOTIFY, OpenKind.PTY)
# Anonymous inodes that are opened for reading and altered by ioctl or bpf(): userfaultfd_ioctl()
# in fs/userfaultfd.c, link_update() in kernel/bpf/syscall.c. A map's mode is asked for.
WRITTEN_ANONYMOUS = ("anon_inode:[userfaultfd]", "anon_inode:bpf_link")
MODE_ASKED = ("anon_inode:bpf-map",)
# Links of which table open does not repeat the inode number.
UNNUMBERED = ("pipe:", "socket:")

# F_SEAL_WRITE, F_SEAL_FUTURE_WRITE; F_SEAL_SHRINK, F_SEAL_GROW: include/uapi/linux/fcntl.h. What
# cannot be written may still be cut short, by whoever has it open for writing.
CONTENT, SIZE = 0x8 | 0x10, 0x2 | 0x4

CHAR, BLOCK, PTY, OPENED = range(4)  # of the key of a device

I64 = NDArray[np.int64]


def add_files(parts: Parts, snap: Snapshot) -> None:
    """Add FILE, DIRECTORY, PIPE, DEVICE and anonymous resources, filesystems, and all holds.

    PD row of process p is p + 1. Namespaces must have been added. O(descriptors + VMAs).
    """
    of_object = np.full(len(snap["object_kind"]), -1, np.int64)
    of_open = np.full(len(snap["open_kind"]), -1, np.int64)
    _add_regular(parts, snap, of_object, of_open)
    _add_plain(parts, snap, of_open)
    _add_devices(parts, snap, of_object, of_open)
    _add_anonymous(parts, snap, of_open)
    _add_filesystems(parts, snap, of_object, of_open)
    copied = _written_overlays(parts, snap, of_object, of_open)
    add_links(parts, snap, of_object, of_open, copied)
    twofold = copied[of_object] & (of_object >= 0)
    add_object_holds(parts, snap, owners_of(snap), np.where(twofold, -1, of_object))
    _add_twofold_holds(parts, snap, np.where(twofold, of_object, -1))
    _add_holds(parts, snap, of_open)
    _add_terminals(parts, snap, of_open)
    _add_namespaces(parts, snap)
    _add_unseen(parts, snap, of_open)


def _numbered(*columns: NDArray[Any]) -> tuple[I64, I64]:
    """Number equal rows alike: (N,) numbers by rising key, and one row of each."""
    order = np.lexsort(columns)
    new = np.ones(len(order), bool)
    if len(order):
        new[1:] = False
    for column in columns:
        ordered = column[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(new) - 1
    return number, order[new]


def _note(snap: Snapshot, paths: NDArray[np.int32], **more: str) -> Any:
    def note(i: int) -> Mapping[str, Any]:
        told: dict[str, Any] = dict(more)
        if paths[i] >= 0:
            told["path"] = snap.text(paths[i])
        return told

    return note


def link_text(snap: Snapshot, row: int) -> str:
    """Where one link to row *row* of table open leads, "" if that is not known."""
    text = snap.text(snap["open_name"][row])
    if text in UNNUMBERED:
        text += f"[{snap['open_inode'][row]}]"
    return text


def _known(snap: Snapshot, *kinds: int) -> I64:
    """Rows of table open of these kinds that are told apart."""
    return np.flatnonzero(np.isin(snap["open_kind"], kinds) & (snap["open_sure"] == 1))


def _add_regular(parts: Parts, snap: Snapshot, of_object: I64, of_open: I64) -> None:
    """Regular files, mapped and opened: by device, inode and, if several, birth."""
    objects = np.flatnonzero(snap["object_kind"] == FileKind.FILE)
    opens = _known(snap, OpenKind.FILE, OpenKind.OTHER)
    n = len(objects)
    dev = np.concatenate([snap["object_dev"][objects], snap["open_dev"][opens]])
    inode = np.concatenate([snap["object_inode"][objects], snap["open_inode"][opens]])
    place, _ = _numbered(inode, dev)
    # A mapping does not tell the birth: it is that of the one open file, if it is one. Where an
    # inode number was reused while we read, the mapping may be of either: it stands for itself.
    birth = np.concatenate([np.zeros(n, np.int64), snap["open_birth"][opens] + 1])
    count = np.bincount(place[n:], minlength=int(place.max(initial=-1)) + 1)
    one = np.zeros(len(count), np.int64)
    one[place[n:]] = birth[n:]
    birth[:n] = np.where(count[place[:n]] == 1, one[place[:n]], 0)
    number, first = _numbered(inode, dev, birth)
    path = np.concatenate([snap["object_path"][objects], snap["open_name"][opens]])[first]
    names: list[Any] = [device_names(dev[first]), inode[first]]
    again = count[place[first]] > 1
    names[1] = inode[first].astype(object)
    names[1][again] = [
        f"{i}_{b}" for i, b in zip(inode[first][again], birth[first][again], strict=True)
    ]
    node = parts.nodes(
        Kind.RESOURCE, "FILE", Block("FILE_{}_{}", tuple(names)), note=_note(snap, path)
    )
    of_object[objects] = node + number[:n]
    of_open[opens] = node + number[n:]


def _add_plain(parts: Parts, snap: Snapshot, of_open: I64) -> None:
    """Directories and pipes: a row of table open each."""

    def note(rows: I64) -> Any:
        def of(i: int) -> Mapping[str, Any]:
            text = link_text(snap, int(rows[i]))
            return {"path": text} if text else {}

        return of

    for kind, name in ((OpenKind.DIRECTORY, "DIRECTORY"), (OpenKind.PIPE, "PIPE")):
        rows = _known(snap, kind)
        inode = snap["open_inode"][rows].astype(object)
        place, first = _numbered(snap["open_inode"][rows], snap["open_dev"][rows])
        again = np.bincount(place, minlength=len(first))[place] > 1
        inode[again] = [
            f"{i}_{b}" for i, b in zip(inode[again], snap["open_birth"][rows[again]], strict=True)
        ]
        node = parts.nodes(
            Kind.RESOURCE,
            name,
            Block(name + "_{}_{}", (device_names(snap["open_dev"][rows]), inode)),
            note=note(rows),
        )
        of_open[rows] = node + np.arange(len(rows))


def _add_devices(parts: Parts, snap: Snapshot, of_object: I64, of_open: I64) -> None:
    """Devices by number; ptys by their devpts and index; clone devices by what was opened."""
    objects = np.flatnonzero(snap["object_kind"] == FileKind.DEVICE)
    objects = objects[~np.isin(snap["object_rdev"][objects], STATELESS)]
    opens = _known(snap, OpenKind.CHAR, OpenKind.BLOCK, OpenKind.PTY)
    kind, rdev = snap["open_kind"][opens], snap["open_rdev"][opens]
    stay = ~((kind == OpenKind.CHAR) & (np.isin(rdev, STATELESS) | (rdev == TTY)))
    opens, kind, rdev = opens[stay], kind[stay], rdev[stay]
    number = snap["open_number"][opens]
    what = np.select(
        [kind == OpenKind.BLOCK, kind == OpenKind.PTY, number >= 0], [BLOCK, PTY, OPENED], CHAR
    )
    a = np.where(kind == OpenKind.PTY, snap["open_dev"][opens], rdev)
    b = np.where(kind == OpenKind.PTY, snap["open_inode"][opens].astype(np.int64), number)
    b[(what == CHAR) | (what == BLOCK)] = 0
    # maps does not tell a block device from a character device: an open file of the same node does.
    blocks = snap["open_inode"][opens[what == BLOCK]]
    of_what = np.where(np.isin(snap["object_inode"][objects], blocks), BLOCK, CHAR)
    n = len(objects)
    what = np.concatenate([of_what, what])
    a = np.concatenate([snap["object_rdev"][objects], a])
    b = np.concatenate([np.zeros(n, np.int64), b])
    numbers, first = _numbered(b, a, what)
    path = np.concatenate([snap["object_path"][objects], snap["open_name"][opens]])[first]
    names = np.empty(len(first), object)
    names[:] = [
        _device_name(*row)
        for row in zip(what[first].tolist(), a[first].tolist(), b[first].tolist(), strict=True)
    ]
    node = parts.nodes(
        Kind.RESOURCE, "DEVICE", Block("DEVICE_{}", (names,)), note=_note(snap, path)
    )
    of_object[objects] = node + numbers[:n]
    of_open[opens] = node + numbers[n:]
    is_char, number = what[first] == CHAR, a[first].astype(np.uint64)
    alias = node + np.flatnonzero(is_char & np.isin(number, ALIASES))
    real = node + np.flatnonzero(
        is_char & np.isin(number >> np.uint64(32), CONSOLES) & ~np.isin(number, ALIASES)
    )
    rule = parts.rule(
        "/dev/console and /dev/tty0 stand for another terminal", "/sys/class/tty/console/active"
    )
    one, other = np.repeat(alias, len(real)), np.tile(real, len(alias))
    parts.edges.append(Edges.of(one, other, Edge.MAP, perm=0, maybe=ALL, rule=rule))


def _device_name(what: int, a: int, b: int) -> str:
    major, minor = a >> 32, a & 0xFFFFFFFF
    if what == PTY:
        return f"pty_{major:x}:{minor:x}_{b}"
    text = f"block_{major}_{minor}" if what == BLOCK else f"{major}_{minor}"
    return f"{text}_{b}" if what == OPENED else text


def _add_anonymous(parts: Parts, snap: Snapshot, of_open: I64) -> None:
    for kind, name in ANONYMOUS.items():
        rows = _known(snap, kind)
        node = parts.nodes(
            Kind.RESOURCE,
            name,
            Block(name + "_{}", (snap["open_number"][rows],)),
            note=_note(snap, snap["open_name"][rows]),
        )
        of_open[rows] = node + np.arange(len(rows))


def _add_filesystems(parts: Parts, snap: Snapshot, of_object: I64, of_open: I64) -> None:
    """Spaces of superblocks, with their files; and the block devices that back them."""
    objects = np.flatnonzero((snap["object_kind"] == FileKind.FILE) & (of_object >= 0))
    on_disk = np.isin(snap["open_kind"], (OpenKind.FILE, OpenKind.DIRECTORY, OpenKind.OTHER))
    opens = np.flatnonzero(on_disk & (of_open >= 0))
    known = snap["open_super"][opens]
    home = np.where(known != 0, known, snap["open_dev"][opens])
    node = np.concatenate([of_open[opens], of_object[objects]])
    dev = np.concatenate([home, snap["object_dev"][objects]])
    node, first = np.unique(node, return_index=True)
    devices, inverse = np.unique(dev[first], return_inverse=True)
    kinds, sources = _mounted(snap)

    def note(i: int) -> Mapping[str, Any]:
        dev = int(devices[i])
        told = {"filesystem": kinds.get(dev, ""), "source": sources.get(dev, "")}
        return {name: text for name, text in told.items() if text}

    space = parts.nodes(
        Kind.SPACE, "FILE", Block("FILE_SPACE_{}", (device_names(devices),)), note=note
    )
    rule = parts.rule("a file is part of its filesystem", "device and inode of the file")
    parts.edges.append(Edges.of(node, space + inverse, Edge.SUBSET, rule=rule))
    every = np.arange(space, space + len(devices))
    parts.edges.append(Edges.of(np.zeros(len(every)), every, Edge.HOLD, flags=SERVER, rule=rule))
    # A superblock of a real device has its number (set_bdev_super() in fs/super.c).
    backed = np.flatnonzero(devices >> np.uint64(32))
    disks = devices[backed]
    disk = parts.nodes(
        Kind.SPACE,
        "DEVICE",
        Block("DEVICE_SPACE_block_{}_{}", (disks >> np.uint64(32), disks & np.uint64(0xFFFFFFFF))),
    )
    rule = parts.rule("a filesystem lies on its block device", "/proc/pid/mountinfo: device")
    every = np.arange(disk, disk + len(disks))
    parts.edges.append(Edges.of(space + backed, every, Edge.MAP, rule=rule))
    parts.edges.append(Edges.of(np.zeros(len(every)), every, Edge.HOLD, flags=SERVER, rule=rule))
    held = np.flatnonzero((snap["open_kind"] == OpenKind.BLOCK) & (of_open >= 0))
    at = np.minimum(np.searchsorted(disks, snap["open_rdev"][held]), max(len(disks) - 1, 0))
    if len(disks):
        same = disks[at] == snap["open_rdev"][held]
        part = parts.rule("a block device is the space of what lies on it", "its number")
        parts.edges.append(Edges.of(of_open[held[same]], disk + at[same], Edge.SUBSET, rule=part))
        _add_raw_writes(parts, held[same], at[same], of_open, node, backed, inverse)


def _add_raw_writes(
    parts: Parts, held: I64, disk_of: I64, of_open: I64, file: I64, backed: I64, space_of: I64
) -> None:
    """Who has a mounted block device open may reach the files on it, past their filesystem.

    Possible, not certain: what is cached of a file is not read again from the device.
    """
    rule = parts.rule(
        "a block device holds the files of the filesystem that is mounted from it",
        "/proc/pid/mountinfo; Documentation/admin-guide/devices.txt",
    )
    pairs = dict(zip(of_open[held].tolist(), disk_of.tolist(), strict=True))
    for node, disk in pairs.items():
        files = file[space_of == backed[disk]]
        parts.edges.append(
            Edges.of(np.full(len(files), node), files, Edge.MAP, perm=0, maybe=ALL, rule=rule)
        )


def _mounted(snap: Snapshot) -> tuple[dict[int, str], dict[int, str]]:
    """Type and source of what is mounted, by s_dev."""
    devices, first = np.unique(snap["mount_dev"], return_index=True)
    kinds = {int(d): snap.text(snap["mount_kind"][i]) for d, i in zip(devices, first, strict=True)}
    sources = {
        int(d): snap.text(snap["mount_source"][i]) for d, i in zip(devices, first, strict=True)
    }
    return kinds, sources


def _add_holds(parts: Parts, snap: Snapshot, of_open: I64) -> None:
    """One HOLD per process and node, with the modes of all its descriptors of it."""
    node = of_open[snap["fd_open"]]
    fd = np.flatnonzero(node >= 0)
    node = node[fd]
    open_row = snap["fd_open"][fd]
    mask = (snap["fd_access"][fd] & (R | W)) | ANY
    writes, may_write = _writes_by_control(snap)
    opened = mask & (R | W) != 0  # with O_PATH there are no control calls
    mask[opened & writes[open_row]] |= W
    uncertain = opened & may_write[open_row] & (mask & W == 0)
    seals = snap["open_seals"][open_row]
    # Not told: whether it can still be written is not known.
    fixed = (seals >= 0) & (seals & CONTENT != 0) & (seals & SIZE == SIZE)
    mask[fixed] &= ~np.uint8(W)
    kinds, _ = _mounted(snap)
    repeating = np.array([dev for dev, kind in kinds.items() if kind in REPEATING], np.uint64)
    sure = np.where(np.isin(snap["open_super"][open_row], repeating), 0, mask).astype(np.uint8)
    sure[seals < 0] &= ~np.uint8(W)
    mask[uncertain] |= W
    key = (snap["fd_process"][fd].astype(np.int64) + 1) * parts.n_nodes + node
    order = np.argsort(key, kind="stable")
    key, mask, sure = key[order], mask[order], sure[order]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else key
    if len(key):
        mask, sure = np.bitwise_or.reduceat(mask, starts), np.bitwise_or.reduceat(sure, starts)
    key = key[starts]
    rule = parts.rule(
        "an open file is held with the mode that it was opened with", "/proc/pid/fd: mode of link"
    )
    parts.edges.append(
        Edges.of(
            key // parts.n_nodes,
            key % parts.n_nodes,
            Edge.HOLD,
            perm=sure,
            maybe=mask,
            rule=rule,
        )
    )


def _writes_by_control(snap: Snapshot) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of table open, (N,) bool each: who has it open alters it, and perhaps does, in any mode.

    An ioctl asks for no mode. What it does to a device or an anonymous inode its driver decides.
    """
    kind, name = snap["open_kind"], snap["open_name"]
    anonymous = kind == OpenKind.ANON
    texts = {row: snap.text(row) for row in np.unique(name[anonymous & (name >= 0)]).tolist()}
    written = [row for row, text in texts.items() if text in WRITTEN_ANONYMOUS]
    asked = [row for row, text in texts.items() if text in MODE_ASKED]
    consoles = (kind == OpenKind.CHAR) & (
        np.isin(snap["open_rdev"] >> np.uint64(32), CONSOLES) | np.isin(snap["open_rdev"], ALIASES)
    )
    writes = np.isin(kind, WRITE_ANYWAY) | consoles | (anonymous & np.isin(name, written))
    return writes, (kind == OpenKind.CHAR) | (anonymous & ~np.isin(name, asked))


def _written_overlays(
    parts: Parts, snap: Snapshot, of_object: I64, of_open: I64
) -> NDArray[np.bool_]:
    """(nodes,) bool: files of an overlay that somebody holds for writing, so that were copied up.

    A mapping from before keeps the lower file, under the same inode number. A descriptor from
    before follows the copy: ovl_real_file_path() in fs/overlayfs/file.c.
    """
    kinds, _ = _mounted(snap)
    overlays = np.array([dev for dev, kind in kinds.items() if kind == "overlay"], np.uint64)
    written = np.zeros(parts.n_nodes + 1, bool)  # the last one: of none
    opens = snap["fd_open"][(snap["fd_access"] & W) != 0]
    opens = opens[
        (snap["open_kind"][opens] == OpenKind.FILE)
        & (
            np.isin(snap["open_super"][opens], overlays)
            | np.isin(snap["open_dev"][opens], overlays)
        )
    ]
    written[of_open[opens]] = True
    writing = (snap["vma_prot"] & (SHARED | W)) == SHARED | W
    objects = snap["vma_object"][writing & (snap["vma_object"] >= 0)]
    objects = objects[snap["object_kind"][objects] == FileKind.FILE]
    written[of_object[objects[np.isin(snap["object_dev"][objects], overlays)]]] = True
    written[-1] = False
    return written


def _add_twofold_holds(parts: Parts, snap: Snapshot, of_object: I64) -> None:
    """Mappings of copied-up files: certain if they write, else perhaps of the lower file."""
    of = snap["vma_object"]
    vma = np.flatnonzero(of >= 0)
    vma = vma[of_object[of[vma]] >= 0]
    mm_of_vma = np.repeat(np.arange(len(snap["mm_process"])), np.diff(snap["mm_vma_indptr"]))
    rule = parts.rule(
        "a mapping from before an overlay's copy-up keeps the lower file",
        "/proc/pid/maps; ovl_mmap() in fs/overlayfs/file.c",
    )
    process, mm = owners_of(snap)
    for row in vma.tolist():
        holder = process[mm == mm_of_vma[row]] + 1
        prot, shared = int(snap["vma_prot"][row]), bool(snap["vma_prot"][row] & SHARED)
        mask = prot & (R | W | X if shared else R | X) | ANY
        sure = bool(mask & W) and bool(snap["object_sure"][of[row]])
        node = np.full(len(holder), of_object[of[row]])
        parts.edges.append(
            Edges.of(holder, node, Edge.HOLD, perm=mask if sure else 0, maybe=mask, rule=rule)
        )


def _add_terminals(parts: Parts, snap: Snapshot, of_open: I64) -> None:
    """/dev/tty: probably the terminal that is the process's own, if it has not another by now."""
    of_tty = (snap["open_kind"] == OpenKind.CHAR) & (snap["open_rdev"] == TTY)
    fd = np.flatnonzero(of_tty[snap["fd_open"]])
    if not len(fd):
        return
    process = np.unique(snap["fd_process"][fd])
    tty = snap["process_tty"][process].astype(np.int64)
    # new_encode_dev() in include/linux/kdev_t.h.
    major, minor = tty >> 8 & 0xFFF, tty & 0xFF | tty >> 12 & 0xFFF00
    is_pty = (major >= PTS_MAJOR) & (major < PTS_MAJOR + PTS_MAJORS)
    index = minor + (major - PTS_MAJOR) * 256
    rule = parts.rule(
        "/dev/tty is the controlling terminal of the process that opened it",
        "tty_open_current_tty() in drivers/tty/tty_io.c; stat: tty_nr",
    )
    kind = snap["open_kind"]
    ptys = np.flatnonzero((kind == OpenKind.PTY) & (of_open >= 0))
    chars = np.flatnonzero((kind == OpenKind.CHAR) & (of_open >= 0))
    for i, p in enumerate(process.tolist()):
        if is_pty[i]:
            found = ptys[snap["open_inode"][ptys] == index[i]]
        else:
            found = chars[snap["open_rdev"][chars] == major[i] << 32 | minor[i]]
        nodes = np.unique(of_open[found])
        if tty[i] == 0 or not len(nodes):
            parts.unseen_by("DEVICE", np.array([p + 1]), ANY | R | W)
        parts.edges.append(
            Edges.of(
                np.full(len(nodes), p + 1), nodes, Edge.HOLD, perm=0, maybe=ANY | R | W, rule=rule
            )
        )


def _add_namespaces(parts: Parts, snap: Snapshot) -> None:
    """Descriptors of namespaces: spaces that could be entered, and those that live by them alone.

    Potential: holding one makes no member; setns() also asks for capabilities.
    """
    opens = np.flatnonzero(snap["open_kind"] == OpenKind.NAMESPACE)
    node = np.full(len(snap["open_kind"]), -1, np.int64)
    blocks = {b.type: b for b in parts.blocks if b.kind == Kind.SPACE}
    inodes = snap["namespace_inode"]
    serves = parts.rule("the kernel serves every namespace", "the kernel itself")
    for row in opens.tolist():
        kind = snap.text(snap["open_name"][row]).partition(":")[0]
        if kind.endswith("_for_children"):
            kind = kind.removesuffix("_for_children")
        if kind not in NAMESPACES:
            continue
        rows = np.flatnonzero(snap["namespace_kind"] == NAMESPACES.index(kind))
        at = np.flatnonzero(inodes[rows] == snap["open_inode"][row])
        if len(at) and kind.upper() in blocks:
            node[row] = blocks[kind.upper()].first + at[0]
            continue
        name = f"{kind.upper()}_SPACE_{{}}"
        node[row] = parts.nodes(
            Kind.SPACE, kind.upper(), Block(name, (snap["open_inode"][row : row + 1],))
        )
        parts.edges.append(Edges.of([0], [node[row]], Edge.HOLD, flags=SERVER, rule=serves))
    fd = np.flatnonzero(node[snap["fd_open"]] >= 0)
    pairs = np.unique(np.stack([snap["fd_process"][fd] + 1, node[snap["fd_open"][fd]]]), axis=1)
    rule = parts.rule("a namespace's descriptor lets its holder ask to enter", "/proc/pid/fd")
    parts.edges.append(
        Edges.of(pairs[0], pairs[1], Edge.HOLD, perm=ANY | R, flags=POTENTIAL, rule=rule)
    )


def not_all_read(snap: Snapshot) -> I64:
    """Rows of the processes of which not every descriptor was read."""
    status = np.full(snap.n_processes, Status.SKIPPED, np.uint8)
    if snap.host.get("sources") is None and not len(snap["fdtable_process"]):
        status[:] = Status.READ  # a snapshot that was made by hand
    status[snap["fdtable_process"]] = snap["fdtable_status"]
    return np.flatnonzero(status != Status.READ)


def _add_unseen(parts: Parts, snap: Snapshot, of_open: I64) -> None:
    """Processes whose descriptors were not read, and descriptors that are not told apart."""
    blind = not_all_read(snap) + 1
    for name in OPEN_TYPES:
        parts.unseen_by(name, blind, ALL)
    alike = np.flatnonzero((snap["open_sure"] == 0) & (of_open < 0))
    kind = snap["open_kind"][alike]
    every = np.logical_or(*_writes_by_control(snap))
    type_of = dict(ANONYMOUS)
    type_of |= dict.fromkeys((OpenKind.FILE, OpenKind.OTHER), "FILE")
    type_of |= dict.fromkeys((OpenKind.CHAR, OpenKind.BLOCK, OpenKind.PTY), "DEVICE")
    for of_kind, name in type_of.items():
        marks = np.zeros(len(of_open) + 1, bool)
        marks[alike[kind == of_kind]] = True
        fd = np.flatnonzero(marks[snap["fd_open"]])
        writes = (snap["fd_access"][fd] & W) != 0
        writes |= every[snap["fd_open"][fd]] & (snap["fd_access"][fd] & R != 0)
        parts.unseen_by(name, np.unique(snap["fd_process"][fd]) + 1, ANY | R)
        parts.unseen_by(name, np.unique(snap["fd_process"][fd[writes]]) + 1, ANY | R | W)
