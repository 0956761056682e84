"""Products whose rows do not know of each other: against float64, and against themselves in other company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.kernels.triton import matmul
from octavo.kernels.triton.matmul import Tile

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LARGE = [
    pytest.param(n, k, marks=pytest.mark.gpu) for n, k in [(1024, 3072), (4096, 1024), (16384, 2048), (50_000, 1000)]
]
SHAPES = [(131, 84), (70, 200), (64, 64), *LARGE]


def operands(rows: int, n: int, k: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of very different sizes: another order of the sum shows."""
    generator = torch.Generator().manual_seed(rows + n + k)

    def wild(*shape: int) -> Tensor:
        scale = torch.exp2(torch.randint(-6, 3, shape, generator=generator).float())
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    return wild(rows, k).to(device), (wild(n, k) / k**0.5).to(device), wild(n).to(device)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("rows", [1, 5, 130])
def test_products_are_right(device, dtype, rows, n, k):
    x, weight, bias = operands(rows, n, k, device, dtype)
    exact = x.double() @ weight.double().T
    for found, expected in (
        (matmul.linear(x, weight), exact),
        (matmul.linear(x, weight, bias), exact + bias.double()),
    ):
        assert found.dtype is dtype
        assert (found.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_rows_bits_do_not_depend_on_the_others(device, dtype, n, k):
    x, weight, bias = operands(150 if device == "cpu" else 700, n, k, device, dtype)
    together = matmul.linear(x, weight, bias)
    for rows in (range(1), range(149, 150), range(7, 12), range(64, 140), range(130, 150, 3)):
        index = torch.tensor(rows, device=device)
        assert torch.equal(matmul.linear(x[index], weight, bias), together[index]), rows
    place = torch.randperm(len(x), generator=torch.Generator().manual_seed(1)).to(device)
    assert torch.equal(matmul.linear(x[place], weight, bias), together[place])


def test_rows_anywhere_in_memory(device, dtype):
    x, weight, _ = operands(9, 40, 50, device, dtype)
    expected = matmul.linear(x, weight)
    apart = torch.zeros(9, 60, dtype=dtype, device=device)
    apart[:, 3:53] = x
    assert torch.equal(matmul.linear(apart[:, 3:53], weight), expected)
    assert torch.equal(matmul.linear(x[1:], weight), expected[1:])  # 50 numbers further: not at 16 bytes


def test_no_rows(device, dtype):
    x, weight, bias = operands(3, 40, 50, device, dtype)
    assert matmul.linear(x[:0], weight, bias).shape == (0, 40)


@pytest.mark.parametrize("n", [1, 1024, matmul.WIDE - 1, matmul.WIDE, 151_936])
def test_tiles_fit_into_the_smallest_gpus(dtypes, n):
    for dtype in dtypes:
        tile = matmul.choose(n, dtype)
        assert (tile.tokens + tile.outputs) * tile.depth * dtype.itemsize * tile.num_stages <= 99 << 10


OTHERS = [
    Tile(64, 32, 64, 4, 4),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 128, 128, 4, 3),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 64, 32, 8, 4),
    Tile(128, 256, 64, 8, 3),
]


@pytest.mark.parametrize("tile", OTHERS, ids=str)
@pytest.mark.parametrize(("n", "k"), LARGE)
def test_other_tiles_give_the_same_bits(device, dtype, tile, n, k):
    """Not relied upon: says whether the device's matrix instruction adds in one order, whatever its width."""
    x, weight, bias = operands(300, n, k, device, dtype)
    assert torch.equal(matmul.linear(x, weight, bias, tile), matmul.linear(x, weight, bias))
