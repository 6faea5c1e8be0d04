"""Every verb against the kernel's own answer, over all ordered pairs of an adversarial set."""

import functools
import os
from pathlib import Path

import pytest
from control_actors import Actor, build_for, running, snapshot_of

from osmosis.relations.control.table import control

pytestmark = pytest.mark.live

# Capabilities as masks: KILL 5, DAC_OVERRIDE 1, SYS_PTRACE 19, SYS_ADMIN 21, SYS_RESOURCE 24.
KILL, DAC, PTRACE, NICE = "20", "2", "80000", "800000"
ALL = "1fffeffffff"
NO_KILL = "1fffeffffdf"
NO_PTRACE = "1fffef7ffff"
NAMESPACES = 0x4E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWNET
FULL = "0/0/4294967295"
USER = "groups gid:1000:1000:1000 uid:1000:1000:1000"
CASES: dict[str, tuple[str, ...]] = {
    "root": ("",),
    "root without CAP_KILL": (f"caps:{NO_KILL}:{NO_KILL}",),
    "root without CAP_SYS_PTRACE": (f"caps:{NO_PTRACE}:{NO_PTRACE}",),
    "root, CAP_SYS_PTRACE permitted and not effective": (f"caps:{NO_PTRACE}:{ALL}",),
    "root without any": ("caps:0:0",),
    "root without any, not dumpable": ("caps:0:0 dumpable:0",),
    "user": (f"{USER} exec",),
    "user, after setresuid": (USER,),
    "user, exec after setresuid, not dumpable": (f"{USER} exec dumpable:0",),
    "user, other gid": ("groups gid:1001:1001:1001 uid:1000:1000:1000 exec",),
    "user, saved gid differs": ("groups gid:1000:1000:1001 uid:1000:1000:1000 dumpable:1",),
    "user in a group": ("groups:1005 gid:1000:1000:1000 uid:1000:1000:1000 exec",),
    "saved uid 1001": ("groups gid:1000:1000:1000 uid:1000:1000:1001 dumpable:1",),
    "euid 1001": ("groups gid:1000:1000:1000 uid:1000:1001:1000 dumpable:1",),
    "ruid, euid, suid all differ": ("groups gid:1000:1000:1000 uid:1001:1000:1002 dumpable:1",),
    "ruid 0, euid 1000": ("groups gid:1000:1000:1000 uid:0:1000:1000 dumpable:1",),
    "other user": ("groups gid:1001:1001:1001 uid:1001:1001:1001 exec",),
    "user with CAP_KILL": (f"keep {USER} caps:{KILL}:{KILL} dumpable:1",),
    "user with CAP_SYS_PTRACE": (f"keep {USER} caps:{PTRACE}:{PTRACE} dumpable:1",),
    "user with CAP_SYS_PTRACE permitted": (f"keep {USER} caps:0:{PTRACE} dumpable:1",),
    "user with CAP_DAC_OVERRIDE": (f"keep {USER} caps:{DAC}:{DAC} dumpable:1",),
    "user with CAP_SYS_PTRACE and CAP_DAC_OVERRIDE": (f"keep {USER} caps:80002:80002 dumpable:1",),
    "user with CAP_SYS_NICE": (f"keep {USER} caps:{NICE}:{NICE} dumpable:1",),
    "fsuid 1000": ("fsuid:1000 dumpable:1",),
    "no_new_privs": (f"{USER} exec nnp",),
    "seccomp": (f"{USER} exec seccomp",),
    "userns of root": ("user uid:0:0:0", FULL),
    "userns of root, exec inside": ("user uid:0:0:0 exec", FULL),
    "userns of root, shifted": ("user gid:0:0:0 uid:0:0:0 exec", "0/100000/65536"),
    "userns of root, shifted, not dumpable": (
        "user gid:0:0:0 uid:0:0:0 exec dumpable:0",
        "0/100000/65536",
    ),
    "userns of user": (f"{USER} exec user uid:0:0:0 gid:0:0:0", "0/1000/1"),
    "userns of user, exec inside": (f"{USER} exec user uid:0:0:0 gid:0:0:0 exec", "0/1000/1"),
    "userns of user, not dumpable, no exec": (
        f"{USER} exec user uid:0:0:0 gid:0:0:0 dumpable:0",
        "0/1000/1",
    ),
    "userns of user, not dumpable": (
        f"{USER} exec user uid:0:0:0 gid:0:0:0 exec dumpable:0",
        "0/1000/1",
    ),
    "userns of user, without any": (
        f"{USER} exec user uid:0:0:0 gid:0:0:0 exec caps:0:0 dumpable:1",
        "0/1000/1",
    ),
    "userns of user, CAP_SYS_RESOURCE only": (
        f"{USER} exec user uid:0:0:0 gid:0:0:0 caps:1000000:1000000 dumpable:1",
        "0/1000/1",
    ),
    "userns of user, uid not mapped": (f"{USER} exec user dumpable:1", "0/5000/1"),
    "two levels, owner outside": (
        f"{USER} exec user uid:0:0:0 gid:0:0:0 exec user exec",
        "0/1000/1",
        "0/0/1",
    ),
    "two levels of root, shifted": (
        "user gid:0:0:0 uid:0:0:0 exec user gid:5:5:5 uid:5:5:5 exec",
        "0/100000/65536",
        "0/0/1000",
    ),
    "two levels, uid 7 owns the second": (
        "user gid:7:7:7 uid:7:7:7 exec user gid:0:0:0 uid:0:0:0 exec",
        "0/200000/65536",
        "0/7/1",
    ),
    "uid 200007 outside": ("groups gid:200007:200007:200007 uid:200007:200007:200007 exec",),
    "pidns init of root": ("pid proc",),
    "pidns child of root": ("pid proc child",),
    "pidns init of root, host's proc": ("pid",),
    "pidns of user ids": (f"pid child {USER} exec",),
    "pidns nested": ("pid child pid child",),
    "pidns nested, own proc": ("pid child pid proc child",),
    "pid and user ns": ("user uid:0:0:0 gid:0:0:0 pid proc child exec", "0/100000/65536"),
    "pid and user ns, init": ("user uid:0:0:0 gid:0:0:0 pid proc exec", "0/100000/65536"),
    "pid and user ns of user": (
        f"{USER} exec user uid:0:0:0 gid:0:0:0 pid proc child exec",
        "0/1000/1",
    ),
    "read-only proc": ("roproc",),
    "hidepid, user": (f"proc:hidepid=2 {USER} exec",),
    "hidepid, its group": (
        "proc:hidepid=1,gid=1005 groups:1005 gid:1000:1000:1000 uid:1000:1000:1000 exec",
    ),
    "hidepid ptraceable, CAP_DAC_OVERRIDE": (
        f"proc:hidepid=ptraceable keep {USER} caps:{DAC}:{DAC} dumpable:1",
    ),
    "a thread of root": ("groups gid:1000:1000:1000 keep uid:0:0:1000 caps:c0:c0 thread:1000",),
    "a leader of user, a thread of 1001": (f"keep {USER} caps:c0:c0 thread:1001 caps:0:0",),
    "own namespaces": (f"unshare:{NAMESPACES}",),
    "own namespaces of a userns": (
        f"{USER} exec user uid:0:0:0 gid:0:0:0 unshare:{NAMESPACES} exec",
        "0/1000/1",
    ),
    "time namespace": ("unshare:128 child exec",),
    "group 1005 as fsgid": ("groups gid:1005:1005:1005 uid:1002:1002:1002 exec",),
    "session of its own": (f"{USER} exec session",),
    "session of its own, other user": (
        "session groups gid:1001:1001:1001 uid:1001:1001:1001 exec",
    ),
}
PERMISSION = (
    "kill",
    "continue",
    "trace-read",
    "trace-attach",
    "mem-write",
    "limit",
    "sched",
    "oom",
)


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    return build_for(tmp_path_factory)


@pytest.fixture(scope="module")
def actors(probe):
    with running(probe, CASES) as started:
        yield started


@pytest.fixture(scope="module")
def asked(actors):
    snap = snapshot_of([a.pid for a in actors])
    assert sorted(snap["process_pid"].tolist()) == sorted(a.pid for a in actors)
    row = {pid: i + 1 for i, pid in enumerate(snap["process_pid"].tolist())}
    return control(snap), [row[a.pid] for a in actors]


def compare(actors: list[Actor], asked, verb: str, ask, *, effective=False, by_handle=False) -> int:
    """Number of pairs that are unknown; every other one must be as the kernel says."""
    table, rows = asked
    relation = table.relation(verb, effective=effective)
    wrong, unknown, held = [], 0, 0
    for a, i in zip(actors, rows, strict=True):
        for b, j in zip(actors, rows, strict=True):
            if i == j:
                continue
            state = relation.state(i, j)
            kernel = ask(a, b)
            held += kernel
            if state is kernel and (i + j) % 7:
                continue
            finding = table.finding(verb, i, j, effective=effective)
            assert finding.state is state, (a, b, finding)
            if by_handle and "by file handle" in finding.reason:
                # A reference that this oracle does not try, and that is the only one.
                assert not kernel
            elif state is None:
                unknown += 1
            elif state != kernel:
                wrong.append(f"{a} {verb} {b}: kernel says {kernel}, we {finding}")
    assert not wrong, f"{len(wrong)} pairs:\n" + "\n".join(wrong[:10])
    if by_handle:
        assert unknown == 0
    assert held, f"{verb}: the kernel permitted nothing, so the test says nothing"
    return unknown


@pytest.mark.parametrize("verb", PERMISSION)
def test_permission_is_what_the_kernel_says(actors, asked, verb):
    unknown = compare(actors, asked, verb, lambda a, b: a.permitted(verb, b))

    print(verb, "unknown:", unknown)
    assert unknown == 0


# CLONE_NEW* of include/uapi/linux/sched.h
KINDS = {
    "mnt": 0x20000,
    "pid": 0x20000000,
    "user": 0x10000000,
    "net": 0x40000000,
    "ipc": 0x8000000,
    "uts": 0x4000000,
    "cgroup": 0x2000000,
    "time": 0x80,
}


@pytest.mark.parametrize("kind", KINDS)
def test_joining_is_what_setns_says(actors, asked, kind):
    def joins(a, b):
        elsewhere = os.stat(f"/proc/{a.pid}/ns/{kind}") != os.stat(f"/proc/{b.pid}/ns/{kind}")
        return elsewhere and a.joins(b, kind, KINDS[kind])

    compare(actors, asked, f"join:{kind}", joins, by_handle=True)


V2 = Path("/sys/fs/cgroup/unified")
if not V2.exists():
    V2 = Path("/sys/fs/cgroup")
# Owner of the directory and of its control files, and modes: delegation is nothing but this.
TREES = {
    "control-root": (0, 0, 0o755, 0o644),
    "control-user": (1000, 1000, 0o755, 0o644),
    "control-user/inner": (1001, 1001, 0o755, 0o644),
    "control-group": (0, 1005, 0o755, 0o664),
    "control-closed": (0, 0, 0o700, 0o666),
}


@pytest.fixture(scope="module")
def cgroups(actors):
    """Some actors in cgroups of their own, delegated to others."""
    made = []
    for path, (uid, gid, directory_mode, mode) in TREES.items():
        directory = V2 / path
        try:
            directory.mkdir()
        except OSError as exc:
            pytest.skip(f"no cgroup v2 to make cgroups in: {exc}")
        made.append(directory)
        for name in ("cgroup.kill", "cgroup.freeze"):
            os.chown(directory / name, uid, gid)
            (directory / name).chmod(mode)
        os.chown(directory, uid, gid)
        directory.chmod(directory_mode)
    inside = {}
    for k, actor in enumerate(actors):
        where = list(TREES)[k % (len(TREES) + 1)] if k % (len(TREES) + 1) < len(TREES) else ""
        (V2 / where / "cgroup.procs").write_text(str(actor.pid))
        inside[actor.pid] = where
    yield inside
    for actor in actors:
        (V2 / "cgroup.procs").write_text(str(actor.pid))
    for directory in reversed(made):
        directory.rmdir()


@pytest.mark.parametrize(("verb", "file"), [("cgroup-kill", "kill"), ("cgroup-freeze", "freeze")])
def test_cgroup_control_is_what_open_says(actors, cgroups, verb, file):
    snap = snapshot_of([a.pid for a in actors])
    row = {pid: i + 1 for i, pid in enumerate(snap["process_pid"].tolist())}
    asked = control(snap), [row[a.pid] for a in actors]

    @functools.cache
    def opens(a, path):
        return a.ask("write", 0, f"{V2}/{path}/cgroup.{file}=") == 0

    def may(a, b):
        where = cgroups[b.pid].split("/") if cgroups[b.pid] else []
        return any(opens(a, "/".join(where[:n])) for n in range(1, len(where) + 1))

    unknown = compare(actors, asked, verb, may)

    assert unknown == 0
