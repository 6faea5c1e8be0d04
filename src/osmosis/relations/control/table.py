"""All control verbs of one snapshot, as the graph asks for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.relation import Finding, Relation
from osmosis.relations.control import cgroup, daemon, held, join, limits, rewrite, signals, trace
from osmosis.relations.control.facts import Facts
from osmosis.relations.control.rules import Pair, Verb
from osmosis.snapshot import Snapshot

__all__ = ["LinuxControl", "control"]

_ALL: tuple[Verb, ...] = (
    *signals.VERBS,
    *trace.VERBS,
    *limits.VERBS,
    *join.VERBS,
    *cgroup.VERBS,
    *held.VERBS,
    *rewrite.VERBS,
    *daemon.VERBS,
)
_SECCOMP_FILTER = 2


def control(snapshot: Snapshot) -> LinuxControl:
    """Return who may control whom on that host; nothing is computed before it is asked."""
    return LinuxControl(snapshot)


class LinuxControl:
    """The Control protocol over a snapshot: each verb in class form, made once and kept.

    Rows are PD rows: 0 is the kernel, whose row and column are empty here (the queries add
    its power), and k + 1 is process k. O(K * K) per verb, for K classes.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._facts: Facts | None = None
        self._made: dict[tuple[str, bool], Relation] = {}
        self._verbs = {verb.name: verb for verb in _ALL}
        self.verbs: tuple[str, ...] = tuple(self._verbs)

    @property
    def facts(self) -> Facts:
        """What the rules read; prepared at the first question."""
        if self._facts is None:
            self._facts = Facts(self._snapshot)
        return self._facts

    def relation(self, verb: str, *, effective: bool) -> Relation:
        """Return "i may <verb> j"; KeyError for a verb that is not in ``verbs``."""
        key = (verb, effective)
        if key not in self._made:
            rule, facts = self._verbs[verb], self.facts
            if not facts.n:
                self._made[key] = Relation.empty(1)
            else:
                classes = facts.classes(*rule.key(facts, effective))
                condition = rule.condition(Pair(facts, classes.slots, classes.slots), effective)
                yes, maybe = classes.fold(condition)
                relation = Relation.from_classes(classes.of, yes, maybe)
                if rule.attaches and self._snapshot.host.get("yama") == 1:
                    pair = Pair(facts, classes.slots, classes.slots, related=True)
                    allowed, _ = classes.fold(rule.condition(pair, effective))
                    i, j = self._ancestors()
                    held = allowed[classes.of[i], classes.of[j]]
                    relation |= Relation.from_pairs(len(relation), i[held], j[held])
                self._made[key] = relation
        return self._made[key]

    def _ancestors(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """PD rows (i, j) of every i that is parent, or parent of a parent ..., of j."""
        pids = self._snapshot["process_pid"].tolist()
        row_of = {pid: k + 1 for k, pid in enumerate(pids)}
        parent = dict(zip(pids, self._snapshot["process_ppid"].tolist(), strict=True))
        pairs = []
        for pid in pids:
            walker, seen = parent[pid], {pid}
            while walker in parent and walker not in seen:
                seen.add(walker)
                pairs.append((row_of[walker], row_of[pid]))
                walker = parent[walker]
        both = np.array(pairs, np.int64).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def finding(self, verb: str, i: int, j: int, *, effective: bool) -> Finding:
        """Return the state of one pair with the ids or capability that decided it."""
        rule, facts = self._verbs[verb], self.facts
        if i == j or 0 in (i, j):
            return Finding(
                False,
                "the kernel is not asked here" if i != j else "itself",
                (),
                rule.rule,
                rule.source,
            )
        actor, _ = facts.slots(np.array([i - 1]))
        target, _ = facts.slots(np.array([j - 1]))
        condition = rule.condition(Pair(facts, actor, target, single=True), effective)
        shape = (len(actor.process), len(target.process))
        yes = np.argwhere(np.broadcast_to(condition.yes, shape))
        maybe = np.argwhere(np.broadcast_to(condition.maybe, shape))
        at = yes if len(yes) else maybe
        s, t = (int(at[0][0]), int(at[0][1])) if len(at) else (0, 0)
        state = True if len(yes) else None if len(maybe) else False
        why = list(dict.fromkeys(line for line in condition.why(s, t) if line))
        if s or t:
            why.append("through a thread with credentials of its own (task/)")
        caveats = () if state is False else self._caveats(i - 1, j - 1)
        return Finding(state, "; ".join(why), caveats, rule.rule, rule.source)

    def _caveats(self, a: int, b: int) -> tuple[str, ...]:
        s = self._snapshot
        caveats = []
        if int(s["process_seccomp"][a]) == _SECCOMP_FILTER:
            caveats.append("a runs under a seccomp filter, which may forbid the call (Seccomp)")
        mine, yours = s.text(s["process_label"][a]), s.text(s["process_label"][b])
        if mine != yours and not {mine, yours} <= {"", "unconfined"}:
            caveats.append(
                f"security labels differ, {mine or 'none'!r} and {yours or 'none'!r}: the "
                "policy may forbid it (attr/current)"
            )
        if int(s["process_no_new_privs"][a]) == 1:
            caveats.append("a may have a Landlock domain, which /proc does not show (NoNewPrivs)")
        return tuple(caveats)
