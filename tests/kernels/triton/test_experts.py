"""Mixtures of experts: routing against torch, products against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.kernels.triton import experts as kernel
from octavo.kernels.triton import quantized_words
from octavo.kernels.triton.experts import choose, experts, stages
from octavo.kernels.triton.routing import assign, top_experts

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # the interpreter's numpy
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
GPU = [(1, 2048, 768, 128, 8), (300, 2048, 768, 128, 8), (2000, 512, 1024, 8, 2)]
SHAPES = [
    (1, 40, 24, 5, 2),
    (7, 33, 20, 3, 3),
    (40, 16, 17, 2, 1),
    *(pytest.param(*s, marks=pytest.mark.gpu) for s in GPU),
]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("tokens", "count", "k"), [(1, 1, 1), (9, 7, 3), (4, 128, 8), (0, 4, 2)])
def test_the_likeliest_experts(device, dtype, tokens, count, k, normalise):
    logits = randn(tokens, count, seed=count).to(device, dtype) * 3
    weights, ids = top_experts(logits, k, normalise=normalise)
    expected, order = logits.double().softmax(-1).topk(k)
    expected = expected / expected.sum(-1, keepdim=True) if normalise else expected
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)
    # Equally likely experts may come in another order.
    torch.testing.assert_close(logits.gather(1, ids), logits.gather(1, order), rtol=0, atol=0)
    assert all(len(set(row)) == k for row in ids.tolist())


def test_each_choice_is_in_its_experts_list_once(device):
    ids = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i))[:2] for i in range(300)])
    counts, lists = assign(ids.to(device), 7)
    flat = ids.flatten()
    for expert in range(7):
        mine = lists[expert, : counts[expert]].tolist()
        assert sorted(mine) == (flat == expert).nonzero().flatten().tolist()


def reference(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t in range(len(x)):
        for p, e in zip(weights[t].double(), ids[t].tolist(), strict=True):
            gate, up = (gate_up[e].double() @ x[t].double()).chunk(2)
            out[t] += p * (down[e].double() @ (gate / (1 + torch.exp(-gate)) * up))
    return out


def run(args: list[Tensor], device: str = "cpu", cut_for: int | None = None) -> Tensor:
    """The kernels, with the experts' matrices one above the other."""
    x, gate_up, down, weights, ids = (arg.to(device) for arg in args)
    return experts(x, gate_up.flatten(0, 1), down.flatten(0, 1), weights, ids, cut_for)


def case(tokens: int, hidden: int, size: int, count: int, k: int, dtype: torch.dtype) -> list[Tensor]:
    weights, ids = randn(tokens, count, seed=4).softmax(-1).topk(k)
    gate_up = randn(count, 2 * size, hidden, seed=1) / hidden**0.5
    down = randn(count, hidden, size, seed=2) / size**0.5
    return [randn(tokens, hidden, seed=3).to(dtype), gate_up.to(dtype), down.to(dtype), weights, ids]


@pytest.mark.parametrize(("tokens", "hidden", "size", "count", "k"), SHAPES)
def test_each_token_through_its_experts(device, dtype, tokens, hidden, size, count, k):
    args = case(tokens, hidden, size, count, k, dtype)
    expected = reference(*args)
    for cut_for in (None, 16 * count, 10**6):
        found = run(args, device, cut_for).cpu()
        assert found.dtype is dtype
        assert (found.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def test_all_tokens_to_one_expert_and_pieces(device, monkeypatch):
    args = case(37, 24, 20, 4, 2, torch.float32)
    args[4] = torch.tensor([[3, 1]] * 37)
    monkeypatch.setattr(kernel, "MAX_TOKENS", 10)
    torch.testing.assert_close(run(args, device).double().cpu(), reference(*args), rtol=1e-4, atol=1e-5)


def test_a_tokens_bits_do_not_depend_on_the_others(device, dtype):
    args = [arg.to(device) for arg in case(40, 48, 20, 3, 2, dtype)]
    together = run(args, device, 10**6)
    for rows in ([3], [39, 0, 7], list(range(20))):
        some = [args[0][rows], args[1], args[2], args[3][rows], args[4][rows]]
        assert torch.equal(run(some, device, 10**6), together[rows])


def test_no_tokens(device, dtype):
    args = [arg.to(device) for arg in case(2, 16, 8, 3, 2, dtype)]
    assert run([args[0][:0], args[1], args[2], args[3][:0], args[4][:0]], device).shape == (0, 16)


@pytest.mark.parametrize("choices", [1, 16 * 8, 10**6])
def test_tiles_fit_into_the_smallest_gpus(dtypes, choices, monkeypatch):
    monkeypatch.setattr(quantized_words, "_shared_memory", lambda index: 99 << 10)
    for dtype in dtypes:
        tile = choose(choices, 8, dtype)
        count = stages(tile, dtype.itemsize, 2, torch.device("cuda", 0))
        assert 1 <= count <= tile.num_stages
        assert (tile.tokens + 2 * tile.outputs) * tile.depth * dtype.itemsize * count <= 99 << 10
