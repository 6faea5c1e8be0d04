from typing import Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

@disjoint_base
class FrameIndex:
    def __new__(
        cls,
        *,
        zero_pfn: int = ...,
        huge_zero_pfn: int = ...,
        huge_pages: int = 512,
        swap: bool = False,
    ) -> Self: ...
    @property
    def pairs(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def visit(
        self,
        kind: NDArray[np.int32],  # (V,)
        prot: NDArray[np.uint8],  # (V,) bit 8: MAP_SHARED
        indptr: NDArray[np.int64],  # (V + 1,)
        words: NDArray[np.uint64],  # (N,) of all pages of the regions
        row: int = 0,  # of the first region
        when: int = 0,
    ) -> NDArray[np.int64]: ...  # (V, 3) present, swapped, zero; ValueError, MemoryError
