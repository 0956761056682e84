"""Adapters of a step that decodes: shrinking and expanding of all tokens, adapters and parts are one task.

A prompt's tokens go through plain products, adapter by adapter: they are many, and have one adapter.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import cached_property

import torch
from torch import Tensor

from octavo.kernels.cpu.native import LANES, SUFFIX, fits_rows
from octavo.kernels.cpu.tasks import Tasks
from octavo.kernels.lora import LoraPlan, LoraStack
from octavo.kernels.reference.lora import GroupedLora

MANY_TOKENS = 64
"""From here on products by adapter are faster: they read A and B once for many tokens."""


class CpuLora(LoraPlan):
    """Each token's adapter, int32 ``[T]``."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers.to(torch.int32).contiguous()

    def follow(self, other: CpuLora) -> None:
        """Become ``other``, of as many tokens, in the same memory."""
        self.numbers.copy_(other.numbers)

    @cached_property
    def grouped(self) -> GroupedLora:
        """The same sorted by adapter."""
        return GroupedLora(self.numbers)


class _LoraAddCall(ctypes.Structure):
    """See ``native/lora.c``."""

    _fields_ = (
        *((name, c_void_p) for name in ("numbers", "x", "a", "b", "scales", "ranks", "ends", "y", "shrunk")),
        *((name, c_int64) for name in ("rows", "inputs", "outputs", "rank", "parts")),
    )


class LoraTasks:
    """The tasks of the compiled library that add adapters."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._addresses = {dtype: tasks.address(f"octavo_lora_add_{suffix}") for dtype, suffix in SUFFIX.items()}

    def add(self, y: Tensor, x: Tensor, stack: LoraStack, plan: CpuLora) -> None:
        """``Ops.lora_add`` in place, of tensors that `fits`."""
        rows, inputs = x.shape
        padded = -(-stack.max_rank // LANES) * LANES
        shrunk = x.new_empty(self._tasks.threads, len(stack.parts) * padded, dtype=torch.float32)
        tensors = (plan.numbers, x, stack.a, stack.b, stack.scales, stack.ranks, stack.ends, y, shrunk)
        call = _LoraAddCall(
            *(tensor.data_ptr() for tensor in tensors), rows, inputs, y.shape[1], stack.max_rank, len(stack.parts)
        )
        self._tasks.run(self._addresses[x.dtype], call, *tensors)


def fits(y: Tensor, x: Tensor, stack: LoraStack) -> bool:
    """Whether `LoraTasks.add` can take these, and is faster than products by adapter."""
    return len(x) < MANY_TOKENS and fits_rows(x, stack.a) and y.dtype is x.dtype and y.is_contiguous()
