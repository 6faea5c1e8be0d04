"""kill, kill-group, stop, continue, end-namespace: kernel/signal.c.

``kill(pid)`` finds a task by its number in the caller's pid namespace, and the number may be
any thread's: the credentials asked are that thread's, the signal goes to its process. A
process group is walked by leaders, whoever can see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.facts import Facts
from osmosis.relations.control.logic import Condition, every, some
from osmosis.relations.control.rules import Pair, Verb
from osmosis.schema import NAMESPACES

__all__ = ["VERBS", "killable", "may_signal"]

_SOURCE = "kernel/signal.c: check_kill_permission, kill_ok_by_cred"


def may_signal(pair: Pair) -> Condition:
    """kill_ok_by_cred: {ruid, euid} of the actor meet {ruid, suid} of the target, or CAP_KILL."""
    return some(
        pair.any_same(("euid", "ruid"), ("suid", "ruid")),
        pair.capable("CAP_KILL"),
    )


def killable(pair: Pair) -> Condition:
    """Ask whether SIGKILL and SIGSTOP are not dropped: sig_task_ignored, __send_signal_locked.

    The init of a pid namespace drops both, unless the sender has no pid in that namespace;
    the init of the first one drops them always (is_global_init).
    """
    facts = pair.facts
    sees, sees_maybe = facts.trees.sees()
    x, y = facts.ns_pid[pair.a.process], facts.ns_pid[pair.b.process]
    inside = sees[np.ix_(y, x)].T  # b's namespace is a's, or above it: a has a pid there
    inside_maybe = sees_maybe[np.ix_(y, x)].T
    # Two processes of one unread namespace stay undecided: sees_maybe says so.
    init = pair.target(facts.init)
    top = (facts["namespace_parent"][y] == -1) & (y >= 0) if facts.trees.n else y < -1
    drops = (init == 1) & (inside | top[None, :])
    may_drop = (init != 0) & (inside_maybe | top[None, :])

    def say(_s: int, _t: int, state: bool | None) -> str:
        if state:
            return ""
        doubt = "may be" if state is None else "is"
        return f"b {doubt} the init of a pid namespace that a is in: it drops the signal (NSpid)"

    return Condition(~may_drop, ~drops, say)


def _kill(pair: Pair, effective: bool) -> Condition:
    parts = [pair.acts(), pair.sees(), may_signal(pair)]
    if effective:
        parts += [pair.alive(), killable(pair)]
    return every(*parts)


def _key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:  # noqa: ARG001
    return facts.ns_pid, facts.init, facts.dead


def _together(facts: Facts, column: str) -> NDArray[np.int64]:
    """(P,) the column, with every number that only one process has made -1: one class."""
    values = facts[column].astype(np.int64)
    distinct, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.where(count > 1, distinct, -1)[inverse]


def _group_key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:
    return *_key(facts, effective), _together(facts, "process_pgid")


def _session_key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:
    return *_key(facts, effective), _together(facts, "process_sid")


def _shared(pair: Pair, column: str, what: str) -> Condition:
    values = _together(pair.facts, column)
    x, y = pair.actor(values), pair.target(values)
    yes = (x == y) & (x != -1)
    maybe = yes
    if not _root_pid_namespace(pair.facts):
        # 0 stands for every group whose leader has no pid in the /proc that was read.
        maybe, yes = yes, yes & (x != 0)

    def say(s: int, t: int, state: bool | None) -> str:
        if state is None:
            return f"their {what}s have no number in the /proc that was read (stat)"
        numbers = pair.facts[column]
        mine, yours = numbers[pair.a.process[s]], numbers[pair.b.process[t]]
        return f"a's {what} {mine} {'=' if state else '≠'} b's {yours} (stat)"

    return Condition(yes, maybe, say)


def _root_pid_namespace(facts: Facts) -> bool:
    depth = np.diff(facts["process_nspid_indptr"])
    rows = facts["process_ns_pid"][(depth == 1) & (facts["process_ns_pid"] >= 0)]
    return bool(len(rows)) and int(facts["namespace_parent"][rows[0]]) == -1


def _kill_group(pair: Pair, effective: bool) -> Condition:
    leader = Condition(pair.b.leader[None, :], None, "")
    group = _shared(pair, "process_pgid", "process group")
    parts = [pair.acts(), group, leader, may_signal(pair)]
    if effective:
        parts += [pair.alive(), killable(pair)]
    return every(*parts)


def _continue(pair: Pair, effective: bool) -> Condition:
    session = _shared(pair, "process_sid", "session")
    parts = [pair.acts(), pair.sees(), some(may_signal(pair), session)]
    return every(*parts, pair.alive()) if effective else every(*parts)


def _end_namespace(pair: Pair, effective: bool) -> Condition:
    """SIGKILL to the init of b's pid namespace, or of one above it, ends b with it."""
    facts = pair.facts
    spaces = facts.ns_pid
    top = (spaces >= 0) & (np.append(facts["namespace_parent"], -2)[spaces] == -1)
    inits = np.flatnonzero((facts.init != 0) & ~top)
    sees, sees_maybe = facts.trees.sees()
    slots, starts = facts.slots(inits)
    to_init = Pair(facts, pair.a, slots)
    oneself = Condition(pair.a.process[:, None] == slots.process[None, :], None, "")
    allowed = some(oneself, every(to_init.sees(), may_signal(to_init)))
    kills = every(to_init.acts(), allowed, to_init.alive())
    kills = every(kills, killable(to_init)) if effective else kills
    shape = (len(pair.a.process), len(slots.process))
    ends = [np.zeros((shape[0], len(inits)), bool)] * 2
    if len(inits):
        ends = [
            np.logical_or.reduceat(np.broadcast_to(x, shape), starts, axis=1)
            for x in (kills.yes, kills.maybe)
        ]
    under = facts.ns_pid[pair.b.process]
    covers = sees[facts.ns_pid[inits]][:, under] & (facts.init[inits] == 1)[:, None]
    covers_maybe = sees_maybe[facts.ns_pid[inits]][:, under]
    itself = inits[:, None] == pair.b.process[None, :]  # its own death is the verb kill
    yes = _product(ends[0], covers & ~itself)
    maybe = _product(ends[1], covers_maybe & ~itself)
    maybe |= _by_unseen_init(pair, effective)
    if effective:
        yes, maybe = yes & pair.alive().yes, maybe & pair.alive().yes

    def say(s: int, t: int, state: bool | None) -> str:
        able = ends[0 if state else 1][s] & (covers if state else covers_maybe)[:, t]
        pids = facts["process_pid"][inits[able & ~itself[:, t]]]
        if state is False:
            return "a may kill the init of no pid namespace that b is in (NSpid, ns/pid)"
        verb = "may" if state else "might"
        if not len(pids):
            return "the init of a pid namespace that b is in was not captured (NSpid, ns/pid)"
        named = ", ".join(str(int(p)) for p in pids[:3])
        return f"a {verb} kill pid {named}, the init of a pid namespace that b is in (NSpid)"

    return Condition(yes, maybe, say)


def _by_unseen_init(pair: Pair, effective: bool) -> NDArray[np.bool_]:
    """(A, B) pairs of which b is in a namespace that a sees, whose init is not in the snapshot."""
    facts = pair.facts
    seen = np.unique(facts.ns_pid[facts.init == 1])
    is_pid = facts["namespace_kind"] == NAMESPACES.index("pid")
    spaces = np.flatnonzero(is_pid & (facts["namespace_parent"] != -1))
    lone = np.setdiff1d(spaces, seen)
    sees, sees_maybe = facts.trees.sees()
    x, y = facts.ns_pid[pair.a.process], facts.ns_pid[pair.b.process]
    able = sees_maybe[x][:, lone]
    if effective:  # one that is inside is not heard
        able = able & ~sees[lone][:, x].T
    nested = (y < 0) & (np.diff(facts["process_nspid_indptr"])[pair.b.process] > 1)
    return _product(able, sees_maybe[lone][:, y]) | ((x < 0)[:, None] & nested[None, :])


def _product(left: NDArray[np.bool_], right: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return (left.astype(np.float32) @ right.astype(np.float32)) > 0


VERBS = (
    Verb(
        "kill",
        "a sees b, and {a.ruid, a.euid} meets {b.ruid, b.suid}, or a has CAP_KILL over b's user "
        "namespace",
        _SOURCE,
        _key,
        _kill,
    ),
    Verb("stop", "SIGSTOP: as kill", _SOURCE, _key, _kill),
    Verb(
        "continue",
        "SIGCONT: as kill, or a sees b and both are of one session",
        _SOURCE,
        _session_key,
        _continue,
    ),
    Verb(
        "kill-group",
        "a and b are of one process group, and the ids or CAP_KILL allow it; sight is not asked",
        "kernel/signal.c: __kill_pgrp_info, check_kill_permission",
        _group_key,
        _kill_group,
    ),
    Verb(
        "end-namespace",
        "a may kill the init of a pid namespace that b is in, and all in it end with it",
        "kernel/pid_namespace.c: zap_pid_ns_processes",
        _key,
        _end_namespace,
    ),
)
