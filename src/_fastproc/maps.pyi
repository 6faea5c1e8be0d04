from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

@disjoint_base
class Lines:
    overlap: bool  # a line begins before the one above it ends: the file was torn
    def __new__(cls) -> Self: ...
    def __len__(self) -> int: ...
    def parse(self, text: bytes | NDArray[np.uint8]) -> None: ...  # ValueError with the line
    def open(self, dirfd: int) -> int: ...  # pagemap's descriptor; OSError, ValueError

@disjoint_base
class VmaTable:
    def __new__(
        cls,
        add_string: Callable[[bytes], int],  # number of a string, the same for the same
        shm_dev: int,  # device of shared anonymous memory and SysV segments
        huge_devs: tuple[int, ...] = ...,  # those of the kernel's own hugetlbfs mounts
    ) -> Self: ...
    def __len__(self) -> int: ...
    def add(
        self,
        lines: Lines | bytes | NDArray[np.uint8],
        mm: int,  # kept in column "mm"
        ipc: int = -1,  # its ipc namespace
    ) -> tuple[int, int]: ...  # first row, rows; ValueError with the line (bytes)
    def rows(self, first: int, n: int) -> tuple[NDArray[Any], ...]: ...  # start, end (n,) u64;
    # vma_kind, prot (n,) u8; kind (n,) i32; ValueError
    def set_counts(
        self,
        first: int,
        counts: NDArray[np.int64],  # (n, 3) present, swapped, zero; ValueError
    ) -> None: ...
    def columns(self) -> dict[str, NDArray[Any]]: ...  # each (len(self),)
    def object_table(self) -> list[tuple[int, int, int, int, int]]: ...  # FileKind, dev, inode,
    # ipc, string
