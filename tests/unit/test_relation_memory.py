"""VMAs, memory objects, files and segments as edges, against the rules spelled out again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmosis.graph.graph import Edge, Kind
from osmosis.relations.build import build
from osmosis.schema import COLUMNS, FileKind, FrameKind, Status
from osmosis.snapshot import Snapshot, StringPool, empty_columns

R, W, X, SHARED, ANY = 4, 2, 1, 8, 8


def snapshot(process_mm, vmas, classes, objects=(), *, status=(), frames=()):
    """A snapshot in which vmas are (mm, prot, object), in the order of regions given by their key.

    classes: (FrameKind, pages, set of vma numbers); objects: (FileKind, dev, inode, rdev, ipc,
    sure). vmas are rows by mm; region order is the order of the list before that sort.
    """
    pool, columns = StringPool(), empty_columns()
    n, m = len(process_mm), max([*process_mm, -1]) + 1
    order = sorted(range(len(vmas)), key=lambda v: (vmas[v][0], v))
    sizes = {"process": n, "mm": m, "vma": len(vmas), "object": len(objects)}
    for name, column in COLUMNS.items():
        if column.table in sizes:
            rows = sizes[column.table]
            columns[name] = (
                np.zeros(rows + 1, column.dtype)
                if column.indptr
                else np.full(rows, -1 if column.refers else 0, column.dtype)
            )
    runs, run_ptr = [], [0]
    for *_, members in classes:
        mine = []
        for v in sorted(members):  # as few runs as there can be: they go over kinds
            if mine and mine[-1][1] == v - 1:
                mine[-1][1] = v
            else:
                mine.append([v, v])
        runs += mine
        run_ptr.append(len(runs))
    namespaces = max([o[4] for o in objects], default=-1) + 1
    columns |= {
        "process_pid": np.arange(1, n + 1) * 10,
        "process_mm": process_mm,
        "mm_process": [process_mm.index(k) for k in range(m)],
        "mm_status": list(status) or [Status.READ] * m,
        "mm_vma_indptr": np.searchsorted([vmas[v][0] for v in order], np.arange(m + 1)),
        "vma_region": order,
        "vma_start": np.arange(len(vmas)) * 4096,
        "vma_end": np.arange(1, len(vmas) + 1) * 4096,
        "vma_prot": [vmas[v][1] for v in order],
        "vma_object": [vmas[v][2] for v in order],
        "object_kind": [o[0] for o in objects],
        "object_dev": [o[1] for o in objects],
        "object_inode": [o[2] for o in objects],
        "object_rdev": [o[3] for o in objects],
        "object_ipc": [o[4] for o in objects],
        "object_sure": [o[5] for o in objects],
        "class_kind": [k for k, *_ in classes],
        "class_pages": [pages for _, pages, _ in classes],
        "class_run_indptr": run_ptr,
        "class_frame_indptr": np.concatenate([[0], np.cumsum([len(f) for f in frames])])
        if frames
        else np.zeros(len(classes) + 1),
        "frame_pfn": [pfn for of in frames for pfn in of],
        "run_first": [a for a, _ in runs],
        "run_last": [b for _, b in runs],
        "namespace_kind": np.ones(namespaces),
        "namespace_inode": np.arange(namespaces) + 4026531839,
        "namespace_id": np.zeros(namespaces),
        "namespace_owner": np.zeros(namespaces),
        "namespace_parent": np.full(namespaces, -1),
        "namespace_user": np.full(namespaces, -1),
    }
    made = {k: np.array(v, COLUMNS[k].dtype) for k, v in (columns | pool.columns()).items()}
    return Snapshot(made, {"page_size": 4096}), order


def nodes(graph, node_type, kind=Kind.RESOURCE):
    if node_type not in graph.types:
        return np.empty(0, np.int64)
    return np.flatnonzero((graph.type == graph.types.index(node_type)) & (graph.kind == kind))


def maps(graph):
    """(source, target) -> mask of every MAP edge between resources."""
    edges = graph.runs.expand()
    assert (edges.kind == Edge.MAP).all()
    assert (edges.perm == edges.maybe).all()
    pairs = list(zip(edges.src.tolist(), edges.dst.tolist(), edges.perm.tolist(), strict=True))
    assert len({pair[:2] for pair in pairs}) == len(pairs)
    return {(a, b): perm for a, b, perm in pairs}


def holds(graph, targets):
    """(holder, target) -> set of (perm, maybe)."""
    e = graph.edges
    out = {}
    for i in np.flatnonzero((e.kind == Edge.HOLD) & np.isin(e.dst, targets)).tolist():
        key = (int(e.src[i]), int(e.dst[i]))
        out.setdefault(key, set()).add((int(e.perm[i]), int(e.maybe[i])))
    return out


prots = st.integers(0, 15)


@st.composite
def hosts(draw):
    n_mm = draw(st.integers(1, 4))
    extra = draw(st.lists(st.integers(0, n_mm - 1), max_size=2))
    objects = draw(
        st.lists(
            st.tuples(
                st.sampled_from([FileKind.FILE, FileKind.SYSV, FileKind.SHARED_ANON]),
                st.integers(1, 2),
                st.integers(0, 3),
                st.just(0),
                st.just(0),  # of a namespace that is known: its name is then its identity
                st.sampled_from([1, 1, 1, 0]),
            ),
            max_size=3,
            unique_by=lambda o: (o[0], o[2]),
        )
    )
    vmas = draw(
        st.lists(
            st.tuples(st.integers(0, n_mm - 1), prots, st.integers(-1, len(objects) - 1)),
            max_size=12,
        )
    )
    classes = []
    if vmas:
        members = st.sets(st.integers(0, len(vmas) - 1), min_size=1)
        classes = draw(
            st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), members), max_size=6)
        )
    return [*range(n_mm), *extra], vmas, classes, objects


@settings(deadline=None)
@given(hosts())
def test_permissions_that_pass_to_memory_objects(host):
    process_mm, vmas, classes, objects = host
    snap, order = snapshot(process_mm, vmas, classes, objects)
    graph = build(snap)
    vmr, mo = nodes(graph, "VMR"), nodes(graph, "MO")
    assert len(vmr) == len(vmas)
    assert graph.pages[mo].tolist() == [pages for _, pages, _ in classes]
    row_of = {v: row for row, v in enumerate(order)}
    want = {}
    for c, (kind, _, members) in enumerate(classes):
        for v in members:
            prot = vmas[v][1]
            alone = kind == FrameKind.ANON and len(members) == 1
            passes = prot & 7 if prot & SHARED or alone else prot & (R | X)
            want[int(vmr[row_of[v]]), int(mo[c])] = passes | ANY
    assert maps(graph) == want
    # A process holds the VMAs of its address space, with their permissions.
    got = holds(graph, vmr)
    assert got == {
        (p + 1, int(vmr[row_of[v]])): {(prot & 7 | ANY,) * 2}
        for p, mm in enumerate(process_mm)
        for v, (of, prot, _) in enumerate(vmas)
        if of == mm
    }


def name_of(thing):
    kind, dev, inode, _, ipc, _ = thing
    if kind == FileKind.SYSV:
        return f"SHM_{ipc + 4026531839}_{inode}"
    return f"{'FILE' if kind == FileKind.FILE else 'SHM_anon'}_0:{dev:x}_{inode}"


@settings(deadline=None)
@given(hosts())
def test_permissions_of_mapped_objects(host):
    """Held with the best of what each mapping gives; of a private one, never W."""
    process_mm, vmas, classes, objects = host
    snap, _ = snapshot(process_mm, vmas, classes, objects)
    graph = build(snap)
    of = {o: graph.names.find(name_of(objects[o])) for _, _, o in vmas if o >= 0}
    assert None not in of.values()
    want = {}
    for p, mm in enumerate(process_mm):
        for owner, prot, o in vmas:
            if owner == mm and o >= 0:
                mask = (prot & 7 if prot & SHARED else prot & (R | X)) | ANY
                sure = objects[o][5] == 1
                want.setdefault((p + 1, of[o]), set()).add((mask if sure else 0, mask))
    assert holds(graph, list(of.values())) == want


def test_neighbours_in_region_order_keep_their_own_permissions():
    """One run of two kinds of VMA: a shared one and a private one of the same memfd."""
    file = (FileKind.FILE, 1, 7, 0, -1, 1)
    vmas = [(0, R | W | SHARED, 0), (1, R | W, 0), (2, R | SHARED, 0)]
    snap, _ = snapshot([0, 1, 2], vmas, [(FrameKind.FILE, 4, {0, 1, 2})], [file])
    assert len(snap["run_first"]) == 1
    model = snap.model()

    def names(pid, **options):
        return {y.pid for y in model.shared_resources(pid, **options)} - {0}

    for types in ({"MO"}, {"FILE"}, {"MO", "FILE"}):
        assert names(10, types=types, access="W") == set()
        assert names(20, types=types, access="W") == {10}
        assert names(30, types=types, access="W") == {10}
        assert names(10, types=types, access="R") == {20, 30}


def test_copy_on_write_pages_are_shared_for_reading():
    vmas = [(0, R | W, -1), (1, R | W, -1)]
    snap, _ = snapshot([0, 1], vmas, [(FrameKind.ANON, 4, {0, 1}), (FrameKind.ANON, 1, {0})])
    model = snap.model()
    assert model.shares(10, 20, types="MO")
    assert not model.shares(10, 20, types="MO", access="W")
    assert model.shared_pages().toarray()[1:, 1:].tolist() == [[5, 4], [4, 4]]


def test_two_processes_of_one_address_space_write_each_others_memory():
    snap, _ = snapshot([0, 0], [(0, R | W, -1)], [(FrameKind.ANON, 1, {0})])
    model = snap.model()
    assert model.shares(10, 20, types="MO", access="W")
    assert model.shares(20, 10, types="VMR", access="W")


@pytest.mark.parametrize(("rdev", "joined"), [((1, 5), False), ((1, 3), False), ((10, 232), True)])
def test_devices_without_state_join_nobody(rdev, joined):
    device = (FileKind.DEVICE, 5, 4, rdev[0] << 32 | rdev[1], -1, 1)
    snap, _ = snapshot([0, 1], [(0, R | W | SHARED, 0), (1, R | W | SHARED, 0)], [], [device])
    model = snap.model()
    shares = bool({y.pid for y in model.shared_resources(10)} - {0})
    assert shares == joined


def test_two_nodes_of_one_device_are_one_device():
    devices = [(FileKind.DEVICE, 5, inode, 10 << 32 | 232, -1, 1) for inode in (4, 9)]
    snap, _ = snapshot([0, 1], [(0, R | W | SHARED, 0), (1, R | W | SHARED, 1)], [], devices)
    assert snap.model().shares(10, 20, types="DEVICE", access="W")


def test_files_whose_identity_is_not_sure_are_unknown():
    file = (FileKind.FILE, 1, 7, 0, -1, 0)
    snap, _ = snapshot([0, 1], [(0, R | W | SHARED, 0), (1, R | SHARED, 0)], [], [file])
    answer = snap.model().shared_resources(20, types={"FILE"}, access="W")
    assert {y.pid for y in answer} - {0} == set()
    assert {y.pid for y in answer.unknown} - {0} == {10}


def test_what_was_not_read_is_unknown_and_not_no():
    snap, _ = snapshot(
        [0, 1, 2],
        [(0, R | W, -1), (1, R | W | SHARED, -1)],
        [],
        status=[Status.HIDDEN, Status.HIDDEN, Status.DENIED],
    )
    model = snap.model()
    assert {y.pid for y in model.shared_resources(10, types={"MO"}).unknown} - {0} == {20, 30}
    # For writing, only what is mapped MAP_SHARED and writable, or was not seen at all.
    unsure = model.shared_resources(10, types={"MO"}, access="W").unknown
    assert {y.pid for y in unsure} - {0} == {20, 30}
    unsure = model.shared_resources(20, types={"MO"}, access="W").unknown
    assert {y.pid for y in unsure} - {0} == {30}


def test_runs_and_pages_are_the_frames_that_were_kept():
    vmas = [(0, R | W, -1), (1, R | W, -1)]
    classes = [(FrameKind.ANON, 4, {0, 1}), (FrameKind.ANON, 2, {1})]
    snap, _ = snapshot([0, 1], vmas, classes, frames=[[5, 6, 7, 9], [8, 100]])
    assert len(nodes(build(snap, memory="pages"), "MO")) == 6
    graph = build(snap, memory="runs")
    assert graph.pages[nodes(graph, "MO")].tolist() == [3, 1, 1, 1]
    for memory in ("classes", "runs", "pages"):
        pages = snap.model(memory=memory).shared_pages().toarray()[1:, 1:]
        assert pages.tolist() == [[4, 4], [4, 6]]
