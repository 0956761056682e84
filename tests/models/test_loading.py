"""Weights find their places, and a checkpoint that does not fit is refused by name."""

from __future__ import annotations

import pytest
import torch

from helpers_models import load_tiny, make_tiny
from octavo.config import ExpertsConfig
from octavo.errors import ModelError
from octavo.kernels import for_device
from octavo.layers.build import Build
from octavo.models.loading import init_dummy, load_weights, model_slots, param_bytes
from octavo.models.registry import MODELS, build_model
from octavo.weights.hf_config import read_config


class InMemory:
    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name, self.tensor, self.shape, self.nbytes = name, tensor, tuple(tensor.shape), tensor.nbytes
        self.released = False
        self.packed_kind = None

    def read(self, dtype: torch.dtype, rows: slice = slice(None)) -> torch.Tensor:
        return self.tensor[rows].to(dtype)

    def release(self, rows: slice = slice(None)) -> None:
        self.released = True


def fresh(path):
    config, _ = read_config(path)
    return build_model(config, Build(for_device("cpu")), 64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tensors(tiny):
    return {name: InMemory(name, tensor) for name, tensor in tiny[0].state_dict().items()}


def test_fused_weights_are_their_parts(tiny, tensors):
    model = fresh(tiny[1])
    load_weights(model, tensors.values())
    layer = model.model.layers[1]
    prefix = "model.layers.1.self_attn."
    parts = [tensors[f"{prefix}{name}_proj.weight"].tensor for name in "qkv"]
    assert torch.equal(layer.self_attn.qkv_proj.weight.data, torch.cat(parts))
    gate, up = (tensors[f"model.layers.1.mlp.{name}_proj.weight"].tensor for name in ("gate", "up"))
    assert torch.equal(layer.mlp.gate_up_proj.weight.data, torch.cat((gate, up)))


def test_every_tensor_is_let_go(tiny, tensors):
    """A list of tensors, as the engine has it, lets go of none by itself."""
    load_weights(fresh(tiny[1]), tensors.values())
    assert all(tensor.released for tensor in tensors.values())


def test_places_are_the_names_of_the_checkpoint(tiny, tensors):
    assert dict(model_slots(fresh(tiny[1]))).keys() == tensors.keys()


def test_progress_counts_every_byte(tiny, tensors):
    seen = []
    load_weights(fresh(tiny[1]), tensors.values(), seen.append)
    assert sum(seen) == sum(tensor.nbytes for tensor in tensors.values())


def test_known_ballast_is_skipped(tiny, tensors, tmp_path):
    old = InMemory("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4))
    load_weights(fresh(tiny[1]), [*tensors.values(), old])
    theirs, path = make_tiny("llama-tied", tmp_path)
    head = InMemory("lm_head.weight", torch.full((131, 48), 1e9))
    model = fresh(path)
    load_weights(model, [head, *(InMemory(n, t) for n, t in theirs.state_dict().items() if n != "lm_head.weight")])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.max() < 1e9


def test_missing(tiny, tensors):
    del tensors["model.layers.0.self_attn.k_proj.weight"]
    with pytest.raises(ModelError, match=r"layers.0.self_attn.k_proj.weight is missing .*LlamaForCausalLM"):
        load_weights(fresh(tiny[1]), tensors.values())


def test_several_missing_are_counted(tiny):
    with pytest.raises(ModelError, match=r"lm_head.weight and 29 more tensors are missing"):
        load_weights(fresh(tiny[1]), [])


def test_unexpected(tiny, tensors):
    extra = InMemory("model.layers.0.self_attn.q_proj.bias", torch.ones(48))
    with pytest.raises(ModelError, match=r"q_proj.bias is not part of the model .*did you mean"):
        load_weights(fresh(tiny[1]), [*tensors.values(), extra])


def test_twice(tiny, tensors):
    with pytest.raises(ModelError, match=r"lm_head.weight is in the checkpoint twice"):
        load_weights(fresh(tiny[1]), [*tensors.values(), tensors["lm_head.weight"]])


@pytest.mark.parametrize("shape", [(131, 47), (1, 48), (131,), (131, 48, 1)])
def test_wrong_shape_names_both(tiny, tensors, shape):
    tensors["lm_head.weight"] = InMemory("lm_head.weight", torch.ones(shape))
    with pytest.raises(ModelError) as error:
        load_weights(fresh(tiny[1]), tensors.values())
    text = str(error.value)
    assert str(list(shape)) in text
    assert "[131, 48]" in text
    assert "hidden_size 48" in text
    assert "\n" not in text


def test_unknown_architecture_lists_the_known(tiny):
    config, _ = read_config(tiny[1])
    object.__setattr__(config, "architecture", "LlamaForCausalLn")
    with pytest.raises(ModelError, match=r"did you mean 'LlamaForCausalLM'.*Qwen3ForCausalLM"):
        build_model(config, Build(for_device("cpu")), 64)


@pytest.mark.parametrize("architecture", MODELS)
def test_registry_names_exist(tiny, architecture):
    config, _ = read_config(tiny[1])
    object.__setattr__(config, "architecture", architecture)
    object.__setattr__(config, "experts", ExpertsConfig(count=2, per_token=1, size=16))
    assert build_model(config, Build(for_device("cpu")), 64).config is config


def test_dummy_weights(tiny):
    model, again, other = fresh(tiny[1]), fresh(tiny[1]), fresh(tiny[1])
    init_dummy(model, 1)
    init_dummy(again, 1)
    init_dummy(other, 2)
    for path, weight in model.named_parameters():
        if "norm" in path:
            assert (weight == 1).all()
        else:
            assert 0.018 < weight.std() < 0.022
            assert torch.equal(weight, again.get_parameter(path))
            assert not torch.equal(weight, other.get_parameter(path))


def test_param_bytes_counts_tied_weights_once(tmp_path):
    for name in ("llama", "llama-tied"):
        theirs, path = make_tiny(name, tmp_path)
        elements = sum(parameter.numel() for parameter in theirs.parameters())
        assert param_bytes(load_tiny(path)) == 4 * elements
        assert param_bytes(load_tiny(path, dtype=torch.bfloat16)) == 2 * elements
