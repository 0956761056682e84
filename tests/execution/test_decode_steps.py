"""Recorded steps in the engine: the same tokens and log-probabilities as when Python computes every step."""

from __future__ import annotations

import pytest

from helpers_engine import Workload, run_together, tiny_llm
from helpers_models import TINY, _llama, make_tiny
from octavo.kernels.cpu import build
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.ops import Ops

pytestmark = pytest.mark.skipif(build.load_library() is None, reason="no C compiler")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model all of whose sizes the C kernels take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TINY, "llama-even", _llama(hidden_size=96, intermediate_size=96, head_dim=32))
        return make_tiny("llama-even", tmp_path_factory.mktemp("models"))[1]


def texts(outputs) -> list:
    return [output and [(c.token_ids, c.logprobs) for c in output.outputs] for output in outputs]


@pytest.mark.parametrize("seed", range(6))
def test_random_workloads(path, seed, monkeypatch):
    options = {"quantization": "int8", "max_num_seqs": 8}
    jobs = Workload(seed).jobs
    llm = tiny_llm(path, **options)
    recorded = texts(run_together(llm, jobs))
    assert any(llm.engine._executor._runner._decode._recordings.values())
    monkeypatch.setattr(CpuOps, "record", Ops.record)
    assert texts(run_together(tiny_llm(path, **options), jobs)) == recorded
