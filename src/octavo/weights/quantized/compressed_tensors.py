"""compressed-tensors (https://github.com/vllm-project/compressed-tensors): int4, int8 and FP8 in one configuration.

    pack-quantized    weight_packed int32 [N, K * bits / 32], each number plus half its range, the first in the lowest
                      bits; weight_shape; weight_zero_point, packed along N; weight_g_idx with act-order
    int-quantized     weight int8 [N, K]; weight_zero_point int8
    float-quantized   weight F8_E4M3 [N, K]
    all               weight_scale [N, G], [N, 1], [1], or one for each block

Which of these a module is shows in its tensors. How its input is rounded does not: that is in ``config_groups``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import ModelError
from octavo.weights.quantized.fp8 import Block, fp8_weight, read_block
from octavo.weights.quantized.parts import FLOATS, Parts, Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.kernels.packed import Operand

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense", "mixed-precision")


class ArgsJson(msgspec.Struct):
    """How weights or inputs are rounded."""

    num_bits: int = 8
    type: str = "int"
    symmetric: bool = True
    strategy: str | None = None
    dynamic: bool | str = False
    block_structure: list[int] | str | None = None


class GroupJson(msgspec.Struct):
    """Some modules, and their settings."""

    weights: ArgsJson | None = None
    input_activations: ArgsJson | None = None
    format: str | None = None


class CompressedJson(msgspec.Struct):
    format: str = "dense"
    config_groups: dict[str, GroupJson] = {}
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None


class CompressedTensors(Scheme):
    kind = "CT"
    leaves = frozenset(
        {"weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"}
        | {"input_scale", "input_zero_point", "output_scale", "output_zero_point"}
    )

    def __init__(self, groups: list[GroupJson]) -> None:
        self._groups = groups

    @classmethod
    def read(cls, config: dict[str, Any]) -> CompressedTensors:
        """``ModelError`` for what is sparse, transformed, or of fewer than 4 bits."""
        settings = msgspec.convert(config, CompressedJson)
        groups = list(settings.config_groups.values())
        for layout in (settings.format, *(group.format or settings.format for group in groups)):
            if layout not in FORMATS:
                raise ModelError(f"format {layout!r:.40} is not supported; accepted: {', '.join(FORMATS)}")
        _refuse(settings)
        for group in groups:
            _check(group.weights)
        return cls(groups)

    def is_quantized(self, parts: Parts) -> bool:
        return "weight_packed" in parts or ("weight" in parts and "weight_scale" in parts)

    def shape(self, parts: Parts) -> tuple[int, int]:
        rows, columns = parts.shape("weight_packed" if "weight_packed" in parts else "weight", 2)
        return (rows, columns * 32 // self._bits(parts)) if "weight_packed" in parts else (rows, columns)

    def packed_kind(self, parts: Parts) -> str | None:
        from octavo.quantization.stored_integers import packed_kind

        (rows, columns), packed = self.shape(parts), "weight_packed" in parts
        if not packed and parts.tensors["weight"].kind != "I8":
            return "fp8"
        scales, bits = _scales(parts, rows), self._bits(parts) if packed else 8
        if bits == 4:
            zeros = None
        elif packed:
            zeros = _uncentred(self._packed_zeros(parts, scales, bits))
        else:
            zeros = _zeros(parts, scales) if "weight_zero_point" in parts else None
        group_of = self._group_of(parts, columns, scales.shape[1]) if packed else None
        return packed_kind(bits, columns, scales.shape[1], zeros, group_of)

    def unpack(self, parts: Parts) -> Operand:
        if "weight_packed" in parts:
            return self._packed(parts)
        if parts.tensors["weight"].kind == "I8":
            return self._int8(parts)
        inputs = self._inputs("float")
        static = inputs is not None and not inputs.dynamic
        return fp8_weight(parts, self._block(), inputs is not None, static)

    def _packed(self, parts: Parts) -> Operand:
        from octavo.quantization.stored_integers import as_bytes, centred, int4_weight, int8_weight

        (rows, columns), bits = self.shape(parts), self._bits(parts)
        if (said := parts.read("weight_shape", ("I64", "I32"), (2,)).tolist()) != [rows, columns]:
            raise parts.fail(f"weight_shape is {said}; its {bits}-bit numbers are {[rows, columns]}")
        scales = _scales(parts, rows)
        group_of = self._group_of(parts, columns, scales.shape[1])
        data = as_bytes(parts.read("weight_packed", ("I32",))).flatten(1)
        zeros = self._packed_zeros(parts, scales, bits)
        if bits == 4:
            return int4_weight(data, scales, zeros, group_of)
        return int8_weight(centred(data), scales, _uncentred(zeros), group_of)

    def _group_of(self, parts: Parts, columns: int, groups: int) -> Tensor | None:
        """Each column's group, or None: in their order."""
        from octavo.quantization.stored_integers import checked_groups

        if "weight_g_idx" not in parts:
            return None
        group_of = parts.read("weight_g_idx", ("I32", "I64"), (columns,))
        return None if (group_of < 0).any() else checked_groups(group_of, groups, parts.module)

    def _packed_zeros(self, parts: Parts, scales: Tensor, bits: int) -> Tensor | None:
        """uint8 ``[N, G]``. Other than the numbers, zeros are packed along the rows."""
        from octavo.kernels.packed import unpack_nibbles
        from octavo.quantization.stored_integers import as_bytes

        if "weight_zero_point" not in parts:
            return None
        rows, groups = scales.shape
        words = parts.read("weight_zero_point", ("I32",), (-(-rows * bits // 32), groups))
        data = as_bytes(words.T).flatten(1)
        return (unpack_nibbles(data) if bits == 4 else data)[:, :rows].T

    def _int8(self, parts: Parts) -> Operand:
        from octavo.quantization.stored_integers import int8_weight

        values = parts.read("weight", ("I8",))
        scales = _scales(parts, values.shape[0])
        zeros = _zeros(parts, scales) if "weight_zero_point" in parts else None
        # Inputs with a fixed scale or a zero are not rounded: the product is then more exact than it was meant to be.
        inputs = self._inputs("int")
        per_token = inputs is not None and inputs.dynamic is True and inputs.symmetric and inputs.num_bits == 8
        return int8_weight(values, scales, zeros, quantizes_input=per_token and scales.shape[1] == 1)

    def _bits(self, parts: Parts) -> int:
        """Of this module's packed numbers: of all settings the one that its scales and zeros agree with."""
        widths = {group.weights.num_bits for group in self._groups if group.weights and group.weights.type == "int"}
        if len(widths) == 1:
            return widths.pop()
        words, said = parts.shape("weight_packed", 2)[1], parts.read("weight_shape", ("I64", "I32"), (2,)).tolist()
        return next((bits for bits in (4, 8) if words * 32 == bits * said[1]), 4)

    def _inputs(self, kind: str) -> ArgsJson | None:
        """How inputs are rounded, if all modules with weights of this kind agree."""
        said = [group.input_activations for group in self._groups if group.weights and group.weights.type == kind]
        return said[0] if said and all(args == said[0] for args in said) else None

    def _block(self) -> Block | None:
        for group in self._groups:
            size = group.weights.block_structure if group.weights else None
            if size is not None:
                return read_block(_numbers(size))
        return None


def _refuse(settings: CompressedJson) -> None:
    sparse = (settings.sparsity_config or {}).get("format", "dense")
    if sparse != "dense":
        raise ModelError(f"sparse weights ({sparse!r:.40}) are not supported; accepted: dense ones")
    if settings.transform_config:
        raise ModelError("transform_config (rotated weights) is not supported; accepted: none")


def _check(args: ArgsJson | None) -> None:
    if args is not None and (args.type, args.num_bits) not in (("int", 4), ("int", 8), ("float", 8)):
        raise ModelError(
            f"weights of type {args.type!r:.40} with {args.num_bits} bits are not supported; accepted: int with 4 or 8,"
            f" float with 8"
        )


def _numbers(size: list[int] | str) -> list[int]:
    """``[128, 128]``, or "128x128" as older files have it."""
    if isinstance(size, list):
        return size
    parts = size.split("x")
    return [int(part) if part.isdecimal() and len(part) < 6 else 0 for part in parts]


def _uncentred(zeros: Tensor | None) -> Tensor | None:
    """uint8 zeros, of which 128 is none, as int16 that count from 0."""
    return None if zeros is None else zeros.short() - 128


def _zeros(parts: Parts, scales: Tensor) -> Tensor:
    """int8 ``[N, G]``; one zero for the tensor is repeated."""
    zeros = parts.read("weight_zero_point", ("I8",))
    if zeros.numel() == 1:
        return zeros.reshape(1, 1).expand(scales.shape)
    if zeros.numel() != scales.numel():
        raise parts.fail(f"weight_zero_point has shape {list(zeros.shape)}, its scales {list(scales.shape)}")
    return zeros.reshape(scales.shape)


def _scales(parts: Parts, rows: int) -> Tensor:
    """``[N, G]``; one scale for the tensor is repeated for its rows."""
    scales = parts.read("weight_scale", FLOATS)
    scales = scales.reshape(-1, 1) if scales.ndim < 2 else scales
    if scales.ndim != 2 or scales.shape[0] not in (1, rows) or not scales.shape[1]:
        raise parts.fail(f"weight_scale has shape {list(scales.shape)} for {rows} rows")
    return scales.expand(rows, -1)
