"""GPTQ (arXiv:2210.17323) as AutoGPTQ and GPTQModel write it, with 4 or 8 bits.

    qweight  int32 [K * bits / 32, N]    consecutive inputs in a word, the first in the lowest bits
    qzeros   int32 [G, N * bits / 32]    the same of the zeros, by outputs
    scales   half  [G, N]
    g_idx    int32 [K]                   each input's group: not in their order with act-order ("desc_act")

Format 1 stores each zero less 1. Its writers subtract one from all zeros of a word at once, as one number, so that a
zero of 0 borrows from its neighbour; adding them up the same way gives back what was there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import ModelError
from octavo.weights.quantized.parts import FLOATS, Parts, Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.kernels.packed import Operand

BITS = (4, 8)
FORMATS = ("gptq", "gptq_v2")
ONES = {4: 0x11111111, 8: 0x01010101}
"""A word of zeros that are all 1."""


class GptqJson(msgspec.Struct):
    bits: int = 4
    checkpoint_format: str = "gptq"
    format: str | None = None
    is_marlin_format: bool = False


class Gptq(Scheme):
    kind = "GPTQ"
    leaves = frozenset({"qweight", "qzeros", "scales", "g_idx"})

    def __init__(self, zeros_less_one: bool) -> None:
        self._zeros_less_one = zeros_less_one

    @classmethod
    def read(cls, config: dict[str, Any]) -> Gptq:
        """``ModelError`` for another number of bits or another layout."""
        settings = msgspec.convert(config, GptqJson)
        layout = "marlin" if settings.is_marlin_format else settings.format or settings.checkpoint_format
        if settings.bits not in BITS or layout not in FORMATS:
            raise ModelError(
                f"GPTQ with bits {settings.bits}, checkpoint_format {layout!r:.40} is not supported; accepted: bits 4"
                f" or 8, checkpoint_format {' or '.join(map(repr, FORMATS))}"
            )
        return cls(zeros_less_one=layout == "gptq")

    def is_quantized(self, parts: Parts) -> bool:
        return "qweight" in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        words, outputs = parts.shape("qweight", 2)
        return outputs, words * 32 // self._bits(parts)

    def packed_kind(self, parts: Parts) -> str | None:
        from octavo.quantization.stored_integers import packed_kind

        inputs, groups, bits = self.shape(parts)[1], parts.shape("scales", 2)[0], self._bits(parts)
        zeros = None if bits == 4 else self._zeros(parts, groups).short() - 128
        return packed_kind(bits, inputs, groups, zeros, _group_of(parts, inputs, groups))

    def unpack(self, parts: Parts) -> Operand:
        from octavo.quantization.stored_integers import as_bytes, centred, int4_weight, int8_weight

        outputs, inputs = self.shape(parts)
        groups = parts.shape("scales", 2)[0]
        scales = parts.read("scales", FLOATS, (groups, outputs)).T
        # The bytes of a column's words, one after the other, are that output's inputs in their order.
        values = as_bytes(parts.read("qweight", ("I32",))).permute(1, 0, 2).flatten(1)
        zeros, group_of = self._zeros(parts, groups), _group_of(parts, inputs, groups)
        if self._bits(parts) == 4:
            return int4_weight(values, scales, zeros, group_of)
        return int8_weight(centred(values), scales, zeros.short() - 128, group_of)

    def _bits(self, parts: Parts) -> int:
        """Bits of this module's numbers: settings of single modules may differ from the configuration's."""
        outputs, words = parts.shape("scales", 2)[1], parts.shape("qzeros", 2)[1]
        bits = words * 32 // outputs if outputs else 0
        if bits not in BITS or words * 32 != bits * outputs:
            raise parts.fail(f"its {words} words of zeros for {outputs} outputs are not of 4 or 8 bits each")
        return bits

    def _zeros(self, parts: Parts, groups: int) -> Tensor:
        """uint8 ``[N, G]``."""
        import torch

        from octavo.kernels.packed import unpack_nibbles
        from octavo.quantization.stored_integers import as_bytes

        bits = self._bits(parts)
        words = parts.read("qzeros", ("I32",), (groups, parts.shape("qzeros")[1]))
        if self._zeros_less_one:
            words = (words.long() + ONES[bits]).unsqueeze(-1).view(torch.int32)[..., 0]  # modulo 2**32
        data = as_bytes(words).flatten(1)
        return (unpack_nibbles(data) if bits == 4 else data).T


def _group_of(parts: Parts, inputs: int, groups: int) -> Tensor | None:
    from octavo.quantization.stored_integers import checked_groups

    if not groups:
        raise parts.fail("it has no groups")
    if "g_idx" not in parts:
        return None
    return checked_groups(parts.read("g_idx", ("I32",), (inputs,)), groups, parts.module)
