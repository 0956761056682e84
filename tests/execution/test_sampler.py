import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_sampling import choose, edited, survivors, walk
from octavo.errors import ModelError
from octavo.execution.fetch import Fetch
from octavo.execution.logprobs import prompt_logprobs
from octavo.execution.sampler import Sampler
from octavo.kernels import for_device
from octavo.kernels import sampling as seam
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.reference.random_numbers import uniform
from octavo.kernels.reference.sampling import MAX_VOCAB_SIZE
from octavo.sampling_params import SamplingParams

VOCAB = 97
EOS = (2, 5)

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-6, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 5, 50, 1000]),
    top_p=st.sampled_from([1e-9, 0.33, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.07]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.7, -0.6]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.none() | st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, 1.5, 4.0]), max_size=4),
    allowed_token_ids=st.none() | st.lists(st.integers(10, VOCAB - 1), min_size=3, max_size=30),
    min_tokens=st.sampled_from([0, 2]),
    stop_token_ids=st.lists(st.integers(0, 9), max_size=2),
    logprobs=st.sampled_from([None, 0, 3, 500]),
)
REQUEST = st.tuples(
    PARAMS,
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20),
    st.lists(st.integers(0, VOCAB - 1), max_size=5),
    st.sampled_from([[], [[7]], [[7], [3, 4], [1, 2, 3]]]),
)


def random_logits(seed, rows, vocab=VOCAB, scale=3.0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def filled(requests, *, slots=None, size=64, vocab=VOCAB, ops=None):
    """A sampler with (params, prompt, output, bad words) in these slots; seeds count up from 1000."""
    sampler = Sampler(size, vocab, ops=ops)
    for i, (params, prompt, output, words) in enumerate(requests):
        sampler.add(slots[i] if slots else i, params, prompt, output, 1000 + i, EOS, words)
    return sampler


def near_tie(logits, params, number):
    """Whether float32 rounding may decide between two tokens, so that the oracle's word does not count."""
    if params.temperature == 0:
        first, second = np.sort(logits)[-2:]
        return second - first < 1e-4
    kept = walk(logits, params)
    ends = np.cumsum([weight for _, weight in kept]) / sum(weight for _, weight in kept)
    spread = sorted(survivors(logits, SamplingParams(temperature=params.temperature)), key=lambda x: -x[1])
    shares = np.cumsum([weight for _, weight in spread]) / sum(weight for _, weight in spread)
    return np.abs(ends[:-1] - number).min(initial=1) < 1e-4 or np.abs(shares - params.top_p).min() < 1e-5


@settings(max_examples=100, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=6), st.integers(0, 1000))
def test_three_steps_of_any_mixture_equal_the_textbook(requests, seed):
    sampler = filled(requests)
    outputs = [list(output) for _, _, output, _ in requests]
    for step in range(3):
        logits = random_logits(seed + step, len(requests))
        found = sampler.sample(logits.clone(), torch.arange(len(requests))).to_host()
        for row, (params, prompt, _, words) in enumerate(requests):
            values = edited(logits[row].numpy(), params, prompt, outputs[row], EOS, words)
            number = uniform(np.array([1000 + row], np.uint64), np.array([len(outputs[row])], np.uint64))[0]
            token = int(found.token_ids[row])
            assert not found.bad[row]
            assert values[token] > -math.inf
            assert token == choose(values, params, number) or near_tie(values, params, number)
            check_logprobs(found.logprobs[row], logits[row], token, params.logprobs)
            outputs[row].append(token)


def bits_of(token_ids):
    bits = np.zeros(-(-VOCAB // 32) * 32, np.uint8)
    bits[list(token_ids)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


MASK = st.none() | st.sets(st.integers(0, VOCAB - 1), max_size=60)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(REQUEST, MASK), min_size=1, max_size=6), st.integers(0, 1000))
def test_masks_ban_all_but_their_tokens_whatever_else_is_asked(pairs, seed):
    requests, masks = zip(*pairs, strict=True)
    logits = random_logits(seed, len(requests))
    bits = {row: bits_of(mask) for row, mask in enumerate(masks) if mask is not None}
    found = filled(requests).sample(logits.clone(), torch.arange(len(requests)), bits).to_host()
    for row, (params, prompt, output, words) in enumerate(requests):
        values = edited(logits[row].numpy(), params, prompt, output, EOS, words, masks[row])
        if masks[row] is not None and not np.isfinite(values).any():
            assert found.bad[row]
            assert found.banned[row]
            continue
        number = uniform(np.array([1000 + row], np.uint64), np.array([len(output)], np.uint64))[0]
        token = int(found.token_ids[row])
        assert not found.bad[row]
        assert not found.banned[row]
        assert masks[row] is None or token in masks[row]
        assert token == choose(values, params, number) or near_tie(values, params, number)
        check_logprobs(found.logprobs[row], logits[row], token, params.logprobs)


def check_logprobs(found, logits, token, k):
    if k is None:
        assert found is None
        return
    exact = torch.log_softmax(logits.double(), 0)
    order = logits.argsort(descending=True, stable=True).tolist()
    assert (found.token_id, found.rank) == (token, order.index(token) + 1)
    assert found.logprob == pytest.approx(exact[token].item(), abs=1e-4)
    assert found.top_ids == order[:k]
    assert found.top_logprobs == pytest.approx(exact[order[:k]].tolist(), abs=1e-4)


MIXTURE = [
    {"temperature": 0.9},
    {"temperature": 0},
    {"top_p": 0.8},
    {"top_k": 9, "min_p": 0.02},
    {"repetition_penalty": 1.2, "logprobs": 4},
    {"frequency_penalty": 0.5, "temperature": 0},
    {"logit_bias": {3: 2.0}, "top_p": 0.95},
    {"allowed_token_ids": list(range(5, 60)), "top_k": 2000},
]


def test_a_row_is_bitwise_the_same_alone_and_in_a_batch_of_64():
    vocab, prompt = 5003, list(range(40))
    requests = [(SamplingParams(**MIXTURE[i % 8]), prompt, [], [[9, 4], [8]] if i % 3 else []) for i in range(64)]
    together = filled(requests, vocab=vocab, slots=list(range(64))[::-1])
    steps = [random_logits(i, 64, vocab) for i in range(4)]
    expected = [together.sample(x.clone(), torch.arange(63, -1, -1)).to_host() for x in steps]
    for i in range(0, 64, 5):
        alone = Sampler(1, vocab)
        params, _, _, words = requests[i]
        alone.add(0, params, prompt, [], 1000 + i, EOS, words)
        for logits, batch in zip(steps, expected, strict=True):
            found = alone.sample(logits[i : i + 1].clone(), torch.tensor([0])).to_host()
            assert found.token_ids[0] == batch.token_ids[i]
            assert found.logprobs[0] == batch.logprobs[i]


def test_a_request_that_comes_back_goes_on_as_if_it_had_stayed():
    requests = [(SamplingParams(min_tokens=6, **kind), [1, 2, 3], [], [[11, 12], [13]]) for kind in MIXTURE]
    stayed = filled(requests)
    rows = torch.arange(len(requests))
    outputs = np.array([stayed.sample(random_logits(i, 8), rows).token_ids.numpy() for i in range(4)])
    back = [(params, prompt, outputs[:, i].tolist(), words) for i, (params, prompt, _, words) in enumerate(requests)]
    returned = filled(back, slots=list(range(20, 28)))
    for i in range(4, 9):
        first, second = (s.sample(random_logits(i, 8), r) for s, r in ((stayed, rows), (returned, rows + 20)))
        assert torch.equal(first.token_ids, second.token_ids)


def test_a_slot_forgets_its_former_request():
    sampler = Sampler(1, VOCAB)
    hard = SamplingParams(temperature=0, allowed_token_ids=[1], repetition_penalty=1.5, min_tokens=9, logprobs=2)
    sampler.add(0, hard, [4], [], 1, EOS, [[8]])
    sampler.sample(random_logits(0, 1), torch.tensor([0]))
    sampler.add(0, SamplingParams(temperature=0), [4], [], 1, EOS)
    logits = random_logits(1, 1)
    found = sampler.sample(logits.clone(), torch.tensor([0])).to_host()
    assert found.token_ids[0] == logits.argmax()
    assert found.logprobs == [None]


def test_seeds_make_tokens_and_tokens_follow_the_distribution():
    row = random_logits(3, 1, 10, 1.0)
    sampler = Sampler(256, 10)
    observed = np.zeros(10)
    for batch in range(80):
        for slot in range(256):
            sampler.add(slot, SamplingParams(), [1], [], batch * 256 + slot)
        found = sampler.sample(row.repeat(256, 1), torch.arange(256)).token_ids
        observed += np.bincount(found.numpy(), minlength=10)
    expected = row.softmax(1)[0].numpy() * observed.sum()
    assert ((observed - expected) ** 2 / expected).sum() < 27.9  # the 99.9 % point with 9 degrees of freedom


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 2**64 - 1])
def test_any_64_bit_seed_will_do(seed):
    tokens = []
    for _ in range(2):
        sampler = Sampler(1, VOCAB)
        sampler.add(0, SamplingParams(), [1], [], seed)
        tokens.append([int(sampler.sample(random_logits(i, 1), torch.tensor([0])).token_ids) for i in range(5)])
    assert tokens[0] == tokens[1]


def test_no_end_before_min_tokens():
    sampler = Sampler(1, VOCAB)
    sampler.add(0, SamplingParams(temperature=0, min_tokens=2, stop_token_ids=[7]), [1], [], 0, EOS)
    logits = torch.zeros(1, VOCAB)
    logits[0, [2, 5, 7, 50]] = torch.tensor([9.0, 8.0, 7.0, 1.0])
    assert [int(sampler.sample(logits.clone(), torch.tensor([0])).token_ids) for _ in range(3)] == [50, 50, 2]


def test_bad_words_are_never_completed():
    sampler = Sampler(1, VOCAB)
    sampler.add(0, SamplingParams(temperature=0, bad_words=["x"]), [6], [], 0, EOS, [[9], [6, 7], [6, 6, 8]])
    logits = torch.zeros(1, VOCAB)
    logits[0, [9, 8, 7, 6]] = torch.tensor([9.0, 8.0, 7.0, 6.5])
    steps = []
    for step in range(4):
        logits[0, 8] = 8.0 if step in (2, 3) else 0.0
        steps.append(int(sampler.sample(logits.clone(), torch.tensor([0])).token_ids))
    assert steps == [7, 7, 8, 8]  # 9 never; the prompt's 6 does not count


def test_a_bad_word_needs_all_of_its_beginning():
    sampler = Sampler(1, VOCAB)
    sampler.add(0, SamplingParams(temperature=0), [1], [6], 0, EOS, [[6, 6, 8]])
    one, two = torch.zeros(1, VOCAB), torch.zeros(1, VOCAB)
    one[0, 6], two[0, 8] = 1.0, 1.0
    assert int(sampler.sample(one.clone(), torch.tensor([0])).token_ids) == 6
    assert int(sampler.sample(two.clone(), torch.tensor([0])).token_ids) == 0  # 8 would complete 6 6 8
    assert int(sampler.sample(two.clone(), torch.tensor([0])).token_ids) == 8


@pytest.mark.parametrize("kind", [{"temperature": 0}, {}, {"top_p": 0.5}, {"top_k": 3, "logprobs": 2}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_hopeless_rows_are_reported_and_others_unharmed(kind, value):
    sampler = filled([(SamplingParams(**kind), [1], [], [])] * 3)
    clean = filled([(SamplingParams(**kind), [1], [], [])] * 3)
    logits = random_logits(1, 3)
    broken = logits.clone()
    if value == -math.inf:
        broken[1] = value
    else:
        broken[1, 4] = value
    found = sampler.sample(broken, torch.arange(3))
    assert found.bad.tolist() == [False, True, False]
    assert found.token_ids[1] == 0
    assert torch.equal(found.token_ids[[0, 2]], clean.sample(logits, torch.arange(3)).token_ids[[0, 2]])


SMALL = 5
TOKENS = st.integers(0, SMALL - 1)
TIGHT = st.tuples(
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 1.0]),
        allowed_token_ids=st.none() | st.lists(TOKENS, min_size=1, max_size=2),
        min_tokens=st.sampled_from([0, 2, 3]),
        stop_token_ids=st.lists(TOKENS, max_size=SMALL, unique=True),
        logit_bias=st.none() | st.dictionaries(TOKENS, st.sampled_from([-100.0, 100.0]), max_size=2),
        presence_penalty=st.sampled_from([0.0, 2.0]),
        logprobs=st.sampled_from([None, 2]),
    ),
    st.lists(TOKENS, min_size=1, max_size=3),
    st.lists(TOKENS, max_size=3),
    st.lists(st.lists(TOKENS, min_size=1, max_size=2), max_size=SMALL),
)
SPOILT = st.sampled_from([None, None, None, math.nan, math.inf, -math.inf])


@pytest.mark.parametrize("ops", [None, ReferenceOps()], ids=["cpu", "reference"])
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TIGHT, SPOILT), min_size=1, max_size=6), st.sets(TOKENS, min_size=1), st.integers(0, 99))
def test_options_are_to_blame_where_sound_logits_have_no_token_left(ops, rows, ends, seed):
    """Whatever else is in the batch: broken logits, and rows whose options leave a token after all."""
    requests = [request for request, _ in rows]
    sampler = Sampler(len(rows), SMALL, ops=ops)
    for slot, (params, prompt, output, words) in enumerate(requests):
        sampler.add(slot, params, prompt, output, 1000 + slot, ends, words)
    logits = random_logits(seed, len(rows), SMALL)
    for row, (_, value) in enumerate(rows):
        logits[row] = logits[row] if value is None else value
    sampled = sampler.sample(logits.clone(), torch.arange(len(rows)))
    for found in (sampled.to_host(), Fetch.of(sampled).wait()):
        for row, ((params, prompt, output, words), value) in enumerate(rows):
            values = edited(logits[row].numpy(), params, prompt, output, ends, words)
            none_left = not np.isfinite(values).any()
            assert found.bad[row] == (none_left or value is not None)
            assert found.banned[row] == (none_left and value is None)
            number = uniform(np.array([1000 + row], np.uint64), np.array([len(output)], np.uint64))[0]
            if not found.bad[row] and not near_tie(values, params, number):
                assert found.token_ids[row] == choose(values, params, number)


def test_a_row_is_looked_at_only_if_its_options_can_ban_all_that_it_may_have():
    """All others cost what they did: no look at their logits before they are edited."""
    rest = [i for i in range(VOCAB) if i not in EOS]
    some = [
        (SamplingParams(allowed_token_ids=[3, 4]), [[3]]),
        (SamplingParams(allowed_token_ids=[*EOS, 4], min_tokens=3), [[3]]),
        (SamplingParams(allowed_token_ids=EOS), []),
        (SamplingParams(min_tokens=3, stop_token_ids=rest[1:]), []),
        (SamplingParams(logit_bias={3: -100}, repetition_penalty=2.0, logprobs=1), [[3], [1, 4]]),
    ]
    every = [
        (SamplingParams(allowed_token_ids=[3, 4]), [[3], [9, 9, 4]]),
        (SamplingParams(allowed_token_ids=EOS, min_tokens=3), []),
        (SamplingParams(allowed_token_ids=[*EOS, 4], min_tokens=3), [[4]]),
        (SamplingParams(min_tokens=3, stop_token_ids=rest), []),
        (SamplingParams(), [[i] for i in range(VOCAB)]),
    ]
    sampler = filled([(params, [1], [], words) for params, words in some])
    assert sampler.sample(random_logits(0, 5), torch.arange(5)).banned is None
    tight = filled([(params, [1], [], words) for params, words in every])
    assert tight.sample(random_logits(0, 5), torch.arange(5)).banned.tolist() == [False, True, True, True, True]
    for slot, (params, words) in enumerate(some):
        tight.add(slot, params, [1], [], 1, EOS, words)
    assert tight.sample(random_logits(0, 5), torch.arange(5)).banned is None, "a slot forgets who was there before"


@pytest.mark.parametrize("kind", [{}, {"logprobs": 2}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_mask_is_to_blame_only_where_the_logits_were_finite(kind, value):
    """Rows: good; an overflow with and without a mask; a mask that leaves what min_tokens bans; nothing to blame; and
    options that ban all without a mask."""
    params = [SamplingParams(**kind)] * 3 + [SamplingParams(**kind, min_tokens=1), SamplingParams(**kind)]
    params.append(SamplingParams(**kind, min_tokens=1, allowed_token_ids=EOS))
    logits = random_logits(1, 6)
    logits[1:3] = value
    masks = {0: bits_of({4}), 1: bits_of({4}), 3: bits_of(set(EOS))}
    sampled = filled([(each, [1], [], []) for each in params]).sample(logits, torch.arange(6), masks)
    for found in (sampled.to_host(), Fetch.of(sampled).wait()):
        assert found.bad.tolist() == [False, True, True, True, False, True]
        assert found.banned.tolist() == [False, False, False, True, False, True]
        assert found.token_ids[[0, 1, 2, 3]].tolist() == [4, 0, 0, 0]


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
@pytest.mark.parametrize("kind", [{}, {"top_p": 0.5}, {"top_k": 5}])
def test_tiny_temperatures_are_greedy_and_overflow_nothing(temperature, kind):
    sampler = filled([(SamplingParams(temperature=temperature, **kind), [1], [], [])] * 8)
    logits = random_logits(0, 8, scale=1e4)
    found = sampler.sample(logits.clone(), torch.arange(8))
    assert torch.equal(found.token_ids, logits.argmax(1))
    assert not found.bad.any()


@pytest.mark.parametrize("penalty", [1e-20, 1e-40, 5e-324])
@pytest.mark.parametrize("kind", [{"temperature": 0}, {}, {"top_p": 0.9, "temperature": 1e-6}, {"top_k": 5}])
def test_tiny_repetition_penalties_overflow_nothing(penalty, kind):
    """The likeliest token that was seen wins if its logit is above 0; what is banned stays banned."""
    params = SamplingParams(repetition_penalty=penalty, allowed_token_ids=list(range(10, VOCAB)), **kind)
    sampler = filled([(params, [3, 40], [50, 60], []), (params, [3], [7], [])])
    logits = random_logits(0, 2)
    logits[0, [3, 7, 40, 50, 60]] = torch.tensor([100.0, 90.0, -3.0, 1.0, 2.0])
    found = sampler.sample(logits, torch.arange(2)).to_host()
    assert (found.token_ids[0], found.bad.tolist()) == (60, [False, False])
    assert found.token_ids[1] >= 10


def test_rows_that_are_sorted_a_few_at_a_time_draw_the_same(monkeypatch):
    requests = [(SamplingParams(temperature=3.0, top_p=0.99), [1], [], []) for _ in range(11)]
    logits = random_logits(8, 11, vocab=5000)

    def tokens():
        reference = filled(requests, vocab=5000, ops=ReferenceOps())
        return reference.sample(logits.clone(), torch.arange(11)).token_ids.tolist()

    whole = tokens()
    widest = []
    sort = torch.sort
    monkeypatch.setattr("octavo.kernels.reference.sampling._MAX_CANDIDATES", 3 * 5000)
    monkeypatch.setattr(torch, "sort", lambda x, **options: widest.append(x.numel()) or sort(x, **options))
    assert tokens() == whole
    assert max(widest) == 3 * 5000


PLAIN = [{}, {"temperature": 0}, {"top_p": 0.5, "min_p": 0.1}]
EDITED = [
    {"logprobs": 0},
    {"presence_penalty": 0.1},
    {"repetition_penalty": 1.1},
    {"logit_bias": {3: 1.0}},
    {"allowed_token_ids": [3, 4]},
]


def test_a_step_needs_edits_if_one_of_its_rows_does():
    sampler = filled([(SamplingParams(**kind), [1], [], []) for kind in PLAIN + EDITED])
    assert not sampler.needs_edits(np.arange(3))
    for slot in range(3, 8):
        assert sampler.needs_edits(np.array([slot]))
        assert sampler.needs_edits(np.array([0, slot, 2]))
    sampler.add(7, SamplingParams(), [1], [], 0, EOS)
    assert not sampler.needs_edits(np.array([7]))
    sampler.add(7, SamplingParams(), [1], [], 0, EOS, [[4, 5]])
    assert sampler.needs_edits(np.array([7]))


def test_min_tokens_is_an_edit_until_there_are_so_many():
    sampler = filled([(SamplingParams(min_tokens=3), [1], [7], [])])
    needed = []
    for step in range(4):
        needed.append(sampler.needs_edits(np.array([0])))
        sampler.sample(random_logits(step, 1), torch.tensor([0]))
    assert needed == [True, True, False, False]


def test_a_step_needs_filters_if_a_row_that_draws_has_some():
    kinds = [{}, {"temperature": 0, "top_k": 5}, {"top_k": VOCAB}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}]
    sampler = filled([(SamplingParams(**kind), [1], [], []) for kind in kinds])
    assert not sampler.needs_filters(np.arange(3))
    assert [sampler.needs_filters(np.array([0, slot])) for slot in (3, 4, 5)] == [True] * 3


def test_fast_params_and_the_operation_choose_what_sample_chooses():
    requests = [(SamplingParams(**kind), [1], [5] * i, []) for i, kind in enumerate(PLAIN)]
    slow, fast = filled(requests), filled(requests, slots=[9, 0, 4])
    for step in range(3):
        logits = random_logits(step, 3)
        params = np.full((3, seam.PARAM_WORDS), -1, np.int32)
        fast.fast_params(np.array([9, 0, 4]), params)
        assert params.view(seam.PARAMS)[:, 0]["position"].tolist() == [step, step + 1, step + 2]
        chosen = for_device("cpu").sample(logits, torch.from_numpy(params)).token_ids
        assert torch.equal(chosen, slow.sample(logits.clone(), torch.arange(3)).token_ids)


def test_an_empty_step_is_no_trouble():
    found = Sampler(4, VOCAB).sample(torch.zeros(0, VOCAB), torch.zeros(0, dtype=torch.int64)).to_host()
    assert (len(found.token_ids), found.logprobs) == (0, [])


def test_a_new_sampler_holds_no_vocabulary_for_each_slot():
    sampler = Sampler(256, 151_936)
    assert sampler._table.nbytes + sampler._counts.num_bytes < 100_000


def test_a_vocabulary_too_large_for_exact_sums_is_refused():
    with pytest.raises(ModelError, match="at most"):
        Sampler(1, MAX_VOCAB_SIZE + 1)


def test_prompt_logprobs_are_the_same_in_chunks(monkeypatch):
    logits, targets = random_logits(4, 23), torch.arange(23)
    whole = prompt_logprobs(ReferenceOps(), logits, targets, 5)
    monkeypatch.setattr("octavo.execution.logprobs._CHUNK_BYTES", 4 * VOCAB * 7)
    assert prompt_logprobs(ReferenceOps(), logits, targets, 5) == whole
    for row, found in enumerate(whole):
        check_logprobs(found, logits[row], row, 5)
