"""What packing makes of a model's weights, in bytes and in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from octavo.layers.build import Packing
from octavo.layers.weight import Matrix, Weight
from octavo.models.decoder import DecoderModel
from octavo.models.loading import slots_by_name
from octavo.models.tensors import NamedTensor
from octavo.quantization.schemes import Scheme


def loaded_bytes(model: DecoderModel, packing: Packing, tensors: Iterable[NamedTensor] = ()) -> int:
    """About how many bytes a model of this structure needs while it is loaded: its weights as they will be, and the
    largest one that is brought into another form once more. ``tensors``: those of the checkpoint; what stays packed
    takes about as much as there.
    """
    kept = _kept(model, tensors) if packing.keeps is not None else {}
    copies = (m for m in model.modules() if isinstance(m, Matrix) and m not in kept and _is_copied(m))
    plain = sum(_plain_bytes(weight) for weight in (*_weights(model), *(matrix.weight for matrix in copies)))
    if packing.scheme is None:
        return plain + _more_for_kept(kept)
    matrices = [module for module in model.modules() if isinstance(module, Matrix) and module.scheme is not None]
    freed = sum(_plain_bytes(module.weight) for module in matrices if not module.keep_plain)
    sizes = [_packed_bytes(module) for module in matrices]
    return plain - freed + sum(sizes) + max(sizes, default=0)


@dataclass(slots=True)
class _Kept:
    """Bytes of a matrix' rows that stay packed: as they are, and as they would be plain."""

    packed: int = 0
    plain: int = 0


def _is_copied(matrix: Matrix) -> bool:
    """Whether a matrix that stays plain, and whose plain rows are used elsewhere, is there again in the ops' form."""
    if not matrix.keep_plain or matrix.scheme is not None:
        return False
    like = torch.zeros(16, 16, dtype=matrix.weight.dtype)
    return matrix.ops.pack_linear(like) is not like


def _more_for_kept(kept: dict[Matrix, _Kept]) -> int:
    """How many bytes more than plain weights a model needs that keeps what the checkpoint has packed; mostly below 0.

    A matrix whose rows are kept only in part is plain as a whole until its last piece is there.
    """
    lasting = sum(rows.packed - (0 if matrix.keep_plain else rows.plain) for matrix, rows in kept.items())
    whole = {matrix: _plain_bytes(matrix.weight) for matrix in kept}
    passing = (rows.packed if rows.plain == whole[matrix] else whole[matrix] for matrix, rows in kept.items())
    return lasting + max(passing, default=0)


def _kept(model: DecoderModel, tensors: Iterable[NamedTensor]) -> dict[Matrix, _Kept]:
    slots, kept = slots_by_name(model), defaultdict[Matrix, _Kept](_Kept)
    for own in (own for tensor in tensors for own in model.own_tensors(tensor)):
        for slot in slots.get(own.name, ()):
            matrix, place, weight = slot.module, slot.place, slot.weight
            if not isinstance(matrix, Matrix) or weight is not matrix.weight or tuple(own.shape) != place.shape:
                continue
            if matrix.keeps(own):
                count = len(range(weight.full_shape[0])[place.rows]) * weight.full_shape[1]
                kept[matrix].packed += own.nbytes * count // max(prod(place.shape), 1)
                kept[matrix].plain += count * weight.element_size()
    return kept


def num_params(model: nn.Module) -> int:
    """How many numbers the model's weights are, whatever form they have; tied ones count once."""
    return sum(prod(weight.full_shape) for weight in _weights(model))


def describe_packing(model: nn.Module, scheme: Scheme) -> str:
    """Which matrices a scheme leaves as they are, in one line, or ""."""
    plain = {name: m for name, m in model.named_modules() if isinstance(m, Matrix) and m.scheme is None}
    if not plain:
        return ""
    inputs = ", ".join(map(str, sorted({module.weight.full_shape[1] for module in plain.values()})))
    what = f"matrices with {inputs} inputs: {len(plain)} stay as they are ({min(plain)}, …)"
    return f"{scheme.name} does not fit {what}"


def _weights(model: nn.Module) -> Iterable[Weight]:
    return {weight: None for weight in model.parameters() if isinstance(weight, Weight)}


def _plain_bytes(weight: Weight) -> int:
    return prod(weight.full_shape) * weight.element_size()


def _packed_bytes(matrix: Matrix) -> int:
    (n, k), scheme = matrix.weight.full_shape, matrix.scheme
    assert scheme is not None
    bits = 4 if scheme.kind == "int4" else 8
    scales = -(-n // (scheme.rows or n)) * -(-k // (scheme.group_for(k) or k))
    in_groups = scheme.kind == "int8" and scheme.group is not None
    return n * k * bits // 8 + (2 if in_groups else 4) * scales  # two of 2 bytes for int4
