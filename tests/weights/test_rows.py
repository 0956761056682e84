"""Some rows of a tensor are those of the whole, whatever the file's format, and are read without the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import helpers_quantized as by
from helpers_gguf import write_gguf, write_llama
from helpers_llama2c import write_llama2c
from helpers_models import make_tiny
from octavo.kernels.packed import Fp8Weight
from octavo.models.tensors import NamedTensor, Part
from octavo.weights.checkpoint import Checkpoint
from octavo.weights.gguf import GGUFTensor
from octavo.weights.gguf_file import GGUFFile
from octavo.weights.open import open_checkpoint

FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [32, 32]}


def make(kind: str, folder: Path) -> Checkpoint:
    match kind.split("-"):
        case ["safetensors"]:
            return open_checkpoint(make_tiny("llama", folder)[1])
        case ["gguf", block]:
            return open_checkpoint(write_llama(folder / "a.gguf", block)[0])
        case ["llama2c", version, *group]:
            model, _ = make_tiny("llama", folder)
            write_llama2c(folder / "a.bin", model, int(version), **({"group_size": int(group[0])} if group else {}))
            return open_checkpoint(folder / "a.bin")
        case ["awq"]:
            by.write_quantized(folder, by.awq(32), {"quant_method": "awq", "bits": 4, "group_size": 32})
        case ["gptq"]:
            by.write_quantized(folder, by.gptq(act_order=True), {"quant_method": "gptq", "bits": 4, "group_size": 32})
        case ["fp8"]:
            by.write_quantized(folder, by.fp8("block", scale="weight_scale_inv"), FP8_BLOCKS)
    return open_checkpoint(folder)


KINDS = ("safetensors", "gguf-F32", "gguf-Q4_0", "llama2c-0", "llama2c-2-16", "llama2c-2-8", "awq", "gptq", "fp8")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_whole(kind: str, tmp_path: Path) -> None:
    for tensor in make(kind, tmp_path).tensors():
        whole = tensor.read(torch.float32).clone()
        for rows in (slice(0, 1), slice(3, 8), slice(5, None), slice(0, 0), slice(1, 1000)):
            assert torch.equal(tensor.read(torch.float32, rows), whole[rows]), (tensor.name, rows)
            tensor.release(rows)
        assert torch.equal(tensor.read(torch.bfloat16, slice(2, 9)), whole[2:9].bfloat16())
        tensor.release()
        assert torch.equal(tensor.read(torch.float32), whole)


def test_a_vector_of_blocks_has_no_rows_of_bytes(tmp_path: Path) -> None:
    """A norm of 32 numbers in one block of Q4_0: found by the fuzzer."""
    tensors = {"output_norm.weight": (np.linspace(-1, 1, 32, dtype=np.float32), "Q4_0")}
    file = GGUFFile(write_gguf(tmp_path / "a.gguf", {}, tensors))
    tensor = GGUFTensor("norm.weight", file, file.tensors["output_norm.weight"])
    assert torch.equal(tensor.read(torch.float32, slice(3, 7)), tensor.read(torch.float32)[3:7])


def test_blocks_of_scales_are_cut_between_them(tmp_path: Path) -> None:
    """Rows 30 to 40 are in two blocks of 32, neither of which is whole."""
    tensors = {tensor.name: tensor for tensor in make("fp8", tmp_path).tensors()}
    tensor = tensors["model.layers.0.mlp.up_proj.weight"]
    assert isinstance(tensor.packed(), Fp8Weight)
    assert torch.equal(tensor.read(torch.float32, slice(30, 40)), tensor.read(torch.float32)[30:40])


class Counted:
    """A tensor that remembers which rows were asked for and let go."""

    packed_kind = None

    def __init__(self, values: torch.Tensor) -> None:
        self.name, self.shape, self.nbytes = "x.weight", tuple(values.shape), values.nbytes
        self.values = values
        self.asked: list[slice] = []
        self.released: list[slice] = []

    def read(self, dtype: torch.dtype, rows: slice = slice(None)) -> torch.Tensor:
        self.asked.append(rows)
        return self.values[rows].to(dtype)

    def packed(self) -> None:
        return None

    def release(self, rows: slice = slice(None)) -> None:
        self.released.append(rows)


@pytest.mark.parametrize(
    ("rows", "transposed", "asked"),
    [
        (slice(4, 16), False, slice(6, 9)),
        (slice(None), False, slice(2, 5)),
        ([3, 2, 1, 0, 7, 6, 5, 4], False, slice(0, 8)),
        (slice(None), True, slice(None)),
    ],
)
def test_rows_of_a_part(rows: slice | list[int], transposed: bool, asked: slice) -> None:
    whole = Counted(torch.arange(16 * 16.0).view(16, 16))
    part: NamedTensor = Part("part", whole, rows, transposed)
    assert torch.equal(part.read(torch.float32, slice(2, 5)), part.read(torch.float32)[2:5])
    assert whole.asked[0] == asked
    part.release(slice(2, 5))
    assert whole.released == ([asked] if isinstance(rows, slice) and not transposed else [])
    part.release()
    assert whole.released[-1] == slice(None)
