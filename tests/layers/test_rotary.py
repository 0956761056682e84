"""The rotary table against transformers' own, for each kind of scaling."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from helpers_models import TINY
from octavo.config import ModelConfig, RopeScaling
from octavo.errors import ModelError
from octavo.layers.rotary import cos_sin_table, inverse_frequencies


def config(head_dim: int = 32, **options) -> ModelConfig:
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}
    limits = {"num_kv_heads": 1, "max_position_embeddings": 256}
    return ModelConfig(architecture="x", head_dim=head_dim, **sizes, **limits, **options)


YARN = RopeScaling(kind="yarn", factor=4.0, original_max_position=64)
SCALINGS = {
    "llama": None,
    "llama-linear": RopeScaling(kind="linear", factor=4.0),
    "llama-llama3": RopeScaling(
        kind="llama3", factor=4.0, original_max_position=64, low_freq_factor=1.0, high_freq_factor=4.0
    ),
    "llama-yarn": YARN,
    "llama-yarn-mscale": dataclasses.replace(
        YARN, mscale=1.2, mscale_all_dim=0.7, beta_fast=16.0, beta_slow=2.0, truncate=False
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_table_is_transformers(name):
    theirs = LlamaRotaryEmbedding(TINY[name])
    head_dim = TINY[name].head_dim
    cos, sin = theirs(torch.zeros(1), torch.arange(300)[None])
    table = cos_sin_table(config(head_dim, rope_scaling=SCALINGS[name]), 300)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table[:, : head_dim // 2], cos[0, :, : head_dim // 2], rtol=0, atol=3e-5)
    torch.testing.assert_close(table[:, head_dim // 2 :], sin[0, :, : head_dim // 2], rtol=0, atol=3e-5)


def test_scalings_differ():
    tables = [cos_sin_table(config(rope_scaling=scaling), 64) for scaling in SCALINGS.values()]
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(tables) for b in tables[:i])


def test_explicit_attention_factor():
    table = cos_sin_table(config(rope_scaling=dataclasses.replace(YARN, attention_factor=0.5)), 4)
    assert table[0, 0] == 0.5


def test_factors_divide_frequencies():
    scaling = RopeScaling(kind="factors", factors=(1.0, 2.0, 4.0, 8.0))
    plain, _ = inverse_frequencies(config(8))
    divided, factor = inverse_frequencies(config(8, rope_scaling=scaling))
    assert (plain / divided).tolist() == [1.0, 2.0, 4.0, 8.0]
    assert factor == 1.0


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (RopeScaling(kind="magic"), "accepted: linear, llama3, yarn, factors"),
        (RopeScaling(kind="factors", factors=(1.0,)), "1 rope factors; 16 were expected"),
        (RopeScaling(kind="yarn", factor=2.0), "lacks original_max_position"),
        (RopeScaling(kind="linear", factor=0.0), "no finite frequencies"),
        (dataclasses.replace(YARN, factor=-1.0), "lacks factor"),
        (dataclasses.replace(YARN, beta_slow=0.0), "lacks beta_slow"),
    ],
)
def test_bad_scaling_is_a_model_error(scaling, message):
    with pytest.raises(ModelError, match=message):
        cos_sin_table(config(rope_scaling=scaling), 4)


def test_yarn_with_theta_of_one_is_a_model_error():
    with pytest.raises(ModelError, match="rope_theta"):
        cos_sin_table(config(rope_scaling=YARN, rope_theta=1.0), 4)
