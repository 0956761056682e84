"""The form of a completion: what is accepted, and what an error says."""

from __future__ import annotations

import json

import pytest

from octavo import RequestError, SamplingParams, StructuredOutputs, UsageError
from octavo.structured_outputs import MAX_CHARACTERS, MAX_CHOICES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "structured_outputs has no form; give one of json, regex, choice, grammar, json_object"),
        ({"json_object": False}, "no form"),
        ({"json": {}, "regex": "a"}, "structured_outputs has json, regex; give one of"),
        ({"json_object": True, "choice": ["a"]}, "choice, json_object; give one of"),
        ({"json": "{"}, "json is no JSON schema"),
        ({"json": ""}, "json is no JSON schema"),
        ({"json": "[1]"}, "accepted: a JSON schema"),
        ({"json": [1]}, "accepted: a JSON schema"),
        ({"json": 5}, "accepted: a JSON schema"),
        ({"json": {"a": {1, 2}}}, "json is no JSON schema"),
        ({"json": {"const": float("nan")}}, "json is no JSON schema"),
        ({"json": '{"a":' * 100_000}, "at most"),
        ({"json": "[" * 100_000}, "json is no JSON schema"),
        ({"regex": ""}, "regex=''"),
        ({"regex": 5}, "regex=5; accepted: a text"),
        ({"regex": "a" * (MAX_CHARACTERS + 1)}, f"at most {MAX_CHARACTERS} are accepted"),
        ({"regex": "\ud83d"}, "half of a surrogate pair"),
        ({"grammar": ["start"]}, "accepted: a text"),
        ({"choice": []}, r"choice=\[\]; accepted: a list of texts"),
        ({"choice": "ab"}, "choice='ab'"),
        ({"choice": ["a", ""]}, "not empty"),
        ({"choice": ["a", 1]}, "not empty"),
        ({"choice": ["a\ud83d"]}, "half of a surrogate pair"),
        ({"choice": ["a"] * (MAX_CHOICES + 1)}, f"at most {MAX_CHOICES}"),
        ({"choice": ["a" * MAX_CHARACTERS] * 2}, f"with {MAX_CHARACTERS} are accepted"),
        ({"json_object": "yes"}, "json_object='yes'; accepted: True, False"),
        ({"json_object": True, "disable_any_whitespace": 1}, "disable_any_whitespace=1"),
        ({"regex": "a", "disable_any_whitespace": True}, "goes with json"),
    ],
)
def test_a_bad_form_is_refused_with_what_is_accepted(options, message):
    with pytest.raises(RequestError, match=message) as caught:
        StructuredOutputs(**options)
    assert len(str(caught.value)) < 400


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"no argument 'jsn' \(did you mean 'json'\?\)"):
        StructuredOutputs(jsn={})


def test_a_schema_is_kept_as_text_in_its_own_order():
    schema = {"type": "object", "properties": {"z": {"type": "string"}, "ä": {"type": "null"}}}
    found = StructuredOutputs(json=schema)
    assert json.loads(found.json) == schema
    assert found.json.index('"z"') < found.json.index('"ä"')
    assert StructuredOutputs(json=found.json) == found


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"json": {}}, "json"),
        ({"regex": "a+"}, "regex"),
        ({"choice": ("yes", "no")}, "choice"),
        ({"grammar": 'start: "a"'}, "grammar"),
        ({"json_object": True}, "json_object"),
    ],
)
def test_each_kind_has_a_key_of_its_own(options, kind):
    form = StructuredOutputs(**options)
    assert form.kind == kind
    assert hash(form.key) == hash(StructuredOutputs(**options).key)
    others = [{"json": {"a": 1}}, {"regex": "b"}, {"choice": ["a"]}, {"grammar": "a"}]
    assert form.key not in {StructuredOutputs(**other).key for other in others}


def test_sampling_params_take_it_as_it_is_or_as_a_dictionary():
    form = StructuredOutputs(choice=["a", "b"])
    assert SamplingParams(structured_outputs=form).structured_outputs == form
    assert SamplingParams(structured_outputs={"choice": ["a", "b"]}).structured_outputs == form
    assert SamplingParams().structured_outputs is None
    with pytest.raises(RequestError, match="structured_outputs='json'; accepted: a StructuredOutputs"):
        SamplingParams(structured_outputs="json")
    with pytest.raises(UsageError, match="no argument 'jason'"):
        SamplingParams(structured_outputs={"jason": {}})
