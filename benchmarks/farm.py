"""Farms of real processes: fork zygotes, shared segments, private pages, reservations.

A zygote fills its heap; each child copies some of those pages at random by writing to them, so
that nearly every hot page has its own set of sharers. The children sleep; they are stopped by
pid, and die with their zygote in any case.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.peers.compiled import compiled

PAGE = 4096
MOST_BYTES = 12 << 30  # of memory, for a farm
START_RATE = 400  # children a second
FILES = 2000  # that are there to be opened, as farm.c has it


@dataclass(frozen=True, slots=True)
class Shape:
    """What a farm is made of."""

    processes: int = 500
    zygotes: int = 4
    interleaved: bool = False  # children of the zygotes take turns, so that pids alternate
    heap_pages: int = 20_000
    hot_pages: int = 20_000  # the part of the heap in which copies happen
    copies: int = 150  # hot pages that each child writes to
    own_pages: int = 64
    small_vmas: int = 200
    reserve_gib: int = 0
    segments: int = 32  # MAP_SHARED segments
    segment_pages: int = 64
    file_mib: int = 40  # of files to map
    descriptors: int = 0  # that each child opens, about: files, pipes, sockets, eventfds ...

    @property
    def bytes(self) -> int:
        """About how much memory it takes: copies, own pages, page tables, the kernel's own."""
        tables = (self.heap_pages + self.file_mib * 256) * 8
        reserve = 16 * 2 * PAGE if self.reserve_gib else 0
        each = (self.copies + self.own_pages) * PAGE + tables + reserve
        each += self.small_vmas * 400 + 120_000 + self.descriptors * 1500
        once = self.heap_pages * PAGE * self.zygotes + self.segments * self.segment_pages * PAGE
        return self.processes * each + once


def _files(mib: int) -> list[str]:
    """Existing files of some size, mapped as libraries are; none that a build may write to."""
    names: dict[str, int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(None, 5)[5:]
        if path and path[0].startswith(sys.base_prefix) and Path(path[0]).is_file():
            names[path[0]] = Path(path[0]).stat().st_size
    for path in sorted(Path(sys.prefix).rglob("*.so")):
        names.setdefault(str(path), path.stat().st_size)
    chosen, left = [], mib << 20
    for name, size in sorted(names.items(), key=lambda item: (-item[1], item[0])):
        if size <= left:
            chosen.append(name)
            left -= size
        if len(chosen) >= 30 or left < 1 << 20:
            break
    return chosen


class Farm:
    """A context manager; ``pids`` are its sleeping processes, by rising number.

    Raises
    ------
    MemoryError
        The shape would take more than ``MOST_BYTES``, or than there is.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.pids: list[int] = []
        self._zygotes: list[subprocess.Popen[bytes]] = []
        self._memfd = -1
        self._directory: str | None = None

    def __enter__(self) -> Self:
        free = os.sysconf("SC_AVPHYS_PAGES") * PAGE
        if self.shape.bytes > min(MOST_BYTES, free):
            msg = f"the farm would take {self.shape.bytes >> 20} MiB of {free >> 20} MiB"
            raise MemoryError(msg)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        shape = self.shape
        program = str(compiled("farm", library=False))
        self._memfd = os.memfd_create("farm")
        os.truncate(self._memfd, max(1, shape.segments * shape.segment_pages) * PAGE)
        files = _files(shape.file_mib)
        self._directory = tempfile.mkdtemp(prefix="osmosis-farm-")
        for number in range(FILES if shape.descriptors else 0):
            Path(self._directory, str(number)).touch()
        for seed in range(shape.zygotes):
            numbers = (
                shape.heap_pages,
                shape.hot_pages,
                shape.copies,
                shape.own_pages,
                shape.small_vmas,
                shape.reserve_gib,
                seed + 1,
                self._memfd,
                shape.segments,
                shape.segment_pages,
                shape.descriptors,
            )
            zygote = subprocess.Popen(
                [program, *map(str, numbers), self._directory, *files],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[self._memfd],
            )
            self._zygotes.append(zygote)
        each = [
            shape.processes // shape.zygotes + (k < shape.processes % shape.zygotes)
            for k in range(shape.zygotes)
        ]
        batch = 1 if shape.interleaved else 50
        began = time.monotonic()
        left = each[:]
        while any(left):
            for k in range(shape.zygotes):
                while left[k]:
                    n = min(batch, left[k])
                    self._fork(k, n)
                    left[k] -= n
                    wait = len(self.pids) / START_RATE - (time.monotonic() - began)
                    if wait > 0:
                        time.sleep(wait)
                    if shape.interleaved:
                        break
        self.pids.sort()

    def _fork(self, k: int, n: int) -> None:
        stdin, stdout = self._zygotes[k].stdin, self._zygotes[k].stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(b"%d\n" % n)
        stdin.flush()
        for _ in range(n):
            line = stdout.readline()
            if not line:
                msg = f"a zygote ended after {len(self.pids)} children"
                raise RuntimeError(msg)
            self.pids.append(int(line))

    def stop(self) -> None:
        """End every process of the farm, by its pid."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for zygote in self._zygotes:
            zygote.kill()
            for pipe in (zygote.stdin, zygote.stdout):
                if pipe is not None:
                    pipe.close()
            zygote.wait()
        deadline = time.monotonic() + 60
        while any(map(_alive, self.pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.pids, self._zygotes = [], []
        if self._memfd >= 0:
            os.close(self._memfd)
            self._memfd = -1
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def _alive(pid: int) -> bool:
    with suppress(OSError):
        return b" Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    return False
