"""The official ``openai`` and ``anthropic`` clients against a live server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

import openai
from helpers_client import FakeClient
from helpers_http import live_url, make, tokenizer

HI: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'
THOUGHT = "<think>\nIt is cold.\n</think>\n\nYes."


class Served:
    """A live server whose engine answers with a text."""

    def __init__(self, url: str, client: FakeClient) -> None:
        self.client = client
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.openai_async = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
        self.anthropic_async = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)

    def says(self, text: str) -> None:
        self.client.script = tokenizer().encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    app, client = make(reasoning_parser="think", tool_call_parser="json")
    with live_url(app) as url:
        yield Served(url, client)


@pytest.fixture(autouse=True)
def fresh(server: Served) -> None:
    server.client.failure = server.client.broken_after = None
    server.client.calls.clear()
    server.says("Hello there, friend.")


def test_chat(server: Served) -> None:
    answer = server.openai.chat.completions.create(
        model="tiny", messages=HI, n=2, logprobs=True, top_logprobs=2, max_tokens=4
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content == answer.choices[1].message.content
    assert answer.choices[0].finish_reason == "length"
    scores = answer.choices[0].logprobs
    assert scores is not None
    assert scores.content is not None
    assert "".join(entry.token for entry in scores.content) == answer.choices[0].message.content
    assert [len(entry.top_logprobs) for entry in scores.content] == [2] * 4
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 1


def test_streamed_chat(server: Served) -> None:
    stream = server.openai.chat.completions.create(
        model="tiny", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there, friend."
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_asynchronous_streams(server: Served) -> None:
    async def one() -> str:
        stream = await server.openai_async.chat.completions.create(model="tiny", messages=HI, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one() for _ in range(20)))

    assert asyncio.run(all_of_them()) == ["Hello there, friend."] * 20


def test_completion(server: Served) -> None:
    answer = server.openai.completions.create(model="tiny", prompt=["a", "b"], max_tokens=2, echo=True, logprobs=1, n=2)
    assert [(c.index, c.text[0]) for c in answer.choices] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.token_logprobs == [None, -0.5, -0.5, -0.5]
    pieces = server.openai.completions.create(model="tiny", prompt=["a", "b"], max_tokens=2, echo=True, stream=True)
    texts = ["", ""]
    for piece in pieces:
        texts[piece.choices[0].index] += piece.choices[0].text
    assert texts == [answer.choices[0].text, answer.choices[2].text]


def test_reasoning_and_calls(server: Served) -> None:
    server.says(THOUGHT)
    message = server.openai.chat.completions.create(model="tiny", messages=HI).choices[0].message
    assert (message.content, message.reasoning_content) == ("Yes.", "It is cold.")  # type: ignore[attr-defined]
    server.says(CALL)
    choice = server.openai.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})


def test_streamed_calls(server: Served) -> None:
    server.says(CALL)
    with server.openai.chat.completions.stream(model="tiny", messages=HI, tools=[WEATHER]) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Oslo"}


def test_a_forced_call_becomes_a_grammar(server: Served) -> None:
    server.says(CALL)
    server.openai.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER], tool_choice="required")
    form = server.client.calls[0]["params"].structured_outputs
    assert form is not None
    assert "weather" in form.grammar


def test_a_schema_becomes_a_form(server: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    server.openai.chat.completions.create(model="tiny", messages=HI, response_format=wanted)
    assert json.loads(server.client.calls[0]["params"].structured_outputs.json) == schema


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings(server: Served, encoding: Any) -> None:
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = server.openai.embeddings.create(model="tiny", input=["a", "b"], **options)
    vectors = [item.embedding for item in answer.data]
    if encoding == "base64":
        assert all(isinstance(vector, str) for vector in vectors)
    else:
        assert vectors == [pytest.approx([0.6, 0.8, 0.0])] * 2


def test_models(server: Served) -> None:
    assert [model.id for model in server.openai.models.list()] == ["tiny"]
    assert server.openai.models.retrieve("tiny").id == "tiny"


def test_errors_have_their_classes(server: Served) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        server.openai.chat.completions.create(model="huge", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        server.openai.chat.completions.create(model="tiny", messages=HI, temperature=-1)
    assert bad.value.param == "temperature"
    server.client.broken_after = 2
    with pytest.raises(openai.InternalServerError, match="the device is lost"):
        server.openai.chat.completions.create(model="tiny", messages=HI)
    with pytest.raises(openai.APIError, match="the device is lost"):
        list(server.openai.chat.completions.create(model="tiny", messages=HI, stream=True))


def test_a_response(server: Served) -> None:
    answer = server.openai.responses.create(model="tiny", input="Hi", instructions="Be brief.")
    assert answer.output_text == "Hello there, friend."
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.output_tokens == len(server.client.script or ())
    short = server.openai.responses.create(model="tiny", input="Hi", max_output_tokens=2)
    assert short.status == "incomplete"
    assert short.incomplete_details is not None
    assert short.incomplete_details.reason == "max_output_tokens"


def test_a_streamed_response(server: Served) -> None:
    server.says(THOUGHT)
    events = list(server.openai.responses.create(model="tiny", input=HI, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Yes."
    assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == "It is cold."
    last = events[-1]
    assert last.type == "response.completed"
    assert [item.type for item in last.response.output] == ["reasoning", "message"]
    assert last.response.output_text == "Yes."
    assert last.response.usage is not None
    assert last.response.usage.output_tokens_details.reasoning_tokens > 0


def test_a_response_calls_and_goes_on(server: Served) -> None:
    server.says(CALL)
    tool: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
    with server.openai.responses.stream(model="tiny", input="Hi", tools=[tool]) as stream:
        for _ in stream:
            pass
        first = stream.get_final_response()
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Oslo"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "cold"}
    server.says("Cold.")
    asked: Any = [*HI, call.model_dump(), result]
    assert server.openai.responses.create(model="tiny", input=asked, tools=[tool]).output_text == "Cold."


def test_messages(server: Served) -> None:
    answer = server.anthropic.messages.create(model="tiny", max_tokens=50, messages=HI, system="Be brief.")
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "Hello there, friend."
    assert answer.stop_reason == "end_turn"
    assert answer.usage.cache_read_input_tokens == 1
    assert answer.usage.input_tokens + 1 == len(server.client.calls[0]["prompt"])
    counted = server.anthropic.messages.count_tokens(model="tiny", messages=HI, system="Be brief.")
    assert counted.input_tokens == answer.usage.input_tokens + 1
    cut = server.anthropic.messages.create(model="tiny", max_tokens=2, messages=HI)
    assert cut.stop_reason == "max_tokens"


def test_streamed_messages(server: Served) -> None:
    server.says(THOUGHT)
    with server.anthropic.messages.stream(model="tiny", max_tokens=50, messages=HI) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].type == "thinking"
    assert message.content[0].thinking == "It is cold."
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == len(server.client.script or ())


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_calls_and_goes_on(server: Served, stream: bool) -> None:
    server.says(CALL)
    tool: Any = {"name": "weather", "input_schema": {"type": "object"}, "description": "Tells it."}
    ask: Any = {"model": "tiny", "max_tokens": 50, "tools": [tool]}
    if stream:
        with server.anthropic.messages.stream(**ask, messages=HI) as events:
            message = events.get_final_message()
    else:
        message = server.anthropic.messages.create(**ask, messages=HI)
    assert message.stop_reason == "tool_use"
    (use,) = message.content
    assert use.type == "tool_use"
    assert (use.name, use.input) == ("weather", {"city": "Oslo"})
    result: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "cold"}]}
    turn: Any = {"role": "assistant", "content": [use.model_dump()]}
    server.says("Cold.")
    after = server.anthropic.messages.create(**ask, messages=[*HI, turn, result])
    assert after.content[0].type == "text"


def test_errors_of_messages(server: Served) -> None:
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        server.anthropic.messages.create(model="huge", max_tokens=5, messages=HI)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens=0 is out of range"):
        server.anthropic.messages.create(model="tiny", max_tokens=0, messages=HI)
    server.client.broken_after = 2
    with pytest.raises(anthropic.APIStatusError, match="the device is lost"):
        server.anthropic.messages.create(model="tiny", max_tokens=5, messages=HI)
    with (
        pytest.raises(anthropic.APIError, match="the device is lost"),
        server.anthropic.messages.stream(model="tiny", max_tokens=5, messages=HI) as stream,
    ):
        stream.get_final_message()


def test_messages_from_an_event_loop(server: Served) -> None:
    """Several at once, whole and streamed; one that is left, and one that calls."""
    client, tool = server.anthropic_async, {"name": "weather", "input_schema": {"type": "object"}}
    ask: Any = {"model": "tiny", "max_tokens": 50, "messages": HI}

    async def streamed() -> Any:
        async with client.messages.stream(**ask) as stream:
            texts = [text async for text in stream.text_stream]
            message = await stream.get_final_message()
        assert "".join(texts) == message.content[0].text
        return message

    async def left() -> None:
        async with client.messages.stream(**ask) as stream:
            async for _ in stream:
                return

    async def go() -> None:
        whole, counted, *messages = await asyncio.gather(
            client.messages.create(**ask),
            client.messages.count_tokens(model="tiny", messages=HI),
            *(streamed() for _ in range(8)),
        )
        assert {message.content[0].text for message in [whole, *messages]} == {"Hello there, friend."}
        assert counted.input_tokens == len(server.client.calls[0]["prompt"])
        server.client.gap = 0.05
        try:
            await left()
            async with asyncio.timeout(5):
                while not server.client.ended_early:
                    await asyncio.sleep(0.01)
        finally:
            server.client.gap = 0.0
        server.says(CALL)
        async with client.messages.stream(**ask, tools=[tool]) as stream:
            (use,) = (await stream.get_final_message()).content
        assert (use.name, use.input) == ("weather", {"city": "Oslo"})
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            await client.messages.create(**{**ask, "model": "huge"})
        await client.close()

    asyncio.run(go())


def test_a_deadline_is_an_error_that_official_clients_know(server: Served) -> None:
    server.client.reason = "deadline"
    try:
        with pytest.raises(anthropic.APIStatusError, match="has run out") as caught:
            server.anthropic.messages.create(model="tiny", max_tokens=5, messages=HI)
    finally:
        server.client.reason = None
    assert caught.value.status_code == 504
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "timeout_error"
