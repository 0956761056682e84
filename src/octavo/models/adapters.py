"""From an adapter's tensors to the layers of a model: each A and B to the part that it belongs to.

An adapter has the names of the checkpoint that it was trained on. What these are called here, and how a layer that is
fused there is cut, is what the model says about biases: an adapter's B has the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from octavo.errors import ModelError, nearest
from octavo.kernels.lora import LoraLayer
from octavo.kernels.packed import PackedWeight
from octavo.layers.linear import AdaptedLinear
from octavo.layers.weight import ALL
from octavo.models.decoder import DecoderModel
from octavo.models.loading import Slot, slots_by_name
from octavo.models.tensors import NamedTensor

_LAYER = re.compile(r"(.*?\.[^.]*)\.(\d+)\.(.+)")
"""A layer's module: what is in front of the layer's number, the number, and the rest."""

AdapterLayers = dict[AdaptedLinear, LoraLayer]


class LoraModule(Protocol):
    """What an adapter has for one layer of the checkpoint: see ``octavo.weights.peft.LoraModule``."""

    @property
    def name(self) -> str: ...

    @property
    def a(self) -> NamedTensor: ...

    @property
    def b(self) -> NamedTensor: ...

    @property
    def scale(self) -> float: ...


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Stands for the bias of a layer of the checkpoint; its values are the numbers of the layer's outputs."""

    name: str
    count: int
    nbytes: int = 0
    packed_kind: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count,)

    def read(self, dtype: torch.dtype, rows: slice = ALL) -> Tensor:
        return torch.arange(self.count, dtype=dtype)[rows]

    def packed(self) -> PackedWeight | None:
        return None

    def release(self, rows: slice = ALL) -> None:
        """There is no file behind it."""


@dataclass(frozen=True, slots=True)
class _Target:
    """A part of a layer of this model, and which outputs of the checkpoint's layer it has."""

    slot: Slot
    outputs: Tensor


class AdapterPlacer:
    """Finds the places of adapters in one model."""

    def __init__(self, model: DecoderModel) -> None:
        self._model = model
        self._slots = slots_by_name(model)

    def place(self, modules: Sequence[LoraModule], wants: Callable[[str], bool] | None = None) -> AdapterLayers:
        """This shard's part of an adapter, in host memory and in the model's dtype.

        Args:
            modules: all that it has.
            wants: whether it should have something for a layer; None: that is not known.

        Raises:
            ModelError: it does not suit the model, or lacks something that it should have.
        """
        layers: AdapterLayers = {}
        for module in modules:
            for target in self._targets(module.name, module.b.shape[0]):
                _fill(layers, target, module)
        if wants is not None:
            self._check_complete(layers, {module.name for module in modules}, wants)
        return layers

    def _targets(self, name: str, outputs: int) -> list[_Target]:
        """Where a layer of the checkpoint, of so many outputs, is here."""
        found = []
        for own in self._model.own_tensors(_Outputs(f"{name}.bias", outputs)):
            module = own.name.removesuffix(".bias")
            slot = next(iter(self._slots.get(f"{module}.weight", ())), None)
            if slot is not None and not isinstance(slot.module, AdaptedLinear):
                raise ModelError(
                    f"the adapter has something for {name}, which is not supported; accepted: the projections of "
                    "attention and of dense feed-forward layers"
                )
            if slot is not None:
                found.append(_Target(slot, own.read(torch.int64)))
        if not found:
            known = (weight.removesuffix(".weight") for weight in self._slots)
            raise ModelError(
                f"the adapter has something for {name}, which is not part of the model{nearest(name, known)}"
            )
        return found

    def _check_complete(self, layers: AdapterLayers, names: set[str], wants: Callable[[str], bool]) -> None:
        """What it should have, by the names here and by the checkpoint's, it must have."""
        for weight, (slot, *_) in self._slots.items():
            name = weight.removesuffix(".weight")
            if name != weight and isinstance(slot.module, AdaptedLinear) and wants(name):
                part = slot.module.weight.places.index(slot.place)
                if slot.module not in layers or not layers[slot.module].ranks[part]:
                    raise _missing(name)
        for other in sorted({other for name in names for other in self._in_other_layers(name)} - names):
            if wants(other) and self._has(other):
                raise _missing(other)

    def _in_other_layers(self, name: str) -> Iterator[str]:
        match = _LAYER.fullmatch(name)
        if match is not None:
            yield from (f"{match[1]}.{i}.{match[3]}" for i in range(self._model.config.num_layers))

    def _has(self, name: str) -> bool:
        owns = self._model.own_tensors(_Outputs(f"{name}.bias", 1))
        return any(f"{own.name.removesuffix('.bias')}.weight" in self._slots for own in owns)


def _missing(name: str) -> ModelError:
    return ModelError(f"the adapter's tensors for {name} are missing")


def _fill(layers: AdapterLayers, target: _Target, module: LoraModule) -> None:
    """Copy a module's A and the rows of its B that belong to ``target`` to where its layer has that part."""
    layer, place = target.slot.module, target.slot.place
    assert isinstance(layer, AdaptedLinear)
    assert layer.lora is not None
    rank = module.a.shape[0]
    _check(module, target, rank, layer.lora.max_rank)
    own = layers.get(layer) or LoraLayer.like(layer.lora)
    part = layer.weight.places.index(place)
    if own.ranks[part]:
        raise ModelError(f"the adapter has something for {module.name} twice; once was expected")
    rows, columns = (*place.source, ALL)[:2]
    first = part * layer.lora.max_rank
    own.a[first : first + rank] = module.a.read(own.a.dtype)[:, columns]
    own.b[place.rows, :rank] = module.b.read(own.b.dtype)[target.outputs][rows]
    own.scales[part] = module.scale
    layers[layer] = replace(own, ranks=(*own.ranks[:part], rank, *own.ranks[part + 1 :]))


def _check(module: LoraModule, target: _Target, rank: int, max_rank: int) -> None:
    if rank > max_rank:
        raise ModelError(f"the adapter has rank {rank} in {module.name}; at most max_lora_rank={max_rank} is accepted")
    outputs, inputs = target.slot.place.shape
    if len(target.outputs) != outputs or module.a.shape[1] != inputs:
        raise ModelError(
            f"the adapter's {module.name} has lora_A {list(module.a.shape)} and lora_B {list(module.b.shape)}; "
            f"[{rank}, {inputs}] was expected, and {outputs} rows of lora_B where {len(target.outputs)} are"
        )
