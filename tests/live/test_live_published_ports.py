"""A port that Docker publishes, with its proxy and without: every way a client can take to it.

The second source is the server, which says what address each client has for it (CLIENT LIST), and
``ss``, which says whether that address is one of docker-proxy: then the client asks the proxy, and
the proxy the server; else addresses were translated on the way, and the client asks the server.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.evaluation import workload
from benchmarks.evaluation.base import CannotRun, Instances, below, comm, parent
from benchmarks.evaluation.docker import Docker, Variant
from programs import asks, may_ask, note, running, until

import osmosis

pytestmark = pytest.mark.live


@dataclass
class Published:
    """What is up: a client's name to its pid, what the server says of it, and what we say."""

    instances: Instances
    port: int
    clients: dict[str, int]
    address: dict[str, str]  # of the client, as the server sees it
    target: dict[str, str]  # where the client connected to
    proxies: dict[str, int]  # docker-proxy by its address towards the server
    model: osmosis.Model
    inside: dict[str, int]  # processes that are in a container

    def shim(self, name):
        """The shims above a process, if it is in a container."""
        pid = self.inside.get(name, 0)
        chain = []
        while pid > 1:
            pid = parent(pid)
            chain.append(pid)
        return {p for p in chain if comm(p).startswith("containerd-shim")}


def host_address():
    text = subprocess.run(["ip", "-4", "-o", "address"], capture_output=True, text=True).stdout
    found = re.findall(r"^\d+: (\S+) +inet ([\d.]+)", text, re.MULTILINE)
    wanted = [a for link, a in found if not re.match("lo|docker|br-|cni|podman|veth", link)]
    return wanted[0] if wanted else None


def blocks(name):
    """What redis-cli is told: a name by which CLIENT LIST shows it, and a wait without end."""
    return f"CLIENT SETNAME {name}\nBLPOP {name} 0\n"


@pytest.fixture(scope="module", params=[True, False], ids=["proxy", "no-proxy"])
def published(request, need):
    port = workload.free_port()
    daemon = () if request.param else ("--userland-proxy=false",)
    docker = Docker("docker", Variant(db=(f"--publish={port}:6379",), daemon=daemon))
    work = Path("/var/tmp") / f"osmosis-port-{os.getpid()}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        stack.callback(docker.down)
        try:
            instances = docker.up(work)
        except CannotRun as exc:
            need(False, str(exc))
        gateway = docker._inspect("db", "{{.NetworkSettings.Networks.bridge.Gateway}}")
        bridge = docker._inspect("db", "{{.NetworkSettings.Networks.bridge.IPAddress}}")
        host = host_address()
        clients, target = {}, {}
        outside = {"loopback": ("127.0.0.1", port), "direct": (bridge, 6379)}
        inside = {"bridge": (bridge, 6379), "gateway": (gateway, port)}
        if host is not None:
            outside["address"] = inside["host"] = host, port
        for name, (to, number) in outside.items():
            words = ["redis-cli", "-h", to, "-p", number]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
            client = stack.enter_context(running(*words, **pipes))
            client.stdin.write(blocks(name))
            client.stdin.flush()
            clients[name], target[name] = client.pid, f"{to}:{number}"
        for name, (to, number) in inside.items():
            said = blocks(name).replace("\n", "\\n")
            line = f"(printf '{said}'; exec sleep 1000000) | redis-cli -h {to} -p {number}"
            docker._run(f"client-{name}", (), ["sh", "-c", line])
            pid = int(docker._inspect(f"client-{name}", "{{.State.Pid}}"))
            clients[name], target[name] = below(pid, ("redis-cli",)), f"{to}:{number}"

        docker._run("tty", ("--tty",), ["sleep", "1000000"])
        clients["tty"] = int(docker._inspect("tty", "{{.State.Pid}}"))
        keepers = {name: pid for name, pid in clients.items() if name in (*inside, "tty")}
        del clients["tty"]

        def listed():
            text = docker._docker("exec", "db", "redis-cli", "CLIENT", "LIST")
            rows = [dict(w.partition("=")[::2] for w in line.split()) for line in text.splitlines()]
            found = {row["name"]: row["addr"] for row in rows if row["cmd"] == "blpop"}
            return found if found.keys() == clients.keys() else None

        address = until(listed, "the clients that block")
        text = subprocess.run(["ss", "-tnpH"], capture_output=True, text=True, check=True).stdout
        ends = re.findall(r'ESTAB +\d+ +\d+ +(\S+) .*"docker-proxy",pid=(\d+)', text)
        proxies = {a: int(pid) for a, pid in ends}
        model = osmosis.capture(sources={"files", "namespaces", "sockets"}).model()
        yield Published(instances, port, clients, address, target, proxies, model, keepers)


def test_who_is_asked_is_the_proxy_where_there_is_one_and_else_the_server(published, request):
    seen = set()
    for name, pid in published.clients.items():
        proxy = published.proxies.get(published.address[name])
        seen.add(proxy is not None)
        expected = {published.instances.db if proxy is None else proxy}
        assert asks(published.model, pid) - published.shim(name) == expected, name
        assert may_ask(published.model, pid) == set(), name
    assert seen == ({True, False} if "[proxy]" in request.node.name else {False})


def test_the_proxy_asks_the_server(published):
    db = published.instances.db
    for pid in set(published.proxies.values()):
        assert asks(published.model, pid) == {db}
    assert not asks(published.model, db) & {
        *published.clients.values(),
        *published.proxies.values(),
    }
    depth_2 = {
        name: db in published.model.services(f"pid:{pid}", depth=2).pids
        for name, pid in published.clients.items()
    }
    assert set(depth_2.values()) == {True}


def test_both_ends_of_a_connection_are_told_as_each_of_them_sees_it(published):
    model, translated = published.model, 0
    for name, pid in published.clients.items():
        if published.address[name] in published.proxies:
            continue
        x, y = (model.pd(f"pid:{p}") for p in (pid, published.instances.db))
        (node,) = model.common_resources(x, y, types={"SOCKET"}, access="W").ids
        told = note(model, node)
        ends = {told["local"], told["remote"]}
        sees = {told.get("local_sees", told["remote"]), told.get("remote_sees", told["local"])}
        assert published.target[name] in sees, (name, told)
        assert published.address[name] in sees, (name, told)
        assert any(end.endswith(":6379") for end in ends)
        translated += sees != ends
    assert translated or host_address() is None


def test_nobody_shares_a_connection_with_another_client(published):
    model = published.model
    pds = [model.pd(f"pid:{p}") for p in published.clients.values()]
    for x in pds:
        for y in pds:
            if x != y:
                assert model.shares(x, y, types={"SOCKET"}).state is False


def test_the_keeper_of_a_containers_output_is_its_shim(published):
    """By /proc: it has the other end of the pipe, or the master of the terminal."""
    for name, pid in published.inside.items():
        (shim,) = published.shim(name)
        assert shim in asks(published.model, pid)
        assert shim not in published.model.services(f"pid:{published.instances.db}").pids
        link = os.readlink(f"/proc/{pid}/fd/1")
        theirs = {os.readlink(f"/proc/{shim}/fd/{fd}") for fd in os.listdir(f"/proc/{shim}/fd")}
        if name == "tty":
            assert re.fullmatch(r"/dev/pts/\d+", link)
            assert any(their.endswith("ptmx") for their in theirs)
        else:
            assert link in theirs
