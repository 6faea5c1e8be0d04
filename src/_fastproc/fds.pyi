from typing import Any

import numpy as np
from numpy.typing import NDArray

READ: int
WRITE: int
NO_MODE: int

def scan(
    dirfds: NDArray[np.int32],  # (P,) -1 to pass one over
    process: NDArray[np.int32],  # (P,)
) -> tuple[dict[str, NDArray[Any]], list[bytes], NDArray[np.int32]]: ...
def same_files(
    tids: NDArray[np.int32],  # (N,)
    fds: NDArray[np.int32],  # (N,)
) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...
