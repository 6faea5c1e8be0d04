"""Memory objects, looked at a second time: pure functions over arrays.

A region is one VMA; regions are numbered so that those with like frames stand together (see
``_fastproc.partition``): a memory object's mappers come in few runs. Here frames that were
reused while the capture ran are told apart, and objects that came to have the same mappers are
joined.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _fastproc.classes import canonical
from osmosis.schema import FrameKind

__all__ = ["Checked", "Objects", "Recheck", "merge_equal", "recheck"]

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """C memory objects: frames of one kind, and the regions that map them, as runs."""

    kind: NDArray[np.uint8]  # (C,) FrameKind
    pages: I64  # (C,) distinct frames
    indptr: I64  # (C + 1,) into first, last
    first: I32  # (R,) region
    last: I32  # (R,) region, itself included

    def __len__(self) -> int:
        return len(self.kind)


def merge_equal(objects: Objects) -> tuple[Objects, I64]:
    """Join objects of the same kind and the same mappers; leave out those without any.

    Returns
    -------
    (objects, number)
        ``number[c]`` is the new row of object c, -1 if it is left out. O(R + C log C).
    """
    indptr, first, last, hashes = canonical(objects.indptr, objects.first, objects.last)
    sizes = np.diff(indptr)
    order = np.lexsort((hashes[:, 1], hashes[:, 0], sizes, objects.kind))
    order = order[(sizes[order] > 0) & (objects.pages[order] > 0)]
    if not len(order):
        number = np.full(len(objects), -1, np.int64)
        empty = np.empty(0, np.int64)
        none = np.empty(0, np.int32)
        return Objects(objects.kind[:0], empty, np.zeros(1, np.int64), none, none), number
    same = (
        (objects.kind[order][1:] == objects.kind[order][:-1])
        & (sizes[order][1:] == sizes[order][:-1])
        & (hashes[order][1:] == hashes[order][:-1]).all(axis=1)
    )
    # Equal hashes are taken for equal sets only after comparing the runs themselves.
    alike = np.flatnonzero(same)
    if len(alike):
        a, ends = _gather(indptr, order[alike])
        b, _ = _gather(indptr, order[alike + 1])
        equal = (first[a] == first[b]) & (last[a] == last[b])
        same[alike] = np.logical_and.reduceat(equal, ends[:-1])
    group = np.concatenate([[0], np.cumsum(~same)])
    number = np.full(len(objects), -1, np.int64)
    number[order] = group
    leaders = order[np.concatenate([[True], ~same])]
    runs, new_indptr = _gather(indptr, leaders)
    pages = np.bincount(group, objects.pages[order]).astype(np.int64)
    merged = Objects(objects.kind[leaders], pages, new_indptr, first[runs], last[runs])
    return merged, number


def _gather(indptr: I64, rows: NDArray[Any]) -> tuple[I64, I64]:
    """Positions of the payload of CSR *rows*, and the indptr of those rows by themselves."""
    sizes = indptr[rows + 1] - indptr[rows]
    out = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return np.repeat(indptr[rows] - out[:-1], sizes) + np.arange(out[-1]), out


@dataclass(frozen=True, slots=True, eq=False)
class Recheck:
    """What ``recheck`` needs to know of regions and address spaces."""

    region_mm: I32  # (V,) region -> address space, by region order
    region_object: I32  # (V,) region -> mapped object, -1 for none
    begin: I64  # (M,) when the reading of each address space began: one clock of distinct
    end: I64  # (M,) numbers from 0, and when it was over
    suspect: NDArray[np.bool_]  # (M,) it may have gained frames since the capture began
    frames_of: Callable[[NDArray[np.bool_]], tuple[NDArray[np.uint64], I64]]
    # (C,) wanted -> (frame numbers, object rows)
    still: Callable[[int, I64], NDArray[np.uint64]]
    # (mm, its regions) -> the frames they hold now, sorted; empty if the process is gone


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """What ``recheck`` found."""

    objects: Objects  # those that came in, row for row, then new ones
    dropped: int  # (frame, address space) sightings that were taken off
    taken: NDArray[np.uint64]  # frames that are no more of the object they were of
    frame: NDArray[np.uint64]  # frames of the new objects; one may be of several:
    of: I64  # rows of those in `objects`


_NO_FRAMES = np.empty(0, np.uint64)
_NO_ROWS = np.empty(0, np.int64)
_PAIRS = 1 << 22  # (frame, address space) pairs that are looked at together


def recheck(objects: Objects, facts: Recheck) -> Checked:
    """Take apart the objects whose frames were freed and reused while the capture ran.

    A frame seen in address space A, then in B, is a sharing only if B did not take it over
    from A. B can have taken it only if it gained frames since the capture began: a
    *suspect*. One that is none, an *anchor*, had the frame all along, up to its reading: all
    anchors share it, and all that were read before the last anchor. For the rest, one
    holder is asked again, the last anchor or else the earliest reader. If it still has the
    frame, nobody else took it over since. If not, every holder is asked, and the
    sightings that come together are those of anchors, those from before an anchor, those that
    are still there, and those from after one that is still there. The others were of
    another page: each is an object of its own in the answer.

    Frames of a mapped file that all its mappers map as that file are what they are: the page
    cache does not give a page of one file to another.

    Notes
    -----
    O(V + runs) where no process took a fault; else also the members of the objects that one which
    did has a part in. Array operations, and one reading of the doubtful regions of few address
    spaces where frames stayed put.
    """
    doubtful, asked = _doubtful(objects, facts)
    if not doubtful.any():
        return Checked(objects, 0, _NO_FRAMES, _NO_FRAMES, _NO_ROWS)
    frame, of = facts.frames_of(doubtful)
    order = np.argsort(asked[of], kind="stable")
    frame, of = frame[order], of[order]
    mms, starts = np.unique(asked[of], return_index=True)
    lost = np.zeros(len(frame), bool)
    ends = np.append(starts[1:], len(of))
    for mm, lo, hi in zip(mms.tolist(), starts.tolist(), ends.tolist(), strict=True):
        lost[lo:hi] = _lost(objects, facts, mm, frame[lo:hi], of[lo:hi])
    return _take_apart(objects, facts, frame[lost], of[lost])


def _lost(
    objects: Objects, facts: Recheck, mm: int, frame: NDArray[np.uint64], of: I64
) -> NDArray[np.bool_]:
    """Which frames the answer of *mm* does not settle: all objects named ask it."""
    rows = np.unique(of)
    regions = np.flatnonzero(facts.region_mm == mm)
    _, asked = _touched(objects, rows, regions)
    lost = ~_among(frame, facts.still(mm, asked))
    if facts.suspect[mm]:
        # Its sighting may have come after one by a reading that overlaps with its own.
        beside = np.flatnonzero((facts.begin < facts.end[mm]) & (facts.end > facts.end[mm]))
        for other in beside.tolist():
            theirs = np.flatnonzero(facts.region_mm == other)
            has, again = _touched(objects, rows, theirs)
            if has.any():
                ask = has[np.searchsorted(rows, of)] & ~lost
                lost[ask] = ~_among(frame[ask], facts.still(other, again))
    return lost


def _among(frame: NDArray[np.uint64], held: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of *frame* are in *held*, which is sorted."""
    if not len(held):
        return np.zeros(len(frame), bool)
    at = np.minimum(np.searchsorted(held, frame), len(held) - 1)
    same: NDArray[np.bool_] = held[at] == frame
    return same


def _touched(objects: Objects, rows: I64, regions: I64) -> tuple[NDArray[np.bool_], I64]:
    """Which objects of *rows* map one of *regions* (rising), and which regions they map."""
    runs, indptr = _gather(objects.indptr, rows)
    lo = np.searchsorted(regions, objects.first[runs], "left")
    hi = np.searchsorted(regions, objects.last[runs], "right")
    of = np.repeat(np.arange(len(rows)), np.diff(indptr))
    marks = np.bincount(lo, minlength=len(regions) + 1) - np.bincount(
        hi, minlength=len(regions) + 1
    )
    return (
        np.bincount(of, hi - lo, len(rows)) > 0,
        regions[np.cumsum(marks[:-1]) > 0],
    )


def _take_apart(objects: Objects, facts: Recheck, frame: NDArray[np.uint64], of: I64) -> Checked:
    """Ask every holder of these frames, and group the sightings that belong together."""
    if not len(frame):
        return Checked(objects, 0, _NO_FRAMES, _NO_FRAMES, _NO_ROWS)
    order = np.argsort(of, kind="stable")
    frame, of = frame[order], of[order]
    rows, starts, counts = np.unique(of, return_index=True, return_counts=True)
    made = _Made([], [], [], [], [])
    sizes = objects.last - objects.first + 1
    total = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    members = total[objects.indptr[rows + 1]] - total[objects.indptr[rows]]
    part = np.cumsum(members * counts) // _PAIRS
    held: dict[int, NDArray[np.uint64]] = {}
    asked = _mapped(objects, rows, len(facts.region_mm))
    by_mm = np.argsort(facts.region_mm[asked], kind="stable")
    asked = asked[by_mm]
    mms, first = np.unique(facts.region_mm[asked], return_index=True)
    asks = np.split(asked, first[1:]) if len(mms) else []
    for mm, regions in zip(mms.tolist(), asks, strict=True):
        held[mm] = facts.still(mm, np.sort(regions))
    dropped = 0
    for piece in np.unique(part).tolist():
        chosen = np.flatnonzero(part == piece)
        spans = []
        for i in chosen.tolist():
            regions = _regions(objects, int(rows[i]))
            mm_of = facts.region_mm[regions]
            spans.append((regions, mm_of, np.unique(mm_of)))
        there = _ask_all(held, frame, starts, counts, chosen, [mms for *_, mms in spans])
        for i, (regions, mm_of, mms_of), has in zip(chosen.tolist(), spans, there, strict=True):
            frames = frame[starts[i] : starts[i] + counts[i]]
            dropped += _split(made, facts, int(rows[i]), regions, mm_of, mms_of, frames, has)
    return made.checked(objects, frame, of, dropped)


def _mapped(objects: Objects, rows: I64, n: int) -> I64:
    """Regions, of *n*, that any of *rows* maps."""
    runs, _ = _gather(objects.indptr, rows)
    marks = np.bincount(objects.first[runs], minlength=n + 1).astype(np.int64)
    marks -= np.bincount(objects.last[runs].astype(np.int64) + 1, minlength=n + 1)
    return np.flatnonzero(np.cumsum(marks[:-1]))


def _ask_all(
    held: dict[int, NDArray[np.uint64]],
    frame: NDArray[np.uint64],
    starts: I64,
    counts: I64,
    chosen: I64,
    spans: list[I32],
) -> list[NDArray[np.bool_]]:
    """By object: (frames, mms) whether each address space still has each frame."""
    sizes = np.array([len(mms) for mms in spans], np.int64)
    pairs = counts[chosen] * sizes
    out_at = np.concatenate([[0], np.cumsum(pairs)])
    of = np.repeat(np.arange(len(chosen)), pairs)
    within = np.arange(out_at[-1]) - out_at[of]
    which = frame[starts[chosen][of] + within // sizes[of]]
    mms = np.concatenate(spans)
    mm = mms[np.concatenate([[0], np.cumsum(sizes)])[of] + within % sizes[of]]
    there = np.zeros(len(mm), bool)
    order = np.argsort(mm, kind="stable")
    numbers, first = np.unique(mm[order], return_index=True)
    for number, at in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
        there[at] = _among(which[at], held[number])
    return [
        there[lo:hi].reshape(n, k)
        for lo, hi, n, k in zip(
            out_at[:-1].tolist(),
            out_at[1:].tolist(),
            counts[chosen].tolist(),
            sizes.tolist(),
            strict=True,
        )
    ]


def _split(
    made: "_Made",
    facts: Recheck,
    row: int,
    regions: I64,
    mm_of: I32,
    mms: I32,
    frames: NDArray[np.uint64],
    there: NDArray[np.bool_],
) -> int:
    """Add the objects that frames of object *row* make; returns how many sightings left."""
    begin, end, suspect = facts.begin[mms], facts.end[mms], facts.suspect[mms]
    anchors = ~suspect
    last = begin[anchors].max(initial=-1)
    old = anchors | (end <= last)
    # Frames that the same ones still have go together: rows of bits as keys.
    patterns: dict[bytes, list[int]] = {}
    for i, bits in enumerate(np.packbits(there, axis=1)):
        patterns.setdefault(bits.tobytes(), []).append(i)
    dropped = 0
    for which in patterns.values():
        mine, still = frames[which], there[which[0]]
        if (still & anchors).any():
            groups = [np.ones(len(mms), bool)]
        else:
            new = still | (begin >= end[still].min()) if still.any() else still
            groups = [old | new] if (old & new).any() else [old, new]
        together = np.logical_or.reduce(groups)
        alone = np.flatnonzero(~together)
        for group in groups:
            if group.any():
                made.add(row, regions[group[np.searchsorted(mms, mm_of)]], mine)
        for i in alone.tolist():
            made.add(row, regions[mm_of == mms[i]], mine)
        biggest = max(int(group.sum()) for group in groups)
        dropped += (len(mms) - max(biggest, 1)) * len(mine)
    return dropped


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """Objects that came of taking others apart."""

    of: list[int]
    regions: list[I64]
    frames: list[NDArray[np.uint64]]
    sizes: list[int]
    pages: list[int]

    def add(self, row: int, regions: I64, frames: NDArray[np.uint64]) -> None:
        self.of.append(row)
        self.regions.append(regions)
        self.sizes.append(len(regions))
        self.frames.append(frames)
        self.pages.append(len(frames))

    def checked(
        self, objects: Objects, taken: NDArray[np.uint64], of: I64, dropped: int
    ) -> Checked:
        n = len(objects)
        pages = objects.pages - np.bincount(of, minlength=n)
        old = np.array(self.of, np.int64)
        added = np.concatenate([np.empty(0, np.int64), *self.regions]).astype(np.int32)
        sizes = np.concatenate([np.diff(objects.indptr), np.array(self.sizes, np.int64)])
        checked = Objects(
            np.concatenate([objects.kind, objects.kind[old]]),
            np.concatenate([pages, np.array(self.pages, np.int64)]),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            np.concatenate([objects.first, added]),
            np.concatenate([objects.last, added]),
        )
        rows = np.repeat(np.arange(n, n + len(old)), np.array(self.pages, np.int64))
        return Checked(checked, dropped, taken, np.concatenate([_NO_FRAMES, *self.frames]), rows)


def _regions(objects: Objects, c: int) -> I64:
    runs = slice(objects.indptr[c], objects.indptr[c + 1])
    spans = zip(objects.first[runs].tolist(), objects.last[runs].tolist(), strict=True)
    return np.concatenate([np.arange(a, b + 1) for a, b in spans])


def _doubtful(objects: Objects, facts: Recheck) -> tuple[NDArray[np.bool_], I64]:
    """(C,) which objects could be a reused frame, and (C,) the address space to ask first."""
    doubtful, asked = np.zeros(len(objects), bool), np.full(len(objects), -1, np.int64)
    mm = facts.region_mm
    # Without a suspect among its mappers an object is what it is. Few processes are suspects.
    some = _with_any(objects, facts.suspect[mm])
    if not len(some):
        return doubtful, asked
    runs, indptr = _gather(objects.indptr, some)
    most = _Most(indptr, objects.first[runs], objects.last[runs])
    suspect = facts.suspect[mm]
    begin, end = facts.begin[mm], facts.end[mm]
    anchor = most.of(np.where(suspect, -1, begin))
    latest = most.of(np.where(suspect, end, -1))
    earliest = most.of(-end, low=-(1 << 62))
    doubt = (latest > anchor) & (most.of(end) != -earliest)
    files = (objects.kind[some] == FrameKind.FILE) & doubt
    if files.any():
        of = facts.region_object.astype(np.int64)
        highest = most.of(of)
        doubt &= ~(files & (highest >= 0) & (highest == -most.of(-of, low=-(1 << 62))))
    who = np.full(max(int(facts.begin.max(initial=0)), int(facts.end.max(initial=0))) + 2, -1)
    who[facts.begin] = who[facts.end] = np.arange(len(facts.begin))
    doubtful[some] = doubt
    asked[some] = np.where(anchor >= 0, who[anchor], who[-earliest * (earliest > -(1 << 62))])
    return doubtful, asked


def _with_any(objects: Objects, mark: NDArray[np.bool_]) -> I64:
    """Rows of the objects that a region of *mark* (V,) maps. O(V + R), however long the runs."""
    before = np.concatenate([[0], np.cumsum(mark)])
    has = before[objects.last.astype(np.int64) + 1] > before[objects.first]
    runs_before = np.concatenate([[0], np.cumsum(has)])
    return np.flatnonzero(np.diff(runs_before[objects.indptr]))


class _Most:
    """The greatest of some value among the regions of each object; runs are put in order once."""

    def __init__(self, indptr: I64, first: I32, last: I32) -> None:
        self._indptr = indptr
        # Pairs (first, last + 1) to reduceat; by falling first, what is between two runs is empty.
        self._order = np.argsort(-first, kind="stable")
        self._spans = np.empty(2 * len(first), np.int64)
        self._spans[0::2] = first[self._order]
        self._spans[1::2] = last[self._order].astype(np.int64) + 1
        self._some = np.flatnonzero(np.diff(indptr) > 0)

    def of(self, value: I64, low: int = -1) -> I64:
        """(C,) greatest *value* (V,) of the regions of each object, *low* for one without any."""
        out = np.full(len(self._indptr) - 1, low, np.int64)
        if not len(self._order):
            return out
        padded = np.append(value, low).astype(np.int64)
        by_run = np.empty(len(self._order), np.int64)
        by_run[self._order] = np.maximum.reduceat(padded, self._spans)[0::2]
        out[self._some] = np.maximum.reduceat(by_run, self._indptr[self._some])
        return out
