"""What has no name on disk, against kcmp: anonymous inodes, clone devices and terminals.

All anonymous inodes of a kernel have one inode number, and every open of a clone device has the
number of its node. Whether two descriptors are one open file is what kcmp(2) says, and we ask it.
"""

from __future__ import annotations

import ctypes
import os
import platform
from itertools import combinations

import pytest
from children import child

import osmosis

pytestmark = pytest.mark.live(root=True)

SOURCES = {"files", "mounts", "namespaces", "memory"}
LIBC = ctypes.CDLL(None, use_errno=True)
# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
KCMP = 312 if platform.machine() == "x86_64" else 272

MAKE = """
import fcntl, select
NUMBERS = {"x86_64": (298, 323, 321), "generic": (241, 282, 280)}
perf, uffd, bpf = NUMBERS.get(os.uname().machine, NUMBERS["generic"])
def signalfd():
    return ok(libc.signalfd(-1, ctypes.create_string_buffer(128), 0))
def timerfd():
    return ok(libc.timerfd_create(1, 0))
def inotify():
    return ok(libc.inotify_init())
def fanotify():
    return ok(libc.fanotify_init(0x200, 0))  # FAN_CLASS_NOTIF | FAN_REPORT_FID
def eventfd():
    return os.eventfd(0)
def epoll():
    e = select.epoll()
    held.append(e)
    return e.fileno()
def userfaultfd():
    return ok(libc.syscall(uffd, 1))  # UFFD_USER_MODE_ONLY
def bpf_map():
    attr = (ctypes.c_uint32 * 32)(2, 4, 4, 1)  # BPF_MAP_TYPE_ARRAY, key, value, entries
    return ok(libc.syscall(bpf, 0, attr, ctypes.sizeof(attr)))
def kvm():
    return os.open("/dev/kvm", os.O_RDWR)
def vm():
    host = kvm()
    return fcntl.ioctl(host, 0xAE01, 0)  # KVM_CREATE_VM
def tun():
    return os.open("/dev/net/tun", os.O_RDWR)
def tap():
    fd = tun()
    import struct
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"osm-live%d", 0x1002))  # TUNSETIFF
    return fd
held = []
"""
TYPE_OF = {
    "eventfd": "EVENTFD",
    "epoll": "EPOLL",
    "timerfd": "TIMERFD",
    "signalfd": "SIGNALFD",
    "inotify": "INOTIFY",
    "fanotify": "FANOTIFY",
    "userfaultfd": "ANON",
    "bpf_map": "ANON",
    "vm": "ANON",
    "kvm": "DEVICE",
    "tun": "DEVICE",
    "tap": "DEVICE",
}


def same_open_file(one, other):
    """Whether two (pid, fd) are one open file description: KCMP_FILE."""
    (pid, fd), (other_pid, other_fd) = one, other
    result = LIBC.syscall(KCMP, pid, other_pid, 0, ctypes.c_ulong(fd), ctypes.c_ulong(other_fd))
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result == 0


@pytest.mark.parametrize("kind", TYPE_OF)
def test_one_open_file_is_shared_and_two_are_not(kind, need):
    with child(MAKE) as a, child(MAKE) as b:
        for c in (a, b):
            c.do(f"""
try:
    fd, why = {kind}(), ""
except OSError as exc:
    fd, why = -1, str(exc)
""")
            need(c.ask("fd") >= 0, f"{kind}: {c.ask('why')}")
        a.do("kid = fork(); other = fork(lambda: os.close(fd))")
        fd, kid, without = a.ask("fd"), a.ask("kid"), a.ask("other")
        held = {a.pid: fd, kid: fd, b.pid: b.ask("fd")}
        model = osmosis.capture([*held, without], sources=SOURCES).model()
        of = {pid: set(model.bfs(pid, types=TYPE_OF[kind]).ids) for pid in [*held, without]}
        for one, other in combinations(held.items(), 2):
            wanted = same_open_file(one, other)
            assert wanted == ({one[0], other[0]} == {a.pid, kid})
            pair = one[0], other[0]
            assert model.shares(*pair, types=TYPE_OF[kind], access="W").state is wanted, pair
            assert bool(of[one[0]] & of[other[0]]) == wanted, pair
    # Who closed it has no part in it.
    assert model.shares(without, kid, types=TYPE_OF[kind]).state is False


def test_who_reads_a_terminal_may_stop_who_writes_to_it():
    code = """
import pty, termios
m, s = pty.openpty()
name = os.ttyname(s)
"""
    with child(code) as a, child("import termios") as reader, child() as looker:
        name = a.ask("name")
        reader.do(f"f = os.open({name!r}, os.O_RDONLY | os.O_NOCTTY)")
        looker.do(f"f = os.open({name!r}, os.O_PATH)")
        model = osmosis.capture([a.pid, reader.pid, looker.pid], sources=SOURCES).model()
        # The kernel's word: a descriptor for reading turns off what the other end sees as echo.
        before = a.ask("termios.tcgetattr(s)[3]")
        reader.do("new = termios.tcgetattr(f); new[3] ^= termios.ECHO; new[0] |= termios.IXOFF")
        reader.do("termios.tcsetattr(f, termios.TCSANOW, new)")
        assert a.ask("termios.tcgetattr(s)[3]") != before
        reader.do("termios.tcflow(f, termios.TCOOFF)")
        a.do("os.set_blocking(s, False)")
        a.do("""
try:
    wrote = os.write(s, b"x")
except BlockingIOError:
    wrote = 0
""")
        assert a.ask("wrote") == 0
    assert model.shares(a.pid, reader.pid, types="DEVICE", access="W").state is True
    assert model.shares(reader.pid, a.pid, types="DEVICE", access="W").state is True
    assert model.shares(a.pid, looker.pid, types="DEVICE", access="W").state is False


@pytest.mark.parametrize("name", ["null", "zero", "full", "random", "urandom"])
def test_devices_without_state_make_no_neighbours(name):
    code = f"f = os.open('/dev/{name}', os.O_RDWR)"
    with child(code) as a, child(code) as b:
        same = [a.ask("os.fstat(f).st_rdev"), b.ask("os.fstat(f).st_rdev")]
        model = osmosis.capture([a.pid, b.pid], sources=SOURCES).model()
    assert same[0] == same[1]  # one and the same device
    assert model.shares(a.pid, b.pid, types="DEVICE").state is False
