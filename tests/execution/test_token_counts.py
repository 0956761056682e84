from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.execution.token_counts import TokenCounts

TOKENS = st.lists(st.integers(0, 30), max_size=40)


def content(counts, slot, beside=None):
    ids, times = counts.entries([slot] if beside is None else [slot, beside])
    return {i: c for i, c in zip(ids[0].tolist(), times[0].tolist(), strict=True) if i >= 0}


def expected(prompt, output):
    return {token: Counter(output)[token] for token in set(prompt) | set(output)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=12), st.lists(TOKENS, min_size=12, max_size=12))
def test_counts_are_those_of_a_counter_while_rows_grow_and_go(requests, later):
    counts = TokenCounts(31, torch.device("cpu"))
    for slot, (prompt, output) in enumerate(requests):
        counts.add(slot, prompt, output)
    for slot in range(0, len(requests), 3):
        counts.remove(slot)
    gone = set(range(0, len(requests), 6))
    for slot in set(range(0, len(requests), 3)) - gone:  # another request, in a row that was used before
        requests[slot] = requests[slot][::-1]
        counts.add(slot, *requests[slot])
    live = [slot for slot in range(len(requests)) if slot not in gone]
    steps = min(len(x) for x in later) if live else 0
    for step in range(steps):
        counts.record(live, torch.tensor([later[slot][step] for slot in live]))
    for slot in live:
        prompt, output = requests[slot]
        assert content(counts, slot) == expected(prompt, output + later[slot][:steps])


def test_a_row_keeps_nothing_of_its_former_request():
    counts = TokenCounts(50, torch.device("cpu"))
    counts.add(0, range(20, 30), [])  # longer, so that the others are read beyond their ends
    counts.add(1, [2, 3, 4], [4, 5, 5])
    counts.remove(1)
    counts.add(2, [7], [])
    assert content(counts, 2, beside=0) == {7: 0}
    for token in (5, 4, 8):
        counts.record([0, 2], torch.tensor([20, token]))
    assert content(counts, 2, beside=0) == {7: 0, 5: 1, 4: 1, 8: 1}


def test_a_row_outgrows_its_width():
    counts = TokenCounts(100_000, torch.device("cpu"))
    counts.add(0, range(255), [])
    counts.add(1, [5], [5, 5])
    for token in range(1000, 1400):
        counts.record([0, 1], torch.tensor([token, 5]))
    assert content(counts, 0) == expected(range(255), range(1000, 1400))
    assert content(counts, 1) == {5: 402}


def test_a_returning_request_finds_the_same_counts():
    stayed, returned = TokenCounts(50, torch.device("cpu")), TokenCounts(50, torch.device("cpu"))
    stayed.add(3, [1, 2, 2], [])
    for token in (2, 9, 9):
        stayed.record([3], torch.tensor([token]))
    returned.add(0, [1, 2, 2], [2, 9, 9])
    assert content(stayed, 3) == content(returned, 0) == {1: 0, 2: 1, 9: 2}


def test_memory_follows_distinct_tokens_and_is_given_back():
    counts = TokenCounts(151_936, torch.device("cpu"))
    empty = counts.num_bytes
    for slot in range(256):
        counts.add(slot, [1, 2, 3] * 1000, [])
    assert counts.num_bytes < 256 * 256 * 16 + 10_000
    for slot in range(256):
        counts.remove(slot)
    assert counts.num_bytes == empty
