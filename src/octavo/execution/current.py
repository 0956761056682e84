"""Which GPU kernels, streams and events belong to. CUDA keeps that for each thread."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def current(device: torch.device) -> AbstractContextManager[object]:
    """While this is entered, ``device`` is the one that work is launched on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
