"""Packed blocks are, to the last bit, those of the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from octavo.export.ggml_pack import PACKERS, pack
from octavo.ggml.block_types import dequantize


def hard_cases(rng: np.random.Generator) -> np.ndarray:
    """Random rows, and those where rounding is hard: zeros, equal weights, halves and their neighbours."""
    weights = rng.standard_normal((40, 256)).astype(np.float32)
    weights[0], weights[1], weights[2, ::2] = 0, 3, 0
    weights[3] = np.tile(np.arange(32) - 16, 8) / 2
    weights[4] = np.tile(np.r_[127, np.arange(31) + 0.5], 8)
    weights[5] = np.nextafter(weights[4], np.float32(0))
    weights[5, ::32] = 127
    weights[6] = -weights[5]
    return weights


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e7])
@pytest.mark.parametrize("kind", PACKERS)
def test_equal_to_the_gguf_package(kind: str, scale: float) -> None:
    weights = hard_cases(np.random.default_rng(0)) * np.float32(scale)
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(pack(weights, kind), expected.reshape(-1))


@pytest.mark.parametrize(("kind", "limit"), [("Q8_0", 0.006), ("Q4_1", 0.09), ("Q4_0", 0.1)])
def test_error_of_normal_weights(kind: str, limit: float) -> None:
    weights = np.random.default_rng(1).standard_normal((64, 512)).astype(np.float32)
    back = dequantize(pack(weights, kind), kind).reshape(weights.shape)
    assert np.sqrt(np.mean((back - weights) ** 2)) < limit


@pytest.mark.parametrize("kind", PACKERS)
def test_weights_too_small_for_a_scale_become_zero(kind: str) -> None:
    assert not dequantize(pack(np.full((1, 32), 1e-42, np.float32), kind), kind).any()


def test_nothing_at_all() -> None:
    assert pack(np.empty((0, 32), np.float32), "Q4_0").shape == (0,)
