"""Recorded decode steps: the same numbers as without, for other tokens, contexts and blocks; or no recording."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from torch import Tensor

from helpers_models import VOCAB, PagedDriver
from octavo.config import ModelConfig
from octavo.kernels.cpu import build
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.cpu.recording import Pool
from octavo.layers.build import Build, Packing
from octavo.models.decoder import DecoderModel
from octavo.models.loading import init_dummy, pack_weights
from octavo.models.registry import build_model
from octavo.parallel import Shard
from octavo.quantization.schemes import scheme

pytestmark = pytest.mark.skipif(build.load_library() is None, reason="no C compiler")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def model_of(ops: CpuOps, dtype: torch.dtype, quantized: str | None = "int8", **options) -> DecoderModel:
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        **options,
    )
    packing = Packing(scheme(quantized)) if quantized else Packing()
    model = build_model(config, Build(ops, Shard(), dtype, torch.device("cpu"), packing=packing), 512)
    init_dummy(model, 3)
    pack_weights(model)
    return model.eval()


class Pair:
    """Two drivers of one model that get the same tokens: one computes, the other replays what it recorded."""

    def __init__(self, ops: CpuOps, model: DecoderModel) -> None:
        self.ops, self.model = ops, model
        self.drivers = [PagedDriver(model, block_size=16, seed=seed) for seed in (1, 2)]
        self.recording = None

    def compute(self, batch) -> Tensor:
        return self.model.raw_logits(self.model(batch))

    def prefill(self, rows) -> None:
        for driver in self.drivers:
            batch = driver.batch(rows)
            batch.attention = self.ops.plan_attention(batch)
            self.model(batch)

    def step(self, rows) -> tuple[Tensor, Tensor]:
        plain, recorded = (driver.batch(rows) for driver in self.drivers)
        for batch in (plain, recorded):
            batch.attention = self.ops.plan_attention(batch)
        expected = self.compute(plain).clone()
        if self.recording is not None:
            return expected, self.recording.replay(recorded)
        found, self.recording = self.ops.record(recorded, lambda: self.compute(recorded))
        return expected, found


@DTYPES
@pytest.mark.parametrize("rows", [1, 2, 5, 17])
@torch.inference_mode()
def test_replays_equal_what_is_computed(dtype, rows):
    """To the bit, over contexts that grow across blocks and past the lengths at which they are cut into parts."""
    ops = CpuOps()
    pair, rng = Pair(ops, model_of(ops, dtype)), random.Random(rows)
    lengths = [rng.choice([1, 15, 16, 130, 290]) for _ in range(rows)]
    pair.prefill({i: [rng.randrange(VOCAB) for _ in range(n)] for i, n in enumerate(lengths)})
    for _ in range(20):
        expected, found = pair.step({i: [rng.randrange(VOCAB)] for i in range(rows)})
        assert torch.equal(expected, found)
    assert pair.recording is not None


@torch.inference_mode()
def test_other_threads_of_the_process_change_nothing(monkeypatch):
    """Another model may ask for more of them: a recording's memory is for as many as there were."""
    ops = CpuOps()
    pair = Pair(ops, model_of(ops, torch.bfloat16))
    pair.prefill({0: [5] * 400})
    pair.step({0: [3]})
    before = ops._tasks.threads, pair.recording._plan.work(None).num_parts
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    expected, found = pair.step({0: [4]})
    assert torch.equal(expected, found)
    assert (ops._tasks.threads, pair.recording._plan.work(None).num_parts) == before


@torch.inference_mode()
def test_windows():
    ops = CpuOps()
    pair = Pair(ops, model_of(ops, torch.float32, sliding_windows=(20, None, 5)))
    pair.prefill({0: [5] * 40, 1: [6]})
    for token in range(40):
        expected, found = pair.step({0: [token], 1: [token + 1]})
        assert torch.equal(expected, found)
    assert pair.recording is not None


@torch.inference_mode()
def test_other_steps_in_between_and_other_sizes():
    """Eager steps make shared scratch memory grow, and recordings share theirs."""
    ops = CpuOps()
    model = model_of(ops, torch.float32)
    few, many = Pair(ops, model), Pair(ops, model)
    few.step({0: [7]})
    many.prefill({i: [i] * 60 for i in range(20)})
    for token in range(5):
        for pair, rows in ((many, 20), (few, 1)):
            expected, found = pair.step({i: [token + i] for i in range(rows)})
            assert torch.equal(expected, found)
    assert None not in (few.recording, many.recording)


@torch.inference_mode()
def test_an_operation_of_torch_ends_the_recording():
    ops = CpuOps()
    pair = Pair(ops, model_of(ops, torch.float32))
    plain = pair.compute
    for extra in (lambda x: x * 2, lambda x: x.add_(1), lambda x: x.to(torch.float64), lambda x: x.t().contiguous()):
        pair.compute = lambda batch, extra=extra: extra(plain(batch))
        expected, found = pair.step({0: [3], 1: [4]})
        assert torch.equal(expected, found)
        assert pair.recording is None
    pair.compute = lambda batch: plain(batch)[:, 3:].view(-1, VOCAB - 3)
    for token in range(3):
        expected, found = pair.step({0: [token], 1: [9]})
        assert torch.equal(expected, found)
    assert pair.recording is not None


@torch.inference_mode()
def test_an_error_leaves_no_listener():
    ops = CpuOps()
    pair = Pair(ops, model_of(ops, torch.float32))

    def fail(batch):
        raise ValueError

    pair.compute, plain = fail, pair.compute
    with pytest.raises(ValueError):
        pair.ops.record(None, lambda: fail(None))
    pair.compute = plain
    expected, found = pair.step({0: [3]})
    assert torch.equal(expected, found)


def test_without_a_compiler_nothing_is_recorded(monkeypatch):
    monkeypatch.setattr("octavo.kernels.cpu.ops.load_library", lambda: None)
    assert CpuOps().record(None, lambda: torch.ones(1)) == (torch.ones(1), None)


def test_the_pool_gives_memory_again_when_nobody_needs_it():
    pool = Pool()
    first = pool.empty((3, 5), torch.float32)
    address = first.data_ptr()
    view = first[1:]
    del first
    gc.collect()
    other = pool.empty((15,), torch.float32)
    assert other.data_ptr() != address, "a view still needs it"
    del view
    assert pool.empty((2, 7), torch.float32).data_ptr() == address
    assert pool.owns(other)
    assert not pool.owns(torch.ones(3))


def test_the_pool_gives_empty_tensors():
    tensor = Pool().empty((0, 4), torch.bfloat16)
    assert tensor.shape == (0, 4)
