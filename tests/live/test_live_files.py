"""Open files against a second source: os.fstat and kcmp in children that open them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from children import child

import osmosis
from osmosis.relations.files import link_text
from osmosis.schema import OpenKind

pytestmark = pytest.mark.live(root=True)

KIND = {name: number for number, name in enumerate(OpenKind.NAMES)}
FILES = {"files", "mounts", "namespaces"}


def capture(*children):
    return osmosis.capture([c.pid for c in children], sources=FILES)


def opened(snap, pid, number):
    """(access, row of table open) of one descriptor."""
    row = int(np.searchsorted(snap["process_pid"], pid))
    at = np.flatnonzero((snap["fd_process"] == row) & (snap["fd_fd"] == number))
    assert len(at) == 1, f"descriptor {number} of {pid} stands {len(at)} times"
    return int(snap["fd_access"][at[0]]), int(snap["fd_open"][at[0]])


def eventfd_id(pid, number):
    text = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
    return int(text.split("eventfd-id:")[1].split()[0])


def device(number):
    return os.major(number) << 32 | os.minor(number)


def test_every_descriptor_is_what_fstat_says(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with child(f"""
path = {str(path)!r}
kept = [
    os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY), os.open(path, os.O_RDWR),
    os.open(path, os.O_PATH), os.open("/", os.O_RDONLY), os.open("/dev/zero", os.O_RDWR),
    os.memfd_create("name"), *os.pipe(), os.open("/proc/self/ns/uts", os.O_RDONLY),
    socket.socket().detach(), os.eventfd(0),
]
unlinked = os.open(path + "2", os.O_RDWR | os.O_CREAT)
os.unlink(path + "2")
import fcntl
def told(fd):
    s = os.fstat(fd)
    mode = fcntl.fcntl(fd, fcntl.F_GETFL)
    access = 0 if mode & os.O_PATH else {{0: 4, 1: 2, 2: 6}}[mode & 3]
    return [fd, s.st_dev, s.st_ino, s.st_rdev, access]
""") as c:
        snap = capture(c)
        told = c.ask(
            "[told(int(n)) for n in os.listdir('/proc/self/fd')"
            " if os.path.exists('/proc/self/fd/' + n) or int(n) == unlinked]"
        )
        kinds = c.ask("kept")
        names = {n: os.readlink(f"/proc/{c.pid}/fd/{n}") for n, *_ in told if n in kinds}
    for number, dev, inode, rdev, access in told:
        got = opened(snap, c.pid, number)
        assert got[0] == access, number
        row = got[1]
        if snap["open_kind"][row] in (KIND["eventfd"], KIND["pidfd"]):
            continue
        assert (snap["open_dev"][row], snap["open_inode"][row], snap["open_rdev"][row]) == (
            device(dev),
            inode,
            device(rdev),
        ), number
    wanted = ["file"] * 4 + ["directory", "char", "file", "pipe", "pipe", "namespace", "socket"]
    found = [OpenKind.NAMES[snap["open_kind"][opened(snap, c.pid, n)[1]]] for n in kinds]
    assert found == [*wanted, "eventfd"]
    assert names[kinds[6]] == "/memfd:name (deleted)"
    # The first link of an inode: other paths may lead to it, but none does here.
    assert {n: link_text(snap, opened(snap, c.pid, n)[1]) for n in names} == names


def test_writer_and_reader_of_a_pipe():
    with child("a, b = os.pipe()\npid = fork(lambda: os.close(a))\nos.close(b)") as c:
        other = c.ask("pid")
        model = osmosis.capture([c.pid, other], sources=FILES).model()
    reads, writes = model.pd(c.pid), model.pd(other)
    assert model.shares(reads, writes, types="PIPE", access="W").state is True
    assert model.shares(writes, reads, types="PIPE", access="R").state is True
    assert other in model.tcb(c.pid, verbs=[], types="PIPE").pids
    assert c.pid not in model.tcb(other, verbs=[], types={"PIPE"}).pids


def test_a_named_fifo_is_one_pipe(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with child(f"fd = os.open({str(path)!r}, os.O_RDWR)") as a, child() as b:
        b.do(f"fd = os.open({str(path)!r}, os.O_RDONLY)")
        model = capture(a, b).model()
    assert model.shares(b.pid, a.pid, types="PIPE", access="RW").state is True
    assert model.shares(a.pid, b.pid, types="PIPE", access="W").state is False


def test_eventfds_are_told_apart_by_kcmp():
    code = """
one = os.eventfd(0)
two = os.eventfd(0)
dup = os.dup(one)
pid = fork(lambda: os.close(two))
three = os.eventfd(0)
"""
    with child(code) as c, child("own = os.eventfd(0)") as d:
        kid = c.ask("pid")
        one, two, dup, three = (c.ask(n) for n in ("one", "two", "dup", "three"))
        snap = osmosis.capture([c.pid, kid, d.pid], sources=FILES)
        ids = {n: eventfd_id(c.pid, n) for n in (one, two, dup, three)}
        stranger = opened(snap, d.pid, d.ask("own"))[1]
    rows = {n: opened(snap, c.pid, n)[1] for n in ids}
    for a in ids:
        for b in ids:
            assert (rows[a] == rows[b]) == (ids[a] == ids[b])
    assert opened(snap, kid, one)[1] == rows[one]
    assert stranger not in rows.values()
    assert snap["open_sure"][list(rows.values())].all()
    model = snap.model()
    assert model.shares(c.pid, kid, types="EVENTFD", access="RW").state is True
    assert model.shares(c.pid, d.pid, types="EVENTFD").state is False


def test_null_makes_no_neighbours_and_a_file_does(tmp_path):
    path = tmp_path / "log"
    path.touch()
    null = "n = os.open('/dev/null', os.O_RDWR)"
    with child(null) as a, child(null) as b:
        a.do(f"f = os.open({str(path)!r}, os.O_WRONLY)")
        b.do(f"f = os.open({str(path)!r}, os.O_RDONLY)")
        model = osmosis.capture([a.pid, b.pid]).model()
        found = model.common_resources(a.pid, b.pid, types="FILE", access="W")
    assert model.shares(a.pid, b.pid, types="DEVICE").state is False
    # What else they share is what this test run gave both of them.
    own = {f"_{path.stat().st_ino}"} & {name[name.rindex("_") :] for name in found.ids}
    assert not own
    back = model.common_resources(b.pid, a.pid, types="FILE", access="W")
    assert f"_{path.stat().st_ino}" in {name[name.rindex("_") :] for name in back.ids}


def test_mapped_and_open_are_one_file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(4096))
    maps = f"""
import mmap
with open({str(path)!r}, 'rb') as f:
    m = mmap.mmap(f.fileno(), 4096, mmap.MAP_SHARED, mmap.PROT_READ)
"""
    with child(maps) as a, child(f"f = os.open({str(path)!r}, os.O_WRONLY)") as b:
        model = osmosis.capture([a.pid, b.pid]).model()
        found = model.common_resources(a.pid, b.pid, types="FILE", access="W")
    assert [name for name in found.ids if name.endswith(f"_{path.stat().st_ino}")]


def test_both_ends_of_a_pty_are_one_device():
    code = """
import pty
m, s = pty.openpty()
name = os.ttyname(s)
pid = fork(lambda: os.close(m))
os.close(s)
"""
    with child(code) as c:
        kid = c.ask("pid")
        snap = osmosis.capture([c.pid, kid], sources=FILES)
        model = snap.model()
        index = int(c.ask("name").rpartition("/")[2])
    found = model.common_resources(c.pid, kid, types="DEVICE", access="RW")
    assert [name.rpartition("_")[2] for name in found.ids] == [str(index)]


def test_a_process_that_is_closed_to_us_is_unknown_and_never_no():
    with (
        child("a, b = os.pipe()\nos.setresuid(4242, 4242, 4242)\nprctl(4, 0)") as c,
        child(
            "import osmosis, osmosis.model, osmosis.relations.build\nos.setresuid(4243, 4243, 4243)"
        ) as reader,
    ):
        reader.do(f"snap = osmosis.capture([{c.pid}, os.getpid()], sources={{'files'}})")
        reader.do("model = snap.model()")
        state = reader.ask(f"model.shares(os.getpid(), {c.pid}, types='PIPE').state")
        gaps = reader.ask("[[r.pid, r.source, r.status] for r in snap.coverage.gaps]")
    assert state is None
    assert [c.pid, "files", "denied"] in gaps


def test_what_was_not_asked_for_is_unknown():
    with child() as a, child() as b:
        model = osmosis.capture([a.pid, b.pid], sources={"namespaces"}).model()
    assert model.shares(a.pid, b.pid, types="PIPE").state is None


def test_each_open_of_a_clone_device_is_its_own(need):
    need(Path("/dev/fuse").exists(), "no /dev/fuse")
    with child("f = os.open('/dev/fuse', os.O_RDWR)\npid = fork()") as a, child() as b:
        b.do("f = os.open('/dev/fuse', os.O_RDWR)")
        kid = a.ask("pid")
        model = osmosis.capture([a.pid, b.pid, kid]).model()
    assert model.shares(a.pid, kid, types="DEVICE", access="RW").state is True
    assert model.shares(a.pid, b.pid, types="DEVICE").state is False


def test_files_that_an_io_uring_holds_are_unknown(need):
    code = """
def ring(register):
    params = ctypes.create_string_buffer(120)
    fd = libc.syscall(425, 4, params)
    if fd < 0:
        return None
    if register:
        r, w = os.pipe()
        ok(libc.syscall(427, fd, 2, (ctypes.c_int * 1)(w), 1))
        os.close(w)
        return fd
    return fd
"""
    with child(code) as plain, child(code) as full, child() as other:
        need(plain.ask("ring(False)") is not None, "io_uring is not to be had here")
        full.do("ring(True)")
        text = "".join(path.read_text() for path in Path(f"/proc/{full.pid}/fdinfo").iterdir())
        need("UserFiles:" in text, "this kernel does not list registered files")
        snap = osmosis.capture([plain.pid, full.pid, other.pid])
        model = snap.model()
    gaps = {(r.pid, r.status) for r in snap.coverage.gaps if r.source == "files"}
    assert gaps == {(full.pid, "partial")}
    assert model.shares(plain.pid, full.pid, types="PIPE", access="W").state is None
    assert [r.status for r in snap.coverage if r.pid == full.pid and r.source == "files"] == [
        "partial"
    ]


SEND = """
import array
mine, its = socket.socketpair(socket.AF_UNIX, {kind})
def send(fd, data=b"x"):
    rights = array.array("i", [fd])
    mine.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(fd)
def receive():
    _, rights, _, _ = its.recvmsg(1, 64)
    fd = array.array("i", rights[0][2])[0]
    return os.read(fd, 99).decode()
"""


@pytest.mark.parametrize(
    ("kind", "data", "sources"),
    [
        ("socket.SOCK_STREAM", b"x", None),
        ("socket.SOCK_STREAM", b"x", FILES),  # without sock_diag every socket is asked
        ("socket.SOCK_DGRAM", b"", None),  # no byte waits, and a descriptor does
        ("socket.SOCK_SEQPACKET", b"", None),
    ],
)
def test_a_memfd_in_flight_is_nobodys_and_its_receivers_may_hold_anything(kind, data, sources):
    with (
        child(SEND.format(kind=kind) + "kid = fork(lambda: mine.close())\nits.close()") as sender,
        child() as reader,
        child() as stranger,
    ):
        # The reader holds a memfd, which it has from the sender; then the sender lets go of it.
        sender.do("f = os.memfd_create('sent')\nos.write(f, b'hello')\nos.lseek(f, 0, 0)")
        kid = sender.ask("kid")
        link = f"/proc/{sender.pid}/fd/{sender.ask('f')}"
        reader.do(f"m = os.open({link!r}, os.O_RDWR)\ne = os.eventfd(0)")
        pids = [sender.pid, kid, reader.pid, stranger.pid]
        before = osmosis.capture(pids, sources=sources).model()
        sender.do(f"send(f, {data!r})")
        snap = osmosis.capture(pids, sources=sources)
        model = snap.model()
        tables = [Path(f"/proc/{pid}/fd") for pid in (sender.pid, kid)]
        links = [os.readlink(fd) for table in tables for fd in table.iterdir()]
    assert not any("memfd:sent" in link for link in links)  # in nobody's table
    assert before.shares(reader.pid, sender.pid, types="FILE", access="W").state is True
    assert before.shares(reader.pid, kid, types="FILE", access="W").state is not None
    assert model.shares(reader.pid, kid, types="FILE", access="W").state is not False
    assert model.shares(reader.pid, kid, types="EVENTFD", access="W").state is None
    # Those at whose sockets nothing waits are told as before.
    assert model.shares(reader.pid, sender.pid, types="EVENTFD").state is False
    assert model.shares(reader.pid, stranger.pid, types="EVENTFD").state is False
    gaps = [
        (r.pid, r.status)
        for r in snap.coverage.gaps
        if r.source == "files" and "flight" in r.reason
    ]
    assert gaps == [(kid, "partial")]


def test_a_listener_has_what_was_sent_to_a_connection_that_waits(tmp_path):
    path = str(tmp_path / "socket")
    with (
        child(f"s = socket.socket(socket.AF_UNIX)\ns.bind({path!r})\ns.listen()") as server,
        child(SEND.format(kind="socket.SOCK_STREAM")) as client,
    ):
        client.do(f"mine = socket.socket(socket.AF_UNIX)\nmine.connect({path!r})")
        quiet = osmosis.capture([server.pid, client.pid])
        client.do("send(os.memfd_create('sent'))")
        snap = osmosis.capture([server.pid, client.pid])

        def in_flight(s):
            return [r.pid for r in s.coverage.gaps if "flight" in r.reason and r.pid == server.pid]

        assert in_flight(quiet) == []
        assert in_flight(snap) == [server.pid]


def test_the_seals_of_a_memfd_say_who_may_still_write():
    code = """
import fcntl
def make(seals):
    f = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(f, b"0123456789")
    fcntl.fcntl(f, fcntl.F_ADD_SEALS, seals)
    return f
def attempt(work):
    try:
        work()
    except PermissionError:
        return False
    return True
def changes(f):
    return [attempt(lambda: os.pwrite(f, b"!", 0)), attempt(lambda: os.ftruncate(f, 5))]
"""
    # F_SEAL_SHRINK 2, GROW 4, WRITE 8, FUTURE_WRITE 16, and what the owner can then change.
    cases = {0: True, 8: True, 8 | 2 | 4: False, 16 | 2 | 4: False, 2 | 4: True}
    for seals, wanted in cases.items():
        with child(code) as writer, child() as reader:
            f = writer.ask(f"make({seals})")
            reader.do(f"m = os.open('/proc/{writer.pid}/fd/{f}', os.O_RDONLY)")
            snap = osmosis.capture([writer.pid, reader.pid])
            inode = os.stat(f"/proc/{writer.pid}/fd/{f}").st_ino
            changed = writer.ask(f"changes({f})")
        assert any(changed) == wanted, seals
        found = snap.model().common_resources(reader.pid, writer.pid, types="FILE", access="W")
        assert any(name.endswith(f"_{inode}") for name in found.ids) == wanted, seals
        row = int(np.flatnonzero(snap["open_inode"] == inode)[0])
        assert snap["open_seals"][row] == seals


def test_a_mapping_from_before_a_seal_on_future_writes_still_writes():
    code = """
import fcntl, mmap
f = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
os.ftruncate(f, 4096)
m = mmap.mmap(f, 4096)
fcntl.fcntl(f, fcntl.F_ADD_SEALS, 16 | 2 | 4)
"""
    with child(code) as writer, child() as reader:
        f = writer.ask("f")
        reader.do(f"m = os.open('/proc/{writer.pid}/fd/{f}', os.O_RDONLY)")
        inode = os.stat(f"/proc/{writer.pid}/fd/{f}").st_ino
        model = osmosis.capture([writer.pid, reader.pid]).model()
        found = model.common_resources(reader.pid, writer.pid, types="FILE", access="W")
        writer.do("m[0] = 33")
        assert reader.ask("os.pread(m, 1, 0)[0]") == 33
    assert any(name.endswith(f"_{inode}") for name in found.ids)


LINK = "opened['link']"


def test_descriptor_tables_that_threads_have_for_themselves(tmp_path):
    own, shared = tmp_path / "own", tmp_path / "shared"
    own.touch()
    shared.touch()
    code = f"""
opened = {{}}
def work():
    unshare(0x400)  # CLONE_FILES
    opened["own"] = os.open({str(own)!r}, os.O_RDWR)
    opened["link"] = os.open("/proc/self/ns/uts", os.O_RDONLY)
    opened["tid"] = raw("gettid")
tid = in_thread(work)
in_thread(lambda: None)  # shares the process's table
same = os.open({str(shared)!r}, os.O_RDONLY)  # gets the number that the thread's file has
"""
    with child(code) as a, child(f"m = os.open({str(own)!r}, os.O_RDONLY)") as b:
        tid, number = a.ask("tid"), a.ask("opened['own']")
        assert not os.path.lexists(f"/proc/{a.pid}/fd/{a.ask(LINK)}")
        assert os.stat(f"/proc/{a.pid}/task/{tid}/fd/{number}").st_ino == own.stat().st_ino
        assert a.ask("same") == number
        snap = osmosis.capture([a.pid, b.pid])
        model = snap.model()
        found = model.common_resources(b.pid, a.pid, types="FILE", access="W")
    assert any(name.endswith(f"_{own.stat().st_ino}") for name in found.ids)
    assert [r.pid for r in snap.coverage.gaps if r.source == "files"] == []
    row = int(np.searchsorted(snap["process_pid"], a.pid))
    at = (snap["fd_process"] == row) & (snap["fd_fd"] == number)
    inodes = dict(
        zip(
            snap["fd_tid"][at].tolist(),
            snap["open_inode"][snap["fd_open"][at]].tolist(),
            strict=True,
        )
    )
    assert inodes == {0: shared.stat().st_ino, tid: own.stat().st_ino}


def test_a_registered_file_in_any_slot_of_an_io_uring(need):
    code = """
params = ctypes.create_string_buffer(120)
ring = libc.syscall(425, 4, params)
r, w = os.pipe()
"""
    with child(code) as c, child() as other:
        need(c.ask("ring") >= 0, "io_uring is not to be had here")
        # The first slot is empty: -1.
        c.do("ok(libc.syscall(427, ring, 2, (ctypes.c_int * 3)(-1, w, -1), 3))\nos.close(w)")
        text = Path(f"/proc/{c.pid}/fdinfo/{c.ask('ring')}").read_text()
        need("UserFiles:" in text, "this kernel does not list registered files")
        model = osmosis.capture([c.pid, other.pid]).model()
    assert model.shares(other.pid, c.pid, types="PIPE", access="W").state is None


def test_execve_while_we_read_leaves_no_descriptor_of_the_old_program(monkeypatch):
    from children import exec_again

    from osmosis.capture.files import FileReader

    with child("r, w = os.pipe()\nos.set_inheritable(r, True)") as c:
        kept, lost = c.ask("r"), c.ask("w")
        real = FileReader.read

        def read(self):
            real(self)
            exec_again(c)

        monkeypatch.setattr(FileReader, "read", read)
        snap = osmosis.capture([c.pid])
        assert sorted(map(int, os.listdir(f"/proc/{c.pid}/fd"))) == sorted(snap["fd_fd"].tolist())
    assert kept in snap["fd_fd"]
    assert lost not in snap["fd_fd"]


@pytest.fixture
def disk(tmp_path, need):
    """A loop device with a filesystem on it; its path."""
    tools = [shutil.which(tool) for tool in ("losetup", "mkfs.ext4")]
    need(all(tools), "needs losetup and mkfs.ext4")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run([tools[1], "-q", image], check=True, capture_output=True)
    line = [tools[0], "--find", "--show", image]
    made = subprocess.run(line, check=False, capture_output=True, text=True)
    need(made.returncode == 0, f"no loop device: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run([tools[0], "--detach", made.stdout.strip()], check=True)


def test_a_file_its_filesystem_and_the_block_device_below(tmp_path, disk):
    at = tmp_path / "mounted"
    at.mkdir()
    code = f"""
unshare(CLONE_NEWNS)
mount(None, '/', None, 0x44000)  # MS_REC | MS_PRIVATE
mount({disk!r}, {str(at)!r}, 'ext4')
w = os.open({str(at / "file")!r}, os.O_CREAT | os.O_WRONLY)
os.write(w, b'a word of 20 letters')
os.fsync(w)
os.close(w)
f = os.open({str(at / "file")!r}, os.O_RDONLY)
"""
    with child(code) as a, child(f"d = os.open({disk!r}, os.O_RDWR)") as raw, child() as other:
        for c in (a, raw, other):
            c.do("os.close(2)")  # the file that this test run writes to
        snap = osmosis.capture([a.pid, raw.pid, other.pid])
        model = snap.model()
        # The kernel's word: the file's device is the loop device, and there is what was written.
        number = os.stat(disk).st_rdev
        assert a.ask("os.fstat(f).st_dev") == number
        assert raw.ask("b'a word of 20 letters' in os.pread(d, 4 << 20, 0)")
        inode = a.ask("os.fstat(f).st_ino")
    label = f"{os.major(number)}_{os.minor(number)}"
    held = model.bfs(a.pid, types="FILE", kinds={"RESOURCE"}).ids
    [file] = [name for name in held if name.endswith(f"{os.minor(number):x}_{inode}")]
    below = model.bfs(a.pid, edges={"HOLD", "SUBSET", "MAP"}, types="DEVICE", kinds={"SPACE"}).ids
    assert f"DEVICE_SPACE_block_{label}" in below
    # Past the filesystem: possible, since what is cached of the file is not read again.
    assert model.shares(a.pid, raw.pid, types="FILE", access="W").state is None
    assert model.shares(a.pid, other.pid, types="FILE", access="W").state is False, file


def test_nobody_to_read():
    snap = osmosis.capture([2**22 + 1])
    assert not len(snap["fd_fd"])
    assert not len(snap["mount_id"])
    assert len(snap.model().pds) == 1
