"""The real thing, on targets that may be lost: what the kernel does, not only what it allows."""

import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest
from control_actors import Actor, build_for, running, snapshot_of

from osmosis.relations.control.table import control

pytestmark = pytest.mark.live

USER = "groups gid:1000:1000:1000 uid:1000:1000:1000"
OTHER = "groups gid:1001:1001:1001 uid:1001:1001:1001"


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    return build_for(tmp_path_factory)


def model(*actors, more=()):
    snap = snapshot_of([a.pid for a in actors] + list(more))
    row = {pid: i + 1 for i, pid in enumerate(snap["process_pid"].tolist())}
    return control(snap), row


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def eventually(what, seconds=2.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.005)
    return bool(what())


def nest(probe):
    """Pid namespaces: the host's; I's, with C inside; N's below, with X inside; and a sibling's."""
    host = Actor("host", probe, "")
    user = Actor("host user", probe, f"{USER} exec")
    init = Actor("init", probe, "pid proc")
    child = Actor("child", probe, f"enterpid:{init.pid}")
    low = Actor("child user", probe, f"enterpid:{init.pid} {USER} exec")
    nested = Actor("nested init", probe, f"enterpid:{init.pid} pid")
    inner = Actor("inner", probe, f"enterpid:{nested.pid}")
    sibling = Actor("sibling init", probe, "pid")
    return [host, user, init, child, low, nested, inner, sibling]


@pytest.fixture
def nested(probe):
    actors = nest(probe)
    yield actors
    for actor in reversed(actors):
        actor.stop()


def test_stop_has_the_effect_that_is_said(nested):
    table, row = model(*nested)
    wrong, stops = [], 0
    for a in nested:
        for b in nested:
            if a is b:
                continue
            number = a.number(b.pid)
            answer = a.ask("signal", number, str(int(signal.SIGSTOP))) if number else 3
            stopped = answer == 0 and eventually(lambda b=b: state_of(b.pid) == "T", 0.05)
            os.kill(b.pid, signal.SIGCONT)
            stops += stopped
            permitted = table.relation("stop", effective=False).state(row[a.pid], row[b.pid])
            effective = table.relation("stop", effective=True).state(row[a.pid], row[b.pid])
            if (answer == 0, stopped) != (permitted, effective):
                wrong.append((a, b, answer, stopped, permitted, effective))
    assert not wrong
    assert stops


def dead(pid: int, start: int) -> bool:
    try:
        return state_of(pid) in "ZX" or start_of(pid) != start
    except (FileNotFoundError, ProcessLookupError):
        return True


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


# Every ordered pair of one level with another; all start anew for each.
@pytest.mark.parametrize(
    ("killer", "victim"),
    [(0, 2), (1, 2), (3, 2), (4, 2), (6, 2), (3, 5), (6, 5), (4, 5), (7, 2), (0, 7), (5, 3)],
)
def test_kill_ends_the_namespaces_that_are_said(probe, killer, victim):
    actors = nest(probe)
    try:
        table, row = model(*actors)
        a, b = actors[killer], actors[victim]
        starts = {x: start_of(x.pid) for x in actors}
        below = {x for x in actors if x is not a and inside(x, b)}
        number = a.number(b.pid)
        if number:
            a.ask("signal", number, str(int(signal.SIGKILL)))
        said = {b} if table.relation("kill", effective=True)[row[a.pid], row[b.pid]] else set()
        if said and victim in (2, 5, 7):
            # What b's end takes along is told for the ends of every init that a may kill.
            ends = table.relation("end-namespace", effective=True)
            assert all(ends[row[a.pid], row[x.pid]] for x in below)
            said |= below
        assert eventually(lambda: all(dead(x.pid, starts[x]) for x in said))
        ended = {x for x in actors if eventually(lambda x=x: dead(x.pid, starts[x]), 0.02)}
        assert ended == said
    finally:
        for actor in reversed(actors):
            actor.stop()


def inside(actor, init) -> bool:
    """Whether an actor is in the pid namespace whose init *init* is, or in one below it."""
    return actor is not init and init.number(actor.pid) is not None


def test_kill_group_reaches_what_is_said(probe):
    first = Actor("first", probe, f"{USER} exec", process_group=0)
    cases = {
        "root": "",
        "same user": f"{USER} exec",
        "other user": f"{OTHER} exec",
        "saved uid is the user": "groups gid:1000:1000:1000 uid:1001:1001:1000 dumpable:1",
        "inside a pid namespace": f"pid child {USER} exec",
        "init of a pid namespace": f"pid {USER} exec",
        "deeper": f"pid child pid child {USER} exec",
        "root inside": "pid child",
        "leader of other, thread of user": "keep gid:1000:1000:1000 uid:1001:1001:1001"
        " caps:c0:c0 thread:1000 caps:0:0",
        "a group of its own": f"{USER} exec group",
    }
    actors = [first]
    try:
        for name, ops in cases.items():
            actors.append(Actor(name, probe, ops, process_group=first.pid))
        table, row = model(*actors)
        relation = table.relation("kill-group", effective=False)
        wrong = []
        for a in actors:
            for b in actors:
                b.ask("got")
            if a.name.startswith("leader"):
                continue  # which of its threads asks is not ours to choose
            a.ask("signal", 0, str(int(signal.SIGUSR1)))
            for b in actors:
                if a is not b:
                    got, said = b.ask("got") == 1, relation.state(row[a.pid], row[b.pid])
                    if got is not said:
                        wrong.append(
                            (
                                a,
                                b,
                                got,
                                table.finding(
                                    "kill-group", row[a.pid], row[b.pid], effective=False
                                ),
                            )
                        )
        assert not wrong
        assert relation.nnz
        assert relation.unknown.nnz == 0
    finally:
        for actor in reversed(actors):
            actor.stop()


def test_attaching_works_unless_somebody_traces_already(probe):
    cases = {
        "root": ("",),
        "user": (f"{USER} exec",),
        "user again": (f"{USER} exec",),
        "other": (f"{OTHER} exec",),
        "not dumpable": (f"{USER} exec dumpable:0",),
        "with a thread": (f"keep {USER} caps:c0:c0 thread:1001 caps:0:0 dumpable:1",),
    }
    with running(probe, cases) as actors:
        root, user = actors[0], actors[1]
        assert root.ask("trace", user.pid) == 0
        assert root.ask("trace", actors[5].pid) == 0  # its leader; the other thread is free
        table, row = model(*actors)
        relation = table.relation("trace-attach", effective=True)
        wrong, unknown = [], 0
        for a in actors:
            for b in actors:
                if a is b or a in (user, actors[5]):  # a tracee stops at its child's SIGCHLD
                    continue
                said = relation.state(row[a.pid], row[b.pid])
                seized = 0 in {a.ask("seize", tid) for tid in b.tids}
                if said is None:
                    # Which of its threads is free is not read: it is the one expected.
                    assert b.name == "with a thread"
                    unknown += 1
                elif said is not seized:
                    finding = table.finding("trace-attach", row[a.pid], row[b.pid], effective=True)
                    wrong.append((a, b, seized, finding))
        assert not wrong
        assert unknown == 3  # from root, from user again, and from other
        assert relation.nnz
        supervise = table.relation("supervise", effective=True)
        pairs = {
            (a.name, b.name)
            for a in actors
            for b in actors
            if a is not b and supervise[row[a.pid], row[b.pid]]
        }
        assert pairs == {("root", "user"), ("root", "with a thread")}
        assert supervise.unknown.nnz == 0


def test_who_shares_an_address_space_may_write_it(probe):
    # CAP_DAC_OVERRIDE and nothing else: ptrace is denied, the file's mode is not in the way.
    cases = {
        "shares": ("keep groups gid:1000:1000:1000 uid:1000:1000:1000 caps:82:82 twin:1001",),
        "does not": ("keep groups gid:1000:1000:1000 uid:1000:1000:1000 caps:2:2",),
    }
    with running(probe, cases) as (shares, other):
        pid = shares.pid
        twin = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        assert eventually(lambda: os.stat(f"/proc/{twin}").st_uid == 1001)
        table, row = model(shares, other, more=[twin])
        said = table.relation("mem-write", effective=True)
        try:
            for actor in (shares, other):
                kernel = actor.ask("mem-write", twin) == 0
                assert said.state(row[actor.pid], row[twin]) is kernel
            assert said[row[pid], row[twin]]
            assert not said[row[other.pid], row[twin]]
        finally:
            os.kill(twin, signal.SIGKILL)


def test_the_master_of_a_terminal_is_its_power(probe):
    master, slave = pty.openpty()
    holder = Actor("holder", probe, f"{USER} exec", pass_fds=[master])
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        "mount -t devpts -o newinstance,ptmxmode=0666 none /dev/pts && mount --bind /dev/pts/ptmx"
        " /dev/ptmx && exec python3 -c 'import pty,time; m,s=pty.openpty(); print(s,flush=1);"
        " import os; print(os.ttyname(s), flush=1); time.sleep(60)'",
    ]
    elsewhere = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def take_terminal():
        os.setsid()
        import fcntl
        import termios

        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    victim = subprocess.Popen(["sleep", "60"], preexec_fn=take_terminal, pass_fds=[slave])
    try:
        assert elsewhere.stdout
        elsewhere.stdout.readline()
        name = elsewhere.stdout.readline().strip()
        os.close(slave)
        more = [victim.pid, os.getpid(), elsewhere.pid]
        table, row = model(holder, more=more)
        relation = table.relation("terminal", effective=True)
        assert relation[row[holder.pid], row[victim.pid]]
        assert relation[row[os.getpid()], row[victim.pid]]
        assert relation.state(row[elsewhere.pid], row[victim.pid]) is False, name
        assert relation.nnz == 2
        assert relation.unknown.nnz == 0
        os.write(master, bytes([28]))  # ^\\ is SIGQUIT
        assert victim.wait(5) == -signal.SIGQUIT
    finally:
        for process in (victim, elsewhere):
            process.kill()
            process.wait()
        elsewhere.stdout.close()
        holder.stop()
        os.close(master)


def test_writing_cgroup_kill_ends_what_is_said(probe):
    """Delegated to uid 1000: it cannot signal root's process, and ends it all the same."""
    top = Path("/sys/fs/cgroup/unified")
    top = top if top.exists() else Path("/sys/fs/cgroup")
    if not (top / "cgroup.procs").exists():
        pytest.skip("no cgroup v2 here")
    place = top / f"control-effect-{os.getpid()}"
    place.mkdir()
    target, owner, other = actors = [
        Actor("target", probe, ""),
        Actor("owner", probe, f"{USER} exec"),
        Actor("other", probe, f"{OTHER} exec"),
    ]
    try:
        os.chown(place / "cgroup.kill", 1000, 1000)
        (place / "cgroup.procs").write_text(str(target.pid))
        start = start_of(target.pid)
        table, row = model(*actors)
        said = table.relation("cgroup-kill", effective=True)
        kill = table.relation("kill", effective=True)

        assert not kill[row[owner.pid], row[target.pid]]
        assert said[row[owner.pid], row[target.pid]]
        assert said.state(row[other.pid], row[target.pid]) is False
        assert other.ask("write", 0, f"{place}/cgroup.kill=1") != 0
        assert not dead(target.pid, start)
        assert owner.ask("write", 0, f"{place}/cgroup.kill=1") == 0
        assert eventually(lambda: dead(target.pid, start))
    finally:
        for actor in actors:
            actor.stop()
        assert eventually(lambda: not (place / "cgroup.procs").read_text())
        place.rmdir()
