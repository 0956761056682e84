"""What every layer is built with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from octavo.kernels.lora import LoraSizes
from octavo.kernels.ops import Ops
from octavo.parallel import Shard
from octavo.quantization.schemes import Scheme


@dataclass(frozen=True, slots=True)
class Packing:
    """What becomes of matrices when they are loaded.

    Attributes:
        scheme: quantize them by this; None: leave them as they are.
        keeps: whether a matrix that the checkpoint has packed, as this kind, stays packed; None: all are expanded.
        must_keep: if a shard's part of such a matrix cannot be cut out of it, that is an error; False: it is expanded.
    """

    scheme: Scheme | None = None
    keeps: Callable[[str], bool] | None = None
    must_keep: bool = False

    @property
    def active(self) -> bool:
        """Whether matrices may end up in another form than the model's dtype."""
        return self.scheme is not None or self.keeps is not None


@dataclass(frozen=True, slots=True)
class Build:
    """How to build a model: on which operations, which shard of it, in which dtype, on which device, packed how, with
    room for how many adapters (None: without).
    """

    ops: Ops
    shard: Shard = field(default_factory=Shard)
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    packing: Packing = field(default_factory=Packing)
    lora: LoraSizes | None = None

    def fitted(self, hidden_size: int) -> Build:
        """For a model of that hidden size."""
        scheme = self.packing.scheme
        return self if scheme is None else self._quantizing_by(scheme.fitted(hidden_size))

    @property
    def for_head(self) -> Build:
        """For the matrix that makes logits, which may be quantized more finely than others."""
        scheme = self.packing.scheme
        return self if scheme is None else self._quantizing_by(scheme.for_head)

    @property
    def for_sensitive(self) -> Build:
        """For a matrix whose error costs a small model most (see `Scheme.for_sensitive`)."""
        scheme = self.packing.scheme
        return self if scheme is None else self._quantizing_by(scheme.for_sensitive)

    def _quantizing_by(self, scheme: Scheme) -> Build:
        return replace(self, packing=replace(self.packing, scheme=scheme))
