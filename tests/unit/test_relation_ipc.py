"""System V IPC: the tables' text, which segment a mapping is of, and who could use what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_snapshots import Plain

from osmosis.capture.ipc import Object, Segment, parse_sysvipc, settle
from osmosis.graph.graph import POTENTIAL, Kind
from osmosis.schema import NO_ID, FileKind, OpenKind, Status, SysvKind

R, W = 4, 2
SHM_TEXT = """\
key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime rss swap
0 5 1600 8192 8047 8047 2 1 2 3 4 1795452350 0 1795452350 0 0
-559038737 32771 640 100 1 1 0 1000 1000 1000 1000 0 0 1795452350 0 0
"""
MSG_TEXT = """\
key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime
120 0 606 17 2 1 1 0 0 0 0 0 0 1795452350
"""
SEM_TEXT = """\
key semid perms nsems uid gid cuid cgid otime ctime
119 0 600 3 0 0 0 0 0 1795452350
"""


def test_what_the_kernel_prints():
    assert parse_sysvipc("shm", SHM_TEXT) == [
        Object(SysvKind.SHM, 5, 0, 0o600, 1, 2, 3, 4, 8192, 2),
        Object(SysvKind.SHM, 32771, -559038737 & 0xFFFF_FFFF, 0o640, *[1000] * 4, 100, 0),
    ]
    assert parse_sysvipc("msg", MSG_TEXT) == [
        Object(SysvKind.MSG, 0, 120, 0o606, 0, 0, 0, 0, 17, 0)
    ]
    assert parse_sysvipc("sem", SEM_TEXT) == [Object(SysvKind.SEM, 0, 119, 0o600, 0, 0, 0, 0, 3, 0)]
    assert parse_sysvipc("sem", SEM_TEXT.splitlines()[0]) == []
    with pytest.raises(ValueError, match="zip"):
        parse_sysvipc("sem", SEM_TEXT + "1 2 3\n")


# -- settle


def segment(vma, ipc, handle=None, number=0, key=0, end=4096):
    return Segment(vma, vma, ipc, number, key, end, handle)


def shm(attached, number=0, key=0, size=4096):
    return Object(SysvKind.SHM, number, key, 0o600, 0, 0, 0, 0, size, attached)


def told(found):
    return sorted((ipc, sure, [s.vma for s in mine]) for ipc, sure, mine in found)


def test_handles_tell_segments_apart_whatever_the_namespace():
    tables = {0: [shm(2)], 1: [shm(1)]}
    mappings = [segment(0, 0, b"a"), segment(1, 1, b"a"), segment(2, 1, b"b")]
    found = settle(mappings, tables, complete=True)
    assert told(found) == [(0, True, [0, 1]), (1, True, [2])]


def test_a_segment_whose_namespace_is_gone_gets_no_other_ones_name():
    # Who left maps one of number 0; the namespace that it is in now has its own number 0.
    tables = {1: [shm(3)]}
    found = settle([segment(0, 1, b"a")], tables, complete=True)
    assert told(found) == [(-1, True, [0])]


def test_two_segments_never_have_one_name():
    tables = {1: [shm(1)]}
    found = settle([segment(0, 1, b"a"), segment(1, 1, b"b")], tables, complete=True)
    assert told(found) == [(-1, True, [0]), (-1, True, [1])]


@pytest.mark.parametrize(
    ("tables", "complete", "sure"),
    [
        ({0: [shm(2)]}, True, True),
        ({0: [shm(3)]}, True, False),  # somebody who has it left the namespace
        ({0: [shm(1)]}, True, False),  # one of them has another namespace's
        ({0: [shm(2)]}, False, False),  # who was not seen may have it
        ({0: [shm(2)], 1: [shm(2)]}, True, False),  # it could be that one's
        ({0: [shm(2)], 1: [shm(2, key=7)]}, True, True),
        ({0: [shm(2)], 1: [shm(2, size=1)]}, True, True),  # smaller than a page: still fits
        ({0: [shm(2, number=3)]}, True, False),
        ({}, True, False),
    ],
)
def test_without_handles_the_tables_decide_or_nothing_does(tables, complete, sure):
    if any(o.size == 1 for objects in tables.values() for o in objects):
        sure = False  # a segment of one byte is mapped as a page
    found = settle([segment(0, 0), segment(1, 0)], tables, complete=complete)
    assert told(found) == [(0, sure, [0, 1])]


def test_unequal_sizes_are_no_candidates():
    tables = {0: [shm(1, size=8192)], 1: [shm(1, size=4096)]}
    found = settle([segment(0, 0, end=8192)], tables, complete=True)
    assert told(found) == [(0, True, [0])]


# -- relations


def mapped(rows, sure=(1, 1)):
    """Two processes, each maps one of two segments."""
    plain = Plain(2).namespaces("ipc", [0, 1])
    plain.set("process_mm", [0, 1]).rows("mm", {"process": 0}, {"process": 1})
    plain.rows(
        "vma",
        *[
            {"start": 4096, "end": 8192, "prot": R | W | 8, "object": o, "region": i}
            for i, o in enumerate(rows)
        ],
    )
    plain.columns["mm_vma_indptr"] = np.array([0, 1, 2])
    plain.rows(
        "object",
        *[
            {"kind": FileKind.SYSV, "inode": 0, "ipc": i, "sure": s, "path": "/SYSV00000000"}
            for i, s in enumerate(sure)
        ],
    )
    return plain


@pytest.mark.parametrize(
    ("rows", "sure", "want"),
    [
        ((0, 0), (1, 1), True),
        ((0, 1), (1, 1), False),
        ((0, 1), (0, 1), None),  # the first may be the second
        ((0, 1), (1, 0), None),
        ((0, 1), (0, 0), None),
        ((0, 0), (0, 1), None),
    ],
)
def test_segments_that_are_not_sure_may_be_each_other(rows, sure, want):
    model = mapped(rows, sure).snapshot().model()
    assert model.shares(10, 11, types="SHM").state is want
    assert model.shares(11, 10, types="SHM", access="W").state is want


def permitted(euid, gids, capable, mode, owner, group):
    """ipcperms(), for reading and writing, in plain words."""
    if capable:
        return {"R", "W"}
    if euid == owner:
        bits = mode >> 6
    elif group in gids:
        bits = mode >> 3
    else:
        bits = mode
    return {letter for letter, bit in (("R", 4), ("W", 2)) if bits & bit}


def uses(graph, pd, node):
    """(certain, possible) of each path of two edges from a PD to an object."""
    edges = graph.edges
    held = np.flatnonzero((edges.src == pd) & (graph.kind[edges.dst] == Kind.RESOURCE))
    return [
        (int(edges.perm[a] & edges.perm[b]), int(edges.maybe[a] & edges.maybe[b]))
        for a in held.tolist()
        for b in np.flatnonzero((edges.src == edges.dst[a]) & (edges.dst == node)).tolist()
    ]


@settings(max_examples=80)
@given(
    st.sampled_from([0, 1, 2]),
    st.sampled_from([0, 1, 2]),
    st.lists(st.sampled_from([1, 2]), max_size=2),
    st.booleans(),
    st.integers(0, 0o777),
    st.sampled_from([SysvKind.SHM, SysvKind.SEM, SysvKind.MSG]),
)
def test_who_could_use_an_object(euid, gid, more, capable, mode, kind):
    plain = Plain(2).namespaces("ipc", [0, 0])
    plain.set("process_euid", [euid, 1]).set("process_fsgid", [gid, 1])
    plain.set("process_cap_eff", [capable << 15, 0])
    plain.rows("group", *[{"gid": g} for g in more])
    plain.columns["process_group_indptr"] = np.array([0, len(more), len(more)])
    user = len(plain.columns["namespace_kind"])
    plain.namespaces("user", [0, 0])
    plain.columns["namespace_user"][0] = user
    plain.rows(
        "sysv", {"ipc": 0, "kind": kind, "mode": mode, "uid": 1, "cuid": 1, "gid": 2, "cgid": 2}
    )
    plain.rows("ipcspace", {"ipc": 0, "status": Status.READ})
    graph = plain.snapshot().model().data
    names = {"SHM": "SHM_{}_0", "SEM": "SEM_{}_0", "MQUEUE": "MQUEUE_sysv_{}_0"}
    name = list(names.values())[kind].format(plain.columns["namespace_inode"][0])
    node = graph.names.find(name)
    paths = uses(graph, 1, node)
    want = permitted(euid, {gid, *more}, capable, mode, 1, 2)
    assert {c for c, bit in (("R", R), ("W", W)) if any(sure & bit for sure, _ in paths)} == want
    assert all(sure == may for sure, may in paths)


def test_who_could_is_not_who_did():
    plain = Plain(2).namespaces("ipc", [0, 0])
    plain.rows("sysv", {"ipc": 0, "kind": SysvKind.SEM, "mode": 0o666})
    plain.rows("ipcspace", {"ipc": 0, "status": Status.READ})
    model = plain.snapshot().model()
    assert 11 not in model.shared_resources(10, types="SEM").pids
    assert 11 not in model.shared_resources(10, types="SEM").unknown.pids
    assert 11 in model.shared_resources(10, types="SEM", access="W", potential=True).pids
    assert 11 in model.shared_spaces(10, types="IPC").pids


def test_namespaces_that_were_not_read():
    plain = Plain(3).namespaces("ipc", [0, 0, 1])
    plain.rows("ipcspace", {"ipc": 0, "status": Status.DENIED}, {"ipc": 1, "status": Status.READ})
    model = plain.snapshot().model()
    answer = model.shared_resources(10, types="SEM", potential=True)
    assert set(answer.unknown.pids) - {0} == {11}


def test_who_may_be_in_any_namespace_may_use_objects_of_all():
    plain = Plain(4).namespaces("ipc", [0, -1, -1, 1])
    plain.rows("ipcspace", {"ipc": 0, "status": Status.READ}, {"ipc": 1, "status": Status.DENIED})
    plain.rows("sysv", {"ipc": 0, "kind": SysvKind.SEM, "mode": 0o666})
    model = plain.snapshot().model()
    found = model.shared_resources(11, types="SEM", access="W", potential=True)
    assert set(found.pids) == set()
    assert set(found.unknown.pids) - {0} == {10, 12, 13}
    assert not len(model.shared_resources(11, types="SEM").unknown.pids)


def test_an_id_that_is_not_known_may_be_any():
    plain = Plain(1).namespaces("ipc", [0]).set("process_euid", [NO_ID])
    plain.rows("sysv", {"ipc": 0, "kind": SysvKind.SEM, "mode": 0o600})
    plain.rows("ipcspace", {"ipc": 0, "status": Status.READ})
    graph = plain.snapshot().model().data
    node = graph.names.find(f"SEM_{plain.columns['namespace_inode'][0]}_0")
    assert [(sure, may & (R | W)) for sure, may in uses(graph, 1, node)] == [(0, R | W)]


def test_as_many_edges_as_classes_and_not_as_pairs():
    plain = Plain(60).namespaces("ipc", [0] * 60).namespaces("user", [0] * 60)
    plain.columns["namespace_user"][0] = 1  # nobody has a capability over it
    plain.set("process_euid", [i % 3 for i in range(60)])
    mode = {"ipc": 0, "kind": SysvKind.SEM, "mode": 0o600}
    objects = [{**mode, "uid": i % 2, "cuid": i % 2} for i in range(50)]
    plain.rows("sysv", *objects).rows("ipcspace", {"ipc": 0, "status": Status.READ})
    model = plain.snapshot().model()
    assert int((model.data.edges.flags & POTENTIAL != 0).sum()) == 40 + 50  # HOLD, MAP
    found = model.shared_resources(10, types="SEM", access="W", potential=True)
    assert sorted(found.pids) == [0, *(10 + i for i in range(1, 60) if i % 3 == 0)]
    third = model.shared_resources(12, types="SEM", potential=True)
    assert not len(third.pids) + len(third.unknown.pids)


def test_a_thread_acts_with_its_own_rights_in_its_own_namespace():
    plain = Plain(3).namespaces("ipc", [0, 1, 1])
    plain.set("process_euid", [7, 8, 9])
    plain.rows("thread", {"process": 0, "tid": 99, "euid": 8, "ns_ipc": 1})
    plain.columns["thread_group_indptr"] = np.array([0, 0])
    plain.rows("sysv", {"ipc": 1, "kind": SysvKind.SEM, "mode": 0o600, "uid": 8, "cuid": 8})
    plain.rows("ipcspace", *[{"ipc": i, "status": Status.READ} for i in range(2)])
    model = plain.snapshot().model()
    found = model.shared_resources(11, types="SEM", access="W", potential=True)
    assert found.pids.tolist() == [0, 10]


def test_open_queues():
    plain = Plain(2)
    plain.rows("open", {"kind": OpenKind.MQUEUE, "dev": 20, "inode": 7, "sure": 1, "name": "/q"})
    plain.rows(
        "fd",
        {"process": 0, "fd": 3, "access": W, "open": 0},
        {"process": 1, "fd": 3, "access": R, "open": 0},
    )
    plain.rows("fdtable", *[{"process": p, "status": Status.READ} for p in range(2)])
    model = plain.snapshot().model()
    assert model.shares(11, 10, types="MQUEUE", access="W").state is True
    assert model.shares(10, 11, types="MQUEUE", access="W").state is False
    assert list(model.bfs(10, types="MQUEUE").ids) == ["MQUEUE_0:14_7"]
