"""MOUNT: the subtrees of filesystems that processes could reach through what they see mounted.

Nothing of this was observed to be used: every edge is POTENTIAL. One node is one subtree of one
superblock that somebody sees as a mount. A process that sees the subtree, or one above it,
reaches it; so that two processes share where what one sees lies within what the other sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ALL, ANY, POTENTIAL, Edge, Edges, Kind, R, W, X
from osmosis.graph.names import Block
from osmosis.relations.memory import device_names, ranges
from osmosis.relations.parts import Parts
from osmosis.schema import KERNEL_FILESYSTEMS, Status, is_served
from osmosis.snapshot import Snapshot

__all__ = ["add_mounts", "threads_elsewhere"]

CAP_DAC_OVERRIDE = 1  # include/uapi/linux/capability.h
DIRECTORY = 0o040000
DELETED = b"//deleted"
NO_OWNER = 0xFFFF_FFFF

Subtree = tuple[int, bytes]  # (s_dev, root)
Key = tuple[int, tuple[bytes, ...]]  # the same, by names


def add_mounts(parts: Parts, snap: Snapshot) -> None:
    """Add MOUNT resources and who could reach them.

    PD row of process p is p + 1. O(processes + mounts of all trees + subtrees seen by each class
    of processes).
    """
    seen = [(tree, row, covered) for tree, row, covered in _shown(snap)]
    dev, root = snap["mount_dev"], snap["mount_root"]
    subtree = {row: (int(dev[row]), snap.bytes(root[row])) for _, row, _ in seen}
    listed = sorted(set(subtree.values()), key=_key)
    number = {s: i for i, s in enumerate(listed)}
    keys = [_key(s) for s in listed]

    def note(i: int) -> Mapping[str, Any]:
        return {"path": listed[i][1].decode("utf-8", "surrogateescape")}

    devices = np.array([s[0] for s in listed], np.uint64)
    first = parts.nodes(
        Kind.RESOURCE,
        "MOUNT",
        Block("MOUNT_{}_{}", (device_names(devices), np.arange(1, len(listed) + 1))),
        note=note,
    )
    reached: list[tuple[int, int, int, int]] = []
    for tree, row, covered in seen:
        mine = number[subtree[row]]
        reached += [
            (tree, other, row, row if other == mine else -1)
            for other in _within(keys, mine, covered)
        ]
    table = np.array(reached, np.int64).reshape(-1, 4)
    _add_reach(parts, snap, table, first)
    _add_spaces(parts, listed, first)
    _add_unknown(parts, snap, first, len(listed))


def _key(subtree: Subtree) -> Key:
    """Sort by device and path; a root that was deleted has a last name of its own."""
    dev, root = subtree
    path = _ordered(root.removesuffix(DELETED))
    return (dev, (*path, DELETED) if root.endswith(DELETED) else path)


def _ordered(path: bytes) -> tuple[bytes, ...]:
    return tuple(name for name in path.split(b"/") if name)


def _shown(snap: Snapshot) -> Iterator[tuple[int, int, list[bytes]]]:
    """(tree, mount row, subtrees that other mounts stand on) of every mount that is not covered.

    Stored filesystems only.
    """
    kinds = {row: snap.text(row) for row in np.unique(snap["mount_kind"]).tolist()}
    stored = [kinds[row] not in KERNEL_FILESYSTEMS for row in snap["mount_kind"].tolist()]
    rows_of: dict[int, list[int]] = {}
    for row, tree in enumerate(snap["mount_tree"].tolist()):
        rows_of.setdefault(tree, []).append(row)
    for tree, rows in rows_of.items():
        mounts = _Tree(snap, rows)
        for row in rows:
            if stored[row] and not mounts.hidden(row):
                on_it = mounts.standing_on(row)
                if mounts.point[row] not in on_it:
                    base = snap.bytes(snap["mount_root"][row]).rstrip(b"/")
                    skip = len(mounts.point[row])
                    yield tree, row, [base + b"/" + b"/".join(p[skip:]) for p in on_it]


class _Tree:
    """The mounts of one tree: which stand on which, and which are covered.

    A mount hides its mount point, and with it what else stands on the same parent below it; one
    that stands at the very root of another hides it whole.
    """

    def __init__(self, snap: Snapshot, rows: list[int]) -> None:
        self.point = {row: _ordered(snap.bytes(snap["mount_point"][row])) for row in rows}
        self.id = {row: int(snap["mount_id"][row]) for row in rows}
        self.parent = {row: int(snap["mount_parent"][row]) for row in rows}
        self.row_of = {number: row for row, number in self.id.items()}
        self.children: dict[int, list[int]] = {}
        for row in rows:
            if self.id[row]:  # 0: the root of a chroot, which is no mount
                self.children.setdefault(self.parent[row], []).append(row)
        self._hidden: dict[int, bool] = {}

    def standing_on(self, row: int) -> list[tuple[bytes, ...]]:
        """Mount points on a mount."""
        if self.id[row]:
            return [self.point[child] for child in self.children.get(self.id[row], ())]
        return [point for other, point in self.point.items() if other != row]

    def hidden(self, row: int) -> bool:
        """Whether its mount point cannot be walked to."""
        chain: list[int] = []
        at: int | None = row
        found = False
        while at is not None and at not in chain:
            if at in self._hidden:
                found = self._hidden[at]
                break
            chain.append(at)
            if self._behind_another(at):
                found = True
                break
            at = self.row_of.get(self.parent[at]) if self.id[at] else None
        # What stands on a hidden mount is hidden, too.
        self._hidden.update(dict.fromkeys(chain, found))
        return found

    def _behind_another(self, row: int) -> bool:
        mine = self.point[row]
        beside = (self.point[s] for s in self.children.get(self.parent[row], ()) if s != row)
        return bool(self.id[row]) and any(
            len(point) < len(mine) and mine[: len(point)] == point for point in beside
        )


def _within(keys: list[Key], at: int, covered: list[bytes]) -> Iterator[int]:
    """Yield the rows of the subtrees in *keys* at or below row *at* that no mount covers.

    *keys* are sorted: what is below a subtree follows it.
    """
    dev, start = keys[at]
    yield at
    if start and start[-1] == DELETED:
        return
    hidden = {_ordered(path) for path in covered}
    for row in range(at + 1, len(keys)):
        other, path = keys[row]
        if other != dev or path[: len(start)] != start:
            return
        if path[-1] == DELETED:
            continue
        if not any(path[:n] in hidden for n in range(len(start) + 1, len(path) + 1)):
            yield row


def _add_reach(parts: Parts, snap: Snapshot, table: NDArray[np.int64], first: int) -> None:
    """HOLD and MAP edges: certain for those whom permissions do not stop, or plainly allow.

    Processes of one tree with one answer to every question about permissions are a class, and
    hold one MOUNT, their file tree, that maps the subtrees in it: not processes x subtrees.
    """
    member, tree = snap["treemember_process"], snap["treemember_tree"]
    seen = np.isin(tree, table[:, 0])
    member, tree = member[seen].astype(np.int64), tree[seen].astype(np.int64)
    if not len(member):
        return
    user = snap["process_ns_user"]
    initial = (user >= 0) & (np.append(snap["namespace_parent"], 0)[user] == -1)
    override = (snap["process_cap_eff"] >> np.uint64(CAP_DAC_OVERRIDE)) & np.uint64(1) == 1
    strong = (initial & override)[member]
    owner = np.where(strong, -1, snap["process_fsuid"][member].astype(np.int64))
    classes, of_class = np.unique(np.stack([tree, owner]), axis=1, return_inverse=True)
    of_class = of_class.reshape(-1)
    table = table[np.argsort(table[:, 0], kind="stable")]
    low = np.searchsorted(table[:, 0], classes[0], "left")
    n = np.searchsorted(table[:, 0], classes[0], "right") - low
    group = np.repeat(np.arange(len(n)), n)
    at = np.repeat(low, n) + ranges(n)
    sure, may = _masks(snap, table[at, 2], table[at, 3], classes[1][group])
    key = group * parts.n_nodes + table[at, 1]
    order = np.argsort(key, kind="stable")
    key, sure, may = key[order], sure[order], may[order]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    sure, may = np.bitwise_or.reduceat(sure, starts), np.bitwise_or.reduceat(may, starts)
    group, node = group[order][starts], table[at, 1][order][starts]
    # What a class may do somewhere: its masks are within one another, so one mount has it all.
    begins = np.searchsorted(group, np.arange(len(n)))
    held, held_may = np.bitwise_or.reduceat(sure, begins), np.bitwise_or.reduceat(may, begins)

    def note(i: int) -> Mapping[str, Any]:
        reader = snap["tree_process"][classes[0][i]]
        return {"path": snap.text(snap["process_root"][reader])} if reader >= 0 else {}

    numbers = np.arange(1, len(n) + 1)
    view = parts.nodes(Kind.RESOURCE, "MOUNT", Block("MOUNT_tree_{}", (numbers,)), note=note)
    rule = parts.rule(
        "what is mounted where a process can walk to, it could open",
        "/proc/pid/mountinfo, /proc/pid/root",
    )
    parts.edges.append(
        Edges.of(
            member + 1,
            of_class + view,
            Edge.HOLD,
            perm=held[of_class],
            maybe=held_may[of_class],
            flags=POTENTIAL,
            rule=rule,
        )
    )
    parts.edges.append(
        Edges.of(
            group + view, node + first, Edge.MAP, perm=sure, maybe=may, flags=POTENTIAL, rule=rule
        )
    )


def _masks(
    snap: Snapshot, mount: NDArray[np.int64], exact: NDArray[np.int64], owner: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What a class may do in a subtree, for certain and possibly.

    Parameters
    ----------
    mount, exact
        (K,) the mount through which it is seen, and the same if that is its root, else -1.
    owner
        (K,) -1 for those whom permissions do not stop, else their fsuid.

    """
    may = np.where(snap["mount_read_only"][mount] == 0, ALL, ANY | R | X).astype(np.uint8)
    kinds = np.unique(snap["mount_kind"])
    served = kinds[[is_served(snap.text(row)) for row in kinds.tolist()]]
    local = ~np.isin(snap["mount_kind"][mount], served)
    sure = np.where((owner < 0) & local, may, 0).astype(np.uint8)
    plain = np.flatnonzero((owner >= 0) & local & (exact >= 0))
    sure[plain] = may[plain] & _by_mode(snap, owner[plain], exact[plain])
    return sure, may


def _by_mode(
    snap: Snapshot, fsuid: NDArray[np.int64], mount: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """What the mode of a mount's root grants for certain to a process without privilege.

    The owner gets the owner's bits; whoever else gets what others and the group both get: we do
    not ask which it is. Nothing if not everybody may walk there, or the mount maps ids.
    """
    mode = snap["mount_mode"][mount]
    owner = snap["mount_uid"][mount] == fsuid
    bits = np.where(owner, mode >> 6, mode & mode >> 3) & 7
    searchable = ((mode & 0o170000) != DIRECTORY) | (bits & 1 == 1)
    options = snap["mount_options"][mount]
    mapped = [row for row in np.unique(options).tolist() if _maps_ids(snap.bytes(row))]
    told = (snap["mount_reach"][mount] == 1) & (snap["mount_uid"][mount] != NO_OWNER)
    granted = searchable & told & ~np.isin(options, mapped)
    # R, or R and W: of two such masks one has the letters of both. X is left undecided.
    mask = ANY | np.where(bits & W != 0, R | W, R)
    out: NDArray[np.uint8] = np.where(granted & (bits & R != 0), mask, 0).astype(np.uint8)
    return out


def _maps_ids(options: bytes) -> bool:
    return b"idmapped" in options.partition(b" ")[0].split(b",")


def _add_spaces(parts: Parts, listed: list[Subtree], first: int) -> None:
    """Subtrees are part of their filesystems."""
    names = {f"{d >> 32:x}:{d & 0xFFFFFFFF:x}": d for d, _ in listed}
    space: dict[int, int] = {}
    for block in parts.blocks:
        if block.kind == Kind.SPACE and block.type == "FILE":
            for i, name in enumerate(block.names.columns[0].tolist()):
                if name in names:
                    space[names[name]] = block.first + i
    missing = sorted({d for d, _ in listed} - set(space))
    made = parts.nodes(
        Kind.SPACE,
        "FILE",
        Block("FILE_SPACE_{}", (device_names(np.array(missing, np.uint64)),)),
    )
    space |= {d: made + i for i, d in enumerate(missing)}
    rule = parts.rule("a mounted subtree is part of its filesystem", "/proc/pid/mountinfo")
    parts.edges.append(
        Edges.of(
            np.arange(first, first + len(listed)),
            [space[d] for d, _ in listed],
            Edge.SUBSET,
            flags=POTENTIAL,
            rule=rule,
        )
    )


def threads_elsewhere(snap: Snapshot) -> NDArray[np.int32]:
    """Rows of processes with a thread that has another mount namespace or root directory."""
    of = snap["thread_process"]
    apart = np.zeros(len(of), bool)
    for name, unread in (("ns_mnt", -1), ("root_dev", 0), ("root_inode", 0)):
        its, own = snap[f"thread_{name}"], np.append(snap[f"process_{name}"], 0)[of]
        apart |= (its != own) | (its == unread)
    return np.unique(of[apart & (of >= 0)])


def _add_unknown(parts: Parts, snap: Snapshot, first: int, n: int) -> None:
    """Processes whose tree was not read could reach any mount, and what the others do not see.

    So could those with a thread whose file tree or rights are others: that one's are not read.

    By edges and not by ``unseen``: these count only where what is potential is asked for.
    """
    known = np.zeros(snap.n_processes, bool)
    status = np.append(snap["tree_status"], Status.SKIPPED)
    known[snap["treemember_process"]] = status[snap["treemember_tree"]] == Status.READ
    known[threads_elsewhere(snap)] = False
    of = snap["thread_process"]
    stronger = snap["thread_fsuid"] != np.append(snap["process_fsuid"], 0)[of]
    stronger |= (
        snap["thread_cap_eff"] & ~np.append(snap["process_cap_eff"], np.uint64(0))[of]
    ) != 0
    known[of[stronger & (of >= 0)]] = False
    asked = snap.host.get("sources")
    if asked is None and not len(snap["treemember_process"]):
        return  # a snapshot that was made by hand
    blind = np.flatnonzero(~known) + 1
    if not len(blind):
        return
    unknown = parts.nodes(Kind.RESOURCE, "MOUNT", Block("MOUNT_unknown_{}", (np.array([1]),)))
    rule = parts.rule("a process whose mounts were not all read may see any", "coverage: mounts")
    for src, dst, kind in (
        (blind, np.full(len(blind), unknown), Edge.HOLD),
        (np.full(n, unknown), np.arange(first, first + n), Edge.MAP),
    ):
        parts.edges.append(Edges.of(src, dst, kind, perm=0, maybe=ALL, flags=POTENTIAL, rule=rule))
