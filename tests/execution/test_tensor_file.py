"""Files of tensors: what was written comes back, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.execution import tensor_file
from octavo.execution.tensor_file import DamagedError, open_tensors, write_tensors

INFO = {"a": [1, None, "é"]}


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(3, 5, generator=generator),
        torch.randn(40, 33, generator=generator).bfloat16(),
        torch.empty(0, 4, dtype=torch.int8),
        torch.randint(0, 255, (1000,), dtype=torch.uint8, generator=generator),
        torch.randn(6, 4, generator=generator).T,
        torch.randn(8, generator=generator).to(torch.float8_e4m3fn),
        torch.tensor(7, dtype=torch.int32),
    ]


@pytest.fixture(params=[256, 1 << 24])
def path(tmp_path, monkeypatch, request) -> Path:
    """With chunks smaller than the tensors, and larger."""
    monkeypatch.setattr(tensor_file, "CHUNK", request.param)
    path = tmp_path / "some"
    with path.open("wb") as file:
        write_tensors(file, tensors(), INFO)
    return path


@pytest.mark.parametrize("mapped", [True, False])
def test_what_was_written_comes_back(path, monkeypatch, mapped):
    monkeypatch.setattr(tensor_file, "huge_pages_enabled", lambda: not mapped)
    found = open_tensors(path, threads=2)
    assert found.info == INFO
    assert len(found.tensors) == len(tensors())
    for there, written in zip(found.tensors, tensors(), strict=True):
        assert (there.dtype, there.shape) == (written.dtype, written.shape)
        assert torch.equal(there.float(), written.float())
        assert there.data_ptr() % tensor_file.ALIGNMENT == 0


def test_it_stays_as_it_was_when_the_name_goes(path, monkeypatch):
    monkeypatch.setattr(tensor_file, "huge_pages_enabled", lambda: False)
    found = open_tensors(path, threads=1)
    path.unlink()
    assert torch.equal(found.tensors[0], tensors()[0])


def test_every_single_byte_counts(path):
    whole = path.read_bytes()
    for at in range(0, len(whole), 41):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedError):
            open_tensors(path, threads=1)


@pytest.mark.parametrize("size", [0, 1, 39, 40, 500])
def test_a_file_that_is_cut_off(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedError):
        open_tensors(path, threads=1)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_tensors(tmp_path / "none", threads=1)
