"""The seam to the hardware: `ops` is the protocol, `reference` the implementation that runs anywhere."""

from __future__ import annotations

import importlib.util
import warnings

import torch

from octavo.config import NOT_ON_A_CPU
from octavo.errors import UsageError
from octavo.kernels.ops import Ops

OLDEST_GPU = (8, 0)
"""The first compute capability that the Triton kernels are written for: bfloat16, asynchronous copies."""


def for_device(device: torch.device | str, *, deterministic: bool = False) -> Ops:
    """The operations of ``device``: its own backend's, or the reference, which is correct on any device.

    Args:
        device: to compute on.
        deterministic: a row's results must not depend on the rest of the batch, not in a bit.

    Raises:
        UsageError: ``deterministic`` on a device that cannot do it.
    """
    device = torch.device(device)
    if deterministic:
        return _deterministic(device)
    if device.type == "cuda":
        return _for_gpu(device)
    if device.type == "cpu":
        from octavo.kernels.cpu.ops import CpuOps

        return CpuOps()
    return _reference()


def _for_gpu(device: torch.device) -> Ops:
    if reason := _without_triton(device):
        warnings.warn(f"{reason}: using plain torch, which is several times slower", stacklevel=3)
        return _reference()
    from octavo.kernels.triton.ops import TritonOps

    return TritonOps()


def _deterministic(device: torch.device) -> Ops:
    if device.type != "cuda":
        raise UsageError(NOT_ON_A_CPU)
    if reason := _without_triton(device):
        raise UsageError(f"deterministic=True needs the Triton kernels, but {reason}")
    from octavo.kernels.triton.deterministic import DeterministicOps

    return DeterministicOps()


def _without_triton(device: torch.device) -> str | None:
    """Why the Triton kernels cannot be used, if they cannot."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'octavo[gpu]')"
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return None


def _reference() -> Ops:
    from octavo.kernels.reference.ops import ReferenceOps

    return ReferenceOps()
