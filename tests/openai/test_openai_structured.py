"""Fields of bodies that say a form: what they mean, and which are refused."""

from __future__ import annotations

import json

import pytest

from octavo.openai.errors import FieldError
from octavo.openai.structured import response_form, structured_outputs_of
from octavo.structured_outputs import StructuredOutputs

SCHEMA = {"type": "object", "properties": {"b": {"type": "null"}, "a": {"type": "string"}}}


def format_of(**json_schema: object) -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({}, None),
        ({"model": "m", "temperature": 0}, None),
        ({"response_format": None, "guided_json": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (format_of(name="person", schema=SCHEMA, strict=True), {"json": SCHEMA}),
        (format_of(name="a-B_9", schema=SCHEMA, strict=None, description="x"), {"json": SCHEMA}),
        (format_of(schema={}), {"json": {}}),
        ({"guided_json": SCHEMA}, {"json": SCHEMA}),
        ({"guided_json": json.dumps(SCHEMA)}, {"json": json.dumps(SCHEMA)}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_grammar": "root ::= x"}, {"grammar": "root ::= x"}),
        ({"structured_outputs": {"choice": ["a"], "json": None}}, {"choice": ["a"]}),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            {"json": SCHEMA, "disable_any_whitespace": True},
        ),
        ({"response_format": {"type": "text"}, "guided_regex": "a"}, {"regex": "a"}),
    ],
)
def test_what_fields_mean(fields, form):
    assert structured_outputs_of(fields) == (form if form is None else StructuredOutputs(**form))


def test_the_format_of_a_response_holds_its_schema_itself():
    found = response_form({"type": "json_schema", "name": "p", "schema": SCHEMA, "strict": False}, "text.format")
    assert found == StructuredOutputs(json=SCHEMA)
    with pytest.raises(FieldError, match="schema is missing"):
        response_form({"type": "json_schema", "name": "p"}, "text.format")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"response_format": "json"},
            "response_format",
            "object of type text, json_object or json_schema",
        ),
        ({"response_format": {}}, "response_format", "accepted: an object of type"),
        ({"response_format": {"type": "structural_tag"}}, "response_format", "accepted: an object of type"),
        ({"response_format": {"type": ["text"]}}, "response_format", "accepted: an object of type"),
        (format_of(name="x"), "response_format", "schema is missing"),
        (format_of(name="x", schema="{}"), "response_format", "schema is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": 5}}, "response_format", "schema is missing"),
        (format_of(name="a b", schema={}), "response_format", "name='a b'; accepted: up to 64 letters"),
        (format_of(name="a" * 65, schema={}), "response_format", "up to 64"),
        (format_of(name="x", schema={}, strict="yes"), "response_format", "strict='yes'; accepted: true, false"),
        (format_of(name="x", schema={}, strickt=True), "response_format", "no field 'strickt'"),
        ({"guided_regex": ""}, "guided_regex", "guided_regex: regex=''"),
        ({"guided_choice": []}, "guided_choice", "accepted: a list of texts"),
        ({"guided_json": 5}, "guided_json", "accepted: a JSON schema"),
        ({"structured_outputs": ["json"]}, "structured_outputs", "accepted: an object"),
        ({"structured_outputs": {}}, "structured_outputs", "structured_outputs has no form"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs", "did you mean 'regex'"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "give one of"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "says a form already"),
    ],
)
def test_a_malformed_field_is_refused_by_name(fields, param, message):
    with pytest.raises(FieldError, match=message) as caught:
        structured_outputs_of(fields)
    assert caught.value.param == param
    assert len(str(caught.value)) < 400
