"""Slow plain-Python twins of the memory side, written from the kernel's documents.

They share no constant with ``src``: every bit and number is spelled out again here.
"""

import re
from collections import defaultdict

BIT = {"present": 63, "swap": 62, "file": 61, "ksm": 60, "guard": 58, "uffd": 57, "exclusive": 56}
PAGE = 4096
NONE = 2**64 - 1

ANON, FILE, KSM, HUGETLB, SWAP, DEVICE = range(6)  # FrameKind
V_ANON, V_FILE, V_SHM, V_HEAP, V_STACK, V_VDSO, V_VVAR, V_VSYSCALL, V_OTHER = range(9)  # VmaKind

LINE = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-])([ps]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)"
    rb"(?: +(.*))?",
    re.DOTALL,
)


def entry(pfn: int = 0, *marks: str) -> int:
    """One pagemap entry: "present" unless "swap" is among the marks."""
    word = pfn
    for mark in marks:
        word |= 1 << BIT[mark] if mark != "absent" else 0
    if "swap" not in marks and "absent" not in marks:
        word |= 1 << BIT["present"]
    return word


def swap_entry(kind: int, offset: int, *marks: str) -> int:
    return entry(kind | offset << 5, "swap", *marks)


# -- maps


def parse_maps(text: bytes, shm_dev: int, huge_devs: tuple[int, ...] = ()) -> list[dict]:
    """Return the VMAs of a maps file; ValueError(line) for the first that does not parse."""
    out = []
    *lines, rest = text.split(b"\n")
    for line in [*lines, *([rest] if rest else [])]:
        found = LINE.fullmatch(line)
        if found is None or line is rest:
            raise ValueError(line)
        start, end, rwx, share, offset, major, minor, inode, path = found.groups()
        path = path or b""
        dev = int(major, 16) << 32 | int(minor, 16)
        vma = {
            "start": int(start, 16),
            "end": int(end, 16),
            "offset": int(offset, 16),
            "prot": sum(bit for bit, on in zip((4, 2, 1), rwx, strict=True) if on != ord("-"))
            + (8 if share == b"s" else 0),
            "dev": dev,
            "inode": int(inode),
            "path": path.replace(b"\\012", b"\n"),
            "vma_kind": vma_kind(dev, int(inode), path, shm_dev, huge_devs),
        }
        numbers = (vma["start"], vma["end"], vma["offset"], vma["inode"])
        if vma["end"] <= vma["start"] or max(numbers) >= 2**64:
            raise ValueError(line)
        if max(len(digits) for digits in (start, end, offset, major, minor)) > 16:
            raise ValueError(line)
        if max(int(major, 16), int(minor, 16)) >= 2**32:
            raise ValueError(line)
        out.append(vma)
    return out


def vma_kind(dev: int, inode: int, path: bytes, shm_dev: int, huge_devs: tuple[int, ...]) -> int:
    if dev or inode:
        shm = path == b"/dev/zero (deleted)" or path.startswith(b"[anon_shmem:")
        sysv = path.startswith(b"/SYSV")
        if (dev == shm_dev and (shm or sysv)) or (dev in huge_devs and sysv):
            return V_SHM
        return V_FILE
    if not path or path.startswith(b"[anon:"):
        return V_ANON
    if path.startswith(b"[vvar"):
        return V_VVAR
    named = {b"[heap]": V_HEAP, b"[stack]": V_STACK, b"[vdso]": V_VDSO, b"[vsyscall]": V_VSYSCALL}
    return named.get(path, V_OTHER)


def object_of(vma: dict, ipc: int) -> tuple | None:
    """What the VMA maps: (FileKind, dev, inode, ipc)."""
    if vma["vma_kind"] == V_FILE:
        return (0, vma["dev"], vma["inode"], -1)
    if vma["vma_kind"] == V_SHM:
        sysv = vma["path"].startswith(b"/SYSV")
        return (1 if sysv else 2, vma["dev"], vma["inode"], ipc if sysv else -1)
    return None


def kind_of(vma: dict, ipc: int) -> tuple:
    """VMAs of one kind are those of equal answers."""
    what = object_of(vma, ipc)
    if what is None:
        return ("anon", vma["start"], vma["prot"])
    return (*what, vma["offset"], vma["prot"])


# -- pagemap


def populated(
    entries: dict[int, int],
    vmas: list[tuple[int, int, int]],  # (first page, end page, VmaKind)
    *,
    zero: int = NONE,
    huge_zero: int = NONE,
    huge_pages: int = 512,
    swap: bool = False,
    ksm: frozenset[int] = frozenset(),
) -> tuple[list[list[int]], list[tuple[int, int, int]]]:
    """Entries that count, by VMA, and (present, swapped, zero) of each."""
    kept, counts = [], []
    for first, end, kind in vmas:
        mine, present, swapped, zeros = [], 0, 0, 0
        for page in range(first, end) if kind != V_VSYSCALL else ():
            word = entries.get(page, 0)
            pfn = word % 2**55
            is_file = word >> 61 & 1
            if word >> 63 & 1:
                present += 1
                if pfn == zero or huge_zero <= pfn < huge_zero + huge_pages:
                    zeros += 1
                elif kind != V_VVAR and not (kind == V_VDSO and is_file):
                    mine.append(word | (1 << 60 if pfn in ksm and not is_file else 0))
            elif word >> 62 & 1 and not word >> 58 & 1 and swap and word % 32 < 23:
                swapped += 1
                mine.append(word)
        kept.append(mine)
        counts.append((present, swapped, zeros))
    return kept, counts


# -- frames


def frame_of(word: int, shared: bool) -> tuple[int, int, bool]:
    """(key, FrameKind, whether no other address space maps it) of a counted entry."""
    if not word >> 63 & 1:
        return (1 << 63 | word % 2**55, SWAP, False)
    if word >> 61 & 1:
        return (word % 2**55, FILE, False)
    if word >> 60 & 1:
        return (word % 2**55, KSM, False)
    if shared:
        return (word % 2**55, DEVICE, False)
    return (word % 2**55, ANON, bool(word >> 56 & 1))


class Frames:
    """Twin of FrameIndex and Partition: every life of every frame with the set of its regions."""

    def __init__(self) -> None:
        self.now: dict[int, list] = {}  # key -> [kind, alone, regions, visit]
        self.past: list[tuple[int, frozenset]] = []
        self.visits = 0

    def visit(self, region: int, shared: bool, entries: list[int]) -> None:
        self.visits += 1
        # Of a region's several sightings of a frame the first kind counts, "alone" last.
        seen = {frame_of(word, shared) for word in entries}
        for key, kind, alone in sorted(seen, key=lambda one: (one[2], one[1])):
            life = self.now.get(key)
            if life is not None and life[3] == self.visits:
                continue
            if life is not None and (life[:2] != [kind, alone] or alone):
                self.past.append((life[0], frozenset(life[2])))
                life = None
            if life is None:
                life = self.now[key] = [kind, alone, set(), 0]
            life[2].add(region)
            life[3] = self.visits

    def classes(self, keep: set[int]) -> dict[tuple[int, frozenset], int]:
        """Frames by (kind, regions that are kept)."""
        out: dict = defaultdict(int)
        lives = [*self.past, *((kind, regions) for kind, _, regions, _ in self.now.values())]
        for kind, regions in lives:
            if regions & keep:
                out[kind, frozenset(regions & keep)] += 1
        return dict(out)


def partition(objects) -> dict[tuple[int, frozenset[int]], int]:
    """Pages by (kind, regions) of an ``Objects``; empty objects left out."""
    out: dict = defaultdict(int)
    for c in range(len(objects)):
        regions: set[int] = set()
        for r in range(objects.indptr[c], objects.indptr[c + 1]):
            regions |= set(range(objects.first[r], objects.last[r] + 1))
        if regions and objects.pages[c]:
            out[int(objects.kind[c]), frozenset(regions)] += int(objects.pages[c])
    return dict(out)
