"""daemon: a can connect to a control socket, and the daemon behind it has power over b.

net/unix/af_unix.c: unix_find_bsd asks write permission on the socket file, and nothing of the
mount. What the daemon then does for whoever is connected is its own rule: those of docker,
containerd, podman and CRI-O ask no further; libvirt, systemd and snapd do it for euid 0, and
ask polkit about everybody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control import cgroup, limits, rewrite, signals, trace
from osmosis.relations.control.facts import Facts
from osmosis.relations.control.logic import Condition, every, some
from osmosis.relations.control.openable import openable
from osmosis.relations.control.rules import Pair, Verb, equal
from osmosis.schema import OpenKind, Status

__all__ = ["VERBS"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
# The power that is inherited: what kills b, runs as b, or writes into it.
_POWER = tuple(
    verb
    for verb in (*signals.VERBS, *trace.VERBS, *limits.VERBS, *cgroup.VERBS, *rewrite.VERBS)
    if verb.name in {"kill", "trace-attach", "mem-write", "limit", "cgroup-kill", "rewrite"}
)
# Sockets of each program by the end of their names: True, connecting is the whole check; None,
# polkit is asked but about euid 0. Others of these programs are no way to control anything.
_SOCKETS: dict[str, dict[str, bool | None]] = {
    "dockerd": {"docker.sock": True},
    "containerd": {"containerd.sock": True},
    "podman": {"podman.sock": True},
    "crio": {"crio.sock": True},
    "libvirtd": {"libvirt-sock": None},
    "virtqemud": {"virtqemud-sock": None, "libvirt-sock": None},
    "virtlxcd": {"virtlxcd-sock": None},
    "snapd": {"snapd.socket": None},
    "systemd": {"systemd/private": None},
    "dbus-daemon": {"system_bus_socket": None},
    "dbus-broker": {"system_bus_socket": None},
    "dbus-broker-launch": {"system_bus_socket": None},
}
_WHOLE = tuple(end for of in _SOCKETS.values() for end, whole in of.items() if whole)
# dockerd with another name for its socket (-H unix://...): it may be the API, or one of its own.
_OWN = ("/libnetwork/", "/plugins/", ".ttrpc", "/debug.sock", "metrics.sock")
_BUS = ("dbus-daemon", "dbus-broker", "dbus-broker-launch")
_CONNECTED, _LISTENING, _AF_UNIX = 1, 10, 1


@dataclass(frozen=True, slots=True)
class _Daemon:
    """One control socket, and the process whose power it gives."""

    process: int
    file: int  # row of ctlfile, -1 if it was not found
    name: str
    path: str
    whole: bool  # connecting is the whole check
    certain: bool  # it is that daemon's API: the name and the program say so


class _Daemons:
    def __init__(self, facts: Facts) -> None:
        s = facts.snapshot
        self.facts = facts
        self.of: list[_Daemon] = []
        self.holders = self._holders() if len(s["daemon_process"]) else {}
        names = s.texts("daemon_name")
        for process, file, name, trusted in zip(
            s["daemon_process"].tolist(),
            s["daemon_file"].tolist(),
            names,
            s["daemon_trusted"].tolist(),
            strict=True,
        ):
            socket = int(s["ctlfile_socket"][file]) if file >= 0 else -1
            path = s.text(int(s["socket_name"][socket])).rstrip("\0") if socket >= 0 else ""
            found = self._api(name, path)
            if found is None:
                continue
            whole, known = found
            powered = self._manager(process, socket) if name in _BUS else process
            if powered >= 0:
                certain = known and trusted == 1 and file >= 0
                self.of.append(_Daemon(powered, file, name, path, whole, certain))
        self.blind = rewrite.missing(facts, "files", "sockets") or self._unheld()
        self.connected = self._connected()

    @staticmethod
    def _api(name: str, path: str) -> tuple[bool, bool] | None:
        """(connecting is the whole check, it is known to be its API); None: it is none."""
        for end, whole in _SOCKETS[name].items() if name in _SOCKETS else ():
            if path.endswith(end):
                return whole is True, True
        if name == "systemd" and path.endswith(_WHOLE):
            return True, False  # it starts the daemon for whoever connects, and hands it over
        if any(part in path for part in _OWN) or name not in ("dockerd", "podman", "crio"):
            return None
        return True, False

    def _unheld(self) -> bool:
        """Whether a socket with an API's name listens that nobody we could read holds."""
        s = self.facts.snapshot
        listening = (s["socket_family"] == _AF_UNIX) & (s["socket_state"] == _LISTENING)
        held = set(s["open_inode"][s["fd_open"][s["fd_open"] >= 0]].tolist())
        return any(
            int(s["socket_inode"][row]) not in held
            and int(s["socket_name"][row]) >= 0
            and s.text(int(s["socket_name"][row])).rstrip("\0").endswith(_WHOLE)
            for row in np.flatnonzero(listening).tolist()
        )

    def _manager(self, bus: int, socket: int) -> int:
        """Row of the systemd that is on a system bus, -1 if there is none.

        One that is connected to it; where descriptors were not read it may be.
        """
        s = self.facts.snapshot
        same = (s["process_ns_pid"] == s["process_ns_pid"][bus]) & (self.facts.init == 1)
        read = set(s["fdtable_process"][s["fdtable_status"] == Status.READ].tolist())
        on_it = self._clients(socket) if socket >= 0 else None
        for row in np.flatnonzero(same).tolist():
            is_one = s.text(int(s["process_exe"][row])).endswith("/systemd")
            if is_one and (on_it is None or row in on_it or row not in read):
                return int(row)
        return -1

    def _clients(self, socket: int) -> set[int]:
        """Processes that hold a connection to a listening socket of a file."""
        s = self.facts.snapshot
        mine = (s["socket_family"] == _AF_UNIX) & (s["socket_state"] == _CONNECTED)
        mine &= s["socket_vfs_inode"] == s["socket_vfs_inode"][socket]
        mine &= s["socket_vfs_dev"] == s["socket_vfs_dev"][socket]
        peers = s["socket_peer"][mine].tolist()
        return {process for peer in peers if peer for process in self.holders.get(peer, ())}

    def _holders(self) -> dict[int, list[int]]:
        """Processes that hold each socket, by its inode number."""
        s = self.facts.snapshot
        kind = np.append(s["open_kind"], 255)[s["fd_open"]]
        at = np.flatnonzero(kind == OpenKind.SOCKET)
        holders: dict[int, list[int]] = {}
        for process, inode in zip(
            s["fd_process"][at].tolist(),
            s["open_inode"][s["fd_open"][at]].tolist(),
            strict=True,
        ):
            holders.setdefault(inode, []).append(process)
        return holders

    def _connected(self) -> Bools:
        """(P, D) the process holds a connection to the socket already."""
        held = np.zeros((self.facts.n, len(self.of)), bool)
        for d, daemon in enumerate(self.of):
            if daemon.file >= 0:
                socket = int(self.facts.snapshot["ctlfile_socket"][daemon.file])
                held[list(self._clients(socket)), d] = True
        return held


def _daemons(facts: Facts) -> _Daemons:
    if "daemons" not in facts.kept:
        facts.kept["daemons"] = _Daemons(facts)
    made: _Daemons = facts.kept["daemons"]
    return made


def _key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:
    found = _daemons(facts)
    if not found.of:
        return (facts.dead,)
    _, held = np.unique(found.connected, axis=0, return_inverse=True)
    itself = np.full(facts.n, -1)
    for d, daemon in enumerate(found.of):
        itself[daemon.process] = d
    columns = [openable(facts).tree, held.reshape(-1), itself, facts.dead]
    for verb in _POWER:
        columns += verb.key(facts, effective)
    return columns


def _reaches(pair: Pair, found: _Daemons) -> tuple[Bools, Bools]:
    """Yes and maybe, (S, D): the actor can speak to the daemon, and it will obey."""
    facts = pair.facts
    may, may_be = openable(facts).may_write(pair.a.process, pair.a.cred, writable=False)
    root, _ = equal(pair.actor_id("euid"), np.zeros((1, 1), np.int64))
    shape = (len(pair.a.process), len(found.of))
    yes, maybe = np.zeros(shape, bool), np.zeros(shape, bool)
    for d, daemon in enumerate(found.of):
        holds = found.connected[pair.a.process, d]
        reach = may[:, daemon.file] | holds if daemon.file >= 0 else holds
        reach_maybe = may_be[:, daemon.file] | holds if daemon.file >= 0 else ~holds | holds
        if not daemon.whole:
            reach = reach & root[:, 0]
        yes[:, d] = reach & daemon.certain
        maybe[:, d] = reach_maybe
    return yes, maybe | yes


def _power(pair: Pair, found: _Daemons, effective: bool) -> tuple[Bools, Bools]:
    """Yes and maybe, (D, T): the daemon itself may kill b, trace it, or write into it."""
    facts = pair.facts
    rows = np.array([daemon.process for daemon in found.of], np.int64)
    slots, starts = facts.slots(rows)
    through = Pair(facts, slots, pair.b)
    power = some(*(verb.condition(through, effective) for verb in _POWER))
    shape = (len(slots.process), len(pair.b.process))
    yes, maybe = (
        np.logical_or.reduceat(np.broadcast_to(x, shape), starts, axis=0)
        for x in (power.yes, power.maybe)
    )
    itself = rows[:, None] == pair.b.process[None, :]
    return yes | itself, maybe | itself


def _asks(pair: Pair, effective: bool) -> Condition:
    found = _daemons(pair.facts)
    shape = (len(pair.a.process), len(pair.b.process))
    if found.blind:
        why = "control sockets, or who may reach them, were not read (coverage)"
        return Condition(np.zeros(shape, bool), np.ones(shape, bool), why)
    if not found.of:
        return Condition(np.zeros(shape, bool), None, "no daemon listens on a control socket")
    reach, reach_maybe = _reaches(pair, found)
    power, power_maybe = _power(pair, found, effective)
    yes = reach.astype(np.float32) @ power.astype(np.float32) > 0
    maybe = reach_maybe.astype(np.float32) @ power_maybe.astype(np.float32) > 0

    def say(s: int, t: int, state: bool | None) -> str:
        if state is False:
            return "a can connect to no control socket whose daemon has power over b"
        able = (reach[s] & power[:, t]) if state else (reach_maybe[s] & power_maybe[:, t])
        daemon = found.of[int(np.flatnonzero(able)[0])]
        pid = int(pair.facts["process_pid"][daemon.process])
        where = f"{daemon.name} (pid {pid}) at {daemon.path or 'its socket'}"
        if state:
            return (
                f"a can connect to {where}, and inherits its power over b (unix sockets, owner and "
                "mode, mountinfo)"
            )
        if not daemon.whole:
            return f"a may connect to {where}, and polkit decides what it does for a"
        return f"whether a can connect to {where}, or it obeys, could not be decided"

    return Condition(yes, maybe | yes, say)


def _condition(pair: Pair, effective: bool) -> Condition:
    return every(pair.acts(), pair.alive(), _asks(pair, effective))


VERBS = (
    Verb(
        "daemon",
        "a can connect to the control socket of a daemon that does what it is told, and the "
        "daemon may kill b, trace it or write into it: its power is inherited",
        "net/unix/af_unix.c: unix_find_bsd; the daemon's own rule",
        _key,
        _condition,
    ),
)
