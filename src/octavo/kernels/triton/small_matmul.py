"""Products of a small batch of rows (2 to 256), with the gate behind them in the same kernel.

Few rows leave the weights' bytes over the memory's bandwidth as the floor, which a library's kernel misses by its start
and end: on an H100 by 3 to 6 us of 6 to 9 in a small model. What is done about it:

- **The weights come early.** Kernels are chained by programmatic dependent launch (`pdl`). While the kernel before is
  still busy with x, each program asks for its weights to be brought into the L2 cache; or, in the kernel of
  `small_matmul_ring`, into its own shared memory.
- **Every multiprocessor has work.** Where there are fewer tiles of the result than multiprocessors, a tile's sum over K
  is split over programs. Each leaves a partial tile in float32, and the last one to arrive adds them all up, in the
  order of K: the result does not depend on who came last, and no second kernel is needed.
- **The gate is applied where its sums are.** A program takes the same rows of both halves of a gated weight and
  writes ``silu(gate) * up``: a kernel less, and a third of its bytes.

The norm before a product stays a kernel of its own. Folded in, each program would read the float32 stream of all
tokens, which is more than its weights: x is read again by each program as it is, from the L2 cache, and for 64 tokens
and 64 rows a program this traffic is already as large as that of the weights.

The weights are the matrix instruction's operand with many rows, and the tokens the narrow one, padded to 16, 32, 64 or
128; but a program that takes fewer than 64 rows (Hopper's instruction has no fewer) has the tokens as rows. N and K are
arguments, not constants: one compiled kernel serves all shapes with the same settings.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.triton import small_matmul_settings as settings
from octavo.kernels.triton.capability import HOPPER, capability
from octavo.kernels.triton.pdl import AFTER_SUMS, AFTER_WAIT, FIRST, trigger, use_pdl, wait
from octavo.kernels.triton.small_matmul_settings import DESCRIPTORS, RING, Settings

MAX_TILES = 4096
"""Tiles of a result whose sums may be split."""
LINE_BYTES = 128
"""Of the L2 cache."""
PREFETCH_BYTES = 128 << 10
"""Weights that a program asks for before x is known, at most."""


class SmallProducts:
    """Launches the kernels on one device. Keeps the arrivals' counters, 0 between launches; serves one stream."""

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self._arrivals = torch.zeros(MAX_TILES, dtype=torch.int32, device=device)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, chosen: Settings | None = None) -> Tensor:
        """``x [T, K] @ weight [N, K].T + bias [N]``: ``[T, N]`` in x's dtype, rounded once from float32.

        Args:
            x: 2 to 256 rows, contiguous, of the weight's dtype; K a multiple of 16.
            weight: contiguous.
            bias: added before rounding.
            chosen: other settings than the table's, to measure them.
        """
        return self._launch(x, weight, bias, len(weight), chosen)

    def gate_up(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, chosen: Settings | None = None) -> Tensor:
        """``silu(gate) * up`` of the product with ``weight [2N, K]``, whose first half is the gate: ``[T, N]``."""
        return self._launch(x, weight, bias, len(weight) // 2, chosen)

    def _launch(self, x: Tensor, weight: Tensor, bias: Tensor | None, n: int, chosen: Settings | None) -> Tensor:
        (tokens, k), gated = x.shape, len(weight) != n
        s = chosen or settings.choose(n, k, tokens, gated=gated) or settings.by_rule(n, k, tokens, gated=gated)
        tiles = triton.cdiv(tokens, s.tokens) * triton.cdiv(n, s.rows)
        splits = s.splits if tiles <= MAX_TILES else 1
        out, pdl = x.new_empty(tokens, n), use_pdl(x.device)
        size = tiles * splits * (1 + gated) * s.rows * s.tokens if splits > 1 else 0
        partials = x.new_empty(size, dtype=torch.float32)
        common = (bias, out, partials, self._arrivals, tokens, n, k, s.trigger)
        sizes = {"GATED": gated, "TOKENS": s.tokens, "ROWS": s.rows, "DEPTH": s.depth, "SPLITS": splits, "PDL": pdl}
        options = {**sizes, "num_warps": s.warps, "launch_pdl": pdl}
        launch = _launch_ring if s.loads == RING else _launch_pipelined
        launch((tiles, splits), x, weight, common, s, options)
        return out


def _launch_ring(grid: tuple, x: Tensor, weight: Tensor, common: tuple, s: Settings, options: dict) -> None:
    from octavo.kernels.triton import small_matmul_ring as ring

    operands = ring.descriptor(x, s.tokens, s.depth), ring.descriptor(weight, s.rows, s.depth)
    ring.ring_product[grid](*operands, *common, STAGES=s.stages, **options)


def _launch_pipelined(grid: tuple, x: Tensor, weight: Tensor, common: tuple, s: Settings, options: dict) -> None:
    by_engine, itemsize, k = s.loads == DESCRIPTORS, x.element_size(), x.shape[1]
    operands = (_descriptor(x, s.tokens, s.depth), _descriptor(weight, s.rows, s.depth)) if by_engine else (x, weight)
    lines = _lines(s, k, itemsize, options["GATED"], options["SPLITS"]) if options["PDL"] else 0
    ways = {"WHOLE": k % s.depth == 0, "BY_ENGINE": by_engine, "LINE": LINE_BYTES // itemsize, "LINES": lines}
    _product[grid](*operands, weight, *common, num_stages=s.stages, **ways, **options)


def fits(x: Tensor, weight: object, *, gated: bool = False) -> bool:
    """Whether these kernels can compute ``x [T, K] @ weight [N, K].T``, and have been seen to beat cuBLAS there."""
    if not isinstance(weight, Tensor) or x.dtype != weight.dtype or x.dtype not in (torch.bfloat16, torch.float16):
        return False
    (tokens, k), n = x.shape, len(weight) // (1 + gated)
    if tokens > settings.MAX_TOKENS:
        return False
    plain = k % 16 == 0 and all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in (x, weight))
    known = plain and settings.choose(n, k, tokens, gated=gated) is not None
    return known and is_supported(x.device)


@functools.cache
def is_supported(device: torch.device) -> bool:
    """Whether the kernel of `small_matmul_ring` runs there, too, without which cuBLAS is hard to beat."""
    if capability(device)[0] != HOPPER:
        return False
    try:  # Gluon is experimental: another Triton may have other names
        import octavo.kernels.triton.small_matmul_ring  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True


def _descriptor(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """For loads of tiles ``[rows, columns]`` by the copy engine, which gives 0 beyond the matrix's end."""
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])


def _lines(s: Settings, k: int, itemsize: int, gated: bool, splits: int) -> int:
    """Cache lines of each row that a program asks for: a power of two that covers its columns, or what is allowed."""
    columns = -(-k // splits)
    most = PREFETCH_BYTES // (LINE_BYTES * s.rows * (1 + gated))
    needed = triton.next_power_of_2(-(-columns * itemsize // LINE_BYTES))
    return min(needed, 1 << (most.bit_length() - 1)) if most else 0


_FIRST, _AFTER_WAIT, _AFTER_SUMS = tl.constexpr(FIRST), tl.constexpr(AFTER_WAIT), tl.constexpr(AFTER_SUMS)


@triton.jit(do_not_specialize=["num_tokens", "trigger_at"])
def _product(
    x: tl.tensor,
    weight: tl.tensor,
    prefetched: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    partials: tl.tensor,
    arrivals: tl.tensor,
    num_tokens: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    trigger_at: tl.tensor,
    GATED: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLITS: tl.constexpr,
    WHOLE: tl.constexpr,  # K is a multiple of DEPTH
    BY_ENGINE: tl.constexpr,  # x and weight are given as descriptors
    LINE: tl.constexpr,
    LINES: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """Each program a tile of the result for its share of K. Neighbours have the same weights and other tokens."""
    if trigger_at == _FIRST:
        trigger(PDL)
    token_tiles = tl.cdiv(num_tokens, TOKENS)
    token = tl.program_id(0) % token_tiles * TOKENS
    row = tl.program_id(0) // token_tiles * ROWS
    share = tl.cdiv(tl.cdiv(K, SPLITS), DEPTH) * DEPTH
    start = tl.program_id(1) * share
    end = tl.minimum(start + share, K)
    if LINES > 0:
        _prefetch(prefetched, row, N, K, start, end, ROWS, LINE, LINES)
        if GATED:
            _prefetch(prefetched + N.to(tl.int64) * K, row, N, K, start, end, ROWS, LINE, LINES)
    wait(PDL)
    if trigger_at == _AFTER_WAIT:
        trigger(PDL)
    y = _zeros(TOKENS, ROWS)
    z = y
    for column in tl.range(start, end, DEPTH):
        a = _tile(x, token, num_tokens, column, K, TOKENS, DEPTH, WHOLE, BY_ENGINE)
        y = _multiply(a, _tile(weight, row, N, column, K, ROWS, DEPTH, WHOLE, BY_ENGINE), y)
        if GATED:
            if BY_ENGINE:
                b = weight.load([N + row, column])
            else:
                b = _tile(weight + N.to(tl.int64) * K, row, N, column, K, ROWS, DEPTH, WHOLE, BY_ENGINE)
            z = _multiply(a, b, z)
    if trigger_at == _AFTER_SUMS:
        trigger(PDL)
    if SPLITS == 1:
        _store(out, bias, y, z, token, row, num_tokens, N, GATED, TOKENS, ROWS)
    else:
        tile, places = tl.program_id(0), ROWS * TOKENS * (1 + GATED)
        partials += tile.to(tl.int64) * (SPLITS * places)
        if _leave(partials + tl.program_id(1) * places, arrivals + tile, y, z, SPLITS, GATED):
            y, z = _add_up(partials, y, SPLITS, GATED)
            _store(out, bias, y, z, token, row, num_tokens, N, GATED, TOKENS, ROWS)


@triton.jit
def _prefetch(
    weight: tl.tensor,
    row: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    ROWS: tl.constexpr,
    LINE: tl.constexpr,
    LINES: tl.constexpr,
) -> None:
    """Ask for the first ``LINES`` cache lines of the columns ``start`` to ``end`` of each row."""
    rows = tl.minimum(row + tl.arange(0, ROWS), N - 1).to(tl.int64)[:, None] * K
    columns = tl.minimum(start + tl.arange(0, LINES) * LINE, end - 1)[None, :]
    lines = (weight + rows + columns).to(tl.uint64, bitcast=True)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _tile(
    matrix: tl.tensor,
    row: tl.tensor,
    num_rows: tl.tensor,
    column: tl.tensor,
    K: tl.tensor,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
    BY_ENGINE: tl.constexpr,
) -> tl.tensor:
    """``[ROWS, DEPTH]`` of a matrix with K columns, 0 beyond them. Rows beyond the last are the last one again, or 0:
    what comes of them is not stored.
    """
    if BY_ENGINE:
        tile = matrix.load([row, column])
    else:
        rows = tl.minimum(row + tl.arange(0, ROWS), num_rows - 1).to(tl.int64)[:, None] * K
        columns = column + tl.arange(0, DEPTH)
        if WHOLE:
            tile = tl.load(matrix + rows + columns[None, :])
        else:
            tile = tl.load(matrix + rows + columns[None, :], mask=(columns < K)[None, :], other=0.0)
    return tile


@triton.jit
def _zeros(TOKENS: tl.constexpr, ROWS: tl.constexpr) -> tl.tensor:
    return tl.zeros([TOKENS, ROWS] if ROWS < 64 else [ROWS, TOKENS], tl.float32)


@triton.jit
def _multiply(x: tl.tensor, weight: tl.tensor, sums: tl.tensor) -> tl.tensor:
    """Add the product of tiles ``[TOKENS, DEPTH]`` and ``[ROWS, DEPTH]``: whichever has to be is the first operand."""
    if weight.shape[0] < 64:
        sums = tl.dot(x, tl.trans(weight), sums, input_precision="ieee")
    else:
        sums = tl.dot(weight, tl.trans(x), sums, input_precision="ieee")
    return sums


@triton.jit
def _places(shape: tl.constexpr) -> tl.tensor:
    """Where a partial tile's numbers stand: as they lie in registers."""
    return tl.arange(0, shape[0])[:, None] * shape[1] + tl.arange(0, shape[1])[None, :]


@triton.jit
def _leave(
    partial: tl.tensor, arrived: tl.tensor, y: tl.tensor, z: tl.tensor, SPLITS: tl.constexpr, GATED: tl.constexpr
) -> tl.tensor:
    """Write a program's part of the sums; whether it is the last of its tile to do so."""
    places = _places(y.shape)
    tl.store(partial + places, y)
    if GATED:
        tl.store(partial + y.shape[0] * y.shape[1] + places, z)
    # The barrier puts all threads' stores before the one thread's release; the last one has acquired all others'.
    tl.debug_barrier()
    is_last = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if is_last:
        tl.store(arrived, 0)  # for the next launch
    return is_last


@triton.jit
def _add_up(partials: tl.tensor, like: tl.tensor, SPLITS: tl.constexpr, GATED: tl.constexpr) -> tuple:
    """The sums of a tile's parts, in the order of K."""
    SIZE: tl.constexpr = like.shape[0] * like.shape[1]
    places = _places(like.shape)
    y = tl.zeros(like.shape, tl.float32)
    z = y
    for i in tl.static_range(SPLITS):
        y += tl.load(partials + i * SIZE * (1 + GATED) + places, cache_modifier=".cg")
        if GATED:
            z += tl.load(partials + (i * (1 + GATED) + 1) * SIZE + places, cache_modifier=".cg")
    return y, z


@triton.jit
def _store(
    out: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    token: tl.tensor,
    row: tl.tensor,
    num_tokens: tl.tensor,
    N: tl.tensor,
    GATED: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Write a tile's results, from the sums y, and z where y is a gate."""
    if ROWS >= 64:
        y, z = tl.trans(y), tl.trans(z)
    tokens, rows = token + tl.arange(0, TOKENS), row + tl.arange(0, ROWS)
    if bias is not None:
        y += tl.load(bias + rows, mask=rows < N, other=0.0).to(tl.float32)[None, :]
        if GATED:
            z += tl.load(bias + N + rows, mask=rows < N, other=0.0).to(tl.float32)[None, :]
    if GATED:
        y = y * tl.sigmoid(y) * z
    place = out + tokens.to(tl.int64)[:, None] * N + rows[None, :]
    tl.store(place, y.to(out.dtype.element_ty), mask=(tokens < num_tokens)[:, None] & (rows < N)[None, :])
