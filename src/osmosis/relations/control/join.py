"""join:KIND: setns into a namespace of b. kernel/nsproxy.c, and the install of each kind.

Each kind asks CAP_SYS_ADMIN over the user namespace that owns it, and over the caller's own;
user asks it over the namespace itself; mnt also CAP_SYS_CHROOT; pid only lets one go down. And
the caller needs a reference: a link in /proc or a pidfd of some member (trace-read), a file
held open, a bind mount, or, since Linux 6.18, a file handle made from the namespace's id.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.facts import Facts
from osmosis.relations.control.logic import Condition, every, some
from osmosis.relations.control.rules import Pair, Verb, facts_capable
from osmosis.relations.control.sight import shown
from osmosis.relations.control.trace import may_access, trace_key
from osmosis.schema import NAMESPACES

__all__ = ["VERBS"]

Bools = NDArray[np.bool_]
_SOURCE = {
    "cgroup": "kernel/cgroup/namespace.c: cgroupns_install",
    "ipc": "ipc/namespace.c: ipcns_install",
    "mnt": "fs/namespace.c: mntns_install",
    "net": "net/core/net_namespace.c: netns_install",
    "pid": "kernel/pid_namespace.c: pidns_install",
    "time": "kernel/time/namespace.c: timens_install",
    "user": "kernel/user_namespace.c: userns_install",
    "uts": "kernel/utsname.c: utsns_install",
}


def _reference_key(facts: Facts) -> list[NDArray[Any]]:
    spaces = [facts[f"process_ns_{kind}"] for kind in NAMESPACES]
    return [*trace_key(facts, False), facts.view, facts.held_namespaces[0], *spaces]


def _references(facts: Facts) -> tuple[NDArray[np.int32], Bools, Bools]:
    """Class of each process, and yes and maybe by class and namespace, (K, N + 1); kept."""
    if "references" not in facts.kept:
        facts.kept["references"] = _make_references(facts)
    made: tuple[NDArray[np.int32], Bools, Bools] = facts.kept["references"]
    return made


def _make_references(facts: Facts) -> tuple[NDArray[np.int32], Bools, Bools]:
    classes = facts.classes(*_reference_key(facts))
    pair = Pair(facts, classes.slots, classes.slots)
    by_link = every(
        may_access(pair, "fs", attach=False), shown(pair, writable=False, traceable=None)
    )
    by_pidfd = every(pair.sees(), may_access(pair, "real", attach=False))
    read = classes.fold(every(pair.acts(), pair.alive(), some(by_link, by_pidfd)))
    first = classes.slots.process[classes.starts]
    k, n = len(first), facts.trees.n
    out = []
    for matrix in read:
        reach = np.zeros((k, n + 1), bool)
        for kind in NAMESPACES:
            rows = facts[f"process_ns_{kind}"][first]
            order = np.argsort(rows, kind="stable")
            spaces, starts = np.unique(rows[order], return_index=True)
            if k:
                reach[:, spaces] |= np.logical_or.reduceat(matrix[:k, :k][:, order], starts, axis=1)
        out.append(reach)
    yes, maybe = out
    for kind in NAMESPACES:  # one's own need nobody's leave
        own = facts[f"process_ns_{kind}"][first]
        yes[np.flatnonzero(own >= 0), own[own >= 0]] = True
    _add_held(facts, first, yes)
    maybe = maybe | yes
    for kind in NAMESPACES:
        maybe[facts[f"process_ns_{kind}"][first] < 0, -1] = True
    for matrix in (yes, maybe):
        # NS_GET_USERNS and NS_GET_PARENT lead from a namespace to those above it.
        for row in range(n):
            matrix[:, facts.trees.above(row)] |= matrix[:, row][:, None]
    # Through one that was not read, or whose owner was not, any may be reached.
    blind = maybe[:, [-1, *facts.trees.blind]].any(axis=1)
    yes[:, -1] = False
    maybe[blind] = maybe[:, -1:] = True
    return classes.of, yes, maybe


def _add_held(facts: Facts, first: NDArray[np.int64], yes: Bools) -> None:
    of, sets = facts.held_namespaces
    for k, process in enumerate(first.tolist()):
        yes[k, list(sets[of[process]])] = True
    s = facts.snapshot
    for view, space in zip(
        s["nsmount_view"].tolist(), s["nsmount_namespace"].tolist(), strict=True
    ):
        yes[facts.view[first] == view, space] = True


def _join(kind: str, pair: Pair, effective: bool) -> Condition:  # noqa: ARG001
    facts = pair.facts
    column = facts[f"process_ns_{kind}"].astype(np.int64)
    x, y = column[pair.a.process], column[pair.b.process]
    owner = facts.trees.user[y] if kind != "user" else y
    owner = np.maximum(np.where(y < 0, -1, owner), -1)
    over = pair.capable("CAP_SYS_ADMIN", owner, f"b's {kind} namespace's")
    parts = [pair.acts(), pair.alive(), _elsewhere(kind, x, y, facts), over]
    if kind == "user":
        parts[-1] = pair.capable("CAP_SYS_ADMIN", owner)
    else:
        parts.append(pair.has_own("CAP_SYS_ADMIN"))
    if kind == "mnt":
        parts.append(pair.has_own("CAP_SYS_CHROOT"))
    if kind == "pid":
        parts.append(pair.sees())
    return every(*parts, _referenced(pair, kind, y))


def _elsewhere(kind: str, x: NDArray[np.int64], y: NDArray[np.int64], facts: Facts) -> Condition:
    left, right = x[:, None], y[None, :]
    unread = (left < 0) | (right < 0)

    def say(_s: int, t: int, state: bool | None) -> str:
        if state is None:
            return f"whether a is in b's {kind} namespace was not read (ns/{kind})"
        if not state:
            return f"a is in b's {kind} namespace already (ns/{kind})"
        inode = int(facts["namespace_inode"][y[t]])
        return f"a is not in b's {kind}:[{inode}] (ns/{kind})"

    return Condition((left != right) & ~unread, (left != right) | unread, say)


def _referenced(pair: Pair, kind: str, spaces: NDArray[np.int64]) -> Condition:
    facts = pair.facts
    of, yes, maybe = _references(facts)
    rows = of[pair.a.process + 1]

    def say(_s: int, _t: int, state: bool | None) -> str:
        how = {
            True: "a can open a reference to it: a member's ns link, a held file or a bind mount",
            False: "a can open no reference to it",
            None: "whether a can open a reference to it was not read",
        }[state]
        return f"{how} (/proc/pid/ns/{kind})"

    plain = Condition(yes[np.ix_(rows, spaces)], maybe[np.ix_(rows, spaces)], say)
    if not facts.snapshot.host.get("nsfs_handles"):
        return plain
    return some(plain, _by_handle(pair))


def _by_handle(pair: Pair) -> Condition:
    """open_by_handle_at on nsfs (fs/nsfs.c): who has everything over the host may for certain.

    Kernels differ in whether CAP_SYS_ADMIN over the owning namespace is enough.
    """
    facts = pair.facts
    initial = facts.trees.initial_user
    spaces = facts.ns_pid[pair.a.process]
    top = (spaces >= 0) & (facts["namespace_parent"][spaces] == -1)
    if initial is None:
        everything = np.zeros(len(spaces), bool)
    else:
        everything = top & facts_capable(facts, "CAP_SYS_ADMIN")[0][pair.a.cred, initial]

    def say(_s: int, _t: int, state: bool | None) -> str:
        if state:
            return "a can open it by file handle, with CAP_SYS_ADMIN on the host (nsfs)"
        return "whether this kernel lets a open it by file handle is not known (nsfs)"

    return Condition(everything[:, None], [[True]], say)


def _key(kind: str, facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:  # noqa: ARG001
    return _references(facts)[0][1:], facts[f"process_ns_{kind}"], facts.ns_pid, facts.dead


def _rule(kind: str) -> str:
    over = "b's user namespace" if kind == "user" else f"the owner of b's {kind} namespace"
    more = {
        "mnt": ", CAP_SYS_ADMIN and CAP_SYS_CHROOT in a's own",
        "pid": " and in a's own, and it is below a's pid namespace",
        "user": "",
    }.get(kind, " and in a's own")
    return f"setns: CAP_SYS_ADMIN over {over}{more}; with a reference to it"


VERBS = tuple(
    Verb(
        f"join:{kind}",
        _rule(kind),
        f"kernel/nsproxy.c: validate_nsset; {_SOURCE[kind]}",
        partial(_key, kind),
        partial(_join, kind),
    )
    for kind in NAMESPACES
)
