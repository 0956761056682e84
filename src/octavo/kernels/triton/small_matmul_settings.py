"""How a product of a small batch is cut into programs, and where cuBLAS is better: a small table, and a rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.kernels.triton.capability import MULTIPROCESSORS
from octavo.kernels.triton.pdl import AFTER_SUMS, AFTER_WAIT, FIRST

MAX_TOKENS = 256
THREADS, DESCRIPTORS, RING = range(3)
"""Who loads tiles: the threads; Hopper's copy engine (TMA); the same, from before x is known (`small_matmul_ring`)."""
SHARED_BYTES = 220 << 10
"""Of a multiprocessor: for the stages of its programs."""
MAX_SPLITS = 8
RULE_TOKENS = 0
"""Rows of x up to which shapes that are not in the table take the rule's settings instead of cuBLAS."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One way to compute a product.

    Attributes:
        tokens: rows of x that a program takes: 16, 32, 64, 128 or 256.
        rows: of the weight that it takes; with a gate, so many of each half.
        depth: columns that it multiplies at once.
        splits: programs that share the columns of a tile.
        stages: steps along the columns that are under way at once.
        warps: of a program.
        loads: who loads tiles.
        trigger: when the next kernel may begin (`pdl`).
    """

    tokens: int
    rows: int
    depth: int = 128
    splits: int = 1
    stages: int = 4
    warps: int = 4
    loads: int = THREADS
    trigger: int = AFTER_WAIT


TABLE: dict[tuple[int, int, bool], dict[int, Settings | None]] = {
    (4096, 1024, False): {
        16: Settings(16, 64, 128, 2, 4, 4, RING, FIRST),
        64: Settings(64, 32, 128, 1, 5, 4, THREADS, AFTER_SUMS),
        128: Settings(64, 64, 128, 1, 6, 4, RING, AFTER_WAIT),
        256: Settings(128, 64, 64, 1, 8, 4, RING, FIRST),
    },
    (1024, 2048, False): {
        16: Settings(16, 64, 128, 8, 2, 4, RING, FIRST),
        64: Settings(64, 32, 128, 4, 4, 4, THREADS, AFTER_WAIT),
    },
    (3072, 1024, True): {
        16: Settings(16, 64, 128, 2, 4, 4, RING, AFTER_WAIT),
        64: Settings(64, 32, 128, 1, 5, 4, THREADS, FIRST),
        128: Settings(64, 64, 128, 1, 4, 4, RING, AFTER_SUMS),
        256: Settings(128, 64, 64, 1, 6, 8, RING, FIRST),
    },
    (1024, 3072, False): {
        16: Settings(16, 64, 128, 8, 3, 4, RING, FIRST),
        64: Settings(64, 32, 128, 4, 5, 4, THREADS, FIRST),
    },
    (151936, 1024, False): {
        16: Settings(16, 128, 128, 1, 5, 4, DESCRIPTORS, AFTER_WAIT),
        64: Settings(64, 128, 128, 1, 4, 4, DESCRIPTORS, AFTER_WAIT),
        128: Settings(128, 128, 64, 1, 6, 8, RING, AFTER_WAIT),
    },
    (3072, 2048, False): {
        16: Settings(16, 64, 128, 2, 8, 4, RING, AFTER_WAIT),
        64: Settings(64, 64, 128, 2, 6, 4, RING, AFTER_WAIT),
        128: Settings(64, 64, 128, 1, 6, 4, RING, AFTER_WAIT),
        256: Settings(128, 64, 64, 1, 8, 4, RING, AFTER_WAIT),
    },
    (2048, 2048, False): {
        16: Settings(16, 64, 128, 4, 4, 4, RING, FIRST),
    },
    (8192, 2048, True): {
        16: Settings(16, 64, 128, 1, 6, 4, RING, FIRST),
        64: Settings(64, 64, 128, 1, 4, 4, RING, AFTER_WAIT),
        128: Settings(64, 64, 64, 1, 4, 4, RING, AFTER_SUMS),
        256: Settings(256, 64, 64, 1, 4, 8, RING, AFTER_SUMS),
    },
    (2048, 8192, False): {
        16: Settings(16, 64, 128, 4, 8, 4, RING, AFTER_WAIT),
        64: Settings(64, 64, 128, 4, 6, 4, RING, AFTER_SUMS),
        128: Settings(64, 64, 64, 2, 8, 4, RING, FIRST),
    },
    (128256, 2048, False): {
        16: Settings(16, 128, 128, 1, 5, 4, DESCRIPTORS, AFTER_WAIT),
        64: Settings(64, 128, 128, 1, 2, 4, RING, AFTER_WAIT),
        128: Settings(128, 128, 64, 1, 5, 8, DESCRIPTORS, AFTER_WAIT),
    },
    (6144, 4096, False): {
        16: Settings(16, 64, 128, 1, 8, 4, RING, FIRST),
        64: Settings(64, 64, 128, 1, 6, 4, RING, FIRST),
        128: Settings(128, 64, 64, 1, 8, 4, RING, FIRST),
    },
    (4096, 4096, False): {
        16: Settings(16, 128, 64, 4, 8, 4, RING, FIRST),
        64: Settings(64, 64, 128, 2, 6, 4, RING, FIRST),
        128: Settings(64, 64, 128, 1, 6, 4, RING, AFTER_SUMS),
        256: Settings(128, 64, 64, 1, 8, 4, RING, AFTER_WAIT),
    },
    (14336, 4096, True): {
        16: Settings(16, 64, 128, 1, 5, 4, DESCRIPTORS, FIRST),
        64: Settings(64, 64, 128, 1, 4, 4, RING, FIRST),
        128: Settings(128, 64, 64, 1, 5, 8, DESCRIPTORS, AFTER_WAIT),
        256: Settings(256, 64, 64, 1, 4, 8, DESCRIPTORS, AFTER_WAIT),
    },
    (4096, 14336, False): {
        16: Settings(16, 64, 128, 2, 8, 4, RING, FIRST),
        64: Settings(64, 64, 128, 2, 6, 4, RING, AFTER_WAIT),
        128: Settings(128, 64, 64, 2, 8, 4, RING, AFTER_WAIT),
    },
    (128256, 4096, False): {
        16: Settings(16, 128, 128, 1, 5, 4, DESCRIPTORS, AFTER_WAIT),
        64: Settings(64, 128, 128, 1, 2, 4, RING, AFTER_WAIT),
        128: Settings(128, 128, 64, 1, 5, 8, DESCRIPTORS, AFTER_WAIT),
    },
}
"""(N, K, gated) to settings for up to so many tokens. None: cuBLAS is better there, as for more tokens than any.

Found on an H100 by ``benchmarks/kernels/small_matmul.py``, each inside a layer's chain of kernels: Qwen3-0.6B,
Llama-3.2-1B, Llama-3.1-8B, and their heads.
"""


def choose(n: int, k: int, tokens: int, *, gated: bool) -> Settings | None:
    """Settings for 16-bit weights ``[n, k]`` (``[2n, k]`` if gated); None where cuBLAS is better, or not known to be
    worse.
    """
    if (n, k, gated) not in TABLE:
        return by_rule(n, k, tokens, gated=gated) if 1 < tokens <= RULE_TOKENS else None
    for most, found in sorted(TABLE[n, k, gated].items(), key=lambda entry: entry[0]):
        if 1 < tokens <= most:
            return found and replace(found, tokens=min(found.tokens, padded(tokens)))
    return None


def by_rule(n: int, k: int, tokens: int, *, gated: bool) -> Settings:
    """Settings for a shape that was not measured: a program on each multiprocessor, with all stages that it holds."""
    width = padded(tokens)
    return fill(n, k, tokens, gated, Settings(width, 64, 128 if width <= 64 else 64, 1, 1, 4, RING), 1)


def padded(tokens: int) -> int:
    """Rows of the smallest tile that takes all."""
    return max(16, 1 << (tokens - 1).bit_length())


def fill(n: int, k: int, tokens: int, gated: bool, tile: Settings, resident: int) -> Settings:
    """``tile`` with the splits and stages that fill all multiprocessors with ``resident`` programs each, and no more,
    if there are fewer tiles than that.
    """
    tiles = -(-n // tile.rows) * -(-tokens // tile.tokens)
    steps = -(-k // tile.depth)
    splits = max(1, min(MULTIPROCESSORS * resident // tiles, MAX_SPLITS, steps // 2))
    splits = -(-steps // -(-steps // splits))  # as many as have columns
    stage_bytes = 2 * tile.depth * (tile.rows * (1 + gated) + tile.tokens)
    stages = min(SHARED_BYTES // resident // stage_bytes, -(-steps // splits), 8)
    return replace(tile, splits=splits, stages=max(2, stages))
