"""IPC of several namespaces, against what the processes see of each other's writes."""

from pathlib import Path

import pytest
from children import child

import osmosis
from osmosis.capture import ipc
from osmosis.schema import NAMESPACES, FileKind, SysvKind

pytestmark = pytest.mark.live

# What a child needs to make, attach, write and read segments.
SHM = """
libc.shmat.restype = ctypes.c_void_p
IPC_CREAT, IPC_RMID = 0o1000, 0
def make(key=0, size=8192, mode=0o600):
    global shmid
    shmid = ok(libc.shmget(key, size, IPC_CREAT | mode))
    return shmid
def attach(number):
    global at
    at = libc.shmat(number, None, 0)
    assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
def put(byte):
    ctypes.memset(at, byte, 1)
def peek():
    return ctypes.string_at(at, 1)[0]
def remove(number):
    ok(libc.shmctl(number, IPC_RMID, None))
"""
SOURCES = ["memory", "namespaces", "ipc"]


def segment_of(snap, pid):
    """Row of table object of the one segment that a process maps."""
    row = snap["process_pid"].tolist().index(pid)
    mm = int(snap["process_mm"][row])
    first, last = snap["mm_vma_indptr"][mm : mm + 2]
    found = {
        int(o)
        for o in snap["vma_object"][first:last].tolist()
        if o >= 0 and snap["object_kind"][o] == FileKind.SYSV
    }
    assert len(found) == 1
    return found.pop()


def inode_of(pid):
    return Path(f"/proc/{pid}/ns/ipc").stat().st_ino


def home(snap, obj):
    row = int(snap["object_ipc"][obj])
    return int(snap["namespace_inode"][row]) if row >= 0 else None


def capture(*children):
    return osmosis.capture([c.pid for c in children], sources=SOURCES)


def test_equal_numbers_in_two_namespaces_are_two_segments():
    with child(SHM) as a, child(SHM) as b:
        for c in (a, b):
            c.do("unshare(CLONE_NEWIPC); make(); attach(shmid); put(0)")
        assert a.ask("shmid") == b.ask("shmid")  # each namespace counts by itself
        a.do("put(65)")
        assert b.ask("peek()") == 0  # the kernel's word
        snap = capture(a, b)

        assert segment_of(snap, a.pid) != segment_of(snap, b.pid)
        assert home(snap, segment_of(snap, a.pid)) == inode_of(a.pid)
        model = snap.model()
        assert not model.shares(a.pid, b.pid, types="SHM")
        assert b.pid not in model.tcb(a.pid, types="SHM").parts["shared"].pids


def test_one_who_left_the_namespace_still_maps_its_segment():
    with child(SHM) as stays, child(SHM) as leaves, child(SHM) as other:
        stays.do("unshare(CLONE_NEWIPC); make(); attach(shmid)")
        leaves.do(
            f"fd = os.open('/proc/{stays.pid}/ns/ipc', os.O_RDONLY); ok(libc.setns(fd, 0))\n"
            f"attach({stays.ask('shmid')})\n"
            "unshare(CLONE_NEWIPC)\n"
            "make()"  # the new namespace has a segment of the same number, key and size
        )
        other.do(
            f"fd = os.open('/proc/{leaves.pid}/ns/ipc', os.O_RDONLY); ok(libc.setns(fd, 0))\n"
            f"attach({leaves.ask('shmid')}); put(0)"
        )
        assert stays.ask("shmid") == leaves.ask("shmid")
        stays.do("put(66)")
        assert (leaves.ask("peek()"), other.ask("peek()")) == (66, 0)
        snap = capture(stays, leaves, other)

        old, new = segment_of(snap, stays.pid), segment_of(snap, other.pid)
        assert segment_of(snap, leaves.pid) == old != new
        model = snap.model()
        assert model.shares(stays.pid, leaves.pid, types="SHM", access="W")
        assert not model.shares(leaves.pid, other.pid, types="SHM")
        # The namespaces are as they are, whatever is mapped.
        assert model.shares(stays.pid, leaves.pid)
        assert leaves.pid not in model.shared_spaces(stays.pid, types="IPC").pids
        assert other.pid in model.shared_spaces(leaves.pid, types="IPC").pids


def test_without_file_handles_what_cannot_be_decided_is_unknown(monkeypatch):
    monkeypatch.setattr(ipc, "_handle", lambda *_: None)
    with child(SHM) as a, child(SHM) as b:
        a.do("unshare(CLONE_NEWIPC); make(); attach(shmid)")
        b.do("unshare(CLONE_NEWIPC); make(); attach(shmid)")
        snap = capture(a, b)
        model = snap.model()

        assert snap["object_sure"][segment_of(snap, a.pid)] == 0
        assert any(row.source == "ipc" and row.status == "partial" for row in snap.coverage)
        # Private segments of one number: that they are one is not certain, and is not denied.
        answer = model.shares(a.pid, b.pid, types="SHM")
        assert answer.state is None
        assert b.pid in model.shared_resources(a.pid, types="SHM").unknown.pids


def test_every_kind_is_listed_by_its_own_namespace():
    make = """
unshare(CLONE_NEWIPC)
make(0x1234, 12288, 0o640)
sem = ok(libc.semget(0x77, 3, IPC_CREAT | 0o600))
msg = ok(libc.msgget(0x78, IPC_CREAT | 0o606))
"""
    before = Path("/proc/sysvipc/shm").read_text()
    with child(SHM) as a:
        a.do(make)
        snap = capture(a)
        lines = {n: a.ask(f"open('/proc/sysvipc/{n}').read()") for n in ("shm", "sem", "msg")}

        assert Path("/proc/sysvipc/shm").read_text() == before  # we are where we were
        rows = list(
            zip(
                snap["sysv_kind"].tolist(),
                snap["sysv_id"].tolist(),
                snap["sysv_key"].tolist(),
                snap["sysv_mode"].tolist(),
                snap["sysv_size"].tolist(),
                strict=True,
            )
        )
        ids = {"shm": a.ask("shmid"), "sem": a.ask("sem"), "msg": a.ask("msg")}
        assert rows == [
            (SysvKind.SHM, ids["shm"], 0x1234, 0o640, 12288),
            (SysvKind.SEM, ids["sem"], 0x77, 0o600, 3),
            (SysvKind.MSG, ids["msg"], 0x78, 0o606, 0),
        ]
        assert all(len(text.splitlines()) == 2 for text in lines.values())
        inodes = snap["namespace_inode"][snap["sysv_ipc"]].tolist()
        assert set(inodes) == {inode_of(a.pid)}
        assert set(snap["namespace_kind"][snap["sysv_ipc"]].tolist()) == {NAMESPACES.index("ipc")}


def test_a_cloned_child_keeps_its_parents_segment():
    with child(SHM) as a:
        a.do("unshare(CLONE_NEWIPC); make(); attach(shmid); put(1)")
        pid = a.ask("fork(lambda: unshare(CLONE_NEWIPC))")
        snap = osmosis.capture([a.pid, pid], sources=SOURCES)

        assert inode_of(pid) != inode_of(a.pid)
        assert segment_of(snap, pid) == segment_of(snap, a.pid)
        assert snap["object_sure"][segment_of(snap, pid)] == 1
        assert snap.model().shares(a.pid, pid, types="SHM", access="W")


QUEUE = """
class Attr(ctypes.Structure):
    _fields_ = [(n, ctypes.c_long) for n in ("flags", "most", "size", "now")] + [
        ("rest", ctypes.c_long * 4)
    ]
def queue(name, flags):
    attr = Attr(0, 4, 8)
    return ok(libc.mq_open(name.encode(), flags | os.O_CREAT, 0o600, ctypes.byref(attr)))
def send(fd):
    ok(libc.mq_send(fd, b"x", 1, 0))
def receive(fd):
    return ok(libc.mq_receive(fd, ctypes.create_string_buffer(8), 8, None))
"""


def test_posix_queues_are_shared_by_who_has_them_open():
    name = f"/osmosis-{Path('/proc/self').resolve().name}"
    with child(QUEUE) as writer, child(QUEUE) as reader, child(QUEUE) as apart:
        w = writer.ask(f"queue({name!r}, os.O_WRONLY)")
        r = reader.ask(f"queue({name!r}, os.O_RDONLY)")
        apart.do("unshare(CLONE_NEWIPC)")
        apart.ask(f"queue({name!r}, os.O_RDWR)")
        try:
            writer.do(f"send({w})")
            assert reader.ask(f"receive({r})") == 1  # the kernel's word
            model = osmosis.capture(
                [c.pid for c in (writer, reader, apart)], sources=["namespaces", "files", "ipc"]
            ).model()
        finally:
            writer.do(f"libc.mq_unlink({name.encode()!r})")

        assert reader.pid in model.shared_resources(writer.pid, types="MQUEUE").pids
        # Who reads what the writer writes; and the reader alters nothing.
        assert model.shares(reader.pid, writer.pid, types="MQUEUE", access="W")
        assert not model.shares(writer.pid, reader.pid, types="MQUEUE", access="W")
        assert not model.shares(writer.pid, apart.pid, types="MQUEUE")
        found = model.common_resources(writer.pid, reader.pid, types="MQUEUE").nodes
        assert [model.data.notes.get(int(n), {})["path"] for n in found] == [name]
