import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_sampling import draw, survivors
from octavo.kernels.reference import sampling as ops
from octavo.sampling_params import SamplingParams

NEG = -math.inf


def filters(rows):
    """``Filters`` of (uniform, temperature, top_k, top_p, min_p) tuples."""
    kinds = (torch.float64, torch.float32, torch.int64, torch.float64, torch.float64)
    return ops.Filters(*(torch.tensor(list(v), dtype=k) for v, k in zip(zip(*rows, strict=True), kinds, strict=True)))


def logits_of(seed, rows, vocab, kind):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, vocab, generator=generator)
    if kind == "flat":
        return noise * 0.1
    if kind == "peaked":
        return noise * 6
    return (noise * 2).round()  # "ties"


def test_weights_are_the_softmax_and_their_sums_do_not_depend_on_order():
    logits = logits_of(0, 4, 50_000, "peaked")
    weight = ops.weights(logits, logits.amax(1, keepdim=True), torch.tensor([0.5, 1.0, 2.0, 100.0]))
    softmax = (logits.double() / torch.tensor([[0.5], [1.0], [2.0], [100.0]])).softmax(1)
    torch.testing.assert_close(weight / weight.sum(1, keepdim=True), softmax, rtol=1e-5, atol=1e-9)
    assert ((weight / ops.GRAIN) % 1 == 0).all()
    shuffled = weight[:, torch.randperm(50_000, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(shuffled.cumsum(1)[:, -1], weight.flip(1).sum(1))


@pytest.mark.parametrize("uniform", [0.0, 0.3, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("scale", [1, 3, 12345, 2**19])
def test_draw_never_takes_a_weight_of_zero(uniform, scale):
    few = torch.tensor([[0, 1, 0, 0], [0, 0.5, 1, 0], [0, 0, 0, 1], [1, ops.GRAIN, 0, 0]], dtype=torch.float64)
    weight = torch.cat([few[:, :3], few, few[:, :1]], dim=1) * scale
    index = ops.draw(weight, torch.full((4,), uniform, dtype=torch.float64))
    assert (weight.gather(1, index[:, None]) > 0).all()


def test_draw_is_the_first_index_beyond_the_target():
    weight = torch.tensor([[0.25, 0.25, 0.5]] * 5, dtype=torch.float64)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.99], dtype=torch.float64)
    assert ops.draw(weight, uniform).tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("kind", ["flat", "peaked", "ties"])
@pytest.mark.parametrize("count", [1, 7, 256, 999, 1000, 2000])
def test_sorted_head_is_a_stable_sort_as_far_as_it_is_certain(kind, count):
    logits = logits_of(2, 3, 1000, kind)
    values, ids, certain = ops.sorted_head(logits, count)
    for row in range(3):
        order = np.lexsort((np.arange(1000), -logits[row].numpy()))[: ids.shape[1]]
        sure = int(certain[row])
        assert ids[row, :sure].tolist() == order[:sure].tolist()
        assert torch.equal(values[row], logits[row][order])
    if kind != "ties" or count >= 999:
        assert certain.min() >= min(count, 1000)


@pytest.mark.parametrize("k", [0, 1, 5, 64, 300, 5000])
def test_top_tokens_breaks_ties_by_token_id(k):
    logits = logits_of(3, 4, 300, "ties")
    values, ids = ops.top_tokens(logits, k)
    order = np.lexsort((np.tile(np.arange(300), (4, 1)), -logits.numpy()), axis=1)[:, :k]
    assert np.array_equal(ids.numpy(), order)
    assert torch.equal(values, logits.gather(1, ids))


@settings(max_examples=80, deadline=None, derandomize=True)  # at random, rounding would once decide
@given(
    seed=st.integers(0, 10_000),
    vocab=st.sampled_from([2, 100, 700, 6000]),
    kind=st.sampled_from(["flat", "peaked", "ties"]),
    rows=st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True),
            st.sampled_from([1e-6, 0.3, 1.0, 5.0]),
            st.sampled_from([0, 1, 3, 40, 300, 5000, 2**31 - 1]),
            st.sampled_from([1e-12, 0.1, 0.37, 0.9, 0.9993, 1.0]),
            st.sampled_from([0.0, 0.013, 0.71, 1.0]),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_sampling_equals_the_textbook(seed, vocab, kind, rows):
    logits = logits_of(seed, len(rows), vocab, kind)
    tokens = ops.sample_filtered(logits, filters(rows)).tolist()
    free = ops.sample(logits, filters(rows)).tolist()
    for row, (uniform, temperature, top_k, top_p, min_p) in enumerate(rows):
        values = logits[row].numpy()
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        assert tokens[row] == draw(survivors(values, params), uniform)
        plain = SamplingParams(temperature=temperature, min_p=min_p)
        assert free[row] == draw(sorted(survivors(values, plain)), uniform)


@pytest.mark.parametrize("vocab", [300, 5000])
def test_equal_logits_keep_the_lowest_ids(vocab):
    logits = torch.zeros(200, vocab)
    uniform = [i / 200 for i in range(200)]
    by_k = ops.sample_filtered(logits, filters([(u, 1.0, 3, 1.0, 0.0) for u in uniform]))
    by_p = ops.sample_filtered(logits, filters([(u, 1.0, 0, 8.5 / vocab, 0.0) for u in uniform]))
    assert set(by_k.tolist()) == {0, 1, 2}
    assert set(by_p.tolist()) == set(range(9))


@pytest.mark.parametrize("rule", [(0, 1.0, 0.0), (6, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1), (7, 0.95, 0.05)])
def test_draws_follow_the_distribution(rule):
    top_k, top_p, min_p = rule
    row = torch.randn(12, generator=torch.Generator().manual_seed(5)) * 0.7
    count = 40_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    many = filters([(0.0, 0.8, *rule)])
    many = ops.Filters(uniform, *(value.expand(count) for value in many[1:]))
    sampler = ops.sample_filtered if top_k or top_p < 1 else ops.sample
    observed = torch.bincount(sampler(row.expand(count, 12), many), minlength=12).double()
    kept = survivors(row.numpy(), SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p))
    expected = torch.zeros(12, dtype=torch.float64)
    for token, weight in kept:
        expected[token] = count * weight / sum(w for _, w in kept)
    assert observed[expected == 0].sum() == 0
    live = expected > 0
    chi_square = ((observed - expected)[live] ** 2 / expected[live]).sum()
    assert 2 <= live.sum() <= 12
    assert chi_square < 31.3  # the 99.9 % point with 11 degrees of freedom


@pytest.mark.parametrize("row", [[math.nan] * 4, [0, math.nan, 1, 2], [NEG] * 4, [math.inf, 0, 0, 0]])
@pytest.mark.parametrize("rule", [(0, 1.0, 0.0), (2, 1.0, 0.0), (0, 0.5, 0.2)])
def test_hopeless_rows_do_no_harm(row, rule):
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], row, [3.0, 2.0, NEG, NEG]])
    both = filters([(0.4, 1.0, *rule)] * 3)
    alone = both.select(torch.tensor([0, 2]))
    for sampler in (ops.sample, ops.sample_filtered):
        tokens = sampler(logits, both)
        assert ((tokens >= 0) & (tokens < 4)).all()
        assert torch.equal(tokens[[0, 2]], sampler(logits[[0, 2]], alone))


@pytest.mark.parametrize("k", [0, 3, 1000])
def test_logprobs_are_those_of_log_softmax(k):
    logits = logits_of(7, 5, 300, "peaked")
    chosen = torch.tensor([0, 7, 299, 5, int(logits[4].argmax())])
    found = ops.gather_logprobs(logits, chosen, k)
    exact = torch.log_softmax(logits.double(), 1)
    torch.testing.assert_close(found.chosen.double(), exact[range(5), chosen], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.top.double(), exact.gather(1, found.top_ids), rtol=1e-5, atol=1e-5)
    assert found.top_ids.shape == (5, min(k, 300))
    for row in range(5):
        order = np.argsort(-logits[row].numpy(), kind="stable")
        assert found.top_ids[row].tolist() == order[:k].tolist()
        assert found.rank[row] == list(order).index(int(chosen[row])) + 1


def test_keep_only_and_add_at_touch_what_they_name():
    logits = torch.arange(12.0).view(3, 4)
    ops.keep_only(logits, torch.tensor([0, 0, 2]), torch.tensor([1, 3, 0]))
    ops.add_at(logits, torch.tensor([1, 1, 2]), torch.tensor([0, 2, 0]), torch.tensor([0.5, NEG, -1.0]))
    assert logits.tolist() == [[NEG, 1, NEG, 3], [4.5, 5, NEG, 7], [7, NEG, NEG, NEG]]


def test_bad_word_endings_match_the_end_of_the_output():
    prefixes = torch.tensor([[-1, -1], [-1, 4], [3, 4], [4, 3]])
    assert ops.bad_word_endings(torch.tensor([3, 4]), prefixes).tolist() == [True, True, True, False]
    assert ops.bad_word_endings(torch.tensor([-1, 4]), prefixes).tolist() == [True, True, False, False]


def test_penalties_follow_their_formulas():
    logits = torch.tensor([[1.0, -1.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 0.0, NEG]])
    ids = torch.tensor([[0, 1, 2], [-1, -1, -1], [3, 0, -1]])
    counts = torch.tensor([[0, 1, 3], [0, 0, 0], [2, 0, 0]])
    strength = ops.Penalties(torch.full((3,), 2.0), torch.full((3,), 0.25), torch.full((3,), 0.5))
    ops.apply_penalties(logits, torch.arange(3), ids, counts, strength)
    assert logits[0].tolist() == [0.5, -2 - 0.75, 1 - 1.5 - 0.25, 4.0]
    assert logits[1].tolist() == [1.0] * 4
    assert logits[2].tolist() == [0.5, -1.0, 0.0, NEG]
