"""What callers may write for types, access, verbs, kinds and edges, and what it stands for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import QueryError
from osmosis.graph.graph import ANY, Edge, Graph, Kind, R, W, X
from osmosis.graph.pds import escape, is_pid

__all__ = [
    "ALL_VERBS",
    "DEFAULT_VERBS",
    "POWER_VERBS",
    "RESOURCE_TYPES",
    "SPACE_TYPES",
    "access_mask",
    "depth_of",
    "edge_kinds",
    "node_kinds",
    "type_mask",
    "types_of",
    "verbs_of",
]

RESOURCE_TYPES = (
    "VMR",
    "MO",
    "FILE",
    "MOUNT",
    "PIPE",
    "SOCKET",
    "SHM",
    "MQUEUE",
    "SEM",
    "DEVICE",
    "CPU",
    "DIRECTORY",
    "EVENTFD",
    "EPOLL",
    "TIMERFD",
    "SIGNALFD",
    "INOTIFY",
    "FANOTIFY",
    "IO_URING",
    "ANON",
)
# Address spaces are spaces of type VMR, physical memory is one of MO, filesystems of FILE.
SPACE_TYPES = (
    "MNT",
    "NET",
    "PID",
    "IPC",
    "UTS",
    "USER",
    "CGROUP",
    "TIME",
    "PAGE_QUOTA",
    "PID_QUOTA",
    "CPU_QUOTA",
    "IO_QUOTA",
)

DEFAULT_VERBS = (
    "kill",
    "kill-group",
    "trace-attach",
    "mem-write",
    "end-namespace",
    "cgroup-kill",
    "limit",
    "terminal",
    "supervise",
    "daemon",
    "rewrite",
    "hold",
)
# Verbs that give the actor all that the target can do.
POWER_VERBS = ("trace-attach", "rewrite", "join:user", "daemon")
ALL_VERBS = (
    *DEFAULT_VERBS,
    "stop",
    "continue",
    "trace-read",
    "sched",
    "cgroup-freeze",
    "cgroup-limit",
    "oom",
    *(f"join:{kind}" for kind in ("mnt", "net", "pid", "ipc", "uts", "user", "cgroup", "time")),
)

_LETTERS = {"R": R, "W": W, "X": X}


def access_mask(access: str | Iterable[str]) -> int:
    """Return the mask that a path must have: "ANY", or letters of R W X, as text or a set.

    Raises
    ------
    QueryError
        It is neither.

    """
    if access == "ANY":
        return ANY
    letters = list(access) if isinstance(access, str | Collection) else []
    if letters == ["ANY"]:
        return ANY
    if not letters or not all(letter in _LETTERS for letter in letters):
        raise QueryError(f'access must be "ANY" or letters of R W X, not {access!r}')
    mask = ANY
    for letter in letters:
        mask |= _LETTERS[letter]
    return mask


def _listed(value: str | Iterable[str], what: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise QueryError(f"{what} must be a name or several, not {value!r}")
    listed = tuple(value)
    for name in listed:
        if not isinstance(name, str):
            raise QueryError(f"{what} must be names, not {name!r}")
    return listed


def types_of(
    graph: Graph, types: str | Iterable[str] | None, *, requests: bool = False
) -> frozenset[str] | None:
    """Return the set of asked-for type names; None, for all, as it is.

    With *requests*, what REQUEST edges ask for is a type too, be there no node of it: an endpoint.

    Raises
    ------
    QueryError
        The model does not know one of them; it lists those that it knows.

    """
    if types is None:
        return None
    listed = frozenset(_listed(types, "types"))
    known = {*graph.types, *graph.unseen_types, *RESOURCE_TYPES, *SPACE_TYPES}
    if requests and listed - known:
        at = (graph.edges.kind == Edge.REQUEST) & (graph.edges.label >= 0)
        asked = {graph.labels[label] for label in np.unique(graph.edges.label[at]).tolist()}
        known |= {name for name in asked if graph.names.find(name) is None}
    for name in sorted(listed - known):
        raise QueryError(f"no type {escape(name)!r}; known are {', '.join(sorted(known))}")
    return listed


def type_mask(graph: Graph, types: frozenset[str] | None) -> NDArray[np.bool_] | None:
    """Return (types + 1,) bool by the number of a type, the last one for PDs; None for all."""
    if types is None:
        return None
    return np.array([*(name in types for name in graph.types), False])


def verbs_of(
    provided: Collection[str], verbs: str | Iterable[str] | None
) -> tuple[tuple[str, ...], bool]:
    """Return the verbs asked for that the model provides, and whether any was asked for.

    Raises
    ------
    QueryError
        One is no verb, neither of Linux nor of the model; it lists those known.

    """
    if verbs is None:
        return tuple(verb for verb in DEFAULT_VERBS if verb in provided), True
    listed = tuple(dict.fromkeys(_listed(verbs, "verbs")))
    known = {*ALL_VERBS, *provided}
    for verb in listed:
        if verb not in known:
            raise QueryError(f"no verb {escape(verb)!r}; known are {', '.join(sorted(known))}")
    return tuple(verb for verb in listed if verb in provided), bool(listed)


def node_kinds(kinds: str | Iterable[str]) -> tuple[int, ...]:
    """Return the node kinds by number.

    Raises
    ------
    QueryError
        One is none of PD, RESOURCE, SPACE.

    """
    return _numbers(kinds, Kind, "kinds")


def edge_kinds(edges: str | Iterable[str]) -> tuple[int, ...]:
    """Return the edge kinds by number.

    Raises
    ------
    QueryError
        One is none of HOLD, MAP, SUBSET, REQUEST.

    """
    return _numbers(edges, Edge, "edges")


def _numbers(names: str | Iterable[str], kind: type[Kind | Edge], what: str) -> tuple[int, ...]:
    out = []
    for name in _listed(names, what):
        if name not in kind.__members__:
            known = ", ".join(kind.__members__)
            raise QueryError(f"{what} must be of {known}, not {escape(name)!r}")
        out.append(int(kind[name]))
    return tuple(sorted(set(out)))


def depth_of(depth: Any) -> int | None:
    """Return *depth*: a number of steps from 0 on, or None for no bound.

    Raises
    ------
    QueryError
        It is neither.

    """
    if depth is None:
        return None
    if not is_pid(depth) or depth < 0:
        raise QueryError(f"depth must be None or a number from 0 on, not {depth!r}")
    return int(depth)
