"""Random hosts for the control oracle, and snapshots of them."""

import numpy as np
from hypothesis import strategies as st

from oracle_control import Cred, Proc, Process, Space
from osmosis.schema import COLUMNS, NAMESPACES, NO_ID
from osmosis.snapshot import Snapshot, StringPool, empty_columns

UIDS = st.sampled_from([0, 1000, 1000, 1001, 100000])
CAPS = st.lists(st.sampled_from([5, 1, 18, 19, 21, 23, 24]), max_size=7).map(
    lambda bits: sum({1 << b for b in bits})
)
MAPS = st.sampled_from([[], [(0, 1000, 1)], [(0, 100000, 65536)], [(0, 0, 2**32 - 1)], [(5, 0, 9)]])


@st.composite
def creds(draw, user):
    def ids():
        first = draw(UIDS)
        return (first,) * 4 if draw(st.booleans()) else tuple(draw(UIDS) for _ in range(4))

    prm = draw(CAPS)
    eff = prm & draw(CAPS) if draw(st.booleans()) else prm
    return Cred(user, ids(), ids(), frozenset(draw(st.sets(UIDS, max_size=2))), prm, eff)


@st.composite
def worlds(draw):
    users = [Space("user")]
    for _ in range(draw(st.integers(0, 3))):
        parent = draw(st.sampled_from(users))
        maps = draw(MAPS), draw(MAPS)
        users.append(Space("user", parent, parent, draw(UIDS), *maps))
    pids = [Space("pid", None, users[0])]
    for _ in range(draw(st.integers(0, 3))):
        pids.append(Space("pid", draw(st.sampled_from(pids)), draw(st.sampled_from(users))))
    mounts = [Space("mnt", None, draw(st.sampled_from(users))) for _ in range(2)]
    procs = {
        id(mnt): draw(
            st.lists(
                st.builds(
                    Proc,
                    st.sampled_from(pids),
                    st.booleans(),
                    st.just(True),
                    st.sampled_from([0, 0, 1, 2, 4]),
                    st.sampled_from([0, 1000]),
                ),
                max_size=2,
            )
        )
        for mnt in mounts
    }
    world, inits = [], set()
    for k in range(draw(st.integers(2, 5))):
        user = draw(st.sampled_from(users))
        many = draw(st.sampled_from([1, 1, 1, 2]))
        pid, mnt = draw(st.sampled_from(pids)), draw(st.sampled_from(mounts))
        init = id(pid) not in inits and draw(st.booleans())
        if init:
            inits.add(id(pid))
        world.append(
            Process(
                [draw(creds(user)) for _ in range(many)],
                pid,
                mnt,
                procs[id(mnt)],
                init,
                draw(st.sampled_from([1, 1, 0, 2])),
                draw(st.sampled_from(list(user.ancestors()))),
                draw(st.integers(1, 2)),
                draw(st.integers(1, 2)),
                many == 1 and draw(st.integers(0, 4)) == 0,
                k,
            )
        )
        first, last = world[0], world[-1]
        if first.mm_user in list(user.ancestors()) and draw(st.integers(0, 5)) == 0:
            last.mm, last.mm_user, last.dumpable = 0, first.mm_user, first.dumpable
    return world


class _Rows(dict):
    """Namespaces to rows, ancestors and owners included."""

    def __init__(self, world):
        super().__init__()
        self.spaces = []
        for p in world:
            for space in (p.creds[0].user, p.pid, p.mnt, *(q.pid for q in p.procs)):
                self.add(space)

    def add(self, space):
        if space is None:
            return -1
        if id(space) not in self:
            self[id(space)] = len(self.spaces)
            self.spaces.append(space)
            self.add(space.parent)
            self.add(space.user)
        return self[id(space)]


def _text(extents):
    return "".join(f"{a} {b} {n}\n" for a, b, n in extents).encode()


def snapshot(world, **host):
    pool, rows = StringPool(), _Rows(world)
    initial = next(x for x in rows.spaces if x.kind == "user" and x.parent is None)
    others = {kind: Space(kind, None, initial) for kind in ("cgroup", "ipc", "net", "time", "uts")}
    for space in others.values():
        rows.add(space)
    out = {name: [] for name, column in COLUMNS.items() if column.indptr is None}
    n = len(world)

    def credentials(table, cred):
        for kind, ids in (("uid", cred.uid), ("gid", cred.gid)):
            for name, value in zip(("r", "e", "s", "fs"), ids, strict=True):
                out[f"{table}_{name}{kind}"].append(value)
        for name, value in (("prm", cred.prm), ("eff", cred.eff)):
            out[f"{table}_cap_{name}"].append(value)

    lists = {"process_group": [], "thread_group": [], "process_nspid": []}
    views: dict[int, int] = {}
    for i, p in enumerate(world):
        leader = p.creds[0]
        credentials("process", leader)
        depth = len(list(p.pid.ancestors()))
        lists["process_nspid"].append([9] * (depth - 1) + [1 if p.init else 7])
        lists["process_group"].append(sorted(leader.groups))
        for cred in p.creds[1:]:
            credentials("thread", cred)
            lists["thread_group"].append(sorted(cred.groups))
            out["thread_process"].append(i)
            out["thread_ns_user"].append(rows[id(cred.user)])
        root = p.mm_user.root("uid")
        values = {
            "pid": i + 10,
            "pgid": p.pgid,
            "sid": p.sid,
            "state": ord("S"),
            "threads": len(p.creds),
            "tracer": 999 * p.traced,
            "dumpable": p.dumpable,
            "mem_uid": leader.uid[1] if p.dumpable == 1 else root,
            "ns_user": rows[id(leader.user)],
            "ns_pid": rows[id(p.pid)],
            "ns_mnt": rows[id(p.mnt)],
            "cgroup": pool.add(b"0::/\n"),
            "uid_map": pool.add(_text(leader.user.uid_map)),
            "mm": p.mm,
        }
        values |= {f"ns_{kind}": rows[id(space)] for kind, space in others.items()}
        for name, value in values.items():
            out[f"process_{name}"].append(value)
        views.setdefault(id(p.mnt), len(views))
        if len(out["view_mnt"]) < len(views):
            out["view_mnt"].append(rows[id(p.mnt)])
            out["view_process"].append(i)
            out["view_status"].append(0)
            for q in p.procs:
                values = (views[id(p.mnt)], rows[id(q.pid)], q.writable, q.reach, q.hidepid, q.gid)
                names = ("view", "pid", "writable", "reach", "hidepid", "gid")
                for name, value in zip(names, values, strict=True):
                    out[f"procmount_{name}"].append(value)
        out["control_view"].append(views[id(p.mnt)])
        out["control_untraced"].append(0)
        out["control_fds"].append(0)
    for space in rows.spaces:
        parent = rows.get(id(space.parent), -1 if space.kind in ("user", "pid") else -2)
        user = rows.get(id(space.user), -1)
        values = (NAMESPACES.index(space.kind), len(out["namespace_id"]) + 5, 0, space.owner)
        names = ("kind", "inode", "id", "owner", "parent", "user")
        for name, value in zip(names, (*values, parent, user), strict=True):
            out[f"namespace_{name}"].append(value)
        if space.kind == "user":
            out["userns_namespace"].append(rows[id(space)])
            out["userns_uid_map"].append(pool.add(_text(space.uid_map)))
            out["userns_gid_map"].append(pool.add(_text(space.gid_map)))
    columns = dict(empty_columns())
    counts = {"process": n, "thread": len(out["thread_process"])}
    for name, values in out.items():
        column = COLUMNS[name]
        count = counts.get(column.table)
        if values or count:
            fill = -1 if column.refers else 0
            columns[name] = np.array(values or [fill] * count, column.dtype)
    for name, flat in (
        ("process_group", "group_gid"),
        ("thread_group", "threadgroup_gid"),
        ("process_nspid", "nspid_pid"),
    ):
        sizes = [len(x) for x in lists[name]]
        columns[f"{name}_indptr"] = np.concatenate([[0], np.cumsum(sizes)]).astype("<i8")
        columns[flat] = np.array([y for x in lists[name] for y in x], COLUMNS[flat].dtype)
    mms = max(p.mm for p in world) + 1
    columns["mm_process"] = np.zeros(mms, "<i4")
    columns["mm_status"] = np.zeros(mms, "u1")
    columns["mm_vma_indptr"] = np.zeros(mms + 1, "<i8")
    columns |= pool.columns()
    return Snapshot(columns, {"user_ns": 0xEFFFFFFD, **host})


HIDE = {
    "process_euid": NO_ID,
    "process_suid": NO_ID,
    "process_rgid": NO_ID,
    "process_ns_user": -1,
    "process_ns_pid": -1,
    "process_ns_mnt": -1,
    "process_dumpable": -1,
    "process_mem_uid": NO_ID,
    "process_tracer": -1,
    "control_view": -1,
    "procmount_pid": -2,
    "procmount_reach": 0,
    "namespace_owner": NO_ID,
    "namespace_user": -2,
    "userns_uid_map": -1,
    "userns_gid_map": -1,
}


def hidden(snap, rng):
    """The same snapshot with some facts not read."""
    changed = {}
    for name, value in HIDE.items():
        column = snap[name].copy()
        column[rng.random(len(column)) < 0.3] = value
        changed[name] = column
    if rng.random() < 0.5:  # namespaces that are not below the collector's
        parent = changed["namespace_parent"] = snap["namespace_parent"].copy()
        at = (parent >= 0) & (rng.random(len(parent)) < 0.3)
        parent[at] = -2
    if rng.random() < 0.3:
        changed["process_uid_map"] = np.full_like(snap["process_uid_map"], -1)
    return snap.replace(**changed)
