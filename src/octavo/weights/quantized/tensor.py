"""From the tensors of a quantized checkpoint to one `LazyTensor` for each matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from octavo.weights.checkpoint import ALL, LazyTensor
from octavo.weights.quantized.parts import Parts, Scheme
from octavo.weights.safetensors_file import SafetensorsTensor

if TYPE_CHECKING:
    import torch

    from octavo.kernels.packed import Operand, PackedWeight

CACHE_SCALES = ("k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "k_zero_point", "v_zero_point")
"""For keys and values in fewer bits; these numbers depend on nothing but the weights, and are not needed."""


class QuantizedTensor(LazyTensor):
    """A matrix under its own name, whatever tensors stand for it."""

    def __init__(self, parts: Parts, scheme: Scheme) -> None:
        self.name = f"{parts.module}.weight"
        self.shape = scheme.shape(parts)
        self.kind = scheme.kind
        self.nbytes = sum(tensor.nbytes for tensor in parts.tensors.values())
        self._parts, self._scheme = parts, scheme
        self._unpacked: Operand | None = None

    def read(self, dtype: torch.dtype, rows: slice = ALL) -> torch.Tensor:
        """What a part of the rows is read from is kept until ``release``."""
        from octavo.kernels.packed_parts import take_rows
        from octavo.kernels.reference.quantized import dequantize

        if rows == ALL:
            return dequantize(self._operand(), dtype)
        if self._unpacked is None:
            self._unpacked = self._operand()
        (first, last, _), each = rows.indices(self.shape[0]), _rows_together(self._unpacked)
        begin, end = first // each * each, min(-(-last // each) * each, self.shape[0])
        return dequantize(take_rows(self._unpacked, slice(begin, end)), dtype)[first - begin : last - begin]

    @property
    def packed_kind(self) -> str | None:
        return self._scheme.packed_kind(self._parts)

    def packed(self) -> PackedWeight | None:
        from octavo.kernels.packed import PackedWeight

        operand = self._operand()
        return operand if isinstance(operand, PackedWeight) else None

    def release(self, rows: slice = ALL) -> None:
        if rows == ALL:
            self._unpacked = None
            for tensor in self._parts.tensors.values():
                tensor.release()

    def _operand(self) -> Operand:
        return self._scheme.unpack(self._parts)


def _rows_together(weight: Operand) -> int:
    """How many rows can only be taken together, as they share scales."""
    from octavo.kernels.packed import Fp8Weight

    return weight.block[0] if isinstance(weight, Fp8Weight) and weight.block[0] < weight.shape[0] else 1


def quantized_tensors(tensors: Iterable[SafetensorsTensor], scheme: Scheme) -> Iterator[LazyTensor]:
    """Put together what belongs together; matrices that are not quantized stay as they are, other tensors, too."""
    modules: dict[str, dict[str, SafetensorsTensor]] = {}
    for tensor in tensors:
        module, _, leaf = tensor.name.rpartition(".")
        belongs = leaf in scheme.leaves or leaf in CACHE_SCALES
        # A tensor that belongs to no matrix gets an entry of its own, so that all come in the order of the file.
        modules.setdefault(module if belongs else tensor.name, {})[leaf if belongs else ""] = tensor
    for module, group in modules.items():
        yield from _put_together(Parts(module, group), scheme)


def _put_together(parts: Parts, scheme: Scheme) -> Iterator[LazyTensor]:
    plain = parts.first("", "weight")
    if scheme.is_quantized(parts):
        yield QuantizedTensor(parts, scheme)
    elif plain is not None:
        yield parts.tensors[plain]
