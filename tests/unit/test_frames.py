"""The frame index and canonical(), against sets and dicts."""

import gc
import os
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import oracle_memory as oracle
from _fastproc.frames import FrameIndex, canonical
from oracle_memory import entry, swap_entry
from osmosis.schema import FrameKind


def visit(index, visits):
    """Visit regions ((kind, ordinal), shared, entries), all in one call."""
    sizes = [len(words) for *_, words in visits]
    index.visit(
        np.array([kind for (kind, _), *_ in visits], np.int32),
        np.array([ordinal for (_, ordinal), *_ in visits], np.int32),
        np.array([8 | 6 if shared else 6 for _, shared, _ in visits], np.uint8),
        np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64),
        np.array([word for *_, words in visits for word in words], np.uint64),
    )


def partition(found):
    """Frames by (kind, regions), from what the index says."""
    out = {}
    for c in range(len(found["id"])):
        regions = set()
        for r in range(found["indptr"][c], found["indptr"][c + 1]):
            first, last = found["run_first"][r], found["run_last"][r]
            assert first <= last
            regions |= {(int(found["run_kind"][r]), o) for o in range(first, last + 1)}
        key = (int(found["kind"][c]), frozenset(regions))
        out[key] = out.get(key, 0) + int(found["frames"][c])
        assert 0 <= found["shy"][c] <= found["frames"][c]
    assert len(set(found["id"].tolist())) == len(found["id"])
    return out


def compare(calls):
    index, twin = FrameIndex(), oracle.Frames()
    pairs = 0
    for visits in calls:
        visit(index, visits)
        for region, shared, words in visits:
            if words:
                twin.visit(region, shared, words)
                pairs += len(words)
    found = index.classes_and_runs()
    assert partition(found) == twin.classes()
    assert index.replaced == len(twin.past)
    assert index.pairs == pairs
    assert index.nbytes > 0
    # Frame numbers: each frame is where it was seen last.
    wanted = np.zeros(int(found["id"].max(initial=0)) + 1, np.uint8)
    wanted[found["id"]] = 1
    frame, of = index.frames_of(wanted)
    assert sorted(frame.tolist()) == sorted(twin.now)
    row = {int(c): i for i, c in enumerate(found["id"])}
    for key, c in zip(frame.tolist(), of.tolist(), strict=True):
        kind, _, regions, _ = twin.now[key]
        i = row[c]
        assert found["kind"][i] == kind
        runs = range(found["indptr"][i], found["indptr"][i + 1])
        assert regions == {
            (int(found["run_kind"][r]), o)
            for r in runs
            for o in range(found["run_first"][r], found["run_last"][r] + 1)
        }
    return index


def test_kinds_are_those_of_the_schema():
    names = ("ANON", "FILE", "KSM", "HUGETLB", "SWAP", "DEVICE")
    assert [getattr(FrameKind, n) for n in names] == [getattr(oracle, n) for n in names]


def test_copy_on_write_pages_of_a_fork_farm():
    """All share all but what each has written."""
    base = list(range(1000, 1100))
    calls = []
    for child in range(20):
        own = {base[(child * 7 + i) % 100] for i in range(child)}
        words = [entry(5000 + child * 100 + i, "exclusive") for i in range(len(own))]
        words += [entry(f) for f in base if f not in own]
        calls.append([((0, child), False, words)])
    compare(calls)


def test_a_frame_that_one_had_alone_is_never_shared():
    """Freed and taken over between two readings: nobody's neighbour, in whatever order."""
    a, b, c = ((0, 0), False), ((1, 0), False), ((2, 0), False)
    alone, others = entry(7, "exclusive"), entry(7)
    for first, second in ((alone, alone), (alone, others), (others, alone)):
        index = compare([[(*a, [first])], [(*b, [second])]])
        assert index.replaced == 1
    # After that, the ones that come do share.
    index = compare([[(*a, [alone])], [(*b, [others])], [(*c, [others])]])
    assert (FrameKind.ANON, frozenset({(1, 0), (2, 0)})) in partition(index.classes_and_runs())
    # A file's page that one had alone is shared by who maps it next.
    index = compare([[(*a, [entry(7, "file", "exclusive")])], [(*b, [entry(7, "file")])]])
    assert index.replaced == 0


def test_no_region_nothing_visited():
    index = FrameIndex()
    visit(index, [])
    visit(index, [((0, 0), False, [])])
    assert index.classes_and_runs()["indptr"].tolist() == [0]
    assert index.pairs == 0


def test_arrays_that_do_not_fit_are_refused_and_change_nothing():
    index = FrameIndex()
    i4, u1 = np.zeros(1, np.int32), np.zeros(1, np.uint8)
    words = np.array([entry(1), entry(2)], np.uint64)

    def ptr(*values):
        return np.array(values, np.int64)

    for args in (
        (np.zeros(2, np.int32), i4, u1, ptr(0, 2), words),
        (i4, np.zeros(2, np.int32), u1, ptr(0, 2), words),
        (i4, i4, np.zeros(2, np.uint8), ptr(0, 2), words),
        (i4, i4, u1, ptr(0), words),
        (i4, i4, u1, ptr(0, 3), words),
        (i4, i4, u1, ptr(-1, 2), words),
        (i4, i4, u1, ptr(2, 1), words),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            index.visit(*args)
    with pytest.raises(TypeError):
        index.visit(None, i4, u1, ptr(0, 2), words)
    assert index.pairs == 0
    assert len(index.classes_and_runs()["id"]) == 0


pfns = st.one_of(
    st.integers(1, 12),
    st.sampled_from([2**15 - 1, 2**15, 2**40, 2**55 - 1, 2**55 - 2**15]),
)
entries = st.one_of(
    st.builds(lambda p, m: entry(p, *m), pfns, st.sets(st.sampled_from(["file", "exclusive"]))),
    st.builds(lambda p: entry(p), pfns),
    st.builds(lambda p, m: entry(p, "ksm", *m), pfns, st.sets(st.sampled_from(["exclusive"]))),
    st.builds(swap_entry, st.integers(0, 22), st.sampled_from([0, 1, 2, 2**50 - 1])),
)
regions = st.tuples(st.integers(0, 2), st.integers(0, 6))
visits = st.tuples(regions, st.booleans(), st.lists(entries, max_size=12))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(visits, max_size=5), max_size=8))
@example([[((0, 0), False, [entry(1), entry(1)]), ((0, 0), False, [entry(1)])]])
@example([[((0, 5), False, [entry(1)]), ((0, 3), False, [entry(1)]), ((0, 4), False, [entry(1)])]])
def test_agrees_with_the_twin(calls):
    compare(calls)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_agrees_with_the_twin_on_many_chunks_and_classes(seed):
    random = Random(seed)
    base = [random.randrange(2**55) for _ in range(600)]
    compare(
        [[((0, o), False, [entry(f) for f in base if random.random() < 0.7])] for o in range(12)]
    )


def test_the_same_index_is_not_left_to_grow():
    """Make, fill, ask and drop: no memory stays."""

    def rss():
        return int(Path("/proc/self/statm").read_text().split()[1])

    def once():
        index = FrameIndex()
        words = [entry(f << 15) for f in range(40)]
        visit(index, [((0, o), False, words[o % 7 :]) for o in range(30)])
        found = index.classes_and_runs()
        index.frames_of(np.ones(int(found["id"].max()) + 1, np.uint8))
        canonical(found["indptr"], found["run_first"], found["run_last"])
        with pytest.raises(ValueError, match="indptr"):
            canonical(found["indptr"][1:], found["run_first"], found["run_last"])

    for _ in range(20):
        once()
    gc.collect()
    before = rss()
    for _ in range(200):
        once()
    gc.collect()
    # One index that stayed would be 5 MiB of chunks.
    assert (rss() - before) * os.sysconf("SC_PAGESIZE") < 20 << 20


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
