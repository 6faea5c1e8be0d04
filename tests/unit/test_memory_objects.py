"""Merging, and the second look at frames that may have been reused."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import oracle_memory as oracle
from osmosis.capture import memory_objects as mo
from osmosis.schema import FrameKind


def make(classes):
    """Objects of (kind, pages, runs)."""
    runs = [run for *_, runs in classes for run in runs]
    return mo.Objects(
        np.array([kind for kind, *_ in classes], np.uint8),
        np.array([pages for _, pages, _ in classes], np.int64),
        np.concatenate([[0], np.cumsum([len(r) for *_, r in classes])]).astype(np.int64),
        np.array([a for a, _ in runs], np.int32),
        np.array([b for _, b in runs], np.int32),
    )


# -- merge_equal

runs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=4).map(
    lambda pairs: [(a, a + n) for a, n in pairs]
)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), runs), max_size=12))
@example([(0, 1, [(0, 1)]), (0, 1, [(0, 0), (1, 1)]), (1, 1, [(0, 1)]), (0, 1, [])])
def test_merge_equal_joins_what_is_equal_and_nothing_else(classes):
    objects = make(classes)
    merged, number = mo.merge_equal(objects)
    assert oracle.partition(merged) == oracle.partition(objects)
    assert len(oracle.partition(merged)) == len(merged)
    for c, (kind, pages, runs) in enumerate(classes):
        regions = {x for a, b in runs for x in range(a, b + 1)}
        if not regions or not pages:
            assert number[c] == -1
            continue
        row = int(number[c])
        assert merged.kind[row] == kind
        mine = range(merged.indptr[row], merged.indptr[row + 1])
        assert regions == {x for r in mine for x in range(merged.first[r], merged.last[r] + 1)}


# -- recheck


@dataclass
class World:
    """Address spaces that share, free and take frames while a reader goes from one to the next.

    A frame's *page* is who it belongs to; taking a free frame makes a new page. Only what a
    reader can see goes to ``recheck``: frame numbers, its clock, and who gained a frame.
    """

    n: int
    now: dict = field(default_factory=dict)  # (mm, frame) -> page
    gained: set = field(default_factory=set)
    seen: dict = field(default_factory=dict)  # (mm, frame) -> page
    when: dict = field(default_factory=dict)  # mm -> [begin, end]
    clock: int = 0
    pages: int = 0

    def take(self, mm, frame):
        """Map the frame: only a free one can be had."""
        if not any(f == frame for _, f in self.now):
            self.pages += 1
            self.now[mm, frame] = self.pages
            self.gained.add(mm)

    def join(self, mm, frame):
        """Map the page that others map there: as a file's, or by fork."""
        pages = {page for (_, f), page in self.now.items() if f == frame}
        if pages and (mm, frame) not in self.now:
            self.now[mm, frame] = pages.pop()
            self.gained.add(mm)

    def free(self, mm, frame):
        self.now.pop((mm, frame), None)

    def tick(self):
        self.clock += 1
        return self.clock


FRAMES = range(100, 103)
MMS = range(4)
actions = st.tuples(
    st.sampled_from(["take", "join", "free", "free", "exit"]),
    st.sampled_from(MMS),
    st.sampled_from(FRAMES),
)


def simulate(shares, order, steps):
    """A world in which *shares* holds at first; *steps* go between the parts of the readings.

    *order*: each address space twice or thrice: its reading begins, looks at one frame each
    time, and ends. Readings overlap as the order says, as those of threads do.
    """
    world = World(len(MMS))
    for mm, frame in shares:
        world.join(mm, frame)
        world.take(mm, frame)
    world.gained.clear()
    left = {mm: list(FRAMES) for mm in MMS}
    queue = list(steps)
    for mm in order:
        if mm not in world.when:
            world.when[mm] = [world.tick(), None, None]
        if left[mm]:
            frame = left[mm].pop(0)
            if (mm, frame) in world.now:
                world.seen[mm, frame] = world.now[mm, frame]
            if not left[mm]:
                world.when[mm][1] = world.tick()
                world.when[mm][2] = mm in world.gained  # its faults are asked for at its end
        for name, who, what in queue[:2]:
            act(world, name, who, what)
        del queue[:2]
    for name, who, what in queue:
        act(world, name, who, what)
    return world


def act(world, name, who, what):
    if name == "exit":
        for frame in FRAMES:
            world.free(who, frame)
    else:
        getattr(world, name)(who, what)


def facts_of(world, kind, frames_of_object, *, objects_of=None, parts=1):
    """The Recheck of a world in which mm m has regions m * parts .. m * parts + parts - 1."""

    def frames_of(wanted):
        pairs = [(f, c) for c, fs in enumerate(frames_of_object) if wanted[c] for f in fs]
        return (
            np.array([f for f, _ in pairs], np.uint64),
            np.array([c for _, c in pairs], np.int64),
        )

    def still(mm, regions):
        assert regions.tolist() == sorted(set(regions.tolist()))
        assert {r // parts for r in regions.tolist()} <= {mm}
        mine = {f for m, f in world.now if m == mm and mm * parts + f % parts in regions}
        return np.array(sorted(mine), np.uint64)

    return mo.Recheck(
        region_mm=np.repeat(np.arange(world.n, dtype=np.int32), parts),
        region_object=np.full(world.n * parts, -1, np.int32)
        if objects_of is None
        else np.array(objects_of, np.int32),
        begin=np.array([world.when[m][0] for m in range(world.n)], np.int64),
        end=np.array([world.when[m][1] for m in range(world.n)], np.int64),
        suspect=np.array([world.when[m][2] for m in range(world.n)], bool),
        frames_of=frames_of,
        still=still,
    )


def objects_in(world, kind=FrameKind.ANON, parts=1):
    """What an index made of the sightings: frames by who was seen with them."""
    holders = {}
    for mm, frame in world.seen:
        holders.setdefault(frame, set()).add(mm)
    classes = {}
    for frame, mms in holders.items():
        regions = frozenset(mm * parts + frame % parts for mm in mms)
        classes.setdefault(regions, []).append(frame)
    frames = list(classes.values())
    return make(
        [(kind, len(fs), [(r, r) for r in sorted(rs)]) for rs, fs in classes.items()]
    ), frames


def sightings(checked, frames, objects):
    """(frame, mms) groups after recheck, from the frame numbers that it hands on."""
    taken = set(checked.taken.tolist())
    out = [(f, c) for c, fs in enumerate(frames) for f in fs if f not in taken]
    out += list(zip(checked.frame.tolist(), checked.of.tolist(), strict=True))
    pages = np.bincount([c for _, c in out], minlength=len(checked.objects))
    assert pages.tolist() == checked.objects.pages.tolist()
    return out


orders = st.permutations([m for m in MMS for _ in FRAMES])


@settings(max_examples=600, deadline=None)
@given(
    st.sets(st.tuples(st.sampled_from(MMS), st.sampled_from(FRAMES))),
    orders,
    st.lists(actions, max_size=25),
    st.integers(1, 2),
)
def test_two_that_never_had_the_same_page_never_share(shares, order, steps, parts):
    """And two that had it all the while always do. In all orders, with overlapping readings."""
    world = simulate(sorted(shares), order, steps)
    objects, frames = objects_in(world, parts=parts)
    facts = facts_of(world, FrameKind.ANON, frames, parts=parts)
    checked = mo.recheck(objects, facts)
    together = set()
    seen = []
    for frame, c in sightings(checked, frames, objects):
        runs = range(checked.objects.indptr[c], checked.objects.indptr[c + 1])
        regions = {
            r for i in runs for r in range(checked.objects.first[i], checked.objects.last[i] + 1)
        }
        mms = sorted({r // parts for r in regions})
        seen += [(mm, frame) for mm in mms]
        together |= {(a, b, frame) for a in mms for b in mms if a < b}
    # Nobody's page is lost, and nobody's is counted twice.
    assert sorted(seen) == sorted(world.seen)
    for a, b, frame in together:
        # A frame that was given back and taken again by the same one is not told apart.
        if world.now.get((a, frame)) not in (None, world.seen[a, frame]):
            continue
        if world.now.get((b, frame)) not in (None, world.seen[b, frame]):
            continue
        came_back = any(
            world.now.get((m, frame), page) != page
            for (m, f), page in world.seen.items()
            if f == frame
        )
        assert came_back or world.seen[a, frame] == world.seen[b, frame], (a, b, frame)
    for a, frame in world.seen:
        for b in range(a + 1, world.n):
            if (b, frame) not in world.seen:
                continue
            kept = all(
                world.now.get((m, frame)) == world.seen[a, frame] == world.seen[b, frame]
                for m in (a, b)
            )
            if kept:
                assert (a, b, frame) in together, (a, b, frame)
    if not checked.dropped:
        assert not len(checked.taken) or len(checked.frame)


def scripted(read, *, now, suspect, kind=FrameKind.ANON, region_object=None, begin=None, end=None):
    """One frame, 7, seen in the mms *read*, in that order; *now* still have it."""
    n = max(read) + 1
    world = World(n)
    for i, mm in enumerate(read):
        world.when[mm] = [2 * i, 2 * i + 1, mm in suspect]
    for mm in range(n):
        world.when.setdefault(mm, [100 + 2 * mm, 101 + 2 * mm, False])
    if begin:
        for mm, b, e in zip(read, begin, end, strict=True):
            world.when[mm][:2] = [b, e]
    world.now = {(mm, 7): 1 for mm in now}
    objects = make([(kind, 1, [(mm, mm) for mm in sorted(read)])])
    facts = facts_of(world, kind, [[7]], objects_of=region_object)
    checked = mo.recheck(objects, facts)
    return sorted(sorted(regions) for _, regions in oracle.partition(checked.objects)), checked


def test_a_frees_and_b_takes_it():
    groups, checked = scripted([0, 1], now=[1], suspect={1})
    assert groups == [[0], [1]]
    assert checked.dropped == 1


def test_still_there_is_shared():
    assert scripted([0, 1], now=[0, 1], suspect={0, 1})[0] == [[0, 1]]
    assert scripted([0, 1], now=[0], suspect={0, 1})[0] == [[0, 1]]


def test_an_anchor_shares_with_all_that_were_read_before_it():
    assert scripted([0, 1], now=[], suspect={0})[0] == [[0, 1]]
    assert scripted([0, 1], now=[], suspect=set())[0] == [[0, 1]]
    # ... not with those whose reading was not over when its own began.
    over = {"begin": [0, 1], "end": [2, 3]}
    assert scripted([0, 1], now=[], suspect={0}, **over)[0] == [[0], [1]]
    assert scripted([0, 1], now=[1], suspect={0}, **over)[0] == [[0, 1]]


def test_a_later_suspect_is_alone_if_the_anchor_lost_the_frame():
    assert scripted([0, 1, 2], now=[2], suspect={2})[0] == [[0, 1], [2]]
    assert scripted([0, 1, 2], now=[1, 2], suspect={2})[0] == [[0, 1, 2]]
    assert scripted([0, 1, 2], now=[], suspect={2, 1})[0] == [[0], [1], [2]]


def test_those_after_one_that_still_has_it_share_with_it():
    assert scripted([0, 1, 2, 3], now=[1], suspect={0, 1, 2, 3})[0] == [[0], [1, 2, 3]]
    # 0 has lost it; 1 has it, and was being read while 2 was: 2 may have been first.
    groups, _ = scripted([0, 1, 2], now=[1], suspect={0, 1, 2}, begin=[0, 2, 3], end=[1, 4, 5])
    assert groups == [[0], [1], [2]]


def test_overlap_with_the_earliest_is_asked_for():
    over = {"begin": [0, 1], "end": [2, 3]}
    assert scripted([0, 1], now=[0], suspect={0, 1}, **over)[0] == [[0], [1]]
    assert scripted([0, 1], now=[0, 1], suspect={0, 1}, **over)[0] == [[0, 1]]


@pytest.mark.parametrize(("objects", "groups"), [([5, 5], [[0, 1]]), ([5, 6], [[0], [1]])])
def test_a_page_of_one_file_is_that_files(objects, groups):
    """The page cache does not hand a page on; but another file may get it."""
    got, _ = scripted([0, 1], now=[], suspect={0, 1}, kind=FrameKind.FILE, region_object=objects)
    assert got == groups


def test_nothing_to_look_at():
    empty = make([])
    facts = facts_of(World(0), FrameKind.ANON, [])
    checked = mo.recheck(empty, facts)
    assert (len(checked.objects), checked.dropped, len(checked.frame)) == (0, 0, 0)
    merged, number = mo.merge_equal(empty)
    assert (len(merged), len(number)) == (0, 0)
    # An object whose mappers were all dropped.
    groups = mo.recheck(make([(0, 3, []), (0, 1, [(0, 0)])]), scripted_facts()).objects
    assert groups.pages.tolist() == [3, 1]


def scripted_facts():
    world = World(1)
    world.when[0] = [0, 1, True]
    return facts_of(world, FrameKind.ANON, [[1, 2, 3], [4]])


def test_a_big_active_farm_is_looked_at_in_seconds():
    """300 address spaces, 4000 shared pages each with its own set of sharers, all faulting."""
    rng = np.random.default_rng(1)
    n, pages = 300, 4000
    member = rng.random((pages, n)) < 0.5
    classes = [
        (FrameKind.ANON, 1, [(r, r) for r in np.flatnonzero(row).tolist()]) for row in member
    ]
    objects = mo.merge_equal(make(classes))[0]
    frames = np.arange(len(objects))

    def still(mm, regions):
        gone = mm < 3  # the three that were read first have exited
        return np.empty(0, np.uint64) if gone else frames.astype(np.uint64)

    facts = mo.Recheck(
        region_mm=np.arange(n, dtype=np.int32),
        region_object=np.full(n, -1, np.int32),
        begin=np.arange(0, 2 * n, 2),
        end=np.arange(1, 2 * n, 2),
        suspect=np.ones(n, bool),
        frames_of=lambda wanted: (
            frames[wanted].astype(np.uint64),
            np.flatnonzero(wanted).astype(np.int64),
        ),
        still=still,
    )
    checked = mo.recheck(objects, facts)
    lonely = {regions for (_, regions) in oracle.partition(checked.objects) if regions & {0, 1, 2}}
    assert all(len(regions) == 1 for regions in lonely)
    assert checked.dropped > 0
