"""llama2.c's checkpoints against transformers on the same weights, through a writer of the published layout."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers_llama2c import header, plain, write_llama2c
from helpers_models import TINY, PagedDriver, make_tiny
from octavo.errors import ModelError
from octavo.kernels import for_device
from octavo.layers.build import Build
from octavo.models.loading import load_weights
from octavo.models.registry import build_model
from octavo.weights.llama2c import Llama2cCheckpoint, is_llama2c
from octavo.weights.open import open_checkpoint

TOKENS = [1, 5, 130, 7, 7, 64, 2, 99, 12, 31, 8]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


def write(path: Path, name: str = "llama", version: int = 1, **options: Any) -> tuple[Any, dict[str, Any]]:
    model, _ = make_tiny(name, path.parent)
    return model, write_llama2c(path, model, version, **options)


def logits(path: Path) -> torch.Tensor:
    checkpoint = open_checkpoint(path)
    model = build_model(checkpoint.config, Build(for_device("cpu")), 64)
    load_weights(model, checkpoint.tensors())
    return PagedDriver(model).step({0: TOKENS})[0]


@pytest.mark.parametrize("name", ["llama", "llama-mha", "llama-tied"])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_logits_are_transformers(path: Path, name: str, version: int) -> None:
    model, state = write(path, name, version)
    model.load_state_dict(plain(state))
    with torch.inference_mode():
        expected = model(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(logits(path), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("group_size", "packs"), [(16, {"q_proj", "down_proj"}), (12, {"q_proj", "down_proj"}), (8, {"q_proj"})]
)
def test_int8_groups_stay_packed(path: Path, group_size: int, packs: set[str]) -> None:
    """A group that reaches over the end of a row (84 is no multiple of 8 or 16) can only be expanded."""
    _, state = write(path, version=2, group_size=group_size)
    kept = set()
    for tensor in Llama2cCheckpoint.open(path).tensors():
        torch.testing.assert_close(tensor.read(torch.float32), torch.from_numpy(state[tensor.name]), atol=0, rtol=0)
        assert tensor.packed_kind == (None if tensor.packed() is None else "int8")
        if (packed := tensor.packed()) is not None:
            kept.add(tensor.name.split(".")[-2])
            values = packed.values.unflatten(1, (packed.scales.shape[1], -1)) * packed.scales[..., None]
            assert packed.group == group_size
            assert np.array_equal(values.flatten(1).numpy(), state[tensor.name])
    assert {name for name in kept if name in packs | {"down_proj"}} == ({"q_proj"} if 84 % group_size else packs)


def test_what_the_header_says(path: Path) -> None:
    write(path, "llama-tied", 0)
    config = Llama2cCheckpoint.open(path).config
    theirs = TINY["llama-tied"]
    assert (config.hidden_size, config.vocab_size, config.num_kv_heads) == (48, 131, 1)
    assert (config.max_position_embeddings, config.tie_word_embeddings) == (theirs.max_position_embeddings, True)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2, 1))


def test_a_folder_with_one_checkpoint_is_that(path: Path) -> None:
    write(path)
    (path.parent / "tokenizer.bin").write_bytes(struct.pack("<ifi", 1, 0.0, 1) + b"a")
    assert open_checkpoint(path.parent).path == path


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("change", [-1, -1000, 4])
def test_another_length_is_refused(path: Path, version: int, change: int) -> None:
    write(path, version=version)
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(
        ModelError, match=rf"model.bin has {len(data) + change} bytes; its header stands for {len(data)}"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize("version", [-1, 0, 3, 2**31 - 1])
def test_an_unknown_version_is_refused(path: Path, version: int) -> None:
    path.write_bytes(b"24ka" + struct.pack("<i", version) + bytes(500))
    with pytest.raises(ModelError, match=rf"version {version}; accepted: 0, 1, 2"):
        open_checkpoint(path)


@pytest.mark.parametrize("field", range(7))
@pytest.mark.parametrize("value", [0, -5, 2**31 - 1])
def test_a_senseless_header_is_refused(path: Path, field: int, value: int) -> None:
    numbers = list(struct.unpack("<7i", header(TINY["llama"], 1, False, 0)[8:36]))
    numbers[field] = value
    path.write_bytes(struct.pack("<Ii7iB", 0x616B3432, 1, *numbers, 0).ljust(256, b"\0"))
    with pytest.raises(ModelError) as error:
        open_checkpoint(path)
    assert "makes no sense" in str(error.value)
    assert "\n" not in str(error.value)


def test_groups_that_do_not_come_out_even(path: Path) -> None:
    path.write_bytes(header(TINY["llama"], 2, False, 7))
    with pytest.raises(ModelError, match=r"groups of 7 do not divide the 6288 numbers of model.embed_tokens.weight"):
        open_checkpoint(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(60), b"\x80\x02\x8a\x0a" + bytes(60), bytes(300), b"24k"])
def test_other_files_are_none(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert not is_llama2c(path)
    with pytest.raises(ModelError, match=r"accepted: a .gguf file, a .bin file of llama2.c"):
        open_checkpoint(path)
