"""Whole tiny models on the Triton backend against the same models on the reference."""

from __future__ import annotations

import pytest
import torch

from helpers_lora import make_adapter
from helpers_models import VOCAB, PagedDriver, load_tiny, make_tiny
from octavo.core.plan import AdapterLoad
from octavo.execution.adapters import AdapterStore
from octavo.kernels.lora import LoraSizes
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton import matvec
from octavo.kernels.triton.attention_plan import TritonPlan
from octavo.kernels.triton.matvec_settings import Settings
from octavo.kernels.triton.ops import TritonOps

STEPS = [  # tokens that each request brings: prompts, a chunk behind a prefix beside decoding, decoding alone
    {0: 9, 1: 1, 2: 5},
    {1: 1, 0: 6, 3: 4, 2: 1},
    {0: 1, 1: 1, 2: 1, 3: 1},
    {3: 1},
]


@pytest.fixture(autouse=True)
def large_blocks(interpreted, monkeypatch):
    """In the interpreter a program costs the same for one row of a weight as for many."""
    if interpreted:
        monkeypatch.setattr(matvec, "_choose", lambda *sizes: Settings(rows=64, width=32, warps=4))


@pytest.mark.parametrize("name", ["qwen3", "llama-llama3", "llama-bias", "mistral", "qwen3-windows"])
def test_a_model_computes_the_same_as_on_the_reference(device, tmp_path, name):
    _, path = make_tiny(name, tmp_path)
    ours = PagedDriver(load_tiny(path, ops=TritonOps(), device=device), block_size=16)
    reference = PagedDriver(load_tiny(path, ops=ReferenceOps()), block_size=16)
    generator = torch.Generator().manual_seed(7)
    for step in STEPS:
        rows = {r: torch.randint(VOCAB, (n,), generator=generator).tolist() for r, n in step.items()}
        found, expected = ours.step(rows), reference.step(rows)
        for request in rows:
            torch.testing.assert_close(found[request].cpu(), expected[request], rtol=2e-4, atol=2e-4)
            assert torch.equal(found[request].cpu().argmax(-1), expected[request].argmax(-1))


def test_a_plan_of_other_ops_is_refused(device, tmp_path):
    _, path = make_tiny("qwen3", tmp_path)
    model = load_tiny(path, ops=TritonOps(), device=device)
    driver = PagedDriver(model)
    batch = driver.batch({0: [1, 2]})
    assert isinstance(batch.attention, TritonPlan)
    batch.attention = ReferenceOps().plan_attention(batch)
    with pytest.raises(TypeError, match="not from plan_attention of the same ops"):
        model(batch)


@pytest.mark.parametrize("name", ["qwen3", *(pytest.param(name, marks=pytest.mark.gpu) for name in ("phi3", "gpt2"))])
def test_a_model_with_adapters_computes_the_same_as_on_the_reference(device, tmp_path, name):
    base, path = make_tiny(name, tmp_path)
    folders = [make_adapter(base, name, tmp_path / str(i), i, r=rank)[1] for i, rank in enumerate((8, 3))]
    drivers = []
    for ops, where in ((TritonOps(), device), (ReferenceOps(), "cpu")):
        model = load_tiny(path, ops=ops, device=where, lora=LoraSizes(2, 8))
        store = AdapterStore(model, 2)
        for i, folder in enumerate(folders, 1):
            store.keep(i, store.read(folder))
        store.load([AdapterLoad(1, 1), AdapterLoad(2, 2)])
        drivers.append(PagedDriver(model, block_size=16))
    for step in STEPS[:2]:
        rows = {r: [(7 * r + i) % VOCAB for i in range(n)] for r, n in step.items()}
        found, expected = (driver.step(rows, {0: 1, 1: 2, 3: 1}) for driver in drivers)
        for request in rows:
            torch.testing.assert_close(found[request].cpu(), expected[request], rtol=2e-4, atol=2e-4)
