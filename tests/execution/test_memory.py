"""The memory ledger: sizes, limits, and what it says when something does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from octavo.config import EngineConfig, ModelConfig
from octavo.errors import OutOfMemoryError, UsageError
from octavo.execution import memory
from octavo.execution.memory import draw_up, free_memory, workspace_bytes

GIB = 1 << 30
MODEL = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_layers=22,
    num_heads=32, num_kv_heads=4, head_dim=64, max_position_embeddings=2048,
)  # fmt: skip
TOKEN = 2 * 22 * 4 * 64 * 2  # bytes of one token's keys and values in bfloat16


def ledger(free: int = 16 * GIB, **options):
    config = EngineConfig.from_kwargs("m", **options)
    return draw_up(MODEL, config, dtype="bfloat16", kv_dtype="bfloat16", weights=2 * GIB, free=free)


def test_a_tokens_bytes_are_counted_over_all_layers():
    assert MODEL.kv_bytes_per_token("bfloat16") == TOKEN
    assert MODEL.kv_bytes_per_token("float32") == 2 * TOKEN


def test_the_cache_takes_its_share_of_what_is_free():
    found = ledger(free=8 * GIB)
    budget = (8 * GIB * memory.CPU_SHARE - found.workspace) * 0.9
    assert found.num_blocks == int(budget) // (16 * TOKEN)
    assert found.kv_cache == found.num_blocks * 16 * TOKEN
    assert found.kv_tokens == found.num_blocks * 16
    assert ledger(free=8 * GIB, gpu_memory_utilization=0.45).num_blocks == pytest.approx(found.num_blocks / 2, abs=1)


def test_the_cache_is_no_larger_than_all_rows_can_use():
    assert ledger(free=1 << 44, max_num_seqs=8).num_blocks == 8 * 2048 // 16


def test_the_cores_tables_limit_the_number_of_blocks():
    assert ledger(free=1 << 50, max_num_seqs=60000, max_num_batched_tokens=60000).num_blocks == memory.MAX_BLOCKS


def test_an_explicit_size_is_taken_as_it_is():
    found = ledger(kv_cache_memory=100 * 16 * TOKEN + 5)
    assert (found.num_blocks, found.max_model_len) == (100, 1600)


def test_block_size_and_cache_dtype_change_the_bytes_of_a_block():
    config = EngineConfig.from_kwargs("m", block_size=32, kv_cache_memory=64 * 32 * TOKEN)
    half = draw_up(MODEL, config, dtype="bfloat16", kv_dtype="bfloat16", weights=0, free=GIB)
    full = draw_up(MODEL, config, dtype="bfloat16", kv_dtype="float32", weights=0, free=GIB)
    assert (half.num_blocks, full.num_blocks) == (64, 32)


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(OutOfMemoryError, match="there is room for 1600 tokens"):
        ledger(max_model_len=2048, kv_cache_memory=100 * 16 * TOKEN)
    with pytest.raises(OutOfMemoryError, match="there is room for 0 tokens"):
        ledger(free=1 << 20)
    with pytest.raises(OutOfMemoryError, match=r"is 32.00 GiB; 16.00 GiB are free"):
        ledger(kv_cache_memory=32 * GIB)
    with pytest.raises(UsageError, match="at most 2048 is accepted"):
        ledger(max_model_len=4096)


def test_the_workspace_covers_activations_and_logits():
    config = EngineConfig.from_kwargs("m")
    found = workspace_bytes(MODEL, config, "bfloat16")
    assert found >= 2048 * 2 * 5632 * 2 + 256 * 32000 * 4
    assert found < 4 * GIB


def test_the_description_names_all_parts():
    text = ledger().describe()
    for part in ("weights 2.00 GiB", "KV cache", "blocks of 16", "workspace", "longest sequence 2048"):
        assert part in text
    assert "huge pages" not in text
    assert "weights 2.00 GiB (37% in huge pages), KV cache" in replace(ledger(), huge_pages=0.37).describe()


@pytest.mark.parametrize(("limit", "expected"), [("1000000", 800000), ("max", None), ("150000", 0)])
def test_a_control_group_limits_free_memory_but_files_in_its_cache_do_not_count(tmp_path, monkeypatch, limit, expected):
    (tmp_path / "max").write_text(limit + "\n")
    (tmp_path / "current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\ninactive_file 150000\nactive_file 50000\nslab 7\n")
    monkeypatch.setattr(memory, "_CGROUPS", ((str(tmp_path), "max", "current"),))
    found = free_memory()
    assert found > GIB // 4 if expected is None else found == expected
