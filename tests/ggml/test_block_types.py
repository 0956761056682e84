"""Expansion of GGML's blocks, against the gguf package, to the last bit."""

from __future__ import annotations

import tracemalloc
from typing import Any

import gguf
import numpy as np
import pytest

from octavo.errors import ModelError
from octavo.ggml import block_types as ggml
from octavo.ggml.block_types import (
    BLOCK_TYPES,
    BLOCK_TYPES_BY_ID,
    UNREADABLE_TYPES,
    dequantize,
    dequantize_chunks,
)

Array = np.ndarray[Any, Any]

# Where the float16 numbers of a block lie; all other bytes may be anything.
HALVES = {
    "F16": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,),
    "IQ4_XS": (0,), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
SCALES = [0.0, -0.0, 1.0, -1.5, 6e-8, -6e-8, 3.05e-5, 6.1e-5, 0.01, 65504.0, -65504.0]
"""Zeros, negatives, subnormals (below 6.1e-5), and the largest."""
QUANTIZABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def random_blocks(rng: np.random.Generator, kind: str, count: int) -> Array:
    """``uint8[count, type_size]`` of random bytes, with finite scales."""
    blocks = rng.integers(0, 256, (count, BLOCK_TYPES[kind].type_size), dtype=np.uint8)
    for at in HALVES.get(kind, ()):
        some = rng.choice(np.array(SCALES, np.float16), count)
        usual = rng.normal(0, 0.1, count).astype(np.float16)
        blocks[:, at : at + 2] = np.where(rng.random(count) < 0.5, some, usual).view(np.uint8).reshape(count, 2)
    return blocks


def oracle(data: Array, kind: str) -> Array:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(-1)


def assert_same_bits(actual: Array, expected: Array) -> None:
    """Equal in every bit, but for what a NaN carries."""
    assert actual.dtype == expected.dtype == np.float32
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    np.testing.assert_array_equal(actual[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize("count", [1, 7, 3000])
def test_random_blocks_equal_the_reference(kind: str, count: int) -> None:
    data = random_blocks(np.random.default_rng(count), kind, count)
    assert_same_bits(dequantize(data, kind), oracle(data, kind))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_any_bytes_at_all_equal_the_reference(kind: str) -> None:
    """Infinite and NaN scales among them."""
    data = np.random.default_rng(5).integers(0, 256, (5000, BLOCK_TYPES[kind].type_size), dtype=np.uint8)
    assert_same_bits(dequantize(data, kind), oracle(data, kind))


@pytest.mark.parametrize("kind", QUANTIZABLE)
def test_quantized_weights_equal_the_reference(kind: str) -> None:
    weights = np.random.default_rng(1).standard_normal((32, 512), dtype=np.float32)
    weights[3] = 0
    weights[4] = 1e-30
    weights[5, ::7] = -1000
    data = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind]).view(np.uint8)
    assert_same_bits(dequantize(data, kind), oracle(data, kind))


@pytest.mark.parametrize(("kind", "bound"), [("Q8_0", 0.01), ("Q5_1", 0.05), ("Q4_0", 0.1), ("BF16", 0.004)])
def test_expansion_undoes_quantization_nearly(kind: str, bound: float) -> None:
    weights = np.random.default_rng(2).standard_normal((64, 256), dtype=np.float32)
    data = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind]).view(np.uint8)
    error = np.linalg.norm(dequantize(data, kind) - weights.reshape(-1)) / np.linalg.norm(weights)
    assert 0 < error < bound


def test_sizes_and_numbers_are_ggmls() -> None:
    for number, kind in BLOCK_TYPES_BY_ID.items():
        its = gguf.GGMLQuantizationType(number)
        assert its.name == kind.name
        assert gguf.GGML_QUANT_SIZES[its] == (kind.block_size, kind.type_size)
    its_names = {int(its): its.name for its in gguf.GGMLQuantizationType}
    for number, name in UNREADABLE_TYPES.items():
        assert number not in BLOCK_TYPES_BY_ID
        assert its_names.get(number, name) == name  # an older gguf package may lack the newest types


def test_bits_per_weight() -> None:
    assert BLOCK_TYPES["Q4_1"].bits_per_weight == 5
    assert BLOCK_TYPES["Q6_K"].bits_per_weight == 6.5625


@pytest.mark.parametrize("kind", ["Q4_1", "Q6_K", "F16"])
def test_pieces_cover_all_weights_in_order(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml, "CHUNK_WEIGHTS", 512)
    data = random_blocks(np.random.default_rng(3), kind, 77)
    pieces = list(dequantize_chunks(data, kind))
    assert [where.start for where, _ in pieces[1:]] == [where.stop for where, _ in pieces[:-1]]
    assert_same_bits(np.concatenate([weights for _, weights in pieces]), oracle(data, kind))


def test_target_of_another_type_and_shape() -> None:
    data = random_blocks(np.random.default_rng(4), "Q5_1", 24)
    out = np.zeros((6, 128), np.float16)
    with np.errstate(over="ignore"):
        expected = oracle(data, "Q5_1").astype(np.float16).reshape(6, 128)
        assert dequantize(data, "Q5_1", out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_memory_beside_the_result_is_small() -> None:
    data = np.zeros(20 << 20, np.uint8)
    out = np.empty(32 << 20, np.float16)
    tracemalloc.start()
    dequantize(data, "Q4_1", out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("size", "kind", "out", "words"),
    [
        (21, "Q4_1", None, "multiple of 20"),
        (20, "Q4_9", None, "accepted: F32"),
        (20, "Q4_1", np.empty(31, np.float32), "target of 31"),
        (20, "Q4_1", np.empty((4, 16), np.float32)[:, ::2], "C order"),
    ],
)
def test_wrong_input_is_refused(size: int, kind: str, out: Array | None, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        dequantize(np.zeros(size, np.uint8), kind, out=out)
    if out is None:
        with pytest.raises(ModelError, match=words):
            next(dequantize_chunks(np.zeros(size, np.uint8), kind))


def test_no_weights() -> None:
    assert dequantize(np.empty(0, np.uint8), "Q4_K").size == 0
