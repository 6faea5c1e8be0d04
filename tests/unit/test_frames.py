"""The frame index, its memory objects, and canonical(), against sets and dicts."""

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import oracle_memory as oracle
from _fastproc.classes import canonical
from _fastproc.frames import FrameIndex
from _fastproc.partition import Partition
from oracle_memory import entry, swap_entry
from osmosis.schema import FrameKind

ZERO, HUGE_ZERO = 5, 600
OPTIONS = {"zero_pfn": ZERO, "huge_zero_pfn": HUGE_ZERO, "huge_pages": 20, "swap": True}


def visit(index, regions, row=0, when=0):
    """Visit regions (kind, shared, words of all pages), all in one call; returns the counts."""
    sizes = [len(words) for *_, words in regions]
    return index.visit(
        np.array([kind for kind, *_ in regions], np.int32),
        np.array([8 | 6 if shared else 6 for _, shared, _ in regions], np.uint8),
        np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64),
        np.array([word for *_, words in regions for word in words], np.uint64),
        row,
        when,
    )


def partition(found):
    """Frames by (kind, rows), from what the partition says."""
    out = {}
    row_of = {int(r): row for row, r in enumerate(found.region) if r >= 0}
    assert sorted(row_of) == list(range(len(row_of)))
    for c in range(len(found.kind)):
        rows = set()
        runs = list(
            zip(
                found.first[found.indptr[c] : found.indptr[c + 1]].tolist(),
                found.last[found.indptr[c] : found.indptr[c + 1]].tolist(),
                strict=True,
            )
        )
        assert all(first <= last for first, last in runs)
        assert all(b + 1 < a for (_, b), (a, _) in pairwise(runs))
        for first, last in runs:
            rows |= {row_of[r] for r in range(first, last + 1)}
        key = (int(found.kind[c]), frozenset(rows))
        assert key not in out
        out[key] = int(found.pages[c])
    return out


def compare(calls, threads=1, drop=(), **options):
    """Visit and compare: each call is a list of regions, and is made by a thread in turn."""
    indexes = [FrameIndex(**options) for _ in range(threads)]
    twin = oracle.Frames()
    row = pairs = 0
    for when, regions in enumerate(calls):
        counts = visit(indexes[when % threads], regions, row, when)
        for k, (_, shared, words) in enumerate(regions):
            kept, count = oracle.populated(
                dict(enumerate(words)),
                [(0, len(words), oracle.V_ANON)],
                zero=options.get("zero_pfn", oracle.NONE),
                huge_zero=options.get("huge_zero_pfn", oracle.NONE),
                huge_pages=options.get("huge_pages", 512),
                swap=options.get("swap", False),
            )
            # The mark of KSM is the reader's: it stands in the words already.
            assert counts[k].tolist() == list(count[0])
            pairs += len(kept[0])
            twin.visit(row + k, shared, kept[0])
        row += len(regions)
    keep = {r for r in range(row) if r not in drop}
    found = Partition(indexes, np.array([r in keep for r in range(row)], bool).view(np.uint8))
    want = twin.classes(keep)
    assert partition(found) == want
    assert (found.region >= 0).tolist() == [r in keep for r in range(row)]
    assert found.replaced == len(twin.past)
    assert sum(index.pairs for index in indexes) == pairs
    # Frame numbers: each frame is where it was seen last.
    frame, of = found.frames_of(np.ones(len(found.kind), np.uint8))
    last = {key: (kind, rows & keep) for key, (kind, _, rows, _) in twin.now.items() if rows & keep}
    assert sorted(frame.tolist()) == sorted(last)
    sets = list(partition(found))
    for key, c in zip(frame.tolist(), of.tolist(), strict=True):
        assert sets[c] == (last[key][0], frozenset(last[key][1]))
    wanted = np.arange(len(found.kind)) % 2 == 0
    some, of_some = found.frames_of(wanted.view(np.uint8))
    assert sorted(some.tolist()) == sorted(frame[wanted[of]].tolist())
    assert wanted[of_some].all()
    return found


def test_kinds_are_those_of_the_schema():
    names = ("ANON", "FILE", "KSM", "HUGETLB", "SWAP", "DEVICE")
    assert [getattr(FrameKind, n) for n in names] == [getattr(oracle, n) for n in names]


@pytest.mark.parametrize("threads", [1, 3])
def test_copy_on_write_pages_of_a_fork_farm(threads):
    """All share all but what each has written."""
    base = list(range(1000, 2100))
    calls = []
    for child in range(20):
        own = {(child * 7 + i) % 1100 for i in range(child)}
        words = [
            entry(5000 + child * 100 + i % 100, "exclusive") if i in own else entry(f)
            for i, f in enumerate(base)
        ]
        calls.append([(0, False, words)])
    compare(calls, threads)


def test_a_frame_that_one_had_alone_is_never_shared():
    """Freed and taken over between two readings: nobody's neighbour, in whatever order."""
    alone, others = entry(7, "exclusive"), entry(7)
    for first, second in ((alone, alone), (alone, others), (others, alone)):
        for kind in (0, 1):
            found = compare([[(0, False, [first])], [(kind, False, [second])]])
            assert found.replaced == 1
    # After that, the ones that come do share.
    found = compare([[(0, False, [alone])], [(1, False, [others])], [(2, False, [others])]])
    assert (FrameKind.ANON, frozenset({1, 2})) in partition(found)
    # What two had before and two have after is not what four have.
    found = compare([[(0, False, [w])] for w in (others, others, alone, others, others)])
    assert set(partition(found)) == {
        (FrameKind.ANON, frozenset(rows)) for rows in ({0, 1}, {2}, {3, 4})
    }
    # A file's page that one had alone is shared by who maps it next.
    words = [entry(7, "file", "exclusive")], [entry(7, "file")]
    found = compare([[(k, False, w)] for k, w in enumerate(words)])
    assert found.replaced == 0


def test_a_region_that_is_not_kept_still_tells_that_a_frame_was_reused():
    """Its own sighting counts for nothing; the two around it are two pages."""
    words = entry(7), entry(7, "file"), entry(7)
    found = compare([[(0, False, [word])] for word in words], drop={1})
    assert set(partition(found)) == {(FrameKind.ANON, frozenset({r})) for r in (0, 2)}


def test_like_programs_by_turns_do_not_break_each_others_runs():
    """Four families of one layout: each keeps together, so that what they share are runs."""
    bases = [[entry(10_000 * f + i) for i in range(2000)] for f in range(1, 5)]
    found = compare([[(0, False, bases[k % 4])] for k in range(40)])
    assert len(found.kind) == 4
    assert len(found.first) == 4
    index = FrameIndex()
    for k in range(40):
        visit(index, [(0, False, bases[k % 4])], k, k)
    assert index.nbytes < 4 * 2000 * 12 + 4096


def test_no_region_nothing_visited():
    found = compare([])
    assert found.indptr.tolist() == [0]
    compare([[], [(0, False, [])]])
    found = Partition([], np.array([1, 0, 1], np.uint8))
    assert found.region.tolist() == [0, -1, 1]


def test_arrays_that_do_not_fit_are_refused_and_change_nothing():
    index = FrameIndex()
    i4, u1 = np.zeros(1, np.int32), np.zeros(1, np.uint8)
    words = np.array([entry(1), entry(2)], np.uint64)

    def ptr(*values):
        return np.array(values, np.int64)

    for args in (
        (np.zeros(2, np.int32), u1, ptr(0, 2), words),
        (i4 - 1, u1, ptr(0, 2), words),
        (i4 + (1 << 30), u1, ptr(0, 2), words),
        (i4, np.zeros(2, np.uint8), ptr(0, 2), words),
        (i4, u1, ptr(0), words),
        (i4, u1, ptr(0, 3), words),
        (i4, u1, ptr(-1, 2), words),
        (i4, u1, ptr(2, 1), words),
        (i4, u1, ptr(0, 2), words, -1),
        (i4, u1, ptr(0, 2), words, 2**31 - 1),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            index.visit(*args)
    with pytest.raises(TypeError):
        index.visit(None, u1, ptr(0, 2), words)
    assert index.pairs == 0
    assert len(Partition([index], np.ones(1, np.uint8)).kind) == 0


@pytest.mark.parametrize("word", [entry(1), entry(1, "exclusive")])
def test_rows_that_do_not_fit_are_refused(word):
    index = FrameIndex()
    visit(index, [(0, False, [word])], 3)
    for keep in ([], [1, 1, 1]):
        with pytest.raises(ValueError, match="row 3"):
            Partition([index], np.array(keep, np.uint8))
    found = Partition([index], np.ones(4, np.uint8))
    with pytest.raises(ValueError, match="wanted"):
        found.frames_of(np.ones(len(found.kind) + 1, np.uint8))
    other = FrameIndex()
    visit(other, [(0, False, [entry(2)])], 3)
    visit(index, [(0, False, [entry(2)])], 3)
    with pytest.raises(ValueError, match="twice"):
        Partition([index, other], np.ones(4, np.uint8))


pfns = st.one_of(
    st.integers(1, 12),
    st.sampled_from([2**15 - 1, 2**15, 2**32, 2**32 + 7, 2**40, 2**55 - 1, 2**55 - 2**15]),
    st.integers(HUGE_ZERO, HUGE_ZERO + 30),
)
entries = st.one_of(
    st.builds(lambda p, m: entry(p, *m), pfns, st.sets(st.sampled_from(["file", "exclusive"]))),
    st.builds(lambda p: entry(p), pfns),
    st.builds(lambda p, m: entry(p, "ksm", *m), pfns, st.sets(st.sampled_from(["exclusive"]))),
    st.builds(swap_entry, st.integers(0, 25), st.sampled_from([0, 1, 2, 2**50 - 1])),
    st.builds(lambda m: entry(0, "absent", *m), st.sets(st.sampled_from(["uffd", "file"]))),
    st.builds(lambda p: swap_entry(0, p, "guard"), st.integers(0, 3)),
    st.just(0),
)
regions = st.tuples(st.integers(0, 2), st.booleans(), st.lists(entries, max_size=20))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.lists(regions, max_size=5), max_size=8),
    st.integers(1, 3),
    st.sets(st.integers(0, 30)),
)
@example([[(0, False, [entry(1), entry(1)]), (0, False, [entry(1)])]], 1, set())
@example([[(0, False, [entry(1), entry(1, "exclusive")]), (1, False, [entry(1)])]], 1, set())
def test_agrees_with_the_twin(calls, threads, drop):
    compare(calls, threads, drop, **OPTIONS)


def mutated(random, words):
    """Some pages are others', some are gone, the end is elsewhere."""
    words = words[: random.randrange(len(words) + 1)] if random.random() < 0.2 else words[:]
    words += [entry(random.randrange(9000, 9100)) for _ in range(random.choice([0, 0, 0, 3, 700]))]
    for _ in range(random.randrange(30)):
        if words:
            marks = random.choice([(), (), ("exclusive",), ("file",), ("ksm",), ("absent",)])
            pfn = 0 if marks == ("absent",) else random.randrange(1, 12_000)
            words[random.randrange(len(words))] = entry(pfn, *marks)
    if words and random.random() < 0.3:
        lo = random.randrange(len(words))
        hi = min(len(words), lo + random.choice([1, 100, 600, 2000]))
        words[lo:hi] = [0] * (hi - lo)
    return words


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_agrees_with_the_twin_on_families_of_large_regions(seed):
    random = Random(seed)
    bases = [
        [entry(2000 * f + i + 1, *random.choice([(), (), ("file",)])) for i in range(n)]
        for f, n in enumerate(random.choices([1, 9, 200, 513, 1500], k=3))
    ]
    calls = []
    for _ in range(random.randrange(2, 12)):
        calls.append([(k % 2, k == 2, mutated(random, base)) for k, base in enumerate(bases)])
        if random.random() < 0.3:
            base = random.randrange(3)
            bases[base] = mutated(random, bases[base])  # a parent that goes on writing
    drop = {random.randrange(40) for _ in range(3)}
    compare(calls, random.choice([1, 1, 2]), drop, **OPTIONS)


def test_more_families_than_templates():
    random = Random(7)
    bases = [[entry(1000 * f + i + 1) for i in range(600)] for f in range(12)]
    compare([[(0, False, mutated(random, bases[random.randrange(12)]))] for _ in range(60)])


def test_threads_with_an_index_each_find_what_one_finds():
    """Thirty rounds at the same time: nothing of an index is another's."""
    random = Random(11)
    base = [entry(i + 1) for i in range(3000)]
    spaces = [[(0, False, mutated(random, base)), (1, False, base)] for _ in range(24)]
    found = compare(spaces)
    keep = np.ones(48, np.uint8)

    def read(k):
        index = FrameIndex()
        for when in range(k, 24, 4):
            visit(index, spaces[when], 2 * when, when)
        return index

    with ThreadPoolExecutor(4) as workers:
        for _ in range(30):
            again = Partition(list(workers.map(read, range(4))), keep)
            assert partition(again) == partition(found)
            assert again.replaced == found.replaced


def test_more_members_than_a_template_has():
    """65535 of a kind are full: the next one begins another, and all share all the same."""
    n = 65_537
    index = FrameIndex()
    ones, ptr = np.ones(n, np.int32), np.arange(n + 1)
    index.visit(ones, ones.astype(np.uint8), ptr, np.full(n, entry(7), np.uint64))
    found = Partition([index], np.ones(n, np.uint8))
    assert (found.first.tolist(), found.last.tolist()) == ([0], [n - 1])
    assert (found.pages.tolist(), found.region.tolist()) == ([1], list(range(n)))


def test_pages_far_apart_and_in_falling_blocks():
    """Blocks of a template are made in any order of pages."""
    at = [4000, 0, 2047, 513, 1024, 512, 4095, 3000]
    calls = []
    for k in range(len(at)):
        words = [0] * 4096
        for page in at[: k + 1]:
            words[page] = entry(page + 1)
        calls.append([(0, False, words)])
    compare(calls + calls[::-1])


def test_the_same_index_is_not_left_to_grow():
    """Make, fill, ask and drop: no memory stays."""

    def rss():
        return int(Path("/proc/self/statm").read_text().split()[1])

    def once():
        index = FrameIndex()
        words = [entry(f << 15) for f in range(4000)]
        alone = [entry(f, "exclusive") for f in range(1, 3000)]
        for o in range(30):
            visit(index, [(0, False, words[o % 7 :]), (1, False, alone[o:])], 2 * o, o)
        found = Partition([index], np.ones(60, np.uint8))
        assert found.replaced
        found.frames_of(np.ones(len(found.kind), np.uint8))
        with pytest.raises(ValueError, match="row"):
            Partition([index], np.ones(59, np.uint8))
        canonical(found.indptr, found.first, found.last)
        with pytest.raises(ValueError, match="indptr"):
            canonical(found.indptr[1:], found.first, found.last)

    for _ in range(5):
        once()
    gc.collect()
    before = rss()
    for _ in range(40):
        once()
    gc.collect()
    # One index that stayed would be a megabyte.
    assert (rss() - before) * os.sysconf("SC_PAGESIZE") < 16 << 20


# -- canonical

runs = st.lists(st.tuples(st.integers(-3, 40), st.integers(-3, 40)), max_size=8)


@given(st.lists(runs, max_size=8))
def test_canonical_is_the_same_sets_with_the_fewest_runs(classes):
    flat = [run for runs in classes for run in runs]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in classes], dtype=np.int64)])
    got_ptr, first, last, hashes = canonical(
        indptr.astype(np.int64),
        np.array([a for a, _ in flat], np.int32),
        np.array([b for _, b in flat], np.int32),
    )
    sets = []
    for c, runs in enumerate(classes):
        want = {x for a, b in runs for x in range(a, b + 1)}
        mine = slice(got_ptr[c], got_ptr[c + 1])
        pairs = list(zip(first[mine].tolist(), last[mine].tolist(), strict=True))
        assert {x for a, b in pairs for x in range(a, b + 1)} == want
        assert all(a <= b for a, b in pairs)
        assert all(b + 1 < a for (_, b), (a, _) in pairwise(pairs))
        sets.append(frozenset(want))
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            assert (a == b) == (hashes[i] == hashes[j]).all()


def test_canonical_refuses_what_does_not_divide():
    one = np.zeros(1, np.int32)
    for indptr in ([], [1], [0, 2], [0, 0], [0, 2, 1], [0, -1, 1]):
        with pytest.raises(ValueError, match="indptr"):
            canonical(np.array(indptr, np.int64), one, one)
    with pytest.raises(ValueError, match="indptr"):
        canonical(np.array([0, 1]), one, np.zeros(2, np.int32))
