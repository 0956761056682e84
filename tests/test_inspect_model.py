"""The figures of a model, against figures reckoned by hand and against memory as the pool would divide it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers_hf import write_folder
from octavo.config import EngineConfig, ModelConfig
from octavo.execution.memory import draw_up, workspace_bytes
from octavo.inspect_model import fit, inspect_model, to_dict
from octavo.weights import open_checkpoint

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=100,
    hidden_size=64,
    intermediate_size=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=2065,
)
PER_TOKEN = 2 * 3 * 2 * 16 * 2
"""Bytes in bfloat16: keys and values, 3 layers, 2 heads of 16."""


def test_counts_what_is_on_disk(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(4, 5), "b": torch.zeros(6, dtype=torch.bfloat16), "c": torch.zeros(2, 3)}
    report = inspect_model(open_checkpoint(write_folder(tmp_path, tensors)), 10**9)
    assert (report.num_parameters, report.num_tensors) == (32, 3)
    assert report.bytes_by_kind == {"F32": 26 * 4, "BF16": 12}
    assert report.config.hidden_size == 64
    assert [fit.weights_bytes for fit in report.fits] == [64, 128]


def available(num_blocks: int, weights: int) -> int:
    """Memory of which the engine makes so many blocks: half of what is free, less the workspace, times 0.9."""
    workspace = workspace_bytes(CONFIG, EngineConfig(model=""), "bfloat16")
    return weights + 2 * (workspace + num_blocks * 16 * PER_TOKEN * 10 // 9 + 2)


def test_memory_is_divided_as_the_engine_does() -> None:
    exact = available(10, weights=1000 * 2)
    assert fit(CONFIG, "bfloat16", 1000, exact).kv_tokens == 160
    assert fit(CONFIG, "bfloat16", 1000, exact - 16).kv_tokens == 144
    assert fit(CONFIG, "bfloat16", 1000, exact).kv_bytes_per_token == PER_TOKEN
    assert fit(CONFIG, "float32", 1000, exact).kv_bytes_per_token == 2 * PER_TOKEN
    options = {"dtype": "bfloat16", "kv_dtype": "bfloat16", "weights": 2000, "free": exact - 2000}
    assert draw_up(CONFIG, EngineConfig(model=""), **options).num_blocks == 10


def test_requests_take_whole_blocks() -> None:
    assert fit(CONFIG, "bfloat16", 0, available(129, weights=0)).requests == {1024: 2, 2065: 0}


@pytest.mark.parametrize("memory", [0, 1999, 2000])
def test_nothing_fits_when_the_weights_do_not(memory: int) -> None:
    result = fit(CONFIG, "bfloat16", 1000, memory)
    assert (result.kv_tokens, set(result.requests.values())) == (0, {0})


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", None])
def test_knows_of_a_chat_template(tmp_path: Path, name: str | None) -> None:
    folder = write_folder(tmp_path)
    if name:
        (folder / name).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert inspect_model(open_checkpoint(folder), 0).chat_template == bool(name)


def test_the_report_is_json(tmp_path: Path) -> None:
    report = inspect_model(open_checkpoint(write_folder(tmp_path)), 10**9)
    decoded = json.loads(json.dumps(to_dict(report)))
    assert decoded["config"]["num_layers"] == 2
    assert decoded["fits"][0]["requests"].keys() == {"256"}
