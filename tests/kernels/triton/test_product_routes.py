"""Products through the seam: whichever kernel a number of rows takes, the result is the reference's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton import matvec
from octavo.kernels.triton.ops import TritonOps

N, K, EPS = 24, 40, 1e-6
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def randn(*shape: int, seed: int, device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype is expected.dtype
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 3)


@pytest.mark.parametrize("tokens", [1, matvec.MAX_TOKENS, matvec.MAX_TOKENS + 1])
@pytest.mark.parametrize("streams", [False, True])
def test_products_are_the_references(device, dtype, tokens, streams):
    def inputs() -> tuple[Tensor, Tensor | None]:
        x = randn(tokens, K, seed=0, device=device, dtype=dtype)
        return x, randn(tokens, K, seed=1, device=device, dtype=torch.float32) if streams else None

    norm_weight = randn(K, seed=2, device=device, dtype=dtype)
    weight, bias = (randn(*s, seed=3, device=device, dtype=dtype) / 6 for s in ((N, K), (N,)))
    ours, reference = TritonOps(), ReferenceOps()
    close(ours.linear(inputs()[0], weight, bias), reference.linear(inputs()[0], weight, bias), dtype)
    for name in ("add_norm_linear", "add_norm_gate_up"):
        (a, a_stream), (b, b_stream) = (
            getattr(ops, name)(*inputs(), norm_weight, EPS, weight, bias) for ops in (ours, reference)
        )
        close(a, b, dtype)
        close(a_stream, b_stream, torch.float32 if streams else dtype)
