"""Which reader opens what."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from helpers_hf import TINY, write_folder, write_json
from octavo.errors import ModelError
from octavo.weights import open_checkpoint
from octavo.weights.gguf import GGUFCheckpoint
from octavo.weights.safetensors import SafetensorsCheckpoint


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, shape in {
        "token_embd": (10, 8),
        "output_norm": (8,),
        "blk.0.attn_norm": (8,),
        "blk.0.ffn_norm": (8,),
        "blk.0.attn_q": (8, 8),
        "blk.0.attn_k": (8, 8),
        "blk.0.attn_v": (8, 8),
        "blk.0.attn_output": (8, 8),
        "blk.0.ffn_gate": (16, 8),
        "blk.0.ffn_up": (16, 8),
        "blk.0.ffn_down": (8, 16),
    }.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_folder_with_safetensors(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path / "m"))
    assert isinstance(checkpoint, SafetensorsCheckpoint)
    assert checkpoint.path == tmp_path / "m"


def test_a_gguf_file_by_its_content_not_its_name(tmp_path: Path, gguf: Path) -> None:
    shutil.copy(gguf, tmp_path / "renamed.dat")
    for path in (gguf, str(gguf), tmp_path / "renamed.dat"):
        checkpoint = open_checkpoint(path)
        assert isinstance(checkpoint, GGUFCheckpoint)
        assert checkpoint.config.vocab_size == 10


def test_a_folder_with_one_gguf_even_beside_a_config(tmp_path: Path, gguf: Path) -> None:
    assert isinstance(open_checkpoint(tmp_path), GGUFCheckpoint)
    write_json(tmp_path / "config.json", TINY)
    assert isinstance(open_checkpoint(tmp_path), GGUFCheckpoint)


def test_safetensors_win_over_gguf(tmp_path: Path, gguf: Path) -> None:
    assert isinstance(open_checkpoint(write_folder(tmp_path)), SafetensorsCheckpoint)


def test_of_several_ggufs_one_must_be_chosen(tmp_path: Path, gguf: Path) -> None:
    shutil.copy(gguf, tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"2 \.gguf files; accepted: the path of one of other\.gguf, tiny\.gguf"):
        open_checkpoint(tmp_path)


def test_a_config_alone_is_enough_for_random_weights(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", TINY)
    assert open_checkpoint(tmp_path, weights=False).config.hidden_size == 64
    with pytest.raises(ModelError, match="no weights"):
        open_checkpoint(tmp_path)


def test_one_file_of_a_folder_points_to_its_folder(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pytest.raises(ModelError, match="accepted: its folder"):
        open_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("data", [b"", b"GG", b"\x10\0\0\0" * 7, b"#!/bin/sh\n"])
def test_other_files_are_refused_with_what_is_accepted(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "stories.bin").write_bytes(data)
    with pytest.raises(ModelError, match=r"accepted: a \.gguf file, .* or a folder with config\.json"):
        open_checkpoint(tmp_path / "stories.bin")


def test_what_does_not_exist_or_is_empty(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(ModelError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
