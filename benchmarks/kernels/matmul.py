"""What products of one order cost on a GPU, beside cuBLAS, and which other tiles give the same bits.

    python benchmarks/kernels/matmul.py [--models 0.6B 1B 8B] [--tokens 1 64 256 8192]

Times are medians in us, each with a cold second-level cache. The floor is the weight's bytes over 3.09 TB/s or the
operations over 782 TFLOP/s, what an H100 80GB reaches at best, whichever is longer. A tile is marked ``=`` if its bits
are those of the chosen one, ``!`` if not: only equal ones could be chosen by the number of tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.testing import do_bench

from octavo.kernels.triton import matmul
from octavo.kernels.triton.matmul import Tile

SHAPES = {
    "0.6B": [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (151936, 1024)],
    "1B": [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192), (128256, 2048)],
    "8B": [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)],
}
"""Weights of queries, keys and values; of the output; of gate and up; of down; of the head."""
TILES = [
    Tile(64, 32, 64, 4, 4),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 64, 128, 4, 4),
    Tile(64, 128, 64, 4, 4),
    Tile(128, 64, 64, 8, 4),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 8, 4),
    Tile(128, 256, 64, 8, 3),
]
HEAD_TOKENS = 1024
"""More rows of logits are never computed at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 64, 256, 8192])
    args = parser.parse_args()
    torch.manual_seed(0)
    for name in args.models:
        for n, k in SHAPES[name]:
            weight = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * k**-0.5
            for tokens in args.tokens:
                if n < 100_000 or tokens <= HEAD_TOKENS:
                    compare(f"{name} {n}x{k}", weight, tokens)


def compare(name: str, weight: Tensor, tokens: int) -> None:
    """Check the product, then print a line of times."""
    x = torch.randn(tokens, weight.shape[1], device="cuda", dtype=torch.bfloat16)
    found, exact = matmul.linear(x, weight), x[:64].float() @ weight.float().T
    error = float((found[:64].float() - exact).norm() / exact.norm())
    assert error < 5e-3, f"{name}: wrong by {error:.1e}"
    chosen = matmul.choose(len(weight), x.dtype)
    floor = max(weight.nbytes / 3.09e6, 2 * tokens * weight.numel() / 782e6)
    line = f"{name:>16} T={tokens:<5} floor {floor:7.1f}  cuBLAS {time(lambda: F.linear(x, weight)):7.1f}"
    line += f"  chosen {tuple(chosen)} {time(lambda: matmul.linear(x, weight)):7.1f} "
    for tile in TILES:
        equal = torch.equal(matmul.linear(x, weight, tile=tile), found)
        line += f"  {tuple(tile)} {'=' if equal else '!'} {time(lambda t=tile: matmul.linear(x, weight, tile=t)):.1f}"
    print(line, flush=True)


def time(work: Callable[[], object]) -> float:
    return float(do_bench(work, warmup=10, rep=50, return_mode="median")) * 1e3


if __name__ == "__main__":
    main()
