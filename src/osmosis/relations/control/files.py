"""Discretionary file permission: generic_permission and capable_wrt_inode_uidgid (fs/namei.c)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from osmosis.relations.control.facts import Facts
from osmosis.relations.control.rules import equal, raised

__all__ = ["EXECUTE", "WRITE", "Owners", "permitted"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

WRITE, EXECUTE = 2, 1  # bits of a mode


class Owners(NamedTuple):
    """Owner, group and permission bits of F files."""

    uid: Ints
    gid: Ints
    mode: Ints

    def take(self, rows: list[int]) -> Owners:
        """Return those of some files."""
        return Owners(self.uid[rows], self.gid[rows], self.mode[rows])


def permitted(facts: Facts, creds: Ints, files: Owners, bit: int) -> tuple[Bools, Bools]:
    """Yes and maybe, (len(creds), F): the credential has *bit* of the file.

    The owner's bits count for the owner alone, the group's for its members, the others' for the
    rest; then CAP_DAC_OVERRIDE, if the caller's user namespace maps both ids (of a directory,
    for searching, CAP_DAC_READ_SEARCH too). An ACL, which stat does not show, can only be there
    where the group bits are its mask: cgroup and proc files have none.
    """
    uid, gid, mode = files
    distinct, of = np.unique(creds, return_inverse=True)
    owner, owner_maybe = equal(facts.ids["fsuid"][distinct][:, None], uid[None, :])
    member, member_maybe = _member(facts, distinct, gid)
    bits = [(mode >> shift & bit != 0)[None, :] for shift in (6, 3, 0)]
    yes = np.where(owner, bits[0], np.where(member, bits[1], bits[2]))
    maybe = yes.copy()
    doubt = (owner != owner_maybe) | (member != member_maybe)
    yes &= ~doubt | (bits[0] & bits[1] & bits[2])
    maybe |= doubt & (bits[0] | bits[1] | bits[2])
    names = ["CAP_DAC_OVERRIDE"] + (["CAP_DAC_READ_SEARCH"] if bit == EXECUTE else [])
    has = np.zeros(len(distinct), bool)
    for name in names:
        has |= raised(facts.cap_eff[distinct], name)
    users = facts.user[distinct]
    for row in np.unique(users[has]).tolist():
        u, u_maybe = facts.maps.mapped(row, "uid", uid)
        g, g_maybe = facts.maps.mapped(row, "gid", gid)
        at = has & (users == row)
        yes[at] |= u & g
        maybe[at] |= u_maybe & g_maybe
    return yes[of], (maybe | yes)[of]


def _member(facts: Facts, creds: Ints, gid: Ints) -> tuple[Bools, Bools]:
    """in_group_p: by fsgid or a supplementary group."""
    yes, maybe = equal(facts.ids["fsgid"][creds][:, None], gid[None, :])
    sets = facts.groups[creds]
    has = {k: np.isin(gid, facts.group_sets[k]) for k in np.unique(sets).tolist()}
    listed = np.array([has[k] for k in sets.tolist()]).reshape(len(creds), len(gid))
    return yes | listed, maybe | listed
