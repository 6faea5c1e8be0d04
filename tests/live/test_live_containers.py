"""Real containers: the names and roles that structure gives are those that the runtime knows.

The second source is the runtime itself (``docker inspect``, ``podman inspect``, the command that
started it); osmosis asks no daemon. The mechanisms are those of benchmarks/evaluation.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.evaluation.base import CannotRun, Instances, comm, parent, start_time
from benchmarks.evaluation.mechanisms import MECHANISMS
from control_actors import Actor, build_for

import osmosis
from osmosis.relations import roles
from osmosis.relations.control.table import control
from osmosis.snapshot import Snapshot

pytestmark = pytest.mark.live

RUNTIMES = {"docker": "docker", "podman-rootless": "podman", "apptainer": "apptainer"}
LIAR_UID = 64020
DECIDED = {
    *("kill", "kill-group", "trace-attach", "mem-write", "end-namespace", "cgroup-kill", "limit"),
    *("terminal", "supervise", "daemon", "rewrite"),
}
ASKED = ("kill", "trace-attach", "mem-write", "limit")


@dataclass
class Case:
    """One mechanism that is up, and the host as osmosis saw it."""

    mechanism: str
    instances: Instances
    snapshot: Snapshot
    roles: roles.Roles
    row: dict[int, int]
    liars: list[int]

    def __call__(self, pid: int, what: str = "container") -> Any:
        return getattr(self.roles, what)[self.row[pid]]

    @property
    def trio(self) -> tuple[int, int, int]:
        return self.instances.db, self.instances.app, self.instances.bystander


@pytest.fixture(scope="module", params=RUNTIMES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    # Not below pytest's own folder: an ordinary user must be able to enter it.
    work = Path("/var/tmp") / f"osmosis-live-{os.getpid()}" / request.param
    mechanism = MECHANISMS[request.param]()
    liars: list[subprocess.Popen[bytes]] = []
    try:
        try:
            instances = mechanism.up(work)
        except CannotRun as exc:
            if os.environ.get("OSMOSIS_LIVE") == "1":
                pytest.fail(f"OSMOSIS_LIVE=1, but: {exc}", pytrace=False)
            pytest.skip(str(exc))
        liars = [lie(work, name) for name in ("containerd-shim", "dockerd", "conmon")]
        found = osmosis.capture(sources=["namespaces", "files", "sockets"])
        host = {**found.host, "roles": instances.roles(), "containers": instances.containers}
        snapshot = Snapshot(found.columns, host)
        row = {pid: i for i, pid in enumerate(snapshot["process_pid"].tolist())}
        yield Case(
            request.param, instances, snapshot, roles.name(snapshot), row, [p.pid for p in liars]
        )
    finally:
        for child in liars:
            child.send_signal(signal.SIGKILL)
            child.wait()
        mechanism.down()
        shutil.rmtree(work.parent, ignore_errors=True)


def lie(work: Path, name: str) -> subprocess.Popen[bytes]:
    """Start an ordinary user's process that has a runtime's name in exe, comm and arguments."""
    program = work / name
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    program.chmod(0o755)
    return subprocess.Popen([program, "1000000"], user=LIAR_UID, group=LIAR_UID, extra_groups=[])


def test_each_container_is_found_by_itself(case):
    labels = [case(pid) for pid in case.trio]

    assert None not in labels
    assert len(set(labels)) == 3
    assert {case(pid, "container_runtime") for pid in case.trio} == {RUNTIMES[case.mechanism]}


def test_a_container_has_the_name_that_its_runtime_knows(case):
    assert [case(pid) for pid in case.trio] == ["db", "app", "bystander"]
    for ident, label in case.instances.containers.items():
        at = case.roles.container.index(label)
        assert case.roles.aliases[at] == (label, ident[:12], ident)


def test_nothing_of_the_host_is_in_a_container(case):
    inside = {case.snapshot["process_pid"][i] for i, c in enumerate(case.roles.container) if c}
    mine = {space_of(pid) for pid in case.trio}

    assert not inside & {1, os.getpid(), *case.liars}
    assert {int(pid) for pid in inside if space_of(int(pid)) in mine} >= set(case.trio)


def test_daemons_shims_and_network_helpers_have_their_roles(case):
    for role, pids in case.instances.others.items():
        assert {pid: case(pid, "role") for pid in pids} == dict.fromkeys(pids, role)


def test_the_shim_of_a_container_is_its_parent(case):
    for pid in case.trio:
        assert case(pid) in case(parent(pid), "monitors")


def test_given_roles_are_kept(case):
    assert [case(pid, "role") for pid in case.trio] == ["db", "app", "bystander"]


def test_an_ordinary_users_liar_has_no_role_of_the_runtime(case):
    assert [case(pid, "role") for pid in case.liars] == ["host-user"] * 3
    assert {case(pid, "monitors") for pid in case.liars} == {()}


@pytest.fixture
def pretender():
    """A user with a sandbox of its own, and processes with a runtime's names and arguments."""
    if shutil.which("bwrap") is None:
        if os.environ.get("OSMOSIS_LIVE") == "1":
            pytest.fail("OSMOSIS_LIVE=1, but bwrap is not installed", pytrace=False)
        pytest.skip("bwrap is not installed: apt-get install bubblewrap")
    work = Path("/var/tmp") / f"osmosis-pretender-{os.getpid()}"
    work.mkdir()
    work.chmod(0o755)
    as_user = {"user": LIAR_UID, "group": LIAR_UID, "extra_groups": [], "stdin": subprocess.PIPE}
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        box = ["bwrap", "--die-with-parent", "--unshare-user", "--unshare-pid"]
        box += ["--ro-bind", "/", "/", "--dev", "/dev"]
        started["box"] = subprocess.Popen([*box, "sleep", "1000000"], cwd="/", **as_user)
        for name in ("dockerd", "slirp4netns", "conmon"):
            started[name] = lie(work, name)
        shutil.copy("/bin/bash", work / "runsc")
        for verb in ("boot", "gofer"):
            fake = [work / "runsc", "-c", "echo; read x; :", "runsc", verb, "--bundle=/b/db"]
            started[verb] = subprocess.Popen(
                ["unshare", "-Urm", *fake], cwd="/", stdout=subprocess.PIPE, **as_user
            )
            assert started[verb].stdout is not None
            assert started[verb].stdout.readline() == b"\n"
        yield {name: child.pid for name, child in started.items()}
    finally:
        for child in started.values():
            child.kill()
            child.communicate()
        shutil.rmtree(work)


def test_a_user_with_a_sandbox_gets_no_role_by_names(pretender):
    """Its own powers are a user's, whatever it calls its processes."""
    snapshot = osmosis.capture()
    named = roles.name(snapshot)
    row = {pid: i for i, pid in enumerate(snapshot["process_pid"].tolist())}
    got = {name: named.role[row[pid]] for name, pid in pretender.items()}

    lies = dict.fromkeys(("dockerd", "slirp4netns", "conmon"), "host-user")
    assert got == {"box": "shim", **lies, "boot": "container", "gofer": "container"}
    assert named.container_runtime[row[pretender["boot"]]] == "namespaces"
    model = snapshot.model()
    between = model.isolation(f"pid:{os.getpid()}", f"pid:{pretender['boot']}")
    assert between["vm"].state == "unknown"


@pytest.fixture(scope="module")
def actors(case, tmp_path_factory):
    """A probe in the place of each container's process, root and a user of the host."""
    probe = build_for(tmp_path_factory, "-static")
    started: list[Actor] = []
    try:
        for pid in case.trio:
            started.append(Inside(probe, pid))
        started.append(Actor("root", probe, ""))
        started.append(Actor("user", probe, "groups gid:1000:1000:1000 uid:1000:1000:1000 exec"))
        yield started
    finally:
        for actor in started:
            actor.stop()


@pytest.fixture(scope="module")
def whole(actors):
    """Everything that decides who may control whom."""
    return osmosis.capture()


@pytest.fixture(scope="module")
def model(whole):
    """The whole host: who is in the TCB of db."""
    return whole.model()


def controllers(model, pid: int) -> set[int]:
    return set(model.controllers(f"pid:{pid}").pids.tolist())


def test_kernel_daemon_and_shim_control_the_database(case, model):
    got = controllers(model, case.instances.db)

    assert model.kernel.pid in got
    assert set(case.instances.others.get("daemon", [])) <= got
    assert parent(case.instances.db) in got


def test_the_bystanders_container_does_not_control_the_database(case, model):
    db = f"pid:{case.instances.db}"
    got = controllers(model, case.instances.db)
    # Apptainer's layers are mounted where nobody can look any more: who could write to them is
    # not known.
    verbs = DECIDED - {"rewrite"} if case.mechanism == "apptainer" else DECIDED
    unknown = set(model.controllers(db, verbs=verbs).unknown.pids.tolist())
    members = {
        int(pid)
        for pid, label in zip(case.snapshot["process_pid"], case.roles.container, strict=True)
        if label == case(case.instances.bystander)
    }
    # appinit is the instance's own init: its powers are the container's.
    assert not members & got
    why = [
        (verb, pid, found.reason)
        for pid in members & unknown
        for verb in verbs
        if (found := model.may(f"pid:{pid}", verb, db)).state is None
    ]
    assert not members & unknown, why


def asked_by(model, pid: int, depth: int | None = 1) -> set[int]:
    return set(model.services(f"pid:{pid}", depth=depth).pids.tolist())


def test_the_keeper_of_a_containers_output_is_its_monitor(case, model):
    """By /proc: the shim, or conmon, has the other end of the same pipe."""
    for pid in case.trio:
        boss = parent(pid)
        mine = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)}
        its = {os.readlink(f"/proc/{boss}/fd/{fd}") for fd in os.listdir(f"/proc/{boss}/fd")}
        pipes = {link for link in mine & its if link.startswith("pipe:")}
        assert pipes or case.mechanism == "apptainer"
        assert (boss in asked_by(model, pid)) is bool(pipes)


def test_the_application_asks_the_database_the_way_that_its_network_is_made(case, model):
    """A connection, or in rootless Podman by slirp4netns and rootlessport of one and the other."""
    db, app, bystander = case.trio
    assert db not in asked_by(model, bystander, None)
    assert app not in asked_by(model, db, None)
    if case.mechanism != "podman-rootless":
        assert db in asked_by(model, app)
        return
    network = {pid: comm(pid) for pid in case.instances.others["network"]}
    slirps = {pid for pid, name in network.items() if name.startswith("slirp4netns")}
    mine = {pid: asked_by(model, pid) & slirps for pid in case.trio}
    assert all(len(found) == 1 for found in mine.values())
    assert set.union(*mine.values()) == slirps
    for pid, found in mine.items():  # Podman tells slirp4netns where the namespace is mounted
        (server,) = found
        words = Path(f"/proc/{server}/cmdline").read_text().split("\0")
        path = words[words.index("--netns-type=path") + 1]
        mounts = Path(f"/proc/{parent(pid)}/mountinfo").read_text().splitlines()
        (root,) = {line.split()[3] for line in mounts if line.split()[4] == path}
        assert root == os.readlink(f"/proc/{pid}/ns/net")
    assert db not in asked_by(model, app)
    assert db in asked_by(model, app, None)


def test_what_was_decided_is_what_the_kernel_says(case):
    """The bystander's own processes try to reach db: there is no such pid for them."""
    tool = shutil.which("nsenter")
    line = [tool, f"--target={case.instances.bystander}", "--pid", "--mount", "--root", "--"]

    # The pid as the host sees it means nothing there, or some other process of the container.
    listing = subprocess.run([*line, "ls", "/proc"], capture_output=True, text=True, check=True)
    seen = {int(word) for word in listing.stdout.split() if word.isdigit()}

    starts = {start_time_inside(line, pid) for pid in seen}
    assert start_time(case.instances.db) not in starts


def start_time_inside(line: list[str], pid: int) -> int:
    done = subprocess.run([*line, "cat", f"/proc/{pid}/stat"], capture_output=True, check=False)
    if done.returncode != 0:
        return -1
    return int(done.stdout[done.stdout.rindex(b")") + 2 :].split()[19])


class Target:
    """A process of which the kernel is asked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @property
    def tids(self) -> list[int]:
        return sorted(int(t) for t in os.listdir(f"/proc/{self.pid}/task"))


class Inside(Actor):
    """A probe with the namespaces, root directory, ids and capabilities of a process."""

    def __init__(self, probe: Path, pid: int) -> None:
        self.name, self.like = f"as {pid}", pid
        self.ops = credentials(pid)
        enter = ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        enter += ["--cgroup", "--root"]
        if os.stat(f"/proc/{pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
            enter += ["--user"]  # and become its root: whoever is not, loses all in exec
        with probe.open("rb") as program:
            fd = program.fileno()
            self.process = subprocess.Popen(
                [*enter, "--", f"/proc/self/fd/{fd}", *self.ops],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[fd],
                extra_groups=[],
            )
        try:
            self._start([])
        except BaseException:
            self.stop()
            raise

    def number(self, tid: int, *, in_proc: bool = False) -> int | None:
        del in_proc  # its /proc is that of its own pid namespace
        return super().number(tid)


def credentials(pid: int) -> list[str]:
    """Operations that make a probe what a process is, in the ids of its user namespace."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.partition(":")[0]: line.partition(":")[2].split() for line in status}

    def inner(kind: str, outer: str) -> int:
        for line in Path(f"/proc/{pid}/{kind}_map").read_text().splitlines():
            inside, outside, n = map(int, line.split())
            if outside <= int(outer) < outside + n:
                return inside + int(outer) - outside
        raise AssertionError((pid, kind, outer))

    uid = ":".join(str(inner("uid", x)) for x in fields["Uid"][:3])
    gid = ":".join(str(inner("gid", x)) for x in fields["Gid"][:3])
    caps = f"caps:{fields['CapEff'][0]}:{fields['CapPrm'][0]}"
    return ["keep", f"gid:{gid}", f"uid:{uid}", caps, "dumpable:1"]


def members(case) -> list[int]:
    """Processes of the containers, daemons, shims, and some of the host."""
    inside = [
        int(pid)
        for pid, label in zip(case.snapshot["process_pid"], case.roles.container, strict=True)
        if label
    ]
    others = [pid for pids in case.instances.others.values() for pid in pids]
    return sorted({*inside, *others, *case.liars, os.getpid()})


@pytest.fixture(scope="module")
def pairs(case, actors, whole):
    """(actor, its row, target, its row) of all that are alive still."""
    row = {pid: i + 1 for i, pid in enumerate(whole["process_pid"].tolist())}
    found = []
    for actor in actors:
        like = getattr(actor, "like", actor.pid)
        for pid in members(case):
            if pid in row and pid != like and Path(f"/proc/{pid}/task").exists():
                found.append((actor, row[like], Target(pid), row[pid]))
    assert len(found) > 50
    return control(whole), found


def compare(pairs, verb: str, ask, *, some: bool = True) -> None:
    table, found = pairs
    relation = table.relation(verb, effective=False)
    wrong, held = [], 0
    for a, i, b, j in found:
        kernel = ask(a, b)
        held += kernel
        if relation.state(i, j) is not kernel:
            finding = table.finding(verb, i, j, effective=False)
            wrong.append(f"{a} {verb} {b.pid} ({comm(b.pid)}): kernel says {kernel}, we {finding}")
    assert not wrong, f"{len(wrong)} of {len(found)} pairs:\n" + "\n".join(wrong[:10])
    assert held < len(found)
    assert held or not some


def names_of(path: str, a: int, b: int) -> list[str]:
    """Paths at which *a* may find what *b* has at *path*."""

    def mounts(pid: int) -> list[list[str]]:
        return [m.split() for m in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]

    # What is mounted at its own name tells where the tree that it is taken from lies.
    roots = {m[3].removesuffix(m[4]) for m in mounts(b) if m[3].endswith(m[4])}
    roots |= {m[3] for m in mounts(b) if m[4] == "/"}
    overlays = [m[4] for m in mounts(a) if "overlay" in m]
    return [path, *(root.rstrip("/") + path for root in (*roots, *overlays))]


@pytest.mark.parametrize("verb", ASKED)
def test_permission_is_what_the_kernel_says_inside(pairs, verb):
    compare(pairs, verb, lambda a, b: a.permitted(verb, b))


def test_cgroup_kill_is_what_open_says_inside(pairs):
    def group(pid: int) -> str:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        return next(line[3:] for line in lines if line.startswith("0::"))

    def may(a, b) -> bool:
        # An actor in a cgroup namespace sees what is below the cgroup that it was made in.
        there = os.stat(f"/proc/{a.pid}/ns/cgroup").st_ino
        apart = there != os.stat("/proc/self/ns/cgroup").st_ino
        base = group(a.like) if apart else ""
        at, answers = group(b.pid), []
        while at:
            if at == base or at.startswith(base + "/"):
                inner = at[len(base) :].rstrip("/")
                for where in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                    answers.append(a.ask("write", 0, f"{where}{inner}/cgroup.kill="))
            at = at.rpartition("/")[0]
        return 0 in answers

    compare(pairs, "cgroup-kill", may, some=any(group(b.pid) != "/" for *_, b, _ in pairs[1]))


def test_rewriting_is_what_open_says_inside(pairs):
    """Files that the actor sees at some path, told by device and inode."""
    table, found = pairs
    relation = table.relation("rewrite", effective=True)
    held, no = 0, 0
    for a, i, b, j in found:
        kernel = False
        for link in Path(f"/proc/{b.pid}/map_files").iterdir():
            for path in names_of(os.readlink(link), a.pid, b.pid):
                if kernel:
                    break
                with suppress(OSError):
                    same = os.path.samestat(os.stat(f"/proc/{a.pid}/root{path}"), link.stat())
                    kernel = same and a.ask("write", 0, f"{path}=") == 0
        state = relation.state(i, j)
        held += kernel
        no += state is False
        assert state in (kernel, None), (a, b.pid, table.finding("rewrite", i, j, effective=True))
    assert held
    assert no


def space_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""
