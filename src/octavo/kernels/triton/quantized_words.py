"""The GPU's own form of weight-only quantized matrices, and how kernels take numbers out of it.

**Words.** A word of 32 bits holds 4 numbers of 8 bits or 8 of 4 bits. A *unit* is 4 words, the 16 bytes that a thread
loads at once: 16 or 32 neighbouring columns. Number i of word a is column ``4 i + a`` of the unit. So number i of all
words, *plane* i, meets four neighbouring numbers of x, which are one load, in registers where they lie.

**Integers** meet x in fixed point. At 3 TB/s a multiprocessor of an H100 gets 26 numbers of 4 bits each cycle and
issues 128 instructions of single threads; to make each number a float would alone take 60% of these. So x becomes whole
numbers: those of a unit are divided by their largest, as 16 bits (20 if x is float32), cut into bytes, and one ``dp4a``
takes four products of bytes, exactly. bfloat16 has 8 bits and float16 11, so what this rounds away is small beside what
is gone already.

**e4m3** is converted to float16 by the hardware, two numbers at a time, or its bits are moved to where float32 has them
where it cannot (below compute capability 8.9).

**Scales.** ``w = (q - middle) * s + b``, where s and b are shared by ``group`` columns of ``rows`` rows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from octavo.kernels.packed import PackedWeight
from octavo.kernels.triton.capability import capability

INT4, INT8, FP8 = "int4", "int8", "fp8"
SCALES_ONLY, ZEROS, FLOORS = 0, 1, 2
"""How a group is moved: not at all, by a zero point (``(q - z) s``) or by its least value (``q s + m``)."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WordWeight(PackedWeight):
    """Words, and the numbers that give them back their size.

    Attributes:
        kind: "int4", "int8" (signed) or "fp8" (e4m3).
        words: int32 ``[N, K * bits / 32]``.
        scales: ``[ceil(N / rows), ceil(K / group)]``; any dtype.
        moves: zero points or least values of groups, as ``move`` says; shape of ``scales``, or None.
        super_scales: float16 ``[N, K / 256]`` or None: ``scales`` are multiples of these.
        super_moves: the same for ``moves``.
        group, rows: columns and rows that share a scale.
        move: what ``moves`` are: SCALES_ONLY, ZEROS or FLOORS.
        order: int32 ``[K]`` or None: column k multiplies ``x[:, order[k]]``.
    """

    kind: str  # type: ignore[misc]  # not of the class here
    words: Tensor
    scales: Tensor
    group: int
    rows: int = 1
    moves: Tensor | None = None
    super_scales: Tensor | None = None
    super_moves: Tensor | None = None
    move: int = SCALES_ONLY
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.words.shape[0], self.words.shape[1] * planes(self.kind)

    @property
    def unit(self) -> int:
        """Columns that a thread loads at once."""
        return 4 * planes(self.kind)


def planes(kind: str) -> int:
    """Numbers in a word."""
    return 8 if kind == INT4 else 4


def form_of(weight: WordWeight) -> dict[str, object]:
    """What kernels must know of a weight when they are compiled."""
    group, rows = min(weight.group, weight.shape[1]), min(weight.rows, weight.shape[0])
    device = weight.words.device
    hardware = device.type == "cuda" and (weight.kind != FP8 or converts_fp8(device))
    return {"KIND": weight.kind, "GROUP": group, "SCALE_ROWS": rows, "MOVE": weight.move, "HARDWARE": hardware}


def converts_fp8(device: torch.device) -> bool:
    """Whether a device is a GPU with instructions for e4m3."""
    return capability(device) >= (8, 9)


def stages_that_fit(device: torch.device, wanted: int, stage_bytes: int) -> int:
    """How many steps of a loop can be under way at once, up to ``wanted``, if each has so much in shared memory."""
    return max(1, min(wanted, (_shared_memory(device.index) if device.type == "cuda" else 1 << 20) // stage_bytes))


@functools.cache
def _shared_memory(index: int | None) -> int:
    """Bytes that a program may have, less what reductions and results need."""
    return driver.active.utils.get_device_properties(index or 0)["max_shared_mem"] - 2048


def bytes_to_words(values: Tensor) -> Tensor:
    """Numbers of 8 bits ``[N, K]`` (uint8, K a multiple of 16) as words ``[N, K / 4]``."""
    n, k = values.shape
    units = values.view(n, k // 16, 4, 4)  # plane, word
    return units.transpose(2, 3).contiguous().view(torch.int32).view(n, k // 4)


def nibbles_to_words(values: Tensor) -> Tensor:
    """Numbers of 4 bits in pairs ``[N, K / 2]`` (uint8, even columns low, K a multiple of 32): words ``[N, K / 8]``."""
    n, k = values.shape[0], 2 * values.shape[1]
    pairs = values.view(n, k // 32, 8, 2)  # plane, two bytes for words 0, 1 and 2, 3
    by_word = torch.stack([pairs & 15, pairs >> 4], dim=-1).view(n, k // 32, 4, 2, 4)  # byte of a word, half, word
    low, high = by_word.unbind(3)
    return (low | high << 4).transpose(2, 3).contiguous().view(torch.int32).view(n, k // 8)


@triton.jit
def load_words(
    words: tl.tensor,
    first: tl.tensor,
    start: tl.constexpr,
    N: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """``ROWS`` rows from ``first`` on, ``TILE`` units from ``start`` on: ``[TILE, ROWS, 4]``; N rows of ``UNITS``.

    Units come first, because then the threads of a program are laid along them, and all rows are in each thread.
    """
    unit = start + tl.arange(0, TILE)[:, None, None]
    row = tl.arange(0, ROWS)[None, :, None]
    place = words + first.to(tl.int64) * (UNITS * 4) + (row * (UNITS * 4) + unit * 4 + tl.arange(0, 4)[None, None, :])
    if N % ROWS != 0:
        tile = tl.load(place, mask=(row < N - first) & (unit < UNITS), other=0)
    elif start + TILE > UNITS:
        tile = tl.load(place, mask=unit < UNITS, other=0)
    else:
        tile = tl.load(place)
    return tile


@triton.jit
def load_scale(
    scales: tl.tensor,
    super_scales: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    UNITS: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
) -> tl.tensor:
    """The scale of each row and column, float32."""
    groups: tl.constexpr = (UNITS * (32 if KIND == "int4" else 16) + GROUP - 1) // GROUP
    # Told that neighbours are apart, the compiler lays the loads out as it does the words.
    place = tl.max_contiguous((row // SCALE_ROWS) * groups + column // GROUP, (1, 1))
    s = tl.load(scales + place, mask=inside, other=None if inside is None else 0).to(tl.float32)
    if super_scales is not None:
        s *= tl.load(
            super_scales + row * (groups * GROUP // 256) + column // 256,
            mask=inside,
            other=None if inside is None else 0,
        ).to(tl.float32)
    return s


@triton.jit
def fixed_point(planes: tl.tuple, KIND: tl.constexpr, BYTES: tl.constexpr) -> tl.tuple:
    """x's planes of a tile of units, ``[TILE, 4]`` float32 each, as whole numbers for `integer_dot`.

    Returns:
        Words ``[TILE, 4]`` of bytes: for each byte of the numbers, the highest first, that byte of four planes; with
        4 bits two such words, of even planes and of odd ones. Then the numbers' scale ``[TILE]``, and their sum, too.
    """
    largest = tl.abs(planes[0])
    for i in tl.static_range(1, len(planes)):
        largest = _larger(largest, tl.abs(planes[i]))
    limit: tl.constexpr = 127.0 * 256 if BYTES == 2 else 15.0 * 65536
    scale = _larger(tl.reduce(largest, 1, _larger), 1e-30) / limit
    factor = (1.0 / scale)[:, None]
    numbers = ()
    for i in tl.static_range(len(planes)):
        # The last bits of 1.5 * 2^23 and a number are the rounded number, in two's complement.
        number = (planes[i] * factor + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
        numbers = numbers + (number,)  # type: ignore[assignment]  # noqa: RUF005
    words = ()
    for i in tl.static_range(BYTES):
        if KIND == "int4":
            even = _gather(numbers[0], numbers[2], numbers[4], numbers[6], 8 * (BYTES - 1 - i))  # type: ignore[misc]
            odd = _gather(numbers[1], numbers[3], numbers[5], numbers[7], 8 * (BYTES - 1 - i))  # type: ignore[misc]
            words = words + (even, odd)  # type: ignore[assignment]  # noqa: RUF005
        else:
            word = _gather(numbers[0], numbers[1], numbers[2], numbers[3], 8 * (BYTES - 1 - i))  # type: ignore[misc]
            words = words + (word,)  # type: ignore[assignment]  # noqa: RUF005
    total = numbers[0]  # type: ignore[misc]
    for i in tl.static_range(1, len(planes)):
        total += numbers[i]
    return words, scale, tl.sum(total, axis=1)


@triton.jit
def _larger(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """NaN if one is: it must reach the result."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _gather(a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, SHIFT: tl.constexpr) -> tl.tensor:
    """A word of the bytes that begin at bit ``SHIFT`` of each, a's the lowest."""
    low = ((a >> SHIFT) & 0xFF) | (((b >> SHIFT) & 0xFF) << 8)
    return low | (((c >> SHIFT) & 0xFF) << 16) | ((d >> SHIFT) << 24)


@triton.jit
def integer_dot(
    words: tl.tensor, x: tl.tuple, KIND: tl.constexpr, BYTES: tl.constexpr, HARDWARE: tl.constexpr
) -> tl.tensor:
    """Words ``[TILE, ROWS, 4]`` times x's of `fixed_point`, exactly: the sums of units, int32 ``[TILE, ROWS]``."""
    acc = words * 0
    for i in tl.static_range(BYTES):
        if i > 0:
            acc = acc << 8
        if KIND == "int4":
            acc = _dot4(words & 0x0F0F0F0F, x[2 * i][:, None, :], acc, False, i == 0, HARDWARE)
            acc = _dot4((words >> 4) & 0x0F0F0F0F, x[2 * i + 1][:, None, :], acc, False, i == 0, HARDWARE)
        else:
            acc = _dot4(words, x[i][:, None, :], acc, True, i == 0, HARDWARE)
    return tl.sum(acc, axis=2)


@triton.jit
def _dot4(
    a: tl.tensor, b: tl.tensor, acc: tl.tensor, A_SIGNED: tl.constexpr, B_SIGNED: tl.constexpr, HARDWARE: tl.constexpr
) -> tl.tensor:
    """``acc`` and the four products of the bytes of a and b."""
    if HARDWARE:
        a_type: tl.constexpr = "s32" if A_SIGNED else "u32"
        b_type: tl.constexpr = "s32" if B_SIGNED else "u32"
        return tl.inline_asm_elementwise(
            "dp4a." + a_type + "." + b_type + " $0, $1, $2, $3;",
            "=r,r,r,r",
            [a, b, acc],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    for i in tl.static_range(4):
        acc += _byte(a, i, A_SIGNED) * _byte(b, i, B_SIGNED)
    return acc


@triton.jit
def _byte(word: tl.tensor, i: tl.constexpr, SIGNED: tl.constexpr) -> tl.tensor:
    return (word << (24 - 8 * i)) >> 24 if SIGNED else (word >> (8 * i)) & 0xFF


@triton.jit
def unpack_fp8(words: tl.tensor, HARDWARE: tl.constexpr) -> tl.tuple:
    """The four planes of e4m3 words as float32. By moving bits a number becomes 2^-120 of itself: exponents' biases."""
    if HARDWARE:
        return tl.inline_asm_elementwise(
            _CONVERT,
            "=f,=f,=f,=f,r",
            [words],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    values = ()
    for i in tl.static_range(4):
        moved = ((words << (24 - 8 * i)) >> 4) & -0x78100000  # the sign, and from bit 20 on exponent and mantissa
        values = values + (moved.to(tl.float32, bitcast=True) * 1.329227995784916e36,)  # type: ignore[assignment]  # noqa: RUF005
    return values


_CONVERT = tl.constexpr("""{
    .reg .b16 lo, hi, p, q, r, s;
    .reg .b32 a, b;
    mov.b32 {lo, hi}, $4;
    cvt.rn.f16x2.e4m3x2 a, lo;
    cvt.rn.f16x2.e4m3x2 b, hi;
    mov.b32 {p, q}, a;
    mov.b32 {r, s}, b;
    cvt.f32.f16 $0, p;
    cvt.f32.f16 $1, q;
    cvt.f32.f16 $2, r;
    cvt.f32.f16 $3, s;
}""")
