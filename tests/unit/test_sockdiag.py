"""The parser of sock_diag answers against messages written out, and a slow twin."""

import errno
import ipaddress
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _fastproc import sockdiag
from osmosis.capture.netdevices import (
    parse_addresses,
    parse_translations,
    parse_tunnels,
    translations,
)
from osmosis.capture.sockets import ROW, decode

DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


def message(body, kind=20, flags=2):
    size = 16 + len(body)
    return struct.pack("=IHHII", size, kind, flags, 1, 0) + body + bytes(-size % 4)


def attribute(kind, data):
    size = 4 + len(data)
    return struct.pack("=HH", size, kind) + data + bytes(-size % 4)


def unix(inode, *attributes, kind=1, state=1, cookie=9):
    head = struct.pack("=BBBBIII", 1, kind, state, 0, inode, cookie & 0xFFFFFFFF, cookie >> 32)
    return message(head + b"".join(attributes))


def inet(inode, local, remote, *attributes, family=2, state=1, queue=0, uid=0, device=0):
    def address(text):
        return ipaddress.ip_address(text).packed.ljust(16, b"\0")

    head = struct.pack("=BBBB", family, state, 0, 0)
    head += struct.pack(">HH", local[1], remote[1]) + address(local[0]) + address(remote[0])
    head += struct.pack("=III", device, 5, 6)
    head += struct.pack("=IIIII", 0, queue, 0, uid, inode)
    return message(head + b"".join(attributes))


def rows(data, **more):
    part, done, changed = decode(data, **more)
    return part, done, changed


def test_a_unix_socket_with_everything():
    data = unix(
        77,
        attribute(0, b"/run/x\0"),
        attribute(1, struct.pack("=II", 12, 8 << 20 | 3)),
        attribute(2, struct.pack("=I", 78)),
        attribute(3, struct.pack("=III", 5, 0, 6)),
        attribute(4, struct.pack("=II", 2, 128)),
        attribute(6, b"\x02"),
        attribute(7, struct.pack("=I", 1000)),
        kind=5,
        state=10,
        cookie=1 << 33,
    )
    part, done, changed = rows(data + DONE)
    assert (done, changed, part.names) == (True, False, [b"/run/x\0"])
    row = part.rows[0]
    told = {n: int(row[n]) for n in ("inode", "peer", "vfs_dev", "vfs_inode", "queue", "uid")}
    assert told == {
        "inode": 77,
        "peer": 78,
        "vfs_dev": 8 << 32 | 3,
        "vfs_inode": 12,
        "queue": 2,
        "uid": 1000,
    }
    assert (row["family"], row["type"], row["state"], row["shutdown"]) == (1, 5, 10, 2)
    assert row["cookie"] == 1 << 33
    assert part.waiting.tolist() == [[0, 5], [0, 0], [0, 6]]


def test_what_is_not_told_is_not_zero():
    part, done, _ = rows(unix(3))
    assert (part.rows["shutdown"][0], part.names, done) == (255, [None], False)


def test_inet_addresses_of_both_families():
    data = inet(5, ("10.0.0.1", 80), ("127.0.0.1", 65535), attribute(8, b"\x01"), uid=3, queue=4)
    data += inet(
        6, ("fe80::1", 1), ("::ffff:10.0.0.1", 2), attribute(11, b"\x01"), family=10, device=7
    )
    part, _, _ = rows(data, protocol=6)
    four, six = part.rows
    assert (four["local_hi"], four["local_lo"], four["local_port"]) == (0, 0xFFFF_0A000001, 80)
    assert (four["remote_lo"], four["remote_port"]) == (0xFFFF_7F000001, 65535)
    assert (four["shutdown"], four["uid"], four["queue"], four["cookie"]) == (1, 3, 4, 6 << 32 | 5)
    assert (six["local_hi"], six["local_lo"]) == (0xFE80 << 48, 1)
    assert six["remote_lo"] == four["local_lo"]
    assert (six["v6only"], six["device"], six["type"], six["protocol"]) == (1, 7, 1, 6)


def test_netlink_packet_and_vsock():
    data = message(struct.pack("=BBBBIIIIII", 16, 3, 4, 1, 100, 200, 0, 7, 1, 0))
    data += message(struct.pack("=BBHIII", 17, 3, 0x800, 8, 1, 0))
    data += message(struct.pack("=BBBBIIIIIII", 40, 1, 1, 2, 3, 4, 5, 6, 9, 1, 0))
    part, _, _ = rows(data)
    assert part.rows["inode"].tolist() == [7, 8, 9]
    assert (part.rows["peer"][0], part.rows["local_port"][0], part.rows["protocol"][0]) == (
        200,
        100,
        4,
    )
    assert part.rows["protocol"][1] == 0x800
    assert (part.rows["local_lo"][2], part.rows["remote_port"][2], part.rows["shutdown"][2]) == (
        3,
        6,
        2,
    )


def test_an_answer_that_is_an_error_is_an_error():
    for kind in (2, 3):
        data = message(struct.pack("=i", -errno.ENOENT), kind)
        with pytest.raises(FileNotFoundError):
            sockdiag.measure(data)


def test_changed_meanwhile_is_said():
    assert rows(message(bytes(4), 3, 2 | 0x10))[1:] == (True, True)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("=IHHII", 15, 20, 0, 1, 0),
        struct.pack("=IHHII", 400, 20, 0, 1, 0),
        message(b"\x01" + bytes(10)),
        message(b"\x63" + bytes(80)),
        message(bytes(0)),
        message(struct.pack("=BBBBIII", 1, 1, 1, 0, 1, 1, 0) + struct.pack("=HH", 3, 0)),
        message(struct.pack("=BBBBIII", 1, 1, 1, 0, 1, 1, 0) + struct.pack("=HH", 64, 0)),
    ],
)
def test_what_does_not_parse_is_refused(data):
    with pytest.raises(ValueError, match="does not parse"):
        sockdiag.measure(data)


def test_arrays_must_fit():
    data = unix(1) + unix(2)
    with pytest.raises(ValueError, match="2 rows"):
        sockdiag.parse(data, np.zeros(ROW.itemsize, np.uint8), np.zeros((0, 2), np.int64))
    with pytest.raises(ValueError, match="do not fit"):
        sockdiag.parse(data, np.zeros(2 * ROW.itemsize, np.uint8), np.zeros((1, 2), np.int64))
    assert sockdiag.measure(b"") == (0, 0, False, False)


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused(data):
    try:
        part, _, _ = rows(data)
    except (ValueError, OSError):
        return
    assert len(part.rows) == len(part.names)


SOCKETS = st.lists(
    st.tuples(
        st.integers(1, 2**32 - 1),
        st.one_of(st.none(), st.binary(max_size=20)),
        st.one_of(st.none(), st.integers(0, 2**32 - 1)),
        st.lists(st.integers(0, 2**32 - 1), max_size=4),
    ),
    max_size=12,
)


@given(SOCKETS)
def test_agrees_with_what_was_written(made):
    data = b""
    for inode, name, peer, waiting in made:
        attributes = [attribute(5, b"xyz")]  # one that nobody asks for
        attributes += [] if name is None else [attribute(0, name)]
        attributes += [] if peer is None else [attribute(2, struct.pack("=I", peer))]
        attributes += [attribute(3, struct.pack(f"={len(waiting)}I", *waiting))] if waiting else []
        data += unix(inode, *attributes)
    part, _, _ = rows(data + DONE)
    assert part.rows["inode"].tolist() == [m[0] for m in made]
    assert part.names == [m[1] for m in made]
    assert part.rows["peer"].tolist() == [m[2] or 0 for m in made]
    assert part.waiting.tolist() == [[i, c] for i, m in enumerate(made) for c in m[3]]


def test_addresses_and_tunnels():
    data = message(
        bytes(8) + attribute(1, bytes([10, 0, 0, 9])) + attribute(2, bytes([10, 0, 0, 1])), 20
    )
    data += message(bytes(8) + attribute(1, ipaddress.ip_address("fe80::1").packed), 20)
    assert parse_addresses(data) == [(0, 0xFFFF_0A000001), (0xFE80 << 48, 1)]

    def link(name, kind, carrier):
        info = attribute(18, attribute(1, kind))
        return message(bytes(16) + attribute(3, name + b"\0") + attribute(33, carrier) + info, 16)

    data = (
        link(b"tap0", b"tun\0", b"\1")
        + link(b"eth0", b"veth\0", b"\1")
        + link(b"t", b"tun\0", b"\0")
    )
    assert parse_tunnels(data) == [(b"tap0", True), (b"t", False)]
    with pytest.raises(ValueError, match="does not parse"):
        parse_tunnels(data[:-4])


LINE = (
    "ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.1 dst={} sport=5 dport=80 "
    "src=10.0.1.2 dst=10.0.0.1 sport={} dport=5 [ASSURED] mark=0 zone=0 use=2\n"
)


def test_only_translated_connections_are_kept():
    text = LINE.format("10.0.1.2", 80) + LINE.format("10.0.0.9", 8080)
    text += "ipv4     2 unknown  2 591 src=172.18.0.1 dst=224.0.0.22 [UNREPLIED] src=1.2.3.4\n"
    low = 0xFFFF_0A000000
    expected = [(6, 0, low + 1, 5, 0, low + 9, 80, 0, low + 0x102, 8080, 0, low + 1, 5)]
    assert list(translations(text)) == expected

    def side(number, src, dst, sport, dport):
        ip = attribute(1, attribute(1, bytes(src)) + attribute(2, bytes(dst)))
        ports = [attribute(2 + i, struct.pack(">H", p)) for i, p in enumerate((sport, dport))]
        return attribute(
            number | 0x8000, ip + attribute(2, attribute(1, b"\x06") + b"".join(ports))
        )

    def entry(to, port):
        one = side(1, (10, 0, 0, 1), to, 5, 80)
        return message(bytes(4) + one + side(2, (10, 0, 1, 2), (10, 0, 0, 1), port, 5), 0x100)

    data = entry((10, 0, 1, 2), 80) + entry((10, 0, 0, 9), 8080)
    assert list(parse_translations(data)) == expected
    with pytest.raises(PermissionError):
        list(parse_translations(message(struct.pack("=i", -1), 2)))
