"""The C kernels (`native/*.c`) as functions of tensors. What they cannot do, `octavo.kernels.reference` does."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from octavo.kernels.cpu.arena import Scratch
from octavo.kernels.cpu.tasks import Tasks
from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.reference.sampling import MAX_VOCAB_SIZE

LANES = 16
MAX_HEAD_DIM, MAX_SHARE, MAX_PARTS = 256, 32, 64
SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}


class AttentionWork(ctypes.Structure):
    """What changes for attention from step to step; see ``native/attention.h``."""

    _fields_ = (
        *((name, c_void_p) for name in ("positions", "slots", "tables")),
        ("table_width", c_int64),
        ("jobs", c_void_p),
        ("num_groups", c_int32),
        ("num_parts", c_int32),
        ("stretches", c_void_p),
        ("num_stretches", c_int32),
        ("window", c_int32),
    )


class _EmbeddingCall(ctypes.Structure):
    _fields_ = (*((name, c_void_p) for name in ("ids", "weight", "out")), ("rows", c_int64), ("size", c_int64))


class _AddRmsNormCall(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "residual", "out")),
        *(("rows", c_int64), ("size", c_int64), ("eps", c_float), ("starts", c_int32)),
    )


class _RmsNormCall(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "out")),
        *(("rows", c_int64), ("size", c_int64), ("eps", c_float)),
    )


class _AddLayerNormCall(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "bias", "residual", "out")),
        *(("rows", c_int64), ("size", c_int64), ("eps", c_float), ("starts", c_int32)),
    )


class _GatedCall(ctypes.Structure):
    _fields_ = (("gate_up", c_void_p), ("out", c_void_p), ("rows", c_int64), ("size", c_int64))


class _GeluCall(ctypes.Structure):
    _fields_ = (("x", c_void_p), ("size", c_int64))


class _RotateAndStoreCall(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("qkv", "work", "cos_sin", "q_norm", "k_norm", "keys", "values")),
        *((name, c_int64) for name in ("rows", "num_heads", "num_kv_heads", "head_dim", "block_size")),
        ("eps", c_float),
    )


class _AttentionCall(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values", "queries", "work", "partials", "out")),
        ("query_stride", c_int64),
        *((name, c_int32) for name in ("num_kv_heads", "share", "head_dim", "block_size")),
        *(("scale", c_float), ("soft_cap", c_float)),
    )


class _SampleCall(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("logits", "params", "tokens", "bad", "desks")),
        *((name, c_int64) for name in ("rows", "size", "stride")),
    )


_NAMES = (
    *("embedding", "rms_norm", "add_rms_norm", "add_layer_norm", "silu_mul", "gelu_mul", "gelu_tanh_mul", "gelu"),
    *("gelu_tanh", "rotate_and_store", "attention", "prefill_attention", "sample"),
)
_SAMPLING_DESK = 20
"""Bytes of scratch for each thread and token of the vocabulary; see ``native/sampling.h``."""


class Native:
    """The tasks of the compiled library. Tensors are contiguous, on the CPU, in float32 or bfloat16."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks, self._desks = tasks, Scratch()
        self._addresses = {
            (name, dtype): tasks.address(f"octavo_{name}_{suffix}")
            for name in _NAMES
            for dtype, suffix in SUFFIX.items()
        }

    def _run(self, name: str, dtype: torch.dtype, call: ctypes.Structure, *tensors: Tensor | None) -> None:
        self._tasks.run(self._addresses[name, dtype], call, *tensors)

    def embedding(self, ids: Tensor, weight: Tensor, out: Tensor) -> None:
        """``out [T, H]``: the rows of ``weight [V, H]`` that ``ids [T]`` int64 name; they are not checked."""
        call = _EmbeddingCall(ids.data_ptr(), weight.data_ptr(), out.data_ptr(), *out.shape)
        self._run("embedding", out.dtype, call, ids, weight, out)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor, *, starts: bool = False
    ) -> None:
        """``out = rms_norm(x + residual) * weight``, ``residual += x``: ``[T, H]``, H a multiple of 16.

        ``starts``: the residual, which is float32, holds nothing yet and counts as 0.
        """
        call = _AddRmsNormCall(
            *(tensor.data_ptr() for tensor in (x, weight, residual, out)), *x.shape, eps, int(starts)
        )
        self._run("add_rms_norm", x.dtype, call, x, weight, residual, out)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """``out = rms_norm(x) * weight``: ``[..., H]``, H a multiple of 16."""
        call = _RmsNormCall(
            *(tensor.data_ptr() for tensor in (x, weight, out)), x.numel() // len(weight), len(weight), eps
        )
        self._run("rms_norm", x.dtype, call, x, weight, out)

    def add_layer_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor, *, starts: bool
    ) -> None:
        """``out = layer_norm(x + residual) * weight + bias``, ``residual += x``, as ``add_rms_norm``."""
        tensors = x, weight, bias, residual, out
        call = _AddLayerNormCall(*(tensor.data_ptr() for tensor in tensors), *x.shape, eps, int(starts))
        self._run("add_layer_norm", x.dtype, call, *tensors)

    def gated(self, activation: str, gate_up: Tensor, out: Tensor) -> None:
        """``out [T, I] = f(gate) * up`` of ``gate_up [T, 2I]``, I a multiple of 16; "silu", "gelu" or "gelu_tanh"."""
        call = _GatedCall(gate_up.data_ptr(), out.data_ptr(), *out.shape)
        self._run(f"{activation}_mul", out.dtype, call, gate_up, out)

    def gelu(self, x: Tensor, *, approximate: bool) -> None:
        """``x = gelu(x)``, of a multiple of 16 elements; ``approximate``: by tanh."""
        self._run("gelu_tanh" if approximate else "gelu", x.dtype, _GeluCall(x.data_ptr(), x.numel()), x)

    def rotate_and_store(
        self,
        qkv: Tensor,
        work: AttentionWork,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        kv: KVLayer,
    ) -> None:
        """Turn queries and keys of ``qkv`` in place, copy keys and values to the cache; D is a multiple of 32."""
        _, hk, block_size, d = kv.keys.shape
        rows, width = qkv.shape
        call = _RotateAndStoreCall(
            *(qkv.data_ptr(), ctypes.addressof(work), cos_sin.data_ptr()),
            *(None if norm is None else norm.data_ptr() for norm in (q_norm, k_norm)),
            *(kv.keys.data_ptr(), kv.values.data_ptr(), rows, width // d - 2 * hk, hk, d, block_size, eps),
        )
        self._run("rotate_and_store", qkv.dtype, call, qkv, cos_sin, q_norm, k_norm, *kv.tensors)

    def attention(
        self,
        q: Tensor,
        kv: KVLayer,
        work: AttentionWork,
        *,
        scale: float,
        soft_cap: float | None,
        partials: Tensor,
        out: Tensor,
    ) -> None:
        """Attention of the query tokens ``q [T, Hq, D]`` that have jobs, each to its row of ``out [T, Hq * D]``.

        Args:
            work: whose jobs are int32 ``[N, num_parts, 5]``: token, row of the tables, key/value head, and the
                positions from and to which (excluded) the part goes; a part may be empty, not all of a job's.
            partials: float32, at least ``N * num_parts * share * (D + 2)``, if ``num_parts`` is not 1: scratch.
        """
        call = _attention_call(q, kv, work, scale, soft_cap, partials, out)
        self._run("attention", q.dtype, call, q, partials, out, *kv.tensors)

    def prefill_attention(
        self, q: Tensor, kv: KVLayer, work: AttentionWork, *, scale: float, soft_cap: float | None, out: Tensor
    ) -> None:
        """Attention of the query tokens ``q [T, Hq, D]`` of the work's stretches: int32 ``[N, 5]``, first token, row of
        the tables, key/value head, the first query's position, and how many queries.
        """
        call = _attention_call(q, kv, work, scale, soft_cap, None, out)
        self._run("prefill_attention", q.dtype, call, q, out, *kv.tensors)

    def sample(self, logits: Tensor, params: Tensor, tokens: Tensor, bad: Tensor) -> None:
        """Choose ``tokens [S]`` int64 for ``logits [S, V]``; see ``Ops.sample`` and `octavo.kernels.sampling`.

        ``bad [S]`` bool: rows whose largest logit is not finite, or with a NaN; their token is 0.
        """
        rows, size = logits.shape
        desks = self._desks.take(self._tasks.threads * -(-size // LANES) * LANES * _SAMPLING_DESK)
        call = _SampleCall(
            *(tensor.data_ptr() for tensor in (logits, params, tokens, bad, desks)), rows, size, logits.stride(0)
        )
        self._run("sample", logits.dtype, call, logits, params, tokens, bad, desks)


def _attention_call(
    q: Tensor,
    kv: KVLayer,
    work: AttentionWork,
    scale: float,
    soft_cap: float | None,
    partials: Tensor | None,
    out: Tensor,
) -> _AttentionCall:
    _, hk, block_size, d = kv.keys.shape
    return _AttentionCall(
        *(kv.keys.data_ptr(), kv.values.data_ptr(), q.data_ptr(), ctypes.addressof(work)),
        *(None if partials is None else partials.data_ptr(), out.data_ptr()),
        *(q.stride(0), hk, q.shape[1] // hk, d, block_size, scale, soft_cap or 0),
    )


def fits_attention(kv: KVLayer, num_heads: int, dtype: torch.dtype) -> bool:
    """Whether the kernels of attention can take this cache, and queries of so many heads in ``dtype``."""
    _, hk, _, d = kv.keys.shape
    same = dtype is kv.keys.dtype and dtype in SUFFIX
    dense = kv.keys.is_contiguous() and kv.values.is_contiguous()
    return same and dense and d % LANES == 0 and d <= MAX_HEAD_DIM and num_heads // hk <= MAX_SHARE


def fits_rows(*tensors: Tensor) -> bool:
    """Whether the row-wise kernels can take these: all contiguous, of one dtype, rows of a multiple of 16."""
    dtype = tensors[0].dtype
    return dtype in SUFFIX and all(t.dtype is dtype and t.is_contiguous() and t.shape[-1] % LANES == 0 for t in tensors)


def fits_sampling(logits: Tensor, params: Tensor) -> bool:
    """Whether ``Native.sample`` can take these."""
    rows = logits.dtype in SUFFIX and logits.dim() == 2 and logits.stride(1) == 1
    return rows and 0 < logits.shape[1] <= MAX_VOCAB_SIZE and params.is_contiguous()
