"""Facts that only the control rules read: views of the file tree, cgroup files, things held.

The three are read together, after the processes and their namespaces.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from osmosis.capture.cgroups import read_cgroup_files
from osmosis.capture.files import FileReader
from osmosis.capture.handles import read_handles
from osmosis.capture.ledger import Ledger
from osmosis.capture.processes import ProcessRecord
from osmosis.capture.views import read_views

__all__ = ["opens_by_handle", "read_control"]

_FD_NSFS_ROOT = -10003  # include/uapi/linux/fcntl.h, v6.18
_AT_EMPTY_PATH = 0x1000


def read_control(
    record: ProcessRecord,
    namespaces: Mapping[str, NDArray[Any]],
    files: FileReader,
    *,
    ledger: Ledger,
) -> dict[str, NDArray[Any]]:
    """Read the tables control, userns, view, procmount, nsmount, cgroupmount, cgroupfile, handle.

    *namespaces* are the columns of ``read_namespaces`` for the same record, and *files* has read
    its descriptors.
    """
    return {
        **read_views(record, namespaces, ledger=ledger),
        **read_cgroup_files(record, ledger=ledger),
        **read_handles(record, namespaces, files, ledger=ledger),
    }


class _Handle(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("data", ctypes.c_ubyte * 128),
    )


def opens_by_handle() -> bool:
    """Whether the kernel opens namespaces by file handle (nsfs, Linux 6.18): try our own."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle, mount = _Handle(bytes=128), ctypes.c_int()
    fd = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.name_to_handle_at(
            fd, b"", ctypes.byref(handle), ctypes.byref(mount), _AT_EMPTY_PATH
        ):
            return False
        opened = libc.open_by_handle_at(
            _FD_NSFS_ROOT, ctypes.byref(handle), os.O_RDONLY | os.O_CLOEXEC
        )
    except (OSError, AttributeError):
        return False
    finally:
        os.close(fd)
    if opened < 0:
        return False
    os.close(opened)
    return True
