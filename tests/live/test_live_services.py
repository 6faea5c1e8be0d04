"""Who serves whom, with real servers: Redis, a FUSE filesystem, a forking daemon."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from children import child
from programs import QUIET, asks, running, until

import osmosis

pytestmark = pytest.mark.live

SOURCES = {"files", "mounts", "namespaces", "sockets"}


def capture(*pids):
    return osmosis.capture(pids, sources=SOURCES).model()


@pytest.fixture
def redis(tmp_path, need):
    program = shutil.which("redis-server")
    if program is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-q", "redis-server"], capture_output=True)
        program = shutil.which("redis-server")
    need(program, "needs redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = tmp_path / "redis.sock"
    words = [program, "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(path)]
    words += ["--save", "", "--dir", str(tmp_path), "--daemonize", "no"]
    with running(*words, stdout=subprocess.DEVNULL) as process:
        until(path.exists, "the start of redis-server")
        yield process.pid, port, str(path)


def test_clients_of_redis_ask_it_and_not_each_other(redis):
    server, port, path = redis
    ping = "s.sendall(b'PING\\r\\n'); pong = s.recv(64).decode()"
    with child() as tcp, child() as unix, child() as none:
        tcp.do(f"s = socket.create_connection(('127.0.0.1', {port})); {ping}")
        unix.do(f"s = socket.socket(socket.AF_UNIX); s.connect({path!r}); {ping}")
        assert tcp.ask("pong") == unix.ask("pong") == "+PONG\r\n"
        model = capture(server, tcp.pid, unix.pid, none.pid)
        assert asks(model, tcp.pid) == asks(model, unix.pid) == {server}
        assert asks(model, none.pid) == asks(model, server) == set()
        x, y, z = (model.pd(f"pid:{c.pid}") for c in (tcp, unix, none))
        assert not model.shares(x, y, types={"SOCKET"})
        assert bool(model.shares(x, model.pd(f"pid:{server}"), types={"SOCKET"}, access="W"))
        assert not model.shares(z, model.pd(f"pid:{server}"), types={"SOCKET"})
        common = set(model.common_ancestors(x, y).pids.tolist())
        assert server in common
        assert server not in set(model.common_ancestors(x, z).pids.tolist())
        assert model.fr(x, y, types={"SOCKET"}) == 1
        assert model.fr(x, z, types={"SOCKET"}) == float("inf")


def test_a_child_that_answers_and_the_parent_that_listens(tmp_path):
    """As sshd does: the child has the connection, and has closed the listening socket."""
    with child() as server, child() as client:
        server.do("s = socket.create_server(('127.0.0.1', 0)); port = s.getsockname()[1]")
        client.do(f"s = socket.create_connection(('127.0.0.1', {server.ask('port')}))")
        server.do("c, _ = s.accept(); kid = fork(s.close); c.close()")
        kid = server.ask("kid")
        assert asks(capture(server.pid, client.pid, kid), client.pid) == {server.pid, kid}


def test_another_listener_of_the_name_is_not_surely_the_one_that_accepted():
    name = f"\0osmosis-{os.getpid()}"
    with child() as old, child() as new, child() as client:
        old.do(f"s = socket.socket(socket.AF_UNIX); s.bind({name!r}); s.listen()")
        client.do(f"s = socket.socket(socket.AF_UNIX); s.connect({name!r})")
        old.do("c, _ = s.accept(); s.close()")
        assert asks(capture(old.pid, new.pid, client.pid), client.pid) == {old.pid}
        new.do(f"s = socket.socket(socket.AF_UNIX); s.bind({name!r}); s.listen()")
        model = capture(old.pid, new.pid, client.pid)
        found = model.services(model.pd(f"pid:{client.pid}"))
        assert set(found.pids.tolist()) - {0} == {old.pid}
        assert new.pid in found.unknown.pids


def test_a_tcp_connection_whose_listener_is_gone_has_no_sure_direction():
    with child() as server, child() as client:
        server.do("s = socket.create_server(('127.0.0.1', 0)); port = s.getsockname()[1]")
        client.do(f"s = socket.create_connection(('127.0.0.1', {server.ask('port')}))")
        server.do("c, _ = s.accept(); s.close()")
        model = capture(server.pid, client.pid)
        for a, b in ((server, client), (client, server)):
            found = model.services(model.pd(f"pid:{a.pid}"))
            assert b.pid not in found.pids
            assert b.pid in found.unknown.pids


def test_all_who_hold_the_listening_socket_are_asked(tmp_path):
    path = str(tmp_path / "s")
    with child() as server, child() as client:
        server.do(f"s = socket.socket(socket.AF_UNIX); s.bind({path!r}); s.listen(); kid = fork()")
        client.do(f"s = socket.socket(socket.AF_UNIX); s.connect({path!r})")
        kid = server.ask("kid")
        assert asks(capture(server.pid, client.pid, kid), client.pid) == {server.pid, kid}
        server.do("c, _ = s.accept()")
        assert asks(capture(server.pid, client.pid, kid), client.pid) == {server.pid, kid}


def test_a_service_reached_through_another_mount_namespace(tmp_path):
    """The path has another name there: it is the socket file that is the same."""
    there = tmp_path / "there"
    there.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    with child() as server, child() as client:
        server.do(f"s = socket.socket(socket.AF_UNIX); s.bind({str(home / 's')!r}); s.listen()")
        client.do("unshare(CLONE_NEWNS); mount(None, '/', None, 0x4000 | 0x40000)")
        client.do(f"mount({str(home)!r}, {str(there)!r}, None, 0x1000)")
        client.do(f"s = socket.socket(socket.AF_UNIX); s.connect({str(there / 's')!r})")
        server.do("c, _ = s.accept()")
        assert asks(capture(server.pid, client.pid), client.pid) == {server.pid}


@pytest.fixture
def fuse(tmp_path, need):
    """Run fuse-overlayfs; the server, and where it is mounted."""
    program = shutil.which("fuse-overlayfs")
    need(program, "needs fuse-overlayfs")
    need(os.path.exists("/dev/fuse"), "needs /dev/fuse")
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    for name in ("file", "other"):
        (tmp_path / "lower" / name).write_text("x")
    merged = tmp_path / "merged"
    layers = ",".join(f"{n}dir={tmp_path / n}" for n in ("lower", "upper", "work"))
    with running(program, "-f", "-o", layers, merged, **QUIET) as server:
        try:
            until((merged / "file").exists, "the mount")
            yield server.pid, merged
        finally:
            subprocess.run(["umount", str(merged)], check=False)


def test_a_fuse_server_is_asked_by_those_who_use_its_files(fuse, tmp_path):
    server, merged = fuse
    with child() as user, child() as mapper, child() as other:
        user.do(f"f = open({str(merged / 'file')!r})")
        mapper.do(f"import mmap; f = open({str(merged / 'file')!r})")
        mapper.do("m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); f.close()")
        other.do(f"f = open({str(tmp_path / 'lower/file')!r})")
        snap = osmosis.capture((server, user.pid, mapper.pid, other.pid))
        model = snap.model()
        for c in (user, mapper):
            assert server in answers(snap, model, c.pid)
        found = model.services(model.pd(f"pid:{other.pid}"))
        assert server not in found.pids
        text = Path(f"/proc/{server}/mountinfo").read_text()
        minor = next(w for w in text.splitlines() if str(merged) in w).split()[2]
        told = bool((snap["fuse_known"] == 1).any())
        assert not told or f"0:{snap['fuse_dev'][0] & 0xFFFFFFFF}" == minor


def answers(snap, model, pid):
    """Whom a process asks; where the kernel does not tell whose a connection is, may ask."""
    found = model.services(model.pd(f"pid:{pid}"))
    return found.pids if (snap["fuse_known"] == 1).any() else found.unknown.pids


def test_a_fuse_server_is_asked_from_other_mount_namespaces(fuse, tmp_path):
    """A bind mount, a root there, and one who has it mounted and uses nothing of it.

    The second source: while the server is stopped, who uses its files waits, and nobody else.
    """
    server, merged = fuse
    there = tmp_path / "there"
    there.mkdir()
    apart = "unshare(CLONE_NEWNS); mount(None, '/', None, 0x4000 | 0x40000)"  # MS_REC | MS_PRIVATE
    with child(apart) as bound, child(apart) as rooted, child(apart) as idle:
        bound.do(f"mount({str(merged)!r}, {str(there)!r}, None, 0x1000)")  # MS_BIND
        bound.do(f"f = open({str(there / 'file')!r})")
        rooted.do(f"os.chroot({str(merged)!r}); os.chdir('/')")
        snap = osmosis.capture((server, bound.pid, rooted.pid, idle.pid))
        model = snap.model()
        expected = {bound.pid: "there/other", rooted.pid: "merged/other", idle.pid: "lower/other"}
        asked = {pid: server in answers(snap, model, pid) for pid in expected}
        assert asked == {bound.pid: True, rooted.pid: True, idle.pid: False}
        x, y = (model.pd(f"pid:{c.pid}") for c in (bound, rooted))
        z = model.pd(f"pid:{idle.pid}")
        if (snap["fuse_known"] == 1).any():
            assert model.fr(x, y, types={"FILE"}) == 1
            assert model.fr(x, z, types={"FILE"}) == float("inf")

        def waits(pid, name):
            line = ["nsenter", f"--target={pid}", "--mount", "timeout", "1", "cat"]
            done = subprocess.run([*line, str(tmp_path / name)], capture_output=True)
            return done.returncode == 124

        os.kill(server, signal.SIGSTOP)
        try:
            assert {pid: waits(pid, name) for pid, name in expected.items()} == asked
        finally:
            os.kill(server, signal.SIGCONT)
        assert not any(waits(pid, name) for pid, name in expected.items())


def test_a_hypervisor_is_asked_for_its_machine_and_its_guest_is_opaque(tmp_path, need):
    program = shutil.which("qemu-system-x86_64")
    need(program, "needs qemu-system-x86_64 (qemu-system-x86)")
    path = tmp_path / "qmp"
    words = [program, "-accel", "tcg", "-m", "32", "-display", "none", "-nodefaults", "-S"]
    words += ["-no-user-config", "-qmp", f"unix:{path},server=on,wait=off"]
    with running(*words, **QUIET) as vmm, child() as client, child() as other:
        until(path.exists, "the machine's socket")
        client.do(f"s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r})")
        client.do("f = s.makefile('rw'); hello = json.loads(f.readline())")
        client.do('f.write(\'{"execute": "qmp_capabilities"}\'); f.flush(); f.readline()')
        client.do('f.write(\'{"execute": "query-status"}\'); f.flush()')
        assert client.ask("json.loads(f.readline())")["return"]["running"] is False
        pids = (1, vmm.pid, client.pid, other.pid)
        model = osmosis.capture(pids, sources=SOURCES).model()
        assert asks(model, client.pid) == {vmm.pid}
        assert asks(model, vmm.pid) == asks(model, other.pid) == set()
        x, y, z = (model.pd(f"pid:{pid}") for pid in pids[1:])
        assert x.role == "vmm"
        assert model.isolation(x, y)["vm"].state == "separated"
        assert model.isolation(y, z)["vm"].state == "shared"
        assert all(model.kernel.pid in model.services(pd).pids for pd in (x, y, z))
