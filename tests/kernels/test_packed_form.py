"""Packed weights as plain values and tensors, and back."""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass, field, fields

import pytest
import torch
from torch import Tensor

from octavo.kernels.packed import Int4Weight, Int8Weight, PackedWeight, StackedWeight
from octavo.kernels.packed_form import PackedForms, UnknownFormError


class Shape(ctypes.Structure):
    _fields_ = (("n", ctypes.c_int64), ("bits", ctypes.c_int32))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Own(PackedWeight):
    """A form such as a backend has: a C structure, a tensor, what may be missing, and notes."""

    form: Shape
    data: Tensor
    order: Tensor | None = None
    rounding: PackedWeight | None = None
    notes: dict[int, int] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        return self.form.n, 1


FORMS = PackedForms((Own, Int8Weight, Int4Weight, StackedWeight), "1")
INT8 = Int8Weight(values=torch.arange(6, dtype=torch.int8).view(2, 3), scales=torch.ones(2, 1), quantizes_input=True)


def there_and_back(weight: object, forms: PackedForms = FORMS) -> object:
    tensors: list[Tensor] = []

    def put(tensor: Tensor) -> int:
        tensors.append(tensor)
        return len(tensors) - 1

    return FORMS.restore(json.loads(json.dumps(forms.describe(weight, put))), tensors.__getitem__)


def assert_same(a: object, b: object) -> None:
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, ctypes.Structure):
        assert bytes(a) == bytes(b)
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, PackedWeight):
        for f in fields(a):
            assert_same(getattr(a, f.name), getattr(b, f.name))
    else:
        assert a == b


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(3, 4),
        INT8,
        Int4Weight(values=torch.zeros(2, 2, dtype=torch.uint8), scales=torch.ones(2, 1), order=torch.arange(4)),
        Own(form=Shape(5, 4), data=torch.arange(7)),
        Own(form=Shape(-1, 8), data=torch.arange(7), order=torch.arange(2), rounding=INT8),
        StackedWeight(parts=(INT8, torch.randn(1, 3))),
    ],
)
def test_it_comes_back_as_it_was(weight):
    assert_same(there_and_back(weight), weight)


def test_notes_are_not_kept():
    assert there_and_back(Own(form=Shape(1, 1), data=torch.zeros(1), notes={1: 2})).notes == {}


@pytest.mark.parametrize(
    "weight",
    [
        StackedWeight(parts=(torch.randn(16, 16).to_mkldnn(),)),
        Own(form=Shape(1, 1), data=torch.zeros(1).to("meta")),
        object(),
    ],
)
def test_what_cannot_be_kept_is_told(weight):
    with pytest.raises(UnknownFormError):
        there_and_back(weight)


def test_a_form_that_is_not_the_backends_is_told():
    with pytest.raises(UnknownFormError, match="Int8Weight"):
        there_and_back(INT8, PackedForms((Own,), "1"))


@pytest.mark.parametrize(
    "described",
    [
        {"form": "Nothing", "fields": {}},
        {"form": "Own", "fields": {}},
        {"form": "Own", "fields": {"form": {"bytes": "00"}, "data": None}},
        {"form": "Own", "fields": {"strange": 1}},
        {"tensor": 7},
        {"items": 3},
        {},
        [1],
    ],
)
def test_nonsense_is_refused(described):
    with pytest.raises((ValueError, KeyError, TypeError, IndexError)):
        FORMS.restore(described, [].__getitem__)
