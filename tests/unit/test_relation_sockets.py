"""Which sockets are one connection, and who holds it: on snapshots written by hand."""

import random

import pytest
from socket_world import World, asked, shares, sockets

from osmosis.schema import Status

HOST, LOOP = "192.0.2.1", "127.0.0.1"


def test_unix_ends_that_name_each_other_are_one_resource():
    w = World()
    a, b, c = (w.process() for _ in range(3))
    w.pair(a, b)
    w.socket(c)
    model = w.model()
    assert sockets(model, a, b) == {"SOCKET_1000"}
    assert shares(model, a, b, "RW") is True
    assert shares(model, a, c) is False


def test_a_peer_that_does_not_name_back_gets_and_may_not_answer_the_nameless():
    w = World()
    log, named, nameless = (w.process() for _ in range(3))
    s = w.socket(log, type=2, state=7, name=b"/log\0", vfs_inode=5)
    for who, name in ((named, b"\0n"), (nameless, -1)):
        w.socket(who, type=2, peer=w.rows["socket_inode"][s], name=name)
    model = w.model()
    for who in (named, nameless):
        assert shares(model, log, who, "W") is True
        assert asked(model, who) == ({log}, set())
    assert shares(model, named, log, "W") is None
    assert shares(model, nameless, log, "W") is False
    assert shares(model, nameless, log, "R") is True
    assert shares(model, named, nameless) is False


def test_shut_down_sides_write_no_more():
    w = World()
    a, b = w.process(), w.process()
    x, y = w.pair(a, b)
    w.rows["socket_shutdown"][x], w.rows["socket_shutdown"][y] = 2, 1
    model = w.model()
    assert shares(model, a, b, "W") is True
    assert shares(model, b, a, "W") is False
    assert shares(model, b, a, "R") is True


def test_not_told_whether_it_is_shut_down_means_it_is_not():
    w = World()
    a, b = w.process(), w.process()
    for end in w.pair(a, b):
        w.rows["socket_shutdown"][end] = 255
    assert shares(w.model(), b, a, "W") is True


@pytest.mark.parametrize("space", [0, 1])
def test_tcp_over_loopback_stays_in_its_namespace(space):
    w = World()
    a, b = w.process(), w.process()
    w.tcp(a, local=(LOOP, 5), remote=(LOOP, 6))
    w.tcp(b, local=(LOOP, 6), remote=(LOOP, 5), space=space)
    assert shares(w.model(), a, b) is (space == 0)


def test_tcp_across_namespaces_needs_the_only_match():
    w = World(spaces=4)
    a, b, c, d = (w.process(net=n) for n in range(4))
    w.tcp(a, local=("10.0.0.1", 5), remote=("10.0.0.2", 6), space=0)
    w.tcp(b, local=("10.0.0.2", 6), remote=("10.0.0.1", 5), space=1)
    assert shares(w.model(), a, b, "W") is True
    w.tcp(c, local=("10.0.0.1", 5), remote=("10.0.0.2", 6), space=2)
    w.tcp(d, local=("10.0.0.2", 6), remote=("10.0.0.1", 5), space=3)
    model = w.model()
    for x, y in ((a, b), (a, d), (c, b), (c, d)):
        assert shares(model, x, y) is None
    assert shares(model, a, c) is None  # of one and the same server, perhaps


def test_an_address_of_ones_own_leads_nowhere_else():
    w = World()
    a, b = w.process(), w.process(net=1)
    w.address(0, "10.0.0.2")
    w.tcp(a, local=("10.0.0.1", 5), remote=("10.0.0.2", 6), space=0)
    w.tcp(b, local=("10.0.0.2", 6), remote=("10.0.0.1", 5), space=1)
    assert shares(w.model(), a, b) is False


def test_ipv4_over_an_ipv6_socket():
    w = World()
    a, b = w.process(), w.process()
    w.tcp(a, local=(LOOP, 5), remote=(LOOP, 6))
    w.tcp(b, local=("::ffff:127.0.0.1", 6), remote=("::ffff:127.0.0.1", 5))
    assert shares(w.model(), a, b) is True


def test_a_socket_connected_to_itself_is_its_own():
    w = World()
    a, b = w.process(), w.process()
    s = w.tcp(a, local=(LOOP, 5), remote=(LOOP, 5))
    w.hold(b, s)
    model = w.model()
    assert sockets(model, a, b) == {"SOCKET_1000"}
    assert asked(model, a) == asked(model, b) == (set(), set())


@pytest.mark.parametrize("hops", [1, 2, 4])
def test_translated_connections_are_followed(hops):
    w = World(spaces=7)
    a, b, c = w.process(), w.process(net=1), w.process(net=2)
    now = (("10.0.0.1", 5), ("10.0.0.2", 80))
    w.tcp(a, local=now[0], remote=now[1], space=0)
    for i in range(hops):
        nxt = ((f"10.{i + 1}.0.1", 50 + i), (f"10.{i + 1}.0.2", 8080 + i))
        w.nat(2 + i, now[0], now[1], nxt[1], nxt[0])
        now = nxt
    w.tcp(b, local=now[1], remote=now[0], space=1)
    w.tcp(c, local=(now[1][0], 1), remote=now[0], space=1)
    model = w.model()
    assert shares(model, a, b, "W") is True
    assert shares(model, a, c) is False


def test_a_translation_of_loopback_counts_where_it_is_made():
    for space, same in ((0, True), (2, False)):
        w = World(spaces=3)
        a, b = w.process(), w.process(net=1)
        w.tcp(a, local=(LOOP, 5), remote=(LOOP, 80), space=0)
        w.nat(space, (LOOP, 5), (LOOP, 80), ("10.0.0.2", 8080), ("10.0.0.1", 5))
        w.tcp(b, local=("10.0.0.2", 8080), remote=("10.0.0.1", 5), space=1)
        assert shares(w.model(), a, b) is same


def test_what_each_side_sees_of_a_translated_connection_is_told():
    w = World()
    a, b = w.process(), w.process(net=1)
    w.tcp(a, local=("10.0.0.1", 5), remote=("192.0.2.9", 80), space=0)
    w.nat(0, ("10.0.0.1", 5), ("192.0.2.9", 80), ("10.1.0.2", 8080), ("10.1.0.1", 66))
    w.tcp(b, local=("10.1.0.2", 8080), remote=("10.1.0.1", 66), space=1)
    data = w.model().data
    note = data.notes.get(data.names.find("SOCKET_1000"), {})
    assert (note["local"], note["local_sees"]) == ("10.0.0.1:5", "192.0.2.9:80")
    assert (note["remote"], note["remote_sees"]) == ("10.1.0.2:8080", "10.1.0.1:66")


def test_datagrams_that_are_translated_may_reach_the_socket_at_the_far_address():
    def world(translated, told=1):
        w = World(spaces=3)
        w.rows["socketns_nat"][0] = told
        client, server, other = w.process(), w.process(net=1), w.process(net=2)
        w.address(0, "192.0.2.9")
        w.address(1, "10.1.0.2")
        w.address(2, "10.1.0.3")
        udp = {"protocol": 17, "type": 2}
        w.tcp(client, local=("192.0.2.9", 5), remote=("192.0.2.9", 53), space=0, **udp)
        for who, space in ((server, 1), (other, 2)):
            w.tcp(who, local=("0.0.0.0", 5353), state=7, space=space, **udp)
        w.tcp(w.process(), local=("0.0.0.0", 53), state=7, space=0, **udp)
        if translated:
            ends = ("192.0.2.9", 5), ("192.0.2.9", 53), ("10.1.0.2", 5353), ("192.0.2.9", 5)
            w.nat(0, *ends, protocol=17)
        return asked(w.model(), client)

    # Process 3 has the port of the address that it was sent to: it gets what is not translated.
    assert world(translated=True) == (set(), {1, 3})
    assert world(translated=False) == ({3}, set())
    assert world(translated=False, told=0) == (set(), {3})


def test_untold_translations_make_lone_connections_unknown():
    w = World()
    a, b, c = w.process(), w.process(net=1), w.process()
    w.tcp(a, local=("10.0.0.1", 5), remote=("10.0.0.9", 80), space=0)
    w.tcp(b, local=("10.1.0.1", 6), remote=("10.1.0.9", 80), space=1)
    w.tcp(c, local=("10.0.0.1", 7), state=10)
    assert shares(w.model(), a, b) is False
    w.rows["socketns_nat"][0] = 0
    w.tcp(c, local=("10.0.0.1", 8), remote=("10.0.0.1", 9), space=0)
    w.tcp(c, local=("10.0.0.1", 9), remote=("10.0.0.1", 8), space=0)
    model = w.model()
    assert shares(model, a, b) is None
    assert shares(model, a, c) is None  # c holds resources, and a may reach more than was seen
    assert asked(model, a) == asked(model, b) == (set(), set())  # neither of them answers
    w.tcp(b, local=("0.0.0.0", 6), state=10, space=1)
    assert asked(w.model(), a) == (set(), {b})  # b has accepted its end
    w.rows["socketns_nat"][0] = 1
    assert shares(w.model(), a, c) is False


def test_what_waits_belongs_to_those_who_hold_the_listener():
    w = World()
    server, twin, client, other = (w.process() for _ in range(4))
    listener = w.tcp(server, twin, local=("0.0.0.0", 80), state=10)
    w.tcp(client, local=(LOOP, 5), remote=(LOOP, 80))
    w.tcp(local=(LOOP, 80), remote=(LOOP, 5), inode=0)
    unix = w.socket(server, state=10, name=b"/s\0", vfs_inode=9, vfs_dev=3)
    caller = w.socket(other)
    w.add("socketwait", socket=unix, client=w.rows["socket_inode"][caller])
    model = w.model()
    inode = w.rows["socket_inode"][listener] + 1
    assert f"SOCKET_{inode}" in sockets(model, client, server) & sockets(model, client, twin)
    assert sockets(model, other, server) == {f"SOCKET_{w.rows['socket_inode'][caller]}"}
    assert shares(model, other, twin) is False
    assert asked(model, client) == ({server, twin}, set())
    assert asked(model, other) == ({server}, set())


def test_what_waits_from_outside_is_a_resource_of_the_listener_s_holders():
    w = World()
    a, b = w.process(), w.process()
    listener = w.tcp(a, b, local=("0.0.0.0", 80), state=10)
    w.tcp(local=("192.0.2.1", 80), remote=("198.51.100.1", 5), inode=0)
    inode = w.rows["socket_inode"][listener]
    assert sockets(w.model(), a, b) == {f"SOCKET_{inode}", "SOCKET_0_7"}


def test_a_connection_between_namespaces_is_carried_by_neither_alone():
    w = World()
    a, b = w.process(), w.process(net=1)
    w.tcp(a, local=("10.0.0.1", 5), remote=("10.0.0.2", 6), space=0)
    w.tcp(b, local=("10.0.0.2", 6), remote=("10.0.0.1", 5), space=1)
    model = w.model()
    names = set(model.bfs(model.pds[a + 1], edges={"HOLD", "SUBSET"}, kinds={"SPACE"}).ids)
    assert "NET_SPACE_500" in names
    assert "NET_SPACE_501" not in names


def test_closed_ends_are_of_nobody():
    w = World()
    a, b = w.process(), w.process()
    w.tcp(a, local=(LOOP, 5), remote=(LOOP, 80), state=8)
    w.tcp(local=(LOOP, 80), remote=(LOOP, 5), state=5, inode=0)
    w.tcp(b, local=("0.0.0.0", 80), state=10)
    assert shares(w.model(), a, b) is False


def test_a_socket_is_held_by_all_that_it_was_given_to():
    w = World()
    a, b, c = w.process(), w.process(net=1), w.process()
    x, _ = w.pair(a, c)
    w.hold(b, x)
    model = w.model()
    assert sockets(model, a, b) == sockets(model, b, c) == {"SOCKET_1000"}


def test_unread_descriptors_and_unknown_sockets_are_unknown():
    w = World()
    a, b, blind, d, e = (w.process(read=i != 2) for i in range(5))
    w.pair(a, b)
    for who, status in ((d, Status.HIDDEN), (e, Status.SKIPPED)):
        w.socket(who, space=-1, status=status, state=0, shutdown=255)
    model = w.model()
    assert shares(model, a, b) is True
    for x, y in ((a, blind), (blind, a), (a, d), (d, blind)):
        assert shares(model, x, y) is None
    assert shares(model, a, e) is False  # not bound: alone
    w.hold(e, inode=77)  # in no row at all: opened since
    assert shares(w.model(), a, e) is None


def test_not_asked_for_is_not_known():
    w = World()
    a, b = w.process(), w.process()
    w.sources = ["processes"]
    for name, rows in w.rows.items():
        if name.startswith("fdtable_"):
            rows.clear()
    assert shares(w.model(), a, b) is None


def test_the_order_of_rows_does_not_matter():
    rng = random.Random(5)
    answers = set()
    for _ in range(5):
        w = World()
        people = [w.process() for _ in range(4)]
        ports = list(range(6))
        rng.shuffle(ports)
        jobs = [(p, side) for p in ports for side in (0, 1)]
        rng.shuffle(jobs)
        for p, side in jobs:
            ends = ((LOOP, 100 + p), (LOOP, 200 + p))
            w.tcp(people[p % 4 if side else (p + 1) % 4], local=ends[side], remote=ends[1 - side])
        model = w.model()
        answers.add(tuple(shares(model, a, b) for a in people for b in people if a != b))
    assert len(answers) == 1


def test_udp_goes_to_the_socket_that_fits_best():
    w = World()
    client, exact, any_, other = (w.process() for _ in range(4))
    w.tcp(client, local=(LOOP, 5), remote=(LOOP, 53), protocol=17, type=2)
    w.tcp(any_, local=("0.0.0.0", 53), state=7, protocol=17, type=2)
    model = w.model()
    assert shares(model, client, any_, "R") is True
    assert asked(model, client) == ({any_}, set())
    w.tcp(exact, local=(LOOP, 53), state=7, protocol=17, type=2)
    w.tcp(other, local=(LOOP, 54), state=7, protocol=17, type=2)
    model = w.model()
    assert asked(model, client) == ({exact}, set())
    assert shares(model, client, any_) is False
    w.tcp(other, local=(LOOP, 53), state=7, protocol=17, type=2)  # SO_REUSEPORT
    assert asked(w.model(), client) == (set(), {exact, other})


def test_udp_to_another_namespace_is_possible_only():
    w = World()
    a, b = w.process(), w.process(net=1)
    w.tcp(a, local=("10.0.0.1", 5), remote=("10.0.0.2", 53), protocol=17, type=2, space=0)
    w.tcp(b, local=("0.0.0.0", 53), state=7, protocol=17, type=2, space=1)
    assert shares(w.model(), a, b) is False
    w.address(1, "10.0.0.2")
    assert shares(w.model(), a, b) is None


def test_an_ipv6_socket_takes_ipv4_unless_it_says_no():
    for v6only, takes in ((0, True), (1, False)):
        w = World()
        a, b = w.process(), w.process()
        w.tcp(a, local=(LOOP, 5), remote=(LOOP, 53), protocol=17, type=2)
        w.tcp(b, local=("::", 53), state=7, protocol=17, type=2, v6only=v6only)
        assert shares(w.model(), a, b, "R") is takes


def test_sockets_stand_in_the_namespace_that_carries_them():
    w = World()
    a, b = w.process(), w.process(net=1)
    w.tcp(a, local=(HOST, 5), state=10, space=1)
    w.pair(a, b)
    model = w.model()
    names = model.bfs(model.pds[a + 1], edges={"HOLD", "SUBSET"}, kinds={"SPACE"}).ids
    # Its own namespace by membership, the other by a socket; a unix connection adds none.
    assert set(names) >= {"NET_SPACE_500", "NET_SPACE_501"}
    names = model.bfs(model.pds[b + 1], edges={"HOLD", "SUBSET"}, kinds={"SPACE"}).ids
    assert "NET_SPACE_500" not in set(names)
