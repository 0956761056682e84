"""Bans the tokens that a grammar does not allow: one bit for each.

Floor: the bits are read once, and -inf is written where they are 0. Logits are not read.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

TILE = 2048


@triton.jit(do_not_specialize_on_alignment=["rows", "bitmask"])
def _ban(
    logits: tl.tensor,
    rows: tl.tensor,
    bitmask: tl.tensor,
    stride: int,
    num_words: int,
    vocab_size: int,
    TILE: tl.constexpr,
) -> None:
    """One tile of one row: ``program_id(0)`` is the row of the bits."""
    entry = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + entry)
    ids = tl.program_id(1) * TILE + tl.arange(0, TILE)
    words = tl.load(bitmask + entry * num_words + ids // 32, mask=ids < vocab_size, other=-1)
    banned = ((words >> (ids % 32)) & 1) == 0
    tl.store(logits + row * stride + ids, float("-inf"), mask=banned)


def apply_token_bitmask(logits: Tensor, rows: Tensor, bitmask: Tensor) -> None:
    """What `Ops.apply_token_bitmask` says."""
    if len(rows):
        shape = logits.stride(0), bitmask.shape[1], logits.shape[1]
        grid = len(rows), triton.cdiv(logits.shape[1], TILE)
        _ban[grid](logits, rows, bitmask, *shape, TILE, num_warps=4)
