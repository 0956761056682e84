"""Embedding against indexing."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.triton.embedding import embedding


@pytest.mark.parametrize("hidden", [8, 576, 1024, 1500])
@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32])
def test_rows_are_copied_bit_by_bit(device, dtype, hidden, ids_dtype):
    weight = torch.randn(50, hidden, device=device).to(dtype)
    ids = torch.tensor([49, 0, 7, 7, 1], device=device)
    assert torch.equal(embedding(ids.to(ids_dtype), weight), weight[ids])


def test_no_ids_give_no_rows(device, dtype):
    weight = torch.randn(3, 4, device=device).to(dtype)
    assert embedding(torch.zeros(0, dtype=torch.int64, device=device), weight).shape == (0, 4)


def test_an_id_outside_the_table_gives_nan(device):
    weight = torch.randn(6, 16, device=device)
    found = embedding(torch.tensor([2, 3, -1, 1 << 40], device=device), weight[:3])
    assert torch.equal(found[0], weight[2])
    assert found[1:].isnan().all()


@pytest.mark.gpu
def test_a_table_of_more_than_two_to_the_31_numbers(device):
    weight = torch.randn(1, 16384, device=device, dtype=torch.bfloat16).expand(140_000, -1).contiguous()
    weight[139_999] += 1
    ids = torch.tensor([139_999, 5], device=device)
    assert torch.equal(embedding(ids, weight), weight[ids])
