"""Adapters on disk: what is read, and one clear line for everything that is damaged, hostile or not supported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

from octavo.errors import ModelError
from octavo.weights.peft import read_adapter
from octavo.weights.peft_config import read_adapter_config

BASE = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
Q = "model.layers.0.self_attn.q_proj"
NAMES = [
    f"model.layers.{i}.{part}"
    for i in (0, 1, 10)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.qq_proj", "mlp.up_proj", "mlp.experts.3.up_proj")
] + ["lm_head", "q_proj"]


def write(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**BASE, **config}))
    pair = {
        f"base_model.model.{Q}.lora_{part}.weight": torch.ones(shape) for part, shape in (("A", (4, 6)), ("B", (10, 4)))
    }
    save_file({**pair, **(tensors or {})}, folder / "adapter_model.safetensors")
    return folder


def config_of(folder: Path, **config: Any) -> Any:
    return read_adapter_config(write(folder, **config))


def test_a_module_has_its_tensors_rank_and_scale(tmp_path: Path) -> None:
    adapter = read_adapter(write(tmp_path))
    [module] = adapter.modules
    assert (module.name, module.a.shape, module.b.shape, module.scale) == (Q, (4, 6), (10, 4), 2.0)
    assert adapter.rank == 4
    assert torch.equal(module.a.read(torch.float32), torch.ones(4, 6))


def test_names_without_pefts_prefix_are_understood(tmp_path: Path) -> None:
    folder = write(tmp_path)
    save_file(
        {f"{Q}.lora_A.weight": torch.ones(4, 6), f"{Q}.lora_B.weight": torch.ones(10, 4)},
        folder / "adapter_model.safetensors",
    )
    assert [module.name for module in read_adapter(folder).modules] == [Q]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ["up_proj"], "layers_to_transform": [0, 10]},
        {"target_modules": ["up_proj", "model.layers.1.self_attn.q_proj"], "layers_to_transform": 1},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["up_proj"], "layers_to_transform": [3], "layers_pattern": ["experts", "layers"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["experts.3.up_proj", "q_proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
    ],
    ids=str,
)
def test_which_modules_are_meant_is_pefts_rule(options: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig

    ours, theirs = config_of(tmp_path, **options), LoraConfig(**{**BASE, **options, "peft_type": None})
    for name in NAMES:
        assert ours.wants(name) == (check_target_module_exists(theirs, name) is True), name


PATTERNS = [
    {"q_proj": 2},
    {"^model.layers.1.self_attn.q_proj": 3},
    {"self_attn.q_proj": 5, "q_proj": 7},
    {".*1.*proj": 2},
    {"q": 3},
    {r".*\.(q|k|v|o|up)_proj": 3},
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_ranks_and_scales_by_pattern_are_pefts(pattern: dict[str, int], tmp_path: Path) -> None:
    config = config_of(tmp_path, rank_pattern=pattern, alpha_pattern={k: v + 1 for k, v in pattern.items()})
    stabilised = config_of(tmp_path, rank_pattern=pattern, alpha_pattern={}, use_rslora=True)
    for name in NAMES:
        rank = pattern.get(get_pattern_key(list(pattern), name), 4)
        alpha = {k: v + 1 for k, v in pattern.items()}.get(get_pattern_key(list(pattern), name), 8)
        assert (config.rank_of(name), config.scale_of(name)) == (rank, alpha / rank)
        assert stabilised.scale_of(name) == 8 / math.sqrt(rank)


REFUSED = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'; accepted: LORA"),
    ({"bias": "all"}, "bias='all' is not supported; accepted: none"),
    ({"modules_to_save": ["lm_head"]}, "'modules_to_save' is .*, which is not supported"),
    ({"use_dora": True}, "'use_dora' is True, which is not supported"),
    ({"lora_bias": True}, "'lora_bias' is True, which is not supported"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' is not supported"),
    ({"layer_replication": [[0, 2]]}, "'layer_replication' is .*, which is not supported"),
    ({"trainable_token_indices": [1]}, "'trainable_token_indices' is .*, which is not supported"),
    ({"use_something_new": 3}, "'use_something_new' is 3, which is not supported"),
    ({"r": 0}, "cannot be used"),
    ({"r": "8"}, "cannot be used"),
    ({"lora_alpha": -1}, "cannot be used"),
    ({"lora_alpha": 1e999}, "cannot be used"),
    ({"target_modules": 5}, "cannot be used"),
    ({"target_modules": None}, "target_modules"),
    ({"rank_pattern": {"(a": 3}}, "the pattern .* cannot be used"),
    ({"alpha_pattern": {"(a+)+$": 3}}, "is not supported; accepted: names, and patterns"),
    ({"alpha_pattern": {"(.*.*.*)x": 3}}, "is not supported; accepted: names, and patterns"),
    ({"rank_pattern": {"a?" * 30 + "a" * 30: 3}}, "is not supported; accepted: names, and patterns"),
    ({"rank_pattern": {"(a|aa)" * 30 + "b": 3}}, "is not supported; accepted: names, and patterns"),
    ({"rank_pattern": {"a{1,30}": 3}}, "is not supported; accepted: names, and patterns"),
    ({"rank_pattern": {f"x{i}": 2 for i in range(1025)}}, "has 1025 patterns; at most 1024 are accepted"),
    ({"rank_pattern": {f"x{i}": 2 for i in range(1000)} | {f"x{i}.*": 2 for i in range(17)}}, "has 17 patterns with"),
    ({"layers_pattern": ["x"] * 1025}, "has 1025 patterns"),
    ({"layers_to_transform": 0, "layers_pattern": "x)|(?:a"}, "the pattern .* cannot be used"),
    ({"layers_to_transform": 1, "layers_pattern": "x|(layers)"}, "q_proj is not among the modules"),
    ({"layers_pattern": "(l+)+"}, "is not supported; accepted: names, and patterns"),
    ({"target_modules": ["k_proj"]}, "q_proj is not among the modules that adapter_config.json names"),
    ({"r": 8}, r"lora_A \[4, 6\] and lora_B \[10, 4\]; expected: \[8, in\] and \[out, 8\]"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as error:
        read_adapter(write(tmp_path, **config))
    assert "\n" not in str(error.value)


BAD_TENSORS = [
    ({"base_model.model.lm_head.lora_A.weight": torch.ones(4, 6)}, "lm_head has no lora_B"),
    ({f"base_model.model.{Q.replace('q', 'v')}.lora_B.weight": torch.ones(4, 6)}, "v_proj has no lora_A"),
    ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 6)}, "an adapter of an embedding"),
    ({f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(4)}, "DoRA"),
    ({f"base_model.model.{Q}.lora_B.bias": torch.ones(4)}, "a bias"),
    ({f"base_model.model.{Q}.weight": torch.ones(4)}, "not known"),
    ({f"{Q}.lora_A.weight": torch.ones(4, 6)}, "q_proj has two lora_A"),
    ({f"base_model.model.{Q}.lora_A.weight": torch.ones(6)}, r"lora_A \[6\]"),
    ({f"base_model.model.{Q}.lora_B.weight": torch.ones(10, 3)}, r"lora_B \[10, 3\]"),
]


@pytest.mark.parametrize(("tensors", "message"), BAD_TENSORS, ids=lambda value: str(value)[:60])
def test_wrong_tensors_are_refused_by_name(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_adapter(write(tmp_path, tensors))


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder; a LoRA adapter in PEFT's format was expected"):
        read_adapter(tmp_path / "nothing")
    with pytest.raises(ModelError, match="cannot be read: File name too long"):
        read_adapter(tmp_path / ("a" * 5000))
    folder = write(tmp_path / "adapter")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    for content in (b"", b"x" * 9, whole[:-4], whole[:40]):
        (folder / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(ModelError):
            read_adapter(folder)
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="has no tensors"):
        read_adapter(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"is a pickle, which may run code; accepted: adapter_model\.safetensors"):
        read_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match="cannot be used"):
        read_adapter(folder)


def test_slow_patterns_for_many_tensors_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, rank_pattern={"[a.]?" * 6 + "[a.]*[a.]*b": 3})
    assert read_adapter(folder).rank == 4
    monkeypatch.setattr("octavo.weights.peft.MAX_SECONDS", 0.0)
    with pytest.raises(ModelError, match="take too long to compare with its tensors"):
        read_adapter(folder)


def test_a_hostile_pattern_for_whole_names_takes_no_time(tmp_path: Path) -> None:
    """It is not searched for: the tensors say which modules there are."""
    assert read_adapter(write(tmp_path, target_modules="((a|.)*)*x")).rank == 4
