"""The C kernel of sampling: against the reference, the textbook, and itself in other batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers_native import spied
from octavo.kernels.cpu.build import load_library
from octavo.kernels.cpu.native import Native
from octavo.kernels.reference.random_numbers import uniform
from octavo.kernels.reference.sample_rows import sample_rows
from octavo.kernels.sampling import PARAM_WORDS, PARAMS, LastTokens, Sampled

pytestmark = pytest.mark.skipif(load_library() is None, reason="no C compiler")

RULES = [  # temperature, top_k, top_p, min_p
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 40, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.3, 50, 0.95, 0.0),
    (1.0, 0, 1.0, 0.05),
    (0.5, 7, 0.3, 0.02),
    (5.0, 0, 0.999, 0.0),
    (1e-6, 3, 0.5, 0.0),
    (2.0, 2**31 - 1, 1.0, 0.0),
    (1.0, 1, 1e-12, 1.0),
]


def logits_of(kind: str, rows: int, size: int, seed: int = 0) -> Tensor:
    noise = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    return {"flat": noise * 0.1, "peaked": noise * 6, "ties": (noise * 2).round(), "real": noise * 2.5}[kind]


def params_of(rules, seeds=None, positions=None) -> Tensor:
    table = np.zeros(len(rules), dtype=PARAMS)
    for name, values in zip(("temperature", "top_k", "top_p", "min_p"), zip(*rules, strict=True), strict=True):
        table[name] = values
    table["seed"] = range(len(rules)) if seeds is None else seeds
    table["position"] = range(7, 7 + len(rules)) if positions is None else positions
    return torch.from_numpy(table.view(np.int32).reshape(len(rules), PARAM_WORDS))


def sample(logits: Tensor, params: Tensor, native: Native | None = None, last: LastTokens | None = None) -> Sampled:
    ops, calls = spied(native)
    found = ops.sample(logits, params, last)
    assert calls == ["sample"]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["flat", "peaked", "ties"])
@pytest.mark.parametrize("size", [1, 2, 16, 17, 300, 2000])
def test_tokens_are_those_of_the_reference(native, dtype, kind, size):
    rules = RULES * 4
    logits, params = logits_of(kind, len(rules), size, seed=size).to(dtype), params_of(rules)
    found, expected = sample(logits, params, native), sample_rows(logits, params, None)
    assert torch.equal(found.token_ids, expected.token_ids)
    assert torch.equal(found.bad, expected.bad)


@pytest.mark.parametrize("rule", RULES[1:6] + RULES[7:8])
@pytest.mark.parametrize("kind", ["flat", "real"])
def test_a_draw_from_a_whole_vocabulary_is_where_its_number_falls(rule, kind):
    """In float64, whose sums are a little other ones than the kernel's; so the borders are blurred."""
    temperature, top_k, top_p, min_p = rule
    rows, size = 12, 49_152
    logits = logits_of(kind, rows, size)
    found = sample(logits, params_of([rule] * rows)).token_ids
    numbers = uniform(np.arange(rows, dtype=np.uint64), np.arange(7, 7 + rows, dtype=np.uint64))
    for row, (token, number) in enumerate(zip(found.tolist(), numbers, strict=True)):
        weights = torch.exp((logits[row].double() - logits[row].max()) / temperature).numpy()
        order = np.arange(size) if top_k == 0 and top_p == 1 else np.argsort(-logits[row].numpy(), kind="stable")
        weights = np.where(weights < min_p, 0, weights)[order]
        weights = weights[:top_k] if top_k else weights
        if top_p < 1:
            weights = weights[: int(np.searchsorted(weights.cumsum(), top_p * weights.sum())) + 1]
        share = weights.cumsum() / weights.sum()
        place = int(np.flatnonzero(order == token)[0])
        assert (share[place - 1] if place else 0) - 1e-4 <= number <= share[place] + 1e-4


def test_numbers_are_those_of_the_seed_and_the_position():
    """Of equal logits, the token says the first twelve bits of the number."""
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**64, 500, dtype=np.uint64)
    positions = rng.integers(0, 2**40, 500)
    logits = torch.zeros(1, 4096).expand(500, 4096)
    found = sample(logits, params_of([(1.0, 0, 1.0, 0.0)] * 500, seeds, positions))
    assert found.token_ids.tolist() == (uniform(seeds, positions.astype(np.uint64)) * 4096).astype(int).tolist()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_does_not_hang_on_its_batch(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    logits, params = logits_of("real", len(RULES), 5000), params_of(RULES)
    together = sample(logits, params).token_ids
    order = torch.randperm(len(RULES), generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample(logits[order], params[order]).token_ids, together[order])
    for row in range(len(RULES)):
        assert sample(logits[row : row + 1], params[row : row + 1]).token_ids[0] == together[row]


@pytest.mark.parametrize("rule", RULES[:5])
def test_hopeless_rows_are_told_and_do_no_harm(native, rule):
    good = logits_of("real", 1, 40)[0]
    rows = torch.stack([good] * 7)
    rows[1, 20] = torch.nan
    rows[2, :] = torch.nan
    rows[3, 39] = torch.inf
    rows[4, :] = -torch.inf
    rows[5, 1:] = -torch.inf
    params = params_of([rule] * 7, seeds=[5] * 7, positions=[3] * 7)
    found = sample(rows, params, native)
    assert found.bad.tolist() == [False, True, True, True, True, False, False]
    assert found.token_ids[1:6].tolist() == [0] * 5
    assert found.token_ids[0] == found.token_ids[6] == sample_rows(good[None], params[:1], None).token_ids[0]


def test_banned_tokens_are_never_drawn():
    logits = torch.full((200, 100), -torch.inf)
    logits[:, [3, 60, 99]] = torch.tensor([1.0, 0.0, -0.0])
    for rule in RULES:
        found = set(sample(logits, params_of([rule] * 200)).token_ids.tolist())
        assert found <= {3, 60, 99}
        assert rule[0] != 1.0 or rule[1] or rule[2] < 1 or found == {3, 60, 99}


def test_rows_of_a_wider_matrix():
    wide = logits_of("real", len(RULES), 130)
    params = params_of(RULES)
    assert torch.equal(sample(wide[:, :100], params).token_ids, sample(wide[:, :100].clone(), params).token_ids)


def test_tokens_go_to_where_the_next_step_reads_them():
    logits, params = logits_of("real", 3, 50), params_of([(0.0, 0, 1.0, 0.0)] * 3)
    last = LastTokens(torch.tensor([2, -1, 0]), torch.full((4,), -5, dtype=torch.int32))
    found = sample(logits, params, last=last).token_ids.tolist()
    assert last.tokens.tolist() == [found[2], -5, found[0], -5]


def test_no_rows():
    found = sample(torch.empty(0, 50), torch.empty(0, PARAM_WORDS, dtype=torch.int32))
    assert found.token_ids.shape == found.bad.shape == (0,)


def test_half_precision_goes_to_the_reference():
    ops, calls = spied()
    logits, params = logits_of("real", 3, 50).half(), params_of(RULES[:3])
    assert torch.equal(ops.sample(logits, params).token_ids, sample_rows(logits, params, None).token_ids)
    assert calls == []
