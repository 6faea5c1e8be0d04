"""An ordinary user knows less than root, and nothing else: every certain answer agrees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest
from children import ROOTS, SRC, child

import osmosis
from osmosis.schema import NAMESPACES

pytestmark = pytest.mark.live(root=True)

USER, OTHER = 4242, 4343
# Modules first: who has dropped its rights may not read the interpreter's own files.
BECOME = """
import encodings.idna, mmap, select, stringprep
os.setgroups([])
os.setresgid({0}, {0}, {0})
os.setresuid({0}, {0}, {0})
"""
HOLD = """
import mmap, select
a = os.open({0!r} + "/a", os.O_RDWR)
b = os.open({0!r} + "/b", os.O_RDONLY)
mapped = mmap.mmap(a, 4096)
"""
MORE = """
kept = [os.eventfd(0), *os.pipe(), *socket.socketpair(), select.epoll(), os.memfd_create("x", 2)]
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
named = socket.socket(socket.AF_UNIX)
named.bind(b"\\0osmosis-" + str(os.getpid()).encode())
named.listen()
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(0, 4096, 0o1600)
libc.shmat(segment, None, 0)
libc.shmctl(segment, 0, None)
first, second = fork(), fork(lambda: os.close(kept[2]))
"""
CAPTURE = """
import os, sys
sys.path[:0] = {roots!r}
import ctypes, numpy.lib.format, pwd, tempfile, zipfile
import osmosis, osmosis.archive, osmosis.capture.host
os.setgroups([])
os.setresgid({user}, {user}, {user})
os.setresuid({user}, {user}, {user})
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
osmosis.capture({pids!r}).save({path!r})
"""
SPLIT = "CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS"


def programs(place):
    hold, user = HOLD.format(place), BECOME.format(USER)
    return {
        "user": user + "prctl(4, 1)\n" + hold + MORE,
        "user, closed": user + hold + MORE,  # not dumpable
        "user, from root": hold + MORE + user + "prctl(4, 1)",
        "root": hold + MORE,
        "another user": BECOME.format(OTHER) + hold + MORE,
        "user namespace": f"{user}prctl(4, 1)\nnew_user_namespace({SPLIT})\n{hold}kid = fork()",
        "user, thread": user + "prctl(4, 1)\n" + hold + "in_thread(lambda: unshare(0x400))",
        "root, apart": f"unshare({SPLIT})\n{hold}sem = libc.semget(5, 1, 0o1666)\nkid = fork()",
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Models of the same processes: as an ordinary user saw them, and root."""
    place = tmp_path_factory.mktemp("shared")
    for path in (place, place.parent, place.parent.parent):
        path.chmod(0o777)
    for name in "ab":
        (place / name).write_bytes(bytes(4096))
        (place / name).chmod(0o666)
    with ExitStack() as stack:
        children = [stack.enter_context(child(code)) for code in programs(str(place)).values()]
        pids = [pid for c in children for pid in (c.pid, *c.ask("kids"))]
        for pid in set(pids) - {c.pid for c in children}:
            # One that dropped its rights may not end those that it made before.
            stack.callback(os.kill, pid, signal.SIGKILL)
        path = str(place / "user.osm")
        code = CAPTURE.format(roots=[SRC, *ROOTS], user=USER, pids=pids, path=path)
        subprocess.run([sys.executable, "-ISs", "-c", code], check=True)
        models = osmosis.load(path).model(), osmosis.capture(pids).model()
    assert [m.pds.pid.tolist()[1:] for m in models] == [sorted(pids)] * 2
    return models


def check(what, user, root):
    """*user* and *root*: (certain, unknown) of the same shape."""
    (yes, unknown), (root_yes, root_unknown) = user, root
    assert not (yes & ~root_yes & ~root_unknown).any(), f"{what}: the user's yes is root's no"
    assert not (~yes & ~unknown & root_yes).any(), f"{what}: the user's no is root's yes"
    assert not (~yes & ~unknown & root_unknown).any(), f"{what}: the user's no is root's unknown"


def matrices(relation):
    return relation.toarray().astype(bool), relation.unknown.toarray().astype(bool)


def rows(model, answer):
    masks = np.zeros((2, len(model.pds)), bool)
    masks[0, answer.rows] = True
    masks[1, answer.unknown.rows] = True
    return masks


def test_the_user_knows_something_and_not_all(both):
    user, root = both
    counts = [int(m.sharing_matrix(access="W").unknown.nnz) for m in both]
    assert counts[0] > counts[1]
    assert user.sharing_matrix(types="PIPE").nnz > 0
    assert root.sharing_matrix(types="PIPE").nnz > user.sharing_matrix(types="PIPE").nnz


@pytest.mark.parametrize("access", ["ANY", "R", "W", "RW"])
def test_sharing(both, access):
    for kind in sorted(set(both[1].data.types) - {"VMR"}):
        answers = (matrices(m.sharing_matrix(types=kind, access=access)) for m in both)
        check(f"{kind} {access}", *answers)


def test_control(both):
    for verb in both[1].data.control.verbs:
        check(verb, *(matrices(m.control_matrix(verb)) for m in both))


def test_isolation(both):
    for layer in (*NAMESPACES, "uid", "mac", "seccomp", "rootfs", "vm"):
        check(layer, *(matrices(m.isolation_matrix(layer)) for m in both))


@pytest.mark.parametrize(
    "options",
    [{}, {"services": True}, {"potential": True}, {"access": "R", "own_access": "W"}],
    ids=str,
)
def test_trusted_computing_base(both, options):
    check(str(options), *(matrices(m.tcb_matrix(**options)) for m in both))


def test_spaces_services_and_what_could_be_reached(both):
    for row, pid in enumerate(both[0].pds.pid.tolist()):
        check(f"spaces of {pid}", *(rows(m, m.shared_spaces(m.pds[row])) for m in both))
        check(f"services of {pid}", *(rows(m, m.services(m.pds[row])) for m in both))
        for kind in ("SEM", "SHM", "MQUEUE", "MOUNT", "FILE"):
            reach = {"types": kind, "access": "W", "potential": True}
            found = (rows(m, m.shared_resources(m.pds[row], **reach)) for m in both)
            check(f"{kind} that {pid} could reach", *found)
