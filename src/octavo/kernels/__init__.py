"""The seam to the hardware: `ops` is the protocol, `reference` the implementation that runs anywhere."""

from __future__ import annotations

import torch

from octavo.kernels.ops import Ops


def for_device(device: torch.device | str) -> Ops:
    """The operations of ``device``: its own backend's, or the reference, which is correct on any device."""
    from octavo.kernels.cpu import ops as cpu
    from octavo.kernels.reference.ops import ReferenceOps

    if torch.device(device).type == "cpu" and cpu.is_supported():
        return cpu.CpuOps()
    return ReferenceOps()
