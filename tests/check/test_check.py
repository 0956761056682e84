"""A sound engine passes all pairs; a fault that is put into it is caught by the right pair, and in the right layer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from helpers_cli import make_chat_model
from helpers_gguf import write_llama
from helpers_models import load_tiny, make_tiny
from helpers_smollm2 import smollm2_path
from octavo.check.check import (
    AHEAD,
    BATCHED,
    CACHED,
    CHUNKED,
    DENSE,
    DETERMINISTIC,
    EAGER,
    NUM_PAIRS,
    QUANTIZED,
    REFERENCE,
    CheckReport,
    check_model,
)
from octavo.check.layers import compare_layers, record
from octavo.check.workload import make_workload
from octavo.cli.check import check
from octavo.config import EngineConfig
from octavo.core.plan import NewRow, RowStep
from octavo.errors import UsageError
from octavo.execution.batch import BatchState
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.forward_batch import ForwardBatch
from octavo.kernels.reference.attention_plan import GroupedPlan
from octavo.kernels.reference.ops import ReferenceOps
from octavo.quantization.pack import quantize
from octavo.text.tokenizer import load_tokenizer
from octavo.weights.open import open_checkpoint

OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "block_size": 4, "kv_cache_memory": 4 << 20}


def run_check(path: Path, *, layers: bool = False, **options: Any) -> CheckReport:
    config = EngineConfig(model=str(path), **{**OPTIONS, **options})
    return check_model(config, open_checkpoint(path), None, quick=True, layers=layers)


def failing(report: CheckReport) -> set[str]:
    return {pair.name for pair in report.pairs if pair.status == "FAIL"}


def skipped(report: CheckReport) -> set[str]:
    return {pair.name for pair in report.pairs if pair.status == "skipped"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("check"))[1]


@pytest.mark.parametrize("name", ["llama-tied", "mistral", "qwen3", "gemma2", "gpt2"])
def test_a_sound_engine_passes(name: str, tmp_path: Path) -> None:
    _, path = make_tiny(name, tmp_path)
    report = run_check(path, layers=True)
    assert not failing(report), report.pairs
    assert not report.failed, report.layers
    assert skipped(report) == {EAGER, DETERMINISTIC, QUANTIZED}
    assert len(report.pairs) == NUM_PAIRS
    assert all(pair.agreeing == pair.compared == 32 for pair in report.pairs if pair.status == "pass")
    assert all(pair.largest < 1e-3 for pair in report.pairs)


def test_quantized_weights_are_compared_with_plain_ones(model: Path) -> None:
    report = run_check(model, quantization="int8")
    (pair,) = [pair for pair in report.pairs if pair.name == QUANTIZED]
    assert pair.status == "pass"
    assert 0 < pair.mean < pair.tolerance
    assert not failing(report)


def test_only_the_reference_is_allowed_another_rounding_of_what_weights_are_multiplied_with(model: Path) -> None:
    report = run_check(model, quantization="int8", dtype="bfloat16")
    kinds = {pair.name: re.search(r"\((\w+)\)", pair.why) for pair in report.pairs}
    assert {name for name, kind in kinds.items() if kind and kind[1] == "rounded"} == {REFERENCE, DENSE}
    assert {kinds[name][1] for name in (CHUNKED, BATCHED, CACHED, AHEAD)} == {"bfloat16"}
    assert not failing(report), report.pairs


@pytest.mark.slow
def test_the_bundled_model_passes_as_it_is_run() -> None:
    path = smollm2_path()
    config = EngineConfig(model=str(path), device="cpu")
    report = check_model(config, open_checkpoint(path), load_tokenizer(path), quick=True, layers=True)
    assert not report.failed, report


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_quantized_cache_passes(kind: str, model: Path) -> None:
    report = run_check(model, kv_cache_dtype=kind, layers=True)
    assert not report.failed, report


def test_no_prefix_cache_no_pair(model: Path) -> None:
    assert CACHED in skipped(run_check(model, enable_prefix_caching=False))


def test_what_a_file_has_packed_is_compared_only_if_it_stays_packed(tmp_path: Path) -> None:
    path, _ = write_llama(tmp_path / "model.gguf", "Q8_0")
    kept = run_check(path, quantization="file")
    assert QUANTIZED not in skipped(kept) | failing(kept)
    assert QUANTIZED in skipped(run_check(path, quantization="none"))
    assert QUANTIZED in skipped(run_check(path))  # another dtype than "auto": all is expanded


def test_a_plain_file_has_nothing_packed(model: Path) -> None:
    assert QUANTIZED in skipped(run_check(model, quantization="file"))


def test_requests_too_short_for_a_check() -> None:
    for quick in (True, False):
        with pytest.raises(UsageError) as caught:
            make_workload(None, 100, 10, quick=quick)
        least = int(str(caught.value).split("accepted: ")[1].split()[0])
        assert make_workload(None, 100, least, quick=quick).prompts
        with pytest.raises(UsageError):
            make_workload(None, 100, least - 1, quick=quick)


# ---------------------------------------------------------------- faults


def test_a_quantized_model_that_is_quite_another(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.layers.weight.quantize", lambda weight, scheme: quantize(-weight[:], scheme))
    report = run_check(model, quantization="int8")
    assert QUANTIZED in failing(report)
    (pair,) = [pair for pair in report.pairs if pair.name == QUANTIZED]
    assert pair.compared == 32


def test_requests_that_fail_on_all_ways(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of one prompt is not a number, and the other requests are well."""
    vocab_size = open_checkpoint(model).config.vocab_size
    *others, last = make_workload(None, vocab_size, 128, quick=True).prompts
    token = min(set(last).difference(*others))
    original = ReferenceOps.embedding

    def wrong(self: ReferenceOps, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return original(self, ids, weight).masked_fill((ids == token)[:, None], torch.nan)

    for ops in (ReferenceOps, CpuOps):
        monkeypatch.setattr(ops, "embedding", wrong)
    report = run_check(model)
    assert failing(report) >= {CHUNKED, BATCHED, AHEAD, REFERENCE, DENSE}
    assert all(pair.agreeing for pair in report.pairs if pair.status == "FAIL")


def test_the_head_is_recorded_however_it_is_called(model: Path) -> None:
    own = load_tiny(model)
    hidden = torch.ones(2, own.config.hidden_size)
    with record(own) as said:
        expected = [own.raw_logits(hidden), own.logits(hidden)]
    assert len(said["lm_head"]) == 2
    assert all(a.equal(b) for a, b in zip(said["lm_head"], expected, strict=True))
    own.raw_logits(hidden)
    assert len(said["lm_head"]) == 2


@pytest.mark.parametrize(("ours", "reference"), [(1, 0), (0, 1), (0, 0), (1, 2)])
def test_parts_that_were_not_computed_differ(ours: int, reference: int) -> None:
    x, steps = torch.ones(1, 4), [torch.ones(1, 4)] * 2
    sides = [{"embed_tokens": steps, "lm_head": [x] * count} for count in (ours, reference)]
    assert compare_layers(*sides, "float32").first == "lm_head"
    assert not compare_layers(sides[0] | {"lm_head": steps}, sides[0] | {"lm_head": steps}, "float32").differs


def test_a_wrong_attention_kernel(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = CpuOps.attention

    def wrong(self: CpuOps, *args: Any, scale: float, **kwargs: Any) -> torch.Tensor:
        return original(self, *args, scale=scale * 1.05, **kwargs)

    monkeypatch.setattr(CpuOps, "attention", wrong)
    report = run_check(model, layers=True)
    assert failing(report) == {REFERENCE, DENSE}
    assert report.layers is not None
    assert report.layers.first == "layers.0.self_attn"


@pytest.mark.parametrize(("operation", "calls", "first"), [("attention", 1, "self_attn"), ("silu_mul", 1, "mlp")])
def test_the_layer_of_a_fault_is_named(
    operation: str, calls: int, first: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the second of three layers is wrong, in one number of the last token."""
    original, count = getattr(CpuOps, operation), 0

    def wrong(self: CpuOps, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal count
        out: torch.Tensor = original(self, *args, **kwargs)
        if count % 3 == calls:
            out[-1, 0] += 1.0
        count += 1
        return out

    monkeypatch.setattr(CpuOps, operation, wrong)
    report = run_check(model, layers=True)
    assert report.layers is not None
    assert report.layers.first == f"layers.1.{first}"
    assert report.failed


def test_a_cache_that_returns_a_wrong_block(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BatchState._install

    def wrong(self: BatchState, row: NewRow) -> None:
        """A row that enters with blocks has them from the cache."""
        original(self, msgspec.structs.replace(row, block_ids=(*row.block_ids[-1:], *row.block_ids[1:])))

    monkeypatch.setattr(BatchState, "_install", wrong)
    assert failing(run_check(model)) == {CACHED}


def test_positions_of_a_later_chunk_that_are_off_by_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BatchState.forward_batch

    def wrong(self: BatchState, rows: list[RowStep], kv_cache: Any) -> ForwardBatch:
        batch = original(self, rows, kv_cache)
        later = any(row.start and row.num_tokens > 1 for row in rows)
        return replace(batch, positions=batch.positions + 1) if later else batch

    monkeypatch.setattr(BatchState, "forward_batch", wrong)
    assert CHUNKED in failing(run_check(model))
    assert not failing(run_check(model)) & {BATCHED, REFERENCE, DENSE, AHEAD}


def test_rows_that_are_mixed_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BatchState.forward_batch

    def wrong(self: BatchState, rows: list[RowStep], kv_cache: Any) -> ForwardBatch:
        batch = original(self, rows, kv_cache)
        return replace(batch, block_tables=batch.block_tables.roll(1, 0))

    monkeypatch.setattr(BatchState, "forward_batch", wrong)
    assert failing(run_check(model)) == {BATCHED}


def test_paging_that_is_wrong_in_all_kernels(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backend and reference agree with each other; the computation without a cache does not agree with them."""
    original = GroupedPlan._cache_rows

    def wrong(self: GroupedPlan, rows: Any) -> torch.Tensor:
        found = original(self, rows).clone()
        found[0] = found[-1]
        return found

    monkeypatch.setattr(GroupedPlan, "_cache_rows", wrong)
    monkeypatch.setattr(CpuOps, "attention", ReferenceOps.attention)
    assert failing(run_check(model)) >= {DENSE}
    assert REFERENCE not in failing(run_check(model))


def test_a_nan_is_a_failure(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = CpuOps.attention

    def wrong(self: CpuOps, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = original(self, q, *args, **kwargs)
        return out * torch.nan if len(q) == 4 else out

    monkeypatch.setattr(CpuOps, "attention", wrong)
    assert BATCHED in failing(run_check(model))


# ---------------------------------------------------------------- the command


def test_what_is_done_is_shown_if_the_rest_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise UsageError("not here")

    monkeypatch.setattr("octavo.check.check._Check._quantized", refuse)
    path = make_chat_model(tmp_path / "model")
    result = CliRunner().invoke(check, [str(path), "--quick", "--kv-cache-memory", "8M"], standalone_mode=False)
    assert isinstance(result.exception, UsageError)
    assert re.search(r"^backend / reference +pass", result.stdout, re.MULTILINE)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_chat_model(tmp_path / "model")
    arguments = [str(path), "--quick", "--layers", "--kv-cache-memory", "8M"]
    result = CliRunner().invoke(check, arguments, standalone_mode=False)
    assert result.exception is None, result.exception
    assert result.return_value == 0
    assert "backend / reference                pass" in result.stdout
    assert "skipped: graph / eager: needs a GPU" in result.stdout
    assert "no part differs" in result.stdout
    original = CpuOps.add_norm_gate_up

    def too_large(self: CpuOps, *args: Any) -> tuple[Tensor, Tensor]:
        gated, residual = original(self, *args)
        return gated * 1.5, residual

    monkeypatch.setattr(CpuOps, "add_norm_gate_up", too_large)
    result = CliRunner().invoke(check, [*arguments, "--json"], standalone_mode=False)
    assert result.return_value == 1
    report = msgspec.json.decode(result.stdout)
    assert report["failed"]
    assert report["layers"]["first"] == "layers.0.mlp"
    assert {pair["name"] for pair in report["pairs"] if pair["status"] == "FAIL"} == {REFERENCE, DENSE}
