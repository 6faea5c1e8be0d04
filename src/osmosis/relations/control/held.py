"""terminal, supervise: observed power, held as a descriptor or as a tracee.

Nothing is asked of credentials: who holds the thing may use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.facts import Facts
from osmosis.relations.control.logic import Condition, every, some
from osmosis.relations.control.rules import Pair, Verb
from osmosis.schema import HandleKind, Status

__all__ = ["VERBS"]

Bools = NDArray[np.bool_]
_PTS_MAJOR = 136
_FILTER = 2  # SECCOMP_MODE_FILTER


def _terminals(facts: Facts) -> NDArray[np.int64]:
    """(P,) index of the pty that is the controlling terminal, -1 for none."""
    tty = facts["process_tty"].astype(np.int64)
    major, minor = tty >> 8 & 0xFFF, tty & 0xFF | tty >> 12 & 0xFFF00
    return np.where(major == _PTS_MAJOR, minor, -1)


def _unread(facts: Facts) -> Bools:
    """(P,) whether the process's descriptors were not read."""
    status = facts["control_fds"]
    return status != Status.READ if len(status) == facts.n else np.ones(facts.n, bool)


def _handles(facts: Facts, kind: int) -> list[tuple[int, int, int, int]]:
    """(holder, number, node, target) of every handle of a kind."""
    s = facts.snapshot
    at = s["handle_kind"] == kind
    columns = ("process", "number", "node", "target")
    return list(zip(*(s[f"handle_{name}"][at].tolist() for name in columns), strict=True))


class _Ptys:
    """Who holds which pty's master, and in which devpts each terminal lies.

    A terminal's number is unique within a devpts instance only: two containers both have a
    pts/0. Members of the session that hold the slave tell the instance.
    """

    def __init__(self, facts: Facts) -> None:
        self.index = _terminals(facts)
        self.masters: dict[int, set[tuple[int, int]]] = {}  # index -> (holder, node)
        for holder, number, node, _ in _handles(facts, HandleKind.PTY_MASTER):
            self.masters.setdefault(number, set()).add((holder, node))
        sids = facts["process_sid"].tolist()
        nodes: dict[tuple[int, int], set[int]] = {}
        for holder, number, node, _ in _handles(facts, HandleKind.TERMINAL):
            nodes.setdefault((sids[holder], number), set()).add(node)
        # Of each process the instance of its terminal, 0 if it is not known.
        self.node = np.zeros(facts.n, np.uint64)
        for i in np.flatnonzero(self.index >= 0).tolist():
            number = int(self.index[i])
            known = nodes.get((sids[i], number), set()) - {0}
            held = {node for _, node in self.masters.get(number, set())}
            if len(known) == 1:
                self.node[i] = known.pop()
            elif len(held) == 1:  # a slave has a master, and there is no other of that number
                self.node[i] = held.pop()


def _ptys(facts: Facts) -> _Ptys:
    if "ptys" not in facts.kept:
        facts.kept["ptys"] = _Ptys(facts)
    made: _Ptys = facts.kept["ptys"]
    return made


def _terminal(pair: Pair, effective: bool) -> Condition:  # noqa: ARG001
    facts = pair.facts
    ptys = _ptys(facts)
    index, node = ptys.index[pair.b.process], ptys.node[pair.b.process]
    shape = (len(pair.a.process), len(index))
    yes, maybe = np.zeros(shape, bool), np.zeros(shape, bool)
    rows: dict[int, list[int]] = {}
    for s, i in enumerate(pair.a.process.tolist()):
        rows.setdefault(i, []).append(s)
    for number, holders in ptys.masters.items():
        for holder, at in holders:
            if holder in rows:
                mine = (index == number) & (index >= 0)
                known = (node != 0) & (at != 0)
                yes[rows[holder]] |= mine & known & (node == at)
                maybe[rows[holder]] |= mine & ~(known & (node != at))
    hidden = _unread(facts)[pair.a.process][:, None]
    maybe |= hidden & (index >= 0)[None, :]

    def say(_s: int, t: int, state: bool | None) -> str:
        if index[t] < 0:
            return "b has no pty as its controlling terminal (stat, tty_nr)"
        name = f"pts/{int(index[t])}"
        if state is None:
            return f"whether a holds the master of b's {name} could not be read (fd, fdinfo)"
        return f"a {'holds' if state else 'does not hold'} the master of b's {name} (fd, fdinfo)"

    return every(pair.acts(), pair.alive(), Condition(yes, maybe | yes, say))


def _terminal_key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:  # noqa: ARG001
    ptys = _ptys(facts)
    return ptys.index, ptys.node, _unread(facts), _alone(facts, HandleKind.PTY_MASTER), facts.dead


def _alone(facts: Facts, *kinds: int, targets: bool = False) -> NDArray[np.int64]:
    """(P,) a number of its own for each process that holds such a thing, or is held; else -1."""
    result = np.full(facts.n, -1, np.int64)
    for kind in kinds:
        for holder, _, _, target in _handles(facts, kind):
            result[holder] = holder
            if targets and target >= 0:
                result[target] = target
    return result


def _traces(pair: Pair) -> Condition:
    facts = pair.facts
    pairs = {(holder, target) for holder, _, _, target in _handles(facts, HandleKind.TRACER)}
    pids = facts["process_pid"]
    row_of = {int(pid): i for i, pid in enumerate(pids.tolist())}
    for target in np.flatnonzero(facts["process_tracer"] > 0).tolist():
        holder = row_of.get(int(facts["process_tracer"][target]))
        if holder is not None:
            pairs.add((holder, target))
    a, b = pair.a.process, pair.b.process
    yes = np.zeros((len(a), len(b)), bool)
    for holder, target in pairs:
        yes[np.ix_(a == holder, b == target)] = True
    unknown = facts["process_tracer"][b] < 0
    return Condition(
        yes,
        yes | unknown[None, :],
        lambda _s, _t, state: (
            f"a {'traces' if state else 'does not trace'} b (TracerPid)"
            if state is not None
            else "whether a traces b was not told (TracerPid)"
        ),
    )


def _listens(pair: Pair) -> Condition:
    """Listeners name no process that they are for: unknown over all that they may be for."""
    facts = pair.facts
    holds = {
        kind: np.isin(np.arange(facts.n), [h for h, *_ in _handles(facts, kind)])
        for kind in (HandleKind.SECCOMP, HandleKind.USERFAULT, HandleKind.FANOTIFY)
    }
    filtered = pair.target(facts["process_seccomp"]) == _FILTER
    filtered |= pair.target(facts["process_seccomp"]) < 0
    maybe = pair.actor(holds[HandleKind.SECCOMP]) & filtered
    maybe = maybe | pair.actor(holds[HandleKind.USERFAULT] | holds[HandleKind.FANOTIFY])
    maybe = maybe | pair.actor(_unread(facts))

    def say(s: int, _t: int, state: bool | None) -> str:
        if state is False:
            return "a holds no seccomp listener for b, userfaultfd or fanotify group (fd)"
        process = int(pair.a.process[s])
        names = {
            HandleKind.SECCOMP: "seccomp listener",
            HandleKind.USERFAULT: "userfaultfd",
            HandleKind.FANOTIFY: "fanotify permission group",
        }
        held = [names[kind] for kind, rows in holds.items() if rows[process]]
        if not held:
            return "a's file descriptors could not be read (fd)"
        return f"a holds a {' and a '.join(held)}; for which process is not shown (fd)"

    return Condition(np.zeros_like(maybe), maybe, say)


def _writes(pair: Pair) -> Condition:
    """/proc/b/mem open for writing: it asks for nothing when it is written."""
    facts = pair.facts
    a, b = pair.a.process, pair.b.process
    yes = np.zeros((len(a), len(b)), bool)
    maybe = np.zeros_like(yes)
    for holder, number, _, target in _handles(facts, HandleKind.MEMORY):
        over = b == target if target >= 0 else np.ones(len(b), bool)
        (yes if number and target >= 0 else maybe)[np.ix_(a == holder, over)] = True

    def say(_s: int, _t: int, state: bool | None) -> str:
        if state is None:
            return (
                "a holds a /proc/pid/mem for writing: whether b's memory of now is not shown (fd)"
            )
        return f"a {'holds' if state else 'does not hold'} /proc/b/mem open for writing (fd)"

    return Condition(yes, maybe | yes, say)


def _supervise(pair: Pair, effective: bool) -> Condition:  # noqa: ARG001
    return every(pair.acts(), pair.alive(), some(_traces(pair), _writes(pair), _listens(pair)))


def _supervise_key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:  # noqa: ARG001
    pids = facts["process_pid"]
    tracers = facts["process_tracer"]
    traced = np.where(tracers != 0, np.arange(facts.n), -1)
    tracing = np.where(np.isin(pids, tracers[tracers > 0]), np.arange(facts.n), -1)
    kinds = (HandleKind.SECCOMP, HandleKind.USERFAULT, HandleKind.FANOTIFY)
    return (
        traced,
        tracing,
        _alone(facts, HandleKind.TRACER, targets=True),
        _alone(facts, HandleKind.MEMORY, targets=True),
        _alone(facts, *kinds),
        facts["process_seccomp"],
        _unread(facts),
        facts.dead,
    )


VERBS = (
    Verb(
        "terminal",
        "a holds the pty master of b's controlling terminal: it sends SIGINT, SIGQUIT, SIGHUP",
        "drivers/tty/n_tty.c: isig; drivers/tty/pty.c",
        _terminal_key,
        _terminal,
    ),
    Verb(
        "supervise",
        "a traces b, has its /proc/pid/mem to write, or listens: seccomp, userfaultfd, fanotify",
        "kernel/ptrace.c; fs/proc/base.c; kernel/seccomp.c; fs/userfaultfd.c; fs/notify/fanotify",
        _supervise_key,
        _supervise,
    ),
)
