"""Tokens, templates, models, adapters, embeddings, filling in: the routes that are short."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import tokenizers

from helpers_client import FakeClient
from helpers_http import call, events_of, make, post, tokenizer
from octavo.errors import RequestError
from octavo.server.caller import SCOPE_KEY, Caller
from octavo.server.live import Live, Running
from octavo.text.fim import encode_fill
from octavo.text.hf_tokenizer import HFTokenizer
from octavo.text.tokenizer_config import TokenizerConfig

HI = [{"role": "user", "content": "Hi"}]


def test_tokens_there_and_back() -> None:
    app, _ = make()
    ids = tokenizer().encode("Hello world")
    said = post(app, "/tokenize", {"prompt": "Hello world", "return_token_strs": True})
    assert (said["tokens"], said["count"], said["max_model_len"]) == (ids, len(ids), 4096)
    assert said["token_strs"] == [tokenizer().id_to_token(i) for i in ids]
    assert post(app, "/detokenize", {"tokens": ids}) == {"prompt": "<s>Hello world"}
    bare = post(app, "/tokenize", {"prompt": "Hello world", "add_special_tokens": False})
    assert bare["tokens"] == ids[1:]


def test_a_chat_as_text_and_as_tokens() -> None:
    app, _ = make()
    text = post(app, "/apply-template", {"messages": HI})["prompt"]
    assert text == "<s><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
    said = post(app, "/tokenize", {"messages": HI})
    assert said["tokens"] == tokenizer().encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "either prompt or messages"),
        ("/tokenize", {"prompt": "a", "messages": HI}, "either prompt or messages"),
        ("/apply-template", {}, "messages is missing"),
        ("/detokenize", {"tokens": [10**9]}, "accepted: whole numbers from 0 to"),
        ("/v1/embeddings", {"input": []}, "input takes"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "accepted: float, base64"),
        ("/v1/embeddings", {"input": "a", "dimensions": 5}, "dimensions is not supported"),
        ("/v1/embeddings", {"input": ["a"] * 3000}, "at most 2048"),
        ("/v1/completions", {"prompt": [10**9]}, "accepted: whole numbers from 0 to"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "fill-in-the-middle"),
        ("/v1/completions", {"prompt": "a", "best_of": 3}, "best_of is not supported"),
        ("/v1/responses", {"input": "a", "store": True}, "store is not supported"),
        ("/v1/responses", {"input": "a", "previous_response_id": "x"}, "previous_response_id is not supported"),
        ("/v1/responses", {"input": [{"type": "web_search_call"}]}, "accepted: message"),
        ("/v1/responses", {"input": "a", "tools": [{"type": "web_search"}]}, "accepted: function"),
        ("/v1/messages", {"messages": [], "max_tokens": 5}, "non-empty"),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 5}, "text"),
        ("/v1/messages", {"messages": HI}, "max_tokens is missing"),
    ],
)
def test_what_is_refused(path: str, body: Any, message: str) -> None:
    answer = call(make()[0], "POST", path, body)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


def test_an_echo_of_no_tokens() -> None:
    app, _ = make()
    ask = {"prompt": "Hi", "max_tokens": 0, "echo": True, "logprobs": 1}
    body = post(app, "/v1/completions", ask)
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hi", "length")
    assert choice["logprobs"]["tokens"] == ["<s>", "H", "i"]
    assert body["usage"]["completion_tokens"] == 0
    (event, _) = events_of(call(app, "POST", "/v1/completions", {**ask, "stream": True}))
    assert event["choices"][0]["text"] == "Hi"


def test_vectors_have_a_deadline_too() -> None:
    app, client = make()
    answer = call(app, "POST", "/v1/embeddings", {"input": "Hi"}, headers={"x-request-timeout": "5"})
    assert (answer.status_code, client.calls[-1]["timeout"]) == (200, pytest.approx(5.0, abs=0.5))


def test_adapters_are_models() -> None:
    app, client = make(allow_lora_loading=True)
    post(app, "/v1/load_lora_adapter", {"lora_name": "poet", "lora_path": "/poet"})
    assert [card["id"] for card in call(app, "GET", "/v1/models").json()["data"]] == ["tiny", "poet"]
    body = post(app, "/v1/completions", {"model": "poet", "prompt": "a", "max_tokens": 1})
    assert (body["model"], client.calls[0]["lora"]) == ("poet", "poet")
    vectors = post(app, "/v1/embeddings", {"model": "poet", "input": "a"})
    assert (vectors["model"], client.calls[1]["lora"]) == ("poet", "poet")
    post(app, "/v1/embeddings", {"input": "a"})
    assert client.calls[2]["lora"] is None
    post(app, "/v1/unload_lora_adapter", {"lora_name": "poet"})
    assert call(app, "POST", "/v1/completions", {"model": "poet", "prompt": "a"}).status_code == 404


def test_adapters_are_loaded_only_where_that_is_allowed() -> None:
    wanted = {"lora_name": "poet", "lora_path": "/poet"}
    assert call(make()[0], "POST", "/v1/load_lora_adapter", wanted).status_code == 403
    app, _ = make(FakeClient(tokenizer(), max_loras=0), allow_lora_loading=True)
    assert "without adapters" in call(app, "POST", "/v1/load_lora_adapter", wanted).text
    app, _ = make(allow_lora_loading=True)
    for change in ({"lora_name": "tiny"}, {"lora_name": ""}, {"lora_path": "relative"}, {"lora_path": "/a\0"}):
        assert call(app, "POST", "/v1/load_lora_adapter", wanted | change).status_code == 400


def test_several_names_of_the_model() -> None:
    app, _ = make(served_model_names=("one", "two"))
    for name in ("one", "two"):
        assert post(app, "/v1/completions", {"model": name, "prompt": "a", "max_tokens": 1})["model"] == name
    assert post(app, "/v1/completions", {"prompt": "a", "max_tokens": 1})["model"] == "one"


def test_a_caller_is_heard() -> None:
    """What stands before the routes says who asks: fair shares, priority and the shortest timeout follow."""
    app, client = make()

    async def with_caller(scope: Any, receive: Any, send: Any) -> None:
        scope[SCOPE_KEY] = Caller("ada", 5)
        await app(scope, receive, send)

    body = {"prompt": "a", "max_tokens": 1, "priority": 2, "timeout": 9}
    assert call(with_caller, "POST", "/v1/completions", body, headers={"x-request-timeout": "2"}).status_code == 200
    (seen,) = client.calls
    assert (seen["share_key"], seen["priority"], seen["timeout"]) == ("ada", 7, pytest.approx(2.0, abs=0.5))


def test_only_the_owner_finds_a_request() -> None:
    live = Live()
    with live.entered(["a", "x"], Running("ada", ["1"])), live.entered(["b", "x"], Running("bob", ["2"])):
        assert [running.engine_ids for running in live.find("x", "ada")] == [["1"]]
        assert live.find("b", "ada") == []
        assert len(live) == 2
    assert live.find("x", "ada") == []
    assert not len(live)


def test_filling_in_the_middle() -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer().to_json())
    names = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    backend.add_special_tokens(names)
    filler = HFTokenizer(
        backend, TokenizerConfig(bos_token="<s>", eos_token="</s>", chat_template=None, added_tokens={})
    )
    text = filler.decode(encode_fill(filler, "def f(", "): pass"), skip_special_tokens=False)
    assert text == "<s><|fim_prefix|>def f(<|fim_suffix|>): pass<|fim_middle|>"
    with pytest.raises(RequestError, match="fill-in-the-middle"):
        encode_fill(tokenizer(), "a", "b")


def test_embeddings_that_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    app, client = make()

    async def never(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(client, "embed", never)
    response = call(app, "POST", "/v1/embeddings", {"input": ["a", "b"]}, headers={"x-request-timeout": "0.05"})
    assert (response.status_code, response.json()["error"]["type"]) == (504, "timeout_error")
    assert "before all vectors were ready" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_that_takes_too_long_is_told_as_anthropics_clients_know_it(stream: bool) -> None:
    app, client = make(FakeClient(tokenizer(), reason="deadline"), stream_patience=0.2)
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "stream": stream}
    response = call(app, "POST", "/v1/messages", body)
    assert (response.status_code, response.json()["type"]) == (504, "error")
    assert response.json()["error"]["type"] == "timeout_error"
    client.reason = None
    late = FakeClient(tokenizer(), reason="deadline", gap=0.1)
    response = call(make(late, stream_patience=0.01)[0], "POST", "/v1/messages", {**body, "stream": True})
    assert response.status_code == 200
    assert '"type":"timeout_error"' in response.text.split("event: error\n")[1]
