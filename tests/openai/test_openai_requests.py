"""From bodies to sampling parameters and prompts."""

from __future__ import annotations

from typing import Any

import pytest

from octavo import SamplingParams
from octavo.errors import RequestError
from octavo.openai.decode import convert_body
from octavo.openai.errors import FieldError
from octavo.openai.requests import (
    MAX_COMPLETIONS,
    check_stream,
    check_unforced,
    prompts_of,
    sampling_params,
    template_options,
)
from octavo.openai.schema import ChatCompletionRequest, CompletionRequest

SAME: dict[str, Any] = {
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.2,
    "frequency_penalty": -0.3,
    "seed": 4,
    "stop": ["x"],
    "stop_token_ids": [3],
    "ignore_eos": True,
    "min_tokens": 1,
    "max_tokens": 9,
    "bad_words": ["b"],
    "allowed_token_ids": [1, 2],
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "prompt_logprobs": 1,
}


def chat(**fields: Any) -> ChatCompletionRequest:
    return convert_body({"messages": [{"role": "user", "content": "Hi"}], **fields}, ChatCompletionRequest)


def text(**fields: Any) -> CompletionRequest:
    return convert_body({"prompt": "Hi", **fields}, CompletionRequest)


def test_fields_arrive_under_their_names() -> None:
    biased = {**SAME, "logit_bias": {"5": 1.5, "60": -2}}
    expected = {**SAME, "logit_bias": {5: 1.5, 60: -2.0}}
    assert sampling_params(text(**biased)) == SamplingParams(**expected)
    assert sampling_params(chat(**biased)) == SamplingParams(**expected)


def test_nothing_is_the_default_of_the_endpoint() -> None:
    assert sampling_params(text()) == SamplingParams(max_tokens=16)
    assert sampling_params(chat()) == SamplingParams(max_tokens=None)


def test_the_models_own_defaults_stand_in_for_what_is_not_said() -> None:
    own = {"temperature": 0.6, "top_k": 20}
    assert sampling_params(text(top_k=5), own) == SamplingParams(temperature=0.6, top_k=5)
    assert sampling_params(text(temperature=0), own) == SamplingParams(temperature=0, top_k=20)


@pytest.mark.parametrize(
    ("given", "length"),
    [({"max_completion_tokens": 7}, 7), ({"max_tokens": 7}, 7), ({"max_tokens": 7, "max_completion_tokens": 7}, 7)],
)
def test_both_names_of_a_chats_length(given: dict[str, int], length: int) -> None:
    assert sampling_params(chat(**given)).max_tokens == length


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3)],
)
def test_logprobs_of_a_chat(given: dict[str, Any], expected: int | None) -> None:
    assert sampling_params(chat(**given)).logprobs == expected


@pytest.mark.parametrize("count", [None, 0, 4])
def test_logprobs_of_a_completion(count: int | None) -> None:
    assert sampling_params(text(logprobs=count)).logprobs == count


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_tokens": 1, "max_completion_tokens": 2}, "contradict each other"),
        ({"top_logprobs": 1}, "top_logprobs needs logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "logprobs=-1 is out of range"),
        ({"logit_bias": {"a": 1}}, "logit_bias has the key 'a'"),
        ({"logit_bias": {"-1": 1}}, "logit_bias has the key '-1'"),
        ({"logit_bias": {"²": 1}}, "logit_bias has the key"),
        ({"logit_bias": {"5": 101}}, r"logit_bias\[5\]=101.0 is out of range"),
        ({"max_tokens": 0}, "max_tokens=0 is out of range"),
        ({"n": 0}, "n=0 is out of range"),
        ({"seed": 10**30}, "seed=1000000000000000000000000000000 is out of range"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens=5 is more than max_tokens=4"),
    ],
)
def test_contradictions_and_values_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        sampling_params(chat(**given))


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a"], ["a"]),
        (["a", ""], ["a", ""]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ("", [""]),
    ],
)
def test_prompts(prompt: Any, prompts: Any) -> None:
    assert prompts_of(text(prompt=prompt)) == prompts


@pytest.mark.parametrize("prompt", [[], ["a", 1], [1, [1]], ["a", [1]]])
def test_mixed_and_missing_prompts(prompt: Any) -> None:
    with pytest.raises(FieldError, match="prompt takes a text, a list of token ids"):
        prompts_of(text(prompt=prompt))


def test_a_body_is_not_a_million_requests() -> None:
    assert len(prompts_of(text(prompt=["a"] * (MAX_COMPLETIONS // 4), n=4))) == MAX_COMPLETIONS // 4
    with pytest.raises(FieldError, match="at most 4096 completions"):
        prompts_of(text(prompt=["a"] * (MAX_COMPLETIONS // 4 + 1), n=4))
    assert prompts_of(text(prompt=[1] * 2 * MAX_COMPLETIONS)) == [[1] * 2 * MAX_COMPLETIONS]


def test_what_the_template_gets() -> None:
    tools = [{"type": "function"}]
    plain = {"add_generation_prompt": True, "continue_final_message": False, "chat_template_kwargs": None}
    assert template_options(chat()) == {"tools": None, **plain}
    assert template_options(chat(tools=tools, tool_choice="auto"))["tools"] == tools
    assert template_options(chat(tools=tools, tool_choice="none"))["tools"] is None
    assert template_options(chat(add_generation_prompt=False))["add_generation_prompt"] is False
    assert template_options(chat(chat_template_kwargs={"a": 1}))["chat_template_kwargs"] == {"a": 1}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(FieldError, match="calls cannot be forced"):
            check_unforced(chat(tools=tools, tool_choice=choice))


def test_an_echo_with_scores_needs_those_of_the_prompt() -> None:
    assert sampling_params(text(echo=True)) == SamplingParams(max_tokens=16)
    assert sampling_params(text(echo=True, logprobs=2)).prompt_logprobs == 2
    assert sampling_params(text(echo=True, logprobs=2, prompt_logprobs=5)).prompt_logprobs == 5
    assert sampling_params(text(echo=True, max_tokens=0)).max_tokens == 1


def test_stream_options_need_a_stream() -> None:
    check_stream(text(stream=True, stream_options={"include_usage": True}))
    with pytest.raises(FieldError, match="stream_options needs stream"):
        check_stream(text(stream_options={"include_usage": True}))
