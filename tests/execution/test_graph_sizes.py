"""Sizes of graphs."""

from __future__ import annotations

import pytest

from octavo.execution.graph_sizes import decode_sizes, mixed_size, most_mixed_tokens


@pytest.mark.parametrize("most", [1, 2, 3, 8, 40, 64, 100, 256, 1000])
def test_decode_sizes_waste_little(most):
    sizes = decode_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    for rows in range(1, most + 1):
        size = next(s for s in sizes if s >= rows)
        assert size < 2 * rows or size - rows < 32


@pytest.mark.parametrize("most", [1, 3, 7, 16, 64, 100, 256, 1000])
def test_mixed_sizes_are_large_enough_and_few(most):
    shapes = set()
    for tokens in range(1, 4097, 7):
        for rows in {1, most // 3 + 1, most}:
            shape = mixed_size(tokens, rows, most)
            shapes.add(shape)
            assert tokens <= shape.tokens < max(tokens + 16, 1.26 * tokens)
            assert rows <= shape.rows == shape.samples <= most
            assert shape.tokens % 16 == 0
    assert len({shape.tokens for shape in shapes}) < 60


def test_a_larger_model_needs_no_graphs_for_large_steps():
    small, large = most_mixed_tokens(28, 600_000_000, 16384), most_mixed_tokens(32, 8_000_000_000, 16384)
    assert 256 <= large < small <= 16384
    assert most_mixed_tokens(2, 10_000, 100) == 96
    assert most_mixed_tokens(2, 10_000, 16384) % 16 == 0


@pytest.mark.parametrize("budget", [8, 16, 100, 300, 1000, 2500, 3000, 5000, 16384])
def test_the_largest_mixed_step_is_a_graphs_own_size(budget):
    most = most_mixed_tokens(28, 600_000_000, budget)
    assert most <= budget
    assert not most or mixed_size(most, 7, 256).tokens == most
