"""What an actor finds in the /proc that its own mounts show it, and who owns the files there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.facts import Facts
from osmosis.relations.control.logic import Condition, every, some
from osmosis.relations.control.rules import Pair, equal, number, raised
from osmosis.schema import NO_ID, Status

__all__ = ["owns_proc_file", "shown"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_HIDE_UNLESS_TRACEABLE = 4  # hidepid=ptraceable: its group is not asked


def shown(pair: Pair, *, writable: bool, traceable: Condition | None) -> Condition:
    """Ask whether b stands in a /proc of a's mount namespace.

    A procfs shows one pid namespace, which need not be a's. *traceable* is asked where hidepid
    hides b (has_pid_permissions, fs/proc/base.c); None where the verb asks it in any case.
    """
    facts = pair.facts
    yes, maybe = _mounts(facts, writable=writable, hidden=traceable is None)
    view, target = facts.view[pair.a.process], facts.ns_pid[pair.b.process]

    def say(_s: int, _t: int, state: bool | None) -> str:
        how = "writable " if writable else ""
        if state is None:
            return f"whether a {how}/proc that a can reach shows b was not read (mountinfo)"
        return f"{'a' if state else 'no'} {how}/proc that a can reach shows b (mountinfo)"

    plain = Condition(yes[np.ix_(view, target)], maybe[np.ix_(view, target)], say)
    if traceable is None or not (facts["procmount_hidepid"] != 0).any():
        return plain
    hidden, hidden_maybe = _mounts(facts, writable=writable, hidden=True)
    behind = Condition(hidden[np.ix_(view, target)], hidden_maybe[np.ix_(view, target)], say)
    return some(plain, _by_group(pair, writable=writable), every(behind, traceable))


def _mounts(facts: Facts, *, writable: bool, hidden: bool) -> tuple[Bools, Bools]:
    """By view and pid namespace, (V + 1, N + 1): some procfs of the view shows the namespace."""
    s = facts.snapshot
    sees, sees_maybe = facts.trees.sees()
    status = s["view_status"]
    yes = np.zeros((len(status) + 1, facts.trees.n + 1), bool)
    maybe = yes.copy()
    maybe[:-1][status != Status.READ] = True
    maybe[-1] = True
    for m in range(len(s["procmount_view"])):
        if writable and not s["procmount_writable"][m]:
            continue
        if not hidden and s["procmount_hidepid"][m]:
            continue
        view, space = int(s["procmount_view"][m]), int(s["procmount_pid"][m])
        space = max(space, -1)
        maybe[view] |= sees_maybe[space]
        if s["procmount_reach"][m] == 1:
            yes[view] |= sees[space]
    return yes, maybe | yes


def _by_group(pair: Pair, *, writable: bool) -> Condition:
    """Ask whether a hidepid mount shows b because a is in its group (gid=)."""
    facts, s = pair.facts, pair.facts.snapshot
    sees, sees_maybe = facts.trees.sees()
    view, target = facts.view[pair.a.process], facts.ns_pid[pair.b.process]
    yes = np.zeros((len(view), len(target)), bool)
    maybe = yes.copy()
    for m in range(len(s["procmount_view"])):
        hide = int(s["procmount_hidepid"][m])
        if hide in (0, _HIDE_UNLESS_TRACEABLE) or (writable and not s["procmount_writable"][m]):
            continue
        at = view == s["procmount_view"][m]
        gid, space = int(s["procmount_gid"][m]), max(int(s["procmount_pid"][m]), -1)
        member, may_be = in_group(pair, gid)
        maybe |= (at & may_be)[:, None] & sees_maybe[space][target][None, :]
        if s["procmount_reach"][m] == 1:
            yes |= (at & member)[:, None] & sees[space][target][None, :]
    return Condition(yes, maybe | yes, "a is in the group that hidepid exempts (mountinfo, gid=)")


def in_group(pair: Pair, gid: int) -> tuple[Bools, Bools]:
    """Yes and maybe by actor slot, (S,): in_group_p, by fsgid or a supplementary group."""
    facts = pair.facts
    has = np.array([gid in group for group in facts.group_sets], bool)
    fsgid, fsgid_maybe = equal(facts.ids["fsgid"][pair.a.cred], np.array(gid))
    member = has[facts.groups[pair.a.cred]]
    return member | fsgid, member | fsgid_maybe


def owns_proc_file(pair: Pair) -> Condition:
    """Ask whether a may write b's files of mode 0600 and 0644 in /proc: mem, oom_score_adj.

    They belong to b's effective ids, or if b is not dumpable to the root of its mm's user
    namespace (task_dump_owner, fs/proc/base.c). Else CAP_DAC_OVERRIDE is needed, in a's own
    user namespace, and that namespace must map both ids (privileged_wrt_inode_uidgid).
    """
    facts = pair.facts
    uid, gid = _owner(pair)
    fsuid = pair.actor_id("fsuid")
    yes, maybe = equal(fsuid, uid[None, :])

    def say(s: int, t: int, state: bool | None) -> str:
        relation = {True: "owns", False: "does not own", None: "may own"}[state]
        return (
            f"a.fsuid {number(fsuid[s, 0])} {relation} b's file, of uid {number(uid[t])} "
            "(/proc/pid/mem, stat)"
        )

    mapped, mapped_maybe = _mapped(pair, uid, gid)

    def say_mapped(_s: int, t: int, state: bool | None) -> str:
        how = {True: "maps", False: "does not map", None: "may map"}[state]
        return (
            f"a's user namespace {how} the owner {number(uid[t])}:{number(gid[t])} of b's file "
            "(uid_map, gid_map)"
        )

    has = raised(facts.cap_eff[pair.a.cred], "CAP_DAC_OVERRIDE")[:, None]
    override = Condition(
        has,
        None,
        lambda _s, _t, state: (
            f"a {'has' if state else 'lacks'} CAP_DAC_OVERRIDE in CapEff (/proc/pid/status)"
        ),
    )
    return some(
        Condition(yes, maybe, say), every(override, Condition(mapped, mapped_maybe, say_mapped))
    )


def _owner(pair: Pair) -> tuple[Ints, Ints]:
    """Return uid and gid of the files of each target slot, (T,) each."""
    facts, s = pair.facts, pair.facts.snapshot
    process, cred, leader = pair.b
    dumpable = s["process_dumpable"][process]
    sets, candidates = facts.mm_users
    roots = np.array([_one(facts, rows, "gid") for rows in candidates] or [NO_ID], np.int64)
    read = facts.column_ids("process_mem_uid")[process]
    uid = np.where(dumpable == 1, facts.ids["euid"][cred], read)
    uid = np.where((dumpable == -1) & ~leader, NO_ID, uid)
    gid = np.where(dumpable == 1, facts.ids["egid"][cred], roots[sets[process]])
    return uid, np.where(dumpable == -1, NO_ID, gid)


def _one(facts: Facts, rows: tuple[int, ...], kind: str) -> int:
    roots = {facts.maps.root(row, kind) for row in rows}
    return roots.pop() if len(roots) == 1 else NO_ID


def _mapped(pair: Pair, uid: Ints, gid: Ints) -> tuple[Bools, Bools]:
    facts = pair.facts
    users = facts.user[pair.a.cred]
    yes = np.zeros((len(users), len(uid)), bool)
    maybe = yes.copy()
    for row in np.unique(users).tolist():
        u, u_maybe = facts.maps.mapped(row, "uid", uid)
        g, g_maybe = facts.maps.mapped(row, "gid", gid)
        yes[users == row], maybe[users == row] = u & g, u_maybe & g_maybe
    return yes, maybe
