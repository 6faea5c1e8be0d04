"""limit, sched, oom: kernel/sys.c, kernel/sched/syscalls.c, fs/proc/base.c."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from osmosis.relations.control.facts import Facts
from osmosis.relations.control.logic import Condition, every, some
from osmosis.relations.control.rules import Pair, Verb
from osmosis.relations.control.sight import owns_proc_file, shown
from osmosis.relations.control.trace import may_access, trace_key

__all__ = ["VERBS"]


def _key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:  # noqa: ARG001
    return facts.ns_pid, facts.dead


def _file_key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:
    return *trace_key(facts, effective), facts.view, facts.column_ids("process_mem_uid")


def _limit(pair: Pair, effective: bool) -> Condition:
    ids = pair.all_same("ruid", "rgid")
    parts = [pair.acts(), pair.sees(), some(ids, pair.capable("CAP_SYS_RESOURCE"))]
    return every(*parts, pair.alive()) if effective else every(*parts)


def _sched(pair: Pair, effective: bool) -> Condition:
    """check_same_owner, then cap_safe_nice: capability sets are compared across namespaces."""
    nice = pair.capable("CAP_SYS_NICE")
    facts = pair.facts
    mine, yours = facts.cap_prm[pair.a.cred][:, None], facts.cap_prm[pair.b.cred][None, :]
    within = Condition(
        yours & ~mine == 0,
        None,
        lambda _s, _t, state: (
            f"b's CapPrm {'are' if state else 'are not'} within a's CapPrm (/proc/pid/status)"
        ),
    )
    ids = pair.any_same(("euid",), ("euid", "ruid"))
    parts = [pair.acts(), pair.sees(), some(ids, nice), some(within, nice)]
    return every(*parts, pair.alive()) if effective else every(*parts)


def _oom(pair: Pair, effective: bool) -> Condition:  # noqa: ARG001
    traceable = may_access(pair, "fs", attach=False)
    return every(
        pair.acts(),
        pair.alive(),
        owns_proc_file(pair),
        shown(pair, writable=True, traceable=traceable),
    )


VERBS = (
    Verb(
        "limit",
        "prlimit: a sees b, and a.ruid and a.rgid are all of b's real, effective and saved ids, "
        "or a has CAP_SYS_RESOURCE over b's user namespace",
        "kernel/sys.c: check_prlimit_permission",
        _key,
        _limit,
    ),
    Verb(
        "sched",
        "sched_setaffinity, setpriority: a sees b, a.euid is b's euid or ruid and b's CapPrm are "
        "within a's, or a has CAP_SYS_NICE over b's user namespace",
        "kernel/sched/syscalls.c: check_same_owner; security/commoncap.c: cap_safe_nice",
        _key,
        _sched,
    ),
    Verb(
        "oom",
        "raising /proc/b/oom_score_adj: the file's owner, or CAP_DAC_OVERRIDE over it, and a's "
        "/proc shows b",
        "fs/proc/base.c: __set_oom_adj, task_dump_owner, has_pid_permissions",
        _file_key,
        _oom,
    ),
)
