"""Descriptors and mappings as holds of files, pipes, devices and anonymous inodes."""

import numpy as np
import pytest

from osmosis.graph.graph import ALL, ANY, POTENTIAL, Edge, Kind
from osmosis.model import Model
from osmosis.relations.build import build
from osmosis.relations.files import link_text
from osmosis.schema import COLUMNS, FileKind, FrameKind, OpenKind, Status
from osmosis.snapshot import Snapshot, StringPool, empty_columns

R, W, X = 4, 2, 1
FILE, DIRECTORY, PIPE, SOCKET = 0, 1, 2, 3
CHAR, BLOCK = OpenKind.CHAR, OpenKind.BLOCK
DISK, OTHER_DISK, ANONYMOUS = 8 << 32 | 1, 8 << 32 | 2, 40
MNT = 2


def open_file(kind, inode, dev=DISK, **more):
    default = {"rdev": 0, "number": -1, "birth": 0, "super": dev, "name": b"/f", "sure": 1}
    default["seals"] = 0
    return {"kind": kind, "dev": dev, "inode": inode, **default, **more}


def snapshot(
    n, opens=(), fds=(), *, objects=(), vmas=(), classes=(), mounts=(), status=None, tty=(), **host
):
    """n processes; opens: of ``open_file``; fds: (process, access, open).

    objects: (kind, dev, inode, rdev, sure); vmas: (process, prot, object), each process with an
    mm of its own, by rising process; classes: (FrameKind, vmas); mounts: (dev, kind, options).
    """
    pool = StringPool()
    columns = {k: v.tolist() for k, v in empty_columns().items()}
    for name, column in COLUMNS.items():
        rows = {"process": n, "mm": n, "vma": len(vmas), "object": len(objects)}.get(column.table)
        rows = len(mounts) if column.table == "mount" else rows
        if rows is not None:
            columns[name] = (
                [0] * (rows + 1) if column.indptr else [-1 if column.refers else 0] * rows
            )
    for f in ("kind", "dev", "inode", "rdev", "number", "birth", "super", "sure", "seals"):
        columns[f"open_{f}"] = [o[f] for o in opens]
    columns |= {
        "process_pid": range(1, n + 1),
        "process_mm": range(n),
        "mm_process": range(n),
        "mm_status": [Status.READ] * n,
        "mm_vma_indptr": np.searchsorted([v[0] for v in vmas], np.arange(n + 1)),
        "vma_start": np.arange(len(vmas)) * 4096,
        "vma_end": np.arange(1, len(vmas) + 1) * 4096,
        "vma_region": range(len(vmas)),
        "vma_prot": [v[1] for v in vmas],
        "vma_object": [v[2] for v in vmas],
        "open_name": [pool.add(o["name"]) for o in opens],
        "fdtable_process": range(n),
        "fdtable_status": status or [Status.READ] * n,
        "fd_process": [f[0] for f in fds],
        "fd_access": [f[1] for f in fds],
        "fd_open": [f[2] for f in fds],
        "fd_fd": range(len(fds)),
        "fd_tid": [0] * len(fds),
        "class_kind": [c[0] for c in classes],
        "class_pages": [1] * len(classes),
        "class_run_indptr": np.concatenate([[0], np.cumsum([len(c[1]) for c in classes])]),
        "class_frame_indptr": [0] * (len(classes) + 1),
        "run_first": [v for c in classes for v in c[1]],
        "run_last": [v for c in classes for v in c[1]],
        "mount_dev": [m[0] for m in mounts],
        "mount_kind": [pool.add(m[1]) for m in mounts],
        "mount_options": [pool.add(m[2]) for m in mounts],
        "mount_point": [pool.add(b"/") for _ in mounts],
        "mount_root": [pool.add(b"/") for _ in mounts],
        "mount_source": [pool.add(b"none") for _ in mounts],
        "mount_tree": [0 for _ in mounts],
        "tree_process": [0] * bool(mounts),
        "tree_status": [Status.READ] * bool(mounts),
    }
    for i, f in enumerate(("kind", "dev", "inode", "rdev", "sure")):
        columns[f"object_{f}"] = [o[i] for o in objects]
    for i, number in enumerate(tty):
        columns["process_tty"][i] = number
    made = {k: np.array(v, COLUMNS[k].dtype) for k, v in (columns | pool.columns()).items()}
    return Snapshot(made, {"page_size": 4096, **host})


def model(*args, **more):
    return Model(build(snapshot(*args, **more)))


def shares(m, x, y, kind, access="ANY"):
    return m.shares(x, y, types=kind, access=access).state


def test_a_descriptor_is_held_with_its_mode():
    m = model(4, [open_file(FILE, 5)], [(0, R, 0), (1, W, 0), (2, R, 0), (2, W, 0), (3, 0, 0)])
    assert shares(m, 1, 2, "FILE", "W") is True
    assert shares(m, 2, 1, "FILE", "W") is False
    assert shares(m, 1, 3, "FILE", "RW") is True  # two descriptors, one holder
    assert shares(m, 1, 4, "FILE") is True  # O_PATH holds it, without a letter
    assert [shares(m, 1, 4, "FILE", letter) for letter in "RWX"] == [False] * 3


@pytest.mark.parametrize("name", [b"pipe:", b"pipe:[5]"])
def test_a_pipe_is_told_by_its_link_with_the_number_kept_or_not(name):
    snap = snapshot(2, [open_file(PIPE, 5, name=name)], [(0, R, 0), (1, W, 0)])
    assert link_text(snap, 0) == "pipe:[5]"
    data = build(snap)
    assert data.notes.get(data.names.find("PIPE_8:1_5"), {}) == {"path": "pipe:[5]"}


def test_a_link_that_is_not_known_has_no_text():
    snap = snapshot(1, [open_file(PIPE, 5, name=None), open_file(FILE, 6)], [(0, R, 0)])
    assert [link_text(snap, i) for i in (0, 1)] == ["", "/f"]


def test_seals_of_a_memfd_take_writing_away():
    write, future, size = 8, 16, 2 | 4
    for seals, wanted in ((0, True), (write, True), (write | size, False), (future | size, False)):
        m = model(2, [open_file(FILE, 5, seals=seals)], [(0, R, 0), (1, R | W, 0)])
        assert shares(m, 1, 2, "FILE", "W") is wanted, seals
        assert shares(m, 1, 2, "FILE", "R") is True
    # What was not told may be any.
    m = model(2, [open_file(FILE, 5, seals=-1)], [(0, R, 0), (1, R | W, 0)])
    assert shares(m, 1, 2, "FILE", "W") is None
    assert shares(m, 1, 2, "FILE", "R") is True


@pytest.mark.parametrize(
    ("same", "other"),
    [
        ({}, {"dev": OTHER_DISK}),
        ({}, {"inode": 6}),
        ({"birth": 77}, {"birth": 78}),  # the number was reused
    ],
)
def test_files_are_told_by_device_number_and_birth(same, other):
    opens = [open_file(FILE, 5, **same), {**open_file(FILE, 5, **same), **other}]
    m = model(3, opens, [(0, R, 0), (1, W, 0), (2, W, 1)])
    assert shares(m, 1, 2, "FILE") is True
    assert shares(m, 1, 3, "FILE") is False
    names = list(m.graph.vs["name"]) if "name" in m.graph.vs.attributes() else []
    assert len(names) == len(set(names))


def test_directories_are_of_a_type_of_their_own():
    m = model(2, [open_file(DIRECTORY, 2)], [(0, R, 0), (1, R, 0)])
    assert shares(m, 1, 2, "DIRECTORY", "R") is True
    assert shares(m, 1, 2, "DIRECTORY", "W") is False
    assert shares(m, 1, 2, "FILE") is False


def test_a_pipe_passes_from_its_writer_to_its_reader():
    m = model(3, [open_file(PIPE, 9), open_file(PIPE, 10)], [(0, R, 0), (1, W, 0), (2, W, 1)])
    assert shares(m, 1, 2, "PIPE", "W") is True
    assert shares(m, 2, 1, "PIPE", "W") is False
    assert shares(m, 2, 1, "PIPE", "R") is True
    assert shares(m, 1, 3, "PIPE") is False


def test_mapped_and_open_files_are_one():
    objects = [(FileKind.FILE, DISK, 5, 0, 1)]
    m = model(2, [open_file(FILE, 5, birth=99)], [(1, W, 0)], objects=objects, vmas=[(0, R, 0)])
    assert shares(m, 1, 2, "FILE", "W") is True
    assert list(m.common_resources(1, 2, types="FILE").ids) == ["FILE_8:1_5"]


def test_a_mapping_of_a_number_that_was_reused_is_of_neither_for_certain():
    opens = [open_file(FILE, 5, birth=1), open_file(FILE, 5, birth=2)]
    objects = [(FileKind.FILE, DISK, 5, 0, 1)]
    m = model(3, opens, [(1, W, 0), (2, W, 1)], objects=objects, vmas=[(0, R, 0)])
    assert shares(m, 1, 2, "FILE") is None
    assert shares(m, 1, 3, "FILE") is None
    assert shares(m, 2, 3, "FILE") is False


def test_where_a_subvolume_has_another_device_a_mapping_may_be_any_of_its_number():
    btrfs, subvolume, other = 30, 31, 32
    opens = [
        open_file(FILE, 5, subvolume, super=btrfs),
        open_file(FILE, 5, other, super=btrfs),
        open_file(FILE, 6, subvolume, super=btrfs),
    ]
    objects = [(FileKind.FILE, btrfs, 5, 0, 0)]
    fds = [(0, W, 0), (1, R, 0), (2, W, 1), (3, W, 2)]
    m = model(
        5, opens, fds, objects=objects, vmas=[(4, R, 0)], mounts=[(btrfs, b"btrfs", b"rw rw")]
    )
    assert shares(m, 2, 1, "FILE", "W") is True
    assert shares(m, 2, 3, "FILE") is False
    assert shares(m, 5, 1, "FILE", "W") is None
    assert shares(m, 5, 3, "FILE", "W") is None
    assert shares(m, 5, 4, "FILE") is False


def test_two_mapped_names_with_one_frame_are_one_file_for_reading():
    objects = [(FileKind.FILE, 30, 5, 0, 1), (FileKind.FILE, 31, 8, 0, 1), (0, 32, 9, 0, 1)]
    vmas = [(0, R, 0), (1, R, 1), (2, R, 2)]
    m = model(
        4,
        [open_file(FILE, 8, 31)],
        [(3, W, 0)],
        objects=objects,
        vmas=vmas,
        classes=[(FrameKind.FILE, [0, 1]), (FrameKind.FILE, [2])],
    )
    assert shares(m, 1, 2, "FILE", "R") is True
    assert shares(m, 1, 3, "FILE") is False
    assert shares(m, 1, 4, "FILE", "W") is True  # held as the file itself, with W
    back = m.shares(2, 1, types="FILE", access="W")
    assert back.state is False


@pytest.mark.parametrize("minor", [3, 5, 7, 8, 9])
def test_devices_without_state_are_not_held(minor):
    m = model(2, [open_file(CHAR, 4, rdev=1 << 32 | minor)], [(0, R | W, 0), (1, R | W, 0)])
    assert shares(m, 1, 2, "DEVICE") is False


def test_devices_by_number_whatever_their_nodes():
    opens = [
        open_file(CHAR, 4, rdev=10 << 32 | 1),
        open_file(CHAR, 9, ANONYMOUS, rdev=10 << 32 | 1),
        open_file(BLOCK, 7, rdev=10 << 32 | 1),
    ]
    m = model(3, opens, [(0, R, 0), (1, W, 1), (2, W, 2)])
    assert shares(m, 1, 2, "DEVICE", "W") is True
    assert shares(m, 1, 3, "DEVICE") is False


def test_the_console_may_be_any_of_the_terminals():
    rdevs = (5 << 32 | 1, 4 << 32 | 64, 10 << 32 | 1)
    opens = [open_file(CHAR, i, rdev=rdev) for i, rdev in enumerate(rdevs)]
    m = model(3, opens, [(0, R | W, 0), (1, R | W, 1), (2, R | W, 2)])
    assert shares(m, 1, 2, "DEVICE", "W") is None
    assert shares(m, 2, 1, "DEVICE", "W") is None
    assert shares(m, 1, 3, "DEVICE") is False


def test_clone_devices_are_what_was_opened():
    kvm = 10 << 32 | 232
    opens = [open_file(CHAR, 4, rdev=kvm, number=0), open_file(CHAR, 4, rdev=kvm, number=1)]
    m = model(3, opens, [(0, R | W, 0), (1, R | W, 0), (2, R | W, 1)])
    assert shares(m, 1, 2, "DEVICE", "W") is True
    assert shares(m, 1, 3, "DEVICE") is False


def test_ptys_by_devpts_and_index():
    pty = OpenKind.PTY
    opens = [open_file(pty, 3, 20), open_file(pty, 3, 21), open_file(pty, 4, 20)]
    m = model(4, opens, [(0, R | W, 0), (1, R | W, 0), (2, R | W, 1), (3, R | W, 2)])
    assert shares(m, 1, 2, "DEVICE", "W") is True
    assert [shares(m, 1, y, "DEVICE") for y in (3, 4)] == [False, False]


def test_the_controlling_terminal_is_probably_that_of_dev_tty():
    opens = [open_file(OpenKind.PTY, 3, 20), open_file(CHAR, 4, rdev=5 << 32)]
    fds = [(0, R | W, 0), (1, R | W, 1), (2, R | W, 1)]
    m = model(4, opens, fds, tty=[0, 136 << 8 | 3, 136 << 8 | 9])
    assert shares(m, 1, 2, "DEVICE") is None
    assert shares(m, 1, 3, "DEVICE") is None  # a terminal that nobody has open by itself
    assert shares(m, 1, 4, "DEVICE") is False


@pytest.mark.parametrize("kind", ["EVENTFD", "EPOLL", "TIMERFD", "SIGNALFD", "IO_URING", "ANON"])
def test_anonymous_inodes_are_told_by_the_open_file(kind):
    number = OpenKind.NAMES.index(kind.lower())
    opens = [open_file(number, 1, 15, number=k) for k in (0, 1)]
    opens.append(open_file(number, 1, 15, sure=0))
    m = model(5, opens, [(0, 6, 0), (1, 6, 0), (2, 6, 1), (3, 6, 2)])
    assert shares(m, 1, 2, kind, "W") is True
    assert shares(m, 1, 3, kind) is False
    assert shares(m, 1, 4, kind, "W") is None
    assert shares(m, 1, 5, kind) is False


def test_whoever_holds_an_inotify_may_change_it():
    m = model(2, [open_file(OpenKind.INOTIFY, 1, 15, number=0)], [(0, R, 0), (1, R, 0)])
    assert shares(m, 1, 2, "INOTIFY", "W") is True


@pytest.mark.parametrize(
    ("opened", "kind", "state"),
    [
        (open_file(OpenKind.PTY, 3), "DEVICE", True),
        (open_file(CHAR, 3, rdev=4 << 32 | 64), "DEVICE", True),  # ttyS0
        (open_file(CHAR, 3, rdev=13 << 32 | 64), "DEVICE", None),  # input: its driver decides
        (open_file(BLOCK, 3, rdev=8 << 32), "DEVICE", False),
        (open_file(OpenKind.ANON, 0, name=b"anon_inode:[userfaultfd]", number=1), "ANON", True),
        (open_file(OpenKind.ANON, 0, name=b"anon_inode:bpf_link", number=1), "ANON", True),
        (open_file(OpenKind.ANON, 0, name=b"anon_inode:bpf-map", number=1), "ANON", False),
        (open_file(OpenKind.ANON, 0, name=b"anon_inode:other", number=1), "ANON", None),
        (open_file(FILE, 3), "FILE", False),
    ],
)
def test_who_may_read_writes_by_calls_that_ask_for_no_mode(opened, kind, state):
    m = model(3, [opened], [(0, R, 0), (1, R, 0), (2, 0, 0)])
    assert shares(m, 1, 2, kind, "W") is state
    assert shares(m, 1, 3, kind, "W") is False  # O_PATH


def test_a_table_that_was_not_read_is_unknown():
    m = model(3, [open_file(PIPE, 9)], [(0, R, 0)], status=[0, Status.DENIED, 0])
    assert shares(m, 1, 2, "PIPE", "W") is None
    assert shares(m, 1, 3, "PIPE", "W") is False
    assert shares(m, 3, 2, "PIPE") is False  # it holds none, and that is known


def test_what_was_not_asked_for_is_unknown():
    snap = snapshot(2, status=None, sources=["memory", "processes"])
    made = {"fdtable_process": [], "fdtable_status": []}
    m = Model(build(snap.replace(**{k: np.array(v) for k, v in made.items()})))
    for kind in ("FILE", "PIPE", "DEVICE", "EVENTFD", "DIRECTORY"):
        assert shares(m, 1, 2, kind) is None, kind


def test_a_file_that_a_filesystem_refused_to_show_is_unknown():
    m = model(
        3,
        [open_file(FILE, 0, 50, sure=0), open_file(FILE, 5)],
        [(0, W, 0), (1, W, 1), (0, R, 1)],
    )
    assert shares(m, 2, 1, "FILE", "W") is None
    assert shares(m, 1, 2, "FILE", "W") is True
    assert shares(m, 2, 3, "FILE") is False


@pytest.mark.parametrize(
    ("name", "inode", "births", "access", "state"),
    [
        (b"/up/d/f", 5, (9, 9), "W", True),  # made in the upper layer
        (b"/up/d/f", 7, (9, 9), "W", True),  # copied up: it keeps the number it had below
        (b"/up/else", 7, (9, 9), "W", None),  # an old name, or another file of that moment
        (b"/low/d/f", 5, (9, 9), "R", True),
        (b"/low/d/f", 5, (9, 9), "W", False),
        (b"/low/d/f", 5, (9, 8), "R", False),  # it was copied up: no more the same
        (b"/elsewhere/d/f", 5, (9, 9), "W", None),
    ],
)
def test_overlays_and_their_layers(name, inode, births, access, state):
    opens = [
        open_file(FILE, 5, 40, name=b"/d/f", birth=births[0]),
        open_file(FILE, inode, DISK, name=name, birth=births[1]),
    ]
    options = b"rw rw,lowerdir=/lowest:/low,upperdir=/up,workdir=/work"
    mounts = [(40, b"overlay", options), (DISK, b"ext4", b"rw rw")]
    m = model(2, opens, [(0, R | W, 0), (1, R, 1)], mounts=mounts)
    assert m.shares(2, 1, types="FILE", access=access).state is state


def test_files_are_in_filesystems_and_those_on_devices():
    opens = [open_file(FILE, 5), open_file(DIRECTORY, 2), open_file(BLOCK, 3, 6, rdev=DISK)]
    g = build(snapshot(2, opens, [(0, R, 0), (0, R, 1), (1, W, 2)]))
    names = {name: i for i, name in enumerate(g.names)}
    edges = {
        (int(a), int(b), int(k))
        for a, b, k in zip(g.edges.src, g.edges.dst, g.edges.kind, strict=True)
    }
    space, disk = names["FILE_SPACE_8:1"], names["DEVICE_SPACE_block_8_1"]
    assert (names["FILE_8:1_5"], space, Edge.SUBSET) in edges
    assert (names["DIRECTORY_8:1_2"], space, Edge.SUBSET) in edges
    assert (space, disk, Edge.MAP) in edges
    assert (names["DEVICE_block_8_1"], disk, Edge.SUBSET) in edges
    # Writing to the device below a file may change the file.
    assert Model(g).shares(1, 2, types="FILE", access="W").state is None


def test_a_namespace_descriptor_is_no_membership():
    opens = [open_file(OpenKind.NAMESPACE, 4026531999, 4, name=b"net:[4026531999]")]
    g = build(snapshot(2, opens, [(0, R, 0), (1, R, 0)]))
    node = g.names.find("NET_SPACE_4026531999")
    held = (g.edges.dst == node) & (g.edges.kind == Edge.HOLD) & (g.edges.src > 0)
    assert g.kind[node] == Kind.SPACE
    assert (g.edges.flags[held] == POTENTIAL).all()
    assert held.sum() == 2
    assert not Model(g).shared_spaces(1, types="NET").pids.size


def test_pidfds_and_sockets_give_no_resource_here():
    opens = [open_file(OpenKind.PIDFD, 0, 0, number=2), open_file(SOCKET, 8, 9)]
    g = build(snapshot(2, opens, [(0, 6, 0), (1, 6, 0)]))
    held = (g.edges.kind == Edge.HOLD) & (g.edges.src > 0) & (g.kind[g.edges.dst] == Kind.PD)
    assert not held.any()


def test_masks_are_within_the_letters():
    opens = [open_file(FILE, i) for i in range(4)]
    g = build(snapshot(2, opens, [(0, a, i) for i, a in enumerate((0, R, W, R | W))]))
    held = np.flatnonzero((g.edges.kind == Edge.HOLD) & (g.edges.src == 1))
    files = [i for i in held if g.names[int(g.edges.dst[i])].startswith("FILE_8")]
    assert sorted(g.edges.perm[files].tolist()) == sorted([ANY, ANY | R, ANY | W, ANY | R | W])
    assert not (g.edges.perm > ALL).any()
