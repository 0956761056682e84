"""What every layer is built with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from octavo.kernels.ops import Ops
from octavo.parallel import Shard


@dataclass(frozen=True, slots=True)
class Build:
    """How to build a model: on which operations, which shard of it, in which dtype, on which device."""

    ops: Ops
    shard: Shard = field(default_factory=Shard)
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
