"""A mixture of experts (arXiv:1701.06538): choosing a token's experts, and sending tokens through them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def top_experts(logits: Tensor, k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """See ``Ops.top_experts``."""
    weights, ids = logits.softmax(dim=-1, dtype=torch.float32).topk(k, dim=-1)
    return (weights / weights.sum(dim=-1, keepdim=True) if normalise else weights), ids


def experts(x: Tensor, weights: Tensor, ids: Tensor, expert: Callable[[int, Tensor], Tensor]) -> Tensor:
    """See ``Ops.experts``: a loop over the experts that some token asks for. Sums are float32.

    ``expert(e, rows)`` is what expert e makes of ``rows [N, H]``.
    """
    out = torch.zeros_like(x, dtype=torch.float32)
    for e in ids.unique().tolist():
        token, rank = (ids == e).nonzero(as_tuple=True)
        out.index_add_(0, token, expert(e, x[token]).float() * weights[token, rank, None])
    return out.to(x.dtype)
