"""The products of a decoder layer and of the head, in three sizes, which several benchmarks compute."""

from __future__ import annotations

from dataclasses import dataclass

BYTES_PER_US = 3.09e6
"""Of an H100's memory."""
ROTATED_BYTES = 200 << 20
"""Weights that are read in turn, so that each comes from memory and not from the cache."""
EPS = 1e-5


@dataclass(frozen=True)
class Product:
    """``[n, k]`` weights, twice that if gated; ``norm``: with the residual added and the norm before it."""

    name: str
    n: int
    k: int
    norm: bool = False
    gated: bool = False

    @property
    def rows(self) -> int:
        return self.n * (1 + self.gated)

    @property
    def floor(self) -> float:
        """Microseconds to read the weights in bfloat16."""
        return self.rows * self.k * 2 / BYTES_PER_US


def model(h: int, qkv: int, o: int, i: int, vocab: int) -> list[Product]:
    return [
        Product("qkv", qkv, h, norm=True),
        Product("o", h, o),
        Product("gate/up", i, h, norm=True, gated=True),
        Product("down", h, i),
        Product("head", vocab, h),
    ]


MODELS = {
    "0.6B": model(1024, 4096, 2048, 3072, 151936),
    "1B": model(2048, 3072, 2048, 8192, 128256),
    "8B": model(4096, 6144, 4096, 14336, 128256),
}
"""Qwen3-0.6B, Llama-3.2-1B, Llama-3.1-8B."""
