"""The control relation: building it for a whole host, and asking it one question.

Shapes: P processes of K kinds (credentials, containers), the relation costing what K do.
"""

import numpy as np
import pytest

from osmosis.relations.control.table import control
from osmosis.schema import COLUMNS, NAMESPACES
from osmosis.snapshot import Snapshot, StringPool, empty_columns


def host(processes: int, kinds: int) -> Snapshot:
    """Half of the kinds are users of the host, half are containers with namespaces of their own."""
    rng = np.random.default_rng(processes + kinds)
    kind = np.sort(rng.integers(0, kinds, processes))
    pool = StringPool()
    columns = dict(empty_columns())

    def table(name: str, n: int, **values: object) -> None:
        for full, column in COLUMNS.items():
            if column.table == name and column.indptr is None:
                value = values.get(full[len(name) + 1 :], -1 if column.refers else 0)
                columns[full] = np.ascontiguousarray(np.broadcast_to(value, n), column.dtype)

    inside = kind >= kinds // 2
    uid = np.where(inside, 100_000 + kind, np.where(kind % 5 == 0, 0, 1000 + kind))
    caps = np.where(uid == 0, (1 << 41) - 1, np.where(inside & (kind % 2 == 0), (1 << 41) - 1, 0))
    spaces = np.where(inside, kind - kinds // 2 + 1, 0)
    n_spaces = kinds - kinds // 2 + 1
    # Row 8 * k + j is namespace k of kind j.
    rows = {f"ns_{name}": spaces * len(NAMESPACES) + j for j, name in enumerate(NAMESPACES)}
    ids = dict.fromkeys(("ruid", "euid", "suid", "fsuid", "rgid", "egid", "sgid", "fsgid"), uid)
    table(
        "process",
        processes,
        pid=np.arange(10, processes + 10),
        pgid=np.arange(processes) // 4 + 10,
        sid=np.arange(processes) // 8 + 10,
        state=ord("S"),
        threads=1,
        cap_prm=caps,
        cap_eff=caps,
        dumpable=kind % 3 != 0,
        mem_uid=uid,
        cgroup=np.array([pool.add(f"0::/k{k}\n".encode()) for k in kind.tolist()]),
        **ids,
        **rows,
    )
    user = np.arange(n_spaces * len(NAMESPACES)) // len(NAMESPACES) * len(NAMESPACES)
    user += NAMESPACES.index("user")
    is_tree = np.tile([name in ("pid", "user") for name in NAMESPACES], n_spaces)
    first = np.arange(n_spaces * len(NAMESPACES)) < len(NAMESPACES)
    up = np.tile(np.arange(len(NAMESPACES)), n_spaces)
    of_kind = np.tile(np.arange(len(NAMESPACES)), n_spaces)
    owner = np.where(of_kind == NAMESPACES.index("user"), NAMESPACES.index("user"), user)
    table(
        "namespace",
        n_spaces * len(NAMESPACES),
        kind=of_kind,
        inode=np.arange(n_spaces * len(NAMESPACES)) + 5,
        parent=np.where(is_tree, np.where(first, -1, up), -2),
        user=np.where(first & (of_kind == NAMESPACES.index("user")), -1, owner),
    )
    table("control", processes, view=spaces)
    table("view", n_spaces, process=0, mnt=np.arange(n_spaces) * len(NAMESPACES))
    pid_rows = np.arange(n_spaces) * len(NAMESPACES) + NAMESPACES.index("pid")
    table("procmount", n_spaces, view=np.arange(n_spaces), pid=pid_rows, writable=1, reach=1)
    columns["process_nspid_indptr"] = np.arange(processes + 1, dtype="<i8")
    columns["nspid_pid"] = np.full(processes, 9, "<i4")
    columns["process_group_indptr"] = np.zeros(processes + 1, "<i8")
    columns |= pool.columns()
    return Snapshot(columns, {"user_ns": 0xEFFFFFFD})


@pytest.mark.parametrize(("processes", "kinds"), [(1000, 30), (5000, 30), (5000, 1000)])
def test_all_verbs_of_a_host(benchmark, processes, kinds):
    snap = host(processes, kinds)

    def build():
        table = control(snap)
        return {verb: table.relation(verb, effective=True) for verb in table.verbs}

    made = benchmark.pedantic(build, rounds=3, warmup_rounds=1)

    assert made["kill"].nnz > processes  # root kills all
    assert made["kill"].decided
    benchmark.extra_info["verbs"] = len(made)
    benchmark.extra_info["processes"] = processes
    benchmark.extra_info["kinds"] = kinds


def test_who_may_kill_one(benchmark):
    table = control(host(5000, 30))
    turned = table.relation("kill", effective=True).T

    sure, _ = benchmark(turned.row_masks, 77)

    assert sure.any()
