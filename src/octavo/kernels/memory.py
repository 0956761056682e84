"""Memory for large matrices, plain and packed, while a model is loaded."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

SMALLEST = 1 << 20
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
