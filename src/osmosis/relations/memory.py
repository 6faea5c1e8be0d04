"""Memory: who maps which frames, and which segments, with which permissions.

A shared mapping passes the VMA's permissions. A private one passes W only to an anonymous
frame, not KSM's, that no other VMA maps: a write to any other is a copy (do_wp_page() in
mm/memory.c). By object, a segment is held whether or not its pages are present; mapped
files are of ``relations.files``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.graph.graph import ALL, ANY, SERVER, Edge, Edges, Kind, R, Runs, W, X
from osmosis.graph.names import Block
from osmosis.relations.parts import Parts
from osmosis.schema import FileKind, FrameKind, Status, VmaKind
from osmosis.snapshot import Snapshot

__all__ = ["add_memory", "add_object_holds", "device_names", "owners_of", "ranges"]

SHARED = 8  # of vma_prot


def add_memory(parts: Parts, snap: Snapshot, *, granularity: str = "classes") -> None:
    """Add VMRs, memory objects and mapped segments, and what joins them.

    PD row of process p is p + 1: row 0 is the kernel. O(VMAs + runs).
    """
    owners = owners_of(snap)
    vmr = _add_regions(parts, snap, owners)
    _add_memory_objects(parts, snap, vmr, granularity)
    _add_objects(parts, snap, owners)
    _add_unseen(parts, snap)


def owners_of(snap: Snapshot) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(process, mm) pairs of processes whose address space is known."""
    mm = snap["process_mm"]
    process = np.flatnonzero(mm >= 0)
    return process, mm[process].astype(np.int64)


def _add_regions(
    parts: Parts, snap: Snapshot, owners: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> int:
    """VMRs and their address spaces; returns the node of VMA 0."""
    indptr = snap["mm_vma_indptr"]
    n_mm, n_vma = len(indptr) - 1, len(snap["vma_start"])
    sizes = np.diff(indptr)
    number = snap["process_pid"][snap["mm_process"]]
    page = int(snap.host.get("page_size", 4096))

    def vma_note(i: int) -> Mapping[str, Any]:
        start, end = int(snap["vma_start"][i]), int(snap["vma_end"][i])
        note = {
            "va": hex(start),
            "vmr_type": VmaKind.NAMES[snap["vma_kind"][i]],
            "num_pages": str((end - start) // page),
            "page_size": str(page),
        }
        if snap["vma_path"][i] >= 0:
            note["path"] = snap.text(snap["vma_path"][i])
        return note

    index = np.arange(n_vma) - np.repeat(indptr[:-1], sizes) + 1
    vmr = parts.nodes(
        Kind.RESOURCE, "VMR", Block("VMR_{}_{}", (np.repeat(number, sizes), index)), note=vma_note
    )
    space = parts.nodes(Kind.SPACE, "VMR", Block("VMR_SPACE_{}", (number,)))
    in_space = parts.rule("a VMA is part of its address space", "/proc/pid/maps")
    parts.edges.append(
        Edges.of(
            np.arange(vmr, vmr + n_vma),
            np.repeat(np.arange(space, space + n_mm), sizes),
            Edge.SUBSET,
            rule=in_space,
        )
    )
    process, mm = owners
    own = parts.rule("a process uses its own address space", "/proc/pid/maps")
    holder = np.repeat(process + 1, sizes[mm])
    held = np.repeat(indptr[mm], sizes[mm]) + ranges(sizes[mm])
    perm = ANY | (snap["vma_prot"][held] & (R | W | X))
    parts.edges.append(Edges.of(holder, held + vmr, Edge.HOLD, perm=perm, rule=own))
    parts.edges.append(Edges.of(process + 1, mm + space, Edge.HOLD, perm=ALL, rule=own))
    asks = parts.rule("the kernel serves page faults and maps memory", "the kernel itself")
    parts.edges.append(
        Edges.of(
            process + 1, np.zeros(len(process)), Edge.REQUEST, label=parts.label("VMR"), rule=asks
        )
    )
    parts.edges.append(
        Edges.of(np.zeros(n_mm), np.arange(space, space + n_mm), Edge.HOLD, flags=SERVER, rule=asks)
    )
    memory = parts.nodes(Kind.SPACE, "MO", Block("MO_SPACE_{}", (np.array([1]),)))
    backs = parts.rule("address spaces map physical memory", "/proc/pid/pagemap")
    parts.edges.append(
        Edges.of(np.arange(space, space + n_mm), np.full(n_mm, memory), Edge.MAP, rule=backs)
    )
    parts.edges.append(Edges.of([0], [memory], Edge.HOLD, flags=SERVER, rule=backs))
    return vmr


def ranges(sizes: NDArray[Any]) -> NDArray[np.int64]:
    """0 .. sizes[0]-1, 0 .. sizes[1]-1, ... end to end."""
    ends = np.cumsum(sizes, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    ranges: NDArray[np.int64] = np.arange(total) - np.repeat(ends - sizes, sizes)
    return ranges


def _pieces(
    snap: Snapshot, granularity: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64] | None]:
    """Memory objects as (class, pages, first frame) pieces of classes."""
    if granularity == "classes":
        return np.arange(len(snap["class_pages"])), snap["class_pages"], None
    counts = np.diff(snap["class_frame_indptr"])
    of = np.repeat(np.arange(len(counts)), counts)
    pfn = snap["frame_pfn"]
    if granularity == "pages":
        return of, np.ones(len(pfn), np.int64), pfn
    order = np.lexsort((pfn, of))
    of, pfn = of[order], pfn[order]
    starts = np.ones(len(pfn), bool)
    starts[1:] = (of[1:] != of[:-1]) | (pfn[1:] != pfn[:-1] + np.uint64(1))
    at = np.flatnonzero(starts)
    return of[at], np.diff(np.append(at, len(pfn))), pfn[at]


def _runs_of_one_prot(
    snap: Snapshot, source: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Runs of each class, cut where the permissions of neighbouring regions differ.

    A run of the snapshot goes over the border of two kinds of VMA where both stand at it.
    """
    indptr, first, last = snap["class_run_indptr"], snap["run_first"], snap["run_last"]
    prot = snap["vma_prot"][source]
    cuts = np.flatnonzero(prot[1:] != prot[:-1]) + 1  # a region that differs from the one before
    lo, hi = np.searchsorted(cuts, first, "right"), np.searchsorted(cuts, last, "right")
    pieces = hi - lo + 1
    starts = np.concatenate([[0], np.cumsum(pieces)])
    new_first, new_last = np.repeat(first, pieces), np.repeat(last, pieces)
    nth = ranges(pieces)
    cut = np.repeat(lo, pieces) + nth
    inner = nth > 0
    new_first[inner] = cuts[cut[inner] - 1]
    inner = nth < np.repeat(pieces, pieces) - 1
    new_last[inner] = cuts[cut[inner]] - 1
    return starts[indptr], new_first, new_last


def _add_memory_objects(parts: Parts, snap: Snapshot, vmr: int, granularity: str) -> None:
    page = int(snap.host.get("page_size", 4096))
    of, pages, pfn = _pieces(snap, granularity)

    def mo_note(i: int) -> Mapping[str, Any]:
        kind = FrameKind.NAMES[snap["class_kind"][of[i]]]
        note = {"num_pages": str(int(pages[i])), "page_size": str(page), "frames": kind}
        if pfn is not None:
            note["pa"] = hex(int(pfn[i]) * page)
        return note

    mo = parts.nodes(
        Kind.RESOURCE,
        "MO",
        Block("MO_{}_{}", (np.ones(len(of), np.int64), np.arange(1, len(of) + 1))),
        pages=(pages * (page / 4096)).astype(np.float64),
        note=mo_note,
    )
    memory = mo - 1  # MO_SPACE_1 was added just before
    backs = parts.rule("a frame is part of physical memory", "/proc/pid/pagemap")
    parts.edges.append(
        Edges.of(np.arange(mo, mo + len(of)), np.full(len(of), memory), Edge.SUBSET, rule=backs)
    )
    # Region order back to VMA rows.
    source = np.empty(len(snap["vma_region"]), np.int32)
    source[snap["vma_region"]] = np.arange(len(source))
    indptr, first, last = _runs_of_one_prot(snap, source)
    sizes = np.diff(indptr)
    kind = snap["class_kind"]
    members = np.bincount(np.repeat(np.arange(len(sizes)), sizes), last - first + 1, len(sizes))
    only = (members == 1) & (kind == FrameKind.ANON)
    prot = snap["vma_prot"][source[first]] if len(first) else np.empty(0, np.uint8)
    shared = (prot & SHARED) != 0
    own = np.repeat(only, sizes)
    passed = np.where(shared | own, prot & (R | W | X), prot & (R | X)) | ANY
    perm = passed.astype(np.uint8)
    rules = np.array(
        [
            parts.rule(
                "a private mapping reads a frame that others map; a write would copy it",
                "/proc/pid/maps, /proc/pid/pagemap; do_wp_page() in mm/memory.c",
            ),
            parts.rule(
                "a shared mapping passes the permissions of its VMA",
                "/proc/pid/maps, /proc/pid/pagemap",
            ),
            parts.rule(
                "an anonymous frame that no other VMA maps is written in place",
                "/proc/pid/maps, /proc/pid/pagemap",
            ),
        ],
        np.int16,
    )
    rule = rules[np.where(shared, 1, np.where(own, 2, 0))]
    # Each piece repeats the runs of its class.
    n = sizes[of]
    run = np.repeat(indptr[of], n) + ranges(n)
    parts.runs = Runs(
        (source + vmr).astype(np.int32),
        first[run],
        last[run],
        np.repeat(np.arange(mo, mo + len(of), dtype=np.int32), n),
        perm[run],
        rule[run],
    )


def _add_objects(
    parts: Parts, snap: Snapshot, owners: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> None:
    """SHM resources: SysV segments and shared anonymous memory. Files are of relations.files."""
    kind, dev = snap["object_kind"], snap["object_dev"]
    node = np.full(len(kind), -1, np.int64)
    for what, template in ((FileKind.SYSV, "SHM_{}_{}"), (FileKind.SHARED_ANON, "SHM_anon_{}_{}")):
        rows = np.flatnonzero(kind == what)
        home = snap["object_ipc"][rows] if what == FileKind.SYSV else None
        names: tuple[NDArray[Any], ...] = (
            (device_names(dev[rows]) if home is None else _ipc_names(snap, home)),
            snap["object_inode"][rows],
        )
        first = parts.nodes(Kind.RESOURCE, "SHM", Block(template, names), note=_note(snap, rows))
        node[rows] = first + np.arange(len(rows))
    add_object_holds(parts, snap, owners, node)


def device_names(dev: NDArray[np.uint64]) -> NDArray[np.object_]:
    """Device numbers as maps and mountinfo write them, but in hexadecimal both."""
    names = np.empty(len(dev), object)
    names[:] = [f"{d >> 32:x}:{d & 0xFFFFFFFF:x}" for d in dev.tolist()]
    return names


def _ipc_names(snap: Snapshot, rows: NDArray[np.int32]) -> NDArray[np.object_]:
    names = np.empty(len(rows), object)
    names[:] = [
        str(int(snap["namespace_inode"][r])) if r >= 0 else f"unknown-{i}"
        for i, r in enumerate(rows.tolist())
    ]
    return names


def _note(snap: Snapshot, rows: NDArray[Any]) -> Any:
    def note(i: int) -> Mapping[str, Any]:
        path = snap["object_path"][rows[i]]
        return {"path": snap.text(path)} if path >= 0 else {}

    return note


def add_object_holds(
    parts: Parts,
    snap: Snapshot,
    owners: tuple[NDArray[np.int64], NDArray[np.int64]],
    node: NDArray[np.int64],
) -> None:
    """Add the holds of mapped objects.

    Parameters
    ----------
    owners
        Of ``owners_of``.
    node
        (objects,) node of each, -1 to pass it over.

    """
    of = snap["vma_object"]
    vma = np.flatnonzero(of >= 0)
    vma = vma[node[of[vma]] >= 0]
    mm_of_vma = np.repeat(np.arange(len(snap["mm_process"])), np.diff(snap["mm_vma_indptr"]))
    prot = snap["vma_prot"][vma]
    # A private mapping reads what others write; what it writes is its own copy.
    mask = np.where((prot & SHARED) != 0, prot & (R | W | X), prot & (R | X)) | ANY
    # One number for each of (address space, node, permissions, sure): rows sort ten times slower.
    n_nodes = int(node.max(initial=0)) + 1
    held_by = mm_of_vma[vma] * n_nodes + node[of[vma]]
    key = np.sort(held_by << 9 | mask.astype(np.int64) << 1 | snap["object_sure"][of[vma]])
    key = key[np.diff(key, prepend=-1) != 0]
    triples = (*np.divmod(key >> 9, n_nodes), key >> 1 & 255, key & 1)
    process, mm = owners
    by_mm = np.argsort(mm, kind="stable")
    lo = np.searchsorted(mm[by_mm], triples[0], "left")
    n = np.searchsorted(mm[by_mm], triples[0], "right") - lo
    holder = process[by_mm[np.repeat(lo, n) + ranges(n)]] + 1
    held, perm, sure = (np.repeat(row, n) for row in triples[1:])
    rule = parts.rule(
        "a mapped file or segment is held with the mapping's permissions, present or not",
        "/proc/pid/maps",
    )
    parts.edges.append(
        Edges.of(holder, held, Edge.HOLD, perm=np.where(sure == 1, perm, 0), maybe=perm, rule=rule)
    )


def _add_unseen(parts: Parts, snap: Snapshot) -> None:
    """What a process may map and was not read: everything, or frames that were hidden."""
    mm = snap["process_mm"]
    status = (
        np.where(mm >= 0, snap["mm_status"][mm], Status.DENIED)
        if len(snap["mm_status"])
        else (np.full(len(mm), Status.DENIED))
    )
    blind = np.flatnonzero((status != Status.READ) & (status != Status.HIDDEN)) + 1
    for node_type in ("VMR", "MO", "FILE", "SHM", "DEVICE"):
        parts.unseen_by(node_type, blind, ALL)
    # Frames are hidden: copy-on-write pages may be shared for reading; for writing, only what
    # is mapped MAP_SHARED and writable.
    hidden = np.flatnonzero(status == Status.HIDDEN)
    parts.unseen_by("MO", hidden + 1, ANY | R | X)
    prot = snap["vma_prot"]
    writable = np.flatnonzero((prot & (SHARED | W)) == SHARED | W)
    mm_of_vma = np.repeat(np.arange(len(snap["mm_process"])), np.diff(snap["mm_vma_indptr"]))
    writers = np.zeros(len(snap["mm_process"]) + 1, bool)
    writers[mm_of_vma[writable]] = True
    parts.unseen_by("MO", hidden[writers[mm[hidden]]] + 1, ALL)
