"""Files that are one and have two names: what frames, overlays and subvolumes tell of them.

A mapping tells (s_dev, inode), a descriptor (st_dev, inode): they differ on btrfs and on an
overlay of several filesystems. Two overlays, or an overlay and what lies below it, show one file
under two devices. Nodes stay apart, and a MAP between them says what passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ALL, ANY, Edge, Edges, R, X
from osmosis.relations.memory import ranges
from osmosis.relations.parts import Parts
from osmosis.schema import FileKind, FrameKind, OpenKind
from osmosis.snapshot import Snapshot

__all__ = ["add_links"]

I64 = NDArray[np.int64]
_ESCAPE = re.compile(rb"\\([0-7]{3})")
READING = ANY | R | X


def add_links(
    parts: Parts, snap: Snapshot, of_object: I64, of_open: I64, copied: NDArray[np.bool_]
) -> None:
    """Add MAP edges between nodes of one file.

    Parameters
    ----------
    of_object, of_open
        Node of each row of tables object and open, -1 for none.
    copied
        (nodes,) whether it is of an overlay and somebody holds it for writing: those that are open
        in their upper layer are added.

    """
    _by_number(parts, snap, of_object, of_open)
    _by_layer(parts, snap, of_object, of_open, copied)
    _by_frame(parts, snap, of_object, copied)


def _link(parts: Parts, a: I64, b: I64, perm: int, maybe: int, rule: int) -> None:
    """Add MAP edges from *a* to *b*: who holds a reaches b, where the holders of both meet.

    One way only: else two files that may be a third would be taken for each other.
    """
    apart = a != b
    parts.edges.append(Edges.of(a[apart], b[apart], Edge.MAP, perm=perm, maybe=maybe, rule=rule))


def _by_number(parts: Parts, snap: Snapshot, of_object: I64, of_open: I64) -> None:
    """A mapped file and an open one on the same superblock with the same inode number.

    Possible only: where st_dev is not s_dev, several files of a superblock have one number; and
    so have two that were read while the number was reused.
    """
    objects = np.flatnonzero((snap["object_kind"] == FileKind.FILE) & (of_object >= 0))
    opens = np.flatnonzero(
        np.isin(snap["open_kind"], (OpenKind.FILE, OpenKind.OTHER))
        & (of_open >= 0)
        & ((snap["open_super"] != snap["open_dev"]) | _again(snap))
    )
    if not len(objects) or not len(opens):
        return
    order = objects[np.argsort(snap["object_inode"][objects], kind="stable")]
    inode = snap["object_inode"][order]
    low = np.searchsorted(inode, snap["open_inode"][opens], "left")
    n = np.searchsorted(inode, snap["open_inode"][opens], "right") - low
    a = np.repeat(opens, n)
    b = order[np.repeat(low, n) + ranges(n)]
    home = snap["open_super"][a]
    mounted = np.isin(snap["object_dev"][b], snap["mount_dev"])
    may = np.where(home != 0, home == snap["object_dev"][b], ~mounted)
    rule = parts.rule(
        "a mapping tells a file by its superblock, where several files have one inode number",
        "/proc/pid/maps, stat of /proc/pid/fd",
    )
    _link(parts, of_object[b[may]], of_open[a[may]], 0, ALL, rule)


def _again(snap: Snapshot) -> NDArray[np.bool_]:
    """(opens,) bool: regular files of which others have the device and inode number."""
    dev, inode = snap["open_dev"], snap["open_inode"]
    files = np.flatnonzero((snap["open_kind"] == OpenKind.FILE) & (snap["open_sure"] == 1))
    order = files[np.lexsort((dev[files], inode[files]))]
    same = (dev[order][1:] == dev[order][:-1]) & (inode[order][1:] == inode[order][:-1])
    out = np.zeros(len(dev), bool)
    out[order[1:][same]] = out[order[:-1][same]] = True
    return out


def _by_layer(
    parts: Parts, snap: Snapshot, of_object: I64, of_open: I64, copied: NDArray[np.bool_]
) -> None:
    """A file that is opened through an overlay, and below it.

    An overlay shows the birth time of the real file, and its inode number, or after a copy-up that
    of the file it was copied from (ovl_getattr() in fs/overlayfs/inode.c). So it is the
    same file if births are equal, and the path below leads into a layer of the overlay and has the
    number or the rest of the path. What only looks alike is possible.
    """
    layers = dict(_layers(snap))
    if not layers:
        return
    overlays = np.array(list(layers), np.uint64)
    places = {dev: _inside(snap, dev) for dev in layers}
    files = np.flatnonzero((snap["open_kind"] == OpenKind.FILE) & (of_open >= 0))
    over = np.isin(snap["open_super"][files], overlays)
    above, below = files[over], files[~over]
    birth = snap["open_birth"]
    upper = parts.rule(
        "a file of an overlay's upper layer is written through the overlay",
        "/proc/pid/mountinfo: upperdir; statx of /proc/pid/fd",
    )
    lower = parts.rule(
        "a file of an overlay's lower layer is read through the overlay; a write copies it",
        "/proc/pid/mountinfo: lowerdir; statx of /proc/pid/fd",
    )
    for a, b in _pairs(birth, above[birth[above] != 0], below):
        name = snap.bytes(snap["open_name"][b])
        number = snap["open_inode"][a] == snap["open_inode"][b]
        home = int(snap["open_super"][a])
        inside = places[home](snap.bytes(snap["open_name"][a]))
        is_upper = [
            top
            for path, top in layers[home]
            if name.startswith(path.rstrip(b"/") + b"/")
            and (number or name[len(path.rstrip(b"/")) :] in inside)
        ]
        at, to = of_open[[a]], of_open[[b]]
        if is_upper:
            mask = ALL if is_upper[0] else READING
            copied[at] |= is_upper[0]
            _link(parts, at, to, mask, mask, upper if is_upper[0] else lower)
        else:
            _link(parts, at, to, 0, ALL, upper)
    # Two overlays with a lower layer in common.
    order = above[np.lexsort((birth[above], snap["open_inode"][above]))]
    one, two = order[:-1], order[1:]
    alike = (snap["open_inode"][one] == snap["open_inode"][two]) & (birth[one] == birth[two])
    alike &= snap["open_super"][one] != snap["open_super"][two]
    _link(parts, of_open[one[alike]], of_open[two[alike]], 0, READING, lower)
    # A mapping tells no birth.
    objects = np.flatnonzero((snap["object_kind"] == FileKind.FILE) & (of_object >= 0))
    over = np.isin(snap["object_dev"][objects], overlays)
    offset = len(snap["open_inode"])
    inode = np.concatenate([snap["open_inode"], snap["object_inode"]])
    node = np.concatenate([of_open, of_object])
    unborn = below[birth[below] == 0]
    for here, there in (
        (objects[over] + offset, np.concatenate([below, objects[~over] + offset])),
        (above, objects[~over] + offset),
        (above, unborn),
    ):
        pairs = np.array(list(_pairs(inode, here, there)), np.int64).reshape(-1, 2)
        _link(parts, node[pairs[:, 0]], node[pairs[:, 1]], 0, ALL, upper)


def _inside(snap: Snapshot, dev: int) -> Callable[[bytes], set[bytes]]:
    """Where in a filesystem a path may lead, by the places at which some tree has it mounted."""
    text = set()
    for i in np.flatnonzero(snap["mount_dev"] == np.uint64(dev)).tolist():
        point = snap.bytes(snap["mount_point"][i]).rstrip(b"/")
        text.add((point, snap.bytes(snap["mount_root"][i])))
        # The links of a chrooted process are printed from the root of its namespace.
        reader = snap["tree_process"][snap["mount_tree"][i]]
        if reader >= 0:
            base = snap.bytes(snap["process_root"][reader]).rstrip(b"/")
            text.add((base + point, snap.bytes(snap["mount_root"][i])))

    def inside(path: bytes) -> set[bytes]:
        return {
            root.rstrip(b"/") + path[len(point) :]
            for point, root in text
            if path.startswith(point + b"/")
        }

    return inside


def _pairs(key: NDArray[np.generic], a: I64, b: I64) -> Iterator[tuple[int, int]]:
    """Yield the rows of *a* and *b* that have the same key."""
    order = b[np.argsort(key[b], kind="stable")]
    low = np.searchsorted(key[order], key[a], "left")
    n = np.searchsorted(key[order], key[a], "right") - low
    found = order[np.repeat(low, n) + ranges(n)]
    yield from zip(np.repeat(a, n).tolist(), found.tolist(), strict=True)


def _layers(snap: Snapshot) -> Iterator[tuple[int, list[tuple[bytes, bool]]]]:
    """Yield (s_dev, [(path, whether it is the upper one)]) of every overlay that is mounted."""
    dev, first = np.unique(snap["mount_dev"], return_index=True)
    for d, i in zip(dev.tolist(), first.tolist(), strict=True):
        if snap.text(snap["mount_kind"][i]) != "overlay":
            continue
        found = []
        for option in snap.bytes(snap["mount_options"][i]).split(b" ")[-1].split(b","):
            name, _, value = option.partition(b"=")
            path = _ESCAPE.sub(lambda m: bytes([int(m[1], 8)]), value)
            if name == b"upperdir":
                found.append((path, True))
            elif name in (b"lowerdir", b"lowerdir+"):
                found += [(part, False) for part in re.split(rb"(?<!\\):+", path)]
        yield d, [(path, top) for path, top in found if path.startswith(b"/")]


def _by_frame(parts: Parts, snap: Snapshot, of_object: I64, copied: NDArray[np.bool_]) -> None:
    """Mapped files with a frame of the page cache in common are one file, or were one.

    For reading: a write through an overlay goes to its own copy of the file, while mappings
    from before keep the frames of the old one. So the node of a copied file is not certainly one.
    """
    if not len(snap["class_kind"]):
        return
    indptr, first, last = snap["class_run_indptr"], snap["run_first"], snap["run_last"]
    object_of = np.full(len(snap["vma_region"]), -1, np.int64)
    object_of[snap["vma_region"]] = snap["vma_object"]
    of_class = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    runs = np.flatnonzero(snap["class_kind"][of_class] == FrameKind.FILE)
    # A run is of one object but where a border between two objects lies in it.
    border = np.flatnonzero(object_of[1:] != object_of[:-1]) + 1
    low = np.searchsorted(border, first[runs], "right")
    n = np.searchsorted(border, last[runs], "right") - low
    inner = border[np.repeat(low, n) + ranges(n)] if len(border) else np.empty(0, np.int64)
    owner = np.concatenate([of_class[runs], np.repeat(of_class[runs], n)])
    found = np.concatenate([object_of[first[runs]], object_of[inner]])
    is_file = np.append(of_object >= 0, False)
    is_file[:-1] &= snap["object_kind"] == FileKind.FILE
    stay = is_file[found]
    owner, found = owner[stay], of_object[found[stay]]
    if not len(owner):
        return
    pairs = np.unique(np.stack([owner, found]), axis=1)
    again = np.flatnonzero(pairs[0][1:] == pairs[0][:-1])
    links = np.unique(np.stack([pairs[1][again], pairs[1][again + 1]]), axis=1)
    rule = parts.rule(
        "two names of mapped files that have frames of the page cache in common are one file",
        "/proc/pid/pagemap",
    )
    twofold = copied[links].any(axis=0)
    for way, perm in ((links[:, ~twofold], READING), (links[:, twofold], 0)):
        _link(parts, way[0], way[1], perm, ALL, rule)
        _link(parts, way[1], way[0], perm, ALL, rule)
