from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

@disjoint_base
class FrameIndex:
    def __new__(cls) -> Self: ...
    @property
    def replaced(self) -> int: ...
    @property
    def pairs(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def visit(
        self,
        kind: NDArray[np.int32],  # (V,)
        ordinal: NDArray[np.int32],  # (V,)
        prot: NDArray[np.uint8],  # (V,) bit 8: MAP_SHARED
        indptr: NDArray[np.int64],  # (V + 1,)
        entries: NDArray[np.uint64],  # (N,)
    ) -> None: ...  # ValueError, MemoryError
    def classes_and_runs(self) -> dict[str, NDArray[Any]]: ...  # id, kind, frames, shy, indptr,
    # run_kind, run_first, run_last
    def frames_of(
        self,
        wanted: NDArray[np.uint8],  # by class id
    ) -> tuple[NDArray[np.uint64], NDArray[np.int32]]: ...

def canonical(
    indptr: NDArray[np.int64],  # (C + 1,)
    first: NDArray[np.int32],  # (R,)
    last: NDArray[np.int32],  # (R,)
) -> tuple[
    NDArray[np.int64], NDArray[np.int32], NDArray[np.int32], NDArray[np.uint64]
]: ...  # indptr, first, last, hash (C, 2); ValueError
