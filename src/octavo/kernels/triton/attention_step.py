"""The inner step of both attention kernels: softmax over keys that come tile by tile (arXiv:1805.02867, 2205.14135).

A query keeps the greatest score so far, ``peak``, the sum ``mass`` of ``exp(score - peak)`` and the sum ``acc`` of
these weights times values. When a tile brings a greater score, both sums are scaled down. Exponents are to the base
2, which is what the hardware computes: the factor log2(e) is part of the scale, so it costs nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

from octavo.kernels.triton.attention_plan import Scores

LOG2_E = math.log2(math.e)


class Factors(NamedTuple):
    """``Scores`` as the kernels take them.

    Attributes:
        factor: turns a score (a product, if there is no cap) into an exponent of 2.
        cap: the soft cap, or 0.
        cap_factor: turns a product into the exponent of 2 from which the tangent is made.
    """

    factor: float
    cap: float
    cap_factor: float

    @classmethod
    def of(cls, scores: Scores) -> Factors:
        """The factors of ``scores``."""
        if scores.soft_cap is None:
            return cls(scores.scale * LOG2_E, 0.0, 0.0)
        return cls(LOG2_E, scores.soft_cap, 2.0 * LOG2_E * scores.scale / scores.soft_cap)


@triton.jit
def soft_cap(products: tl.tensor, cap: float, cap_factor: float) -> tl.tensor:
    """``cap * tanh(scale * products / cap)``, with ``tanh x = 1 - 2 / (exp(2 x) + 1)``: right at both infinities."""
    return cap - 2.0 * cap / (tl.exp2(products * cap_factor) + 1.0)


@triton.jit
def load_rows(
    base: tl.tensor, starts: tl.tensor, like: tl.tensor, D: tl.constexpr, D_PADDED: tl.constexpr
) -> tl.tensor:
    """Keys or values ``[N, D_PADDED]`` in the dtype of ``like`` from the rows that begin at ``base + starts [N]``."""
    d = tl.arange(0, D_PADDED)[None, :]
    if D == D_PADDED:
        rows = tl.load(base + starts[:, None] + d)
    else:
        rows = tl.load(base + starts[:, None] + d, mask=d < D, other=0.0)
    return rows.to(like.dtype)


@triton.jit
def load_scales(
    scales: tl.tensor, block: tl.tensor, kv_head: tl.tensor, offset: tl.tensor, sizes: tl.tuple
) -> tuple[tl.tensor, tl.tensor]:
    """The scales of keys and of values at ``offset`` in ``block`` of an int8 cache, whose ``sizes`` are its numbers of
    blocks, of heads, and of tokens in a block.
    """
    num_blocks, kv_heads, block_size = sizes
    at = scales + (block * kv_heads + kv_head) * block_size + offset
    return tl.load(at), tl.load(at + tl.cast(num_blocks, tl.int64) * kv_heads * block_size)


@triton.jit
def softmax_step(
    acc: tl.tensor,
    peak: tl.tensor,
    mass: tl.tensor,
    scores: tl.tensor,
    factor: float,
    values: tl.tensor,
    MAY_SEE_NOTHING: tl.constexpr,
    value_scales: tl.tensor | None = None,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Take in a tile: ``acc [M, D]``, ``peak [M]``, ``mass [M]``, ``scores [M, N]``, ``values [N, D]``.

    Hidden scores are -inf. MAY_SEE_NOTHING: a query may have seen no key yet after this tile; otherwise a test is
    saved. ``value_scales [N]``: what the values are multiplied by, if anything.
    """
    higher = tl.maximum(peak, tl.max(scores, 1) * factor)
    shift = tl.where(higher == float("-inf"), 0.0, higher) if MAY_SEE_NOTHING else higher
    weights = tl.exp2(scores * factor - shift[:, None])
    decay = tl.exp2(peak - shift)
    mass = mass * decay + tl.sum(weights, 1)
    if value_scales is not None:
        weights *= value_scales[None, :]
    acc = tl.dot(weights.to(values.dtype), values, acc * decay[:, None], input_precision="ieee")
    return acc, higher, mass
