"""The seam to the hardware: `ops` is the protocol, `reference` the implementation that runs anywhere."""

from __future__ import annotations

import torch

from octavo.kernels.ops import Ops


def for_device(device: torch.device | str) -> Ops:
    """The operations of ``device``: its own backend's, or the reference, which is correct on any device."""
    from octavo.kernels.reference.ops import ReferenceOps

    del device  # the reference runs anywhere; a backend of a device's own is chosen here
    return ReferenceOps()
