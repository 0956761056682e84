"""The operations that a backend's are compared with."""

from __future__ import annotations

import pytest
import torch

from octavo.check import dense
from octavo.check.dense import DenseOps
from octavo.kernels.packed import StackedWeight
from octavo.kernels.reference.quantized import dequantize
from octavo.quantization.pack import quantize


@pytest.mark.parametrize("form", ["plain", "int8", "stacked"])
def test_logits_are_the_sums_in_float32(monkeypatch, form):
    monkeypatch.setattr(dense, "HEAD_ROWS", 16)
    random = torch.Generator().manual_seed(0)
    plain, x = (torch.randn(rows, 64, generator=random).bfloat16() for rows in (50, 3))
    parts = (plain[:20], quantize(plain[20:], "int8"))
    weight = {"plain": plain, "int8": quantize(plain, "int8"), "stacked": StackedWeight(parts=parts)}[form]
    exact = x.double() @ dequantize(weight, torch.float64).T
    torch.testing.assert_close(DenseOps().logits(x, weight), exact.float(), rtol=1e-5, atol=1e-5)
