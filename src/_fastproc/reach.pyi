from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

_I4: TypeAlias = NDArray[np.int32]
_I8: TypeAlias = NDArray[np.int64]

def grouped(ends: _I4, n: int) -> tuple[_I4, _I4]: ...  # (n + 1,), (E,)
def spans(
    indptr: _I8,  # (C + 1,) into the slices
    low: _I8,  # (R,)
    high: _I8,  # (R,)
    holder: _I4,  # (H,) places
) -> tuple[_I8, _I4, _I4]: ...  # (C + 1,), first, last
def meeting_bits(
    a_indptr: _I8, a_first: _I4, a_last: _I4, b_indptr: _I8, b_first: _I4, b_last: _I4, place: _I4
) -> NDArray[np.uint64]: ...  # (n, words)
def meeting_sums(
    indptr: _I8, first: _I4, last: _I4, weight: _I8, rows: _I4, cols: _I4, n: int
) -> tuple[_I8, _I4, _I8]: ...  # CSR (r, c)
def meeting_ratios(
    indptr: _I8, first: _I4, last: _I4, weight: _I8, rows: _I4, cols: _I4, n: int
) -> NDArray[np.float64]: ...  # (r, c)
def row_sums(
    indptr: _I8, first: _I4, last: _I4, weight: _I8, places: _I4, n: int
) -> _I8: ...  # (len(places), n)
def bit_product(
    a: NDArray[np.uint64], b: NDArray[np.uint64]
) -> NDArray[np.uint64]: ...  # (m, k), (n, w) -> (m, w)

@disjoint_base
class Join:
    @property
    def sides(self) -> tuple[NDArray[Any], ...]: ...
    def __init__(
        self,
        a_indptr: _I8,
        a_first: _I4,
        a_last: _I4,
        b_indptr: _I8,
        b_first: _I4,
        b_last: _I4,
        place: _I4,
    ) -> None: ...
    def bits(self) -> NDArray[np.uint64]: ...  # (n, words)
    def row(self, i: int) -> NDArray[np.bool_]: ...  # (n,)
