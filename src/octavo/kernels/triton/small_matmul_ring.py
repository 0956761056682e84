"""The kernel of `small_matmul` for Hopper, with its pipeline written out, so that it is filled before x is known.

A program's weights pass through a ring of stages in shared memory, which Hopper's copy engine (TMA) fills and its
matrix instructions read. Triton's own pipeline begins to fill where its loop begins, after ``wait``, as x goes through
the same loop. Here a stage's weights are requested before the wait and its x after it; both are counted by the
stage's barrier. In a small model a program's weights (32 to 96 KB) are all there by the time that x is.

One set of warps does everything: a stage is filled again as soon as the instructions that read it are known to be done,
while those of the next stage run.

Written in Gluon, Triton's language with explicit layouts, for compute capability 9.0 alone.
"""

# Types in annotations here are for the reader: Gluon's functions know theirs when they are compiled.
from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from octavo.kernels.triton.pdl import AFTER_SUMS, AFTER_WAIT, FIRST

_FIRST, _AFTER_WAIT, _AFTER_SUMS = gl.constexpr(FIRST), gl.constexpr(AFTER_WAIT), gl.constexpr(AFTER_SUMS)
_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # its name from Triton 3.7 on, and before


def descriptor(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """For copies of tiles ``[rows, columns]``, which are 0 beyond the matrix's end."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], _DTYPES[matrix.dtype])
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns], layout)


_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


@gluon.jit(do_not_specialize=["num_tokens", "trigger_at"])
def ring_product(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    out,
    partials,
    arrivals,
    num_tokens,
    N,
    K,
    trigger_at,
    GATED: gl.constexpr,
    TOKENS: gl.constexpr,
    ROWS: gl.constexpr,
    DEPTH: gl.constexpr,
    SPLITS: gl.constexpr,
    STAGES: gl.constexpr,
    PDL: gl.constexpr,
):
    """As ``_product`` of `small_matmul`; ``x`` and ``weight`` are descriptors with tiles of DEPTH columns."""
    if trigger_at == _FIRST:
        _trigger(PDL)
    token_tiles = gl.cdiv(num_tokens, TOKENS)
    token = gl.program_id(0) % token_tiles * TOKENS
    row = gl.program_id(0) // token_tiles * ROWS
    share = gl.cdiv(gl.cdiv(K, DEPTH), SPLITS)
    first = gl.program_id(1) * share
    steps = gl.minimum(share, gl.cdiv(K, DEPTH) - first)

    halves: gl.constexpr = 2 if GATED else 1
    dtype: gl.constexpr = weight.dtype
    xs = gl.allocate_shared_memory(dtype, [STAGES, TOKENS, DEPTH], x.layout)
    ws = gl.allocate_shared_memory(dtype, [halves * STAGES, ROWS, DEPTH], weight.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
    fence_async_shared()
    for stage in gl.static_range(STAGES):
        _copy_weights(weight, ws, ready, stage, row, N, (first + stage) * DEPTH, stage < steps, TOKENS, GATED)
    _wait(PDL)
    if trigger_at == _AFTER_WAIT:
        _trigger(PDL)
    for stage in gl.static_range(STAGES):
        column = (first + stage) * DEPTH
        tma.async_copy_global_to_shared(x, [token, column], ready.index(stage), xs.index(stage), stage < steps)

    layout: gl.constexpr = _sums_layout(ROWS, TOKENS, gl.num_warps())
    y = gl.zeros([ROWS, TOKENS], gl.float32, layout)
    z = gl.zeros([ROWS, TOKENS], gl.float32, layout)
    for step in range(steps):
        slot = step % STAGES
        mbarrier.wait(ready.index(slot), (step // STAGES) & 1)
        tokens = xs.index(slot).permute((1, 0))
        y = warpgroup_mma(ws.index(halves * slot), tokens, y, is_async=True)
        if GATED:
            z = warpgroup_mma(ws.index(halves * slot + 1), tokens, z, is_async=True)
            y, z = warpgroup_mma_wait(2, deps=(y, z))
        else:
            y = warpgroup_mma_wait(1, deps=(y,))
        _barrier()  # no warp reads the stage before this one any more
        again = step - 1 + STAGES
        freed = again % STAGES
        more = (step > 0) & (again < steps)
        ahead = (first + again) * DEPTH
        _copy_weights(weight, ws, ready, freed, row, N, ahead, more, TOKENS, GATED)
        tma.async_copy_global_to_shared(x, [token, ahead], ready.index(freed), xs.index(freed), more)
    if GATED:
        y, z = warpgroup_mma_wait(0, deps=(y, z))
    else:
        y = warpgroup_mma_wait(0, deps=(y,))
        z = y
    if trigger_at == _AFTER_SUMS:
        _trigger(PDL)
    for stage in gl.static_range(STAGES):
        mbarrier.invalidate(ready.index(stage))

    if SPLITS == 1:
        _store(out, bias, y, z, token, row, num_tokens, N, GATED)
    else:
        tile = gl.program_id(0)
        partials += tile.to(gl.int64) * (SPLITS * ROWS * TOKENS * halves)
        if _leave(partials, arrivals + tile, y, z, SPLITS, GATED):
            y, z = _add_up(partials, y, SPLITS, GATED)
            _store(out, bias, y, z, token, row, num_tokens, N, GATED)


@gluon.constexpr_function
def _sums_layout(rows: int, tokens: int, warps: int) -> gl.NVMMADistributedLayout:
    """Where sums ``[rows, tokens]`` lie in the registers: four warps share 64 rows, and others more rows, or tokens."""
    across = min(warps, rows // 16)
    return gl.NVMMADistributedLayout([3, 0], [across, warps // across], [16, tokens * across // warps, 16])


@gluon.jit
def _copy_weights(  # type: ignore[no-untyped-def]
    weight, ws, ready, stage, row, N, column, pred, TOKENS: gl.constexpr, GATED: gl.constexpr
):
    """Request a stage's weights; its barrier waits for them and for x."""
    ROWS: gl.constexpr = weight.block_shape[0]
    DEPTH: gl.constexpr = weight.block_shape[1]
    halves: gl.constexpr = 2 if GATED else 1
    barrier = ready.index(stage)
    mbarrier.expect(barrier, (halves * ROWS + TOKENS) * DEPTH * 2, pred)
    tma.async_copy_global_to_shared(weight, [row, column], barrier, ws.index(halves * stage), pred)
    if GATED:
        tma.async_copy_global_to_shared(weight, [N + row, column], barrier, ws.index(halves * stage + 1), pred)


@gluon.jit
def _wait(PDL: gl.constexpr):  # type: ignore[no-untyped-def]
    if PDL:
        gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _trigger(PDL: gl.constexpr):  # type: ignore[no-untyped-def]
    if PDL:
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )


@gluon.jit
def _places(like):  # type: ignore[no-untyped-def]
    """Where a partial tile's numbers stand."""
    rows = gl.arange(0, like.shape[0], gl.SliceLayout(1, like.type.layout))
    tokens = gl.arange(0, like.shape[1], gl.SliceLayout(0, like.type.layout))
    return rows[:, None] * like.shape[1] + tokens[None, :]


@gluon.jit
def _leave(partials, arrived, y, z, SPLITS: gl.constexpr, GATED: gl.constexpr):  # type: ignore[no-untyped-def]
    """Write a program's part of the sums; whether it is the last of its tile to do so."""
    SIZE: gl.constexpr = y.shape[0] * y.shape[1]
    halves: gl.constexpr = 2 if GATED else 1
    own = partials + gl.program_id(1) * (SIZE * halves)
    gl.store(own + _places(y), y)
    if GATED:
        gl.store(own + SIZE + _places(y), z)
    # The barrier puts all threads' stores before the one thread's release; the last one has acquired all others'.
    _barrier()
    is_last = gl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if is_last:
        gl.store(arrived, 0)  # for the next launch
    return is_last


@gluon.jit
def _add_up(partials, like, SPLITS: gl.constexpr, GATED: gl.constexpr):  # type: ignore[no-untyped-def]
    """The sums of a tile's parts, in the order of K."""
    SIZE: gl.constexpr = like.shape[0] * like.shape[1]
    halves: gl.constexpr = 2 if GATED else 1
    layout: gl.constexpr = like.type.layout
    y = gl.zeros([like.shape[0], like.shape[1]], gl.float32, layout)
    z = y
    for i in gl.static_range(SPLITS):
        y += gl.load(partials + i * halves * SIZE + _places(like), cache_modifier=".cg")
        if GATED:
            z += gl.load(partials + (i * halves + 1) * SIZE + _places(like), cache_modifier=".cg")
    return y, z


@gluon.jit
def _store(out, bias, y, z, token, row, num_tokens, N, GATED: gl.constexpr):  # type: ignore[no-untyped-def]
    """Write a tile's results, from the sums y, and z where y is a gate."""
    if bias is not None:
        rows = row + gl.arange(0, y.shape[0], gl.SliceLayout(1, y.type.layout))
        y += gl.load(bias + rows, mask=rows < N, other=0.0).to(gl.float32)[:, None]
        if GATED:
            z += gl.load(bias + N + rows, mask=rows < N, other=0.0).to(gl.float32)[:, None]
    if GATED:
        y = y / (1.0 + gl.exp(-y)) * z
    # A thread of the sums' layout has tokens beside each other: change that, for stores of whole sectors.
    across: gl.constexpr = gl.BlockedLayout([8, 1], [8, 4], [1, gl.num_warps()], [0, 1])
    result = gl.convert_layout(y.to(out.dtype.element_ty), across)
    rows = row + gl.arange(0, y.shape[0], gl.SliceLayout(1, across))
    tokens = token + gl.arange(0, y.shape[1], gl.SliceLayout(0, across))
    place = out + tokens.to(gl.int64)[None, :] * N + rows[:, None]
    gl.store(place, result, mask=(rows < N)[:, None] & (tokens < num_tokens)[None, :])
