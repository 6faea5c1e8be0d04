"""A host of four processes and one file, which the last of them maps, as columns."""

import numpy as np

from control_worlds import snapshot
from oracle_control import Cred, Proc, Process, Space
from osmosis.schema import COLUMNS, Status

DEV = 8 << 32 | 1
OVERRIDE = 1 << 1
ROOT, USER, OWNER, TARGET = 1, 2, 3, 4


def make(*, mode=0o644, flags=0, links=1, status=Status.READ, clear="/", mounts=None, **host):
    """Root with CAP_DAC_OVERRIDE, a user, the file's owner, and a process that maps the file."""
    user = Space("user")
    pid, mnt = Space("pid", None, user), Space("mnt", None, user)

    def process(uid, caps, mm):
        ids = (uid,) * 4
        cred = Cred(user, ids, ids, frozenset(), caps, caps)
        return Process([cred], pid, mnt, [Proc(pid)], False, 1, user, mm=mm)

    world = [process(0, OVERRIDE, 1), process(1000, 0, 2), process(1001, 0, 3), process(0, 0, 4)]
    snap = snapshot(world, **host)
    texts = [bytes(snap.bytes(k)) for k in range(len(snap["string_indptr"]) - 1)]

    def text(value: str) -> int:
        texts.append(value.encode())
        return len(texts) - 1

    n = len(snap["mm_process"])
    mine = int(snap["process_mm"][TARGET - 1])
    columns = {
        "mm_vma_indptr": np.append(np.where(np.arange(n) > mine, 1, 0), 1),
        "mm_status": np.zeros(n),
        "vma_object": [0],
        "object_kind": [0],
        "object_path": [text("/lib/x")],
        "ctlfile_object": [0],
        "ctlfile_socket": [-1],
        "ctlfile_status": [status],
        "ctlfile_uid": [1001],
        "ctlfile_gid": [1001],
        "ctlfile_mode": [0o100000 | mode],
        "ctlfile_flags": [flags],
        "ctlfile_links": [links],
        "ctlplace_file": [0],
        "ctlplace_dev": [DEV],
        "ctlplace_path": [text("/lib/x")],
        "ctlplace_clear": [text(clear) if clear else -1],
        "ctlplace_sure": [1],
        "tree_process": [0],
        "tree_status": [0],
        "treemember_process": range(4),
        "treemember_tree": [0] * 4,
    }
    rows = mounts or [(1, 0, DEV, "/", "/", 0)]
    names = ("id", "parent", "dev", "root", "point", "read_only")
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        known = [text(v) if isinstance(v, str) else v for v in values]
        columns[f"mount_{name}"] = known
    for name, value in {"tree": 0, "kind": text("ext4"), "options": text("rw rw")}.items():
        columns[f"mount_{name}"] = [value] * len(rows)
    columns |= {"mount_mode": [0o40755] * len(rows), "mount_reach": [1] * len(rows)}
    tables = {COLUMNS[name].table for name in columns}
    for name, column in COLUMNS.items():
        if column.table in tables - {"mm"} and name not in columns:
            like = next(v for k, v in columns.items() if COLUMNS[k].table == column.table)
            fill = -1 if column.refers else 0
            columns[name] = [fill] * len(like)
    columns["string_indptr"] = np.cumsum([0, *map(len, texts)])
    columns["byte_data"] = np.frombuffer(b"".join(texts), np.uint8)
    return snap.replace(
        **{name: np.asarray(list(v), COLUMNS[name].dtype) for name, v in columns.items()}
    )
