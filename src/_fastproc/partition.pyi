from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from _fastproc.frames import FrameIndex

@disjoint_base
class Partition:
    def __init__(
        self,
        indexes: Iterable[FrameIndex],
        keep: NDArray[np.uint8],  # (N,) by row: whether it counts
    ) -> None: ...  # ValueError, MemoryError
    region: NDArray[np.int32]  # (N,) -1 for those that do not count
    kind: NDArray[np.uint8]  # (C,) FrameKind
    pages: NDArray[np.int64]  # (C,)
    indptr: NDArray[np.int64]  # (C + 1,)
    first: NDArray[np.int32]  # (R,) region
    last: NDArray[np.int32]  # (R,)
    replaced: int
    def frames_of(
        self,
        wanted: NDArray[np.uint8],  # (C,)
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]: ...  # frame, class; ValueError
