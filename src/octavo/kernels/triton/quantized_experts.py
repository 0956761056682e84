"""A mixture of experts with quantized weights: the grouped products of `experts`, with numbers unpacked in the kernel.

As in `quantized_matmul`, a program unpacks plane after plane of its words (`quantized_words`) and multiplies with the
columns of x that belong to the plane; as in `experts`, it finds the expert of its tile on the device. So an expert's
bytes are read packed, once for each tile of its tokens.

Unpacking is arithmetic that each tile of an expert's tokens does again. From some tiles on it is sooner done once for
all: the matrices are expanded to x's dtype in memory, and multiplied as plain ones.

Weights that round x, too, are multiplied packed, always. int8's rows of whole numbers are exact in 16 bits, and their
scales are applied to sums. What the kernels have no words for (experts packed in different ways, act-order, groups of
an odd size) is expanded when it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.packed import Fp8Weight, Int8Weight, Operand, PackedWeight
from octavo.kernels.reference.quantized import dequantize, round_fp8
from octavo.kernels.triton import quantized_pack
from octavo.kernels.triton.quantized_expand import load_factors, plane
from octavo.kernels.triton.quantized_rows import quantize_rows
from octavo.kernels.triton.quantized_words import WordWeight, form_of, stages_that_fit
from octavo.kernels.triton.routing import find_tile


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ExpertWords(PackedWeight):
    """Matrices of all experts in words, one above the other.

    Attributes:
        kind: the words'.
        words: of the whole.
        rounding: how x is rounded first: a weight of which only that matters; or None.
    """

    kind: str  # type: ignore[misc]  # not of the class here
    words: WordWeight
    rounding: Int8Weight | Fp8Weight | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.words.shape

    @property
    def nbytes(self) -> int:
        return self.words.nbytes


class Tile(NamedTuple):
    """How a product is cut: choices and outputs of a program, units of K that it takes at once, warps, stages."""

    tokens: int
    outputs: int
    units: int
    num_warps: int
    num_stages: int


ONE, FEW_GATED, FEW = Tile(16, 32, 8, 4, 4), Tile(16, 64, 4, 4, 4), Tile(16, 128, 4, 4, 3)
SOME = Tile(32, 64, 4, 4, 3)
"""For less than a choice for each expert, up to 8, and more: the best of ``benchmarks/kernels/experts.py`` on an H100,
int4 in groups of 128 and int8 together. Of int8 no higher tile is as fast, whatever the number.
"""
EXPANDED = 48
"""Beyond so many choices for each expert it pays to expand all experts' matrices first (measured there, too)."""


def choose(choices: int, experts: int, itemsize: int, *, gated: bool) -> Tile:
    """The tile for so many choices; the smallest one for numbers of 4 bytes."""
    if choices < experts or itemsize == 4:
        return ONE
    if choices > 8 * experts:
        return SOME
    return FEW_GATED if gated else FEW


def pays_to_expand(weight: ExpertWords, choices: int, experts: int) -> bool:
    """Whether a plain product with the expanded matrices is sooner done, the expansion counted in."""
    return weight.rounding is None and choices > EXPANDED * experts


def pack(weight: Operand, dtype: torch.dtype) -> Operand:
    """As ``Ops.pack_experts``: plain weights as they are, others in words, or expanded to ``dtype``."""
    if isinstance(weight, Tensor):
        return weight
    rounds = isinstance(weight, Int8Weight | Fp8Weight) and weight.quantizes_input
    words = quantized_pack.pack(replace(weight, quantizes_input=False) if rounds else weight)  # type: ignore[call-arg]
    if not isinstance(words, WordWeight) or words.order is not None:
        return dequantize(weight, dtype)
    return ExpertWords(kind=words.kind, words=words, rounding=_rounding(weight) if rounds else None)


def product(
    x: Tensor,
    weight: ExpertWords,
    scales: Tensor | None,
    out: Tensor,
    counts: Tensor,
    lists: Tensor,
    share: int,
    choices: int,
    tile: Tile | None = None,
) -> None:
    """``out[choice] = weight of its expert @ x[choice // share]``, gated if there are no ``scales`` to multiply with.

    Args:
        x: ``[choices / share, K]``.
        scales: float32, a number for each choice; or None.
        out: ``[choices, N]``.
        counts, lists: of `octavo.kernels.triton.routing.assign`.
        choices: it is cut as for so many.
        tile: another one than ``choose``'s, to measure it.
    """
    x, x_scales = _rounded(x, weight.rounding)
    words, count, n = weight.words, len(counts), out.shape[1]
    gated = scales is None
    t = tile or choose(choices, count, x.element_size(), gated=gated)
    grid = (triton.cdiv(n, t.outputs), len(out) // t.tokens + min(count, len(out)))
    tensors = (words.words, words.scales, words.super_scales, words.moves, words.super_moves)
    sizes = {"E": count, "N": n, "UNITS": x.shape[1] // words.unit, "SHARE": share, "GATED": gated}
    blocks = {"TOKENS": t.tokens, "OUTPUTS": t.outputs, "STEP": t.units, "E_BLOCK": triton.next_power_of_2(count)}
    stages = stages_that_fit(x.device, t.num_stages, _stage_bytes(t, x, words, 2 if gated else 1))
    options = {"num_warps": t.num_warps, "num_stages": stages}
    _grouped[grid](
        *(x, x_scales, *tensors, scales, out, counts, lists, lists.shape[1]),
        **sizes,
        **blocks,
        **form_of(words),
        **options,
    )


def _rounding(weight: Operand) -> Int8Weight | Fp8Weight:
    """How ``weight`` rounds x, without its numbers."""
    assert isinstance(weight, Int8Weight | Fp8Weight)
    return replace(weight, values=weight.values.new_empty(0, weight.shape[1]), scales=weight.scales[:0])


def _rounded(x: Tensor, rounding: Int8Weight | Fp8Weight | None) -> tuple[Tensor, Tensor | None]:
    """x as the weight wants it, and what its rows must be multiplied with, or None."""
    if isinstance(rounding, Int8Weight):
        q, scales, _ = quantize_rows(x, torch.int8)
        return q.to(x.dtype), scales
    return (x.contiguous() if rounding is None else round_fp8(x, rounding).to(x.dtype)), None


def _stage_bytes(tile: Tile, x: Tensor, words: WordWeight, matrices: int) -> int:
    """Of x, and of words with as many factors of 4 bytes each."""
    factors = sum(t is not None for t in (words.scales, words.super_scales, words.moves, words.super_moves))
    of_words = matrices * tile.outputs * tile.units * 16 * (1 + factors)
    return tile.tokens * tile.units * words.unit * x.element_size() + of_words


@triton.jit(do_not_specialize=["num_tokens"])
def _grouped(
    x: tl.tensor,
    x_scales: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    super_scales: tl.tensor,
    moves: tl.tensor,
    super_moves: tl.tensor,
    factors: tl.tensor,
    out: tl.tensor,
    counts: tl.tensor,
    lists: tl.tensor,
    num_tokens: int,
    E: tl.constexpr,
    N: tl.constexpr,
    UNITS: tl.constexpr,
    SHARE: tl.constexpr,
    GATED: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
    E_BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    MOVE: tl.constexpr,
    HARDWARE: tl.constexpr,
) -> None:
    width: tl.constexpr = 32 if KIND == "int4" else 16
    expert, first, count = find_tile(counts, tl.program_id(1), E, E_BLOCK, TOKENS)
    if expert >= E:
        return
    place = first + tl.arange(0, TOKENS)
    real = place < count
    choice = tl.load(lists + expert.to(tl.int64) * num_tokens + place, mask=real, other=0).to(tl.int64)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    # Outputs beyond the last compute the last one again, and are not stored.
    row = (tl.minimum(output, N - 1).to(tl.int64) + expert.to(tl.int64) * (2 * N if GATED else N))[:, None]
    rows = x + (choice // SHARE)[:, None] * (UNITS * width)
    acc = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    up = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    for start in range(0, UNITS * 4, STEP * 4):
        word = (start + tl.arange(0, STEP * 4))[None, :]
        inside = (word < UNITS * 4) & (row >= 0)
        a_words = tl.load(words + row * (UNITS * 4) + word, mask=inside, other=0)
        s, m = load_factors(
            scales, super_scales, moves, super_moves, row, word, inside, UNITS, KIND, GROUP, SCALE_ROWS, MOVE
        )
        if GATED:
            b_words = tl.load(words + (row + N) * (UNITS * 4) + word, mask=inside, other=0)
            t, n = load_factors(
                scales, super_scales, moves, super_moves, row + N, word, inside, UNITS, KIND, GROUP, SCALE_ROWS, MOVE
            )
        here = real[:, None] & (word < UNITS * 4)
        for i in tl.static_range(width // 4):
            y = tl.load(rows + (word // 4 * width + 4 * i + word % 4), mask=here, other=0.0)
            a = plane(a_words, i, s, m, KIND, MOVE, HARDWARE).to(y.dtype)
            acc = tl.dot(y, tl.trans(a), acc, input_precision="ieee")
            if GATED:
                b = plane(b_words, i, t, n, KIND, MOVE, HARDWARE).to(y.dtype)
                up = tl.dot(y, tl.trans(b), up, input_precision="ieee")
    if x_scales is not None:
        size = tl.load(x_scales + choice // SHARE, mask=real, other=0.0)[:, None]
        acc *= size
        up *= size
    if GATED:
        acc = acc / (1.0 + tl.exp(-acc)) * up
    else:
        acc *= tl.load(factors + choice, mask=real, other=0.0)[:, None]
    target = out + choice[:, None] * N + output[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=real[:, None] & (output < N)[None, :])
