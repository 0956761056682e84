"""What the sampling kernels have in common: a row's parameters, its weights, and the order of its tokens.

Pointers into a larger buffer, whose alignment depends on the number of rows, are not specialised on it: no batch size
may cost a compilation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.sampling import PARAM_WORDS

WORDS = tl.constexpr(PARAM_WORDS)
ID_BITS = tl.constexpr(20)
LAST_ID = tl.constexpr(2**20 - 1)
ONE_TOKEN = tl.constexpr(1 << 48)

MAX_SPLITS = 128
TILE = 2048
"""Logits that a program reads at a time."""

PROGRAMS = 1024
"""How many programs share a step's rows: 8 for each multiprocessor of an H100, so that their loads overlap."""


def split(num_rows: int, vocab_size: int) -> tuple[int, int]:
    """Into how many parts each row is cut, and how many tiles a part has. No result depends on it."""
    tiles = triton.cdiv(vocab_size, TILE)
    wanted = min(MAX_SPLITS, tiles, triton.cdiv(PROGRAMS, num_rows))
    each = triton.cdiv(tiles, wanted)
    return triton.cdiv(tiles, each), each


@triton.jit
def _word64(records: tl.tensor, row: tl.tensor, index: tl.constexpr) -> tl.tensor:
    """Two words as one int64: the record need not be aligned."""
    low = tl.load(records + row * WORDS + index).to(tl.int64) & 0xFFFFFFFF
    return (tl.load(records + row * WORDS + index + 1).to(tl.int64) << 32) | low


@triton.jit
def temperature_of(records: tl.tensor, row: tl.tensor) -> tl.tensor:
    """float32; 0 is greedy."""
    return tl.load(records + row * WORDS).to(tl.float32, bitcast=True)


@triton.jit
def rules_of(records: tl.tensor, row: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """``top_k`` int64, ``top_p`` and ``min_p`` float64."""
    top_k = tl.load(records + row * WORDS + 1).to(tl.int64)
    top_p = _word64(records, row, 2).to(tl.float64, bitcast=True)
    min_p = _word64(records, row, 4).to(tl.float64, bitcast=True)
    return top_k, top_p, min_p


@triton.jit
def seed_and_position_of(records: tl.tensor, row: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """int64 each."""
    return _word64(records, row, 6), _word64(records, row, 8)


@triton.jit
def filters(records: tl.tensor, row: tl.tensor) -> tl.tensor:
    """Whether the row draws, and has min-p, top-k or top-p."""
    top_k, top_p, min_p = rules_of(records, row)
    return (temperature_of(records, row) > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0))


@triton.jit
def least_weight(min_p: tl.tensor) -> tl.tensor:
    """The smallest weight that min-p keeps, int64: at least one grain."""
    exact = min_p * 8589934592.0  # grains in 1
    whole = exact.to(tl.int64)
    return tl.maximum(whole + (whole.to(tl.float64) < exact).to(tl.int64), 1)


@triton.jit
def weights(logits: tl.tensor, best: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """``exp((logits - best) / temperature)`` in grains of 2**-33, rounded to even as the reference rounds; int64.

    Sums of whole numbers are exact, so they are the same in whatever order programs add. ``best`` is finite.
    """
    grains = tl.exp2((logits - best) * (1.4426950408889634 / temperature)) * 8589934592.0
    # A float32 from 2**23 on is whole; below, adding 2**23 leaves no room for a fraction.
    return tl.where(grains < 8388608.0, (grains + 8388608.0) - 8388608.0, grains).to(tl.int64)


@triton.jit
def tally(weight: tl.tensor, least: tl.tensor) -> tl.tensor:
    """One token and its weight in one int64, to be added up together; 0 for weights that min-p drops.

    A sum holds up to 2**15 tokens: the count is in its upper 16 bits, the weight in the lower 48.
    """
    return tl.where(weight >= least, weight + ONE_TOKEN, 0)


@triton.jit
def counted(tallies: tl.tensor) -> tl.tensor:
    """The count in a sum of tallies, int64."""
    return tallies >> 48


@triton.jit
def weighed(tallies: tl.tensor) -> tl.tensor:
    """The weight in a sum of tallies, int64."""
    return tallies & (ONE_TOKEN - 1)


@triton.jit
def order(logits: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """int64 numbers, all different, ordered as a row's tokens are: by logit, equal ones by lower token id.

    The upper bits are the logit's own, which count upwards as integers once those of negative numbers are turned
    round; -0 and 0 are one number. A token's place among 2**20 is below them.
    """
    return (key_of(logits).to(tl.int64) << ID_BITS) + (LAST_ID - ids)


@triton.jit
def key_of(logits: tl.tensor) -> tl.tensor:
    """int32, ordered as float32 logits are."""
    bits = tl.where(logits == 0, 0.0, logits).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def logit_of(rank: tl.tensor) -> tl.tensor:
    """The float32 logit in a number that ``order`` made."""
    key = (rank >> ID_BITS).to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def load_logits(logits: tl.tensor, ids: tl.tensor, vocab_size: tl.tensor) -> tl.tensor:
    """float32, -inf beyond the vocabulary, and +inf for NaN, which comparisons would lose."""
    values = tl.load(logits + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.where(values == values, values, float("inf"))
