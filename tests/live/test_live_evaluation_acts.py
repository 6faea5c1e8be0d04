"""What the evaluation's table claims, done: the kill that works, the one that fails, the write.

Disposable containers of one Docker daemon; the model is asked first, then the kernel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.evaluation.base import CannotRun, comm
from benchmarks.evaluation.docker import IMAGE, Docker

import osmosis
from conftest import skip

pytestmark = pytest.mark.live

HOST_USER = 64010
# perl is in Debian's smallest system: what a container does is done in the container.
SYSCALL = 'my $r = syscall({number}, {args}); print $r < 0 ? "errno ".($!+0)."\\n" : "done\\n"'
KILL, PTRACE, ATTACH, ESRCH = 62, 101, 16, 3  # x86-64; asm/unistd_64.h, linux/ptrace.h
POST = r"""
use IO::Socket::UNIX;
my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "errno ".($!+0)."\n";
print $s "POST /containers/$ARGV[1]/kill HTTP/1.0\r\nHost: d\r\nContent-Length: 0\r\n\r\n";
print <$s>;
"""


@dataclass
class Fleet:
    """The evaluation's three containers, and disposable ones of the same daemon."""

    docker: Docker
    socket: Path

    def run(self, name: str, *options: str, argv: tuple[str, ...] = ("sleep", "1000000")) -> int:
        """Start a container; returns the pid of its first process."""
        self.docker._docker("run", "--detach", f"--name={name}", *options, IMAGE, *argv)
        return self.pid(name)

    def pid(self, name: str) -> int:
        return int(self.docker._inspect(name, "{{.State.Pid}}"))

    def inside(self, name: str, *argv: str) -> str:
        """Run a command in a container, as ``docker exec`` does; returns what it prints."""
        line = ["docker", *self.docker._host, "exec", name, *argv]
        done = subprocess.run(line, capture_output=True, text=True, timeout=30)
        return done.stdout + done.stderr

    def syscall(self, name: str, number: int, *args: int) -> str:
        words = ", ".join(map(str, args))
        return self.inside(name, "perl", "-e", SYSCALL.format(number=number, args=words)).strip()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    work = Path("/var/tmp") / f"osmosis-acts-{os.getpid()}"
    docker = Docker()
    try:
        try:
            docker.up(work)
        except CannotRun as exc:
            skip(str(exc))
        yield Fleet(docker, Path(docker._host[1].removeprefix("unix://")))
    finally:
        docker.down()
        shutil.rmtree(work, ignore_errors=True)


def ended(pid: int) -> bool:
    """Whether a process is gone within a few seconds."""
    until = time.monotonic() + 10
    while comm(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not comm(pid)


def test_the_daemons_user_kills_through_the_socket(fleet):
    victim = fleet.run("victim-of-root")
    with subprocess.Popen(["sleep", "100"]) as root:
        model = osmosis.capture().model()
        told = model.may(f"pid:{root.pid}", "daemon", f"pid:{victim}")
        witness = str(model.explain(f"pid:{victim}", f"pid:{root.pid}"))
        root.kill()

    assert told.state is True
    assert f"PD_{root.pid} --daemon--> PD_{victim}" in witness
    assert "docker.sock" in witness
    done = subprocess.run(
        ["perl", "-e", POST, fleet.socket, "victim-of-root"], capture_output=True, text=True
    )
    assert "204 No Content" in done.stdout
    assert ended(victim)


def test_a_user_without_rights_fails(fleet):
    victim = fleet.run("victim-of-user")
    user = {"user": HOST_USER, "group": HOST_USER, "extra_groups": []}
    with subprocess.Popen(["sleep", "100"], **user) as beside:
        model = osmosis.capture().model()
        for verb in ("kill", "trace-attach", "mem-write", "daemon"):
            assert model.may(f"pid:{beside.pid}", verb, f"pid:{victim}").state is False
        beside.kill()

    line = ["perl", "-e", POST, fleet.socket, "victim-of-user"]
    done = subprocess.run(line, capture_output=True, text=True, **user)
    assert done.stderr == "errno 13\n"  # EACCES, from connect
    done = subprocess.run(["kill", "-KILL", str(victim)], capture_output=True, **user)
    assert done.returncode != 0
    assert comm(victim) == "sleep"


def test_the_bystander_fails(fleet):
    db, bystander = fleet.pid("db"), fleet.pid("bystander")
    model = osmosis.capture().model()
    for verb in ("kill", "trace-attach", "mem-write"):
        said = model.may(f"pid:{bystander}", verb, f"pid:{db}")
        assert said.state is False, said

    assert fleet.syscall("bystander", KILL, db, 9) == f"errno {ESRCH}"
    assert fleet.syscall("bystander", PTRACE, ATTACH, db, 0, 0) == f"errno {ESRCH}"
    assert "No such file" in fleet.inside("bystander", "cat", f"/proc/{db}/maps")
    assert comm(db) == "redis-server"


def test_with_the_hosts_pids_the_same_kill_works(fleet):
    victim = fleet.run("victim-of-pids")
    actor = fleet.run("pids", "--pid=host")
    said = osmosis.capture().model().may(f"pid:{actor}", "kill", f"pid:{victim}")

    assert said.state is True
    assert fleet.syscall("pids", KILL, victim, 9) == "done"
    assert ended(victim)


def test_a_container_with_the_socket_kills_another(fleet):
    victim = fleet.run("victim-of-socket")
    holder = fleet.run("holder", f"--volume={fleet.socket}:/var/run/docker.sock")
    model = osmosis.capture().model()
    holder_pd, bystander = f"pid:{holder}", f"pid:{fleet.pid('bystander')}"

    assert model.may(holder_pd, "kill", f"pid:{victim}").state is False
    assert model.may(holder_pd, "daemon", f"pid:{victim}").state is True
    assert model.may(bystander, "daemon", f"pid:{victim}").state is False
    assert f"PD_{holder} --daemon--> PD_{victim}" in str(model.explain(f"pid:{victim}", holder_pd))

    there = "/var/run/docker.sock"
    assert fleet.inside("bystander", "perl", "-e", POST, there, "holder") == "errno 2\n"  # ENOENT
    assert "204 No Content" in fleet.inside("holder", "perl", "-e", POST, there, "victim-of-socket")
    assert ended(victim)


def test_what_one_writes_to_the_volume_the_other_sees(fleet):
    fleet.docker._docker("volume", "create", "note")
    wait = "until grep -q word /shared/note; do sleep 0.1; done; echo yes >/tmp/seen; sleep 1000000"
    reader = fleet.run("reader", "--volume=note:/shared", argv=("sh", "-c", wait))
    writer = fleet.run("writer", "--volume=note:/shared")
    model = osmosis.capture().model()
    options = {"types": {"MOUNT"}, "access": "W", "potential": True}
    sharers = set(model.shared_resources(f"pid:{reader}", **options).pids.tolist())

    assert writer in sharers
    assert fleet.pid("bystander") not in sharers
    assert fleet.pid("db") not in sharers
    assert fleet.inside("writer", "sh", "-c", "echo word >/shared/note") == ""
    until = time.monotonic() + 10
    while fleet.inside("reader", "cat", "/tmp/seen") != "yes\n" and time.monotonic() < until:
        time.sleep(0.1)
    assert fleet.inside("reader", "cat", "/tmp/seen") == "yes\n"
    assert "No such file" in fleet.inside("bystander", "cat", "/shared/note")
