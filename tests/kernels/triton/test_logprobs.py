"""Log-probabilities on the device against float64 and the reference's order of tokens."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.reference import sampling as reference
from octavo.kernels.triton.logprobs import gather_logprobs


def logits_of(kind, rows, vocab, device):
    noise = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1))
    return (noise * 6 if kind == "peaked" else (noise * 2).round()).to(device)


@pytest.mark.parametrize("kind", ["peaked", "ties"])
@pytest.mark.parametrize("k", [0, 3, 20])
def test_logprobs_equal_the_references(device, kind, k):
    vocab = 8200 if device == "cpu" else 151_936
    logits = logits_of(kind, 4, vocab, device)
    logits[2, :8192] = -torch.inf
    chosen = torch.tensor([0, vocab - 1, 8195, int(logits[3].argmax())], device=device)
    found = gather_logprobs(logits, chosen, k)
    exact = torch.log_softmax(logits.double(), 1)
    wanted = reference.gather_logprobs(logits.cpu(), chosen.cpu(), k)
    torch.testing.assert_close(found.chosen.double(), exact[range(4), chosen], rtol=1e-5, atol=1e-5)
    assert found.rank.tolist() == wanted.rank.tolist()
    assert found.top_ids.tolist() == wanted.top_ids.tolist()
    torch.testing.assert_close(found.top.double(), exact.gather(1, found.top_ids), rtol=1e-5, atol=1e-5)


def test_a_row_is_bitwise_the_same_alone(device):
    logits = logits_of("peaked", 5, 9000, device)
    chosen = torch.tensor([5, 6, 7, 8, 8999], device=device)
    together = gather_logprobs(logits, chosen, 2)
    alone = gather_logprobs(logits[3:4], chosen[3:4], 2)
    assert torch.equal(together.chosen[3:4], alone.chosen)
    assert torch.equal(together.top[3:4], alone.top)


def test_more_than_the_vocabulary_and_no_rows(device):
    logits = logits_of("ties", 2, 50, device)
    assert gather_logprobs(logits, torch.tensor([1, 2], device=device), 1000).top_ids.shape == (2, 50)
    empty = gather_logprobs(logits[:0], torch.zeros(0, dtype=torch.int64, device=device), 4)
    assert (empty.chosen.shape, empty.top.shape) == ((0,), (0, 4))
