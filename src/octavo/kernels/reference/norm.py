"""Normalisation of rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ``Ops.rms_norm``. A float32 ``weight`` beside a 16-bit x is not rounded; the result is."""
    if weight.dtype is x.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See ``Ops.add_layer_norm``."""
    total = x if residual is None else residual.to(torch.float32) + x
    normed = F.layer_norm(total.float(), weight.shape, weight.float(), bias.float(), eps)
    return normed.to(x.dtype), total
