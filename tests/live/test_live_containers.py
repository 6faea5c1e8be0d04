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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.evaluation.base import CannotRun, Instances, parent, start_time
from benchmarks.evaluation.mechanisms import MECHANISMS

import osmosis
from osmosis.relations import roles
from osmosis.snapshot import Snapshot

pytestmark = pytest.mark.live

RUNTIMES = {"docker": "docker", "podman-rootless": "podman", "apptainer": "apptainer"}
LIAR_UID = 64020
DECIDED = {"kill", "kill-group", "trace-attach", "end-namespace", "limit"}


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
        found = osmosis.capture(sources=["namespaces"])
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


@pytest.fixture(scope="module")
def model(case):
    """The whole host: who is in the TCB of db."""
    return case.snapshot.model()


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
    # What the credentials and namespaces alone decide; the rest wants mounts and descriptors.
    unknown = set(model.controllers(db, verbs=DECIDED).unknown.pids.tolist())
    members = {
        int(pid)
        for pid, label in zip(case.snapshot["process_pid"], case.roles.container, strict=True)
        if label == case(case.instances.bystander)
    }
    # appinit is the instance's own init: its powers are the container's.
    assert not members & got
    assert not members & unknown


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


def space_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""
