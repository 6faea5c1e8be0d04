"""Which processes listen, hold a tun device, or serve a FUSE mount: work, and no mere name."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from osmosis.schema import OpenKind
from osmosis.snapshot import Snapshot

__all__ = ["Serving", "serving"]

_LISTENING = 10  # TCP_LISTEN, of unix sockets too: include/net/tcp_states.h
_DGRAM = 2  # SOCK_DGRAM: include/linux/net.h
_INET = (2, 10)  # AF_INET, AF_INET6


class Serving(NamedTuple):
    """Rows of processes."""

    seen: frozenset[int]  # whose descriptors were read, in a capture that has sockets
    listening: frozenset[int]  # that hold a listening socket, or a UDP socket with a port
    tun: frozenset[int]  # that hold the other end of a tun or tap device
    fuse: frozenset[int]  # that answer for a FUSE mount


def serving(snap: Snapshot) -> Serving:
    """Return who does what in *snapshot*. O(descriptors * log sockets)."""
    state, port = snap["socket_state"], snap["socket_local_port"]
    bound = np.isin(snap["socket_family"], _INET) & (snap["socket_type"] == _DGRAM) & (port > 0)
    inodes = snap["socket_inode"][((state == _LISTENING) | bound) & (snap["socket_inode"] != 0)]
    opens = (snap["open_kind"] == OpenKind.SOCKET) & np.isin(snap["open_inode"], inodes)
    process, of = snap["fd_process"], snap["fd_open"]
    known = of >= 0
    process, of = process[known], of[known]

    def rows(values: Any) -> frozenset[int]:
        return frozenset(np.unique(values).tolist())

    return Serving(
        rows(process) if len(snap["socket_inode"]) else frozenset(),
        rows(process[opens[of]]),
        rows(snap["tap_process"]),
        rows(snap["fuse_process"]),
    )
