"""daemon against a real dockerd: who can connect is asked of the kernel, by connecting."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from control_actors import Actor, build_for

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.evaluation.base import CannotRun
from benchmarks.evaluation.mechanisms import MECHANISMS

import osmosis
from osmosis.relations.control.table import control

pytestmark = pytest.mark.live

USER = "groups gid:1000:1000:1000 uid:1000:1000:1000"
GROUP = 64021  # owns the socket in this test
ACTORS = {
    "root": ("",),
    "root without any": ("caps:0:0",),
    "user": (f"{USER} exec",),
    "user in the group": (f"groups:{GROUP} gid:1000:1000:1000 uid:1000:1000:1000 exec",),
    "user with CAP_DAC_OVERRIDE": (f"keep {USER} caps:2:2 dumpable:1",),
    "userns of user": (f"{USER} exec user uid:0:0:0 gid:0:0:0", "0/1000/1"),
    "userns of root, shifted": ("user gid:0:0:0 uid:0:0:0 exec", "0/100000/65536"),
}


@pytest.fixture(scope="module")
def docker():
    """Three containers; app has the daemon's socket mounted."""
    work = Path("/var/tmp") / f"osmosis-daemon-{os.getpid()}"
    mechanism = MECHANISMS["docker-socket"]()
    try:
        try:
            instances = mechanism.up(work)
        except CannotRun as exc:
            if os.environ.get("OSMOSIS_LIVE") == "1":
                pytest.fail(f"OSMOSIS_LIVE=1, but: {exc}", pytrace=False)
            pytest.skip(str(exc))
        path = mechanism._host[1].removeprefix("unix://")
        os.chown(path, 0, GROUP)
        Path(path).chmod(0o660)
        yield instances, path
    finally:
        mechanism.down()
        shutil.rmtree(work, ignore_errors=True)


@pytest.fixture(scope="module")
def actors(docker, tmp_path_factory):
    probe = build_for(tmp_path_factory)
    started = []
    try:
        for name, (ops, *maps) in ACTORS.items():
            started.append(Actor(name, probe, ops, tuple(maps)))
        yield started
    finally:
        for actor in started:
            actor.stop()


@pytest.fixture(scope="module")
def connected(docker):
    """A user who could not connect, and was given a connection."""
    with socket.socket(socket.AF_UNIX) as given:
        given.connect(docker[1])
        child = subprocess.Popen(
            ["sleep", "1000000"],
            user=64022,
            group=64022,
            extra_groups=[],
            pass_fds=[given.fileno()],
        )
    yield child.pid
    child.kill()
    child.wait()


@pytest.fixture(scope="module")
def asked(docker, actors, connected):
    snap = osmosis.capture()
    row = {pid: i + 1 for i, pid in enumerate(snap["process_pid"].tolist())}
    return control(snap), row


def states(asked, pid: int, others) -> set[bool | None]:
    table, row = asked
    relation = table.relation("daemon", effective=True)
    found = set()
    for other in others:
        if other != pid:
            state = relation.state(row[pid], row[other])
            finding = table.finding("daemon", row[pid], row[other], effective=True)
            assert finding.state is state, finding
            found.add(state)
    return found


def test_who_may_connect_has_the_daemons_power_over_everybody(docker, actors, asked):
    instances, path = docker
    targets = [instances.db, instances.app, os.getpid(), *(a.pid for a in actors)]
    targets += instances.others["daemon"]
    allowed = {}
    for a in actors:
        # Opening a socket file asks what connecting asks, and then gives ENXIO.
        answer = a.ask("write", 0, f"{path}=")
        assert answer in (errno.ENXIO, errno.EACCES)
        allowed[a.name] = answer == errno.ENXIO
        assert states(asked, a.pid, targets) == {allowed[a.name]}, a
    assert set(allowed.values()) == {True, False}


def test_a_container_that_sees_the_socket_has_it_and_the_others_do_not(docker, asked):
    instances, path = docker
    targets = [os.getpid(), instances.bystander, *instances.others["daemon"]]
    for name, pid in (("app", instances.app), ("db", instances.db)):
        line = ["docker", "--host", f"unix://{path}", "exec", name]
        line += ["test", "-w", "/var/run/docker.sock"]
        writable = subprocess.run(line, check=False, capture_output=True).returncode == 0

        assert writable is (name == "app")
        assert states(asked, pid, targets) == {writable}


def test_a_connection_that_was_given_is_as_good(docker, asked, connected):
    instances, _ = docker

    assert states(asked, connected, [instances.db, os.getpid()]) == {True}


def test_the_reason_names_the_daemon_and_its_socket(docker, asked):
    instances, path = docker
    table, row = asked

    found = table.finding("daemon", row[instances.app], row[instances.db], effective=True)

    assert path in found.reason
    assert "inherits its power" in found.reason


def test_without_the_sources_it_is_unknown(docker):
    instances, _ = docker
    pids = [instances.app, instances.db]
    snap = osmosis.capture(pids=pids, sources=["control", "namespaces", "mounts"])

    assert control(snap).relation("daemon", effective=True).state(1, 2) is None
