"""AWQ (arXiv:2306.00978) as AutoAWQ's "gemm" layout has it.

qweight  int32 [K, N / 8]    eight columns of outputs in a word, in the order 0 2 4 6 1 3 5 7 from the lowest bits
qzeros   int32 [G, N / 8]    the same of the zeros
scales   half  [G, N]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import ModelError
from octavo.weights.quantized.parts import FLOATS, Parts, Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.kernels.packed import Operand

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which four bits of a word belong to column 0, 1, …"""
CHUNK = 1 << 19
"""Numbers that are unpacked at a time."""


class AwqJson(msgspec.Struct):
    bits: int = 4
    version: str = "gemm"
    format: str | None = None
    zero_point: bool = True
    backend: str = "autoawq"


class Awq(Scheme):
    kind = "AWQ"
    leaves = frozenset({"qweight", "qzeros", "scales"})

    @classmethod
    def read(cls, config: dict[str, Any]) -> Awq:
        """``ModelError`` for a layout that is not the usual one."""
        settings = msgspec.convert(config, AwqJson)
        version = (settings.format or settings.version).lower()
        if settings.bits != 4 or version != "gemm" or not settings.zero_point or settings.backend == "llm-awq":
            raise ModelError(
                f"AWQ with bits {settings.bits}, version {version!r:.40}, zero_point {settings.zero_point}, backend"
                f" {settings.backend!r:.40} is not supported; accepted: 4, 'gemm', True, 'autoawq'"
            )
        return cls()

    def is_quantized(self, parts: Parts) -> bool:
        return "qweight" in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        inputs, words = parts.shape("qweight", 2)
        return 8 * words, inputs

    def packed_kind(self, parts: Parts) -> str | None:
        return "int4"

    def unpack(self, parts: Parts) -> Operand:
        from octavo.quantization.stored_integers import int4_weight

        outputs, inputs = self.shape(parts)
        groups = parts.shape("scales", 2)[0]
        if not groups or inputs % groups or inputs % 2:
            raise parts.fail(f"{groups} groups do not divide its {inputs} inputs")
        scales = parts.read("scales", FLOATS, (groups, outputs)).T
        zeros = _columns(parts.read("qzeros", ("I32",), (groups, outputs // 8))).T
        return int4_weight(_transposed(parts.read("qweight", ("I32",))), scales, zeros)


def _columns(words: Tensor) -> Tensor:
    """int32 ``[R, N / 8]`` -> the numbers in their order, uint8 ``[R, N]``."""
    from octavo.kernels.packed import unpack_nibbles
    from octavo.quantization.stored_integers import as_bytes

    nibbles = unpack_nibbles(as_bytes(words).flatten(1)).unflatten(1, (-1, 8))
    return nibbles[..., list(ORDER)].flatten(1)


def _transposed(words: Tensor) -> Tensor:
    """int32 ``[K, N / 8]`` -> uint8 ``[N, K / 2]``, some outputs at a time."""
    import torch

    from octavo.kernels.packed import pack_nibbles

    step = max(1, CHUNK // 8 // max(1, words.shape[0]))
    return torch.cat([pack_nibbles(_columns(part).T.contiguous()) for part in words.split(step, dim=1)])
