"""``/v1/chat/completions`` over HTTP: what comes in, what goes to the engine, what comes out."""

from __future__ import annotations

from typing import Any

import pytest

from helpers_client import FakeClient
from helpers_http import call, events_of, make, post, tokenizer
from octavo import SamplingParams

HI = [{"role": "user", "content": "Hi"}]
RENDERED = "<s><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
URL = "/v1/chat/completions"


def ids(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


def backwards(text: str, count: int) -> str:
    """What `FakeClient` answers."""
    return "".join(tokenizer().decode([i], skip_special_tokens=False) for i in ids(text)[::-1][:count])


def test_a_chat() -> None:
    app, client = make()
    body = post(app, URL, {"messages": HI, "max_tokens": 4, "temperature": 0})
    assert client.calls[0]["prompt"] == ids(RENDERED)
    assert client.calls[0]["params"] == SamplingParams(max_tokens=4, temperature=0)
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": backwards(RENDERED, 4), "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    read = len(ids(RENDERED))
    assert body["usage"] == {
        "prompt_tokens": read,
        "completion_tokens": 4,
        "total_tokens": read + 4,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert body["metrics"]["queue_time"] == 0.25
    assert body["metrics"]["waited_for"] == "needs blocks"


def test_a_streamed_chat_is_the_same_in_pieces() -> None:
    app, _ = make()
    ask = {"messages": HI, "max_tokens": 5, "n": 2, "logprobs": True, "top_logprobs": 2}
    whole = post(app, URL, ask)
    *events, done = events_of(call(app, "POST", URL, {**ask, "stream": True}))
    assert done == "[DONE]"
    assert len({event["id"] for event in events}) == 1
    for choice in whole["choices"]:
        mine = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"]["content"] for c in mine) == choice["message"]["content"]
        assert [c["finish_reason"] for c in mine[:-1]] == [None] * 5
        assert (mine[-1]["finish_reason"], mine[-1]["stop_reason"]) == ("length", None)
        scores = [entry for c in mine if c["logprobs"] for entry in c["logprobs"]["content"]]
        assert scores == choice["logprobs"]["content"]
    assert [("metrics" in event, "usage" in event) for event in events] == [(False, False)] * 11 + [(True, False)]


@pytest.mark.parametrize("always", [False, True])
def test_usage_in_a_stream(always: bool) -> None:
    app, _ = make()
    options = {"include_usage": True, "continuous_usage_stats": always}
    ask = {"messages": HI, "max_tokens": 3, "stream": True, "stream_options": options}
    *events, last, _ = events_of(call(app, "POST", URL, ask))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    counts = [event["usage"]["completion_tokens"] for event in events if "usage" in event]
    assert counts == ([1, 1, 2, 3] if always else [])


def test_sampling_fields_reach_the_engine() -> None:
    app, client = make()
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "seed": 4,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "stop": ["x"],
        "stop_token_ids": [3],
        "ignore_eos": True,
        "min_tokens": 1,
        "max_tokens": 2,
        "bad_words": ["b"],
        "allowed_token_ids": [1, 2],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "prompt_logprobs": 1,
    }
    more = {"priority": 3, "timeout": 9.5, "cache_salt": "mine", "logit_bias": {"5": 1}}
    post(app, URL, {"messages": HI, **fields, **more})
    (seen,) = client.calls
    assert seen["params"] == SamplingParams(**fields, logit_bias={5: 1.0})
    assert (seen["priority"], seen["cache_salt"], seen["lora"]) == (3, "mine", None)
    assert seen["timeout"] == pytest.approx(9.5, abs=0.5)


def test_extras_of_vllm() -> None:
    app, client = make()
    ask = {"messages": HI, "max_tokens": 2, "return_token_ids": True, "logprobs": True}
    ask |= {"return_tokens_as_token_ids": True, "truncate_prompt_tokens": 3, "add_special_tokens": True}
    body = post(app, URL, ask)
    prompt = tokenizer().encode(RENDERED, add_special_tokens=True)[-3:]
    assert client.calls[0]["prompt"] == body["prompt_token_ids"] == prompt
    assert body["choices"][0]["token_ids"] == prompt[::-1][:2]
    assert [e["token"] for e in body["choices"][0]["logprobs"]["content"]] == [f"token_id:{i}" for i in prompt[:0:-1]]


def test_a_chat_that_goes_on_without_a_new_turn() -> None:
    app, client = make()
    post(app, URL, {"messages": HI, "add_generation_prompt": False, "max_tokens": 1})
    assert client.calls[0]["prompt"] == ids(RENDERED.removesuffix("<|im_start|>assistant\n"))


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"messages": []}, "messages", "messages must be a non-empty list"),
        ({"messages": None}, "messages", "messages is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "accepted: text"),
        ({"temperature": -1}, "temperature", "temperature=-1.0 is out of range"),
        ({"max_tokens": 9999}, None, "accepted: up to 4095"),
        ({"functions": [{}]}, "functions", "functions is not supported"),
        ({"use_beam_search": True}, "use_beam_search", "use_beam_search is not supported"),
        ({"chat_template": "x"}, "chat_template", "trust-request-chat-template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "may not hold 'messages'"),
        ({"timeout": 0}, "timeout", "seconds, more than 0"),
        ({"priority": 2**40}, "priority", "accepted: from"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
        ({"stop": [str(i) for i in range(100_000)]}, "stop", "at most 64 are accepted"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_a_400_also_before_a_stream(
    change: dict[str, Any], param: str | None, message: str, stream: bool
) -> None:
    app, client = make()
    answer = call(app, "POST", URL, {"messages": HI, "stream": stream, **change})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert not client.running


def test_a_requests_own_template_where_it_is_trusted() -> None:
    app, client = make(trust_request_chat_template=True)
    post(app, URL, {"messages": HI, "chat_template": "{{ messages[0].content }}!", "max_tokens": 1})
    assert client.calls[0]["prompt"] == ids("Hi!")
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    answer = call(app, "POST", URL, {"messages": HI, "chat_template": loops})
    assert answer.status_code == 400
    assert "was stopped" in answer.json()["error"]["message"]


def test_the_servers_template_comes_before_the_models() -> None:
    app, client = make(chat_template="{{ messages[0].content }}?")
    post(app, URL, {"messages": HI, "max_tokens": 1})
    assert client.calls[0]["prompt"] == ids("Hi?")


def test_an_error_of_the_engine_in_a_plain_answer() -> None:
    app, _ = make(FakeClient(tokenizer(), broken_after=1))
    answer = call(app, "POST", URL, {"messages": HI, "max_tokens": 5})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the model failed: the device is lost"
