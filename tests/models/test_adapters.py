"""LoRA adapters on every kind of model against PEFT: the same logits, alone and several in one batch."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers_lora import LLAMA, adapted, logits_of, make_adapter, save
from helpers_models import VOCAB, PagedDriver, load_tiny, make_tiny
from helpers_parallel import Ring
from octavo.core.plan import AdapterLoad
from octavo.errors import ModelError
from octavo.execution.adapters import AdapterStore
from octavo.kernels.lora import LoraSizes

FAMILIES = ("llama", "llama-bias", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "phi3-partial", "mixtral", "gpt2")
SIZES = LoraSizes(max_loras=3, max_rank=16)
TEXTS = [torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (23, 9, 1, 14)]


def load_adapters(model, paths: list[Path]) -> AdapterStore:
    """Adapter i of ``paths`` as number i + 1."""
    store = AdapterStore(model, SIZES.max_loras)
    for i, path in enumerate(paths, 1):
        store.keep(i, store.read(path))
    store.load([AdapterLoad(i, i) for i in range(1, len(paths) + 1)])
    return store


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*FAMILIES, "qwen3-moe", "starcoder2"])
def test_several_adapters_in_one_batch(name, tmp_path):
    """Of different ranks, beside a request without; in chunks and token by token."""
    base, path = make_tiny(name, tmp_path)
    few = {"r": 3, "lora_alpha": 5, "use_rslora": True}
    made = [make_adapter(base, name, tmp_path / str(i), i, **o) for i, o in enumerate(({}, few, {"r": 16}))]
    model = load_tiny(path, lora=SIZES)
    load_adapters(model, [folder for _, folder in made])
    driver, adapters = PagedDriver(model), {0: 1, 1: 2, 3: 3}
    theirs = [made[0][0], made[1][0], base, made[2][0]]
    first = driver.step({r: text[:-1] or text for r, text in enumerate(TEXTS)}, adapters)
    last = driver.step({r: text[-1:] for r, text in enumerate(TEXTS) if len(text) > 1}, adapters)
    for r, text in enumerate(TEXTS):
        expected = logits_of(theirs[r], text)
        close(torch.cat([first[r], last[r]]) if r in last else first[r], expected)
        if r != 2:
            assert (expected - logits_of(base, text)).abs().max() > 0.1  # otherwise the comparison would say nothing


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["down_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": LLAMA, "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": r".*\.(0|2)\.self_attn\.(q|o)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": LLAMA, "exclude_modules": ["up_proj"]},
        {
            "target_modules": ["o_proj", "q_proj"],
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"1.self_attn.o_proj": 3},
        },
        {
            "target_modules": ["o_proj", "k_proj"],
            "rank_pattern": {"^model.layers.1.self_attn.k_proj": 5},
            "use_rslora": True,
        },
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    ],
    ids=str,
)
def test_which_layers_and_how_strongly(options, tmp_path):
    base, path = make_tiny("llama", tmp_path)
    theirs, folder = make_adapter(base, "llama", tmp_path / "adapter", 5, **options)
    model = load_tiny(path, lora=SIZES)
    load_adapters(model, [folder])
    close(PagedDriver(model).step({0: TEXTS[0]}, {0: 1})[0], logits_of(theirs, TEXTS[0]))


def test_a_place_that_is_used_again(tmp_path):
    """Nothing of the adapter before is left, though it had more layers and a higher rank."""
    base, path = make_tiny("llama", tmp_path)
    large = make_adapter(base, "llama", tmp_path / "large", 1, r=16)[1]
    theirs, small = make_adapter(base, "llama", tmp_path / "small", 2, r=2, target_modules=["k_proj", "up_proj"])
    model = load_tiny(path, lora=SIZES)
    store = load_adapters(model, [large])
    store.keep(7, store.read(small))
    store.load([AdapterLoad(1, 7)])
    close(PagedDriver(model).step({0: TEXTS[0]}, {0: 1})[0], logits_of(theirs, TEXTS[0]))


@pytest.mark.parametrize("name", ["llama-bias", "llama-tied", "phi3", "gpt2", "qwen3"])
def test_shards_together_are_the_whole(name, tmp_path):
    base, path = make_tiny(name, tmp_path)
    theirs, folder = make_adapter(base, name, tmp_path / "adapter")
    ring = Ring(2)

    def run(shard):
        model = load_tiny(path, shard=shard, lora=SIZES)
        load_adapters(model, [folder])
        return PagedDriver(model).step({0: TEXTS[0]}, {0: 1})[0]

    with ThreadPoolExecutor(2) as pool:
        for part in pool.map(run, [ring.shard(rank) for rank in range(2)]):
            close(part, logits_of(theirs, TEXTS[0]))


def test_bfloat16_stays_near(tmp_path):
    base, path = make_tiny("llama", tmp_path)
    theirs = adapted(base, "llama")
    model = load_tiny(path, dtype=torch.bfloat16, lora=SIZES)
    load_adapters(model, [save(theirs, tmp_path / "adapter")])
    found, wanted = PagedDriver(model).step({0: TEXTS[0]}, {0: 1})[0], logits_of(theirs, TEXTS[0])
    assert (found - wanted).abs().mean() < 0.06 * wanted.abs().mean()


def edit(folder: Path, change, **config) -> Path:
    """Rewrite a saved adapter: its tensors by ``change``, its configuration by ``config``."""
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors")
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**written, **config}))
    return folder


def without(*parts: str):
    return lambda tensors: {name: t for name, t in tensors.items() if not any(part in name for part in parts)}


def renamed(old: str, new: str):
    return lambda tensors: {name.replace(old, new): t for name, t in tensors.items()}


def cut(part: str, dim: int):
    return lambda tensors: {
        n: t.narrow(dim, 0, t.shape[dim] - 1).clone() if part in n else t for n, t in tensors.items()
    }


def twice_as_phi3(tensors):
    """Beside the fused layer, one of the layers that it stands for."""
    a, b = (next(t for n, t in tensors.items() if f"0.self_attn.qkv_proj.lora_{p}" in n) for p in "AB")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    return {**tensors, name.format("A"): a.clone(), name.format("B"): b[:48].clone()}


WRONG = [
    ("llama", without("layers.1.self_attn.q_proj"), {}, "tensors for model.layers.1.self_attn.q_proj are missing"),
    ("llama", without("up_proj"), {}, "tensors for model.layers.0.mlp.up_proj are missing"),
    ("phi3", without("2.self_attn.qkv_proj"), {}, "tensors for model.layers.2.self_attn.qkv_proj are missing"),
    ("llama", renamed("2.mlp.up_proj", "3.mlp.up_proj"), {}, "layers.3.mlp.up_proj, which is not part of the model"),
    (
        "llama",
        renamed(".mlp.", ".ffn."),
        {},
        r"ffn.down_proj, which is not part of the model \(did you mean 'model.layers",
    ),
    ("llama", cut("2.self_attn.o_proj.lora_A", 1), {}, r"o_proj has lora_A \[8, 47\] .* \[8, 48\] was expected"),
    ("llama", cut("2.self_attn.k_proj.lora_B", 0), {}, "16 rows of lora_B where 15 are"),
    ("phi3", cut("1.mlp.gate_up_proj.lora_B", 0), {}, "84 rows of lora_B where 83 are"),
    ("phi3", twice_as_phi3, {"target_modules": ".*"}, "has something for model.layers.0.self_attn.q.*_proj twice"),
    (
        "llama",
        renamed("layers.0.mlp.up_proj", "embed_tokens"),
        {"target_modules": ".*"},
        "embed_tokens, which is not supported",
    ),
    (
        "llama",
        renamed("model.layers.0.mlp.up_proj", "lm_head"),
        {"target_modules": ".*"},
        "lm_head, which is not supported",
    ),
    (
        "mixtral",
        renamed("1.self_attn.q_proj", "1.block_sparse_moe.experts.0.w1"),
        {"target_modules": ".*"},
        "w1, which is not",
    ),
]


@pytest.mark.parametrize(("name", "change", "config", "message"), WRONG, ids=[case[3] for case in WRONG])
def test_an_adapter_that_does_not_suit_is_refused_in_one_line(name, change, config, message, tmp_path):
    base, path = make_tiny(name, tmp_path)
    folder = edit(make_adapter(base, name, tmp_path / "adapter")[1], change, **config)
    with pytest.raises(ModelError, match=message) as error:
        load_adapters(load_tiny(path, lora=SIZES), [folder])
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


def test_a_rank_that_is_too_large_is_refused(tmp_path):
    base, path = make_tiny("llama", tmp_path)
    folder = make_adapter(base, "llama", tmp_path / "adapter", r=17)[1]
    with pytest.raises(ModelError, match=r"has rank 17 in .*; at most max_lora_rank=16 is accepted"):
        load_adapters(load_tiny(path, lora=SIZES), [folder])
