"""Snapshots of hosts that do not exist: as many processes as are wanted, without /proc.

Of the structure of a real host: 30 credential classes, programs of which each has the libraries
of all and some of its own, fork families whose heap pages were copied at random, shared
segments, containers with namespaces of their own. The same arguments give the same snapshot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.schema import COLUMNS, NAMESPACES, NO_ID, FileKind, FrameKind, Status, VmaKind
from osmosis.snapshot import Snapshot, StringPool

VMAS = 230
COMMON, OWN = 15, 30  # libraries of all, and of each program: four VMAs each
LIBRARY_SLOTS = 4 * (COMMON + OWN)
HEAP, SEGMENT = LIBRARY_SLOTS, VMAS - 1
PROGRAMS, CREDENTIALS, CONTAINERS = 25, 30, 20
PIECES = 3  # memory objects of a library's VMA: not all touch the same pages
COW = 120  # memory objects of a program's heap that the family shares
COPIED = 0.01  # part of the family that copied such a page
R, W, X, SHARED = 4, 2, 1, 8


class _Columns(dict[str, NDArray[Any]]):
    def put(self, **columns: Any) -> None:
        for name, values in columns.items():
            self[name] = np.ascontiguousarray(values, COLUMNS[name].dtype)


def snapshot(processes: int, *, seed: int = 1, cow: int = COW) -> Snapshot:
    """Return a snapshot of that many processes; *cow* heap objects a program."""
    rng = np.random.default_rng(seed)
    pool = StringPool()
    out = _Columns()
    program = np.sort(np.arange(processes) % PROGRAMS)  # neighbours are of one program
    container = (np.arange(processes) // 7) % (CONTAINERS + 1)  # 0: none
    _processes(out, pool, processes, program, container, rng)
    _memory(out, pool, processes, program, rng, cow)
    out.put(
        ledger_process=np.arange(processes),
        ledger_pid=out["process_pid"],
        ledger_source=np.full(processes, pool.add(b"memory")),
        ledger_status=np.full(processes, Status.READ),
        ledger_count=np.zeros(processes),
        ledger_reason=np.full(processes, pool.add(b"")),
    )
    out |= pool.columns()
    _fill(out)
    host = {
        "boot_id": "synthetic",
        "page_size": 4096,
        "euid": 0,
        "yama": 0,
        "sources": ["memory", "namespaces", "processes"],
        "pids": "all",
        "users": {},
        "overflow_uid": 65534,
        "overflow_gid": 65534,
    }
    return Snapshot(out, host)


def _fill(out: _Columns) -> None:
    """Columns of begun tables that nothing was put in: not known, or nothing."""
    rows = {
        COLUMNS[name].table: len(values) - (COLUMNS[name].indptr is not None)
        for name, values in out.items()
    }
    for name, column in COLUMNS.items():
        if name not in out and column.table in rows:
            n = rows[column.table] + (column.indptr is not None)
            out.put(**{name: np.full(n, -1 if column.refers else 0)})


def _processes(
    out: _Columns,
    pool: StringPool,
    n: int,
    program: NDArray[Any],
    container: NDArray[Any],
    rng: np.random.Generator,
) -> None:
    pid = np.arange(n) + 2
    cred = rng.integers(0, CREDENTIALS, n)
    uid = np.where(cred < 3, 0, 1000 + cred)
    caps = np.where(cred == 0, (1 << 41) - 1, np.where(cred == 1, 1 << 5, 0))
    for name in ("ruid", "euid", "suid", "fsuid", "rgid", "egid", "sgid", "fsgid"):
        out.put(**{f"process_{name}": uid})
    for name in ("prm", "eff", "bnd"):
        out.put(**{f"process_cap_{name}": caps})
    for name in ("inh", "amb"):
        out.put(**{f"process_cap_{name}": np.zeros(n)})
    zero, none = np.zeros(n), np.full(n, -1)
    out.put(
        process_pid=pid,
        process_start_time=pid * 10,
        process_ppid=np.where(np.arange(n) == 0, 0, 2),
        process_pgid=pid,
        process_sid=pid,
        process_tty=zero,
        process_state=np.full(n, ord("S")),
        process_flags=np.full(n, 0x400000),
        process_threads=np.ones(n),
        process_no_new_privs=zero,
        process_seccomp=zero,
        process_tracer=zero,
        process_dumpable=np.ones(n),
        process_mem_uid=uid,
        process_mem_mode=np.full(n, 0o600),
        process_oom_adj=zero,
        process_cwd=np.full(n, pool.add(b"/")),
        process_root=np.full(n, pool.add(b"/")),
        process_root_dev=np.ones(n),
        process_root_inode=container + 1,
        process_label=np.full(n, pool.add(b"unconfined")),
        process_uid_map=np.full(n, pool.add(b"0 0 4294967295\n")),
        process_mm=np.arange(n),
        process_group_indptr=np.zeros(n + 1),
        process_nspid_indptr=np.arange(n + 1),
        nspid_pid=pid,
        control_view=none,
    )
    out.put(
        process_comm=pool.add_all([b"program%d" % p for p in program]),
        process_exe=pool.add_all([b"/usr/bin/program%d" % p for p in program]),
        process_cmdline=pool.add_all([b"program%d\0" % p for p in program]),
        process_cgroup=pool.add_all(
            [b"0::/system.slice/docker-%064x.scope\n" % c if c else b"0::/\n" for c in container]
        ),
    )
    # Namespaces: the initial ones, then mnt, pid, net, ipc, uts and cgroup of each container.
    kinds, inode, parent = [], [], []
    for k, name in enumerate(NAMESPACES):
        first = len(kinds)
        own = name not in ("user", "time")
        for c in range(CONTAINERS + 1 if own else 1):
            kinds.append(k)
            inode.append(0xF0000000 + len(inode))
            parent.append(-1 if name not in ("pid", "user") or c == 0 else first)
        out.put(**{f"process_ns_{name}": first + (container if own else 0) + np.zeros(n)})
    user = kinds.index(NAMESPACES.index("user"))
    out.put(
        namespace_kind=kinds,
        namespace_inode=inode,
        namespace_id=np.arange(len(kinds)) + 1,
        namespace_owner=np.where(np.array(kinds) == NAMESPACES.index("user"), 0, NO_ID),
        namespace_parent=parent,
        namespace_user=np.where(np.arange(len(kinds)) == user, -1, user),
    )


def _memory(
    out: _Columns,
    pool: StringPool,
    n: int,
    program: NDArray[Any],
    rng: np.random.Generator,
    cow: int,
) -> None:
    slot = np.tile(np.arange(VMAS), n)
    process = np.repeat(np.arange(n), VMAS)
    prot = np.tile(np.array([R, R | X, R, R | W])[np.arange(VMAS) % 4], n)
    prot[slot >= HEAP] = R | W
    prot[slot == SEGMENT] = R | W | SHARED
    library = np.where(
        slot < 4 * COMMON, slot // 4, COMMON + program[process] * OWN + (slot // 4 - COMMON)
    )
    n_libraries = COMMON + OWN * PROGRAMS
    n_segments = max(1, n // 20)
    segment = rng.integers(0, n_segments, n)
    obj = np.where(slot < HEAP, library, -1)
    obj[slot == SEGMENT] = n_libraries + segment[process[slot == SEGMENT]]
    paths = pool.add_all([b"/usr/lib/lib%d.so" % k for k in range(n_libraries)])
    path = np.where(slot < HEAP, paths[np.minimum(library, n_libraries - 1)], -1)
    start = (np.uint64(0x5500_0000_0000) + slot.astype(np.uint64) * np.uint64(1 << 24)) + (
        program[process].astype(np.uint64) << np.uint64(36)
    )
    kind = np.where(slot < HEAP, VmaKind.FILE, VmaKind.ANON)
    kind[slot == HEAP] = VmaKind.HEAP
    kind[slot == SEGMENT] = VmaKind.SHM
    pages = 64
    out.put(
        mm_process=np.arange(n),
        mm_status=np.full(n, Status.READ),
        mm_vma_indptr=np.arange(n + 1) * VMAS,
        vma_start=start,
        vma_end=start + np.uint64(pages * 4096),
        vma_offset=np.zeros(n * VMAS),
        vma_prot=prot,
        vma_kind=kind,
        vma_object=obj,
        vma_path=path,
        vma_region=slot * n + process,  # neighbours in a slot are neighbours in the table
        vma_present=np.full(n * VMAS, pages // 2),
        vma_swapped=np.zeros(n * VMAS),
        vma_zero=np.zeros(n * VMAS),
        object_kind=[FileKind.FILE] * n_libraries + [FileKind.SHARED_ANON] * n_segments,
        object_dev=[8 << 32 | 1] * n_libraries + [1] * n_segments,
        object_inode=np.arange(n_libraries + n_segments) + 100,
        object_rdev=np.zeros(n_libraries + n_segments),
        object_ipc=np.full(n_libraries + n_segments, -1),
        object_path=np.concatenate([paths, np.full(n_segments, -1)]),
        object_sure=np.ones(n_libraries + n_segments),
    )
    runs: list[tuple[NDArray[Any], NDArray[Any]]] = []
    kinds: list[int] = []
    sizes: list[int] = []

    def add(what: int, n_pages: int, region_slot: int, members: NDArray[Any]) -> None:
        """One memory object that *members* (rising) map with their VMA of a slot."""
        breaks = np.flatnonzero(np.diff(members) != 1)
        first = members[np.concatenate([[0], breaks + 1])]
        last = members[np.concatenate([breaks, [len(members) - 1]])]
        runs.append((region_slot * n + first, region_slot * n + last))
        kinds.append(what)
        sizes.append(n_pages)

    everybody = np.arange(n)
    families = [np.flatnonzero(program == p) for p in range(PROGRAMS)]
    families = [family for family in families if len(family)]
    for s in range(LIBRARY_SLOTS):
        if s % 4 == 3:  # written data: nobody's but each one's own, counted below
            continue
        for family in [everybody] if s < 4 * COMMON else families:
            for piece in range(PIECES):
                touched = family[rng.random(len(family)) >= 0.02 * piece]
                if len(touched):
                    add(FrameKind.FILE, 8 + piece, s, touched)
    for family in families:
        for _ in range(cow):
            kept = family[rng.random(len(family)) >= COPIED]
            if len(kept) > 1:
                add(FrameKind.ANON, 1, HEAP, kept)
    for s in range(n_segments):
        members = np.flatnonzero(segment == s)
        if len(members):
            add(FrameKind.FILE, 16, SEGMENT, members)
    # What each process has alone: written library data, copied heap pages, two more VMAs.
    alone_slots = np.array([3, 7, HEAP, HEAP + 1, HEAP + 2])
    own = (alone_slots[None, :] * n + everybody[:, None]).ravel()
    first = np.concatenate([*(a for a, _ in runs), own])
    last = np.concatenate([*(b for _, b in runs), own])
    counts = np.concatenate([[len(a) for a, _ in runs], np.ones(len(own), np.int64)])
    n_classes = len(counts)
    out.put(
        class_kind=np.concatenate([kinds, np.full(len(own), FrameKind.ANON)]),
        class_pages=np.concatenate([sizes, np.full(len(own), 20)]),
        class_run_indptr=np.concatenate([[0], np.cumsum(counts)]),
        class_frame_indptr=np.zeros(n_classes + 1),
        run_first=first,
        run_last=last,
    )
