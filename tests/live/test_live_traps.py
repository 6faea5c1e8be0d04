"""Traps that somebody fell into: small scenes of real processes where a plain rule is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from children import child

import osmosis

pytestmark = pytest.mark.live(root=True)


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("cgroup", "CLONE_NEWCGROUP"),
        ("ipc", "CLONE_NEWIPC"),
        ("mnt", "CLONE_NEWNS"),
        ("net", "CLONE_NEWNET"),
        ("uts", "CLONE_NEWUTS"),
    ],
)
def test_one_thread_in_a_namespace_is_a_member(kind, flag):
    """setns() moves the calling thread alone: the leader's links do not show where others are."""
    with child(f"unshare({flag})") as there, child() as a:
        a.do(f"""
link = os.open("/proc/{there.pid}/ns/{kind}", os.O_RDONLY)
def go():
    if {kind!r} == "mnt":
        unshare(CLONE_FS)
    ok(libc.setns(link, 0))
tid = in_thread(go)
os.close(link)
""")
        tid = a.ask("tid")
        links = [
            os.readlink(f"/proc/{at}/ns/{kind}") for at in (a.pid, f"{a.pid}/task/{tid}", there.pid)
        ]
        assert links[0] != links[1] == links[2]
        model = osmosis.capture([a.pid, there.pid]).model()
        assert there.pid in model.shared_spaces(a.pid, types={kind.upper()}).pids
        assert a.pid in model.shared_spaces(there.pid, types={kind.upper()}).pids
        if kind != "cgroup":  # that layer is about what is charged, not about the namespace
            assert model.isolation(a.pid, there.pid)[kind].state == "shared"


def test_a_thread_that_kept_the_old_root_is_not_separated(tmp_path):
    """unshare(CLONE_FS) in a thread, then chroot() in the others: two roots in one process."""
    with child("in_thread(lambda: unshare(CLONE_FS))") as half, child() as whole, child() as other:
        for one in (half, whole):
            one.do(f"os.chroot({str(tmp_path)!r}); os.chdir('/')")
        model = osmosis.capture([half.pid, whole.pid, other.pid]).model()
        assert model.isolation(whole.pid, other.pid)["rootfs"].state == "separated"
        assert model.isolation(half.pid, other.pid)["rootfs"].state == "shared"
        assert model.isolation(half.pid, whole.pid)["rootfs"].state == "shared"


def test_the_init_of_a_namespace_that_was_not_captured_may_end_it():
    """A capture of some: who may kill the init is not known, and killing it ends the others."""
    with child("unshare(CLONE_NEWPID)") as outside, child() as root:
        first, second = outside.ask("fork()"), outside.ask("fork()")
        model = osmosis.capture([root.pid, first, second]).model()
        assert model.may(root.pid, "end-namespace", second).state is True
        for sources in (None, {"namespaces"}, set()):
            model = osmosis.capture([root.pid, second], sources=sources).model()
            assert model.may(root.pid, "end-namespace", second).state is None


QUIET = "null = os.open(os.devnull, os.O_RDWR); os.dup2(null, 2)\n"  # stderr may be a file of all
OWN_TABLE = """
def go():
    global f
    unshare(0x400)  # CLONE_FILES
    f = os.open({path!r}, os.O_RDWR)
    os.pwrite(f, b"after!", 0)
tid = in_thread(go)
"""


def test_a_thread_with_descriptors_of_its_own(tmp_path):
    """The leader's table does not show what a thread has open: the thread's own one does."""
    path = tmp_path / "f"
    path.write_bytes(b"before")
    code = QUIET + OWN_TABLE.format(path=str(path))
    with child() as a, child(code) as b, child(QUIET) as c:
        a.do(f"g = os.open({str(path)!r}, os.O_RDONLY)")
        c.do("in_thread(lambda: None)")
        model = osmosis.capture([a.pid, b.pid, c.pid]).model()
        links = [
            [os.readlink(f"{at}/{fd}") for fd in os.listdir(at)]
            for at in (f"/proc/{b.pid}/fd", f"/proc/{b.pid}/task/{b.ask('tid')}/fd")
        ]
        assert str(path) not in links[0]
        assert str(path) in links[1]
        assert a.ask("os.pread(g, 6, 0).decode()") == "after!"
        assert model.shares(a.pid, b.pid, types={"FILE"}, access="W").state is True
        assert model.may(b.pid, "terminal", a.pid).state is False
        assert model.shares(a.pid, c.pid, types={"FILE"}, access="W").state is False  # as before


def test_a_pty_master_in_a_thread_with_descriptors_of_its_own():
    code = (
        "os.setsid()\nm, s = os.openpty()\nimport fcntl, termios\nfcntl.ioctl(s, termios.TIOCSCTTY)"
    )
    with child(code) as a:
        # The grandchild's leader closes the master after a thread took a copy of the table.
        holder = a.ask(
            "fork(lambda: (in_thread(lambda: unshare(0x400)), os.close(m), os.close(s)))"
        )
        plain = a.ask("fork(lambda: (os.close(m), os.close(s)))")
        model = osmosis.capture([a.pid, holder, plain]).model()
        masters = Path(f"/proc/{holder}").glob("task/*/fd/*")
        assert any(os.readlink(fd).endswith("ptmx") for fd in masters)
        assert not any(
            os.readlink(fd).endswith("ptmx") for fd in Path(f"/proc/{holder}/fd").iterdir()
        )
        assert model.may(a.pid, "terminal", plain).state is True
        assert model.may(holder, "terminal", a.pid).state is True
        assert model.may(plain, "terminal", a.pid).state is False


def test_memory_that_was_opened_before_the_rights_were_dropped():
    """/proc/pid/mem asks when it is opened; its holder writes whoever it has become."""
    with child("import ctypes\nfield = ctypes.create_string_buffer(b'before')") as a:
        kid = a.ask("fork()")  # no execve since: the memory is that of now
        where = a.ask("ctypes.addressof(field)")
        drop = "os.setresgid(1234, 1234, 1234); os.setresuid(1234, 1234, 1234)"
        with child() as b, child() as reader:
            b.do(f"m, old = (os.open(f'/proc/{{p}}/mem', os.O_RDWR) for p in ({kid}, {a.pid}))")
            reader.do(f"m = os.open('/proc/{kid}/mem', os.O_RDONLY)")
            gone = a.ask("fork()")
            b.do(f"third = os.open('/proc/{gone}/mem', os.O_RDWR)")
            a.do(f"os.kill({gone}, 9); os.waitpid({gone}, 0); kids.remove({gone})")
            for one in (b, reader):
                one.do(drop)
            model = osmosis.capture([a.pid, kid, b.pid, reader.pid]).model()
            assert model.may(b.pid, "supervise", kid).state is True
            assert model.may(b.pid, "trace-attach", kid).state is False
            assert model.may(b.pid, "supervise", a.pid).state is None  # it called execve: when?
            assert model.may(b.pid, "supervise", reader.pid).state is False
            assert model.may(reader.pid, "supervise", kid).state is False
            b.do(f"os.pwrite(m, b'after!', {where})")
            assert reader.ask(f"os.pread(m, 6, {where}).decode()") == "after!"


OVERLAY = """
unshare(CLONE_NEWNS)
mount("none", "/", None, 0x44000)
mount("tmpfs", {at!r}, "tmpfs")
os.chdir({at!r})
for name in "lower", "upper", "work", "merged":
    os.mkdir(name)
open("lower/f", "wb").write(b"x" * 8192)
dirs = "lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work"
mount("overlay", "merged", "overlay", 0, dirs)
def hold(path, flags):
    global fd
    fd = os.open(path, flags)
def drop():
    os.close(fd)
    ok(libc.munmap(ctypes.c_void_p(m), ctypes.c_size_t(8192)))
# Python's mmap keeps a descriptor besides.
hold("merged/f", os.O_RDONLY)
libc.mmap.restype = ctypes.c_void_p
m = libc.mmap(None, ctypes.c_size_t(8192), 1, 1, fd, ctypes.c_long(0))
ctypes.string_at(m, 1)
"""


def test_a_mapping_from_before_a_copy_up_is_of_another_file(tmp_path):
    """The copy has the inode number of the lower file: old mappings do not see what it gets."""
    with child(QUIET + OVERLAY.format(at=str(tmp_path))) as a:
        mapped = a.ask("fork(lambda: os.close(fd))")
        opened = a.ask("fork(lambda: (drop(), hold('merged/f', os.O_RDONLY)))")
        lower = a.ask("fork(lambda: (drop(), hold('lower/f', os.O_RDWR)))")
        ask = {"types": {"FILE"}, "access": "W"}
        model = osmosis.capture([mapped, opened, lower]).model()
        assert model.shares(mapped, lower, **ask).state is not False
        writer = a.ask("fork(lambda: (drop(), hold('merged/f', os.O_RDWR)))")
        a.do("w = os.open('merged/f', os.O_WRONLY); os.pwrite(w, b'new', 0); os.close(w)")
        assert a.ask("[ctypes.string_at(m, 3).decode(), os.pread(fd, 3, 0).decode()]") == [
            "xxx",
            "new",
        ]
        model = osmosis.capture([mapped, opened, writer, lower]).model()
        assert model.shares(mapped, writer, **ask).state is None
        assert model.shares(opened, writer, **ask).state is True
        assert model.shares(writer, lower, **ask).state is not True
        upper = a.ask("fork(lambda: (drop(), hold('upper/f', os.O_RDWR)))")
        model = osmosis.capture([mapped, opened, upper]).model()
        assert model.shares(mapped, upper, **ask).state is None
        assert model.shares(opened, upper, **ask).state is True
