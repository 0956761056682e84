"""Bodies of requests: what is read, what is refused and how it is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.openai.decode import decode_body
from octavo.openai.errors import FieldError, refusal
from octavo.openai.schema import IGNORED, ChatCompletionRequest, CompletionRequest, SamplingFields

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"prompt": "Hi"}
BOTH: list[tuple[type[SamplingFields], dict[str, Any]]] = [(ChatCompletionRequest, CHAT), (CompletionRequest, TEXT)]


def decode(kind: type[SamplingFields], fields: dict[str, Any]) -> Any:
    return decode_body(json.dumps(fields).encode(), kind)  # type: ignore[type-var]


def error_of(kind: type[SamplingFields], fields: Any) -> FieldError:
    with pytest.raises(FieldError) as caught:
        decode(kind, fields)
    return caught.value


def test_every_field_of_a_chat() -> None:
    fields = {
        **CHAT,
        "model": "any",
        "max_tokens": 5,
        "temperature": 1,
        "stop": ["a", "b"],
        "logit_bias": {"5": -1},
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    body = decode(ChatCompletionRequest, fields)
    assert {name: getattr(body, name) for name in fields} == fields


@pytest.mark.parametrize("prompt", ["Hi", "", ["a", "b"], [1, 2], [[1, 2], [3]], []])
def test_prompts_of_all_kinds(prompt: Any) -> None:
    assert decode(CompletionRequest, {"prompt": prompt}).prompt == prompt


@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest])
def test_null_is_the_same_as_nothing(kind: type[SamplingFields]) -> None:
    fields = CHAT if kind is ChatCompletionRequest else TEXT
    names = {*kind.__struct_fields__, *kind.UNSUPPORTED, *IGNORED} - set(fields)
    assert decode(kind, fields | dict.fromkeys(names)) == decode(kind, fields)


def test_who_asks_is_ignored() -> None:
    assert decode(CompletionRequest, TEXT | {name: {"a": 1} for name in IGNORED}) == decode(CompletionRequest, TEXT)


@pytest.mark.parametrize(
    ("kind", "good", "name"),
    [(kind, good, name) for kind, good in BOTH for name in kind.UNSUPPORTED],
)
def test_what_is_not_supported_is_refused_unless_it_asks_for_nothing(
    kind: type[SamplingFields], good: dict[str, Any], name: str
) -> None:
    error = error_of(kind, good | {name: ["something"]})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert str(error) == f"{name} is not supported; leave it out"
    for neutral in kind.UNSUPPORTED[name]:
        assert decode(kind, good | {name: neutral}) == decode(kind, good)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"prompt": "a", "temprature": 1},
            "temprature",
            "there is no field 'temprature' (did you mean 'temperature'?)",
        ),
        ({"prompt": "a", "messages": []}, "messages", "there is no field 'messages'"),
        ({}, "prompt", "prompt is missing"),
        ({"prompt": None}, "prompt", "prompt is missing"),
        ({"prompt": 5}, "prompt", "prompt: expected str | array, got int"),
        ({"prompt": [[1, "a"]]}, "prompt", "prompt[0][1]: expected int, got str"),
        ({"prompt": [True]}, "prompt", "prompt[0]: expected int | str | array, got bool"),
        ({"prompt": "a", "n": 1.5}, "n", "n: expected int | null, got float"),
        ({"prompt": "a", "temperature": "1"}, "temperature", "temperature: expected float | null, got str"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "logprobs: expected int | null, got bool"),
        ({"prompt": "a", "logit_bias": {"5": "x"}}, "logit_bias", "logit_bias[...]: expected float, got str"),
        ({"prompt": "a", "stop": [1]}, "stop", "stop[0]: expected str, got int"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, message: str) -> None:
    error = error_of(CompletionRequest, fields)
    assert (error.param, str(error)) == (param, message)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'"x"', b"\xff", b'{"prompt":NaN}', b'{"a":' * 100_000])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(FieldError, match="the body is not a JSON object"):
        decode_body(data, CompletionRequest)


def test_a_refusal_names_the_field_that_its_error_begins_with() -> None:
    from octavo.errors import RequestError

    fields = CompletionRequest.__struct_fields__
    assert refusal(RequestError("top_p=2 is out of range"), fields).error.param == "top_p"
    assert refusal(RequestError("the prompt is empty"), fields).error.param is None
    assert refusal(FieldError("no", "n", "c")).error.code == "c"


def test_a_name_of_a_million_characters_is_not_repeated() -> None:
    with pytest.raises(FieldError, match=r"there is no field 'a{90,100}$") as caught:
        decode_body(b'{"prompt": "a", "' + b"a" * 1_000_000 + b'": 1}', CompletionRequest)
    assert caught.value.param == "a" * 100
