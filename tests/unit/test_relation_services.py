"""Who asks whom: on snapshots written by hand."""

import numpy as np
import pytest
from socket_world import World, asked

from osmosis.graph.graph import POTENTIAL, SERVER, Edge
from osmosis.relations.build import build
from osmosis.schema import OpenKind, Status
from osmosis.snapshot import Snapshot

LOOP = "127.0.0.1"


def connection(w, client, server, *, port=80, local=LOOP, space=0, mine=5):
    w.tcp(client, local=(LOOP, mine), remote=(LOOP, port), space=space)
    w.tcp(server, local=(LOOP, port), remote=(LOOP, mine), space=space)


def test_the_end_whose_port_listens_is_asked():
    w = World()
    a, b, c = (w.process() for _ in range(3))
    w.tcp(b, local=("0.0.0.0", 80), state=10)
    w.tcp(c, local=("0.0.0.0", 81), state=10)
    connection(w, a, b)
    model = w.model()
    assert asked(model, a) == ({b}, set())
    assert asked(model, b) == asked(model, c) == (set(), set())


def test_members_of_the_namespace_that_hold_nothing_ask_nobody():
    w = World()
    a, b, c = (w.process() for _ in range(3))
    w.tcp(b, local=("0.0.0.0", 80), state=10)
    connection(w, a, b)
    assert asked(w.model(), c) == (set(), set())


def test_whose_descriptors_were_not_read_may_ask_and_be_asked():
    w = World()
    a, b, c = w.process(), w.process(), w.process(read=False)
    w.tcp(b, local=("0.0.0.0", 80), state=10)
    connection(w, a, b)
    model = w.model()
    assert asked(model, a) == ({b}, {c})
    assert asked(model, b) == (set(), {c})
    assert asked(model, c) == (set(), {a, b})
    row_of = {pid: i for i, pid in enumerate(model.pds.pid.tolist())}
    every = model.tcb_matrix(verbs=[], types="CPU", services=True)
    for x in (a, b, c):
        wanted = model.tcb(100 + x, verbs=[], types="CPU", services=True)
        assert set(every.row(row_of[100 + x]).pids) == set(wanted.pids)
        assert set(every.unknown.row(row_of[100 + x]).pids) == set(wanted.unknown.pids)
    # What is asked of one that was not seen may be asked on of anybody.
    assert set(model.services(100 + b, depth=None).unknown.pids) >= {100 + a, 100 + c}
    boundary = model.impact_boundary(100 + a, verbs=[], types="CPU", services=True)
    assert set(boundary.unknown.pids) == {100 + c}


def test_without_a_listener_either_may_have_asked():
    w = World()
    a, b = w.process(), w.process()
    connection(w, a, b)
    model = w.model()
    assert asked(model, a) == (set(), {b})
    assert asked(model, b) == (set(), {a})


def test_a_listener_of_another_namespace_or_address_is_none():
    for values in ({"local": ("0.0.0.0", 80), "space": 1}, {"local": ("192.0.2.1", 80)}):
        w = World()
        a, b, c = (w.process() for _ in range(3))
        w.tcp(c, state=10, **values)
        connection(w, a, b)
        assert asked(w.model(), a) == (set(), {b})


@pytest.mark.parametrize(("parent", "sure"), [("listener", True), ("far", True), ("other", False)])
def test_the_holder_of_the_listener_is_asked_if_it_is_an_ancestor(parent, sure):
    w = World()
    client, master, between, other = (w.process(), w.process(), w.process(parent=1), w.process())
    above = {"listener": master, "far": between, "other": other}[parent]
    worker = w.process(parent=above)
    w.tcp(master, local=("0.0.0.0", 80), state=10)
    connection(w, client, worker)
    expected = ({worker, master}, set()) if sure else ({worker}, {master})
    assert asked(w.model(), client) == expected


def test_of_several_listeners_the_one_that_is_related_accepted():
    w = World()
    client, one, two = (w.process() for _ in range(3))
    for server in (one, two):  # SO_REUSEPORT
        w.tcp(server, local=("0.0.0.0", 80), state=10)
    connection(w, client, two)
    assert asked(w.model(), client) == ({two}, {one})


def accepted(w, client, server, name, **values):
    _, y = w.pair(client, server)
    w.rows["socket_name"][y] = w.text(name)
    for column, value in values.items():
        w.rows[f"socket_{column}"][y] = value


def test_unix_by_file_across_names_and_namespaces():
    w = World()
    client, master, worker = w.process(), w.process(), w.process()
    w.socket(master, state=10, name=b"/run/s\0", vfs_dev=3, vfs_inode=9, space=1)
    accepted(w, client, worker, b"/run/s\0", vfs_dev=3, vfs_inode=9)
    assert asked(w.model(), client) == ({master, worker}, set())


def test_unix_of_another_file_with_the_same_name():
    w = World()
    client, master, worker = w.process(), w.process(), w.process()
    w.socket(master, state=10, name=b"/run/s\0", vfs_dev=4, vfs_inode=9)
    accepted(w, client, worker, b"/run/s\0", vfs_dev=3, vfs_inode=9)
    assert asked(w.model(), client) == ({worker}, set())


@pytest.mark.parametrize("space", [0, 1])
def test_abstract_names_belong_to_their_namespace(space):
    w = World()
    client, master, worker = w.process(), w.process(), w.process()
    w.socket(master, state=10, name=b"\0x", space=space)
    accepted(w, client, worker, b"\0x")
    assert asked(w.model(), client) == ({worker}, {master} if space == 0 else set())


def test_a_socketpair_asks_nobody():
    w = World()
    a, b = w.process(), w.process()
    w.pair(a, b)
    model = w.model()
    assert asked(model, a) == asked(model, b) == (set(), set())


def test_nobody_asks_itself():
    w = World()
    a = w.process()
    w.tcp(a, local=("0.0.0.0", 80), state=10)
    connection(w, a, a)
    edges = build(w.snapshot()).edges
    asks = (edges.kind == Edge.REQUEST) & (edges.dst != 0)
    assert not asks.any()


def test_two_named_ends_without_a_listener_may_each_have_asked():
    w = World()
    a, b = w.process(), w.process()
    x, y = w.pair(a, b)
    w.rows["socket_name"][x], w.rows["socket_name"][y] = w.text(b"\0a"), w.text(b"\0b")
    model = w.model()
    assert asked(model, a) == (set(), {b})
    assert asked(model, b) == (set(), {a})


# -- servers of spaces


def serves(graph, process, space):
    """The flags and masks of the HOLD of a process on a space, by name."""
    node = graph.names.find(space)
    e = graph.edges
    hit = (e.src == process + 1) & (e.dst == node) & (e.kind == Edge.HOLD)
    hit &= (e.flags & SERVER) != 0
    return [(int(p), int(m)) for p, m in zip(e.perm[hit], e.maybe[hit], strict=True)]


def tap(w, process, space, name=b"tap0"):
    w.add("tap", process=process, name=w.text(name))
    if space is not None:
        w.add("tunnel", space=space, name=w.text(name), up=1)


def test_the_network_of_a_namespace():
    w = World()
    slirp, inside, outside = w.process(), w.process(net=1), w.process()
    tap(w, slirp, 1)
    model = w.model()
    assert asked(model, inside) == ({slirp}, set())
    assert asked(model, outside) == asked(model, slirp) == (set(), set())
    graph = build(w.snapshot())
    assert [p for p, _ in serves(graph, slirp, "NET_SPACE_501")] == [15]
    assert serves(graph, slirp, "NET_SPACE_500") == []


def test_a_tap_of_ones_own_namespace_serves_it_with_nothing():
    w = World()
    qemu, other = w.process(), w.process()
    tap(w, qemu, 0)
    assert asked(w.model(), other) == (set(), set())


def test_a_device_that_nobody_holds_is_served_by_nobody():
    w = World()
    slirp, inside = w.process(), w.process(net=1)
    tap(w, slirp, None)
    w.add("tunnel", space=1, name=w.text(b"tap0"), up=0)
    assert asked(w.model(), inside) == (set(), set())


@pytest.mark.parametrize("how", ["nothing", "pid", "descriptor", "device"])
def test_one_name_in_two_namespaces_wants_evidence(how):
    w = World(spaces=3)
    first, second = w.process(net=1), w.process(net=2)
    slirp = w.process(cmdline=b"slirp4netns\x00-c\x00101\x00tap0\x00" if how == "pid" else b"")
    tap(w, slirp, 1)
    w.add("tunnel", space=2, name=w.text(b"tap0"), up=1)
    if how == "device":  # its own word comes before all others
        w.rows["tap_space"][0] = 2
        w.rows["process_cmdline"][slirp] = w.text(b"slirp4netns\x00101\x00")
    if how == "descriptor":
        row = w.add(
            "open", kind=OpenKind.NAMESPACE, inode=502, sure=1, number=-1, name=w.text(b"net:[502]")
        )
        w.add("fd", process=slirp, fd=3, access=4, open=row)
    model = w.model()
    maybe = set() if how != "nothing" else {slirp}
    assert asked(model, first) == (set(), maybe)
    assert asked(model, second) == (set() if how == "nothing" else {slirp}, maybe)


def test_a_namespace_that_was_not_read_may_have_the_device_too():
    w = World()
    slirp, inside = w.process(), w.process(net=1)
    tap(w, slirp, 1)
    w.add("namespace", kind=w.rows["namespace_kind"][0], inode=600, parent=-1, user=-2)
    w.add("socketns", net=2, inode=600, status=Status.DENIED, nat=1)
    assert asked(w.model(), inside) == (set(), {slirp})


def fuse_world(known):
    w = World()
    server, user, other = w.process(), w.process(), w.process()
    w.add("fuse", process=server, dev=39 if known else 0, known=known)
    for who, dev in ((user, 39), (other, 40)):
        row = w.add("open", kind=OpenKind.FILE, inode=dev, dev=dev, super=dev, sure=1, number=-1)
        w.add("fd", process=who, fd=3, access=4, open=row)
    return w, server, user, other


def test_a_fuse_server_is_asked_for_its_own_superblock():
    w, server, user, other = fuse_world(True)
    model = w.model()
    assert asked(model, user) == ({server}, set())
    assert asked(model, other) == asked(model, server) == (set(), set())
    assert [p for p, _ in serves(build(w.snapshot()), server, "FILE_SPACE_0:27")] == [15]


def test_a_root_on_fuse_is_use_of_it():
    w, server, _, other = fuse_world(True)
    w.rows["process_root_dev"][other] = 39
    assert asked(w.model(), other) == ({server}, set())


def test_where_the_kernel_does_not_tell_it_may_be_any_fuse():
    w, server, user, other = fuse_world(False)
    assert asked(w.model(), user) == (set(), set())  # no FUSE superblock is mounted
    w.add("tree", process=server, status=Status.READ)
    for dev, kind in ((39, b"fuse.sshfs"), (40, b"ext4")):
        empty = w.text(b"")
        w.add(
            "mount",
            tree=0,
            id=dev,
            dev=dev,
            kind=w.text(kind),
            root=empty,
            point=empty,
            source=empty,
            options=empty,
            propagation=empty,
        )
    model = w.model()
    assert asked(model, user) == (set(), {server})
    assert asked(model, other) == (set(), set())


@pytest.mark.parametrize(
    ("fd", "apart", "kept"), [(1, True, True), (7, True, False), (1, False, False)]
)
def test_the_keeper_of_a_container_s_stdio(fd, apart, kept):
    w = World()
    pid = ("cgroup", "ipc", "mnt", "net", "pid").index("pid")
    rows = [w.add("namespace", kind=pid, inode=700 + i, parent=-1, user=-2) for i in range(2)]
    shim = w.process()
    inside = w.process(parent=shim)
    deeper = w.process(parent=inside)
    for process, row in ((shim, 0), (inside, apart), (deeper, apart)):
        w.rows["process_ns_pid"][process] = rows[row]
    pipe = w.add("open", kind=OpenKind.PIPE, inode=4, dev=9, sure=1, number=-1)
    for process, number, access in ((shim, 20, 4), (inside, fd, 2), (deeper, fd, 2)):
        w.add("fd", process=process, fd=number, access=access, open=pipe)
    model = w.model()
    assert asked(model, inside) == asked(model, deeper) == ({shim} if kept else set(), set())
    assert asked(model, shim) == (set(), set())


def test_a_sandbox_asks_the_gofer_at_the_other_end_of_its_socket():
    w = World()
    gofer, sentry, other = (w.process() for _ in range(3))
    stub = w.process(parent=sentry)
    deeper = w.process(parent=stub)
    mine, _ = w.pair(sentry, gofer)
    w.hold(stub, mine)
    w.pair(other, gofer)
    snap = w.snapshot()
    told = {100 + gofer: "gofer", 100 + sentry: "sentry"}
    snap = Snapshot(snap.columns, {**snap.host, "roles": {str(p): r for p, r in told.items()}})
    model = snap.model()
    assert asked(model, sentry) == ({gofer}, set())
    assert asked(model, stub) == ({sentry, gofer}, set())
    assert asked(model, deeper) == ({sentry}, set())  # it has no socket to the gofer
    assert asked(model, gofer) == asked(model, other) == (set(), set())


def test_everybody_asks_the_kernel_memory_or_not():
    w = World()
    people = [w.process() for _ in range(3)]
    model = w.model()
    for p in people:
        assert 0 in model.services(model.pds[p + 1]).pids


def test_clients_of_a_message_bus_may_ask_each_other_and_are_not_counted():
    w = World()
    bus, a, b, other = (w.process() for _ in range(4))
    for who, program in ((bus, b"/usr/bin/dbus-daemon (deleted)"), (other, b"/usr/bin/redis")):
        w.rows["process_exe"][who] = w.text(program)
        name = b"/run/%d\0" % who
        w.socket(who, state=10, name=name, vfs_dev=3, vfs_inode=who + 9)
        for client in (a, b):
            accepted(w, client, who, name, vfs_dev=3, vfs_inode=who + 9)
    model = w.model()
    assert asked(model, a) == asked(model, b) == ({bus, other}, set())
    edges = build(w.snapshot()).edges
    through = (edges.kind == Edge.REQUEST) & ((edges.flags & POTENTIAL) != 0)
    pairs = zip(edges.src[through].tolist(), edges.dst[through].tolist(), strict=True)
    assert sorted(pairs) == [(a + 1, b + 1), (b + 1, a + 1)]


def test_services_are_the_same_from_either_side():
    rng = np.random.default_rng(3)
    w = World()
    people = [w.process() for _ in range(6)]
    for port in range(80, 84):
        w.tcp(people[port % 6], local=("0.0.0.0", port), state=10)
    for i in range(12):
        a, port = int(rng.integers(6)), 80 + int(rng.integers(4))
        connection(w, people[a], people[port % 6], port=port, mine=5000 + i)
    model = w.model()
    for x in people:
        for y in people:
            if x != y:
                fr = model.fr(model.pds[x + 1], model.pds[y + 1], types={"SOCKET"})
                both = asked(model, x)[0] & asked(model, y)[0] - {x, y}
                assert (fr == 1) >= bool(both)
