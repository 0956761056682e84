"""Weights in fewer bits than the model computes with: what the stored numbers mean, not how they are multiplied.

These are the forms that checkpoints and `octavo.quantization` give; ``Ops.pack_linear`` may turn one into a form of the
backend's own, which its ``linear`` multiplies with faster. N is the number of outputs, K of inputs; the weight is
``[N, K]``, as ``Ops.linear`` has it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self, TypeAlias

import torch
from torch import Tensor

FP8_MAX = 448.0
"""The largest number of float8_e4m3fn."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PackedWeight(ABC):
    """A quantized ``[N, K]`` matrix.

    Attributes:
        kind: a name for how: "int8", "int4", "fp8", "stacked", or that of a GGML block type: "Q4_K".
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """N, K: of the matrix that it stands for."""

    @property
    def is_quantized(self) -> bool:
        """Whether it has fewer bits than the numbers that it stands for; a backend may put plain ones in its order."""
        return True

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in values if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Int8Weight(PackedWeight):
    """``w[n, k] = values[n, k] * scales[n, k // group]``, symmetric.

    Attributes:
        values: int8 ``[N, K]``.
        scales: float32 or float16 ``[N, K / group]``; one column (group = K) is a scale for each output channel.
        quantizes_input: W8A8: each row of x is also rounded to int8, by its own scale ``max |x| / 127``, and the
            product is exact in int32. Only with one scale a channel (arXiv:2206.01861).
    """

    kind: ClassVar[str] = "int8"

    values: Tensor
    scales: Tensor
    quantizes_input: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.values.shape[1] // self.scales.shape[1]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Int4Weight(PackedWeight):
    """``w[n, k] = (q[n, k] - zeros[n, g]) * scales[n, g]`` with ``g = k // group``; AWQ, GPTQ (arXiv:2306.00978,
    2210.17323) and our own.

    Attributes:
        values: uint8 ``[N, K / 2]``: q is 0 to 15; column 2 j is in the low half of byte j, column 2 j + 1 in the high.
        scales: float32, float16 or bfloat16 ``[N, K / group]``.
        zeros: of the scales' dtype and shape; need not be whole. None: 8 everywhere.
        order: int32 ``[K]`` or None: act-order. Column k of this matrix multiplies ``x[:, order[k]]``.
    """

    kind: ClassVar[str] = "int4"

    values: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], 2 * self.values.shape[1]

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.shape[1] // self.scales.shape[1]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Fp8Weight(PackedWeight):
    """``w[n, k] = values[n, k] * scales[n // block[0], k // block[1]]`` (arXiv:2209.05433, 2412.19437).

    Attributes:
        values: float8_e4m3fn ``[N, K]``.
        scales: float32 ``[ceil(N / block[0]), ceil(K / block[1])]``: ``[1, 1]`` is one for the tensor, ``[N, 1]`` one
            for each channel, ``[ceil(N / 128), ceil(K / 128)]`` DeepSeek's blocks.
        block: rows and columns that share a scale.
        quantizes_input: x is rounded to e4m3, too: each row by its own scale ``max |x| / 448``, or each 128 columns of
            a row where ``block`` is (128, 128); by ``input_scale`` where there is one.
        input_scale: float32 scalar tensor: a scale for all rows that the checkpoint's makers measured, or None.
    """

    kind: ClassVar[str] = "fp8"

    values: Tensor
    scales: Tensor
    block: tuple[int, int]
    quantizes_input: bool = False
    input_scale: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BlockWeight(PackedWeight):
    """GGML's blocks as a GGUF file has them: see `octavo.ggml`.

    Attributes:
        kind: name of the block type: "Q4_K".
        blocks: uint8 ``[N, K / block_size * type_size]``; may be a read-only view of the file's pages.
        block_size: weights in a block.
        type_size: bytes in a block.
    """

    kind: str  # type: ignore[misc]  # the name of a class of forms, not of one
    blocks: Tensor
    block_size: int
    type_size: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.blocks.shape[0], self.blocks.shape[1] // self.type_size * self.block_size


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StackedWeight(PackedWeight):
    """Several matrices of the same K, one above the other: a fused layer whose parts are packed differently.

    ``tensors`` is empty: the parts have them.
    """

    kind: ClassVar[str] = "stacked"

    parts: tuple[Tensor | PackedWeight, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def is_quantized(self) -> bool:
        return any(isinstance(part, PackedWeight) and part.is_quantized for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def to(self, device: torch.device | str) -> Self:
        return replace(self, parts=tuple(part.to(device) for part in self.parts))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PerExpert(PackedWeight):
    """Matrices of the same shape, one above the other, each of them in a form of its own.

    ``tensors`` is empty: the parts have them.
    """

    kind: ClassVar[str] = "experts"

    parts: tuple[Tensor | PackedWeight, ...]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.parts[0].shape
        return len(self.parts) * rows, columns

    @property
    def is_quantized(self) -> bool:
        return any(isinstance(part, PackedWeight) and part.is_quantized for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def to(self, device: torch.device | str) -> Self:
        return replace(self, parts=tuple(part.to(device) for part in self.parts))


Operand: TypeAlias = Tensor | PackedWeight
"""What ``Ops.linear`` multiplies with. A backend's own forms are subclasses of `PackedWeight`, too."""


def pack_nibbles(values: Tensor) -> Tensor:
    """``values`` uint8 ``[N, K]`` of 0 to 15 -> uint8 ``[N, K / 2]``, the even column in the low half."""
    return values[:, ::2] | values[:, 1::2] << 4


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
