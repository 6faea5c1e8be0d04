"""Which subtrees of filesystems processes could both reach, against walking a tree by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmosis.graph.graph import POTENTIAL, Edge, Kind
from osmosis.model import Model
from osmosis.relations.build import build
from osmosis.schema import COLUMNS, Status
from osmosis.snapshot import Snapshot, StringPool, empty_columns

OVERRIDE = 1 << 1  # CAP_DAC_OVERRIDE
DISK, OTHER = 8 << 32 | 1, 8 << 32 | 2
USER = 6  # index of the user namespace in NAMESPACES


def mount(number, parent, dev, root, point, read_only=0, kind=b"ext4", **more):
    default = {"uid": 0, "gid": 0, "mode": 0o040755, "reach": 1, "options": b"rw rw"}
    return {
        "id": number,
        "parent": parent,
        "dev": dev,
        "root": root,
        "point": point,
        "read_only": read_only,
        "kind": kind,
        "source": b"s",
        "propagation": b"",
        **default,
        **more,
    }


def snapshot(trees, members, *, status=None, strong=None, fsuid=None, parents=(-1, 0), users=None):
    """Trees: lists of ``mount``; members: the tree of each process, -1 if it was not read."""
    pool, n = StringPool(), len(members)
    columns = {k: v.tolist() for k, v in empty_columns().items()}
    for name, column in COLUMNS.items():
        if column.table in ("process", "namespace"):
            rows = n if column.table == "process" else len(parents)
            columns[name] = (
                [0] * (rows + 1) if column.indptr else [-1 if column.refers else 0] * rows
            )
    mounts = [(t, m) for t, listed in enumerate(trees) for m in listed]
    for name in ("id", "parent", "dev", "read_only", "uid", "gid", "mode", "reach"):
        columns[f"mount_{name}"] = [m[name] for _, m in mounts]
    for name in ("root", "point", "kind", "source", "options", "propagation"):
        columns[f"mount_{name}"] = [pool.add(m[name]) for _, m in mounts]
    strong = [True] * n if strong is None else strong
    columns |= {
        "mount_tree": [t for t, _ in mounts],
        "tree_process": [members.index(t) if t in members else -1 for t in range(len(trees))],
        "tree_status": status or [Status.READ] * len(trees),
        "treemember_process": range(n),
        "treemember_tree": members,
        "process_pid": range(1, n + 1),
        "process_cap_eff": [OVERRIDE if s else 0 for s in strong],
        "process_fsuid": fsuid or [0] * n,
        "process_ns_user": users or [0] * n,
        "namespace_kind": [USER] * len(parents),
        "namespace_inode": range(100, 100 + len(parents)),
        "namespace_parent": parents,
    }
    made = {k: np.array(v, COLUMNS[k].dtype) for k, v in (columns | pool.columns()).items()}
    return Snapshot(made, {"page_size": 4096})


def shares(model, x, y, access="ANY"):
    found = model.shared_resources(x, types="MOUNT", access=access, potential=True)
    return "yes" if y in found.pids else "unknown" if y in found.unknown.pids else "no"


def model(*args, **more):
    return Model(build(snapshot(*args, **more)))


ROOT = mount(1, 0, DISK, b"/", b"/")


def bind(root, read_only=0, point=b"/", number=9, **more):
    return mount(number, 0, DISK, root, point, read_only, **more)


@pytest.mark.parametrize(
    ("a", "b", "answer"),
    [
        (b"/a", b"/a", "yes"),
        (b"/a", b"/a/b/c", "yes"),
        (b"/", b"/a", "yes"),
        (b"/a", b"/b", "no"),
        (b"/a", b"/ab", "no"),
        (b"/a/b", b"/a/c", "no"),
        (b"/a-b", b"/a/b", "no"),
        (b"/a//deleted", b"/a//deleted", "yes"),
        (b"/a//deleted", b"/a", "no"),
        (b"/", b"/a//deleted", "no"),
    ],
)
def test_one_subtree_within_another(a, b, answer):
    m = model([[bind(a)], [bind(b)]], [0, 1])
    assert shares(m, 1, 2) == shares(m, 2, 1) == answer


def test_another_filesystem_is_another():
    m = model([[bind(b"/a")], [mount(9, 0, OTHER, b"/a", b"/")]], [0, 1])
    assert shares(m, 1, 2) == "no"


@pytest.mark.parametrize("read_only", [1, 2, 3])
def test_read_only_binds_and_superblocks_give_no_w(read_only):
    m = model([[bind(b"/a")], [bind(b"/a/b", read_only)]], [0, 1])
    assert shares(m, 2, 1, "W") == "yes"
    assert shares(m, 1, 2, "W") == "no"
    assert shares(m, 1, 2, "R") == "yes"


def test_one_way_that_may_write_is_enough():
    m = model([[bind(b"/a", 1, b"/x"), bind(b"/a", 0, b"/y", 10)], [bind(b"/a")]], [0, 1])
    assert shares(m, 2, 1, "RW") == "yes"


@pytest.mark.parametrize(
    ("over", "answer"),
    [
        ([], "yes"),
        ([mount(2, 1, OTHER, b"/", b"/a")], "no"),  # over the subtree
        ([mount(2, 1, OTHER, b"/", b"/")], "no"),  # over everything
        ([mount(2, 1, OTHER, b"/", b"/a/b/c")], "yes"),  # over a part of it
        ([mount(2, 1, OTHER, b"/", b"/ab")], "yes"),
        ([mount(2, 1, OTHER, b"/", b"/a"), mount(3, 2, DISK, b"/a/b", b"/a/x")], "yes"),
        # What stood below is hidden with the place that it stood on.
        ([mount(2, 1, OTHER, b"/", b"/a"), mount(3, 1, DISK, b"/a/b", b"/a/x")], "no"),
        (
            [
                mount(2, 1, OTHER, b"/", b"/a"),
                mount(3, 1, OTHER, b"/z", b"/a/x"),
                mount(4, 3, DISK, b"/a/b", b"/a/x/y"),
            ],
            "no",
        ),
        ([mount(2, 1, OTHER, b"/", b"/a"), mount(3, 1, DISK, b"/a/b", b"/x")], "yes"),
    ],
)
def test_what_is_covered_is_not_reached(over, answer):
    m = model([[ROOT, *over], [bind(b"/a/b")]], [0, 1])
    assert shares(m, 1, 2) == shares(m, 2, 1) == answer


def test_the_root_of_a_chroot():
    jail = mount(0, 0, DISK, b"/srv", b"/")
    over = mount(7, 1, OTHER, b"/", b"/tmp")
    m = model([[jail, over], [bind(b"/srv/x")], [bind(b"/srv/tmp")], [bind(b"/etc")]], [0, 1, 2, 3])
    assert shares(m, 1, 2, "W") == "yes"
    assert shares(m, 1, 3) == "no"
    assert shares(m, 1, 4) == "no"


def test_the_kernels_filesystems_are_left_out():
    m = model([[mount(5, 0, 21, b"/", b"/", kind=k)] for k in (b"proc", b"proc")], [0, 1])
    assert shares(m, 1, 2) == "no"


def test_only_potential():
    g = build(snapshot([[ROOT]], [0, 0]))
    found = Model(g).shared_resources(1, types="MOUNT")
    assert not found.pids.size
    assert not found.unknown.pids.size
    mounts = np.flatnonzero((g.kind == Kind.RESOURCE) & (g.type == g.types.index("MOUNT")))
    held = np.isin(g.edges.dst, mounts) & (g.edges.kind == Edge.HOLD)
    assert held.sum() == 2
    assert (g.edges.flags[held] & POTENTIAL).all()


@pytest.mark.parametrize(
    ("strong", "user", "kind", "answer"),
    [
        (True, 0, b"ext4", "yes"),
        (False, 0, b"ext4", "unknown"),
        (True, 1, b"ext4", "unknown"),  # a capability of a user namespace
        (True, 0, b"nfs4", "unknown"),  # root_squash
        (True, 0, b"fuse.sshfs", "unknown"),
        (True, -1, b"ext4", "unknown"),
    ],
)
def test_who_is_not_stopped_by_permissions(strong, user, kind, answer):
    tree = [bind(b"/a", mode=0o040700, uid=77, kind=kind)]
    m = model([tree, tree], [0, 1], strong=[True, strong], users=[0, user])
    assert shares(m, 1, 2, "W") == answer


@pytest.mark.parametrize(
    ("more", "access", "answer"),
    [
        ({"mode": 0o041777}, "W", "yes"),
        ({"mode": 0o040755}, "R", "yes"),
        ({"mode": 0o040755}, "W", "unknown"),
        ({"mode": 0o040707}, "W", "unknown"),  # it may be of the group
        ({"mode": 0o040776}, "R", "unknown"),  # cannot be searched
        ({"mode": 0o040777, "reach": 0}, "W", "unknown"),
        ({"mode": 0o040777, "reach": -1}, "W", "unknown"),
        ({"mode": 0o040777, "options": b"rw,idmapped rw"}, "W", "unknown"),
        ({"mode": 0o040700, "uid": 5}, "W", "yes"),
        ({"mode": 0o040077, "uid": 5}, "R", "unknown"),  # the owner's bits come first
        ({"mode": 0o140666}, "W", "yes"),  # a socket
        ({"mode": 0o040777, "read_only": 1}, "W", "no"),
    ],
)
def test_what_the_mode_of_a_mount_grants(more, access, answer):
    trees = [[bind(b"/a")], [bind(b"/a", **more)]]
    m = model(trees, [0, 1], strong=[True, False], fsuid=[0, 5])
    assert shares(m, 1, 2, access) == answer


def test_a_tree_that_was_not_read_may_be_any_if_it_is_asked_for():
    trees, status = [[bind(b"/a")], []], [Status.READ, Status.DENIED]
    m = model(trees, [0, 1, 0, -1], status=status)
    assert shares(m, 1, 3) == "yes"
    assert [shares(m, 1, y) for y in (2, 4)] == ["unknown", "unknown"]
    assert shares(m, 2, 4) == "unknown"
    assert not m.shared_resources(1, types="MOUNT").unknown.pids.size


parts = st.lists(st.sampled_from("ab"), max_size=3).map(lambda p: "/" + "/".join(p))


def walk(tree, path):
    """What stands at a path, by mounting one after another: (dev, path in it)."""
    at = [(m["point"].decode(), m) for m in tree]
    dev, root, base = None, "", ""
    for point, m in at:  # a mount that comes later stands over those before it
        if path == point or path.startswith(point.rstrip("/") + "/"):
            dev, root, base = m["dev"], m["root"].decode(), point
    return dev, (root.rstrip("/") + path[len(base.rstrip("/")) :]).rstrip("/") or "/"


def ways(tree, target):
    """Paths at which a tree could show something of the subtree *target* of the disk."""
    for m in tree:
        root, point = m["root"].decode(), m["point"].decode().rstrip("/")
        if target == root or target.startswith(root.rstrip("/") + "/"):
            yield (point + "/" + target[len(root.rstrip("/")) :].lstrip("/")).rstrip("/") or "/"
        yield point or "/"


@given(st.lists(st.tuples(parts, parts, st.sampled_from([DISK, OTHER])), max_size=4), parts)
def test_against_walking_every_path(later, target):
    # Mounted in order: the parent is what stands at the mount point at that moment.
    tree = [ROOT]
    for i, (point, root, dev) in enumerate(later):
        below = [
            m
            for m in tree
            if point == m["point"].decode()
            or point.startswith(m["point"].decode().rstrip("/") + "/")
        ]
        tree.append(mount(i + 2, below[-1]["id"], dev, root.encode(), point.encode()))
    m = model([tree, [bind(target.encode())]], [0, 1])
    # Some path of the first leads into the other's subtree.
    reached = any(
        dev == DISK and (at == target or at.startswith(target.rstrip("/") + "/"))
        for dev, at in (walk(tree, p) for p in ways(tree, target))
    )
    found = shares(m, 1, 2)
    assert found == shares(m, 2, 1) == ("yes" if reached else "no")
