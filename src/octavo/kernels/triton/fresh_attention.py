"""Long fresh prompts by cuDNN, through torch's ``scaled_dot_product_attention``.

On Hopper cuDNN's kernel keeps the tensor cores busier than Triton can (590 TFLOP/s against 539 on an H100: 8192 tokens,
32/8 heads of 128, causal). But it is compiled for every length anew. So it gets only whole multiples of `STEP` queries
from the beginning of a prompt, of which there are few; the tiles of `prefill_attention` do the rest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from octavo.kernels.triton.attention_plan import FreshRow, Scores
from octavo.kernels.triton.capability import HOPPER, capability

STEP = 1024


def is_supported(q: Tensor, scores: Scores) -> bool:
    """Whether cuDNN computes this, and fast: 16-bit numbers on Hopper, no window, no soft cap."""
    plain = scores.window is None and scores.soft_cap is None
    fitting = q.dtype in (torch.bfloat16, torch.float16) and q.shape[2] in (64, 128)
    return plain and fitting and capability(q.device)[0] == HOPPER


def attend_whole(q: Tensor, qkv: Tensor, num_kv_heads: int, out: Tensor, row: FreshRow, scale: float) -> None:
    """Write the results of the row's first ``num_tokens // STEP * STEP`` queries into ``out [T, Hq * D]``.

    ``q [T, Hq, D]``; keys and values are in ``qkv [T, (Hq + 2 Hk) * D]``.
    """
    tokens = slice(row.first_token, row.first_token + row.num_tokens // STEP * STEP)
    hq, d = q.shape[1], q.shape[2]
    k, v = qkv[tokens, hq * d :].view(-1, 2, num_kv_heads, d).permute(1, 2, 0, 3)[:, None]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        done = F.scaled_dot_product_attention(
            q[tokens].transpose(0, 1)[None], k, v, is_causal=True, scale=scale, enable_gqa=hq > num_kv_heads
        )
    out[tokens].view(-1, hq, d).copy_(done[0].transpose(0, 1))
