"""The floor of reading descriptors, called through ctypes: a bare C loop of the system calls."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from benchmarks.peers.compiled import compiled


class Result(ctypes.Structure):
    """What was read, and how long it took."""

    _fields_ = [  # ctypes wants a plain list
        (name, ctypes.c_uint64)
        for name in ("descriptors", "links", "files", "anonymous", "sum", "cpu_ns", "kcmp_ns")
    ]


@cache
def _library() -> Any:
    return ctypes.CDLL(str(compiled("c_descriptors", library=True)))


def read_all(pids: Sequence[int]) -> Result:
    """Read all, in one thread, the GIL released. RuntimeError if a process could not be read."""
    out = Result()
    numbers = (ctypes.c_int * len(pids))(*pids)
    done = _library().read_descriptors(numbers, len(pids), ctypes.byref(out))
    if done != len(pids):
        msg = f"{len(pids) - done} processes could not be read"
        raise RuntimeError(msg)
    return out
