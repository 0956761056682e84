"""Recorded steps in the engine: the same tokens and log-probabilities as when Python computes every step."""

from __future__ import annotations

import pytest
import torch

from helpers_engine import Workload, run_together, tiny_llm
from helpers_lora import make_adapter
from helpers_models import TINY, _llama, make_tiny
from octavo import LoRARequest, SamplingParams
from octavo.kernels.cpu import build
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.ops import Ops

pytestmark = pytest.mark.skipif(build.load_library() is None, reason="no C compiler")


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    """A model all of whose sizes the C kernels take: transformers', and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TINY, "llama-even", _llama(hidden_size=96, intermediate_size=96, head_dim=32))
        return make_tiny("llama-even", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def path(even):
    return even[1]


def texts(outputs) -> list:
    return [output and [(c.token_ids, c.logprobs) for c in output.outputs] for output in outputs]


@pytest.mark.parametrize(("seed", "quantization"), [*((seed, "int8") for seed in range(6)), (6, "int4")])
def test_random_workloads(path, seed, quantization, monkeypatch):
    options = {"quantization": quantization, "max_num_seqs": 8}
    jobs = Workload(seed).jobs
    llm = tiny_llm(path, **options)
    recorded = texts(run_together(llm, jobs))
    assert any(llm.engine._executor._runner._decode._recordings.values())
    monkeypatch.setattr(CpuOps, "record", Ops.record)
    assert texts(run_together(tiny_llm(path, **options), jobs)) == recorded


def test_steps_with_adapters(even, tmp_path, monkeypatch):
    """Of rows that change their adapters from step to step, as requests come and go; one has none."""
    base, path = even
    folders = [make_adapter(base, "llama", tmp_path / str(i), i, r=rank)[1] for i, rank in enumerate((8, 3))]
    loras = [None, *(LoRARequest(f"a{i}", i + 1, str(folder)) for i, folder in enumerate(folders))]
    params = [SamplingParams(temperature=0, max_tokens=4 + 5 * i, ignore_eos=True, logprobs=1) for i in range(6)]
    prompts = [[3 + i, 50, 7] for i in range(6)]

    def run():
        with tiny_llm(path, quantization="int8", enable_lora=True, max_loras=2) as llm:
            chosen = [loras[i % 3] for i in range(6)]
            outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=chosen)
            return texts(outputs), dict(llm.engine._executor._runner._decode._recordings)

    recorded, recordings = run()
    assert any(recording is not None for (_, adapted), recording in recordings.items() if adapted)
    monkeypatch.setattr(CpuOps, "record", Ops.record)
    assert run()[0] == recorded


def test_nan_left_in_a_block_harms_no_later_request(path):
    """Though nobody clears a block that is used again: decode and prefill ignore what is beyond a context."""
    prompts = [[5, 6, 7], list(range(3, 23)), [8, 9], list(range(20, 53))]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    with tiny_llm(path, enable_prefix_caching=False, max_model_len=64) as fresh:
        expected = texts(fresh.generate(prompts, params, use_tqdm=False))
    with tiny_llm(path, enable_prefix_caching=False, max_model_len=64, kv_cache_memory=1 << 17) as llm:
        runner = llm.engine._executor._runner
        assert not runner._clears_blocks
        with torch.inference_mode():
            runner.model.model.embed_tokens.weight[100] = torch.nan
        bad = llm.generate([[100] * 17] * llm.engine.ledger.num_blocks, SamplingParams(max_tokens=1), use_tqdm=False)
        assert {output.outputs[0].finish_reason for output in bad} == {"error"}
        assert texts(llm.generate(prompts, params, use_tqdm=False)) == expected
