"""Random numbers made of a seed and a position alone, so that a request's tokens do not hang on its batch."""

from __future__ import annotations

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Words = tuple[np.ndarray, ...]


def philox4x32(counter: Words, key: Words) -> Words:
    """Philox4x32-10, a counter-based generator.

    Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    ``counter`` is four and ``key`` two uint64 arrays [S] of 32-bit words; returns four such arrays.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> _HALF) ^ c1 ^ k0, right & _LOW, (left >> _HALF) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One number in [0, 1) with 53 random bits, float64 [S], for each seed and position, uint64 [S] both."""
    zero = np.zeros_like(positions)
    counter = (positions & _LOW, positions >> _HALF, zero, zero)
    high, low, _, _ = philox4x32(counter, (seeds & _LOW, seeds >> _HALF))
    bits: np.ndarray = (high << _HALF | low) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
