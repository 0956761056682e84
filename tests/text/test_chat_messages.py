from __future__ import annotations

import json
from typing import Any

import pytest

from helpers_templates import DEEPSEEK_V3, LLAMA31, QWEN3, SMOLLM2, TEMPLATES
from octavo.errors import RequestError
from octavo.text.chat import TEMPLATES as NAMED
from octavo.text.chat import render_chat
from octavo.text.chat_messages import fit_messages, knows_tools

USER = {"role": "user", "content": "Hi"}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "clock", "arguments": {"zone": "é"}}}
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]


def fit(template: str, **message: Any) -> dict[str, Any]:
    return fit_messages([{"role": "assistant", **message}], template)[0]


def test_what_clients_send_without_a_value_is_left_out() -> None:
    """OpenAI's own objects come back with nulls, and Llama's template asks only whether the key is there."""
    sent = {"role": "assistant", "content": "Hello", "tool_calls": None, "audio": None, "function_call": None}
    text = render_chat(LLAMA31, [USER, sent, USER], **TOKENS)
    assert "assistant<|end_header_id|>\n\nHello<|eot_id|>" in text
    assert render_chat(LLAMA31, [USER, {**sent, "tool_calls": []}, USER], **TOKENS) == text
    assert "audio" not in fit(LLAMA31, content="x", audio=None)


@pytest.mark.parametrize("missing", [{}, {"content": None}, {"content": ""}])
def test_missing_content_is_what_the_template_asks_for(missing: dict[str, Any]) -> None:
    assert fit(DEEPSEEK_V3, tool_calls=[CALL], **missing)["content"] is None
    assert fit(QWEN3, tool_calls=[CALL], **missing)["content"] == ""
    assert fit(QWEN3, **missing)["content"] == ""


def test_arguments_are_text_only_where_the_template_needs_text() -> None:
    text = json.dumps(CALL["function"]["arguments"], ensure_ascii=False)  # type: ignore[index]
    for model, (template, _, _) in TEMPLATES.items():
        arguments = fit(template, content="", tool_calls=[CALL])["tool_calls"][0]["function"]["arguments"]
        assert arguments == (text if model == "deepseek-v3" else {"zone": "é"}), model


def test_developers_are_systems_to_templates_that_do_not_know_them() -> None:
    message = {"role": "developer", "content": "Be brief."}
    assert fit_messages([message], QWEN3)[0]["role"] == "system"
    assert fit_messages([message], QWEN3 + "{# developer #}")[0]["role"] == "developer"


def test_reasoning_has_one_name() -> None:
    assert fit(QWEN3, content="x", reasoning="hm")["reasoning_content"] == "hm"
    assert fit(QWEN3, content="x", reasoning="hm", reasoning_content="ah")["reasoning_content"] == "ah"


# ---------------------------------------------------------------- a template that knows of no tools


def test_tools_in_words() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ]
    chat.append({"role": "tool", "tool_call_id": "abcdefghi", "content": "12:00"})
    text = render_chat(SMOLLM2, chat, tools=TOOLS)
    system, user, assistant, result, rest = text.split("<|im_start|>")[1:]
    assert not knows_tools(SMOLLM2)
    assert system.startswith("system\nBe brief.\n\nYou can call functions.")
    assert json.dumps(TOOLS[0]["function"]) in system
    assert user == "user\nHi<|im_end|>\n"
    assert assistant == 'assistant\n{"name": "clock", "arguments": {"zone": "é"}}<|im_end|>\n'
    assert result == "user\nThe function's result:\n12:00<|im_end|>\n"
    assert rest == "assistant\n"


def test_without_a_system_message_the_tools_become_one() -> None:
    assert render_chat(SMOLLM2, [USER], tools=TOOLS).startswith("<|im_start|>system\nYou can call functions.")
    assert "functions" not in render_chat(SMOLLM2, [USER])


def test_turns_alternate_where_results_are_in_words() -> None:
    call = {"role": "assistant", "tool_calls": [CALL, CALL]}
    results = [{"role": "tool", "tool_call_id": "1", "content": content} for content in ("12:00", "13:00")]
    chat = [{"role": "developer", "content": "Be brief."}, USER, call, *results, {"role": "user", "content": "So?"}]
    text = render_chat(TEMPLATES["gemma-3"][0], chat, tools=TOOLS, **TOKENS)
    first, second = "The function's result:\n12:00", "The function's result:\n13:00"
    assert f"<start_of_turn>user\n{first}\n\n{second}\n\nSo?<end_of_turn>\n" in text
    assert text.startswith("<s><start_of_turn>user\nBe brief.\n\nYou can call functions.")
    assert render_chat(SMOLLM2, [USER, USER]).count("<|im_start|>user") == 2


# ---------------------------------------------------------------- going on with the last message


@pytest.mark.parametrize("model", ["qwen3", "llama-3.1", "smollm2", "smollm3", "gemma-3", "deepseek-v3", "kimi-k2"])
@pytest.mark.parametrize("begun", ["The answer", "The answer is ", "x\n"])
def test_the_last_message_is_left_open(model: str, begun: str) -> None:
    template = TEMPLATES[model][0]
    last = {"role": "assistant", "content": begun}
    text = render_chat(template, [USER, last], continue_final_message=True, **TOKENS)
    assert text.endswith(begun)
    closed = render_chat(template, [USER, last], add_generation_prompt=False, **TOKENS)
    assert closed.startswith(text.rstrip())
    assert len(closed) > len(text.rstrip())


def test_what_cannot_be_continued() -> None:
    with pytest.raises(RequestError, match="continue_final_message needs a last message with text"):
        render_chat(QWEN3, [USER, {"role": "assistant", "tool_calls": [CALL]}], continue_final_message=True)
    with pytest.raises(RequestError, match="does not print the last message"):
        render_chat("{{ messages[0].content }}", [USER, {**USER, "content": "x"}], continue_final_message=True)
    with pytest.raises(RequestError, match="argument of its own"):
        render_chat(QWEN3, [USER], chat_template_kwargs={"continue_final_message": True})


# ---------------------------------------------------------------- templates with a name


def test_named_templates() -> None:
    chat = [USER, {"role": "assistant", "content": "Hello"}, USER]
    assert render_chat("plain", chat) == "User: Hi\nAssistant: Hello\nUser: Hi\nAssistant:"
    assert render_chat("chatml", chat[:1]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(RequestError, match=r"give chat_template= \(a template, or chatml or plain\)"):
        render_chat(None, chat)
    assert set(NAMED) == {"chatml", "plain"}
