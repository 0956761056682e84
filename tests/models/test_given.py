"""Weights that one model gives to the next."""

from __future__ import annotations

import pytest
import torch

from helpers_gguf import write_llama
from octavo.kernels.reference.ops import ReferenceOps
from octavo.layers.build import Build, Packing
from octavo.models.given import give_weights, packed_weights
from octavo.models.loading import load_weights, pack_weights
from octavo.models.registry import build_model
from octavo.weights.gguf import GGUFCheckpoint

PACKING = Packing(keeps=lambda kind: True)


class Untouchable:
    """A tensor of a checkpoint that nobody may read."""

    def __init__(self, tensor) -> None:
        self.name, self.shape, self.nbytes = tensor.name, tensor.shape, tensor.nbytes
        self.packed_kind = tensor.packed_kind

    def read(self, dtype):
        raise AssertionError(f"{self.name} was read")

    packed = read

    def release(self) -> None:
        pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return GGUFCheckpoint.open(write_llama(tmp_path_factory.mktemp("given") / "m.gguf", "Q8_0")[0])


def new_model(checkpoint, packing: Packing = PACKING):
    build = Build(ReferenceOps(), dtype=torch.bfloat16, packing=packing)
    return build_model(checkpoint.config, build, 64)


def loaded(checkpoint, packing: Packing = PACKING):
    model = new_model(checkpoint, packing)
    load_weights(model, checkpoint.tensors())
    pack_weights(model)
    return model


def test_what_was_given_is_not_read_again(checkpoint):
    given = packed_weights(loaded(checkpoint))
    assert {"model.embed_tokens", "lm_head", "model.layers.1.mlp.gate_up_proj"} <= set(given)
    model = new_model(checkpoint)
    give_weights(model, given)
    small = [t for t in checkpoint.tensors() if len(t.shape) == 1]
    large = [Untouchable(t) for t in checkpoint.tensors() if len(t.shape) == 2]
    assert len(large) == 2 * 7 + 1
    load_weights(model, [*large, *small])
    pack_weights(model)
    for name, weight in packed_weights(model).items():
        assert weight is given[name] or torch.equal(weight, given[name])


def test_a_model_of_plain_weights_gives_nothing(checkpoint):
    assert packed_weights(loaded(checkpoint, Packing())) == {}


@pytest.mark.parametrize("change", ["name", "shape"])
def test_weights_of_another_model_are_refused_before_any_is_taken(checkpoint, change):
    given = packed_weights(loaded(checkpoint))
    head = given.pop("lm_head")
    given["lm_head" if change == "shape" else "head"] = torch.zeros(3, 4) if change == "shape" else head
    model = new_model(checkpoint)
    with pytest.raises(ValueError, match="is not a weight of shape"):
        give_weights(model, given)
    load_weights(model, checkpoint.tensors())
    pack_weights(model)
    assert set(packed_weights(model)) == set(packed_weights(loaded(checkpoint)))
