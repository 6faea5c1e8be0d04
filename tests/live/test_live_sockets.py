"""Sockets against what the tests themselves opened: each child tells the inode of each of its own.

A capture of the children alone must say of every pair of them what they know: which sockets
are two ends of one connection, and that no others are.
"""

import os
import shutil
import socket
import subprocess
import time
from itertools import combinations

import psutil
import pytest
from children import child

import osmosis
from osmosis.schema import Status

pytestmark = pytest.mark.live

INODE = "os.fstat({}.fileno()).st_ino"


def capture(*children):
    return osmosis.capture([c.pid for c in children], sources={"files", "namespaces", "sockets"})


def shared(model, a, b, access="ANY"):
    """Nodes of type SOCKET that both reach; the answer about them must be decided."""
    x, y = (model.pd(f"pid:{c.pid}") for c in (a, b))
    nodes = set(model.common_resources(x, y, types={"SOCKET"}, access=access).ids)
    answer = model.shares(x, y, types={"SOCKET"}, access=access)
    assert answer.state is not None
    assert bool(answer) == bool(nodes)
    return nodes


def of(*inodes):
    return f"SOCKET_{min(i for i in inodes if i)}"


def inode(c, name):
    return c.ask(INODE.format(name))


def asks(model, a):
    pids = model.services(model.pd(f"pid:{a.pid}")).pids.tolist()
    return set(pids) - {0}


LISTENERS = {
    "tcp": ("socket.AF_INET, socket.SOCK_STREAM", "('127.0.0.1', 0)"),
    "tcp6": ("socket.AF_INET6, socket.SOCK_STREAM", "('::1', 0)"),
    "stream": ("socket.AF_UNIX, socket.SOCK_STREAM", "{path!r}"),
    "seqpacket": ("socket.AF_UNIX, socket.SOCK_SEQPACKET", "{path!r}"),
    "abstract": ("socket.AF_UNIX, socket.SOCK_STREAM", "'\\0osmosis-{pid}'"),
}


@pytest.mark.parametrize("family", LISTENERS)
@pytest.mark.parametrize("accepted", [False, True], ids=["waits", "accepted"])
def test_a_connection_is_one_resource_of_both_and_the_client_asks_the_server(
    tmp_path, family, accepted
):
    kind, name = LISTENERS[family]
    name = name.format(path=str(tmp_path / "s"), pid=os.getpid())
    with child() as server, child() as client, child() as other:
        server.do(f"s = socket.socket({kind}); s.bind({name}); s.listen(4)")
        address = server.ask("s.getsockname()")
        address = tuple(address) if isinstance(address, list) else address
        if family == "abstract":
            address = "\0" + f"osmosis-{os.getpid()}"
        client.do(f"s = socket.socket({kind}); s.connect({address!r})")
        other.do(f"s = socket.socket({kind})")
        ends = [inode(client, "s")]
        if accepted:
            server.do("c, _ = s.accept()")
            ends.append(inode(server, "c"))
        model = capture(server, client, other).model()
        assert shared(model, client, server) == {of(*ends)}
        assert shared(model, client, server, "W") == {of(*ends)}
        assert shared(model, server, other) == shared(model, client, other) == set()
        assert asks(model, client) == {server.pid}
        assert asks(model, server) == asks(model, other) == set()
        client.do("s.close()")
        assert shared(capture(server, client).model(), client, server) == set()


def test_both_ends_of_a_pair_that_fork_and_scm_rights_spread(tmp_path):
    with child("import array") as a, child() as b:
        a.do(f"s = socket.socket(socket.AF_UNIX); s.bind({str(tmp_path / 's')!r}); s.listen()")
        b.do(f"s = socket.socket(socket.AF_UNIX); s.connect({str(tmp_path / 's')!r})")
        a.do(
            "c, _ = s.accept(); x, y = socket.socketpair();socket.send_fds(c, [b'!'], [y.fileno()])"
        )
        # In flight, and held by nobody else once a has closed it.
        a.do("far = os.fstat(y.fileno()).st_ino; y.close()")
        before = capture(a, b).model()
        link = of(inode(b, "s"), inode(a, "c"))
        assert shared(before, a, b) == {link}
        b.do("fds = socket.recv_fds(s, 1, 1)[1]")
        pair = of(inode(a, "x"), a.ask("far"))
        after = capture(a, b).model()
        assert shared(after, a, b) == {link, pair}
        # A pair has no server; the connection has.
        assert asks(after, b) == {a.pid}
        assert asks(after, a) == set()


def test_a_half_closed_connection_is_written_from_one_side(tmp_path):
    with child() as server, child() as client:
        server.do("s = socket.create_server(('127.0.0.1', 0)); port = s.getsockname()[1]")
        port = server.ask("port")
        client.do(f"s = socket.create_connection(('127.0.0.1', {port}))")
        server.do("c, _ = s.accept()")
        client.do("s.shutdown(socket.SHUT_WR)")
        model = capture(server, client).model()
        x, y = (model.pd(f"pid:{c.pid}") for c in (client, server))
        assert bool(model.shares(x, y, types={"SOCKET"}, access="W"))  # the server may write
        assert not model.shares(y, x, types={"SOCKET"}, access="W")
        assert bool(model.shares(y, x, types={"SOCKET"}, access="R"))


def test_datagrams_go_one_way(tmp_path):
    path = str(tmp_path / "log")
    with child() as log, child() as named, child() as nameless:
        log.do(f"s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind({path!r})")
        for c in (named, nameless):
            c.do("s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)")
        named.do(f"s.bind({str(tmp_path / 'me')!r}); s.connect({path!r})")
        nameless.do(f"s.connect({path!r})")
        model = capture(log, named, nameless).model()
        pd = {c.pid: model.pd(f"pid:{c.pid}") for c in (log, named, nameless)}

        def share(a, b):
            return model.shares(pd[a.pid], pd[b.pid], types={"SOCKET"}, access="W")

        assert bool(share(log, named))
        assert bool(share(log, nameless))
        assert not share(nameless, log)  # nobody can answer a socket without a name
        assert share(named, log).state is None  # it can: whether it does is not to be seen
        assert not share(named, nameless)
        assert asks(model, named) == asks(model, nameless) == {log.pid}


def test_udp_connected_both_ways_and_one_way():
    with child() as a, child() as b, child() as c:
        for x in (a, b, c):
            x.do("s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0))")
        port = {x.pid: x.ask("s.getsockname()")[1] for x in (a, b, c)}
        a.do(f"s.connect(('127.0.0.1', {port[b.pid]}))")
        c.do(f"s.connect(('127.0.0.1', {port[b.pid]}))")
        model = capture(a, b, c).model()
        assert shared(model, a, b) == {of(inode(a, "s"))}
        assert shared(model, c, b) == {of(inode(c, "s"))}
        assert shared(model, a, c) == set()
        assert asks(model, a) == asks(model, c) == {b.pid}
        # Once b is connected to a, it takes nothing from c any more.
        b.do(f"s.connect(('127.0.0.1', {port[a.pid]}))")
        model = capture(a, b, c).model()
        assert shared(model, a, b) == {of(inode(a, "s"), inode(b, "s"))}
        assert shared(model, c, b) == set()


ALONE = {
    "tcp": "socket.socket()",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "udp6": "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
    "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)",
    "unix": "socket.socket(socket.AF_UNIX)",
}


@pytest.mark.parametrize("family", ALONE)
def test_a_socket_by_itself_is_shared_by_nobody_but_its_heirs(family):
    with child() as a, child() as b:
        a.do(f"s = {ALONE[family]}; kid = fork()")
        b.do(f"s = {ALONE[family]}")
        kid = a.ask("kid")
        snap = osmosis.capture([a.pid, b.pid, kid], sources={"files", "namespaces", "sockets"})
        model = snap.model()
        assert shared(model, a, b) == set()
        x, y = model.pd(f"pid:{a.pid}"), model.pd(f"pid:{kid}")
        assert list(model.common_resources(x, y, types={"SOCKET"}).ids) == [of(inode(a, "s"))]


NETNS = """
import subprocess
import time
unshare(CLONE_NEWNET)
def run(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
run("ip", "link", "set", "lo", "up")
"""


@pytest.fixture
def ip(need):
    need(shutil.which("ip"), "needs ip (iproute2)")


def wire(a, b, address_a, address_b, name="v"):
    """A veth pair between the network namespaces of two children."""
    a.do(
        f"run('ip', 'link', 'add', '{name}a', 'type', 'veth',"
        f" 'peer', 'name', '{name}b', 'netns', '{b.pid}')"
    )
    for c, end, address in ((a, "a", address_a), (b, "b", address_b)):
        c.do(f"run('ip', 'address', 'add', '{address}', 'dev', '{name}{end}')")
        c.do(f"run('ip', 'link', 'set', '{name}{end}', 'up')")


def test_connections_between_namespaces_and_equal_ones_in_others(ip):
    with child(NETNS) as a, child(NETNS) as b, child(NETNS) as c, child(NETNS) as d:
        wire(a, b, "10.9.0.1/24", "10.9.0.2/24")
        wire(c, d, "10.9.0.1/24", "10.9.0.2/24")
        for server, port in ((b, 7001), (d, 7002)):
            server.do(f"s = socket.create_server(('', {port}))")
        for client, port in ((a, 7001), (c, 7002)):
            client.do(f"s = socket.create_connection(('10.9.0.2', {port}))")
        for server in (b, d):
            server.do("k, _ = s.accept()")
        model = capture(a, b, c, d).model()
        assert shared(model, a, b) == {of(inode(a, "s"), inode(b, "k"))}
        assert shared(model, c, d) == {of(inode(c, "s"), inode(d, "k"))}
        for x, y in combinations((a, b, c, d), 2):
            if {x, y} not in ({a, b}, {c, d}):
                assert shared(model, x, y) == set()
        assert asks(model, a) == {b.pid}
        assert asks(model, c) == {d.pid}
        assert asks(model, b) == asks(model, d) == set()
        # The very same addresses and ports on both wires: which is whose is not to be known.
        for server in (b, d):
            server.do("s.close(); k.close(); s = socket.create_server(('', 7003))")
        for client in (a, c):
            client.do("s.close(); s = socket.socket(); s.bind(('10.9.0.1', 6000))")
            client.do("s.connect(('10.9.0.2', 7003))")
        for server in (b, d):
            server.do("k, _ = s.accept()")
        model = capture(a, b, c, d).model()
        pd = {x.pid: model.pd(f"pid:{x.pid}") for x in (a, b, c, d)}
        for client in (a, c):
            for server in (b, d):
                answer = model.shares(pd[client.pid], pd[server.pid], types={"SOCKET"})
                assert answer.state is None


def test_loopback_of_another_namespace_is_another_world(ip):
    with child(NETNS) as a, child(NETNS) as b:
        for c in (a, b):
            c.do("s = socket.create_server(('127.0.0.1', 7001)); k = socket.socket()")
            c.do("k.bind(('127.0.0.1', 6001)); k.connect(('127.0.0.1', 7001)); x, _ = s.accept()")
        model = capture(a, b).model()
        assert shared(model, a, b) == set()
        assert asks(model, a) == asks(model, b) == set()


def test_a_unix_connection_between_network_namespaces(tmp_path, ip):
    path = str(tmp_path / "s")
    with child(NETNS) as server, child(NETNS) as client:
        server.do(f"s = socket.socket(socket.AF_UNIX); s.bind({path!r}); s.listen()")
        client.do(f"s = socket.socket(socket.AF_UNIX); s.connect({path!r})")
        server.do("c, _ = s.accept()")
        snap = capture(server, client)
        model = snap.model()
        ends = inode(client, "s"), inode(server, "c")
        assert shared(model, client, server) == {of(*ends)}
        assert asks(model, client) == {server.pid}
        # The accepted socket is of the client's network namespace, not of its holder's.
        space = dict(zip(snap["socket_inode"].tolist(), snap["socket_space"].tolist(), strict=True))
        assert space[ends[0]] == space[ends[1]] != space[inode(server, "s")]


def test_one_socket_name_in_two_network_namespaces(ip):
    with child(NETNS) as a, child(NETNS) as b:
        for c in (a, b):
            c.do("s = socket.socket(socket.AF_UNIX); s.bind('\\0osmosis'); s.listen()")
            c.do("k = socket.socket(socket.AF_UNIX); k.connect('\\0osmosis'); x, _ = s.accept()")
        model = capture(a, b).model()
        assert shared(model, a, b) == set()
        assert asks(model, a) == asks(model, b) == set()


def route(client, router, server, *rules):
    """Join a client and a server through a router that has rules of iptables for NAT."""
    wire(client, router, "10.8.1.2/24", "10.8.1.1/24", "x")
    wire(server, router, "10.8.2.2/24", "10.8.2.1/24", "y")
    client.do("run('ip', 'route', 'add', 'default', 'via', '10.8.1.1')")
    server.do("run('ip', 'route', 'add', 'default', 'via', '10.8.2.1')")
    router.do("open('/proc/sys/net/ipv4/ip_forward', 'w').write('1')")
    for rule in rules:
        router.do(f"run('iptables', '-t', 'nat', '-A', *{rule.split()!r})")


def test_translated_addresses(ip, need):
    """client - router - server: the router gives the client another server and itself as client."""
    need(shutil.which("iptables"), "needs iptables")
    with child(NETNS) as client, child(NETNS) as router, child(NETNS) as server:
        rules = (
            "PREROUTING -p tcp -d 10.8.1.1 --dport 80 -j DNAT --to-destination 10.8.2.2:8080",
            "POSTROUTING -p tcp -d 10.8.2.2 -j MASQUERADE",
        )
        route(client, router, server, *rules)
        server.do("s = socket.create_server(('', 8080))")
        client.do("s = socket.create_connection(('10.8.1.1', 80), timeout=5)")
        server.do("k, peer = s.accept()")
        assert server.ask("peer")[0] == "10.8.2.1"
        model = capture(client, router, server).model()
        assert shared(model, client, server) == {of(inode(client, "s"), inode(server, "k"))}
        assert asks(model, client) == {server.pid}
        assert shared(model, client, router) == set()
        # Both ways to read the table, inside the router.
        router.do("from osmosis.capture import netdevices as n")
        router.do("text = open('/proc/thread-self/net/nf_conntrack').read()")
        router.do("data = n._ask(n.CONNTRACK_GET, bytes(4), n.NETFILTER)")
        assert router.ask(
            "sorted(n.parse_translations(data)) == sorted(n.translations(text)) != []"
        )


def test_translated_datagrams(ip, need):
    """The router has a socket of that port too: it gets nothing of what is translated."""
    need(shutil.which("iptables"), "needs iptables")
    with child(NETNS) as client, child(NETNS) as router, child(NETNS) as server:
        rule = "PREROUTING -p udp -d 10.8.1.1 --dport 53 -j DNAT --to-destination 10.8.2.2:5353"
        route(client, router, server, rule)
        for c, port in ((router, 53), (server, 5353)):
            c.do("s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setblocking(False)")
            c.do(f"s.bind(('', {port}))")
        client.do("s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)")
        client.do("s.connect(('10.8.1.1', 53)); s.send(b'!')")
        server.do("import select; select.select([s], [], [], 5); got = s.recv(9).decode()")
        assert server.ask("got") == "!"
        model = capture(client, router, server).model()
        found = model.services(model.pd(f"pid:{client.pid}"))
        assert asks(model, client) == set()
        assert server.pid in found.unknown.pids


def test_a_namespace_kept_by_a_descriptor_alone(ip):
    """Sockets made in a namespace that their process has left; nobody is in it any more."""
    with child() as a, child() as b:
        a.do("import subprocess; home = os.open('/proc/self/ns/net', os.O_RDONLY)")
        a.do("unshare(CLONE_NEWNET); subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)")
        a.do("there = os.open('/proc/self/ns/net', os.O_RDONLY)")
        a.do("s = socket.create_server(('127.0.0.1', 7001)); p, q = socket.socketpair()")
        a.do("k = socket.create_connection(('127.0.0.1', 7001)); x, _ = s.accept()")
        a.do("ok(libc.setns(home, CLONE_NEWNET)); kid = fork(k.close)")
        model = osmosis.capture([a.pid, b.pid, a.ask("kid")]).model()
        x, y = model.pd(f"pid:{a.pid}"), model.pd(f"pid:{a.ask('kid')}")
        assert model.shares(x, y, types={"SOCKET"}).state is not None
        assert of(inode(a, "k"), inode(a, "x")) in set(
            model.common_resources(x, y, types={"SOCKET"}).ids
        )
        # Without that descriptor the sockets themselves lead there.
        a.do("os.close(there)")
        snap = osmosis.capture([a.pid, b.pid, a.ask("kid")])
        model = snap.model()
        x, y = model.pd(f"pid:{a.pid}"), model.pd(f"pid:{a.ask('kid')}")
        assert of(inode(a, "k"), inode(a, "x")) in set(
            model.common_resources(x, y, types={"SOCKET"}).ids
        )
        assert Status.HIDDEN not in snap["socket_status"]


def test_every_unix_and_tcp_socket_of_the_system_is_in_the_snapshot(need):
    need(shutil.which("ss"), "needs ss (iproute2)")
    with child("p = [socket.socketpair() for _ in range(50)]") as c:
        snap = osmosis.capture(sources={"files", "namespaces", "sockets"})
        text = subprocess.run(["ss", "-xaeH"], capture_output=True, text=True, check=True).stdout
        # Columns: family type, state, queues, local name and inode, peer name and inode.
        told = {}
        for line in text.splitlines():
            words = line.split()
            told[int(words[5])] = int(words[7])
        unix = snap["socket_family"] == 1
        inodes, peers = (snap[f"socket_{name}"][unix].tolist() for name in ("inode", "peer"))
        ours = dict(zip(inodes, peers, strict=True))
        mine = c.ask("[os.fstat(s.fileno()).st_ino for pair in p for s in pair]")
        assert len(mine) == 100
        for i in mine:
            assert ours[i] == told[i]


def test_the_reader_itself_stays_where_it_is(ip):
    here = os.stat("/proc/self/ns/net").st_ino
    with child(NETNS) as a, child(NETNS) as b:
        before = {
            t: os.stat(f"/proc/self/task/{t}/ns/net").st_ino for t in os.listdir("/proc/self/task")
        }
        capture(a, b)
        after = {
            t: os.stat(f"/proc/self/task/{t}/ns/net").st_ino for t in os.listdir("/proc/self/task")
        }
        assert set(after.values()) == {here} == set(before.values())


def test_multipath_tcp(need):
    """Its subflows are the kernel's own TCP sockets, with the inode of the socket that is held."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()  # IPPROTO_MPTCP
    except OSError:
        pytest.skip("this kernel has no MPTCP")
    with child() as server, child() as client:
        server.do("s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)")
        server.do("s.bind(('127.0.0.1', 0)); s.listen()")
        port = server.ask("s.getsockname()")[1]
        client.do(f"s = socket.socket(2, 1, 262); s.connect(('127.0.0.1', {port}))")
        server.do("c, _ = s.accept()")
        model = capture(server, client).model()
        assert shared(model, server, client) == {of(inode(client, "s"), inode(server, "c"))}
        assert asks(model, client) == {server.pid}


def test_an_ordinary_user_is_told_less_and_nothing_wrong(ip):
    """The reader is a child without rights; one of three is in a namespace it cannot enter."""
    with child() as reader, child() as friend, child(NETNS) as apart, child() as root:
        friend.do("p, q = socket.socketpair()")
        apart.do("s = socket.create_server(('127.0.0.1', 7001)); p, q = socket.socketpair()")
        root.do("p, q = socket.socketpair()")
        reader.do("import osmosis; osmosis.capture([os.getpid()]).model()")  # all is loaded
        for c in (reader, friend, apart):
            c.do("raw('setresgid', 9, 9, 9); raw('setresuid', 9, 9, 9); prctl(4, 1)")
        for c in (friend, apart):
            c.do("kid = fork(q.close)")
        pids = [c.pid for c in (friend, apart, root)] + [c.ask("kid") for c in (friend, apart)]
        sources = {"files", "namespaces", "sockets"}
        reader.do(f"snap = osmosis.capture({pids}, sources={sources}); model = snap.model()")
        reader.do(
            "def state(a, b): return model.shares(*(model.pd(f'pid:{p}') for p in (a, b)),"
            " types={'SOCKET'}).state"
        )
        first, second, foreign, first_kid, second_kid = pids
        assert reader.ask(f"state({first}, {first_kid})") is True
        assert reader.ask(f"state({second}, {second_kid})") is True
        for pid in (first, second):
            assert reader.ask(f"state({pid}, {foreign})") is None
        # What apart has is a connection of a namespace that could not be read.
        assert reader.ask(f"[int(x) for x in snap['socket_status']].count({Status.HIDDEN})") == 3
        gaps = reader.ask("[(r.source, r.status) for r in snap.coverage.gaps]")
        assert ["sockets", "denied"] in gaps
        assert ["files", "denied"] in gaps


MANY = """
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
pairs = [socket.socketpair() for _ in range(400)]
listener = socket.create_server(('127.0.0.1', 0), backlog=1000)
clients = [socket.create_connection(listener.getsockname()) for _ in range(400)]
servers = [listener.accept()[0] for _ in clients]
def ends(sockets):
    return [os.fstat(s.fileno()).st_ino for s in sockets]
"""


def test_thousands_of_sockets_are_those_of_psutil_and_cost_less():
    """4800 of three children: addresses against psutil, unix pairs against the children."""
    with child(MANY) as a, child(MANY) as b, child(MANY) as c:
        every = (a, b, c)
        sources = {"files", "namespaces", "sockets"}
        osmosis.capture([x.pid for x in every], sources=sources)  # all is loaded
        began = time.process_time()
        snap = osmosis.capture([x.pid for x in every], sources=sources)
        model = snap.model()
        data = model.data
        ours = time.process_time() - began
        began = time.process_time()
        told = {
            (x.pid, one.laddr.port, one.raddr.port)
            for x in every
            for one in psutil.Process(x.pid).net_connections("inet")
            if one.raddr
        }
        theirs = time.process_time() - began
        assert len(told) == 2400
        row_of = {int(i): at for at, i in enumerate(snap["socket_inode"]) if i}
        seen = set()
        for x in every:
            for i in x.ask("ends(clients + servers)"):
                at = row_of[i]
                ports = (int(snap[f"socket_{side}_port"][at]) for side in ("local", "remote"))
                seen.add((x.pid, *ports))
            clients, servers = x.ask("[ends(clients), ends(servers)]")
            local = {int(snap["socket_local_port"][row_of[i]]): i for i in servers}
            assert len(local) == 1  # the listener's: told apart by the remote port
            far = {int(snap["socket_remote_port"][row_of[i]]): i for i in servers}
            joined = [(i, far[int(snap["socket_local_port"][row_of[i]])]) for i in clients]
            joined += x.ask("[ends(pair) for pair in pairs]")
            assert all(data.names.find(of(*pair)) is not None for pair in joined)
            assert all(data.names.find(f"SOCKET_{max(pair)}") is None for pair in joined)
        assert seen == told
        # psutil reads the descriptors and the tables of one namespace; we also join and relate.
        assert ours < 4 * theirs, (ours, theirs)
