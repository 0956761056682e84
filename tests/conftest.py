"""Set up before any test module is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Triton decides when it is imported, which other libraries do, too, whether kernels are compiled or interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")
