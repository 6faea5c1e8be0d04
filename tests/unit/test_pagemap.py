"""pagemap reading and decoding, fed by a memfd, against a plain-Python twin."""

import array
import os
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import oracle_memory as oracle
from _fastproc import pagemap
from _fastproc.frames import FrameIndex
from _fastproc.partition import Partition
from oracle_memory import NONE, entry, swap_entry

PAGE = 4096
CHUNK = 2048
MARKED = frozenset(range(3, 1000, 7))  # frames that are KSM's
PAGES = 3 * CHUNK
FILLED = [entry(1 + i) for i in range(PAGES)]


def memfd(words):
    fd = os.memfd_create("pagemap")
    os.write(fd, array.array("Q", words).tobytes())
    return fd


@pytest.fixture(scope="module")
def kpageflags():
    words = [1 << 21 if pfn in MARKED else 1 << 5 for pfn in range(1000)]
    fd = memfd(words)
    yield fd
    os.close(fd)


def read(fd, vmas, *, room=CHUNK, scan=False, stop=1000, **options):
    """Entries by VMA, counts, and how it ended; goes on as long as the buffer is full."""
    start = np.array([first * PAGE for first, *_ in vmas], np.uint64)
    end = np.array([last * PAGE for _, last, _ in vmas], np.uint64)
    kind = np.array([kind for *_, kind in vmas], np.uint8)
    entries = np.zeros(room, np.uint64)
    indptr = np.full(len(vmas) + 1, -7, np.int64)
    counts = np.zeros((len(vmas), 3), np.int64)
    out = [[] for _ in vmas]
    vma = page = rounds = 0
    while True:
        status, vma, page, n = pagemap.read_populated(
            fd, start, end, kind, entries, indptr, counts, vma, page,
            **{"zero_pfn": NONE, "huge_zero_pfn": NONE, "scan": scan, **options},
        )  # fmt: skip
        assert indptr[0] == 0
        assert indptr[-1] == n
        assert (np.diff(indptr) >= 0).all()
        for v, mine in enumerate(out):
            mine += entries[indptr[v] : indptr[v + 1]].tolist()
        rounds += 1
        if status != pagemap.FULL or rounds == stop:
            return out, [tuple(row) for row in counts.tolist()], status, rounds


def expect(words, vmas, **options):
    return oracle.populated(dict(enumerate(words)), vmas, **options)


def check(words, vmas, *, room=CHUNK, kpageflags=-1, **options):
    fd = memfd(words)
    try:
        got, counts, status, rounds = read(fd, vmas, room=room, kpageflags=kpageflags, **options)
    finally:
        os.close(fd)
    options = {
        {"zero_pfn": "zero", "huge_zero_pfn": "huge_zero"}.get(k, k): v for k, v in options.items()
    }
    ksm = MARKED if kpageflags >= 0 else frozenset()
    assert (got, counts) == expect(words, vmas, ksm=ksm, **options)
    assert status == pagemap.DONE
    return rounds


def test_each_kind_of_entry():
    words = [
        entry(7),
        entry(8, "file"),
        entry(9, "exclusive"),
        entry(2**55 - 1, "file", "exclusive"),
        entry(5),  # the zero page
        entry(600),  # the huge zero page: 600 .. 1111
        entry(1111),
        entry(1112),
        0,
        swap_entry(0, 77),
        swap_entry(22, 2**50 - 1),
        swap_entry(23, 77),
        swap_entry(31, 77),
        swap_entry(0, 77, "guard"),
        swap_entry(30, 0, "uffd"),
        entry(0, "absent", "uffd"),
        entry(0, "absent", "file"),
    ]
    vmas = [(0, len(words), oracle.V_ANON)]
    for swap in (False, True):
        check(words, vmas, zero_pfn=5, huge_zero_pfn=600, swap=swap)
    got, counts = expect(words, vmas, zero=5, huge_zero=600, swap=True)
    assert counts == [(8, 2, 3)]
    assert [w % 2**55 for w in got[0]] == [7, 8, 9, 2**55 - 1, 1112, 77 << 5, 22 | (2**50 - 1) << 5]


def test_the_kernels_own_frames_are_left_out():
    words = [entry(1, "file"), entry(2, "file"), entry(3), entry(4), entry(5, "file"), entry(6)]
    vmas = [
        (0, 1, oracle.V_VVAR),
        (1, 2, oracle.V_VDSO),
        (2, 3, oracle.V_VDSO),  # written through ptrace: a copy of its own
        (3, 4, oracle.V_VVAR),
        (4, 6, oracle.V_FILE),
    ]
    check(words, vmas)
    assert [len(mine) for mine in expect(words, vmas)[0]] == [0, 0, 1, 0, 2]


def test_vsyscall_is_passed_over_wherever_it_is():
    words = [entry(1), entry(2), entry(3)]
    check(words, [(0, 1, oracle.V_ANON), (1, 2, oracle.V_VSYSCALL), (2, 3, oracle.V_ANON)])
    top = 0xFFFFFFFFFF600000 // PAGE
    check(words, [(0, 3, oracle.V_ANON), (top, top + 1, oracle.V_VSYSCALL)])
    check(words, [(top, top + 1, oracle.V_VSYSCALL)])
    check(words, [])


def test_a_short_read_is_not_an_answer():
    fd = memfd([entry(1), entry(2)])
    *_, status, _ = read(fd, [(0, 3, 0)])
    os.close(fd)
    assert status == pagemap.SHORT
    fd = memfd([])
    assert read(fd, [(0, 1, 0)])[2] == pagemap.SHORT
    os.close(fd)


@pytest.mark.parametrize("cut", [0, 1, 2047, 2048, 2049, 4095])
def test_short_at_every_border(cut):
    fd = memfd([entry(1 + i) for i in range(cut)])
    assert read(fd, [(0, 2 * CHUNK, 0)])[2] == (pagemap.SHORT)
    os.close(fd)


def test_errors_are_the_kernels():
    with pytest.raises(OSError, match="Bad file"):
        read(-1, [(0, 1, 0)])
    r, w = os.pipe()
    with pytest.raises(OSError, match="Illegal seek"):
        read(r, [(0, 1, 0)])
    os.close(r)
    os.close(w)


def test_arguments_that_do_not_fit_are_refused():
    good = {
        "start": np.array([0, PAGE], np.uint64),
        "end": np.array([PAGE, 2 * PAGE], np.uint64),
        "kind": np.zeros(2, np.uint8),
        "entries": np.zeros(CHUNK, np.uint64),
        "indptr": np.zeros(3, np.int64),
        "counts": np.zeros((2, 3), np.int64),
        "vma": 0,
        "page": 0,
        "zero_pfn": 0,
        "huge_zero_pfn": 0,
    }
    bad = {
        "start": [np.array([PAGE, 0], np.uint64), np.zeros(3, np.uint64)],
        "end": [np.array([0, 2 * PAGE], np.uint64), np.array([2 * PAGE] * 2, np.uint64)],
        "kind": [np.zeros(1, np.uint8)],
        "entries": [np.zeros(CHUNK - 1, np.uint64)],
        "indptr": [np.zeros(2, np.int64)],
        "counts": [np.zeros((1, 3), np.int64), np.zeros((2, 2), np.int64)],
        "vma": [-1, 3],
    }
    fd = memfd([entry(1), entry(2)])
    assert pagemap.read_populated(fd, **good)[0] == pagemap.DONE
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError):  # noqa: PT011
                pagemap.read_populated(fd, **{**good, name: value})
    os.close(fd)


def test_where_pagemap_scan_is_missing_it_is_seen():
    fd = memfd([entry(1)])
    assert not pagemap.has_pagemap_scan(fd)
    os.close(fd)


words = st.one_of(
    st.just(0),
    st.builds(
        lambda pfn, marks: entry(pfn, *marks),
        st.one_of(st.integers(1, 999), st.integers(0, 2**55 - 1)),
        st.sets(st.sampled_from(["file", "exclusive", "uffd"])),
    ),
    st.builds(
        lambda kind, offset, marks: swap_entry(kind, offset, *marks),
        st.integers(0, 31),
        st.integers(0, 2**50 - 1),
        st.sets(st.sampled_from(["file", "guard", "uffd"])),
    ),
    st.integers(0, 2**63 - 1).map(lambda w: w & ~(1 << 62)),
)


@st.composite
def address_spaces(draw):
    """(words, vmas): blocks of like entries, VMAs with borders anywhere, chunk's included."""
    blocks = draw(st.lists(st.tuples(words, st.integers(1, 900)), min_size=1, max_size=16))
    out = [word for word, n in blocks for _ in range(n)][:PAGES]
    for at, word in draw(st.lists(st.tuples(st.integers(0, len(out) - 1), words), max_size=20)):
        out[at] = word
    borders = st.one_of(
        st.integers(0, len(out)), st.sampled_from([255, 256, 257, 2047, 2048, 2049, 4096])
    )
    cuts = sorted({b for b in draw(st.lists(borders, max_size=12)) if b <= len(out)})
    vmas = []
    for lo, hi in pairwise(cuts):
        kind = draw(st.sampled_from([*range(9), None, 0, 0]))
        if kind is not None:
            vmas.append((lo, hi, kind))
    return out, vmas


@settings(max_examples=150, deadline=None)
@given(space=address_spaces(), swap=st.booleans(), zero=st.integers(1, 900), ksm=st.booleans())
def test_agrees_with_the_twin(space, swap, zero, ksm, kpageflags):
    words, vmas = space
    options = {"zero_pfn": zero, "huge_zero_pfn": zero + 50, "huge_pages": 100, "swap": swap}
    check(words, vmas, kpageflags=kpageflags if ksm else -1, **options)


@settings(max_examples=100, deadline=None)
@given(address_spaces(), st.integers(CHUNK, CHUNK + 5))
@example((FILLED, [(0, 5, 0), (5, 2048, 1), (2048, 6144, 0)]), CHUNK)
@example((FILLED, [(0, 2048, 0), (2048, 2049, 7), (3000, 6144, 0)]), CHUNK)
def test_goes_on_where_the_buffer_was_full(space, room):
    check(*space, room=room)


def test_a_full_buffer_is_full():
    assert check([entry(1 + i) for i in range(PAGES)], [(0, PAGES, 0)]) == PAGES // CHUNK


@settings(max_examples=50, deadline=None)
@given(address_spaces(), st.integers(0, 5))
def test_counts_are_added_to(space, before):
    words, vmas = space
    fd = memfd(words)
    start = np.array([first * PAGE for first, *_ in vmas], np.uint64)
    end = np.array([last * PAGE for _, last, _ in vmas], np.uint64)
    counts = np.full((len(vmas), 3), before, np.int64)
    pagemap.read_populated(
        fd, start, end, np.array([k for *_, k in vmas], np.uint8), np.zeros(2 * PAGES, np.uint64),
        np.zeros(len(vmas) + 1, np.int64), counts, 0, 0, zero_pfn=NONE, huge_zero_pfn=NONE,
        scan=False,
    )  # fmt: skip
    os.close(fd)
    assert counts.tolist() == [[n + before for n in row] for row in expect(words, vmas)[1]]


# -- read_frames


def read_frames(index, words, vmas, row=0, when=0, *, kpageflags=-1, before=0):
    """(status, counts) of reading one address space into the index; VMA v is of kind v % 3."""
    fd = memfd(words)
    start = np.array([first * PAGE for first, *_ in vmas], np.uint64)
    end = np.array([last * PAGE for _, last, _ in vmas], np.uint64)
    kinds = np.array([k for *_, k in vmas], np.uint8)
    counts = np.full((len(vmas), 3), before, np.int64)
    number = np.arange(len(vmas))
    try:
        status = pagemap.read_frames(
            fd, start, end, kinds, np.where(number % 5 == 4, 8, 6).astype(np.uint8),
            (number % 3).astype(np.int32), counts, index, row, when,
            scan=False, kpageflags=kpageflags,
        )  # fmt: skip
    finally:
        os.close(fd)
    return status, [tuple(line) for line in counts.tolist()]


def sets_of(found):
    """Frames by (kind, rows)."""
    row_of = {int(r): row for row, r in enumerate(found.region) if r >= 0}
    out = {}
    for c, (lo, hi) in enumerate(pairwise(found.indptr.tolist())):
        rows = [
            row_of[r]
            for a, b in zip(found.first[lo:hi].tolist(), found.last[lo:hi].tolist(), strict=True)
            for r in range(a, b + 1)
        ]
        out[int(found.kind[c]), frozenset(rows)] = int(found.pages[c])
    return out


def check_frames(spaces, *, kpageflags=-1, **options):
    """Address spaces (words, vmas), read one after the other, against the twins."""
    index, twin, row = FrameIndex(**options), oracle.Frames(), 0
    names = {"zero_pfn": "zero", "huge_zero_pfn": "huge_zero"}
    rules = {names.get(k, k): v for k, v in options.items()}
    rules["ksm"] = MARKED if kpageflags >= 0 else frozenset()
    for when, (words, vmas) in enumerate(spaces):
        got = read_frames(index, words, vmas, row, when, kpageflags=kpageflags)
        kept, counts = expect(words, vmas, **rules)
        assert got == (pagemap.DONE, counts)
        for v, mine in enumerate(kept):
            twin.visit(row + v, v % 5 == 4, mine)
        row += len(vmas)
    found = Partition([index], np.ones(row, np.uint8))
    assert sets_of(found) == twin.classes(set(range(row)))
    assert found.replaced == len(twin.past)


@settings(max_examples=100, deadline=None)
@given(
    spaces=st.lists(address_spaces(), min_size=1, max_size=3),
    again=st.integers(1, 2),
    swap=st.booleans(),
    zero=st.integers(1, 900),
    ksm=st.booleans(),
)
@example(
    spaces=[(FILLED, [(0, 5, 0), (5, 2048, 1), (2048, 6144, 0)])],
    again=2, swap=False, zero=7, ksm=False,
)  # fmt: skip
@example(
    spaces=[(FILLED, [(0, 2048, 0), (2048, 2049, 7), (3000, 6144, 0)])],
    again=1, swap=False, zero=7, ksm=False,
)  # fmt: skip
def test_frames_agree_with_the_twin(spaces, again, swap, zero, ksm, kpageflags):
    options = {"zero_pfn": zero, "huge_zero_pfn": zero + 50, "huge_pages": 100, "swap": swap}
    check_frames(spaces * again, kpageflags=kpageflags if ksm else -1, **options)


def test_frames_of_the_kernel_and_of_vsyscall_are_left_out():
    words = [entry(1, "file"), entry(2, "file"), entry(3), entry(4), entry(5, "file"), entry(6)]
    vmas = [(0, 1, 6), (1, 2, 5), (2, 3, 5), (3, 4, 6), (4, 5, 7), (5, 6, 0)]
    top = 0xFFFFFFFFFF600000 // PAGE
    check_frames([(words, vmas), (words, [*vmas, (top, top + 1, 0)]), ([], [])])


@pytest.mark.parametrize("cut", [0, 1, 2047, 2048, 2049, 4095])
def test_frames_of_a_short_read_can_be_discarded(cut):
    """What was read of it is indexed, and no later page is taken to be its own."""
    index = FrameIndex()
    vmas = [(0, 3000, 0), (3000, 2 * CHUNK, 0)]
    assert read_frames(index, FILLED, vmas)[0] == pagemap.DONE
    assert read_frames(index, FILLED[:cut], vmas, 2, 1)[0] == pagemap.SHORT
    assert read_frames(index, FILLED, vmas, 4, 2)[0] == pagemap.DONE
    found = Partition([index], np.array([1, 1, 0, 0, 1, 1], np.uint8))
    sizes = {
        (oracle.ANON, frozenset({0, 4})): 3000,
        (oracle.ANON, frozenset({1, 5})): 2 * CHUNK - 3000,
    }
    assert sets_of(found) == sizes
    done = cut // CHUNK * CHUNK  # whole chunks count
    both = Partition([index], np.ones(6, np.uint8))
    pages = sum(n for (_, rows), n in sets_of(both).items() if rows & {2, 3})
    assert pages == done


def test_frames_arguments_that_do_not_fit_are_refused():
    index = FrameIndex()
    good = {
        "start": np.array([0, PAGE], np.uint64),
        "end": np.array([PAGE, 2 * PAGE], np.uint64),
        "vma_kind": np.zeros(2, np.uint8),
        "prot": np.zeros(2, np.uint8),
        "kind": np.zeros(2, np.int32),
        "counts": np.zeros((2, 3), np.int64),
        "index": index,
        "row": 0,
        "when": 0,
    }
    bad = {
        "start": [np.array([PAGE, 0], np.uint64), np.zeros(3, np.uint64)],
        "end": [np.array([0, 2 * PAGE], np.uint64), np.array([2 * PAGE] * 2, np.uint64)],
        "vma_kind": [np.zeros(1, np.uint8)],
        "prot": [np.zeros(3, np.uint8)],
        "kind": [np.zeros(1, np.int32), np.full(2, -1, np.int32), np.full(2, 1 << 30, np.int32)],
        "counts": [np.zeros((1, 3), np.int64), np.zeros((2, 2), np.int64)],
        "row": [-1, 2**31 - 2],
    }
    fd = memfd([entry(1), entry(2)])
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError):  # noqa: PT011
                pagemap.read_frames(fd, **{**good, name: value})
    with pytest.raises(TypeError):
        pagemap.read_frames(fd, **{**good, "index": None})
    assert index.pairs == 0
    assert pagemap.read_frames(fd, **good, scan=False) == pagemap.DONE
    with pytest.raises(OSError, match="Bad file"):
        pagemap.read_frames(-1, **{**good, "row": 2})
    os.close(fd)
