"""pasta, slirp4netns and rootlesskit: who is the network of a namespace, by what stops without it.

The second source is the network itself: a process inside asks a server of the host and gets an
answer; while the one that we say serves its namespace is stopped, it gets none.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.evaluation.base import Stage, comm, descendants
from children import child
from programs import QUIET, asks, free_port, may_ask, running, until

import osmosis

pytestmark = pytest.mark.live

USER = 64031
ENTER = f"""
raw('setresgid', {USER}, {USER}, {USER}); raw('setresuid', {USER}, {USER}, {USER}); prctl(4, 1)
new_user_namespace(CLONE_NEWNET)
def ask_host(address, port, patience=10):
    # A byte comes back from a server of the host, or nothing in time.
    s = socket.socket()
    s.settimeout(patience)
    try:
        s.connect((address, port))
        return s.recv(1).decode()
    except OSError:
        return ""
    finally:
        s.close()
"""
ECHO = """
server = socket.create_server(('127.0.0.1', 0)); port = server.getsockname()[1]
def answer():
    while True:
        c, _ = server.accept()
        c.send(b'!')
        c.close()
threading.Thread(target=answer, daemon=True).start()
"""


@pytest.fixture(scope="module", autouse=True)
def stage():
    """Let every user open the tun device, as distributions do."""
    stage = Stage(Path("/var/tmp") / f"osmosis-net-{os.getpid()}")
    try:
        if os.path.exists("/dev/net/tun"):
            stage.mode("/dev/net/tun", 0o666)
        yield stage
    finally:
        stage.close()
        shutil.rmtree(stage.work, ignore_errors=True)


def gateway():
    """The host's default gateway, which pasta gives another meaning inside: the host itself."""
    text = subprocess.run(["ip", "-4", "route", "show", "default"], capture_output=True, text=True)
    words = text.stdout.split()
    return words[words.index("via") + 1] if "via" in words else None


@contextmanager
def pasta(inside):
    words = ["pasta", "-f", "-q", "--config-net", "-t", "none", "-u", "none", inside.pid]
    who = {"user": USER, "group": USER, "extra_groups": [], "cwd": "/"}
    with running(*words, **QUIET, **who) as server:
        yield server, gateway()


@contextmanager
def slirp4netns(inside):
    r, w = os.pipe()
    words = ["slirp4netns", "-c", "-r", str(w), f"--userns-path=/proc/{inside.pid}/ns/user"]
    words += [str(inside.pid), "tap0"]
    who = {"user": USER, "group": USER, "extra_groups": [], "cwd": "/"}
    with running(*words, pass_fds=[w], **QUIET, **who) as server:
        os.close(w)
        assert os.read(r, 1) == b"1"  # it is ready
        os.close(r)
        yield server, "10.0.2.2"


@pytest.mark.parametrize("network", [pasta, slirp4netns], ids=["pasta", "slirp4netns"])
def test_the_network_of_a_namespace_is_whom_it_does_not_work_without(network, need):
    need(shutil.which(network.__name__), f"needs {network.__name__}")
    need(os.path.exists("/dev/net/tun"), "needs /dev/net/tun")
    need(network is slirp4netns or gateway(), "pasta needs a default route")
    with ExitStack() as stack:
        host = stack.enter_context(child(ECHO))
        port = host.ask("port")
        inside = [stack.enter_context(child(ENTER + "kid = fork()")) for _ in "ab"]
        servers, where = [], []
        for c in inside:
            server, address = stack.enter_context(network(c))
            until(lambda c=c, a=address: c.ask(f"ask_host({a!r}, {port}, 1)"), "an answer")
            servers.append(server.pid)
            where.append(address)
        kids = [c.ask("kid") for c in inside]
        snap = osmosis.capture([*(c.pid for c in inside), *kids, *servers, host.pid])
        model = snap.model()
        for c, kid, server, other in zip(inside, kids, servers, servers[::-1], strict=True):
            for pid in (c.pid, kid):
                assert asks(model, pid) & {*servers} == {server}
                assert other not in may_ask(model, pid)
            found = model.shared_spaces(model.pd(f"pid:{server}"), types={"NET"})
            assert c.pid in found.pids
        assert not asks(model, host.pid) & {*servers}
        x, y = (model.pd(f"pid:{p}") for p in (inside[0].pid, kids[0]))
        z = model.pd(f"pid:{inside[1].pid}")
        assert model.fr(x, y, types={"NET"}) == 1
        assert model.fr(x, z, types={"NET"}) == float("inf")
        # Without the one, the other namespace goes on.
        os.kill(servers[0], signal.SIGSTOP)
        try:
            assert inside[0].ask(f"ask_host({where[0]!r}, {port}, 1)") == ""
            assert inside[1].ask(f"ask_host({where[1]!r}, {port})") == "!"
        finally:
            os.kill(servers[0], signal.SIGCONT)
        assert inside[0].ask(f"ask_host({where[0]!r}, {port})") == "!"


def test_a_client_inside_its_network_and_the_server_outside(need):
    """The connection ends at the network's process, which makes another one of its own."""
    need(shutil.which("slirp4netns"), "needs slirp4netns")
    need(os.path.exists("/dev/net/tun"), "needs /dev/net/tun")
    with child() as host, child(ENTER) as c:
        host.do("s = socket.create_server(('127.0.0.1', 0)); port = s.getsockname()[1]")
        with slirp4netns(c) as (server, address):
            port = host.ask("port")
            c.do(f"s = socket.socket(); s.settimeout(10); s.connect(({address!r}, {port}))")
            host.do("k, _ = s.accept()")
            model = osmosis.capture([host.pid, c.pid, server.pid]).model()
            assert asks(model, c.pid) == {server.pid}
            assert asks(model, server.pid) == {host.pid}
            assert may_ask(model, c.pid) == may_ask(model, server.pid) == set()
            assert host.pid in model.services(f"pid:{c.pid}", depth=2).pids


def test_rootlesskit_its_network_and_its_ports(stage, need):
    for program in ("rootlesskit", "slirp4netns", "newuidmap", "runuser"):
        need(shutil.which(program), f"needs {program}")
    need(os.path.exists("/dev/net/tun"), "needs /dev/net/tun")
    name, port = f"osmosis-rk-{os.getpid()}", free_port()
    uid = stage.user(name)
    words = ["runuser", "-u", name, "--", "rootlesskit", "--net=slirp4netns", "--copy-up=/etc"]
    words += ["--disable-host-loopback", "--port-driver=builtin", "-p", f"127.0.0.1:{port}:80/tcp"]
    # A server that answers, and a process beside it that does nothing.
    serve = "import socket; s = socket.create_server(('127.0.0.1', 80))\n"
    serve += "keep = []\nwhile True:\n  c, _ = s.accept(); c.send(b'!'); keep.append(c)"
    words += ["sh", "-c", 'sleep 1000000 & exec "$0" -c "$1"', "/usr/bin/python3", serve]
    env = {**os.environ, "HOME": "/", "XDG_RUNTIME_DIR": f"/run/user/{uid}"}
    with running(*words, env=env, cwd="/", **QUIET) as top, child() as client:

        def connect():
            client.do("s = socket.socket(); s.settimeout(5)")
            return client.ask(f"s.connect_ex(('127.0.0.1', {port}))") == 0 and client.ask(
                "s.recv(1).decode()"
            )

        try:
            until(connect, "an answer of the published port")
            tree = descendants(top.pid)
            by_name = {comm(pid): pid for pid in tree}
            kit, network = by_name["rootlesskit"], by_name["slirp4netns"]
            here = os.stat("/proc/self/ns/net").st_ino
            inside = [p for p in tree if os.stat(f"/proc/{p}/ns/net").st_ino != here]
            assert {"exe", "sleep", "python3"} <= {comm(p)[:7] for p in inside}
            model = osmosis.capture([*tree, client.pid]).model()
            for pid in inside:
                assert network in asks(model, pid)
            for pid in set(tree) - set(inside) - {network}:
                assert network not in asks(model, pid) | may_ask(model, pid)
            (server,) = (p for p in inside if comm(p).startswith("python"))
            assert asks(model, client.pid) == {kit}
            assert server in asks(model, kit)
            assert server not in asks(model, client.pid)
            with socket.socket() as s:  # the same, by what stops without it
                os.kill(kit, signal.SIGSTOP)
                s.settimeout(1)
                s.connect(("127.0.0.1", port))
                with pytest.raises(TimeoutError):
                    s.recv(1)
        finally:
            for pid in descendants(top.pid)[::-1]:
                if pid != top.pid:
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, signal.SIGKILL)
