"""Random weights of each small form, for tests and benchmarks of kernels that multiply with them."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.ggml.block_types import BLOCK_TYPES
from octavo.kernels.packed import BlockWeight, Fp8Weight, Int4Weight, Int8Weight, PackedWeight

COMMON_BLOCKS = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}
OTHER_BLOCKS = {
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q5_K": (0, 2),
}
HALVES = COMMON_BLOCKS | OTHER_BLOCKS
"""Where a block has its float16 numbers."""
WEIGHT_ONLY = [
    "int8",
    "int8-g32",
    "int4-g32",
    "int4-g128",
    "int4-zeros",
    "fp8",
    "fp8-tensor",
    "fp8-block",
    *COMMON_BLOCKS,
]
ROUNDED = ["w8a8", "fp8-w8a8", "fp8-w8a8-tensor", "fp8-w8a8-block", "fp8-w8a8-static"]


def random_weight(form: str, n: int, k: int, device: str = "cpu", seed: int = 0) -> PackedWeight:
    """A matrix whose numbers are about ``k ** -0.5``."""
    random = torch.Generator(device).manual_seed(seed)
    if form in HALVES:
        return _blocks(form, n, k, random)
    if form.startswith("int4"):
        return _int4(form, n, k, random)
    if form.startswith("fp8"):
        return _fp8(form, n, k, random)
    values = torch.randint(-127, 128, (n, k), generator=random, device=device, dtype=torch.int8)
    groups = k // int(form.partition("-g")[2] or k)
    scales = _around(n, groups, random) * k**-0.5 / 64
    return Int8Weight(values=values, scales=scales, quantizes_input=form == "w8a8")


def _around(n: int, m: int, random: torch.Generator) -> Tensor:
    """Numbers of 0.5 to 1.5."""
    return torch.rand(n, m, generator=random, device=random.device) + 0.5


def _int4(form: str, n: int, k: int, random: torch.Generator) -> Int4Weight:
    groups = k // int(form.partition("-g")[2] or 32)
    values = torch.randint(0, 256, (n, k // 2), generator=random, device=random.device, dtype=torch.uint8)
    scales = (_around(n, groups, random) * k**-0.5 / 4).half()
    zeros = (_around(n, groups, random) * 8).half() if form == "int4-zeros" else None
    return Int4Weight(values=values, scales=scales, zeros=zeros)


def _fp8(form: str, n: int, k: int, random: torch.Generator) -> Fp8Weight:
    values = torch.randn(n, k, generator=random, device=random.device).mul_(16).to(torch.float8_e4m3fn)
    block = {"tensor": (n, k), "block": (128, 128)}.get(form.rpartition("-")[2], (1, k))
    scales = _around(-(-n // block[0]), -(-k // block[1]), random) * k**-0.5 / 16
    static = torch.tensor(0.02, device=random.device) if form.endswith("static") else None
    return Fp8Weight(values=values, scales=scales, block=block, quantizes_input="w8a8" in form, input_scale=static)


def _blocks(kind: str, n: int, k: int, random: torch.Generator) -> BlockWeight:
    """Any bytes are a block; but its float16 numbers must not be infinite."""
    form = BLOCK_TYPES[kind]
    count = n * k // form.block_size
    blocks = torch.randint(0, 256, (count, form.type_size), generator=random, device=random.device, dtype=torch.uint8)
    for at in HALVES[kind]:
        size = (_around(count, 1, random) * k**-0.5 / 64).half()
        blocks[:, at : at + 2] = size.view(torch.uint8)
    return BlockWeight(kind=kind, blocks=blocks.view(n, -1), block_size=form.block_size, type_size=form.type_size)
