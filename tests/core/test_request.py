from __future__ import annotations

from typing import Any

import pytest

from helpers_core import chain_hash, make_request
from octavo.errors import RequestError
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "limit", "message"),
    [
        (0, 1, 10, "the prompt is empty"),
        (10, 1, 10, "the prompt has 10 tokens; at most 9 are accepted"),
        (50, 1, 10, "the prompt has 50 tokens; at most 9 are accepted"),
        (6, 5, 10, "need 11 tokens, of 10; max_tokens from 1 to 4 is accepted"),
        (6, 0, 10, "max_tokens from 1 to 4 is accepted"),
        (1, 1, 1, "at most 0 are accepted"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_number_that_would(
    prompt: int, max_tokens: int, limit: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        make_request("a", prompt, max_tokens).check_fits(limit)


def test_what_just_fits_is_accepted() -> None:
    make_request("a", 6, 4).check_fits(10)
    make_request("a", 9, 1).check_fits(10)


def test_block_hashes_are_chained_salted_and_kept() -> None:
    request = make_request("a", [1, 2, 3, 4, 5], salt=b"tenant")
    first = chain_hash(b"tenant", [1, 2])
    assert request.hashes(1, 2) == [first]
    assert request.hashes(2, 2) == [first, chain_hash(first, [3, 4])]
    assert request.hashes(1, 2) == [first]


def test_num_remaining_counts_down_to_the_next_sample() -> None:
    request = make_request("a", 5, 2)
    assert request.num_remaining == 5
    request.num_computed = 3
    assert request.num_remaining == 2
    request.num_computed, request.num_pending = 5, 1
    assert request.num_remaining == 1, "the pending token is an input of the next step"
    request.num_pending = 2
    assert request.num_remaining == 0, "no third token is wanted"


@pytest.mark.parametrize(
    ("output", "params", "eos", "stop"),
    [
        ([5], SamplingParams(), (2,), None),
        ([2], SamplingParams(), (2,), ("stop", None)),
        ([2], SamplingParams(), (), None),
        ([3], SamplingParams(stop_token_ids=[3]), (2,), ("stop", 3)),
        ([3], SamplingParams(stop_token_ids=[3]), (3,), ("stop", None)),
        ([2], SamplingParams(min_tokens=2), (2,), None),
        ([3], SamplingParams(min_tokens=2, stop_token_ids=[3]), (2,), None),
        ([2, 2], SamplingParams(min_tokens=2), (2,), ("stop", None)),
        ([5, 5, 5], SamplingParams(), (2,), ("length", None)),
        ([5, 5, 2], SamplingParams(), (2,), ("stop", None)),
        ([5, 5, 5], SamplingParams(min_tokens=9, max_tokens=9), (2,), ("length", None)),
    ],
)
def test_why_it_ends(output: list[int], params: SamplingParams, eos: tuple[int, ...], stop: object) -> None:
    request = make_request("a", 4, 3, params=params, eos_token_ids=eos)
    request.tokens.extend(output)
    assert request.stop_after(output[-1]) == stop


@pytest.mark.parametrize(
    ("options", "bad_words", "names"),
    [
        ({"allowed_token_ids": [5]}, ((5,),), "allowed_token_ids, bad_words"),
        (
            {"allowed_token_ids": [2], "min_tokens": 2, "stop_token_ids": [2]},
            (),
            "allowed_token_ids, min_tokens (no stop token before it)",
        ),
        (
            {"allowed_token_ids": [5], "min_tokens": 1, "stop_token_ids": [2]},  # it has so many
            ((5,),),
            "allowed_token_ids, bad_words",
        ),
        ({"allowed_token_ids": [5], "min_tokens": 2}, ((5,),), "allowed_token_ids, bad_words"),  # nothing would stop it
        ({"min_tokens": 2, "stop_token_ids": [0, 1, 2]}, (), "min_tokens (no stop token before it)"),
        ({}, ((0,), (1,)), "bad_words"),
    ],
)
def test_why_its_options_leave_no_token(
    options: dict[str, Any], bad_words: tuple[tuple[int, ...], ...], names: str
) -> None:
    request = make_request("a", 4, params=SamplingParams(**options), bad_words=bad_words)
    request.tokens.append(7)
    assert request.why_no_token() == f"{names}: every token is banned; accepted: options that leave at least one"


def test_a_form_is_to_blame_for_what_other_options_leave_of_it() -> None:
    params = SamplingParams(allowed_token_ids=[5], structured_outputs=StructuredOutputs(regex="a"))
    why = make_request("a", 4, params=params).why_no_token()
    assert why.startswith("no token is left: the request's other options (min_tokens, allowed_token_ids, bad_words)")
