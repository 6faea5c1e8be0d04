"""A parent for all that is started: orphans come to it, and whoever is left is seen and stopped.

A container's shim has itself adopted by init, so nobody could tell afterwards that it was ours.
A child subreaper stands in init's place: what is below it is ours, and only that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from benchmarks.evaluation.base import Handle, comm, descendants, state

__all__ = ["keep", "stop_strays", "strays"]

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # include/uapi/linux/prctl.h
_kept = False  # this process has a keeper above it


def keep(work: Callable[[], int]) -> int:
    """Run *work* in a child, reap its orphans; returns its exit code, or 1 if some were left."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        os._exit(_run(work))

    def forward(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells the child as well
    code = _reap_until(child)
    left = stop_strays()
    for line in left:
        print(f"left behind, and stopped: {line}", file=sys.stderr)
    return code or int(bool(left))


def strays() -> list[int]:
    """Return all below the keeper but this process: what nobody stopped. Zombies do not count."""
    root = os.getppid() if _kept else os.getpid()
    return [
        pid
        for pid in descendants(root)
        if pid not in (root, os.getpid()) and state(pid) not in ("Z", "X", "")
    ]


def stop_strays() -> list[str]:
    """Stop them, and say who they were."""
    said = []
    for pid in strays():
        with contextlib.suppress(OSError):
            said.append(f"process {pid} {comm(pid)}")
            handle = Handle(pid, os.pidfd_open(pid))
            handle.stop(2)
            os.close(handle.fd)
    return said


def _run(work: Callable[[], int]) -> int:
    global _kept
    _kept = True
    try:
        return work()
    except SystemExit as exc:
        if isinstance(exc.code, str):
            print(exc.code, file=sys.stderr)
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _reap_until(child: int) -> int:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return os.waitstatus_to_exitcode(status) % 256
