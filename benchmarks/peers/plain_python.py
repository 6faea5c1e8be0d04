"""A page at a time, in plain Python: one seek and one read of 8 bytes for each page of each VMA."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from itertools import combinations


def capture(pids: Iterable[int], skip: Iterable[int]) -> dict[int, set[int]]:
    """Frame number to the processes that map it; *skip* (the zero page), vvar and vdso left out."""
    holders: dict[int, set[int]] = {}
    left_out = set(skip)
    for pid in pids:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb", 0) as pagemap:
            for line in maps:
                fields = line.split()
                start, end = (int(x, 16) for x in fields[0].split("-"))
                if fields[-1] in ("[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]"):
                    continue
                for page in range(start // 4096, end // 4096):
                    pagemap.seek(page * 8)
                    (entry,) = struct.unpack("=Q", pagemap.read(8))
                    if entry >> 63:
                        frame = entry & ((1 << 55) - 1)
                        if frame not in left_out:
                            holders.setdefault(frame, set()).add(pid)
    return holders


def shared_pages(holders: dict[int, set[int]]) -> Counter[tuple[int, int]]:
    """Pages that each pair (lower pid first) has in common; a pair of equals is its own pages."""
    pairs: Counter[tuple[int, int]] = Counter()
    for pids in holders.values():
        ordered = sorted(pids)
        pairs.update((pid, pid) for pid in ordered)
        pairs.update(combinations(ordered, 2))
    return pairs
