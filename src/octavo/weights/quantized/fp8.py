"""FP8 checkpoints (arXiv:2209.05433): e4m3 numbers, and one scale for the tensor, each output, or each block of it.

weight                            F8_E4M3 [N, K]
weight_scale or weight_scale_inv  one number, [N] or [N, 1], or [ceil(N / 128), ceil(K / 128)]; a factor either way
input_scale or activation_scale   one number: how the input is rounded, where that is not found out row by row
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import ModelError
from octavo.weights.quantized.parts import FLOATS, Parts, Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.kernels.packed import Fp8Weight, Operand

ACTIVATIONS = ("dynamic", "static", None)
SCALES, INPUT_SCALES = ("weight_scale_inv", "weight_scale"), ("input_scale", "activation_scale")
Block = tuple[int, int]


class Fp8Json(msgspec.Struct):
    activation_scheme: str | None = "dynamic"
    weight_block_size: list[int] | None = None
    fmt: str = "e4m3"
    expert_dtype: str = "fp8"


class Fp8(Scheme):
    kind = "FP8"
    leaves = frozenset({"weight", *SCALES, *INPUT_SCALES, "input_scale_ub"})

    def __init__(self, block: Block | None, activations: str | None) -> None:
        self._block, self._activations = block, activations

    @classmethod
    def read(cls, config: dict[str, Any]) -> Fp8:
        """``ModelError`` for numbers that are not e4m3, and settings that make no sense."""
        settings = msgspec.convert(config, Fp8Json)
        if settings.activation_scheme not in ACTIVATIONS or settings.fmt != "e4m3" or settings.expert_dtype != "fp8":
            raise ModelError(
                f"FP8 with activation_scheme {settings.activation_scheme!r:.40}, fmt {settings.fmt!r:.40}, expert_dtype"
                f" {settings.expert_dtype!r:.40} is not supported; accepted: 'dynamic' or 'static', 'e4m3', 'fp8'"
            )
        return cls(read_block(settings.weight_block_size), settings.activation_scheme)

    def is_quantized(self, parts: Parts) -> bool:
        return "weight" in parts and parts.tensors["weight"].kind.startswith("F8_")

    def shape(self, parts: Parts) -> tuple[int, int]:
        outputs, inputs = parts.shape("weight", 2)
        return outputs, inputs

    def packed_kind(self, parts: Parts) -> str | None:
        return "fp8"

    def unpack(self, parts: Parts) -> Operand:
        static = self._activations == "static"
        return fp8_weight(parts, self._block, self._activations is not None, static)


def read_block(size: list[int] | None) -> Block | None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ModelError(f"weight_block_size {size!r:.60} is not supported; accepted: two positive numbers")
    return None if size is None else (size[0], size[1])


def fp8_weight(parts: Parts, block: Block | None, quantizes_input: bool, static: bool) -> Fp8Weight:
    """``block``: rows and columns that share a scale, where there are as many scales as such blocks.

    Raises:
        ModelError: a scale is missing, or there are too many or too few.
    """
    from octavo.kernels.packed import Fp8Weight

    values = parts.read("weight", ("F8_E4M3",))
    scales, block = _scales(parts, block)
    return Fp8Weight(
        values=values,
        scales=scales,
        block=block,
        quantizes_input=quantizes_input,
        input_scale=_input_scale(parts) if static else None,
    )


def _scales(parts: Parts, block: Block | None) -> tuple[Tensor, Block]:
    """Scales as `Fp8Weight` has them, and which block each is for."""
    leaf = parts.first(*SCALES) or SCALES[0]
    outputs, inputs = parts.shape("weight", 2)
    scales = parts.read(leaf, (*FLOATS, "F8_E8M0")).float()
    if scales.numel() == 1:
        return scales.reshape(1, 1), (outputs, inputs)
    if tuple(scales.shape) in ((outputs,), (outputs, 1)):
        return scales.reshape(outputs, 1).contiguous(), (1, inputs)
    if block is None or tuple(scales.shape) != (-(-outputs // block[0]), -(-inputs // block[1])):
        of = "" if block is None else f", or one for each block of {block[0]} x {block[1]}"
        raise parts.fail(
            f"{leaf} has shape {list(scales.shape)} for a matrix of {outputs} x {inputs}; accepted: one number, one for"
            f" each row{of}"
        )
    return scales.contiguous(), block


def _input_scale(parts: Parts) -> Tensor:
    scale = parts.read(parts.first(*INPUT_SCALES) or INPUT_SCALES[0], FLOATS).float()
    if scale.numel() != 1:
        raise parts.fail(f"its input has {scale.numel()} scales; accepted: 1")
    return scale.reshape(()).clone()
