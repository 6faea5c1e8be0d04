"""What a network namespace tells beside its sockets: addresses, tunnels, translated connections.

Asked over rtnetlink by a thread that is in that namespace; raises OSError and ValueError.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "parse_addresses",
    "parse_translations",
    "parse_tunnels",
    "read_addresses",
    "read_translations",
    "read_tunnels",
    "translations",
]

# include/uapi/linux/rtnetlink.h, if_addr.h, if_link.h
RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR = 16, 18, 20, 22
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFLA_IFNAME, IFLA_CARRIER, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 33, 18, 1
DUMP = 0x301
# include/uapi/linux/netfilter/nfnetlink_conntrack.h: NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
NETFILTER, CONNTRACK_NEW, CONNTRACK_GET = 12, 0x100, 0x101
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY = 1, 2
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "udplite": 136}


def _ask(kind: int, body: bytes, protocol: int = socket.NETLINK_ROUTE) -> bytes:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as link:
        link.settimeout(10)
        link.send(struct.pack("=IHHII", 16 + len(body), kind, DUMP, 1, 0) + body)
        parts = []
        while True:
            part = link.recv(1 << 17)
            parts.append(part)
            if not part or any(k in (NLMSG_ERROR, NLMSG_DONE) for k, _ in _messages(part)):
                return b"".join(parts)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        size, kind = struct.unpack_from("=IH", data, at)
        if size < 16 or at + size > len(data):
            raise ValueError("a message of rtnetlink does not parse")
        yield kind, data[at + 16 : at + size]
        at += size + 3 & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    out = {}
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4 or at + size > len(data):
            raise ValueError("an attribute of rtnetlink does not parse")
        out[kind & 0x3FFF] = data[at + 4 : at + size]
        at += size + 3 & ~3
    return out


def _pair(address: bytes) -> tuple[int, int]:
    """Both halves of an address, IPv4 as IPv4-mapped."""
    if len(address) == 4:
        return 0, 0xFFFF << 32 | int.from_bytes(address, "big")
    return int.from_bytes(address[:8], "big"), int.from_bytes(address[8:16], "big")


def parse_addresses(data: bytes) -> list[tuple[int, int]]:
    """Return the addresses of RTM_NEWADDR messages, in two halves each."""
    found = []
    for kind, body in _messages(data):
        if kind == RTM_NEWADDR:
            attributes = _attributes(body[8:])
            address = attributes.get(IFA_LOCAL, attributes.get(IFA_ADDRESS))
            if address is not None:
                found.append(_pair(address))
    return sorted(set(found))


def parse_tunnels(data: bytes) -> list[tuple[bytes, bool]]:
    """Return (name, whether somebody holds its other end) of each tun and tap device.

    A tun device has carrier while a descriptor is attached to it: tun_attach(), tun_detach() in
    drivers/net/tun.c.
    """
    found = []
    for kind, body in _messages(data):
        if kind != RTM_NEWLINK:
            continue
        attributes = _attributes(body[16:])
        if _attributes(attributes.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND, b"")[:3] == b"tun":
            name = attributes.get(IFLA_IFNAME, b"").rstrip(b"\0")
            found.append((name, attributes.get(IFLA_CARRIER, b"\0")[:1] == b"\1"))
    return found


def read_addresses() -> list[tuple[int, int]]:
    """Return the addresses of the namespace that the calling thread is in."""
    return parse_addresses(_ask(RTM_GETADDR, bytes(8)))


def read_tunnels() -> list[tuple[bytes, bool]]:
    """Return the tun and tap devices of the namespace that the calling thread is in."""
    return parse_tunnels(_ask(RTM_GETLINK, bytes(16)))


_LINE = re.compile(
    r"^ipv[46] +\d+ +(\w+) .*?src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)"
    r" .*?src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)",
    re.MULTILINE,
)


def translations(text: str) -> Iterator[tuple[int, ...]]:
    """Parse /proc/net/nf_conntrack; only what is not answered from where it was sent to.

    Yields
    ------
    tuple of int
        protocol, then source and destination of the first direction, and of the answer:
        (hi, lo, port) four times.

    """
    for name, src, dst, sport, dport, *back in _LINE.findall(text):
        if name in PROTOCOLS and [dst, src, dport, sport] != back:
            sides = ((src, sport), (dst, dport), (back[0], back[2]), (back[1], back[3]))
            ends = [(*_pair(ipaddress.ip_address(a).packed), int(p)) for a, p in sides]
            yield (PROTOCOLS[name], *(number for end in ends for number in end))


def parse_translations(data: bytes) -> Iterator[tuple[int, ...]]:
    """Parse what ctnetlink answers; as ``translations``."""
    for kind, body in _messages(data):
        if kind == NLMSG_ERROR and (code := struct.unpack_from("=i", body)[0]):
            raise OSError(-code, os.strerror(-code))
        if kind != CONNTRACK_NEW:
            continue
        tuples = _attributes(body[4:])
        ends: list[tuple[int, int, int]] = []
        for number in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
            part = _attributes(tuples.get(number, b""))
            ip, proto = (_attributes(part.get(i, b"")) for i in (1, 2))
            for side in (0, 1):
                address = ip.get(1 + side, ip.get(3 + side, b""))  # CTA_IP_V4_*, CTA_IP_V6_*
                port = proto.get(2 + side, b"")  # CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT
                if len(address) in (4, 16) and len(port) == 2:
                    ends.append((*_pair(address), int.from_bytes(port, "big")))
        protocol = proto.get(1, b"\0")[0]
        if len(ends) != 4 or protocol not in PROTOCOLS.values():
            continue
        if ends[0] != ends[3] or ends[1] != ends[2]:
            yield (protocol, *(number for end in ends for number in end))


def read_translations() -> list[tuple[int, ...]]:
    """Return the translated connections of the namespace that the calling thread is in.

    Raises
    ------
    OSError
        Connections are tracked here, and neither /proc nor ctnetlink tells them to us.

    """
    try:
        return list(translations(Path("/proc/thread-self/net/nf_conntrack").read_text()))
    except OSError:
        try:
            tracked = int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())
        except FileNotFoundError:
            return []
        return list(parse_translations(_ask(CONNTRACK_GET, bytes(4), NETFILTER))) if tracked else []
