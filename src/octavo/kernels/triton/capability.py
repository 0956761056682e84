"""What a device can do, asked once."""

from __future__ import annotations

import functools

import torch

HOPPER = 9
"""Its major version: the copy engine and the matrix instructions that some kernels are written for."""

MULTIPROCESSORS = 132
"""An H100's, for which programs are counted out."""


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU; (0, 0) for anything else."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
