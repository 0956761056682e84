"""Lines of batch files, in and out."""

from __future__ import annotations

import json

import msgspec
import pytest

from octavo.batch.lines import (
    DUPLICATE,
    INVALID_LINE,
    PREFIX,
    SeenLine,
    encode_line,
    parse_envelope,
    parse_job,
)
from octavo.openai.errors import FieldError, failure, refusal
from octavo.openai.schema import ChatCompletionRequest, CompletionRequest

GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi"}}


def test_a_good_line_becomes_a_job() -> None:
    job = parse_job(parse_envelope(7, json.dumps(GOOD).encode()))
    assert (job.number, job.custom_id, job.body) == (7, "a", CompletionRequest(prompt="Hi"))
    chat = {**GOOD, "url": "/v1/chat/completions", "body": {"messages": [{"role": "user"}]}}
    assert parse_job(parse_envelope(7, json.dumps(chat).encode())).body == ChatCompletionRequest(
        messages=[{"role": "user"}]
    )


@pytest.mark.parametrize(
    "data", [b"x", b"[]", b"5", b"{", b'{"custom_id":"a"', b"\xff", b'{"a":"\\ud800"}', b"[" * 100_000, b"\x00"]
)
def test_a_line_that_is_no_object_has_no_custom_id(data: bytes) -> None:
    with pytest.raises(FieldError, match="line 3 is not a JSON object") as caught:
        parse_envelope(3, data)
    assert caught.value.code == INVALID_LINE


@pytest.mark.parametrize("custom_id", ["5", "null", "true", "{}", '["a"]', "[" * 5000 + "]" * 5000])
def test_a_custom_id_is_a_string(custom_id: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse_envelope(3, f'{{"custom_id":{custom_id},"method":"POST"}}'.encode())
    assert caught.value.code == INVALID_LINE


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"method": "GET"}, "method", "method is 'GET'; accepted: POST"),
        ({"method": None}, "method", "method is None; accepted: POST"),
        ({"url": "/v1/embeddings"}, "url", "url is '/v1/embeddings'; accepted: /v1/chat/completions, /v1/completions"),
        ({"url": ["/v1/completions"]}, "url", "accepted: /v1/chat/completions"),
        ({"extra": 1}, "extra", "there is no field 'extra'; accepted: custom_id, method, url, body"),
        ({"body": 5}, None, "the body is not a JSON object"),
        ({"body": {}}, "prompt", "prompt is missing"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(change: dict[str, object], param: str | None, message: str) -> None:
    envelope = parse_envelope(1, json.dumps(GOOD | change).encode())
    assert envelope.custom_id == "a"
    with pytest.raises(FieldError) as caught:
        parse_job(envelope)
    assert caught.value.param == param
    assert message in str(caught.value)


def test_a_line_without_a_body() -> None:
    fields = {name: value for name, value in GOOD.items() if name != "body"}
    with pytest.raises(FieldError, match="body is missing"):
        parse_job(parse_envelope(1, json.dumps(fields).encode()))


def test_an_error_has_openais_shape() -> None:
    line = encode_line(4, "a", "req_1", refusal(FieldError("no\nway", "n", "bad")), 400)
    assert line.startswith(PREFIX)
    assert line.count(b"\n") == 1
    error = {"message": "no\nway", "type": "invalid_request_error", "param": "n", "code": "bad"}
    response = {"status_code": 400, "request_id": "req_1", "body": {"error": error}}
    assert json.loads(line) == {"id": "batch_req_4", "custom_id": "a", "response": response, "error": None}


@pytest.mark.parametrize(
    ("custom_id", "code", "key"),
    [("a", None, "a"), ("a", "other", "a"), ("a", DUPLICATE, None), (None, INVALID_LINE, None)],
)
def test_which_answers_settle_a_custom_id(custom_id: str | None, code: str | None, key: str | None) -> None:
    line = encode_line(4, custom_id, "req_1", refusal(FieldError("no", None, code)), 400)
    seen = msgspec.json.decode(line, type=SeenLine)
    assert (seen.id, seen.key) == ("batch_req_4", key)


def test_a_failure_settles_it_too() -> None:
    assert msgspec.json.decode(encode_line(4, "a", "r", failure("x"), 500), type=SeenLine).key == "a"
