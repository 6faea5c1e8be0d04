"""Captured sharing on a farm of real processes, against pagemap read in plain Python, and
against what the processes see of each other's writes."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from children import child
from farm import Farm, frames_of

import osmosis
from _fastproc import pagemap
from osmosis.capture import memory
from osmosis.schema import FileKind, FrameKind, Status

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    with Farm(tmp_path_factory.mktemp("farm")) as one:
        yield one


def holders(snap):
    """(P, C) bool: process p maps class c, by walking the runs one by one."""
    owner = {}
    for mm in range(len(snap["mm_process"])):
        for vma in range(snap["mm_vma_indptr"][mm], snap["mm_vma_indptr"][mm + 1]):
            owner[int(snap["vma_region"][vma])] = mm
    members = {}
    for p, mm in enumerate(snap["process_mm"].tolist()):
        members.setdefault(mm, []).append(p)
    out = np.zeros((snap.n_processes, len(snap["class_pages"])), bool)
    for c in range(out.shape[1]):
        for run in range(snap["class_run_indptr"][c], snap["class_run_indptr"][c + 1]):
            for region in range(snap["run_first"][run], snap["run_last"][run] + 1):
                out[members[owner[region]], c] = True
    return out


def shared(snap):
    """Pages that each two processes both map, by (pid, pid); of one, its distinct pages."""
    has = holders(snap).astype(np.int64)
    both = (has * snap["class_pages"]) @ has.T
    pids = snap["process_pid"].tolist()
    return {
        (a, b): int(both[i, j]) for i, a in enumerate(pids) for j, b in enumerate(pids) if i <= j
    }


def brute(frames):
    pids = sorted(frames)
    return {(a, b): len(frames[a] & frames[b]) for a in pids for b in pids if a <= b}


def differing(got, want):
    return {pair: (got.get(pair), n) for pair, n in want.items() if got.get(pair) != n}


def capture_between(farm, **options):
    """(snapshot, frames): a capture during which no frame moved."""
    for _ in range(5):
        before = farm.frames()
        snap = osmosis.capture(farm.pids.values(), **options)
        if farm.frames() == before:
            return snap, before
    pytest.fail("frames of waiting processes moved five times")


MODES = {
    "one thread": {"threads": 1},
    "four threads": {"threads": 4},
    "all frames": {"frames": "all", "threads": 2},
}


@pytest.mark.parametrize("mode", MODES)
def test_shared_pages_of_every_pair(farm, mode):
    snap, frames = capture_between(farm, **MODES[mode])
    want = brute(frames)
    assert snap["process_pid"].tolist() == sorted(farm.pids.values())
    assert (snap["mm_status"] == Status.READ).all()
    assert not differing(shared(snap), want)
    assert sum(n > 300 for n in want.values()) > 50  # and it was not all empty
    # The model's answer is the same.
    model = snap.model()
    rows = [model.pd(pid).row for pid in snap["process_pid"].tolist()]
    pages = model.shared_pages().toarray()[np.ix_(rows, rows)]
    pids = snap["process_pid"].tolist()
    got = {(a, b): int(pages[i, j]) for i, a in enumerate(pids) for j, b in enumerate(pids)}
    assert not differing(got, want)
    if snap["frame_pfn"].size:
        has = holders(snap)
        sizes = np.diff(snap["class_frame_indptr"])
        assert (sizes == snap["class_pages"]).all()
        of = np.repeat(np.arange(len(sizes)), sizes)
        for p, pid in enumerate(pids):
            assert set(snap["frame_pfn"][has[p, of]].tolist()) == frames[pid]
        for granularity in ("pages", "runs"):
            finer = snap.model(memory=granularity).shared_pages().toarray()
            assert (finer[np.ix_(rows, rows)] == pages).all()


def test_without_pagemap_scan(farm, monkeypatch):
    real = memory.probe()
    assert real.scan, "this kernel has PAGEMAP_SCAN; the probe says it has not"
    monkeypatch.setattr(memory, "probe", lambda: replace(real, scan=False))
    # A few: each has 64 GiB of entries, one by one.
    few = [pid for name, pid in farm.pids.items() if name in ("fork0", "fork1", "memfd_shared")]
    snap = osmosis.capture(few)
    want = brute({pid: frames_of(pid) for pid in few})
    assert not differing(shared(snap), want)


SPARSE = """
import mmap, random
r, area = random.Random(3), mmap.mmap(-1, 60000 * 4096, mmap.MAP_PRIVATE)
at = 0
while at < 60000:
    area[at * 4096] = 1
    at += r.choice([1, 1, 2, 254, 255, 256, 257, 511, 512, 2047, 2048, 2049, r.randrange(6000)])
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
base = ctypes.addressof(ctypes.c_char.from_buffer(area))
for first in range(700, 58900, 1900):  # cut it into VMAs that touch
    ok(libc.mprotect(base + first * 4096, r.choice([1, 255, 300, 1000]) * 4096, 1))
"""


def test_leaping_over_what_is_absent_misses_nothing():
    with child(SPARSE) as c:
        vmas = [
            [int(side, 16) for side in line.split()[0].split("-")]
            for line in Path(f"/proc/{c.pid}/maps").read_text(errors="replace").splitlines()
        ]
        vmas = np.array([v for v in vmas if v[0] < 1 << 63], np.uint64)
        start, end = (np.ascontiguousarray(side) for side in vmas.T)
        found = []
        for scan, room in ((False, 1 << 17), (True, 1 << 17), (True, 2048), (False, 2048)):
            mine, counts = [[] for _ in vmas], np.zeros((len(vmas), 3), np.int64)
            entries, indptr = np.empty(room, np.uint64), np.empty(len(vmas) + 1, np.int64)
            status, vma, page = pagemap.FULL, 0, 0
            with open(f"/proc/{c.pid}/pagemap", "rb") as file:
                while status == pagemap.FULL:
                    status, vma, page, _ = pagemap.read_populated(
                        file.fileno(), start, end, np.zeros(len(vmas), np.uint8), entries,
                        indptr, counts, vma, page, zero_pfn=2**64 - 1, huge_zero_pfn=2**64 - 1,
                        scan=scan,
                    )  # fmt: skip
                    for v, words in enumerate(mine):
                        words += entries[indptr[v] : indptr[v + 1]].tolist()
            assert status == pagemap.DONE
            found.append((mine, counts.tolist()))
        assert sum(map(len, found[0][0])) > 300
        assert all(one == found[0] for one in found)


def test_a_reservation_of_64_gib_costs_nothing(farm):
    snap = osmosis.capture([farm.pids["fork0"]])
    assert (snap["vma_end"] - snap["vma_start"]).max() > 40 << 30
    assert snap.host["seconds"] < 2


def test_counts_of_vmas_are_those_of_smaps(farm):
    """present and zero pages of each VMA against a file of its own: Rss counts no zero page."""
    for name in ("fork2", "memfd_private_written", "zygote"):
        pid = farm.pids[name]
        snap = osmosis.capture([pid])
        rss, start = {}, 0
        for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                start = int(head.split("-")[0], 16)
            elif head == "Rss:":
                rss[start] = int(line.split()[1]) // 4
        skip = {5, 6, 7}  # vdso, vvar, vsyscall
        for i, address in enumerate(snap["vma_start"].tolist()):
            if snap["vma_kind"][i] not in skip:
                assert snap["vma_present"][i] - snap["vma_zero"][i] == rss[address], hex(address)
        assert snap["vma_zero"].sum() >= 40


def test_huge_pages_are_in_use(farm):
    text = Path(f"/proc/{farm.pids['zygote']}/smaps").read_text(errors="replace")
    assert any(int(t.split()[1]) for t in text.splitlines() if t.startswith("AnonHugePages"))


def test_the_first_segments_of_two_ipc_namespaces_are_not_one(farm):
    names = ("sysv_a", "sysv_a2", "sysv_b")
    assert [farm.ask(n, "plan['shmid']") for n in names] == [0, 0, 0]
    snap = osmosis.capture(farm.pids.values())
    objects = np.flatnonzero(snap["object_kind"] == FileKind.SYSV)
    assert len(objects) == 2
    pids = snap["process_pid"].tolist()
    users = {}
    for p, mm in enumerate(snap["process_mm"].tolist()):
        of = snap["vma_object"][snap["mm_vma_indptr"][mm] : snap["mm_vma_indptr"][mm + 1]]
        for o in objects.tolist():
            if (of == o).any():
                users.setdefault(o, set()).add(pids[p])
    a, a2, b = (farm.pids[n] for n in names)
    assert sorted(users.values(), key=len) == [{b}, {a, a2}]
    model = snap.model()
    segments = {y.pid for y in model.shared_resources(a, types={"SHM"})} - {0}
    assert a2 in segments
    shared_anonymous = model.shared_resources(a, types={"SHM"}, access="W")
    assert b in {y.pid for y in shared_anonymous}  # by the zygote's MAP_SHARED memory only
    ids = set(model.common_resources(a, b, types={"SHM"}).ids)
    assert ids
    assert all("anon" in name for name in ids)


def test_writes_that_others_see(farm):
    """y is in shared_resources(x, access="W") exactly if x sees what y writes."""
    snap, _ = capture_between(farm)
    model = snap.model()
    kinds = {"MO", "FILE", "SHM"}
    said = {}
    for name, pid in farm.pids.items():
        answer = model.shared_resources(pid, types=kinds, access="W")
        said[name] = {y.pid for y in answer} - {0}
        assert not answer.unknown
    names = list(farm.pids)
    for slot, name in enumerate(names):
        farm.ask(name, f"stamp({slot}, {(slot + 1) << 32 | 0xABCDEF})")
    seen = {name: set() for name in names}
    for x in names:
        for slot, y in enumerate(names):
            if x != y and farm.ask(x, f"look({slot}, {(slot + 1) << 32 | 0xABCDEF})"):
                seen[x].add(farm.pids[y])
    wrong = {
        x: {
            "said, not seen": [n for n in names if farm.pids[n] in said[x] - seen[x]],
            "seen, not said": [n for n in names if farm.pids[n] in seen[x] - said[x]],
        }
        for x in names
        if said[x] != seen[x]
    }
    assert not wrong


def test_two_processes_in_one_address_space(need):
    with child(
        "import mmap; area = mmap.mmap(-1, 40960, mmap.MAP_PRIVATE); area[:] = b'x' * 40960"
    ) as c:
        other = c.ask("clone_vm()")
        single = c.ask("fork()")
        for _ in range(5):
            frames = {pid: frames_of(pid) for pid in (c.pid, other, single)}
            snap = osmosis.capture(frames)
            if frames == {pid: frames_of(pid) for pid in frames}:
                break
        assert frames[c.pid] == frames[other]
        assert not differing(shared(snap), brute(frames))
        rows = {pid: row for row, pid in enumerate(snap["process_pid"].tolist())}
        mm = snap["process_mm"]
        assert mm[rows[c.pid]] == mm[rows[other]] != mm[rows[single]]
        assert len(snap["mm_process"]) == 2
        model = snap.model()
        assert {y.pid for y in model.shared_resources(c.pid, types="MO", access="W")} - {0} == {
            other
        }
        assert {y.pid for y in model.shared_resources(other, types="MO", access="W")} - {0} == {
            c.pid
        }
        assert {y.pid for y in model.shared_resources(single, types="MO", access="W")} == {0}
        assert model.shares(c.pid, single, types="MO")  # copy on write: for reading


def test_merged_pages_are_shared_for_reading_only(need):
    """KSM, if it can be switched on here; it is left as it was."""
    run, sleep, scan = (
        Path("/sys/kernel/mm/ksm", n) for n in ("run", "sleep_millisecs", "pages_to_scan")
    )
    need(run.exists(), "this kernel has no KSM")
    old = [(path, path.read_text()) for path in (sleep, scan, run)]
    fill = "import mmap; a = mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE); a.madvise(12)\n"
    fill += "for p in range(64): a[p * 4096 : p * 4096 + 8] = (p % 16 + 1).to_bytes(8, 'little')"
    try:
        for path, text in ((sleep, "0"), (scan, "20000"), (run, "1")):
            path.write_text(text)
        with child(fill) as a, child(fill) as b:
            scans = int(Path("/sys/kernel/mm/ksm/full_scans").read_text())
            for _ in range(3000):
                if int(Path("/sys/kernel/mm/ksm/full_scans").read_text()) > scans + 3:
                    break
                a.ask("time.sleep(0.01)")
            run.write_text("0")
            frames = {c.pid: frames_of(c.pid) for c in (a, b)}
            snap = osmosis.capture(frames)
            assert not differing(shared(snap), brute(frames))
            has = holders(snap)
            ksm = snap["class_kind"] == FrameKind.KSM
            need(ksm.any(), "KSM merged nothing in half a minute")
            assert snap["class_pages"][ksm & has.all(axis=0)].sum() == 16
            model = snap.model()
            assert {y.pid for y in model.shared_resources(a.pid, types="MO", access="W")} == {0}
            assert b.pid in {y.pid for y in model.shared_resources(a.pid, types="MO")}
    finally:
        run.write_text("2")  # unmerge
        for path, text in old:
            path.write_text(text)


HUGE = """
MB2 = 1 << 21
libc.mmap.restype = libc.shmat.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
def area(flags):
    at = libc.mmap(None, 2 * MB2, 3, flags | 0x40000, -1, 0)  # MAP_HUGETLB
    assert at != ctypes.c_void_p(-1).value
    return at
def put(at, value):
    ctypes.c_uint64.from_address(at).value = value
shared, private = area(0x21), area(0x22)
put(shared, 1); put(private, 1); put(private + MB2, 1)
def first_segment():
    unshare(CLONE_NEWIPC)
    key = ok(libc.shmget(0, MB2, 0o1600 | 0o4000))  # SHM_HUGETLB
    put(libc.shmat(key, None, 0), 1)
    assert key == 0
"""


def test_pages_of_hugetlb(need):
    """Private and shared huge pages of a family, and a first SysV segment of huge pages each."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    old = pool.read_text()
    try:
        pool.write_text("12")
        need(int(pool.read_text()) >= 12, "no room for 12 huge pages")
        with child(HUGE) as c:
            kids = [c.ask("fork(first_segment)"), c.ask("fork(lambda: put(private, 2))")]
            kids.append(c.ask("fork(first_segment)"))
            for _ in range(5):
                frames = {pid: frames_of(pid) for pid in (c.pid, *kids)}
                snap = osmosis.capture(frames)
                if frames == {pid: frames_of(pid) for pid in frames}:
                    break
            assert not differing(shared(snap), brute(frames))
            assert len(frames[c.pid] & frames[kids[1]]) >= 1024
            objects = np.flatnonzero(snap["object_kind"] == FileKind.SYSV)
            assert len(objects) == 2
            assert (snap["object_inode"][objects] == 0).all()
            model = snap.model()
            common = set(model.common_resources(kids[0], kids[2], types={"SHM"}).ids)
            assert not common
            assert model.shares(kids[0], kids[2], access="W")  # the shared area
    finally:
        pool.write_text(old)


def test_a_file_mapped_by_a_strange_name(tmp_path):
    names = [b"a b\nc", b"x (deleted)", b"\xff\xfe", b"[vdso]", b"SYSV00000000"]
    paths = [bytes(tmp_path) + b"/" + name for name in names]
    for path in paths:
        with open(path, "wb") as file:
            file.write(b"x" * 4096)
    code = (
        f"import mmap; maps = [mmap.mmap(os.open(p, 0), 4096, mmap.MAP_SHARED, 1) for p in {paths}]"
    )
    with child(code) as c:
        snap = osmosis.capture([c.pid])
        found = {snap.bytes(int(i)) for i in snap["vma_path"]}
        assert set(paths) <= found
        of = {snap.bytes(int(snap["vma_path"][i])): i for i in range(len(snap["vma_path"]))}
        for path in paths:
            o = snap["vma_object"][of[path]]
            assert snap["object_kind"][o] == FileKind.FILE
            assert snap["object_inode"][o] == os.stat(path).st_ino


def test_devices_are_devices():
    code = (
        "import mmap; z = mmap.mmap(os.open('/dev/zero', 2), 4096, mmap.MAP_PRIVATE, 3); z[0] = 1"
    )
    with child(code) as c:
        snap = osmosis.capture([c.pid])
        path = [snap.bytes(int(i)) for i in snap["object_path"]]
        at = path.index(b"/dev/zero")
        assert snap["object_kind"][at] == FileKind.DEVICE
        assert snap["object_rdev"][at] == 1 << 32 | 5
        assert all(snap["object_kind"][i] != FileKind.DEVICE for i in range(len(path)) if i != at)


def test_as_an_ordinary_user_the_sharing_of_files_is_still_known(need):
    """No frame numbers: the ledger says so, and none of them is taken for frame 0."""
    code = (
        "kid = fork()\n"
        "s = osmosis.capture([os.getpid(), kid])\n"
        "out = [s.n_processes, len(s['class_pages']), len(s['object_kind']), "
        "sorted({r.status for r in s.coverage if r.source == 'memory'}), "
        "[r.status for r in s.coverage if r.source == 'pagemap']]"
    )
    before = (
        "import osmosis, json; osmosis.capture([os.getpid()])\n"
        "raw('setresgid', 65534, 65534, 65534); raw('setresuid', 65534, 65534, 65534); prctl(4, 1)"
    )
    with child(before) as c:
        c.do(code)
        n, classes, objects, status, pagemap = c.ask("out")
        assert (n, classes, status, pagemap) == (2, 0, ["hidden"], ["hidden"])
        assert objects > 3
