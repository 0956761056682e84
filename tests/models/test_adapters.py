"""LoRA adapters on every kind of model against PEFT: the same logits, alone and several in one batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from helpers_lora import LLAMA, adapted, logits_of, make_adapter, save
from helpers_models import VOCAB, PagedDriver, load_tiny, make_tiny
from helpers_parallel import Ring
from octavo.core.plan import AdapterLoad
from octavo.execution.adapters import AdapterStore
from octavo.kernels.lora import LoraSizes

FAMILIES = ("llama", "llama-bias", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "phi3-partial", "mixtral", "gpt2")
SIZES = LoraSizes(max_loras=3, max_rank=16)
TEXTS = [torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (23, 9, 1, 14)]


def load_adapters(model, paths: list[Path]) -> AdapterStore:
    """Adapter i of ``paths`` as number i + 1."""
    store = AdapterStore(model)
    for i, path in enumerate(paths, 1):
        store.add(i, path)
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
    store.add(7, small)
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
