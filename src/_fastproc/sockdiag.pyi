import numpy as np
from numpy.typing import NDArray

ROW_BYTES: int

def measure(data: bytes | bytearray | NDArray[np.uint8]) -> tuple[int, int, bool, bool]: ...
def parse(
    data: bytes | bytearray | NDArray[np.uint8],
    rows: NDArray[np.uint8],  # (n * ROW_BYTES,), overwritten
    waiting: NDArray[np.int64],  # (m, 2), overwritten
) -> None: ...
