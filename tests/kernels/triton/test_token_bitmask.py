"""The kernel that bans tokens by bits, against the reference and against plain Python."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton.ops import TritonOps


def bits_of(allowed, num_words):
    """int32 words whose bits are the truth values ``allowed``."""
    words = []
    for word in range(num_words):
        value = sum(bit << i for i, bit in enumerate(allowed[32 * word : 32 * word + 32]))
        words.append(value - 2**32 if value >= 2**31 else value)
    return words


def case(seed, num_rows, rows, vocab, share):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab, generator=generator)
    allowed = torch.rand(len(rows), vocab, generator=generator) < share
    words = torch.tensor([bits_of(row.tolist(), -(-vocab // 32)) for row in allowed], dtype=torch.int32)
    return logits, torch.tensor(rows, dtype=torch.int64), words.view(len(rows), -1), allowed


SHAPES = [(1, [0], 1), (3, [2, 0], 33), (4, [1, 3], 2048), (5, [4], 5003)]


@pytest.mark.parametrize(("num_rows", "rows", "vocab"), SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.97])
def test_exactly_the_tokens_without_a_bit_are_banned(device, num_rows, rows, vocab, share):
    logits, where, words, allowed = case(vocab, num_rows, rows, vocab, share)
    expected = logits.clone()
    for row, keep in zip(rows, allowed, strict=True):
        expected[row, ~keep] = -torch.inf
    for ops, place in ((ReferenceOps(), "cpu"), (CpuOps(), "cpu"), (TritonOps(), device)):
        found = logits.clone().to(place)
        ops.apply_token_bitmask(found, where.to(place), words.to(place))
        assert torch.equal(found.cpu(), expected)


def test_rows_of_a_wider_tensor_and_of_none(device):
    logits, where, words, allowed = case(7, 3, [1], 100, 0.5)
    wide = torch.full((3, 160), 7.0, device=device)
    wide[:, :100] = logits.to(device)
    TritonOps().apply_token_bitmask(wide[:, :100], where.to(device), words.to(device))
    assert (wide[:, 100:] == 7).all()
    assert torch.equal(wide[1, :100].cpu().isfinite(), allowed[0])
    assert torch.equal(wide[[0, 2], :100].cpu(), logits[[0, 2]])
    TritonOps().apply_token_bitmask(wide, where[:0].to(device), words[:0].to(device))


def test_bits_beyond_the_vocabulary_change_nothing(device):
    for ops, place in ((ReferenceOps(), "cpu"), (TritonOps(), device)):
        memory = torch.zeros(2, 64, device=place)
        nothing = torch.zeros(1, 2, dtype=torch.int32, device=place)
        ops.apply_token_bitmask(memory[:, :33], torch.tensor([0], device=place), nothing)
        assert memory.isinf().sum() == 33
        assert memory[0, :33].isinf().all()
