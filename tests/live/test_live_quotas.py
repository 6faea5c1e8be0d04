"""Limits of real cgroups, against the files and what the kernel refuses; and processors."""

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from children import child

import osmosis
from osmosis.capture.quotas import places
from osmosis.schema import QuotaKind, Status

pytestmark = pytest.mark.live
SOURCES = ["namespaces", "quotas"]

# Forks until it is refused, leaves the children waiting; returns how many and the error.
FORK = """
def forks(most):
    made = 0
    try:
        while made < most:
            fork()
            made += 1
    except OSError as exc:
        return made, exc.errno
    return made, 0
"""


class Tree:
    """Cgroups below one of ours, in the hierarchy of one controller; removed at the end."""

    def __init__(self, controller, top, root):
        self.controller, self.top, self.unified = controller, top, root
        self.made = []

    @classmethod
    def find(cls, controller):
        found = places(Path("/proc/self/mountinfo").read_bytes())
        for name, where in found.items():
            if controller in name.split(","):
                return cls(controller, where[0][1] / f"osmosis-{os.getpid()}", False)
        for root, point in found.get("", ()):
            listed = (point / "cgroup.controllers").read_text().split()
            if root == "/" and controller in listed:
                (point / "cgroup.subtree_control").write_text(f"+{controller}")
                return cls(controller, point / f"osmosis-{os.getpid()}", True)
        return None

    def make(self, name=""):
        path = self.top / name
        path.mkdir()
        self.made.append(path)
        if self.unified and name:
            (path.parent / "cgroup.subtree_control").write_text(f"+{self.controller}")
        return path

    def remove(self):
        for path in reversed(self.made):
            for _ in range(100):  # what was killed in it may still be leaving
                with suppress(FileNotFoundError):
                    try:
                        path.rmdir()
                    except OSError as exc:
                        if exc.errno != errno.EBUSY:
                            raise
                        time.sleep(0.02)
                        continue
                break


@pytest.fixture
def tree(request, need):
    made = next(filter(None, map(Tree.find, request.param.split())), None)
    need(made, f"no cgroup hierarchy of {request.param} that may be written to")
    made.make()
    yield made
    made.remove()


def put(path, pid):
    (path / "cgroup.procs").write_text(str(pid))


def spaces(model, pid, node_type):
    return set(model.bfs(pid, types=node_type, kinds={"SPACE"}).ids)


@pytest.mark.parametrize("tree", ["pids"], indirect=True)
def test_a_limit_binds_all_below_it(tree):
    a, b = tree.make("a"), tree.make("b")
    (tree.top / "pids.max").write_text("5")
    (b / "pids.max").write_text("4")
    with child(FORK) as x, child(FORK) as y, child() as stranger:
        put(a, x.pid)
        put(b, y.pid)
        snap = osmosis.capture([x.pid, y.pid, stranger.pid], sources=SOURCES)
        # The kernel's word: what x takes above both of them, y has not.
        made, code = x.ask("forks(10)")
        assert (made, code) == (3, errno.EAGAIN)
        assert y.ask("forks(10)") == [0, errno.EAGAIN]

    model = snap.model()
    name = f"PID_QUOTA_SPACE_/{tree.top.name}"
    assert spaces(model, x.pid, "PID_QUOTA") == {name}
    assert spaces(model, y.pid, "PID_QUOTA") == {name, f"{name}/b"}
    assert spaces(model, stranger.pid, "PID_QUOTA") == set()
    assert model.common_spaces(x.pid, y.pid, types="PID_QUOTA").ids == [name]
    assert y.pid in model.shared_spaces(x.pid, types="PID_QUOTA").pids
    assert stranger.pid not in model.shared_spaces(x.pid, types="PID_QUOTA").pids
    limits = {
        snap.text(path): snap.text(limit)
        for path, kind, limit in zip(
            snap["quota_path"], snap["quota_kind"], snap["quota_limit"], strict=True
        )
        if kind == QuotaKind.PID
    }
    assert limits[f"/{tree.top.name}"] == "pids.max=5"
    assert limits[f"/{tree.top.name}/b"] == "pids.max=4"
    assert limits[f"/{tree.top.name}/a"] == ""  # there, and no limit
    above = model.bfs(x.pid, edges={"HOLD", "SUBSET"}, types="PID_QUOTA", kinds={"SPACE"})
    assert list(above.ids) == [name]
    assert model.isolation(x.pid, y.pid)["cgroup"].state == "separated"
    assert model.isolation(x.pid, stranger.pid)["cgroup"].state == "separated"


@pytest.mark.parametrize("tree", ["pids"], indirect=True)
def test_who_may_write_the_limit_may_limit(tree):
    """The verb cgroup-limit, against who can open the file and what writing it does."""
    a = tree.make("a")
    for name in ("pids.max", "memory.max", "cpu.max"):
        if (a / name).exists():
            os.chown(a / name, 4242, 4242)
    user = "os.setgroups([])\nos.setresgid({0}, {0}, {0})\nos.setresuid({0}, {0}, {0})"
    writes = f"""
def limit():
    try:
        with open({str(a / "pids.max")!r}, "w") as file:
            file.write("1")
    except OSError as exc:
        return exc.errno
    return 0
"""
    with child(FORK) as y, child(writes) as owner, child(writes) as stranger:
        put(a, y.pid)
        owner.do(user.format(4242))
        stranger.do(user.format(4243))
        model = osmosis.capture([y.pid, owner.pid, stranger.pid]).model()
        assert stranger.ask("limit()") == errno.EACCES
        assert y.ask("forks(1)") == [1, 0]
        assert owner.ask("limit()") == 0
        assert y.ask("forks(1)") == [0, errno.EAGAIN]
    assert model.may(owner.pid, "cgroup-limit", y.pid).state is True
    assert model.may(stranger.pid, "cgroup-limit", y.pid).state is False


@pytest.mark.parametrize("tree", ["memory"], indirect=True)
def test_limits_are_what_the_files_say(tree):
    file = tree.top / ("memory.max" if tree.unified else "memory.limit_in_bytes")
    with child() as x, child() as y:
        put(tree.top, x.pid)
        put(tree.top, y.pid)
        free = osmosis.capture([x.pid, y.pid], sources=SOURCES).model()
        file.write_text(str(96 << 20))
        snap = osmosis.capture([x.pid, y.pid], sources=SOURCES)
        read = file.read_text().strip()
        assert read == str(96 << 20)

    name = f"PAGE_QUOTA_SPACE_/{tree.top.name}"
    assert name not in spaces(free, x.pid, "PAGE_QUOTA")
    model = snap.model()
    assert name in spaces(model, x.pid, "PAGE_QUOTA")
    row = model.data.names.find(name)
    assert model.data.notes.get(row, {})["limit"] == f"{file.name}={read}"
    assert model.isolation(x.pid, y.pid)["cgroup"].state == "shared"


@pytest.mark.parametrize("tree", ["cpu"], indirect=True)
def test_a_cpu_quota_throttles_and_is_held(tree):
    with child() as x:
        if tree.unified:
            (tree.top / "cpu.max").write_text("5000 100000")
        else:
            (tree.top / "cpu.cfs_period_us").write_text("100000")
            (tree.top / "cpu.cfs_quota_us").write_text("5000")
        put(tree.top, x.pid)
        x.do("end = time.monotonic() + 0.3\nwhile time.monotonic() < end: pass")
        counters = dict(line.split() for line in (tree.top / "cpu.stat").read_text().splitlines())
        assert int(counters["nr_throttled"]) > 0
        model = osmosis.capture([x.pid], sources=SOURCES).model()
    name = f"CPU_QUOTA_SPACE_/{tree.top.name}"
    assert spaces(model, x.pid, "CPU_QUOTA") == {name}
    assert "5000" in model.data.notes.get(model.data.names.find(name), {})["limit"]


@pytest.mark.parametrize("tree", ["blkio io"], indirect=True)
def test_a_limit_of_a_block_device_is_what_the_file_says(tree, need):
    devices = [path.read_text().strip() for path in Path("/sys/block").glob("*/dev")]
    need(devices, "no block device")
    name, text = (
        ("io.max", "{} rbps={}")
        if tree.unified
        else (
            "blkio.throttle.read_bps_device",
            "{} {}",
        )
    )
    a, b = tree.make("a"), tree.make("b")
    with child() as x, child() as y:
        put(a, x.pid)
        put(b, y.pid)
        (a / name).write_text(text.format(devices[0], 1 << 20))
        read = (a / name).read_text().split()
        assert read[0] == devices[0]
        assert str(1 << 20) in read[1]  # the kernel's word
        snap = osmosis.capture([x.pid, y.pid], sources=SOURCES)
    model = snap.model()
    space = f"IO_QUOTA_SPACE_/{tree.top.name}/a"
    assert spaces(model, x.pid, "IO_QUOTA") == {space}
    assert spaces(model, y.pid, "IO_QUOTA") == set()
    limit = model.data.notes.get(model.data.names.find(space), {})["limit"]
    assert name in limit
    assert str(1 << 20) in limit
    assert y.pid not in model.shared_spaces(x.pid, types="IO_QUOTA").pids


@pytest.mark.parametrize("tree", ["pids"], indirect=True)
def test_from_inside_a_cgroup_namespace_what_is_above_is_unknown(tree):
    """A collector in a cgroup namespace: names begin at its root, limits above are not seen."""
    a, b = tree.make("a"), tree.make("b")
    (tree.top / "pids.max").write_text("50")
    with child() as x, child() as y, child() as z:
        put(a, x.pid)
        put(b, y.pid)
        put(a, z.pid)
        x.do("unshare(CLONE_NEWCGROUP)")
        x.do(
            "import osmosis\n"
            f"snap = osmosis.capture([os.getpid(), {y.pid}, {z.pid}], sources={SOURCES})\n"
            "model = snap.model()"
        )
        texts = x.ask("[snap.text(p) for p in snap['quota_path']]")
        found = x.ask(
            "[model.shared_spaces(os.getpid(), types='PID_QUOTA').pids.tolist(),"
            " model.shared_spaces(os.getpid(), types='PID_QUOTA').unknown.pids.tolist()]"
        )
        state = x.ask(f"model.isolation(os.getpid(), {z.pid})['cgroup'].state")
        assert "" in texts
        assert any(path.startswith("/..") for path in texts)
        assert not found[0]
        assert {y.pid, z.pid} <= set(found[1])  # the truth is yes: not denied
        assert state == "shared"  # one and the same cgroup


def test_a_mount_of_a_part_shows_what_is_below_it():
    from osmosis.capture.quotas import resolve

    where = [("/a", Path("/m"))]
    assert resolve(where, "/a/b") == Path("/m/b")
    assert resolve(where, "/a") == Path("/m")
    assert resolve(where, "/ab") is None
    assert resolve([("/..", Path("/m"))], "/../b") == Path("/m/b")
    assert resolve([("/..", Path("/m"))], "/b") is None  # under a name that nothing tells
    assert resolve([("/", Path("/m"))], "/../b") is None


# -- processors


def test_processors_are_held_by_who_is_kept_to_them(need):
    need(len(os.sched_getaffinity(0)) > 1, "one processor only")
    first, *_ = sorted(os.sched_getaffinity(0))
    with child() as x, child() as y, child() as free, child() as threaded:
        for c in (x, y):
            c.do(f"os.sched_setaffinity(0, {{{first}}})")
        threaded.do(f"in_thread(lambda: None); os.sched_setaffinity(0, {{{first}}})")
        pids = [c.pid for c in (x, y, free, threaded)]
        model = osmosis.capture(pids, sources=SOURCES).model()
        # The kernel's word: it ran there, and its other thread may run anywhere.
        assert int(Path(f"/proc/{x.pid}/stat").read_text().rsplit(")", 1)[1].split()[36]) == first

        def held(c):
            return list(model.bfs(c.pid, types="CPU", kinds={"RESOURCE"}).ids)

        assert held(x) == held(y) == [f"CPU_{first}"]
        assert held(free) == held(threaded) == []
        assert y.pid in model.shared_resources(x.pid, types="CPU").pids
        # A processor is no way to alter anything.
        assert y.pid not in model.shared_resources(x.pid, types="CPU", access="W").pids
        assert y.pid not in model.tcb(x.pid, types="CPU").parts["shared"].pids


def test_the_ledger_says_that_it_was_read():
    with child() as x:
        snap = osmosis.capture([x.pid], sources=SOURCES)
    rows = [row for row in snap.coverage if row.source == "quotas"]
    assert [row.status for row in rows] == ["read"]
    assert (snap["quota_status"] == Status.READ).all()
