"""The CPU backend: bfloat16 products with weights laid out once for oneDNN.

``torch.nn.functional.linear`` brings a bfloat16 weight into oneDNN's blocked layout in every call. Done once, after
loading, the same kernel computes the same bits in about two thirds of the time (less for one row, or a wide head).
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.reference.ops import ReferenceOps

ROWS_HINT = 32
"""How many rows oneDNN is told to expect when it chooses the layout. Measured from 1 to 256, it makes no difference."""


class CpuOps(ReferenceOps):
    """`ReferenceOps` with weights packed for a CPU that computes in bfloat16."""

    def pack_linear(self, weight: Tensor) -> Tensor:
        if weight.dtype is not torch.bfloat16:
            return weight
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
        return packed

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not weight.is_mkldnn:
            return super().linear(x, weight, bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product


def is_supported() -> bool:
    """Whether this torch has the packed product and this CPU the instructions for it."""
    has_op = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
    return has_op and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
