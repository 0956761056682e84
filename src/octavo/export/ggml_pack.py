"""GGML's simplest block types, from float32 to packed bytes: the inverse of `octavo.ggml.formulas`.

Each block of 32 weights has its own scale. The roundings, and the float16 in which scales are stored, are those of
GGML's reference, so that the bytes are the same as those of its tools.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

BLOCK = 32
CHUNK_BLOCKS = 1 << 13
"""Blocks packed at a time: 1 MiB of float32."""


def q8_0(blocks: Floats) -> Bytes:
    """``[n, 32]`` to ``[n, 34]``: the largest weight becomes 127; halves round away from zero."""
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = np.abs(blocks * _inverse(d))
    whole = np.floor(scaled)
    whole += np.floor(2 * (scaled - whole))
    q = np.copysign(whole, blocks).astype(np.int8)
    return np.concatenate([_half(d), q.view(np.uint8)], axis=1)


def q4_0(blocks: Floats) -> Bytes:
    """``[n, 32]`` to ``[n, 18]``: the weight that is largest by magnitude becomes -8, with its sign in the scale."""
    where = np.abs(blocks).argmax(axis=1, keepdims=True)
    d = np.take_along_axis(blocks, where, axis=1) / np.float32(-8)
    q = np.minimum(np.trunc(blocks * _inverse(d) + np.float32(8.5)), 15).astype(np.uint8)
    return np.concatenate([_half(d), _nibbles(q)], axis=1)


def q4_1(blocks: Floats) -> Bytes:
    """``[n, 32]`` to ``[n, 20]``: 16 steps from the least weight to the largest."""
    low = blocks.min(axis=1, keepdims=True)
    d = (blocks.max(axis=1, keepdims=True) - low) / np.float32(15)
    q = np.minimum(np.trunc((blocks - low) * _inverse(d) + np.float32(0.5)), 15).astype(np.uint8)
    return np.concatenate([_half(d), _half(low), _nibbles(q)], axis=1)


PACKERS: dict[str, Callable[[Floats], Bytes]] = {"Q8_0": q8_0, "Q4_0": q4_0, "Q4_1": q4_1}
"""Type of block -> its packer."""


def pack(weights: Floats, kind: str) -> Bytes:
    """Pack finite weights, whose last dimension is a multiple of 32: ``uint8``, flat."""
    blocks = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, BLOCK)
    packer = PACKERS[kind]
    parts = [packer(blocks[i : i + CHUNK_BLOCKS]) for i in range(0, len(blocks), CHUNK_BLOCKS)]
    return np.concatenate(parts).reshape(-1) if parts else np.empty(0, np.uint8)


def _inverse(d: Floats) -> Floats:
    """1 / d in float32; 0 where that is infinite: such a scale is 0 in float16."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _half(x: Floats) -> Bytes:
    """Each number of ``[n, 1]`` as two bytes of float16; what is beyond its range becomes infinite."""
    with np.errstate(over="ignore"):
        return x.astype("<f2").view(np.uint8)


def _nibbles(q: Bytes) -> Bytes:
    """``[n, 32]`` integers of four bits in ``[n, 16]`` bytes: weights 0 to 15 in the low halves, the others above."""
    packed: Bytes = q[:, :16] | q[:, 16:] << np.uint8(4)
    return packed
