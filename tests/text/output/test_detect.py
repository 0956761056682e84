from __future__ import annotations

import json
from typing import Any

import pytest

from helpers_output import CLOCK, FUNCTIONS, WEATHER, calls_of
from helpers_templates import PHI4_MINI, TEMPLATES
from octavo.errors import UsageError
from octavo.text.chat import render_chat
from octavo.text.output.detect import output_format
from octavo.text.output.pieces import Content, Reasoning
from octavo.text.output.router import OutputRouter, begins_in_reasoning, read_whole

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "How is the weather?"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [
    {"type": "function", "function": {"name": f.name, "description": "…", "parameters": f.parameters}}
    for f in (WEATHER, CLOCK)
]
CALLS = [("get_weather", {"city": "Zürich", "days": 2}), ("clock", {})]
ENDS = ("<|im_end|>\n", "<|im_end|>", "<|eot_id|>", "</s>", "<｜end▁of▁sentence｜>", "<end_of_turn>\n")


def called(calls: list[Any], ids: list[str], as_text: bool) -> dict[str, Any]:
    """An assistant's message, as OpenAI's clients send it back."""
    return {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments) if as_text else arguments},
            }
            for (name, arguments), call_id in zip(calls, ids, strict=True)
        ],
    }


@pytest.mark.parametrize("model", TEMPLATES)
def test_the_format_is_found_in_the_template(model: str) -> None:
    template, tools, reasoning = TEMPLATES[model]
    format = output_format(template)
    assert format.tools is not None
    assert format.tools.name == tools
    assert (format.reasoning.name if format.reasoning else None) == reasoning


def test_phi_4_mini() -> None:
    format = output_format(PHI4_MINI)
    assert format.tools is not None
    assert format.tools.name == "phi4_mini_json"
    system = {**SYSTEM, "tools": '[{"name": "clock"}]'}
    text = render_chat(PHI4_MINI, [system, USER], eos_token="</s>")
    assert text == (
        '<|system|>Be brief.<|tool|>[{"name": "clock"}]<|/tool|><|end|><|user|>How is the weather?<|end|><|assistant|>'
    )


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("model", TEMPLATES)
def test_calls_as_the_template_writes_them_are_read_as_the_same_calls(model: str, as_text: bool) -> None:
    """A template shows how its model writes: what it prints of an assistant's turn is what the model has written."""
    template = TEMPLATES[model][0]
    format = output_format(template)
    assert format.tools is not None
    calls = CALLS[:1] if format.tools.name == "llama3_json" else CALLS
    ids = [f"functions.{name}:{i}" if model == "kimi-k2" else f"abcdefgh{i}" for i, (name, _) in enumerate(calls)]
    message = called(calls, ids, as_text)
    before = render_chat(template, [USER], tools=TOOLS, add_generation_prompt=False, **TOKENS)
    whole = render_chat(template, [USER, message], tools=TOOLS, add_generation_prompt=False, **TOKENS)
    if not whole.startswith(before):  # Mistral prints the tools before the last message of the user
        before = render_chat(template, [USER], add_generation_prompt=False, **TOKENS)
    written = whole.removeprefix(before)
    for end in ENDS:
        written = written.removesuffix(end)
    pieces = read_whole(OutputRouter(format, FUNCTIONS), _without_opening(written))
    assert calls_of([p for p in pieces if not isinstance(p, Content)]) == calls
    assert not [p.text for p in pieces if isinstance(p, Content)]


def _without_opening(text: str) -> str:
    """The turn without the words that open it, which are part of the prompt."""
    for opening in (
        *("<|im_start|>assistant", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<｜Assistant｜>"),
        *("<start_of_turn>model\n", "<|im_assistant|>assistant<|im_middle|>"),
    ):
        text = text.removeprefix(opening)
    return text


@pytest.mark.parametrize("model", [model for model in TEMPLATES if model not in ("mistral-v3", "mistral-v13")])
def test_a_conversation_with_calls_and_results_can_be_rendered(model: str) -> None:
    ids = ["abcdefgh0"]
    chat = [SYSTEM, USER, called(CALLS[:1], ids, True), {"role": "tool", "tool_call_id": ids[0], "content": "18 °C"}]
    text = render_chat(TEMPLATES[model][0], chat, tools=TOOLS, **TOKENS)
    assert text.count("How is the weather?") == 1
    assert text.index("How is the weather?") < text.rindex("Zürich") < text.index("18 °C")
    assert ("get_weather" in text[: text.index("How")]) == (model not in ("deepseek-v3", "mistral-v7"))


@pytest.mark.parametrize("model", ["qwen3", "smollm3", "deepseek-v3"])
def test_reasoning_that_the_prompt_opens_or_closes(model: str) -> None:
    template = TEMPLATES[model][0]
    format = output_format(template)
    prompt = render_chat(template, [USER], **TOKENS)
    assert begins_in_reasoning(prompt, format) == (model == "deepseek-v3")
    router = OutputRouter(format, in_reasoning=begins_in_reasoning(prompt, format))
    opening = "" if model == "deepseek-v3" else "<think>\n"
    assert read_whole(router, opening + "hm\n</think>\n\nFine.") == [Reasoning("hm"), Content("Fine.")]
    if model != "deepseek-v3":
        closed = render_chat(template, [USER], chat_template_kwargs={"enable_thinking": False}, **TOKENS)
        assert closed.rstrip().endswith("</think>")
        assert not begins_in_reasoning(closed, format)


def test_reasoning_of_earlier_turns_goes_where_the_template_puts_it() -> None:
    answer = {"role": "assistant", "content": "Fine.", "reasoning": "hm"}
    text = render_chat(TEMPLATES["qwen3"][0], [USER, answer, USER])
    assert "<|im_start|>assistant\n<think>\nhm\n</think>\n\nFine.<|im_end|>" in text


def test_formats_by_name() -> None:
    format = output_format(None, tools="mistral", reasoning="deepseek_r1")
    assert format.tools is not None
    assert format.reasoning is not None
    assert (format.tools.name, format.reasoning.name) == ("mistral", "think")
    assert output_format(TEMPLATES["qwen3"][0], tools="none", reasoning="none").tools is None
    assert output_format(TEMPLATES["qwen3"][0], reasoning="none").reasoning is None


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'hermess' \(did you mean 'hermes'\?\); accepted: auto, none, .*mistral"):
        output_format(None, tools="hermess")
    with pytest.raises(UsageError, match=r"no reasoning format 'x'; accepted: auto, none, .*deepseek_r1"):
        output_format(None, reasoning="x")
