"""PostgreSQL and Redis with their own clients; the servers say which client is which."""

import os
import pwd
import re
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path

import pytest
from programs import QUIET, asks, folder, free_port, may_ask, note, running, socket_inode, until

import osmosis

pytestmark = pytest.mark.live

SOURCES = {"files", "mounts", "namespaces", "sockets", "memory", "ipc", "control"}


class Psql:
    """A client with one connection; it answers what it is asked on its standard output."""

    def __init__(self, process):
        self.pid = process.pid
        self._in, self._out = process.stdin, process.stdout

    def ask(self, query):
        self._in.write(f"{query};\n\\echo .\n")
        self._in.flush()
        lines = []
        while (line := self._out.readline().rstrip("\n")) != ".":
            assert line, (query, lines)
            lines.append(line)
        return [line.split("|") for line in lines]

    def backend(self):
        return int(self.ask("SELECT pg_backend_pid()")[0][0])


@dataclass
class Postgres:
    """A server, and where it listens."""

    pid: int
    data: Path
    port: int
    programs: Path

    @contextmanager
    def client(self, host, user=None):
        words = [self.programs / "psql", "-XAtq", "-h", host, "-p", self.port]
        words += ["-U", "postgres", "-d", "postgres"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        who = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        with running(*map(str, words), cwd="/", **pipes, **who) as process:
            yield Psql(process)


@pytest.fixture(scope="module", params=["mmap", "sysv"])
def postgres(request, need):
    """Run PostgreSQL as an ordinary user, its shared buffers in anonymous or SysV memory."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    need(found, "needs PostgreSQL (postgresql)")
    programs = found[-1]
    account = pwd.getpwnam("postgres")
    who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": "/"}
    with folder(account.pw_uid) as data:
        words = [programs / "initdb", "-D", data / "db", "-A", "trust", "-U", "postgres", "-N"]
        subprocess.run(list(map(str, words)), check=True, capture_output=True, **who)
        port = free_port()
        options = f"-c shared_memory_type={request.param} -c listen_addresses=127.0.0.1"
        options += f" -c unix_socket_directories={data} -c shared_buffers=16MB -c fsync=off"
        words = [programs / "postgres", "-D", data / "db", "-p", str(port), *options.split()]
        with running(*words, **QUIET, **who) as server:
            ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            until(lambda: subprocess.run(ready).returncode == 0, "the start of PostgreSQL")
            yield Postgres(server.pid, data, port, programs)


@dataclass
class Asked:
    """Two clients by unix socket, two by TCP, and what the server says of them."""

    server: Postgres
    clients: list[Psql]
    backend: dict[int, int]  # by the client's pid
    others: list[int]  # every further process of the server
    model: osmosis.Model


@pytest.fixture(scope="module")
def asked(postgres):
    with ExitStack() as stack:
        hosts = [str(postgres.data), str(postgres.data), "127.0.0.1", "127.0.0.1"]
        users = [None, 64030, None, 64030]
        clients = [
            stack.enter_context(postgres.client(h, u)) for h, u in zip(hosts, users, strict=True)
        ]
        backend = {c.pid: c.backend() for c in clients}
        first = clients[0]
        first.ask("CREATE TABLE t AS SELECT generate_series(1, 10000) AS i")
        for c in clients:
            assert c.ask("SELECT sum(i) FROM t") == [["50005000"]]
        told = first.ask("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")
        assert {int(pid) for (pid,) in told} == set(backend.values())
        other = "SELECT pid FROM pg_stat_activity WHERE backend_type <> 'client backend'"
        others = [int(pid) for (pid,) in first.ask(other)]
        pids = [postgres.pid, *(c.pid for c in clients), *backend.values(), *others]
        yield Asked(
            postgres, clients, backend, others, osmosis.capture(pids, sources=SOURCES).model()
        )


def state(asked, a, b, **options):
    model = asked.model
    return model.shares(model.pd(f"pid:{a}"), model.pd(f"pid:{b}"), **options).state


def test_a_client_asks_its_own_backend_and_the_postmaster_and_no_other(asked):
    for c in asked.clients:
        assert asks(asked.model, c.pid) == {asked.backend[c.pid], asked.server.pid}
        assert may_ask(asked.model, c.pid) == set()


def test_no_process_of_the_server_asks_a_client(asked):
    clients = {c.pid for c in asked.clients}
    for pid in [asked.server.pid, *asked.backend.values(), *asked.others]:
        assert not clients & (asks(asked.model, pid) | may_ask(asked.model, pid))


def test_each_connection_is_a_resource_of_one_client_and_one_backend(asked):
    socket = {"types": {"SOCKET"}, "access": "W"}
    for c in asked.clients:
        for pid in [*asked.backend.values(), *asked.others]:
            assert state(asked, c.pid, pid, **socket) is (pid == asked.backend[c.pid])
    for a, b in combinations((c.pid for c in asked.clients), 2):
        assert state(asked, a, b, **socket) is False


def test_the_connection_has_the_ports_that_the_server_tells(asked):
    told = asked.clients[0].ask(
        "SELECT pid, client_port FROM pg_stat_activity WHERE client_addr IS NOT NULL"
    )
    assert len(told) == 2
    model = asked.model
    client = {b: c for c, b in asked.backend.items()}
    for backend, port in ((int(a), int(b)) for a, b in told):
        x, y = (model.pd(f"pid:{p}") for p in (client[backend], backend))
        (node,) = model.common_resources(x, y, types={"SOCKET"}).ids
        told_of = note(model, node)
        assert {told_of["local"], told_of["remote"]} == {
            f"127.0.0.1:{port}",
            f"127.0.0.1:{asked.server.port}",
        }


def test_the_shared_buffers_are_written_by_all_of_the_server_and_no_client(asked):
    ours = [asked.server.pid, *asked.backend.values(), *asked.others]
    shared = {"types": {"SHM"}, "access": "W"}
    for a, b in permutations(ours, 2):
        assert maps_alike(a, b)
        assert state(asked, a, b, **shared) is True
    for c in asked.clients:
        for pid in ours:
            assert not maps_alike(c.pid, pid)
            assert state(asked, c.pid, pid, **shared) is False
    # Pages of it that two backends have touched are the same frames.
    a, b = list(asked.backend.values())[:2]
    assert state(asked, a, b, types={"MO"}, access="W") is True
    assert state(asked, asked.clients[0].pid, a, types={"MO"}, access="W") is False


def maps_alike(a, b):
    """Whether two processes have a writable shared mapping of one object without a file."""

    def objects(pid):
        text = Path(f"/proc/{pid}/maps").read_text()
        line = re.compile(r"^\S+ rw.s \S+ (\S+) (\d+) +(/dev/zero|/SYSV)", re.MULTILINE)
        return {m[:2] for m in line.findall(text)}

    return bool(objects(a) & objects(b))


def test_who_may_end_whom(asked):
    """As the kernel says for the same credentials: root, the server's user, another user."""
    model = asked.model
    target = asked.backend[asked.clients[0].pid]
    for pid, user in (
        (asked.clients[0].pid, None),
        (asked.clients[1].pid, 64030),
        (asked.server.pid, "postgres"),
        (asked.others[0], "postgres"),
    ):
        who = {} if user is None else {"user": user, "extra_groups": []}
        done = subprocess.run(["/bin/kill", "-0", str(target)], capture_output=True, **who)
        x, y = model.pd(f"pid:{pid}"), model.pd(f"pid:{target}")
        assert model.may(x, "kill", y).state is (done.returncode == 0)


# -- Redis -----------------------------------------------------------------------------------


def test_the_clients_that_redis_lists_are_those_that_ask_it(need):
    server, cli = shutil.which("redis-server"), shutil.which("redis-cli")
    need(server and cli, "needs redis-server and redis-cli (redis-server)")
    with folder() as work, ExitStack() as stack:
        port, path = free_port(), work / "redis.sock"
        words = [server, "--port", port, "--bind", "127.0.0.1", "--unixsocket", path]
        words += ["--save", "", "--dir", work, "--daemonize", "no"]
        redis = stack.enter_context(running(*words, **QUIET))
        until(path.exists, "the start of redis-server")
        clients = {}
        for name, where in (
            ("unix", ["-s", path]),
            ("tcp", ["-h", "127.0.0.1", "-p", port]),
            ("both", ["-h", "127.0.0.1", "-p", port]),
        ):
            # Each blocks in a list of its own name: CLIENT LIST tells it by that.
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
            clients[name] = stack.enter_context(running(cli, *where, **pipes))
            clients[name].stdin.write(f"CLIENT SETNAME {name}\nBLPOP {name} 0\n".encode())
            clients[name].stdin.flush()

        def listed():
            ask = [cli, "-p", str(port), "CLIENT", "LIST"]
            text = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
            rows = [dict(w.partition("=")[::2] for w in line.split()) for line in text.splitlines()]
            found = {row["name"]: row for row in rows if row["cmd"] == "blpop"}
            return found if found.keys() == clients.keys() else None

        told = until(listed, "the clients that block")
        pids = [redis.pid, *(c.pid for c in clients.values())]
        snap = osmosis.capture(pids, sources=SOURCES)
        model = snap.model()
        y = model.pd(f"pid:{redis.pid}")
        for name, c in clients.items():
            assert asks(model, c.pid) == {redis.pid}
            (node,) = model.common_resources(model.pd(f"pid:{c.pid}"), y, types={"SOCKET"}).ids
            # The descriptor that the server says it has for this client.
            end = socket_inode(redis.pid, int(told[name]["fd"]))
            assert node == f"SOCKET_{min(end, *ends_of(c.pid))}"
            if name != "unix":
                sides = {told[name]["addr"], told[name]["laddr"]}
                assert sides <= set(note(model, node).values())
        for a, b in combinations((c.pid for c in clients.values()), 2):
            x, z = model.pd(f"pid:{a}"), model.pd(f"pid:{b}")
            assert model.shares(x, z, types={"SOCKET"}).state is False
            assert redis.pid in model.common_ancestors(x, z).pids
        assert asks(model, redis.pid) == set()


def ends_of(pid):
    """Inodes of all sockets of a process."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:"):
            found.append(socket_inode(pid, int(fd)))
    return found
