"""Steps gone through before the first request."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from helpers_models import make_tiny
from octavo.config import EngineConfig
from octavo.execution.build import _build_model
from octavo.execution.precompile import precompile, shallow
from octavo.kernels.reference.ops import ReferenceOps
from octavo.layers.build import Build
from octavo.weights.open import open_checkpoint


class Watched(ReferenceOps):
    """Reference ops that note what is computed while they are asked to compile only."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.seen = False, []

    @contextmanager
    def compile_only(self, device):
        self.inside = True
        yield
        self.inside = False

    def plan_attention(self, batch):
        assert self.inside
        self.seen.append((len(batch.token_ids), len(batch.query_lens), batch.bounds_only))
        return super().plan_attention(batch)


def build(path, **options):
    config = EngineConfig.from_kwargs(str(path), dtype="float32", **options).on("cpu")
    ops = Watched()
    model = _build_model(config, open_checkpoint(path), Build(ops, dtype=torch.float32), progress=False)
    return config, model, ops


@pytest.mark.parametrize(
    "options",
    [{}, {"enforce_eager": True}, {"max_num_batched_tokens": 8, "max_num_seqs": 3}, {"max_num_batched_tokens": 300}],
    ids=str,
)
def test_all_kinds_of_steps_are_gone_through(tmp_path, options):
    config, model, ops = build(make_tiny("qwen3", tmp_path)[1], **options)
    precompile(config, model, ops, torch.float32, torch.device("cpu"))
    graphs = [(tokens, rows) for tokens, rows, bounds in ops.seen if bounds]
    assert len(ops.seen) > len(graphs)
    if "enforce_eager" in options:
        assert not graphs
    else:
        assert {(1, 1), (config.max_num_seqs, config.max_num_seqs)} <= set(graphs)
        assert any(tokens > rows for tokens, rows in graphs) == ("max_num_seqs" not in options)


def test_a_shallow_model_has_a_layer_of_each_kind(tmp_path):
    _, model, _ = build(make_tiny("qwen3-windows", tmp_path)[1])
    few = shallow(model)
    assert set(few.config.sliding_windows) == set(model.config.sliding_windows)
    assert len(few.model.layers) == few.config.num_layers
    assert few.model.layers[0] is model.model.layers[0]
    assert len(model.model.layers) == model.config.num_layers
