import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

@disjoint_base
class ClassTable: ...

def canonical(
    indptr: NDArray[np.int64],  # (C + 1,)
    first: NDArray[np.int32],  # (R,)
    last: NDArray[np.int32],  # (R,)
) -> tuple[
    NDArray[np.int64], NDArray[np.int32], NDArray[np.int32], NDArray[np.uint64]
]: ...  # indptr, first, last, hash (C, 2); ValueError
