"""A form that cannot be compiled is refused before its request is queued, at every route that takes one."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from helpers_client import FakeClient
from helpers_http import asgi, call, make, post, tokenizer
from octavo.client.verbs import FailedError
from octavo.errors import FormError
from octavo.grammar import form_check
from octavo.grammar.checked import checked_grammar
from octavo.server.app import create_app
from octavo.server.options import ServerOptions

HI = [{"role": "user", "content": "Hi"}]
BAD = {"type": "object", "properties": {"a": {"type": "no such type"}}}
CHAT, TEXT, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
SLOW = "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(60)) + '\nT60: "a"'
CASES: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"schema": BAD}}}, "json"),
    (CHAT, {"messages": HI, "structured_outputs": {"regex": "("}}, "regex"),
    (CHAT, {"messages": HI, "guided_grammar": "start: nothing"}, "grammar"),
    (TEXT, {"prompt": "Hi", "guided_json": BAD}, "json"),
    (RESPONSE, {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "a", "schema": BAD}}}, "json"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "kind"), CASES)
def test_a_bad_form_is_a_bad_request(path: str, body: dict[str, Any], kind: str, stream: bool) -> None:
    app, client = make()
    response = call(app, "POST", path, {**body, "stream": stream})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", list(body)[1])
    assert f"the {kind} of structured_outputs cannot be used" in error["message"]
    assert client.calls == []


def test_tools_whose_calls_cannot_be_forced() -> None:
    app, client = make(tool_call_parser="hermes")
    function = {"name": "clock", "parameters": BAD}
    chat = {"messages": HI, "tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    error = call(app, "POST", CHAT, chat)
    assert (error.status_code, error.json()["error"]["param"]) == (400, "tools")
    tool = {"name": "clock", "input_schema": BAD}
    message = {"messages": HI, "max_tokens": 5, "tools": [tool], "tool_choice": {"type": "any"}}
    error = call(app, "POST", "/v1/messages", message)
    assert (error.status_code, error.json()["error"]["type"]) == (400, "invalid_request_error")
    assert client.calls == []


def test_a_form_that_takes_long_to_try_delays_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    others_are_done = threading.Event()

    def check_late(*args: Any) -> str:
        assert others_are_done.wait(20)
        return checked_grammar(*args)

    monkeypatch.setattr(form_check, "checked_grammar", check_late)

    async def go() -> tuple[bool, int]:
        async with asgi(make()[0]) as client:
            slow = asyncio.create_task(client.post(TEXT, json={"prompt": "Hi", "guided_grammar": SLOW}))
            await asyncio.sleep(0.1)
            await asyncio.gather(*(client.post(TEXT, json={"prompt": "Hi", "max_tokens": 1}) for _ in range(8)))
            waits = not slow.done()
            others_are_done.set()
            return waits, (await slow).status_code

    assert asyncio.run(go()) == (True, 400)


def test_a_model_without_a_tokenizer_leaves_forms_to_the_engine() -> None:
    client = FakeClient()
    post(create_app(client, ServerOptions(), None), TEXT, {"prompt": [1], "max_tokens": 1, "guided_regex": "("})
    assert client.calls[0]["params"].structured_outputs.regex == "("


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", [FormError("it has no such token"), FailedError("a mistake of ours")])
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": HI, "guided_regex": "a"}, "guided_regex"),
        (TEXT, {"prompt": "Hi", "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        (RESPONSE, {"input": "Hi", "text": {"format": {"type": "json_object"}}}, "text"),
        ("/v1/messages", {"messages": HI, "max_tokens": 5}, "tools"),
    ],
)
def test_what_the_engine_says_of_a_form_names_its_field(
    path: str, body: dict[str, Any], field: str, failure: Exception, stream: bool
) -> None:
    """A form that only the model's vocabulary has no words for is the sender's to mend; what failed here is not."""
    app, _ = make(FakeClient(tokenizer(), failure=failure))
    response = call(app, "POST", path, {**body, "stream": stream})
    error = response.json()["error"]
    if isinstance(failure, FailedError):
        assert (response.status_code, error["message"]) == (500, "a mistake of ours")
        return
    assert (response.status_code, error["message"]) == (400, f"{field}: it has no such token")
    assert error.get("param", field) == field
