"""Packed weights as plain values and tensors, so that a backend's own forms can be kept in a file and come back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

import torch
from torch import Tensor

from octavo.kernels.packed import Operand, PackedWeight


class UnknownFormError(Exception):
    """A weight of which this does not know how to keep it."""


@dataclass(frozen=True, slots=True)
class PackedForms:
    """Which forms a backend's weights have, and how long these mean the same.

    Attributes:
        classes: dataclasses of tensors, numbers, texts, C structures and other packed weights.
        version: another one whenever the same weight would become other bytes.
    """

    classes: tuple[type[PackedWeight], ...]
    version: str

    def describe(self, weight: Operand, put: Callable[[Tensor], int]) -> Any:
        """``weight`` as values that JSON knows. ``put`` keeps a tensor and returns its number.

        Raises:
            UnknownFormError: it has a part of another kind, such as one of oneDNN's own tensors.
        """
        match weight:
            case None | bool() | int() | float() | str():
                return weight
            case Tensor() if weight.layout is torch.strided and weight.device.type == "cpu":
                return {"tensor": put(weight.detach())}
            case ctypes.Structure():
                return {"bytes": bytes(weight).hex()}
            case tuple():
                return {"items": [self.describe(item, put) for item in weight]}
            case PackedWeight() if type(weight) in self.classes:
                return {"form": type(weight).__name__, "fields": self._fields(weight, put)}
        raise UnknownFormError(type(weight).__name__)

    def _fields(self, weight: PackedWeight, put: Callable[[Tensor], int]) -> dict[str, Any]:
        """Of its fields those that are no notes, which a weight makes for itself as it is used."""
        kept = (f.name for f in fields(weight) if f.default_factory is MISSING)
        return {name: self.describe(getattr(weight, name), put) for name in kept}

    def restore(self, described: Any, get: Callable[[int], Tensor], hint: Any = None) -> Any:
        """What ``describe`` was given; ``get`` returns the tensor of a number, ``hint`` is the class of a C structure.

        Raises:
            ValueError, KeyError, TypeError: it is not what ``describe`` returns.
        """
        match described:
            case {"tensor": int(number)}:
                return get(number)
            case {"bytes": str(text)}:
                return hint.from_buffer_copy(bytes.fromhex(text))
            case {"items": list(items)}:
                return tuple(self.restore(item, get) for item in items)
            case {"form": str(name), "fields": dict(values)}:
                form = {form.__name__: form for form in self.classes}[name]
                hints = get_type_hints(form)
                return form(**{name: self.restore(value, get, hints[name]) for name, value in values.items()})
            case None | bool() | int() | float() | str():
                return described
        raise ValueError(f"{described!r:.80} describes no packed weight")
