"""Products of bfloat16 by oneDNN, with weights laid out once as it likes them: for where there is no compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.packed import Operand, PackedWeight

ROWS_HINT = 32
"""How many rows oneDNN is told to expect when it chooses the layout. Measured from 1 to 256, it makes no difference."""


def packs_weights() -> bool:
    """Whether this torch has the packed product and this CPU the instructions for it."""
    has_op = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
    return has_op and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(weight: Operand) -> Operand:
    """``weight [N, K]`` laid out for ``linear``, or as it is where it is not bfloat16 or oneDNN cannot."""
    if isinstance(weight, PackedWeight) or weight.dtype is not torch.bfloat16 or not packs_weights():
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
    return packed


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x [..., K] @ weight [N, K].T + bias [N]`` with a weight that ``pack`` has laid out: ``[..., N]``."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
