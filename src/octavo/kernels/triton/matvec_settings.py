"""How a product of one row is cut into programs: a small table, and a rule for other shapes.

The table was measured on an H100 (``benchmarks/kernels/matvec.py``) inside the chain of a layer's four products, of
Qwen3-0.6B, Llama-3.2-1B and Llama-3.1-8B; alone, a product may prefer another setting by a few percent. What mattered:

- a thread holds 64 to 256 bytes of weights, all requested before x is read;
- enough programs for all multiprocessors (one row with 2 warps was 35 to 70% slower for N <= 2048);
- a row inside one warp (``width`` 256) needs few shuffles for its sum, but every warp then reads all of x; for long
  rows it is better that all warps share each row;
- when the next kernel may begin matters as much as the tiles: up to half a microsecond each way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.kernels.triton.pdl import AFTER_SUMS, AFTER_WAIT, FIRST

THREAD_BYTES = 256
"""Weights that a thread holds, at most."""
MIN_PROGRAMS = 128
"""About one for each multiprocessor."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One way to compute a product.

    Attributes:
        rows: of the weight, in one block; a power of two. With a gate, so many of each half.
        width: columns that lie beside each other in the registers of the warps that share a row; a power of two.
        warps: of a program.
        trigger: when the next kernel may begin (`pdl`).
    """

    rows: int
    width: int
    warps: int
    trigger: int = FIRST


TABLE = {
    # (N, K, gated): Qwen3-0.6B
    (4096, 1024, False): Settings(16, 256, 4),
    (1024, 2048, False): Settings(4, 1024, 4),
    (3072, 1024, True): Settings(16, 256, 8, AFTER_WAIT),
    (1024, 3072, False): Settings(8, 1024, 8),
    (151936, 1024, False): Settings(8, 1024, 4),
    # Llama-3.2-1B
    (3072, 2048, False): Settings(16, 256, 8),
    (2048, 2048, False): Settings(4, 1024, 4),
    (8192, 2048, True): Settings(4, 256, 4),
    (2048, 8192, False): Settings(2, 2048, 8),
    (128256, 2048, False): Settings(4, 1024, 4),
    # Llama-3.1-8B
    (6144, 4096, False): Settings(4, 2048, 8),
    (4096, 4096, False): Settings(4, 2048, 8, AFTER_SUMS),
    (14336, 4096, True): Settings(1, 1024, 4),
    (4096, 14336, False): Settings(1, 2048, 8),
    (128256, 4096, False): Settings(4, 2048, 8),
}
"""Settings for one row of 16-bit numbers."""


def choose(n: int, k: int, itemsize: int, *, gated: bool, tokens: int = 1) -> Settings:
    """Settings for weights ``[n, k]`` (``[2n, k]`` if gated) of ``itemsize`` bytes."""
    known = itemsize == 2 and (n, k, gated) in TABLE
    settings = TABLE[n, k, gated] if known else _by_rule(n, k, itemsize, gated)
    return settings if tokens == 1 else _leave_room(settings, itemsize)


def _leave_room(settings: Settings, itemsize: int) -> Settings:
    """Half the rows, for a token more in the registers, if every warp still has whole rows or its part of all."""
    rows = settings.rows // 2
    fills_warps = rows * settings.width >= settings.warps * 32 * 16 // itemsize
    return replace(settings, rows=rows) if rows and fills_warps else settings


def _by_rule(n: int, k: int, itemsize: int, gated: bool) -> Settings:
    warps = 8 if k >= 4096 else 4
    row_bytes = k * itemsize * (2 if gated else 1)
    rows = _power_of_two(THREAD_BYTES * 32 * warps // row_bytes)
    while rows > 1 and -(-n // rows) < MIN_PROGRAMS:
        rows //= 2
    width = min(16 // itemsize * 32 * warps, 2 * _power_of_two(k - 1))
    return Settings(rows, width, warps)


def _power_of_two(n: int) -> int:
    """The largest power of two that is not above n; 1 for n < 1."""
    return 1 << max(n.bit_length() - 1, 0)
