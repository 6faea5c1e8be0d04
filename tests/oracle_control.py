"""The control rules again, slowly: one pair of threads at a time, from plain Python objects.

Everything is known here, so that every answer is yes or no. Written from the kernel's source,
not from ours: names of functions are the kernel's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

KILL, DAC_OVERRIDE, SYS_CHROOT, SYS_PTRACE, SYS_ADMIN, SYS_NICE, SYS_RESOURCE = (
    1 << bit for bit in (5, 1, 18, 19, 21, 23, 24)
)


@dataclass(eq=False)
class Space:
    """A namespace."""

    kind: str
    parent: Space | None = None
    user: Space | None = None  # who owns it
    owner: int = 0
    uid_map: list[tuple[int, int, int]] = field(default_factory=list)
    gid_map: list[tuple[int, int, int]] = field(default_factory=list)

    def ancestors(self):
        at = self
        while at:
            yield at
            at = at.parent

    def maps(self, kind, number):
        extents = self.uid_map if kind == "uid" else self.gid_map
        return self.parent is None or any(b <= number < b + n for _, b, n in extents)

    def root(self, kind):
        if self.parent is None:
            return 0
        extents = self.uid_map if kind == "uid" else self.gid_map
        return next((b - a for a, b, n in extents if a <= 0 < a + n), 0)


@dataclass(eq=False)
class Cred:
    user: Space
    uid: tuple[int, int, int, int]  # real, effective, saved, filesystem
    gid: tuple[int, int, int, int]
    groups: frozenset[int] = frozenset()
    prm: int = 0
    eff: int = 0


@dataclass(eq=False)
class Proc:
    """A procfs mount."""

    pid: Space
    writable: bool = True
    reach: bool = True
    hidepid: int = 0
    gid: int = 0


@dataclass(eq=False)
class Process:
    creds: list[Cred]  # the leader's first
    pid: Space
    mnt: Space
    procs: list[Proc]
    init: bool = False
    dumpable: int = 1
    mm_user: Space | None = None
    pgid: int = 1
    sid: int = 1
    traced: bool = False
    mm: int = 0


def cap_capable(cred, name, over):
    """security/commoncap.c"""
    at = over
    while True:
        if at is cred.user:
            return bool(cred.eff & name)
        if at.parent is None:
            return False
        if at.parent is cred.user and at.owner == cred.uid[1]:
            return True
        at = at.parent


def sees(a, b):
    return a.pid in b.pid.ancestors()


def kill_ok_by_cred(c, t):
    """kernel/signal.c"""
    return (
        c.uid[1] in (t.uid[2], t.uid[0])
        or c.uid[0] in (t.uid[2], t.uid[0])
        or cap_capable(c, KILL, t.user)
    )


def drops(a, b):
    """sig_task_ignored: SIGNAL_UNKILLABLE, unless the sender has no pid in b's namespace."""
    return b.init and (b.pid.parent is None or b.pid in a.pid.ancestors())


def may_access(c, t, b, fs):
    """__ptrace_may_access and cap_ptrace_access_check"""
    uid, gid = (c.uid[3], c.gid[3]) if fs else (c.uid[0], c.gid[0])
    over = cap_capable(c, SYS_PTRACE, t.user)
    same = {uid} == set(t.uid[:3]) and {gid} == set(t.gid[:3])
    if not (same or over):
        return False
    if b.dumpable != 1 and not cap_capable(c, SYS_PTRACE, b.mm_user):
        return False
    caps = c.eff if fs else c.prm
    return over or (c.user is t.user and t.prm & ~caps == 0)


def file_owner(t, b):
    """task_dump_owner"""
    if b.dumpable == 1:
        return t.uid[1], t.gid[1]
    return b.mm_user.root("uid"), b.mm_user.root("gid")


def owns(c, t, b):
    """inode_permission on a file of mode 0600"""
    uid, gid = file_owner(t, b)
    if c.uid[3] == uid:
        return True
    return bool(c.eff & DAC_OVERRIDE) and c.user.maps("uid", uid) and c.user.maps("gid", gid)


def shown(a, c, t, b, writable):
    """has_pid_permissions"""
    for proc in a.procs:
        if proc.pid not in b.pid.ancestors() or not proc.reach or (writable and not proc.writable):
            continue
        if proc.hidepid == 0:
            return True
        if proc.hidepid != 4 and (proc.gid == c.gid[3] or proc.gid in c.groups):
            return True
        if may_access(c, t, b, True):
            return True
    return False


def one(verb, a, c, b, t, leader, effective):
    """Whether thread *c* of *a* may do *verb* to thread *t* of *b*."""
    if verb in ("kill", "stop"):
        return sees(a, b) and kill_ok_by_cred(c, t) and not (effective and drops(a, b))
    if verb == "continue":
        return sees(a, b) and (kill_ok_by_cred(c, t) or a.sid == b.sid)
    if verb == "kill-group":
        ok = a.pgid == b.pgid and leader and kill_ok_by_cred(c, t)
        return ok and not (effective and drops(a, b))
    if verb == "limit":
        same = {c.uid[0]} == set(t.uid[:3]) and {c.gid[0]} == set(t.gid[:3])
        return sees(a, b) and (same or cap_capable(c, SYS_RESOURCE, t.user))
    if verb == "sched":
        nice = cap_capable(c, SYS_NICE, t.user)
        same = c.uid[1] in (t.uid[0], t.uid[1])
        return sees(a, b) and (same or nice) and (t.prm & ~c.prm == 0 or nice)
    if verb == "trace-read":
        return may_access(c, t, b, True) and shown(a, c, t, b, False)
    if verb == "trace-attach":
        return sees(a, b) and may_access(c, t, b, False) and not (effective and b.traced)
    if verb == "mem-write":
        access = a.mm == b.mm or may_access(c, t, b, True)
        return access and owns(c, t, b) and shown(a, c, t, b, True)
    if verb == "oom":
        return owns(c, t, b) and shown(a, c, t, b, True)
    raise KeyError(verb)


def may(verb, a, b, processes, effective):
    """Whether *a* may do *verb* to *b*, through any thread of either."""
    if verb == "end-namespace":
        return any(
            i.init
            and i.pid.parent is not None
            and i is not b
            and i.pid in b.pid.ancestors()
            and (i is a or may("kill", a, i, processes, effective))
            and not (effective and drops(a, i))
            for i in processes
        )
    if verb.startswith("join:"):
        return joins(verb.split(":")[1], a, b, processes)
    return any(one(verb, a, c, b, t, t is b.creds[0], effective) for c in a.creds for t in b.creds)


def joins(kind, a, b, processes):
    def space(p):
        return p.creds[0].user if kind == "user" else getattr(p, kind)

    def reads(m):
        return m is a or any(
            (may_access(c, t, m, True) and shown(a, c, t, m, False))
            or (sees(a, m) and may_access(c, t, m, False))
            for c in a.creds
            for t in m.creds
        )

    target = space(b)
    if target is space(a):
        return False
    if not any(target in above(m) for m in processes if reads(m)):
        return False
    for c in a.creds:
        if kind == "user":
            ok = cap_capable(c, SYS_ADMIN, target)
        else:
            ok = c.eff & SYS_ADMIN and cap_capable(c, SYS_ADMIN, target.user)
        if kind == "mnt":
            ok = ok and c.eff & SYS_CHROOT
        if kind == "pid":
            ok = ok and a.pid in target.ancestors()
        if ok:
            return True
    return False


def above(m):
    """Namespaces that a reader of *m* can open: its own, their owners, and all above."""
    found, todo = [], [m.pid, m.mnt, m.creds[0].user]
    while todo:
        at = todo.pop()
        if at is not None and not any(at is x for x in found):
            found.append(at)
            todo += [at.parent, at.user]
    return found
