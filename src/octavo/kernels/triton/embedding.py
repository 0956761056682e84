"""Embedding: row ``ids[t]`` of the table becomes row t of the result. A gather, so nothing but bytes.

Floor: T rows read and T rows written. A program copies one chunk of one row: 1024 numbers with 128 threads are one
16-byte access each in 16 bits, and even a single long row keeps several multiprocessors busy.

As the first kernel of a step it is never launched as a programmatic dependent (`pdl`): those behind it rely on that.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["ids"])
def _embedding(
    ids: tl.tensor, weight: tl.tensor, out: tl.tensor, num_rows: int, H: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids + token).to(tl.int64)
    known = (row >= 0) & (row < num_rows)
    values = tl.load(weight + row * H + column, mask=(column < H) & known, other=float("nan"))
    tl.store(out + token * H + column, values, mask=column < H)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of ``weight [V, H]`` (contiguous) for ``ids [T]`` int64 or int32: ``[T, H]``.

    An id outside the table gives a row of NaN, which spoils one request and is noticed when a token is drawn from it;
    the memory beyond the table is not read.
    """
    num_rows, hidden = weight.shape
    out = torch.empty(len(ids), hidden, dtype=weight.dtype, device=weight.device)
    if len(ids):
        _embedding[(len(ids), triton.cdiv(hidden, BLOCK))](ids, weight, out, num_rows, H=hidden, BLOCK=BLOCK)
    return out
