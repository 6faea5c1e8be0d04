"""cgroup-kill, cgroup-freeze, cgroup-limit: file permission on b's cgroup or one above it.

kernel/cgroup/cgroup.c asks nothing but the file's mode: whoever may write cgroup.kill ends all
below it, whatever kill() would say. The actor needs a cgroup mount of its own that shows the
cgroup, writable, and a way to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.facts import Facts
from osmosis.relations.control.files import EXECUTE, WRITE, Owners, permitted
from osmosis.relations.control.logic import Condition, every
from osmosis.relations.control.rules import Pair, Verb
from osmosis.relations.control.signals import killable
from osmosis.schema import CgroupVerb, Status

__all__ = ["VERBS"]

Bools = NDArray[np.bool_]
_FILES = {
    CgroupVerb.KILL: "cgroup.kill",
    CgroupVerb.FREEZE: "cgroup.freeze or freezer.state",
    CgroupVerb.LIMIT: "cpu.max, memory.max, pids.max or their likes of v1",
}
_INITIAL_CGROUP = 0xEFFF_FFFB  # PROC_CGROUP_INIT_INO, include/linux/proc_ns.h
Node = tuple[str, str]  # hierarchy, path


class _Cgroups:
    """The cgroups that processes are in and those above, with the files that act on them."""

    def __init__(self, facts: Facts) -> None:
        s = facts.snapshot
        self.facts = facts
        self.files = Owners(
            s["cgroupfile_uid"].astype(np.int64),
            s["cgroupfile_gid"].astype(np.int64),
            s["cgroupfile_mode"].astype(np.int64),
        )
        names = s.texts("cgroupfile_controllers")
        paths = s.texts("cgroupfile_path")
        self.by_node: dict[Node, list[int]] = {}
        for row, node in enumerate(zip(names, paths, strict=True)):
            self.by_node.setdefault(node, []).append(row)
        self.verb = s["cgroupfile_verb"]
        self.read = s["cgroupfile_status"] == Status.READ
        self.mounts: dict[int, list[tuple[str, str, bool, bool, bool]]] = {}
        for view, name, root, writable, reach, delegate in zip(
            s["cgroupmount_view"].tolist(),
            s.texts("cgroupmount_controllers"),
            s.texts("cgroupmount_root"),
            s["cgroupmount_writable"].tolist(),
            s["cgroupmount_reach"].tolist(),
            s["cgroupmount_delegate"].tolist(),
            strict=True,
        ):
            place = (name, root, bool(writable), reach == 1, bool(delegate))
            self.mounts.setdefault(view, []).append(place)
        self.chains: dict[int, list[Node] | None] = {
            int(row): self._chain(s.text(int(row))) if row >= 0 else None
            for row in np.unique(s["process_cgroup"])
        }

    def _chain(self, text: str) -> list[Node]:
        """The cgroups that hold a process, of every hierarchy, and those above each."""
        nodes: list[Node] = []
        for line in text.splitlines():
            _, names, path = [*line.split(":", 2), "", ""][:3]
            name = ",".join(sorted(names.split(",")))
            steps = path.strip("/").split("/") if path != "/" else []
            nodes += [(name, "/" + "/".join(steps[:n])) for n in range(len(steps) + 1)]
        return nodes

    def writable(self, pair: Pair, verb: int, node: Node) -> tuple[Bools, Bools]:
        """Yes and maybe by actor slot, (S,): it may write a file of *node* that does *verb*."""
        facts, creds = self.facts, pair.a.cred
        yes, maybe = np.zeros(len(creds), bool), np.zeros(len(creds), bool)
        rows = self.by_node.get(node)
        if rows is None:
            relevant = not node[0] or bool(
                {"freezer", "cpu", "memory", "pids"} & {*node[0].split(",")}
            )
            return yes, maybe | relevant  # the collector could not look there
        mine = [r for r in rows if self.verb[r] == verb]
        if not mine:
            return yes, maybe
        allowed, may_be = permitted(facts, creds, self.files.take(mine), WRITE)
        read = self.read[mine]
        allowed, may_be = (allowed & read).any(axis=1), (may_be | ~read).any(axis=1)
        views = facts.view[pair.a.process]
        for view in np.unique(views).tolist():
            at = views == view
            way, way_maybe = self._way(pair, view, node)
            yes[at] = (allowed & way)[at]
            maybe[at] = (may_be & way_maybe)[at]
        return yes, maybe | yes

    def _way(self, pair: Pair, view: int, node: Node) -> tuple[Bools, Bools]:
        """Yes and maybe by actor slot: a writable mount of the view leads to *node*."""
        facts, creds = self.facts, pair.a.cred
        yes, maybe = np.zeros(len(creds), bool), np.zeros(len(creds), bool)
        if view < 0 or facts["view_status"][view] != Status.READ:
            return yes, ~maybe
        for name, root, writable, reach, delegate in self.mounts.get(view, ()):
            if name != node[0] or not writable or not _below(node[1], root):
                continue
            inner = [n for n in self._between(root, node[1]) if (name, n) in self.by_node]
            rows = [
                r
                for n in inner
                for r in self.by_node[name, n]
                if self.verb[r] == CgroupVerb.DIRECTORY
            ]
            search, search_maybe = permitted(facts, creds, self.files.take(rows), EXECUTE)
            known = len(inner) == len(self._between(root, node[1])) == len(rows)
            certain = search.all(axis=1) & reach & known
            if delegate and node[1] == root and root != "/":
                certain &= ~self._inside(pair)
            yes |= certain
            maybe |= search_maybe.all(axis=1)
        return yes, maybe | yes

    @staticmethod
    def _between(root: str, path: str) -> list[str]:
        """Directories that are walked through from a mount's root to a file of *path*."""
        rest = path[len(root.rstrip("/")) :].strip("/")
        steps = rest.split("/") if rest else []
        base = root.rstrip("/")
        return [base + "/" + "/".join(steps[:n]) if n else root for n in range(len(steps) + 1)]

    def _inside(self, pair: Pair) -> Bools:
        """Whether each actor is in a cgroup namespace: its root may be closed (nsdelegate)."""
        rows = self.facts["process_ns_cgroup"][pair.a.process]
        inode = np.append(self.facts["namespace_inode"], 0)
        return np.asarray(inode[rows] != _INITIAL_CGROUP, bool)


def _below(path: str, root: str) -> bool:
    return root == "/" or path == root or path.startswith(root + "/")


def _cgroups(facts: Facts) -> _Cgroups:
    made: _Cgroups = facts.kept.setdefault("cgroups", None) or _Cgroups(facts)
    facts.kept["cgroups"] = made
    return made


def _writes(verb: int, pair: Pair) -> Condition:
    groups, facts = _cgroups(pair.facts), pair.facts
    texts = facts["process_cgroup"][pair.b.process]
    shape = (len(pair.a.process), len(texts))
    yes, maybe = np.zeros(shape, bool), np.zeros(shape, bool)
    done: dict[Node, tuple[Bools, Bools]] = {}
    for text in np.unique(texts).tolist():
        nodes = groups.chains[text]
        at = texts == text
        if nodes is None:
            maybe[:, at] = True
            continue
        for node in nodes:
            if node not in done:
                done[node] = groups.writable(pair, verb, node)
            yes[:, at] |= done[node][0][:, None]
            maybe[:, at] |= done[node][1][:, None]

    def say(s: int, t: int, state: bool | None) -> str:
        nodes = groups.chains[int(texts[t])] or []
        found = [n for n in nodes if done[n][0 if state else 1][s]]
        if state is False:
            return f"a may write {_FILES[verb]} of no cgroup of b (owner and mode, mountinfo)"
        names = ", ".join(f"{name or 'v2'}:{path}" for name, path in found[:3])
        can = "can" if state else "might"
        return f"a {can} write {_FILES[verb]} of {names or 'b'} (owner and mode, mountinfo)"

    return Condition(yes, maybe | yes, say)


def _condition(verb: int, pair: Pair, effective: bool) -> Condition:
    parts = [pair.acts(), pair.alive(), _writes(verb, pair)]
    if effective and verb == CgroupVerb.KILL:
        parts.append(killable(pair))
    return every(*parts)


def _key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:  # noqa: ARG001
    return (
        facts["process_cgroup"],
        facts["process_ns_cgroup"],
        facts.view,
        facts.ns_pid,
        facts.init,
        facts.dead,
    )


def _verb(name: str, verb: int, source: str) -> Verb:
    rule = f"a may write {_FILES[verb]} of b's cgroup, or of one above it, in a's own mounts"
    return Verb(name, rule, source, _key, partial(_condition, verb))


VERBS = (
    _verb("cgroup-kill", CgroupVerb.KILL, "kernel/cgroup/cgroup.c: cgroup_kill_write"),
    _verb(
        "cgroup-freeze",
        CgroupVerb.FREEZE,
        "kernel/cgroup/cgroup.c: cgroup_freeze_write; kernel/cgroup/legacy_freezer.c",
    ),
    _verb(
        "cgroup-limit",
        CgroupVerb.LIMIT,
        "kernel/sched/core.c: cpu_max_write; mm/memcontrol.c: memory_max_write",
    ),
)
