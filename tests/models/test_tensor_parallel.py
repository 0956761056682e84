"""A model split over shards is the model: two to four threads stand for the devices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from helpers_models import VOCAB, PagedDriver, load_tiny, make_tiny
from helpers_parallel import Ring
from octavo.errors import ModelError
from octavo.layers.linear import kv_heads_of
from octavo.parallel import Shard


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llama", 2),
        ("llama-bias", 2),
        ("llama-tied", 2),
        ("llama-mha", 3),
        ("qwen3", 2),
        ("qwen2-windows", 2),
        ("gemma3", 2),
        ("phi3", 2),
        ("mixtral", 2),
        ("qwen3-moe", 2),
        ("starcoder2", 2),
        ("gpt2", 3),
    ],
)
def test_shards_together_are_the_whole(name, size, tmp_path):
    _, path = make_tiny(name, tmp_path)
    steps = [{0: range(20), 1: [9, VOCAB - 1]}, {0: [5], 1: [7]}]
    ring = Ring(size)

    def run(shard):
        driver = PagedDriver(load_tiny(path, shard=shard))
        return [torch.cat(list(driver.step(rows).values())) for rows in steps]

    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(run, [ring.shard(rank) for rank in range(size)]))
    for whole, *parts in zip(run(Shard()), *results, strict=True):
        for part in parts:
            torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-4)


def test_fewer_kv_heads_than_shards_are_shared():
    assert [kv_heads_of(Shard(rank, 4), 2).start for rank in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize(("name", "size"), [("llama", 4), ("llama", 5)])
def test_uneven_splits_are_refused(name, size, tmp_path):
    _, path = make_tiny(name, tmp_path)
    with pytest.raises(ModelError, match="query heads cannot be split"):
        load_tiny(path, shard=Shard(0, size))
