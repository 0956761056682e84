from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from octavo.errors import RequestError
from octavo.text.chat import check_messages, render_chat

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call at once") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{{- "<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + (content or '') }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + eos_token}}{% endgeneration %}
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
CONTROLS = """{% for message in messages %}
  {% if loop.index > 2 %}{% break %}{% endif %}
  {% if message.role == 'system' %}{% continue %}{% endif %}
{# a comment #}
    {{ message.content }} {{ {'é': '<b>', 'n': none} | tojson }} {{ pad_token }}|{{ documents is none }}
{% endfor %}"""

USER = {"role": "user", "content": "Why is the sky <blue> & é 蓝 😀?"}
SYSTEM = {"role": "system", "content": "  Be brief.\n"}
ANSWER = {"role": "assistant", "content": "<think>hm</think>\n\nRayleigh."}
CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "get", "arguments": {"city": "Zürich", "n": [1, 2.5]}},
}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "18 °C"}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get", "description": "weather", "parameters": {"type": "object"}},
    }
]

CHATS = [[USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER]]
TOOL_CHATS = [[USER, CALLING, RESULT], [SYSTEM, USER, CALLING, RESULT, ANSWER, USER]]


def theirs(template: str, messages: list[Any], **kwargs: Any) -> str:
    rendered, _ = render_jinja_template([messages], chat_template=template, **kwargs)
    return rendered[0]


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("template", [CHATML, LLAMA3, QWEN3, CONTROLS])
def test_styles_are_rendered_as_by_transformers(template: str, messages: list[Any], generate: bool) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    expected = theirs(template, messages, add_generation_prompt=generate, **tokens)
    assert render_chat(template, messages, add_generation_prompt=generate, **tokens) == expected


@pytest.mark.parametrize("messages", CHATS + TOOL_CHATS)
@pytest.mark.parametrize("template", [LLAMA3, QWEN3])
def test_tools_are_rendered_as_by_transformers(template: str, messages: list[Any]) -> None:
    expected = theirs(template, messages, tools=TOOLS, add_generation_prompt=True, bos_token="<s>")
    assert render_chat(template, messages, tools=TOOLS, bos_token="<s>") == expected


@pytest.mark.parametrize("messages", [[USER], [USER, ANSWER], [USER, ANSWER, USER]])
def test_generation_tag_is_only_a_scope(messages: list[Any]) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    assert render_chat(MISTRAL, messages, **tokens) == theirs(MISTRAL, messages, **tokens)


def test_a_template_may_refuse() -> None:
    with pytest.raises(RequestError, match=r"does not accept these messages: Conversation roles must alternate"):
        render_chat(MISTRAL, [USER, USER], bos_token="", eos_token="")


def test_more_variables() -> None:
    thinking = {"enable_thinking": False}
    expected = theirs(QWEN3, [USER], add_generation_prompt=True, **thinking)
    assert expected.endswith("</think>\n\n")
    assert render_chat(QWEN3, [USER], chat_template_kwargs=thinking) == expected
    assert render_chat(QWEN3, [USER], **thinking) == expected


@pytest.mark.parametrize("kwargs", [{"messages": []}, {"tools": None}, {"add_generation_prompt": 1}])
def test_variables_that_are_arguments(kwargs: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="argument of its own"):
        render_chat(CHATML, [USER], chat_template_kwargs=kwargs)


def test_parts_are_joined_and_arguments_parsed() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"function": {"name": "get", "arguments": '{"n": [1, 2.5]}'}}
    checked = check_messages(
        [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    )
    assert checked[0]["content"] == "a\nb"
    assert checked[1]["tool_calls"][0]["function"] == {"name": "get", "arguments": {"n": [1, 2.5]}}
    assert checked[1]["content"] is None
    assert call["function"]["arguments"] == '{"n": [1, 2.5]}'


IMAGE = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "non-empty list"),
        ("hello", "non-empty list"),
        (None, "non-empty list"),
        (["hello"], r"messages\[0\] must be an object with a role"),
        ([USER, {"content": "x"}], r"messages\[1\] must be an object with a role"),
        ([{"role": "user"}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": 5}], "string or a list of text parts"),
        ([{"role": "user", "content": [IMAGE]}], r"content\[0\] is of type 'image_url'; accepted: text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "has no text"),
        ([{"role": "user", "content": [5]}], "of type 'int'"),
        ([{"role": "assistant", "tool_calls": "get"}], "tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}], "arguments is not JSON"),
        ([{"role": "user", "content": "a", "x": object()}], "not plain JSON"),
    ],
)
def test_malformed_messages_give_one_line(messages: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        render_chat(CHATML, messages)
    assert "\n" not in str(caught.value)


def test_malformed_options() -> None:
    with pytest.raises(RequestError, match="no chat template; use generate"):
        render_chat(None, [USER])
    with pytest.raises(RequestError, match="tools must be a list"):
        render_chat(CHATML, [USER], tools=["get"])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="chat_template_kwargs must be"):
        render_chat(CHATML, [USER], chat_template_kwargs=[1])  # type: ignore[arg-type]
