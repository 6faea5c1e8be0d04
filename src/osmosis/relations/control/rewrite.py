"""rewrite: a can open for writing, through its own mounts, a file that b maps.

fs/namei.c: inode_permission, may_open; fs/open.c: do_dentry_open, get_write_access. Libraries
are not protected while they are mapped; the text of a running program is (ETXTBSY,
exe_file_deny_write_access), but for Linux 6.11 and 6.12.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.facts import Facts
from osmosis.relations.control.logic import Condition, every
from osmosis.relations.control.openable import FIXED, TEXT, openable
from osmosis.relations.control.rules import Pair, Verb
from osmosis.schema import FileKind, Status

__all__ = ["VERBS"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
_NAMED = 3  # files that a reason names


class _Mapped:
    """(P,) which set of files each process maps; the sets as (sets, F) bool, and which are blind.

    A set holds files that could be written to at all. Set 0 is empty; of a blind one it is not
    known what it holds.
    """

    def __init__(self, facts: Facts) -> None:
        s = facts.snapshot
        self.files = openable(facts)
        frozen = (self.files.flags & FIXED != 0) | (self.files.status == Status.SKIPPED)
        self.busy = (self.files.flags & TEXT != 0) & _guarded(s.host.get("kernel"))
        self.doubt = (self.files.flags & TEXT != 0) & ~self.busy
        file_of = np.full(len(s["object_kind"]) + 1, -1, np.int64)
        mapped = s["ctlfile_object"] >= 0
        live = np.flatnonzero(mapped & ~frozen & ~self.busy)
        file_of[s["ctlfile_object"][live]] = live
        looked = np.zeros(len(file_of), bool)
        looked[s["ctlfile_object"][mapped]] = True
        looked[:-1] |= s["object_kind"] != FileKind.FILE
        looked[-1] = True
        index: dict[tuple[int, ...], int] = {(): 0}
        of_mm = np.zeros(len(s["mm_process"]) + 1, np.int64)
        indptr, objects = s["mm_vma_indptr"], s["vma_object"]
        for mm in range(len(s["mm_process"])):
            held = np.unique(objects[indptr[mm] : indptr[mm + 1]])
            rows = file_of[held]
            key = tuple(rows[rows >= 0].tolist())
            unread = s["mm_status"][mm] not in (Status.READ, Status.HIDDEN)
            if unread or not looked[held].all():
                key = (*key, -1)
            of_mm[mm] = index.setdefault(key, len(index))
        of_mm[-1] = index.setdefault((-1,), len(index)) if asked(facts) else 0
        self.of = of_mm[s["process_mm"]]
        self.sets = np.zeros((len(index), self.files.n), bool)
        self.blind = np.zeros(len(index), bool)
        for key, row in index.items():
            self.blind[row] = -1 in key
            self.sets[row, [k for k in key if k >= 0]] = True
        if missing(facts):
            self.blind[:] = True


def asked(facts: Facts) -> bool:
    """Whether the snapshot says what was asked for; one that was made by hand does not."""
    return facts.snapshot.host.get("sources") is not None


def missing(facts: Facts, *wanted: str) -> bool:
    """Whether what the rule reads was not asked for."""
    sources = set(facts.snapshot.host.get("sources") or ())
    needs = {"control", "namespaces", *(wanted or ("memory",))}
    return asked(facts) and not (needs <= sources and sources & {"files", "mounts"})


def _guarded(kernel: str | None) -> bool:
    """Whether that kernel protects the text of running programs from writers.

    Not 6.11 and 6.12: taken out by 2a010c412853, put back by 3b832035387f (6.13, and stable
    6.12.2); there it is not known.
    """
    found = re.match(r"(\d+)\.(\d+)", kernel or "")
    return not found or (int(found[1]), int(found[2])) not in {(6, 11), (6, 12)}


def _mapped(facts: Facts) -> _Mapped:
    if "mapped" not in facts.kept:
        facts.kept["mapped"] = _Mapped(facts)
    made: _Mapped = facts.kept["mapped"]
    return made


def rewrites(pair: Pair) -> Condition:
    """Ask whether a may write to some file that b maps."""
    facts = pair.facts
    mapped = _mapped(facts)
    may, may_be = mapped.files.may_write(pair.a.process, pair.a.cred)
    may = may & ~mapped.doubt
    sets, of = np.unique(mapped.of[pair.b.process], return_inverse=True)
    held = mapped.sets[sets]
    # (S, sets): some file is in both. Floats multiply in BLAS; sums stay far below 2**24.
    both, both_maybe = (m.astype(np.float32) @ held.T.astype(np.float32) > 0 for m in (may, may_be))
    yes = both[:, of]
    maybe = (both_maybe | mapped.blind[sets][None, :])[:, of]

    def say(s: int, t: int, state: bool | None) -> str:
        kind = sets[of[t]]
        if state is False:
            return (
                "a may open for writing no file that b maps (mountinfo; owner and mode; the text "
                "of running programs is protected)"
            )
        found = np.flatnonzero(mapped.sets[kind] & (may if state else may_be)[s])
        names = ", ".join(_name(facts, int(f)) for f in found[:_NAMED])
        if state:
            return f"a can open {names} for writing, which b maps (maps, mountinfo; owner and mode)"
        if not len(found):
            return "which files b maps, or where they lie, was not read (maps, map_files)"
        return (
            f"whether a can open {names} for writing, which b maps, could not be decided: "
            f"{_doubt(mapped, pair, s, int(found[0]))}"
        )

    return Condition(yes, maybe | yes, say)


def _name(facts: Facts, file: int) -> str:
    s = facts.snapshot
    obj = int(s["ctlfile_object"][file])
    text = int(s["object_path"][obj]) if obj >= 0 else -1
    return s.text(text) if text >= 0 else "a file"


def _doubt(mapped: _Mapped, pair: Pair, s: int, file: int) -> str:
    files = mapped.files
    if files.tree[pair.a.process[s]] < 0:
        return "a's mounts were not read, or a thread of it sees others (mountinfo)"
    if files.status[file] not in (Status.READ, Status.SKIPPED):
        return "it could not be looked at (map_files)"
    if mapped.doubt[file]:
        return "it is the text of a running program, which not every Linux 6.11 or 6.12 protects"
    return "search permission, an ACL, or a mount that may show it"


def _key(facts: Facts, effective: bool) -> Sequence[NDArray[Any]]:  # noqa: ARG001
    return openable(facts).tree, _mapped(facts).of, facts.dead


def _condition(pair: Pair, effective: bool) -> Condition:  # noqa: ARG001
    return every(pair.acts(), pair.alive(), rewrites(pair))


VERBS = (
    Verb(
        "rewrite",
        "a can open for writing, through its own mounts, a file that b maps and that is not the "
        "text of a running program",
        "fs/namei.c: inode_permission; fs/open.c: do_dentry_open; fs/exec.c: "
        "exe_file_deny_write_access",
        _key,
        _condition,
    ),
)
