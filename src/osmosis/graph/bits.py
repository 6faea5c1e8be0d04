"""Rows of bits: column j of a matrix is bit ``j & 63`` of word ``j >> 6``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bits", "Bools", "clear_diagonal", "pack", "transposed", "unpack", "words"]

Bits = NDArray[np.uint64]  # (P, words(P))
Bools = NDArray[np.bool_]


def words(n: int) -> int:
    """Words that n bits need."""
    return (n + 63) // 64


def pack(dense: Bools) -> Bits:
    """Return (M, n) bool as (M, words(n)) uint64, column j in bit ``j & 63`` of word ``j >> 6``."""
    m, n = dense.shape
    octets = np.zeros((m, words(n) * 8), np.uint8)
    octets[:, : (n + 7) // 8] = np.packbits(dense, axis=1, bitorder="little")
    return octets.view("<u8").astype(np.uint64, copy=False)


def unpack(bits: Bits, n: int, first: int = 0) -> Bools:
    """Return columns ``first .. first + n - 1`` of *bits* as bool; ``first`` a multiple of 8."""
    octets = np.ascontiguousarray(bits.astype("<u8", copy=False)).view(np.uint8)
    start = first // 8
    part = np.ascontiguousarray(octets[:, start : start + (n + 7) // 8])
    return np.unpackbits(part, axis=1, count=n, bitorder="little").view(bool)


def transposed(bits: Bits, n: int) -> Bits:
    """Return the transpose of (n, words(n)) *bits*. O(n**2 / 64), in squares of 64 x 64 bits.

    The squares change places; within each, halves of rows and columns are exchanged, then
    quarters ... (Warren, Hacker's Delight, 7-3).
    """
    w = words(n)
    square = np.zeros((w, 64, w), np.uint64)
    square.reshape(w * 64, w)[:n] = bits
    square = np.ascontiguousarray(square.transpose(2, 1, 0))
    low = np.uint64(0xFFFFFFFF)
    for half in (32, 16, 8, 4, 2, 1):
        pairs = square.reshape(w, 32 // half, 2, half, w)
        upper, lower = pairs[:, :, 0], pairs[:, :, 1]
        shift = np.uint64(half)
        swap = (upper >> shift ^ lower) & low
        lower ^= swap
        upper ^= swap << shift
        low ^= low << np.uint64(max(half // 2, 1))
    return square.reshape(w * 64, w)[:n]


def clear_diagonal(bits: Bits) -> Bits:
    """Take ``(i, i)`` out of *bits*, in place, and return them."""
    i = np.arange(len(bits))
    bits[i, i >> 6] &= ~(np.uint64(1) << (i & 63).astype(np.uint64))
    return bits
