"""Random packed weights of every form, and what they stand for, number by number."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from torch import Tensor

from octavo.ggml.block_types import BLOCK_TYPES
from octavo.kernels.packed import BlockWeight, Fp8Weight, Int4Weight, Int8Weight, PackedWeight, StackedWeight


def random_int8(n: int, k: int, group: int, *, seed: int = 0, quantizes_input: bool = False) -> Int8Weight:
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(-128, 128, (n, k), generator=g, dtype=torch.int8)
    return Int8Weight(values=values, scales=_scales(g, n, k // group), quantizes_input=quantizes_input)


def random_int4(
    n: int,
    k: int,
    group: int,
    *,
    seed: int = 0,
    zeros: bool = True,
    order: bool = False,
    dtype: torch.dtype = torch.float16,
) -> Int4Weight:
    g = torch.Generator().manual_seed(seed)
    return Int4Weight(
        values=torch.randint(0, 256, (n, k // 2), generator=g, dtype=torch.uint8),
        scales=_scales(g, n, k // group).to(dtype),
        zeros=(15 * torch.rand(n, k // group, generator=g)).to(dtype) if zeros else None,
        order=torch.randperm(k, generator=g).int() if order else None,
    )


def random_fp8(n: int, k: int, block: tuple[int, int], *, seed: int = 0, quantizes_input: bool = False) -> Fp8Weight:
    g = torch.Generator().manual_seed(seed)
    values = (torch.randn(n, k, generator=g) * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
    scales = _scales(g, -(-n // block[0]), -(-k // block[1]))
    return Fp8Weight(values=values, scales=scales, block=block, quantizes_input=quantizes_input)


def random_blocks(n: int, k: int, kind: str, *, seed: int = 0) -> BlockWeight:
    numbers = np.random.default_rng(seed).normal(0, 0.1, (n, k)).astype(np.float32)
    data = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind])
    sizes = {"block_size": BLOCK_TYPES[kind].block_size, "type_size": BLOCK_TYPES[kind].type_size}
    return BlockWeight(kind=kind, blocks=torch.from_numpy(data), **sizes)


def stands_for(weight: PackedWeight | Tensor) -> np.ndarray:
    """The matrix in float64, one number after the other, by the formulas of the packed forms' docstrings."""
    if isinstance(weight, Tensor):
        return weight.double().numpy()
    if isinstance(weight, StackedWeight):
        return np.concatenate([stands_for(part) for part in weight.parts])
    if isinstance(weight, BlockWeight):
        kind = gguf.GGMLQuantizationType[weight.kind]
        return gguf.quants.dequantize(weight.blocks.numpy(), kind).astype(np.float64).reshape(weight.shape)
    n, k = weight.shape
    return np.array([[_number(weight, i, j) for j in range(k)] for i in range(n)])[:, _columns(weight)].reshape(n, k)


def _number(weight: PackedWeight, i: int, j: int) -> float:
    if isinstance(weight, Int8Weight):
        return int(weight.values[i, j]) * float(weight.scales[i, j // weight.group])
    if isinstance(weight, Fp8Weight):
        return float(weight.values[i, j]) * float(weight.scales[i // weight.block[0], j // weight.block[1]])
    assert isinstance(weight, Int4Weight)
    byte, at = int(weight.values[i, j // 2]), (i, j // weight.group)
    q = byte >> 4 if j % 2 else byte & 15
    return (q - (8 if weight.zeros is None else float(weight.zeros[at]))) * float(weight.scales[at])


def _columns(weight: PackedWeight) -> list[int]:
    """Where the column of each x is."""
    if not isinstance(weight, Int4Weight) or weight.order is None:
        return list(range(weight.shape[1]))
    order = weight.order.tolist()
    return [order.index(column) for column in range(len(order))]


def _scales(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    return 0.01 + 0.1 * torch.rand(rows, columns, generator=generator)


EVERY_FORM: dict[str, PackedWeight] = {
    "int8": random_int8(9, 48, 48),
    "int8-groups": random_int8(9, 48, 16),
    "int4": random_int4(9, 48, 16),
    "int4-symmetric": random_int4(9, 48, 48, zeros=False),
    "int4-order": random_int4(9, 48, 16, order=True),
    "int4-float32": random_int4(9, 48, 16, dtype=torch.float32),
    "int4-bfloat16": random_int4(9, 48, 16, dtype=torch.bfloat16),
    "fp8-tensor": random_fp8(9, 48, (9, 48)),
    "fp8-channel": random_fp8(9, 48, (1, 48)),
    "fp8-blocks": random_fp8(9, 48, (4, 20)),
    "Q4_0": random_blocks(9, 64, "Q4_0"),
    "Q4_1": random_blocks(9, 64, "Q4_1"),
    "Q8_0": random_blocks(9, 64, "Q8_0"),
    "stacked": StackedWeight(parts=(random_blocks(4, 64, "Q4_0"), torch.randn(2, 64), random_int8(3, 64, 64))),
}
"""Name -> a small weight."""
