"""A model's weights in the form that they have once they are packed: taken out of one model, given to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from octavo.kernels.packed import Operand
from octavo.layers.weight import Matrix, Weight


def packed_weights(model: nn.Module) -> dict[str, Operand]:
    """By their modules' names: what matrices multiply with instead of plain rows, and tables of rows that were expanded
    when they were loaded. Nothing of a model whose matrices are all plain. For a model that is loaded and packed.
    """
    holders = list(_holders(model))
    found: dict[str, Operand] = {n: m.packed for n, m, _ in holders if isinstance(m, Matrix) and m.packed is not None}
    tables = {n: weight.data for n, m, weight in holders if not isinstance(m, Matrix) and weight.is_expanded}
    return {**found, **tables} if found else {}


def give_weights(model: nn.Module, given: Mapping[str, Operand]) -> None:
    """Hand to a new model of the same kind what `packed_weights` found; a checkpoint then fills the rest.

    Raises:
        ValueError: they are of a model of another shape.
    """
    holders = {name: (module, weight) for name, module, weight in _holders(model)}
    for name, packed in given.items():
        if name not in holders or tuple(packed.shape) != holders[name][1].full_shape:
            raise ValueError(f"{name} is not a weight of shape {tuple(packed.shape)}")
    for name, packed in given.items():
        module, weight = holders[name]
        if isinstance(module, Matrix):
            module.give(packed)
        elif isinstance(packed, Tensor):
            weight.give(packed)


def _holders(model: nn.Module) -> Iterator[tuple[str, nn.Module, Weight]]:
    """Modules with a ``weight`` of their own or in common with another one."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Weight):
            yield name, module, weight
