"""trace-read, trace-attach, mem-write: kernel/ptrace.c, security/commoncap.c, fs/proc/base.c.

__ptrace_may_access asks three things: ids or CAP_SYS_PTRACE, dumpable or CAP_SYS_PTRACE over
the mm's user namespace, and (cap_ptrace_access_check) b's permitted capabilities within a's or
CAP_SYS_PTRACE. FSCREDS compares fsuid, fsgid and CapEff; REALCREDS ruid, rgid and CapPrm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.facts import Facts
from osmosis.relations.control.logic import Condition, constant, every, some
from osmosis.relations.control.rules import Pair, Verb, facts_capable
from osmosis.relations.control.sight import owns_proc_file, shown
from osmosis.schema import Status

__all__ = ["VERBS", "may_access", "trace_key"]

_SOURCE = "kernel/ptrace.c: __ptrace_may_access; security/commoncap.c: cap_ptrace_access_check"
_DUMPABLE = 1  # SUID_DUMP_USER
CAP_SYS_PTRACE = 19  # include/uapi/linux/capability.h
INITIAL_USER = 0xEFFFFFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h


def may_access(pair: Pair, creds: str, *, attach: bool) -> Condition:
    """ptrace_may_access with *creds* "fs" or "real", for reading or for attaching."""
    over_b = pair.capable("CAP_SYS_PTRACE")
    ids = pair.all_same("fsuid", "fsgid") if creds == "fs" else pair.all_same("ruid", "rgid")
    within = every(_same_user(pair), _within(pair, creds))
    dumpable = some(_dumpable(pair), _over_mm(pair))
    parts = [some(ids, over_b), dumpable, some(within, over_b)]
    if attach and (scope := pair.facts.snapshot.host.get("yama")):
        parts.append(_yama(pair, int(scope), over_b))
    parts.append(_no_policy(pair))
    return every(*parts)


def _refused(facts: Facts) -> NDArray[np.bool_]:
    """(P,) whom the kernel did not let the collector read, who has CAP_SYS_PTRACE over everyone.

    So a policy stands in the way that /proc does not show; whom it stops else is not known.
    """
    if "refused" in facts.kept:
        known: NDArray[np.bool_] = facts.kept["refused"]
        return known
    snap = facts.snapshot
    refused = np.zeros(facts.n, bool)
    able = int(snap.host.get("cap_eff") or "0", 16) >> CAP_SYS_PTRACE & 1
    if able and snap.host.get("user_ns") == INITIAL_USER:
        denied = np.flatnonzero(snap["ledger_status"] == Status.DENIED)
        for row in denied.tolist():
            process = int(snap["ledger_process"][row])
            if process >= 0 and snap.text(snap["ledger_source"][row]) in ("ns", "memory"):
                refused[process] = True
    facts.kept["refused"] = refused
    return refused


def _no_policy(pair: Pair) -> Condition:
    stopped = pair.target(_refused(pair.facts))

    def say(_s: int, _t: int, state: bool | None) -> str:
        return "" if state else "the kernel refused b to the collector, who has CAP_SYS_PTRACE too"

    return Condition(~stopped, np.ones_like(stopped), say)


def _same_user(pair: Pair) -> Condition:
    user = pair.facts.user
    x, y = user[pair.a.cred][:, None], user[pair.b.cred][None, :]
    unread = (x < 0) | (y < 0)

    def say(_s: int, _t: int, state: bool | None) -> str:
        how = {True: "are in one", False: "are in different", None: "may be in different"}[state]
        return f"a and b {how} user namespace{'' if state else 's'} (ns/user)"

    return Condition((x == y) & ~unread, (x == y) | unread, say)


def _within(pair: Pair, creds: str) -> Condition:
    facts = pair.facts
    mine = (facts.cap_eff if creds == "fs" else facts.cap_prm)[pair.a.cred][:, None]
    yours = facts.cap_prm[pair.b.cred][None, :]
    name = "CapEff" if creds == "fs" else "CapPrm"

    def say(_s: int, _t: int, state: bool | None) -> str:
        how = "are" if state else "are not"
        return f"b's CapPrm {how} within a's {name} (/proc/pid/status)"

    return Condition(yours & ~mine == 0, None, say)


def _dumpable(pair: Pair) -> Condition:
    value = pair.target(pair.facts["process_dumpable"])

    def say(_s: int, _t: int, state: bool | None) -> str:
        how = {True: "is", False: "is not", None: "may not be"}[state]
        return f"b {how} dumpable (PIDFD_GET_INFO, owner of /proc/pid/mem)"

    return Condition(value == _DUMPABLE, (value == _DUMPABLE) | (value < 0), say)


def _over_mm(pair: Pair) -> Condition:
    """CAP_SYS_PTRACE over the user namespace of b's mm, of which only candidates are known."""
    facts = pair.facts
    sets, candidates = facts.mm_users
    yes, maybe = facts_capable(facts, "CAP_SYS_PTRACE")
    yes, maybe = yes[pair.a.cred], maybe[pair.a.cred]
    used, of = np.unique(sets[pair.b.process], return_inverse=True)
    every_one = np.empty((len(yes), len(used)), bool)
    any_one = every_one.copy()
    for k, index in enumerate(used.tolist()):
        rows = list(candidates[index]) or [-1]
        every_one[:, k] = yes[:, rows].all(axis=1)
        any_one[:, k] = maybe[:, rows].any(axis=1)

    def say(_s: int, _t: int, state: bool | None) -> str:
        what = "CAP_SYS_PTRACE over the user namespace of b's mm"
        if state is None:
            return f"whether a has {what} is not known: the kernel shows only its root's uid"
        return f"a {'has' if state else 'lacks'} {what}"

    return Condition(every_one[:, of], any_one[:, of], say)


def _yama(pair: Pair, scope: int, over_b: Condition) -> Condition:
    """yama_ptrace_access_check (security/yama/yama_lsm.c), asked for attaching only."""
    source = f"/proc/sys/kernel/yama/ptrace_scope is {scope}"
    if scope >= 3:
        return constant(False, f"{source}: nobody attaches")
    if scope == 2:
        return every(constant(True, source), over_b)
    declared = Condition(
        [[False]],
        [[True]],
        f"{source}: unless a is an ancestor, b must have named a tracer with PR_SET_PTRACER, "
        "which /proc does not show",
    )
    return some(over_b, _ancestor(pair), declared)


def _ancestor(pair: Pair) -> Condition:
    """Ask whether a is b's parent, or its parent's, and so on; by single processes only."""
    if pair.related:
        return constant(True, "a is an ancestor of b (PPid)")
    if not pair.single:
        return constant(False, "")
    pids = pair.facts["process_pid"]
    parent = dict(zip(pids.tolist(), pair.facts["process_ppid"].tolist(), strict=True))
    actor, walker, seen = int(pids[pair.a.process[0]]), int(pids[pair.b.process[0]]), set()
    while walker in parent and walker not in seen:
        seen.add(walker)
        walker = parent[walker]
        if walker == actor:
            return constant(True, "a is an ancestor of b (PPid)")
    return constant(False, "a is not an ancestor of b (PPid)")


def trace_key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:  # noqa: ARG001
    """Columns that ptrace_may_access depends on besides the credentials."""
    return facts.ns_pid, facts.dead, facts["process_dumpable"], facts.mm_users[0], _refused(facts)


def _attach_key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:
    key = trace_key(facts, effective)
    return (*key, _traced(facts)) if effective else key


def _file_key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:
    return *trace_key(facts, effective), facts.view, facts.column_ids("process_mem_uid")


def _shared_mm(facts: Facts) -> NDArray[np.int64]:
    """(P,) the mm if several processes share it, else -1."""
    mm = facts["process_mm"].astype(np.int64)
    distinct, inverse, count = np.unique(mm, return_inverse=True, return_counts=True)
    return np.where(count > 1, distinct, -1)[inverse]


def _mem_key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:
    return *_file_key(facts, effective), _shared_mm(facts)


def _traced(facts: Facts) -> NDArray[np.int8]:
    """(P,) 1 if every thread is traced, 0 if one is not, -1 if it is not known."""
    tracer, threads = facts["process_tracer"], facts["process_threads"]
    result = np.where(tracer == 0, 0, np.where(tracer > 0, 1, -1)).astype(np.int8)
    free = facts["control_untraced"]
    if len(free) == facts.n:
        several = (tracer > 0) & (threads > 1)
        result[several] = np.where(free[several] > 0, 0, np.where(free[several] == 0, 1, -1))
        # Which thread is free is not known: with credentials that differ, neither is the answer.
        differ = np.isin(np.arange(facts.n), list(facts.extra))
        result[several & differ & (free > 0)] = -1
    else:
        result[(tracer > 0) & (threads > 1)] = -1
    return result


def _trace_read(pair: Pair, effective: bool) -> Condition:  # noqa: ARG001
    access = may_access(pair, "fs", attach=False)
    return every(pair.acts(), pair.alive(), access, shown(pair, writable=False, traceable=None))


def _trace_attach(pair: Pair, effective: bool) -> Condition:
    parts = [pair.acts(), pair.alive(), pair.sees(), may_access(pair, "real", attach=True)]
    if effective:
        traced = pair.target(_traced(pair.facts))

        def say(_s: int, _t: int, state: bool | None) -> str:
            if state:
                return ""
            doubt = "is" if state is False else "may be"
            return f"b {doubt} traced already, by pid {_tracer(pair)} (TracerPid)"

        parts.append(Condition(traced == 0, traced <= 0, say))
    return every(*parts)


def _tracer(pair: Pair) -> str:
    return ", ".join({str(int(x)) for x in pair.facts["process_tracer"][pair.b.process]})


def _one_mm(pair: Pair) -> Condition:
    """mm_access (kernel/fork.c) asks nothing of who shares the mm (CLONE_VM)."""
    mm = pair.facts["process_mm"]
    x, y = pair.actor(mm), pair.target(mm)
    return Condition((x == y) & (x >= 0), None, "a and b share one address space (kcmp)")


def _mem_write(pair: Pair, effective: bool) -> Condition:  # noqa: ARG001
    access = may_access(pair, "fs", attach=True)
    opens = every(access, shown(pair, writable=True, traceable=None))
    if (_shared_mm(pair.facts) >= 0).any():
        traceable = may_access(pair, "fs", attach=False)
        opens = some(every(_one_mm(pair), shown(pair, writable=True, traceable=traceable)), opens)
    return every(pair.acts(), pair.alive(), owns_proc_file(pair), opens)


VERBS = (
    Verb(
        "trace-read",
        "following b's links in /proc (fd, ns, cwd): PTRACE_MODE_READ_FSCREDS, and a's /proc "
        "shows b",
        _SOURCE,
        _file_key,
        _trace_read,
    ),
    Verb(
        "trace-attach",
        "ptrace, process_vm_writev, pidfd_getfd: a sees b, and PTRACE_MODE_ATTACH_REALCREDS",
        _SOURCE,
        _attach_key,
        _trace_attach,
        attaches=True,
    ),
    Verb(
        "mem-write",
        "opening /proc/b/mem for writing: PTRACE_MODE_ATTACH_FSCREDS, the file's own mode and "
        "owner, and a's /proc shows b",
        f"{_SOURCE}; fs/proc/base.c: proc_mem_open, task_dump_owner",
        _mem_key,
        _mem_write,
        attaches=True,
    ),
)
