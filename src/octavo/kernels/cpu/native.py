"""The C kernels (`native/*.c`) as functions of tensors. What they cannot do, `octavo.kernels.reference` does."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int32, c_int64, c_void_p

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.forward_batch import KVLayer

LANES = 16
MAX_HEAD_DIM, MAX_SHARE, MAX_PARTS = 256, 32, 64
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}


class Walk(ctypes.Structure):
    """What all jobs of an attention call have in common; see ``native/attention.c``."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("query_stride", c_int64),
        ("num_kv_heads", c_int32),
        ("share", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("scale", c_float),
        ("soft_cap", c_float),
    )


_ARGUMENTS = {
    "octavo_attention": (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int, c_int, c_void_p, c_void_p),
    "octavo_add_rms_norm": (c_void_p, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p),
    "octavo_silu_mul": (c_void_p, c_int64, c_int64, c_void_p),
    "octavo_rotate_and_store": (*(c_void_p,) * 6, c_float, c_void_p, c_void_p, *(c_int64,) * 5),
}


class Native:
    """The functions of the compiled library. Tensors are contiguous, on the CPU, in float32 or bfloat16."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {
            (name, dtype): self._function(library, f"{name}_{suffix}", arguments)
            for name, arguments in _ARGUMENTS.items()
            for dtype, suffix in _SUFFIX.items()
        }

    @staticmethod
    def _function(library: ctypes.CDLL, name: str, arguments: tuple[type, ...]) -> ctypes._FuncPointer:
        function = library[name]
        function.argtypes, function.restype = arguments, None
        return function

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """``out = rms_norm(x + residual) * weight``, ``residual += x``: ``[T, H]``, H a multiple of 16."""
        rows, size = x.shape
        self._functions["octavo_add_rms_norm", x.dtype](
            x.data_ptr(), residual.data_ptr(), weight.data_ptr(), eps, rows, size, out.data_ptr()
        )

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        """``out [T, I] = silu(gate) * up`` of ``gate_up [T, 2I]``, I a multiple of 16."""
        rows, size = out.shape
        self._functions["octavo_silu_mul", out.dtype](gate_up.data_ptr(), rows, size, out.data_ptr())

    def rotate_and_store(
        self,
        qkv: Tensor,
        positions: Tensor,
        slots: Tensor,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        kv: KVLayer,
    ) -> None:
        """Turn queries and keys of ``qkv`` in place, copy keys and values to the cache; D is a multiple of 32."""
        _, hk, block_size, d = kv.keys.shape
        rows, width = qkv.shape
        self._functions["octavo_rotate_and_store", qkv.dtype](
            *(qkv.data_ptr(), positions.data_ptr(), slots.data_ptr(), cos_sin.data_ptr()),
            *(None if norm is None else norm.data_ptr() for norm in (q_norm, k_norm)),
            *(eps, kv.keys.data_ptr(), kv.values.data_ptr(), rows, width // d - 2 * hk, hk, d, block_size),
        )

    def attention(
        self,
        q: Tensor,
        kv: KVLayer,
        jobs: np.ndarray,
        num_parts: int,
        tables: Tensor,
        *,
        scale: float,
        soft_cap: float | None,
        partials: Tensor,
        out: Tensor,
    ) -> None:
        """Attention of some of the query tokens ``q [T, Hq, D]``, each written to its row of ``out [T, Hq * D]``.

        Args:
            jobs: int32 ``[N, num_parts, 5]``: token, row of ``tables``, key/value head, and the positions from and to
                which (excluded) the part goes; a part may be empty, not all of a job's.
            tables: int64 ``[R, max_blocks]``.
            partials: float32, at least ``N * num_parts * share * (D + 2)``: scratch.
        """
        _, hk, block_size, d = kv.keys.shape
        walk = Walk(
            *(kv.keys.data_ptr(), kv.values.data_ptr(), q.stride(0), hk, q.shape[1] // hk, d, block_size),
            *(scale, soft_cap or 0),
        )
        self._functions["octavo_attention", q.dtype](
            *(ctypes.addressof(walk), q.data_ptr(), jobs.ctypes.data, tables.data_ptr(), tables.stride(0)),
            *(len(jobs), num_parts, partials.data_ptr(), out.data_ptr()),
        )


def fits_attention(q: Tensor, kv: KVLayer) -> bool:
    """Whether ``Native.attention`` can take these queries and this cache."""
    hk, d = kv.keys.shape[1], q.shape[2]
    same = q.dtype is kv.keys.dtype and q.dtype in _SUFFIX
    dense = q.stride(2) == 1 and q.stride(1) == d and kv.keys.is_contiguous() and kv.values.is_contiguous()
    return same and dense and d % LANES == 0 and d <= MAX_HEAD_DIM and q.shape[1] // hk <= MAX_SHARE


def fits_rows(*tensors: Tensor) -> bool:
    """Whether the row-wise kernels can take these: all contiguous, of one dtype, rows of a multiple of 16."""
    dtype = tensors[0].dtype
    return dtype in _SUFFIX and all(
        t.dtype is dtype and t.is_contiguous() and t.shape[-1] % LANES == 0 for t in tensors
    )
