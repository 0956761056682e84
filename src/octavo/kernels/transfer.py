"""Small arrays on their way to the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A tensor on ``device`` with these values; the host does not wait for what the device is doing.

    A copy from ordinary memory would wait; one from pinned memory takes its turn in the stream.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.to(device) if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
