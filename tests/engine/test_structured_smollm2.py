"""The bundled real model answers in a form."""

from __future__ import annotations

import json
import re

import jsonschema_rs
import pytest

from helpers_smollm2 import smollm2_path
from octavo import LLM, SamplingParams, StructuredOutputs

pytestmark = pytest.mark.model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "hobbies": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "hobbies"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm():
    smollm2_path()
    with LLM("smollm2-135m", kv_cache_memory=256 << 20, debug=True) as llm:
        yield llm


def ask(llm: LLM, question: str, **form: object) -> str:
    params = SamplingParams(temperature=0, max_tokens=200, structured_outputs=StructuredOutputs(**form))
    output = llm.chat([{"role": "user", "content": question}], params, use_tqdm=False)[0].outputs[0]
    assert output.finish_reason == "stop"
    return output.text


def test_a_person_as_json(llm):
    text = ask(llm, "Describe Alice, who is 31 and loves chess and hiking, as JSON.", json=PERSON)
    person = json.loads(text)
    assert jsonschema_rs.is_valid(PERSON, person)
    assert "Alice" in person["name"]


def test_an_answer_by_choice_and_by_expression(llm):
    assert ask(llm, "Is Paris the capital of France? Answer yes or no.", choice=["yes", "no"]) in ("yes", "no")
    date = ask(llm, "On which date did humans first land on the moon?", regex=r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
    assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", date)


def test_an_answer_as_compact_json(llm):
    schema = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
    form = {"json": {**schema, "additionalProperties": False}, "disable_any_whitespace": True}
    text = ask(llm, "What is the capital of Italy? Answer in JSON.", **form)
    assert re.fullmatch(r'\{"capital":"[^"]+"\}', text)


def test_forced_text_is_written_in_the_models_own_tokens(llm):
    sentence = "The capital of France is Paris."
    params = SamplingParams(temperature=1, max_tokens=40, structured_outputs=StructuredOutputs(choice=[sentence]))
    found = llm.generate(["Once"], params, use_tqdm=False)[0].outputs[0]
    assert found.token_ids[:-1] == llm.tokenizer.encode(sentence, add_special_tokens=False)


def test_a_rule_that_can_be_read_in_many_ways_ends_before_its_masks_take_long(llm):
    """All others wait for a mask, and these cost more with each letter."""
    rule = " | ".join(" ".join("s" * count) for count in range(2, 14))
    params = SamplingParams(
        min_tokens=200,
        max_tokens=200,
        logit_bias={llm.engine.encode("a")[0]: 100},
        structured_outputs=StructuredOutputs(grammar=f'start: s\ns: {rule} | "a"'),
    )
    output = llm.generate(["a"], params, use_tqdm=False)[0]
    assert 0 < len(output.outputs[0].token_ids) < 100
    assert "Too many items" in output.refused
