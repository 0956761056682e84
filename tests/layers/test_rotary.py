"""The rotary table against transformers' own, for each kind of scaling."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from helpers_models import TINY
from octavo.config import ModelConfig, RopeScaling
from octavo.errors import ModelError
from octavo.layers.rotary import cos_sin_table, inverse_frequencies, layer_tables, rotated_pairs_first


def config(head_dim: int = 32, **options) -> ModelConfig:
    layers = len(options.get("sliding_windows", [None]))
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_layers": layers, "num_heads": 1}
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


LONGROPE = RopeScaling(
    kind="longrope",
    factor=4.0,
    original_max_position=64,
    factors=tuple(1 + 0.1 * i for i in range(12)),
    long_factors=tuple(1 + 0.7 * i for i in range(12)),
)


def their_angles(kind: str, length: int | None, **parameters) -> tuple[torch.Tensor, float]:
    """Inverse frequencies and their factor, of 24 rotated dimensions of 32, for requests of ``length`` tokens."""
    rope = {"rope_type": kind, "rope_theta": 10000.0, "partial_rotary_factor": 0.75, **parameters}
    lengths = {"max_position_embeddings": 256, "original_max_position_embeddings": 64}
    theirs = Phi3Config(hidden_size=32, num_attention_heads=1, pad_token_id=0, **lengths)
    theirs.rope_parameters, theirs.head_dim = rope, 32
    return ROPE_INIT_FUNCTIONS[kind](theirs, "cpu", seq_len=length)


@pytest.mark.parametrize("length", [40, 64, 65, 256])
def test_longrope_and_partial_rotation(length):
    factors = {"short_factor": list(LONGROPE.factors), "long_factor": list(LONGROPE.long_factors)}
    frequencies, factor = their_angles("longrope", length, **factors, original_max_position_embeddings=64)
    ours = config(32, rope_scaling=LONGROPE, rotary_dim=24)
    found, found_factor = inverse_frequencies(ours, length)
    torch.testing.assert_close(found, frequencies)
    assert found_factor == pytest.approx(factor)
    table = cos_sin_table(ours, length)
    torch.testing.assert_close(
        table[:, :12], (torch.arange(length)[:, None] * frequencies).cos() * factor, atol=1e-4, rtol=0
    )
    assert (table[:, 12:16] == 1).all()  # what is not rotated is not scaled either
    assert (table[:, 28:] == 0).all()


@pytest.mark.parametrize("length", [40, 256, 257, 1000])
def test_dynamic(length):
    frequencies, _ = their_angles("dynamic", length, factor=3.0)
    scaling = RopeScaling(kind="dynamic", factor=3.0, original_max_position=256)
    found, factor = inverse_frequencies(config(32, rope_scaling=scaling, rotary_dim=24), length)
    torch.testing.assert_close(found, frequencies)
    assert factor == 1


def test_partial_rotation_by_another_order_of_dimensions():
    """Turning pairs (i, i + 12) of the first 24 of 32, as files mean it, is turning pairs (i, i + 16) of others."""
    x, angles = torch.randn(32, dtype=torch.float64), torch.linspace(0.1, 2, 12, dtype=torch.float64)
    low, high = x[:12], x[12:24]
    expected = torch.cat((low * angles.cos() - high * angles.sin(), high * angles.cos() + low * angles.sin(), x[24:]))
    order, still = rotated_pairs_first(32, 24), torch.zeros(4)
    cos, sin = torch.cat((angles, still)).cos(), torch.cat((angles, still)).sin()
    low, high = x[order][:16], x[order][16:]
    turned = torch.cat((low * cos - high * sin, high * cos + low * sin))
    torch.testing.assert_close(turned, expected[order])
    assert sorted(order) == list(range(32))


def test_layers_have_their_own_tables():
    windows = (None, 8, 8, None)
    ours = config(8, sliding_windows=windows, local_rope_theta=100.0, no_rope_layers=(2,), rope_scaling=YARN)
    first, second, third, fourth = layer_tables(dataclasses.replace(ours), 16)
    assert first is fourth
    torch.testing.assert_close(first, cos_sin_table(ours, 16))
    torch.testing.assert_close(second, cos_sin_table(config(8, rope_theta=100.0), 16))
    assert (third[:, :4] == 1).all()
    assert (third[:, 4:] == 0).all()


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
        (RopeScaling(kind="magic"), "accepted: linear, dynamic, llama3, yarn, longrope, factors"),
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
