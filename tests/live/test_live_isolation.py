"""Layers between real processes, against the links and files of /proc and what gets through."""

import fcntl
import os
import sys
from itertools import combinations
from pathlib import Path

import pytest
from children import child

import osmosis
from osmosis.query.isolation import LAYERS
from osmosis.schema import NAMESPACES

pytestmark = pytest.mark.live
SOURCES = ["namespaces", "quotas"]
UNSHARE = {
    "mnt": "CLONE_NEWNS",
    "ipc": "CLONE_NEWIPC",
    "net": "CLONE_NEWNET",
    "uts": "CLONE_NEWUTS",
    "user": "CLONE_NEWUSER",
}


def model_of(*children):
    return osmosis.capture([c.pid for c in children], sources=SOURCES).model()


def link(pid, kind):
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def states(model, x, y):
    return {layer: answer.state for layer, answer in model.isolation(x.pid, y.pid).items()}


def test_each_namespace_is_a_layer_of_its_own():
    with child() as plain, child() as other:
        apart = {}
        kids = [plain, other]
        try:
            for kind, flag in UNSHARE.items():
                one = child()
                apart[kind] = one
                kids.append(one)
                one.do(f"unshare({flag})")
            model = model_of(*kids)
            for x, y in combinations(kids, 2):
                found = states(model, x, y)
                for kind in NAMESPACES:
                    if kind != "cgroup":
                        same = link(x.pid, kind) == link(y.pid, kind)
                        assert found[kind] == ("shared" if same else "separated"), kind
            for kind, one in apart.items():
                differing = [k for k, v in states(model, plain, one).items() if v == "separated"]
                assert differing == [kind]
                answer = model.isolation(plain.pid, one.pid)[kind]
                assert link(one.pid, kind).split("[")[1][:-1] in answer.evidence
                assert answer.source == "/proc/pid/ns"
            assert set(states(model, plain, other).values()) == {"shared"}
            assert list(states(model, plain, other)) == list(LAYERS)
            assert model.isolation(plain.pid, other.pid).score == (0, 0, 7)
        finally:
            for one in apart.values():
                one.stop()


def test_a_thread_in_the_old_namespace_is_a_way_around_the_layer():
    with child() as plain, child() as moved, child() as left:
        # The leader leaves, a thread stays; and the other way round.
        moved.do("in_thread(lambda: None); unshare(CLONE_NEWNET)")
        left.do("unshare(CLONE_NEWNET); in_thread(lambda: None)")
        model = model_of(plain, moved, left)

        assert link(moved.pid, "net") != link(plain.pid, "net")
        tasks = os.listdir(f"/proc/{moved.pid}/task")
        assert any(
            os.readlink(f"/proc/{moved.pid}/task/{t}/ns/net") == link(plain.pid, "net")
            for t in tasks
        )
        assert states(model, plain, moved)["net"] == "shared"
        assert states(model, plain, left)["net"] == "separated"
        assert states(model, moved, left)["net"] == "separated"
        assert moved.pid in model.shared_spaces(plain.pid, types="NET").pids
        assert left.pid not in model.shared_spaces(plain.pid, types="NET").pids


def test_users_are_separated_by_all_their_ids():
    with child() as root, child() as ann, child() as bob, child() as half:
        ann.do("os.setresuid(1501, 1501, 1501)")
        bob.do("os.setresuid(1502, 1502, 1502)")
        half.do("os.setresuid(1501, 0, 0)")  # as a set-uid program that ann runs
        model = model_of(root, ann, bob, half)

        assert states(model, ann, bob)["uid"] == "separated"
        assert states(model, root, ann)["uid"] == "separated"
        assert states(model, root, half)["uid"] == states(model, ann, half)["uid"] == "shared"
        # The kernel's word: ann may signal that one, and not bob.
        assert ann.ask(f"libc.kill({half.pid}, 0)") == 0
        assert ann.ask(f"libc.kill({bob.pid}, 0)") == -1


def test_root_of_a_user_namespace_is_the_user_that_it_maps_to():
    with child() as ann, child() as inside:
        for c in (ann, inside):
            c.do("os.setresuid(1501, 1501, 1501)")
        inside.do("prctl(4, 1); new_user_namespace()")
        assert inside.ask("os.geteuid()") == 0
        model = model_of(ann, inside)

        assert states(model, ann, inside)["uid"] == "shared"
        assert states(model, ann, inside)["user"] == "separated"


def test_a_filter_separates_from_who_has_none_and_two_filters_are_unknown():
    with child() as plain, child() as a, child() as b, child() as half:
        for c in (a, b):
            c.do("prctl(38, 1); filter_all()")
        half.do("prctl(38, 1); in_thread(filter_all)")
        model = model_of(plain, a, b, half)

        assert "Seccomp:\t2" in Path(f"/proc/{a.pid}/status").read_text()
        assert states(model, plain, a)["seccomp"] == "separated"
        assert states(model, a, b)["seccomp"] == "unknown"
        assert states(model, plain, half)["seccomp"] == "shared"  # by the thread without


def test_root_directories(tmp_path):
    with child() as plain, child() as jailed, child() as mounted, child() as bound:
        jailed.do(f"os.chroot({str(tmp_path)!r})")
        mounted.do("unshare(CLONE_NEWNS)")
        bound.do(f"unshare(CLONE_NEWNS); os.chroot({str(tmp_path)!r})")
        model = model_of(plain, jailed, mounted, bound)

        assert states(model, plain, jailed)["rootfs"] == "separated"
        assert states(model, plain, mounted)["rootfs"] == "shared"
        assert states(model, jailed, bound)["rootfs"] == "shared"
        (tmp_path / "x").write_text("1")  # and it is the same directory
        assert jailed.ask("open('/x').read()") == bound.ask("open('/x').read()") == "1"


def test_what_is_not_readable_is_unknown(need):
    """As an ordinary user: the links of another user's process are closed."""
    with child() as root, child() as ann:
        # What is imported late may not be readable to that user.
        ann.do(f"import osmosis; osmosis.capture([os.getpid()], sources={SOURCES}).model()")
        ann.do("os.setresgid(1501, 1501, 1501); os.setresuid(1501, 1501, 1501); prctl(4, 1)")
        code = (
            "import osmosis\n"
            f"model = osmosis.capture([os.getpid(), {root.pid}], sources={SOURCES}).model()\n"
            f"found = model.isolation(os.getpid(), {root.pid})"
        )
        try:
            ann.do(code)
        except Exception as exc:  # the tree may be closed to other users
            need("PermissionError" not in str(exc) and "ModuleNotFound" not in str(exc), str(exc))
            raise
        found = ann.ask("{k: v.state for k, v in found.items()}")
        for kind in NAMESPACES:
            if kind != "cgroup":
                assert found[kind] == "unknown"  # and not "separated"
        assert found["rootfs"] == found["vm"] == "unknown"
        assert (found["uid"], found["cgroup"], found["seccomp"]) == (
            "separated",
            "shared",
            "shared",
        )


def test_namespaces_that_nobody_is_in(tmp_path):
    """Kept alive by a descriptor, and by a bind mount: there, without members."""
    point = tmp_path / "net"
    point.touch()
    with child() as keeper, child() as mounter:
        keeper.do(
            "pid = fork(lambda: unshare(CLONE_NEWUTS))\n"
            "fd = os.open(f'/proc/{pid}/ns/uts', os.O_RDONLY)\n"
            "os.kill(pid, 9); os.waitpid(pid, 0)"
        )
        mounter.do(
            "unshare(CLONE_NEWNS); mount('none', '/', None, 0x4C000)\n"  # MS_REC | MS_PRIVATE
            f"pid = fork(lambda: (unshare(CLONE_NEWNET),"
            f" mount('/proc/self/ns/net', {str(point)!r}, None, 0x1000)))\n"
            f"inode = os.stat({str(point)!r}).st_ino\n"
            "os.kill(pid, 9); os.waitpid(pid, 0)"
        )
        kept = {("uts", keeper.ask("os.fstat(fd).st_ino")), ("net", mounter.ask("inode"))}
        # The kernel's word: it can still be entered.
        assert mounter.ask(f"libc.setns(os.open({str(point)!r}, os.O_RDONLY), 0)") == 0
        with child() as again:
            again.do(
                f"fd = os.open('/proc/{mounter.pid}/ns/mnt', os.O_RDONLY)\n"
                "ok(libc.setns(fd, 0)); os.close(fd)"
            )
            mounter.stop()  # who entered it is gone; the mount table has another member
            snap = osmosis.capture(
                [keeper.pid, again.pid], sources=["namespaces", "files", "mounts"]
            )
        model = snap.model()
        rows = zip(snap["namespace_kind"].tolist(), snap["namespace_inode"].tolist(), strict=True)
        assert kept <= {(NAMESPACES[kind], inode) for kind, inode in rows}
        for kind, inode in kept:
            node = model.data.names.find(f"{kind.upper()}_SPACE_{inode}")
            assert node is not None
            edges = model.data.edges
            members = edges.src[(edges.dst == node) & (edges.flags == 0)]
            assert not len(members)  # the kernel serves it, and the descriptor is no membership
        assert any("kept by" in row.reason for row in snap.coverage)


def test_user_namespaces_in_one_another_are_spaces_in_one_another():
    """Against NS_GET_PARENT and NS_GET_OWNER_UID (include/uapi/linux/nsfs.h), asked by us."""
    with child("os.setresgid(4242, 4242, 4242)\nos.setresuid(4242, 4242, 4242)") as c:
        for _ in range(3):
            c.do("prctl(4, 1)\nnew_user_namespace()")  # dumpable: it writes its own uid_map
        c.do("unshare(CLONE_NEWUTS)")
        snap = osmosis.capture([c.pid], sources=["namespaces"])
        chain, owners = [], []
        fd = os.open(f"/proc/{c.pid}/ns/user", os.O_RDONLY)
        while True:
            chain.append(os.fstat(fd).st_ino)
            owner = bytearray(4)
            fcntl.ioctl(fd, 0xB704, owner)
            owners.append(int.from_bytes(owner, sys.byteorder))
            try:
                above = fcntl.ioctl(fd, 0xB702)
            except PermissionError:  # the initial one: nothing is above it
                break
            finally:
                os.close(fd)
            fd = above
        uts = os.stat(f"/proc/{c.pid}/ns/uts").st_ino
    assert owners == [4242, 4242, 4242, 0]
    model = snap.model()
    held = model.bfs(c.pid, types="USER", kinds={"SPACE"}, edges={"HOLD"}).ids
    found = model.bfs(c.pid, types="USER", kinds={"SPACE"}, edges={"HOLD", "SUBSET"}).ids
    assert list(held) == [f"USER_SPACE_{chain[0]}"]
    assert set(found) == {f"USER_SPACE_{inode}" for inode in chain}
    row_of = {int(inode): row for row, inode in enumerate(snap["namespace_inode"])}
    assert [snap["namespace_owner"][row_of[inode]] for inode in chain] == owners
    assert snap["namespace_user"][row_of[uts]] == row_of[chain[0]]


def test_the_matrix_of_the_whole_host_agrees_with_the_links():
    model = osmosis.capture(sources=SOURCES).model()
    pids = model.pds.pid.tolist()
    for kind in ("net", "pid"):
        matrix = model.isolation_matrix(kind)
        inode = {}
        for pid in pids[1:]:
            try:
                inode[pid] = link(pid, kind)
            except OSError:
                continue  # it has ended, or is closed to us
        for i, j in combinations(range(1, len(pids)), 2):
            a, b = inode.get(pids[i]), inode.get(pids[j])
            if a and b and matrix.state(i, j) is not None:
                assert matrix.state(i, j) is (a != b)
