"""A model that knows nothing of tools calls them all the same, when it must."""

from __future__ import annotations

from pathlib import Path

import jsonschema_rs
import pytest

from helpers_cli import make_chat_model
from helpers_output import calls_of
from helpers_smollm2 import smollm2_path
from octavo import LLM, SamplingParams
from octavo.structured_outputs import StructuredOutputs
from octavo.text.output.calls import Function
from octavo.text.output.choice import ToolUse
from octavo.text.output.detect import output_format
from octavo.text.output.grammar import call_grammar
from octavo.text.output.router import OutputRouter, read_whole
from octavo.text.output.special import special_markers, with_markers

ROUTE = Function(
    "route",
    {
        "type": "object",
        "properties": {"to": {"type": "string", "enum": ["Rom", "Oslo"]}, "by": {"enum": [["train"], 7, "air"]}},
        "required": ["to", "by"],
        "additionalProperties": False,
    },
)
STOP = Function("stop", {"type": "object", "properties": {}, "additionalProperties": False})
FUNCTIONS = (ROUTE, STOP)
TOOLS = [{"type": "function", "function": {"name": f.name, "parameters": f.parameters}} for f in FUNCTIONS]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    model: Path = make_chat_model(tmp_path_factory.mktemp("calls") / "chat")
    return LLM(str(model), kv_cache_memory=8 << 20)


@pytest.mark.parametrize("tools", ["auto", "hermes", "llama3_json", "mistral", "kimi_k2", "qwen3_coder", "pythonic"])
def test_a_random_model_calls(llm: LLM, tools: str) -> None:
    format = output_format(llm.tokenizer.chat_template, tools)
    use = ToolUse(FUNCTIONS, required=True, parallel=False)
    grammar = call_grammar(format, use, special_markers(format, llm.tokenizer))
    form = StructuredOutputs(grammar=grammar)
    params = SamplingParams(temperature=1, seed=3, n=8, max_tokens=200, structured_outputs=form)
    params = with_markers(params, format, llm.tokenizer)
    (done,) = llm.chat([{"role": "user", "content": "Hi"}], params, tools=TOOLS, use_tqdm=False)
    schemas = {function.name: function.parameters for function in FUNCTIONS}
    names = set()
    for output in done.outputs:
        ((name, arguments),) = calls_of(read_whole(OutputRouter(format, FUNCTIONS), output.text))
        assert output.finish_reason == "stop"
        assert jsonschema_rs.is_valid(schemas[name], arguments)
        names.add(name)
    assert names == set(schemas)


@pytest.mark.model
def test_smollm2_is_asked_in_words_and_calls_as_it_must() -> None:
    city = {"type": "string", "enum": ["Oslo", "Paris", "Rome", "Vienna"]}
    weather = Function("weather", {"type": "object", "properties": {"city": city}, "required": ["city"]})
    tools = [{"type": "function", "function": {"name": "weather", "parameters": weather.parameters}}]
    with LLM(str(smollm2_path()), max_model_len=512, kv_cache_memory=64 << 20) as llm:
        format = output_format(llm.tokenizer.chat_template)
        assert format.tools is not None
        assert format.tools.name == "json"
        use = ToolUse((weather,), required=True, parallel=False)
        grammar = call_grammar(format, use, special_markers(format, llm.tokenizer))
        params = SamplingParams(temperature=0, max_tokens=60, structured_outputs=StructuredOutputs(grammar=grammar))
        question = {"role": "user", "content": "How is the weather in Vienna?"}
        (done,) = llm.chat([question], params, tools=tools, use_tqdm=False)
    pieces = read_whole(OutputRouter(format, (weather,)), done.outputs[0].text)
    assert calls_of(pieces) == [("weather", {"city": "Vienna"})]
