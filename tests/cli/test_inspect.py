"""``octavo inspect``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from helpers_hf import write_folder
from octavo.cli.inspect import inspect
from octavo.config import EngineConfig
from octavo.errors import ModelError
from octavo.execution.memory import workspace_bytes
from octavo.weights import open_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {"a": torch.zeros(1000, 64), "b": torch.zeros(64, dtype=torch.bfloat16)}
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
    return write_folder(tmp_path, tensors, eos_token_id=[5, 6], rope_parameters=yarn, tie_word_embeddings=True)


def rows(text: str) -> dict[str, str]:
    """Label -> text of the printed lines."""
    return dict(line.split("  ", 1) for line in text.splitlines())


def test_prints_what_the_model_is(folder: Path) -> None:
    result = CliRunner().invoke(inspect, [str(folder)])
    assert result.exit_code == 0
    found = {label.strip(): text.strip() for label, text in rows(result.stdout).items()}
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["heads"] == "4 query, 2 key/value, of 16"
    assert found["vocabulary"] == "96 tokens, input and output embeddings tied"
    assert found["rope"] == "theta 1e+06, yarn scaling"
    assert found["eos token ids"] == "5, 6"
    assert found["chat template"] == "no"
    assert found["parameters"] == "64,064 in 2 tensors"
    assert found["on disk"] == "250.1 KiB: F32 250 KiB, BF16 128 B"
    assert found["in bfloat16"].startswith("weights 125.1 KiB, KV cache 256 B a token: ")


def test_says_when_a_model_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = open_checkpoint(folder).config
    weights, workspace = 2 * 64_064, workspace_bytes(config, EngineConfig(model=""), "bfloat16")
    room = 15 * 16 * 256 * 10 // 9 + 2
    monkeypatch.setattr("octavo.execution.memory.free_memory", lambda: weights + 2 * (workspace + room))
    found = rows(CliRunner().invoke(inspect, [str(folder)]).stdout)
    fits = {label.strip(): text for label, text in found.items() if label.startswith("in ")}
    assert fits["in bfloat16"].endswith(": 240 tokens fit, so many requests at once: 0 of 256")
    assert fits["in float32"].endswith("does not fit")


def test_json(folder: Path) -> None:
    report = json.loads(CliRunner().invoke(inspect, [str(folder), "--json"]).stdout)
    assert report["bytes_by_kind"] == {"F32": 256_000, "BF16": 128}
    assert report["config"]["rope_scaling"]["kind"] == "yarn"
    assert report["memory_available"] > 0


def test_a_damaged_model_is_an_error_not_a_report(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    result = CliRunner().invoke(inspect, [str(folder)])
    assert isinstance(result.exception, ModelError)
    assert result.stdout == ""


def test_needs_no_torch(folder: Path) -> None:
    code = f"""
import sys
from octavo.cli.inspect import inspect
inspect.main([{str(folder)!r}], standalone_mode=False)
assert "torch" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "LlamaForCausalLM" in run.stdout
