"""Sampling options: what is accepted, and what an error says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from octavo import RequestError, SamplingParams, UsageError
from octavo.sampling_params import MAX_ENTRIES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": math.nan}, "from 0 to 100"),
        ({"temperature": math.inf}, "from 0 to 100"),
        ({"temperature": -0.1}, "from 0 to 100"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"temperature": True}, "temperature=True"),
        ({"temperature": 10**400}, "from 0 to 100"),
        ({"top_p": 0}, "above 0 to 1"),
        ({"top_p": 1.1}, "above 0 to 1"),
        ({"min_p": -1}, "from 0 to 1"),
        ({"top_k": -2}, "whole number from 0"),
        ({"top_k": 1.5}, "whole number from 0"),
        ({"repetition_penalty": 0}, "above 0"),
        ({"presence_penalty": 3}, "from -2 to 2"),
        ({"frequency_penalty": -3}, "from -2 to 2"),
        ({"n": 0}, "from 1"),
        ({"max_tokens": 0}, "or None"),
        ({"min_tokens": 5, "max_tokens": 4}, "more than max_tokens=4"),
        ({"seed": "x"}, "seed='x'"),
        ({"logprobs": -1}, "logprobs=-1"),
        ({"prompt_logprobs": 10**9}, "prompt_logprobs"),
        ({"stop": ""}, "non-empty strings"),
        ({"stop": ["a", 3]}, "non-empty strings"),
        ({"stop": ["a"] * 1000}, "at most"),
        ({"stop": ["a"], "detokenize": False}, "stop_token_ids instead"),
        ({"bad_words": [""]}, "non-empty strings"),
        ({"allowed_token_ids": []}, "at least one"),
        ({"logit_bias": {3: math.nan}}, r"logit_bias\[3\]"),
        ({"logit_bias": {"3": 1.0}}, "token id in logit_bias"),
        ({"stop_token_ids": [-1]}, "token id in stop_token_ids"),
        ({"stop": 5}, "stop=5; accepted: a list"),
        ({"bad_words": "abc"}, "bad_words='abc'; accepted: a list"),
        ({"allowed_token_ids": 5}, "allowed_token_ids=5; accepted: a list"),
        ({"logit_bias": [1]}, r"logit_bias=\[1\]; accepted: a dictionary"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_accepted(options, message):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**options)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"no argument 'temprature' \(did you mean 'temperature'\?\)"):
        SamplingParams(temprature=1)


def test_values_are_brought_to_one_form():
    params = SamplingParams(stop="x", top_k=-1, temperature=0)
    assert (params.stop, params.top_k, params.greedy) == (["x"], 0, True)
    assert SamplingParams(stop=None, bad_words=None, stop_token_ids=None).stop == []


def test_numbers_and_arrays_of_numpy_are_as_good_as_pythons():
    params = SamplingParams(
        max_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.uint8(7), logit_bias={np.int32(4): np.float64(1)},
        allowed_token_ids=np.array([3, 4]), stop_token_ids=(np.int64(5),),
    )  # fmt: skip
    expected = SamplingParams(
        max_tokens=3, temperature=0.5, seed=7, logit_bias={4: 1.0}, allowed_token_ids=[3, 4], stop_token_ids=[5]
    )
    assert params == expected
    assert [type(v) for v in (params.max_tokens, params.temperature, params.seed)] == [int, float, int]
    with pytest.raises(RequestError, match=r"max_tokens=.*2\.5"):
        SamplingParams(max_tokens=np.float64(2.5))


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_lists_longer_than_any_vocabulary_are_refused(name):
    ids = range(MAX_ENTRIES + 1)
    value = dict.fromkeys(ids, 1.0) if name == "logit_bias" else list(ids)
    with pytest.raises(RequestError, match=f"{name} has {MAX_ENTRIES + 1} entries; at most {MAX_ENTRIES} are accepted"):
        SamplingParams(**{name: value})
