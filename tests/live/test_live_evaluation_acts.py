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
from struct import iter_unpack

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


def mapped(pid: int, name: str) -> dict[int, int]:
    """Page frame of each present page of a library that a process maps for execution.

    By the offset in the file; from /proc/pid/maps and /proc/pid/pagemap.
    """
    found = {}
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/pagemap").open("rb") as pagemap:
        for span, mode, offset, *_ in (line.split() for line in lines if name in line):
            first, last = (int(edge, 16) >> 12 for edge in span.split("-"))
            if "x" not in mode:
                continue
            pagemap.seek(first * 8)
            for i, (entry,) in enumerate(iter_unpack("Q", pagemap.read((last - first) * 8))):
                if entry >> 63:
                    found[(int(offset, 16) >> 12) + i] = entry & (1 << 55) - 1
    return found


def test_the_libraries_of_one_image_are_shared_for_reading_and_never_for_writing(fleet):
    one, other = fleet.run("one-of-image"), fleet.run("other-of-image")
    frames = [mapped(pid, "/libc.so.6") for pid in (one, other)]
    common = set(frames[0].items()) & set(frames[1].items())
    assert common  # one and the same page of the page cache, at one place of one file
    model = osmosis.capture().model()
    pair = f"pid:{one}", f"pid:{other}"

    assert model.shares(*pair, types={"MO"}, access="R").state is True
    pages = model.shared_pages([pair[0]], [pair[1]])
    assert pages.toarray()[0, 0] >= len(common)
    for x, y in (pair, pair[::-1]):
        assert model.shares(x, y, types={"MO", "FILE", "SHM"}, access="W").state is False
    # What one writes to its library the other does not get: the overlay copies it.
    library = fleet.inside("one-of-image", "sh", "-c", "ls /lib/*/libc.so.6").strip()
    tail = ("sh", "-c", f"tail -c 4 {library} | od -An -tx1")
    before = fleet.inside("other-of-image", *tail)
    assert fleet.inside("one-of-image", "sh", "-c", f"printf word >>{library}") == ""
    assert fleet.inside("one-of-image", *tail).split() == ["77", "6f", "72", "64"]
    assert fleet.inside("other-of-image", *tail) == before


def test_a_file_that_is_open_through_a_volume_is_one_with_w_on_the_writers_side(fleet):
    fleet.docker._docker("volume", "create", "log")
    wait = "sleep 1000000"
    writer = fleet.run(
        "logs", "--volume=log:/a", argv=("sh", "-c", f"exec 5>>/a/file; echo word >&5; {wait}; :")
    )
    reads = f"until test -s /b/file; do sleep 0.1; done; exec 5</b/file; {wait}; :"
    reader = fleet.run("looks", "--volume=log:/b", argv=("sh", "-c", reads))
    until = time.monotonic() + 10
    opened = Path(f"/proc/{reader}/fd/5")
    while not os.path.lexists(opened) and time.monotonic() < until:
        time.sleep(0.05)
    assert opened.read_text() == "word\n"
    inode = opened.stat().st_ino
    model = osmosis.capture().model()
    w, r = f"pid:{writer}", f"pid:{reader}"

    def files(x: str, y: str, access: str) -> set[str]:
        found = model.common_resources(x, y, types={"FILE"}, access=access).ids
        return {name for name in found if name.endswith(f"_{inode}")}

    assert len(files(r, w, "W")) == 1  # the writer acts
    assert files(w, r, "R") == files(r, w, "W")
    assert not files(w, r, "W")
    assert writer in model.tcb(r, types={"FILE"}).parts["shared"].pids
    assert reader not in model.tcb(w, types={"FILE"}).parts["shared"].pids


def test_a_bound_docker_socket_is_a_mount_in_common_with_the_host(fleet):
    there = "/run/docker.sock"
    holder = fleet.run("bound", f"--volume={fleet.socket}:{there}")
    model = osmosis.capture().model()
    host, bystander = f"pid:{os.getpid()}", fleet.pid("bystander")
    options = {"types": {"MOUNT"}, "access": "W"}

    assert fleet.socket.stat().st_ino == Path(f"/proc/{holder}/root{there}").stat().st_ino
    assert holder in model.shared_resources(host, **options, potential=True).pids
    assert holder not in model.shared_resources(host, **options).pids  # not observed
    assert bystander not in model.shared_resources(f"pid:{holder}", **options, potential=True).pids
