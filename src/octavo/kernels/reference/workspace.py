"""Memory that is used again in each layer and each step."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


class Workspace:
    """Named scratch buffers that grow and are kept: fresh megabytes from the system cost more than filling
    them.

    What a name holds is lost when it is asked for again, so one workspace serves one thread.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised memory of ``shape``, on the device of ``like`` and in its dtype unless another is
        given.
        """
        dtype = dtype or like.dtype
        key, size = (name, dtype, like.device), prod(shape)
        if key not in self._buffers or self._buffers[key].numel() < size:
            self._buffers.pop(key, None)  # before its successor is made: not both at once
            with torch.inference_mode(False):  # a tensor that can be written in either mode
                self._buffers[key] = torch.empty(size + size // 4, dtype=dtype, device=like.device)
        return self._buffers[key][:size].view(shape)
