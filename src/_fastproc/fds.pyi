from typing import Any

import numpy as np
from numpy.typing import NDArray

READ: int
WRITE: int
NO_MODE: int
NO_LINE: int
UNREADABLE: int

def scan(
    dirfds: NDArray[np.int32],  # (P,) -1 to pass one over
    process: NDArray[np.int32],  # (P,)
) -> tuple[dict[str, NDArray[Any]], list[bytes], NDArray[np.int32]]: ...
def info_numbers(
    dirfds: NDArray[np.int32],  # (N,) -1 to pass one over
    fds: NDArray[np.int32],  # (N,)
    key: bytes,
) -> NDArray[np.int64]: ...  # (N,)
def same_files(
    tids: NDArray[np.int32],  # (N,)
    fds: NDArray[np.int32],  # (N,)
) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...
