"""The sampling kernels: kept sets against the reference, draws against the distribution, bits against the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from helpers_sampling import survivors
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.sampling import PARAM_WORDS, PARAMS, LastTokens
from octavo.kernels.triton import sampling, sampling_filters, sampling_rows, sampling_search
from octavo.sampling_params import SamplingParams

NEG = -math.inf


def params_of(rows, device, seed=1000, position=0):
    """Parameters of (temperature, top_k, top_p, min_p) tuples; seeds count up."""
    table = np.zeros(len(rows), PARAMS)
    for i, row in enumerate(rows):
        table[i] = (*row, seed + i, position)
    return torch.from_numpy(table.view(np.int32).reshape(len(rows), PARAM_WORDS)).to(device)


def logits_of(seed, rows, vocab, kind, device="cpu", dtype=torch.float32):
    noise = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
    values = {"flat": noise * 0.1, "normal": noise * 3, "peaked": noise * 8, "ties": (noise * 2).round()}[kind]
    return values.to(device, dtype)


def test_greedy_is_argmax_and_ties_go_to_the_lower_id(device, dtype):
    logits = logits_of(0, 3, 5003, "ties", device, dtype)
    logits[1, [4, 2500, 5002]] = 60.0
    logits[2, 5002] = 60.0
    found = sampling.sample(logits, params_of([(0, 0, 1, 0)] * 3, device), filters=False)
    reference = [int(np.argmax(row)) for row in logits.float().cpu().numpy()]
    assert found.token_ids.tolist() == reference
    assert reference[1:] == [4, 5002]
    assert found.bad.tolist() == [False] * 3
    assert (found.token_ids.dtype, found.bad.dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize("row", [(0, 0, 1, 0), (1, 0, 1, 0), (1, 5, 0.5, 0.1)])
def test_hopeless_rows_are_marked_and_others_unharmed(device, row):
    logits = logits_of(1, 5, 300, "normal", device)
    clean = sampling.sample(logits, params_of([row] * 5, device))
    broken = logits.clone()
    broken[0, 299], broken[1, 0], broken[3] = math.nan, math.inf, NEG
    broken[4, 7:] = NEG
    found = sampling.sample(broken, params_of([row] * 5, device))
    reference = ReferenceOps().sample(broken.cpu(), params_of([row] * 5, "cpu"))
    assert found.bad.tolist() == reference.bad.tolist() == [True, True, False, True, False]
    assert found.token_ids[[0, 1, 3]].tolist() == [0, 0, 0]
    assert found.token_ids[2] == clean.token_ids[2]
    assert found.token_ids[4] < 7


def kept(logits, params):
    """The set of tokens that pass a row's filters, as ``_choose`` decides it, and how near the next rule is."""
    thresholds, likeliest = sampling_filters.thresholds(logits, params)
    sets = []
    table = params.cpu().numpy().view(PARAMS)[:, 0]
    for row in range(len(logits)):
        values = logits[row].float().cpu().numpy()
        bits = np.where(values == 0, np.float32(0), values).view(np.int32).astype(np.int64)
        order = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 20) + (2**20 - 1 - np.arange(len(values)))
        assert float(likeliest[row]) == values.max()
        weight = np.exp((values - values.max()) / table["temperature"][row]).astype(np.float64)
        heavy = np.round(weight * 2.0**33) >= max(1, np.ceil(table["min_p"][row] * 2.0**33))
        sets.append(set(np.flatnonzero((order >= int(thresholds[row])) & heavy).tolist()))
    return sets


def expected(logits, rule):
    temperature, top_k, top_p, min_p = rule
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    return survivors(logits.float().cpu().numpy(), params)


def check_kept(found, reference, rule):
    """Equal, but for tokens at the end whose share is within rounding of the rule."""
    ids = [token for token, _ in reference]
    if found == set(ids):
        return
    assert rule[1] == 0 or len(ids) < rule[1] or rule[2] < 1, "top-k counts: nothing is rounded"
    assert len(found ^ set(ids)) <= 1 + len(ids) // 1000


RULES = [
    (1.0, 1, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (0.7, 50, 0.9, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.0, 0, 1e-9, 0.0),
    (2.0, 0, 0.999, 0.0),
    (1.0, 300, 0.5, 0.05),
    (0.5, 0, 1.0, 0.2),
    (1.0, 0, 1.0, 1.0),
    (1e-30, 40, 0.5, 0.0),
    (1.0, 2**31 - 1, 1.0, 0.0),
    (100.0, 4000, 0.7, 0.0),
]


@pytest.mark.parametrize("kind", ["flat", "normal", "peaked", "ties"])
def test_the_kept_set_is_the_references(device, dtype, kind):
    vocab, rules = 151_936 if kind == "normal" else 20_011, RULES
    if device == "cpu":  # several parts of a row in one case, one in the others
        vocab = 5003 if kind == "normal" and dtype == torch.float32 else 1203
        rules = RULES[::2] if (kind == "flat") == (dtype == torch.float32) else RULES[1::2]
    logits = logits_of(2, len(rules), vocab, kind, device, dtype)
    for found, row, rule in zip(kept(logits, params_of(rules, device)), logits, rules, strict=True):
        check_kept(found, expected(row, rule), rule)


@pytest.mark.parametrize("kind", ["flat", "ties", "equal"])
def test_many_candidates_are_halved_first(device, kind, monkeypatch):
    """With room for only 16 candidates, passes over the row have to narrow them down, by logit and by token id."""
    monkeypatch.setattr(sampling_search, "CANDIDATES", 16)
    monkeypatch.setattr(sampling_search, "SCAN", 1024)
    rules = [(1.0, 300, 1.0, 0.0), (1.0, 0, 0.3, 0.0), (1.0, 400, 0.5, 0.0), (1.0, 37, 1.0, 0.0)]
    logits = logits_of(3, 4, 601, "flat" if kind == "equal" else kind, device)
    if kind == "equal":
        logits.zero_()
        logits[1, ::2] = -0.0
    for found, row, rule in zip(kept(logits, params_of(rules, device)), logits, rules, strict=True):
        check_kept(found, expected(row, rule), rule)
    if kind == "equal":
        assert kept(logits, params_of(rules, device))[3] == set(range(37))


def test_a_banned_token_is_neither_kept_nor_drawn(device):
    logits = torch.full((3, 700), NEG, device=device)
    logits[:, [3, 600, 650]] = torch.tensor([1.0, 1.5, -90000.0], device=device)
    rules = [(1.0, 5, 1.0, 0.0), (1.0, 0, 0.99, 0.0), (1.0, 0, 1.0, 0.0)]
    for position in range(4):
        found = sampling.sample(logits, params_of(rules, device, position=position))
        assert set(found.token_ids.tolist()) <= {3, 600}
        assert not found.bad.any()


def chi_square(observed, shares):
    live = shares > 0
    assert observed[~live].sum() == 0
    wanted = shares[live] * observed.sum()
    return ((observed[live] - wanted) ** 2 / wanted).sum()


SPREAD = [(0.8, 0, 1, 0), (3.0, 7, 0.95, 0), (0.8, 6, 1, 0), (0.8, 0, 0.9, 0), (0.8, 0, 1, 0.1)]


@pytest.mark.parametrize("rule", SPREAD)
def test_draws_follow_the_distribution(device, rule):
    """30 tokens, spread over all quarters of a tile, on a GPU of several tiles."""
    if device == "cpu" and rule not in SPREAD[:2]:
        pytest.skip("too slow in the interpreter")
    vocab, rows, steps = (2000, 60, 1) if device == "cpu" else (15_000, 4096, 10)
    row = torch.full((vocab,), NEG)
    live = torch.arange(0, vocab, vocab // 30)[:30]
    row[live] = torch.randn(30, generator=torch.Generator().manual_seed(5)) * 0.7
    observed = np.zeros(vocab)
    for position in range(steps):
        params = params_of([rule] * rows, device, seed=7, position=position)
        logits = row.to(device).expand(rows, -1).contiguous()
        found = sampling.sample(logits, params, filters=rule[1:] != (0, 1, 0)).token_ids
        observed += np.bincount(found.cpu().numpy(), minlength=vocab)
    shares = np.zeros(vocab)
    for token, weight in expected(row, rule):
        shares[token] = weight
    assert chi_square(observed, shares / shares.sum()) < 58.3  # the 99.9 % point with 29 degrees of freedom


@triton.jit
def write_noise(out, seed, temperature, QUARTER: tl.constexpr):  # noqa: N803 - as the kernels spell it
    tile, position = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place = (position * tl.num_programs(0) + tile) * (4 * QUARTER) + tl.arange(0, QUARTER)
    a, b, c, d = sampling.noise(tl.full((), seed, tl.int64), position, temperature, tile, QUARTER)
    tl.store(out + place, a)
    tl.store(out + place + QUARTER, b)
    tl.store(out + place + 2 * QUARTER, c)
    tl.store(out + place + 3 * QUARTER, d)


def test_the_noise_is_gumbels(device):
    """Its distribution up to a constant, in the middle and at the large end, which decides among many tokens."""
    tiles, positions = (3, 20) if device == "cpu" else (64, 64)
    noise = torch.empty(positions, tiles * sampling_rows.TILE, device=device)
    write_noise[(tiles, positions)](noise, 12345, 1.0, sampling.QUARTER)
    exponential = torch.exp(-noise.double().cpu()) * math.log(2)  # the constant is log(log 2)
    assert exponential.isfinite().all()
    size = exponential.numel()
    for limit in (1e-4, 1e-3, 0.05, 0.06, 0.07, 0.5, 1.0, 3.0, 8.0):
        share = -math.expm1(-limit)
        count = (exponential < limit).sum().item()
        assert abs(count - size * share) < 4 * math.sqrt(size * share * (1 - share)) + 1
    quarters = exponential.reshape(-1, sampling.QUARTER)
    assert len({tuple(row) for row in quarters[:, :4].tolist()}) == len(quarters)
    correlations = torch.corrcoef(quarters[:40]) - torch.eye(40, dtype=torch.float64)
    assert correlations.abs().max() < 5.5 / math.sqrt(sampling.QUARTER)


def test_a_row_is_bitwise_the_same_alone_and_in_any_batch(device, dtype):
    rules = [(0, 0, 1, 0), (1.0, 0, 1, 0), (0.9, 20, 0.8, 0.01), (1.5, 0, 0.95, 0)] * (1 if device == "cpu" else 40)
    logits = logits_of(6, len(rules), 2503, "normal", device, dtype)
    together = params_of(rules, device)
    found = sampling.sample(logits, together).token_ids
    for i in range(0, len(rules), 1 if device == "cpu" else 3):
        alone = sampling.sample(logits[i : i + 1], together[i : i + 1]).token_ids
        assert alone.tolist() == found[i : i + 1].tolist()
    free = [i for i, rule in enumerate(rules) if rule[1:] == (0, 1, 0)]
    unfiltered = sampling.sample(logits[free], together[free], filters=False).token_ids
    assert unfiltered.tolist() == found[free].tolist()


def test_cuts_do_not_matter(device, monkeypatch):
    logits = logits_of(7, 3, 5001, "normal", device)
    params = params_of([(1.0, 0, 1, 0), (1.0, 40, 0.9, 0), (0, 0, 1, 0)], device)
    whole = sampling.sample(logits, params).token_ids.tolist()
    for programs in (1, 6):
        monkeypatch.setattr(sampling_rows, "PROGRAMS", programs)
        assert sampling.sample(logits, params).token_ids.tolist() == whole


def test_seed_and_position_make_the_token(device):
    logits = torch.zeros(1, 5003, device=device)
    tokens = set()
    for seed in (0, 1, 2**32, 2**63, 2**64 - 1):
        for position in (0, 1, 2**33):
            params = params_of([(1.0, 0, 1, 0)], device, seed=seed, position=position)
            first, second = (int(sampling.sample(logits, params, filters=False).token_ids) for _ in range(2))
            assert first == second
            tokens.add(first)
    assert len(tokens) >= 14


def test_tiny_temperatures_are_greedy(device):
    logits = logits_of(8, 3, 2001, "peaked", device) * 1e3
    params = params_of([(1e-6, 0, 1, 0), (1e-30, 0, 0.5, 0), (1e-30, 3, 1, 0.5)], device)
    assert sampling.sample(logits, params).token_ids.tolist() == logits.argmax(1).tolist()


def test_tokens_are_written_where_the_next_step_reads(device):
    logits = logits_of(9, 3, 301, "normal", device)
    tokens = torch.full((6,), -7, dtype=torch.int32, device=device)
    slots = torch.tensor([4, -1, 0], dtype=torch.int32, device=device)
    for ops in (sampling.sample, ReferenceOps().sample):
        tokens.fill_(-7)
        found = ops(logits, params_of([(0, 0, 1, 0)] * 3, device), LastTokens(slots, tokens)).token_ids.tolist()
        assert tokens.tolist() == [found[2], -7, -7, -7, found[0], -7]


def test_no_rows(device):
    found = sampling.sample(torch.zeros(0, 300, device=device), params_of([], device))
    assert (found.token_ids.shape, found.bad.shape) == ((0,), (0,))
