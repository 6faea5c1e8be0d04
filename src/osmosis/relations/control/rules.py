"""Conditions that several verbs ask: ids, capabilities, sight. Each says what decided it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.facts import Facts, Slots
from osmosis.relations.control.logic import Condition, every, some
from osmosis.schema import NO_ID

__all__ = ["CAP", "Pair", "Verb"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# include/uapi/linux/capability.h
CAP = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_KILL": 5,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23,
    "CAP_SYS_RESOURCE": 24,
}
_STATUS = "/proc/pid/status"


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: its rule in words, and the condition over pairs of slots."""

    name: str
    rule: str
    source: str
    # (P,) columns besides the credentials by which processes fall into classes.
    key: Callable[[Facts, bool], Sequence[NDArray[Any]]]
    condition: Callable[[Pair, bool], Condition]
    attaches: bool = False  # Yama may want the actor to be an ancestor of the target


class Pair:
    """Actors by targets: the two sides of a rule, and the conditions between them.

    *single*: one process by one process, of which more may be asked than of classes.
    *related*: every actor is taken for an ancestor process of every target.
    """

    def __init__(
        self,
        facts: Facts,
        actor: Slots,
        target: Slots,
        *,
        single: bool = False,
        related: bool = False,
    ) -> None:
        self.facts = facts
        self.a = actor
        self.b = target
        self.single = single
        self.related = related

    # -- values by slot

    def actor_id(self, name: str) -> Ints:
        """Id of each actor's credential, (S, 1)."""
        ids: Ints = self.facts.ids[name][self.a.cred][:, None]
        return ids

    def target_id(self, name: str) -> Ints:
        """Id of each target's credential, (1, T)."""
        ids: Ints = self.facts.ids[name][self.b.cred][None, :]
        return ids

    def actor(self, column: NDArray[Any]) -> NDArray[Any]:
        """Return a (P,) column as (S, 1)."""
        return column[self.a.process][:, None]

    def target(self, column: NDArray[Any]) -> NDArray[Any]:
        """Return a (P,) column as (1, T)."""
        return column[self.b.process][None, :]

    # -- ids

    def same(self, actor: str, target: str) -> Condition:
        """Ask whether the actor's id is the target's."""
        x, y = self.actor_id(actor), self.target_id(target)
        yes, maybe = equal(x, y)

        def say(s: int, t: int, state: bool | None) -> str:
            return f"a.{actor} {number(x[s, 0])} {sign(state)} b.{target} {number(y[0, t])}"

        return Condition(yes, maybe, say)

    def any_same(self, actors: Sequence[str], targets: Sequence[str]) -> Condition:
        """Ask whether some id of the actor is some id of the target."""
        joined = some(*(self.same(a, b) for a in actors for b in targets))

        def say(s: int, t: int, state: bool | None) -> str:
            if state:
                return "; ".join(joined.why(s, t)) + f" ({_STATUS})"
            mine = ", ".join(f"a.{n} {number(self.actor_id(n)[s, 0])}" for n in actors)
            yours = ", ".join(f"b.{n} {number(self.target_id(n)[0, t])}" for n in targets)
            verb = "none equal" if state is False else "not all ids could be read:"
            return f"{verb}: {mine}; {yours} ({_STATUS})"

        return Condition(joined.yes, joined.maybe, say)

    def all_same(self, uid: str, gid: str) -> Condition:
        """Ask whether *uid* is each of the target's r, e, s uids, and *gid* likewise."""
        pairs = [(uid, n) for n in ("euid", "suid", "ruid")]
        pairs += [(gid, n) for n in ("egid", "sgid", "rgid")]
        joined = every(*(self.same(a, b) for a, b in pairs))

        def say(s: int, t: int, state: bool | None) -> str:
            mine = number(self.actor_id(uid)[s, 0]), number(self.actor_id(gid)[s, 0])
            if state:
                return (
                    f"a.{uid} {mine[0]} and a.{gid} {mine[1]} are all of b's real, effective "
                    f"and saved ids ({_STATUS})"
                )
            return "; ".join(joined.why(s, t)) + f" ({_STATUS})"

        return Condition(joined.yes, joined.maybe, say)

    # -- capabilities

    def capable(self, name: str, user: Ints | None = None, over: str = "b's") -> Condition:
        """CAP(a, name, N), N being row *user* (T,) of each target, or that of its credential."""
        facts = self.facts
        n = facts.user[self.b.cred] if user is None else user
        yes, maybe = facts_capable(facts, name)
        yes, maybe = yes[self.a.cred][:, n], maybe[self.a.cred][:, n]

        def say(s: int, t: int, state: bool | None) -> str:
            return _say_capable(facts, name, int(self.a.cred[s]), int(n[t]), state, over)

        return Condition(yes, maybe, say)

    def has_own(self, name: str) -> Condition:
        """Ask whether the actor has the capability in its own user namespace."""
        has = raised(self.facts.cap_eff[self.a.cred], name)[:, None]
        return Condition(
            has,
            None,
            lambda _s, _t, state: f"a {'has' if state else 'lacks'} {name} in CapEff ({_STATUS})",
        )

    # -- sight

    def sees(self) -> Condition:
        """SEE(a, b): the target has a pid in the actor's pid namespace."""
        facts = self.facts
        yes, maybe = facts.trees.sees()
        x, y = facts.ns_pid[self.a.process], facts.ns_pid[self.b.process]

        def say(_s: int, _t: int, state: bool | None) -> str:
            if state is None:
                return "whether b has a pid in a's pid namespace could not be read (ns/pid)"
            return f"b has {'a' if state else 'no'} pid in a's pid namespace (ns/pid)"

        return Condition(yes[np.ix_(x, y)], maybe[np.ix_(x, y)], say)

    def alive(self) -> Condition:
        """Ask whether the target is not a zombie."""
        dead = self.target(self.facts.dead)
        return Condition(~dead, None, lambda _s, _t, state: "" if state else "b is a zombie (stat)")

    def acts(self) -> Condition:
        """Ask whether the actor is not a zombie: one does nothing."""
        dead = self.actor(self.facts.dead)
        return Condition(~dead, None, lambda _s, _t, state: "" if state else "a is a zombie (stat)")


def equal(x: Ints, y: Ints) -> tuple[Bools, Bools]:
    """Return yes and maybe of x == y, where NO_ID is an id that could not be read."""
    yes: Bools = x == y
    x_unread, y_unread = x == NO_ID, y == NO_ID
    if not (x_unread.any() or y_unread.any()):
        return yes, yes
    return yes & ~x_unread, yes | x_unread | y_unread


def raised(caps: NDArray[np.uint64], name: str) -> Bools:
    """Whether the capability is in each set."""
    return (caps >> np.uint64(CAP[name]) & np.uint64(1)).astype(bool)


def number(value: Any) -> str:
    """Spell an id."""
    return "unread" if int(value) == NO_ID else str(int(value))


def sign(state: bool | None) -> str:
    """Spell an equality."""
    return {True: "=", False: "≠", None: "=?"}[state]


def facts_capable(facts: Facts, name: str) -> tuple[Bools, Bools]:
    """CAP of every credential over every user namespace, (C, N + 1), kept."""
    kept = facts.kept
    if name not in kept:
        has = raised(facts.cap_eff, name)
        kept[name] = facts.trees.capable(facts.user, facts.ids["euid"], has)
    result: tuple[Bools, Bools] = kept[name]
    return result


def _say_capable(
    facts: Facts, name: str, cred: int, row: int, state: bool | None, over: str
) -> str:
    trees = facts.trees
    inode = f" user:[{int(facts['namespace_inode'][row])}]" if row >= 0 else ""
    where = f"{over} user namespace{inode}"
    has = bool(raised(facts.cap_eff[[cred]], name)[0])
    user = int(facts.user[cred])
    if state is None:
        return f"whether a has {name} over {where} could not be read (NS_GET_PARENT, ns/user)"
    if state is False and has:
        return f"a's {name} does not reach {where}, which is not below its own (NS_GET_PARENT)"
    if state is False:
        return f"a lacks {name} ({_STATUS}), and its euid did not make {where}"
    rows, _ = trees.chain(row)
    if has and (user in rows or user == trees.initial_user):
        return f"a has {name} in CapEff, which reaches {where} ({_STATUS})"
    euid = number(facts.ids["euid"][cred])
    return f"a.euid {euid} made {where}, or one above it (NS_GET_OWNER_UID)"
