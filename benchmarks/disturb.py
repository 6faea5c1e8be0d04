"""Disturbs a host at a steady rate, until its stdin is closed.

``python -m benchmarks.disturb capture|smaps|burn PERIOD SECONDS``: captures the host, or reads
smaps of every process, or burns SECONDS of processor time, shared out to as many threads as a
capture has, once every PERIOD seconds. At the end it prints, as JSON: ``times`` that it did so,
``cpu`` seconds it took for one, ``late`` times that one began late, and ``pids`` whose memory was
read each time.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import osmosis
from benchmarks.peers.compiled import compiled, remove
from osmosis.schema import Status


class Disturber:
    """``once()`` does it once; ``pids`` are those whose memory was read each time."""

    def __init__(self, how: str, seconds: float) -> None:
        self.once = {"capture": self.capture, "smaps": self.smaps, "burn": self.burn}[how]
        self.pids: set[int] | None = None
        self.seconds = seconds
        self.threads = len(os.sched_getaffinity(0))
        self._burner: Any = None
        if how == "burn":
            self._burner = ctypes.CDLL(str(compiled("burner", library=True))).burn
            self._burner.argtypes = [ctypes.c_uint64]

    def _read(self, pids: set[int]) -> None:
        self.pids = pids if self.pids is None else self.pids & pids

    def capture(self) -> None:
        snap = osmosis.capture()
        read = snap["mm_status"] == Status.READ
        self._read(set(snap["process_pid"][snap["mm_process"][read]].tolist()))

    def smaps(self) -> None:
        pids = set()
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with suppress(OSError), open(f"/proc/{name}/smaps", "rb", 0) as file:
                    size = 0
                    while part := file.read(1 << 20):
                        size += len(part)
                    if size:
                        pids.add(int(name))
        self._read(pids)

    def burn(self) -> None:
        each = int(self.seconds / self.threads * 1e9)
        with ThreadPoolExecutor(self.threads) as workers:
            list(workers.map(self._burner, [each] * self.threads))


def main() -> None:
    how, period, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    disturber = Disturber(how, seconds)
    disturber.once()
    disturber.pids = None
    times = late = 0
    print("ready", flush=True)
    cpu, following = time.process_time(), time.monotonic()
    while True:
        wait = following - time.monotonic()
        late += wait < -0.1 * period
        if select.select([sys.stdin], [], [], max(0.0, wait))[0]:
            break
        disturber.once()
        times += 1
        following = max(following + period, time.monotonic() - 0.05 * period)
    each = (time.process_time() - cpu) / max(1, times)
    report = {"times": times, "cpu": each, "late": late, "pids": sorted(disturber.pids or ())}
    print(json.dumps(report))
    remove()


if __name__ == "__main__":
    main()
