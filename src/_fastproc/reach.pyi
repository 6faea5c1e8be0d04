import numpy as np
from numpy.typing import NDArray

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]

def spans(
    indptr: I8,  # (C + 1,) into the slices
    low: I8,  # (R,)
    high: I8,  # (R,)
    holder: I4,  # (H,) places
) -> tuple[I8, I4, I4]: ...  # (C + 1,), first, last
def meeting_bits(
    a_indptr: I8, a_first: I4, a_last: I4, b_indptr: I8, b_first: I4, b_last: I4, place: I4
) -> NDArray[np.uint64]: ...  # (n, words)
def meeting_sums(
    indptr: I8, first: I4, last: I4, weight: I8, place: I4
) -> tuple[I8, I4, I8]: ...  # CSR
def row_sums(
    indptr: I8, first: I4, last: I4, weight: I8, places: I4, n: int
) -> I8: ...  # (len(places), n)
