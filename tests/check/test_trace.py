"""Differences between traces, by hand."""

from __future__ import annotations

import math

import pytest

from octavo.check.pairs import judge, judge_quantized
from octavo.check.trace import TOP, Trace, difference, gap


def test_gap_of_the_same_tokens() -> None:
    assert gap({1: -1.0, 2: -2.0}, {1: -1.25, 2: -1.9}) == pytest.approx(0.25)


def test_gap_where_the_likeliest_differ() -> None:
    """Token 1 is at most at -3 on the other side, so the difference is 2.5 at least."""
    assert gap({1: -0.5, 2: -2.0}, {3: -0.4, 4: -3.0}) == pytest.approx(2.5)


def test_a_prompts_own_token_is_no_bound() -> None:
    likely = {i: -1.0 - i / 100 for i in range(TOP)}
    other = {**likely, 500: -30.0}
    del other[TOP - 1]
    other[777] = -1.0 - (TOP - 1) / 100
    assert gap({**likely, 500: -30.0}, other) == 0.0


def test_a_nan_is_infinitely_far() -> None:
    assert gap({1: math.nan}, {1: 0.0}) == math.inf
    found = difference([Trace([1], [{1: math.nan}], [])], [Trace([1], [{1: 0.0}], [])])
    assert judge("x", found, "float32", 0.0).status == "FAIL"


def test_positions_after_the_texts_part_are_not_compared() -> None:
    a = Trace([1, 2, 3], [{1: -1.0}, {2: -1.0, 9: -1.5}, {3: 0.0}], [])
    b = Trace([1, 9, 4], [{1: -1.1}, {9: -1.3, 2: -1.4}, {4: 0.0}], [])
    found = difference([a], [b])
    assert (found.agreeing, found.compared) == (1, 2)
    assert found.largest == pytest.approx(0.4)
    assert found.mean == pytest.approx(0.25)  # 0.1, and 0.4 where they part: both still follow the same tokens


def test_a_request_that_failed_on_the_way_is_infinitely_far() -> None:
    whole, cut = Trace([1, 2], [{1: -1.0}, {2: -1.0}], []), Trace([1], [{1: -1.0}], [])
    assert difference([whole], [cut]).largest == difference([cut], [whole]).largest == math.inf


def test_nothing_compared_is_no_pass() -> None:
    assert judge("x", difference([], []), "float32", 0.0).status == "FAIL"


def test_all_positions_of_a_given_text_are_compared() -> None:
    """Both sides follow the same tokens, whatever they would have chosen: a wrong model is far off everywhere."""
    a = Trace([1, 2], [{1: -0.1, 5: -9.0}, {2: -0.1, 6: -9.0}], [])
    b = Trace([5, 2], [{5: -0.1, 1: -9.0}, {2: -2.1, 6: -9.0}], [], given=True)
    found = difference([a], [b])
    assert (found.agreeing, found.compared) == (1, 2)
    assert found.mean == pytest.approx((8.9 + 2.0) / 2)
    assert judge_quantized("x", found, 4, 0.0).status == "FAIL"


def test_no_mean_is_no_small_mean() -> None:
    found = difference([Trace([1], [], [])], [Trace([1], [], [])])
    assert found.mean == math.inf
    assert judge_quantized("x", found, 8, 0.0).status == "FAIL"


def test_a_quantized_model_that_fails_midway() -> None:
    """The mean of what was said before is small."""
    scores = [{1: -1.0}, {2: -1.0}]
    found = difference([Trace([1, 2], scores, [])], [Trace([1], scores[:1], [], given=True)])
    assert found.mean == 0.0
    result = judge_quantized("x", found, 8, 0.0)
    assert (result.status, result.reason) == ("FAIL", "a request failed, or a log-probability is not a number")


def test_a_request_that_failed_on_both_ways() -> None:
    good, bad = Trace([1], [{1: -1.0}], []), Trace([], [], [], failed=True)
    assert judge("x", difference([good, bad], [good, bad]), "float32", 0.0).status == "FAIL"
