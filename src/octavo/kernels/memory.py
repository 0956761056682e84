"""Memory for large matrices, plain and packed, while a model is loaded."""

from __future__ import annotations

import ctypes
import math
import mmap
from functools import cache

import torch
from torch import Tensor

SMALLEST = 1 << 16
"""Bytes: less is the allocator's affair."""


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor whose memory goes back to the system as soon as it is freed.

    An allocator keeps what was freed, and puts what stays (a packed matrix) into the holes, so that what comes next (a
    plain one, or part of it) does not fit there: loading a model in int8 took twice its size that way. A GPU's
    allocator is another one.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < SMALLEST:
        return torch.empty(shape, dtype=dtype, device=device)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return torch.frombuffer(mmap.mmap(-1, size, **private), dtype=dtype).view(shape)


def trim() -> None:
    """Give back what the C library keeps of freed memory, if it is glibc: between what stays, that may be a lot."""
    if (malloc_trim := _malloc_trim()) is not None:
        malloc_trim(0)


@cache
def _malloc_trim() -> ctypes._FuncPointer | None:
    try:
        function = ctypes.CDLL(None)["malloc_trim"]
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return None
    function.argtypes, function.restype = (ctypes.c_size_t,), ctypes.c_int
    return function
