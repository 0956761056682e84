"""EOS ids from several files, and what the makers suggest for sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers_hf import TINY, write_json
from octavo.errors import ModelError
from octavo.sampling_params import SamplingParams
from octavo.weights.checkpoint import GenerationDefaults
from octavo.weights.hf_config import read_config


def write(folder: Path, **files: Any) -> Path:
    """``files``: config, generation_config, … without their ``.json``."""
    for name, value in {"config": TINY, **files}.items():
        write_json(folder / f"{name}.json", value)
    return folder


def test_eos_ids_of_all_files_are_joined_in_order_and_once(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        config=TINY | {"eos_token_id": 7},
        generation_config={"eos_token_id": [9, 7, 8]},
        tokenizer_config={
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {"11": {"content": "<|im_end|>"}},
        },
    )
    assert read_config(folder)[0].eos_token_ids == (7, 9, 8, 11)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(7, 7, (7,)), ([7, 8], None, (7, 8)), (None, 5, (5,)), (None, [], ()), ([], [4, 4], (4,))],
)
def test_each_source_may_be_a_number_a_list_or_null(
    tmp_path: Path, config: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    folder = write(tmp_path, config=TINY | {"eos_token_id": config}, generation_config={"eos_token_id": generation})
    assert read_config(folder)[0].eos_token_ids == expected


def test_the_tokenizers_eos_is_found_in_tokenizer_json_too(tmp_path: Path) -> None:
    added = [{"id": 3, "content": "<s>"}, {"id": 13, "content": "</s>", "special": True}]
    folder = write(
        tmp_path,
        config=TINY | {"eos_token_id": None},
        tokenizer_config={"eos_token": {"__type": "AddedToken", "content": "</s>"}},
        tokenizer={"version": "1.0", "added_tokens": added, "model": {"vocab": {"a": 0}}},
    )
    assert read_config(folder)[0].eos_token_ids == (13,)


@pytest.mark.parametrize("config", [{}, {"eos_token": None}, {"eos_token": "</s>"}, {"added_tokens_decoder": None}])
def test_a_tokenizer_that_does_not_tell_adds_none(tmp_path: Path, config: Any) -> None:
    folder = write(tmp_path, config=TINY | {"eos_token_id": 7}, tokenizer_config=config)
    assert read_config(folder)[0].eos_token_ids == (7,)


def test_generation_defaults(tmp_path: Path) -> None:
    said = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05}
    folder = write(tmp_path, generation_config=said | {"do_sample": True, "transformers_version": "4.51.0"})
    assert read_config(folder)[1] == GenerationDefaults(**said)


def test_no_file_suggests_nothing(tmp_path: Path) -> None:
    assert read_config(write(tmp_path))[1] == GenerationDefaults()


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_p": 0},
        {"top_k": 1.5},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"eos_token_id": {}},
        [],
    ],
    ids=str,
)
def test_values_that_sampling_would_refuse_are_refused_at_once(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(ModelError, match="generation_config") as caught:
        read_config(write(tmp_path, generation_config=bad))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("edge", [{"temperature": 0, "top_k": -1, "top_p": 1, "min_p": 1, "repetition_penalty": 100}])
def test_values_that_are_accepted_are_accepted_by_sampling(tmp_path: Path, edge: dict[str, Any]) -> None:
    defaults = read_config(write(tmp_path, generation_config=edge))[1]
    assert SamplingParams(**{name: getattr(defaults, name) for name in edge}).greedy


@pytest.mark.parametrize("bad", [{"added_tokens_decoder": [1]}, {"eos_token": 5}, "text"], ids=str)
def test_a_damaged_tokenizer_config_is_refused(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(ModelError, match="tokenizer_config"):
        read_config(write(tmp_path, tokenizer_config=bad))
