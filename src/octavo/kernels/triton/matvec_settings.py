"""How a product of one row is cut into programs: a small table, and a rule for other shapes.

The table comes from earlier forms of these kernels, measured on an H100 inside whole decode steps of Qwen3-0.6B,
Llama-3.2-1B and Llama-3.1-8B; alone, a product may prefer another setting by a few percent. The 8B's qkv and gate/up
take more rows here (4; 2 and 1 there), since x comes with a float32 stream now. What mattered:

- a thread holds 64 to 256 bytes of weights, all requested before x is read;
- enough programs for all multiprocessors (one row with 2 warps was 35 to 70% slower for N <= 2048);
- a row inside one warp (``width`` 256) needs few shuffles for its sum, but every warp then reads all of x; for long
  rows it is better that all warps share each row;
- a product of many megabytes reads x again in each program, so a program takes more rows, or runs over many blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.kernels.triton.pdl import AFTER_SUMS, AFTER_WAIT, FIRST

THREAD_BYTES = 256
"""Weights that a thread holds, at most."""
MIN_PROGRAMS = 128
"""About one for each multiprocessor."""
LOOP_ROWS = 1 << 16
"""From so many outputs on (a vocabulary), programs run over many blocks of rows."""
STAGE_BYTES = 32 << 10
"""Weights of one step of such a loop, at most."""
SHARED_BYTES = 192 << 10
"""Shared memory of a multiprocessor that such loops take for weights in flight, at most."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One way to compute a product.

    Attributes:
        rows: of the weight, in one block; a power of two. With a gate, so many of each half.
        width: columns that lie beside each other in the registers of the warps that share a row; a power of two.
        warps: of a program.
        trigger: when the next kernel may begin (`pdl`).
        programs: on each multiprocessor, each running over many blocks; 0: one program a block.
        stages: of the pipeline of such a loop.
    """

    rows: int
    width: int
    warps: int
    trigger: int = FIRST
    programs: int = 0
    stages: int = 1


TABLE = {
    # (N, K, gated): Qwen3-0.6B
    (4096, 1024, False): Settings(32, 256, 8),
    (1024, 2048, False): Settings(8, 1024, 4),
    (3072, 1024, True): Settings(16, 256, 8),
    (1024, 3072, False): Settings(4, 256, 4),
    # Llama-3.2-1B
    (3072, 2048, False): Settings(8, 256, 4),
    (2048, 2048, False): Settings(8, 1024, 4),
    (8192, 2048, True): Settings(4, 256, 4),
    (2048, 8192, False): Settings(4, 2048, 8, AFTER_SUMS),
    # Llama-3.1-8B
    (6144, 4096, False): Settings(4, 2048, 8),
    (4096, 4096, False): Settings(4, 2048, 8),
    (14336, 4096, True): Settings(4, 2048, 8),
    (4096, 14336, False): Settings(1, 2048, 8),
}
"""Settings for one row of 16-bit numbers."""


def choose(n: int, k: int, itemsize: int, *, gated: bool, tokens: int = 1) -> Settings:
    """Settings for weights ``[n, k]`` (``[2n, k]`` if gated) of ``itemsize`` bytes."""
    if tokens == 1 and n >= LOOP_ROWS and not gated:
        return _loop(k, itemsize)
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


def _loop(k: int, itemsize: int) -> Settings:
    rows = min(4, _power_of_two(STAGE_BYTES // (k * itemsize)))
    stage_bytes = rows * k * itemsize
    stages = 4 if stage_bytes <= STAGE_BYTES // 2 else 3
    programs = max(1, min(4, SHARED_BYTES // (stages * stage_bytes)))
    width = min(16 // itemsize * 32 * 4, 2 * _power_of_two(k - 1))
    return Settings(rows, width, 4, AFTER_WAIT, programs, stages)


def _power_of_two(n: int) -> int:
    """The largest power of two that is not above n; 1 for n < 1."""
    return 1 << max(n.bit_length() - 1, 0)
