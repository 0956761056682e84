"""Forms become grammars, or are refused in one line: also those that are made to do harm."""

from __future__ import annotations

import json
import re
import time

import pytest
from llguidance import LLMatcher, LLTokenizer

from octavo.errors import RequestError
from octavo.grammar.checked import checked_grammar
from octavo.grammar.source import parser_limits
from octavo.grammar.worker import CPU_SECONDS
from octavo.structured_outputs import MAX_CHARACTERS, MAX_CHOICES, StructuredOutputs


def accepts(grammar: str, text: str) -> bool:
    """Whether the grammar matches the whole text, followed as by an engine: a mask before each token, here a byte."""
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=parser_limits())
    followed = all(matcher.compute_bitmask() and matcher.consume_token(byte) for byte in text.encode())
    return followed and matcher.is_accepting()


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ({"json": {"type": "integer"}}, ["5", "-17"], ["x", "1.5", '"5"']),
        ({"json": '{"type": "object"}'}, ["{}", '{"a": [1, null]}'], ["[]", "{"]),
        ({"json_object": True}, ["{}", '{ "a" : {"b" : "c"} }'], ["[1]", "1", '{"a": ' + " " * 41 + "1}"]),
        ({"json_object": True, "disable_any_whitespace": True}, ['{"a":[1,2]}'], ['{"a": 1}', "{ }"]),
        ({"regex": "[a-f]{2}|ü+"}, ["ab", "üü"], ["a", "abc", ""]),
        ({"choice": ["yes", "no", 'a"\\\n\t\x00\x7f\u2028é😀']}, ["yes", 'a"\\\n\t\x00\x7f\u2028é😀'], ["ye", "yesno"]),
        ({"grammar": 'start: "a" start "b" | "c"'}, ["c", "aacbb"], ["acbb", "ab"]),
        ({"grammar": 'root ::= "a" root "b" | "c"'}, ["c", "aacbb"], ["acbb", "ab"]),
    ],
)
def test_a_form_matches_what_it_says(form, good, bad):
    grammar = checked_grammar(StructuredOutputs(**form))
    assert [accepts(grammar, text) for text in good] == [True] * len(good)
    assert [accepts(grammar, text) for text in bad] == [False] * len(bad)


def test_a_schema_of_hundreds_of_optional_properties_is_within_the_limits():
    """Each that is left out is one more way to go on."""
    properties = {f"p{i}": {"type": "integer"} for i in range(300)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    grammar = checked_grammar(StructuredOutputs(json=schema))
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=parser_limits())
    for byte in b'{"p0": 1, "p150": 2, "p299": 3}':
        matcher.compute_bitmask()
        assert matcher.consume_token(byte), matcher.get_error()
    assert matcher.is_accepting()
    assert not matcher.is_error()


def test_a_grammar_may_name_the_models_special_tokens_and_no_others():
    form = StructuredOutputs(grammar='start: <|call|> "x"')
    assert checked_grammar(form, ("<|call|>",))
    with pytest.raises(RequestError, match="unknown special token"):
        checked_grammar(form)


CHAIN = "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(15_000)) + '\nr15000: "a"'
DOUBLING = "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(60)) + '\nT60: "a"'
PRODUCT = {"allOf": [{"anyOf": [{"properties": {f"k{i}_{j}": {}}} for j in range(8)]} for i in range(10)]}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"regex": "("}, "the regex of structured_outputs cannot be used: .*unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": "(" * 20_000 + "a" + ")" * 20_000}, "the regex of structured_outputs"),
        ({"grammar": "start: nothing"}, "the grammar of structured_outputs cannot be used"),
        ({"grammar": "start: start"}, "nothing can match it"),
        ({"grammar": "root ::= ("}, "the grammar of structured_outputs cannot be used"),
        ({"grammar": "start: " + "(" * 50_000 + '"a"' + ")" * 50_000}, "too deeply nested"),
        ({"grammar": CHAIN}, "the compiler failed on it .*nested too deeply"),
        ({"grammar": DOUBLING}, "too big|too long"),
        ({"json": {"type": "nonsense"}}, "the json of structured_outputs cannot be used"),
        ({"json": {"$ref": "#"}}, "nothing can match it"),
        ({"json": {"$ref": "#/$defs/none"}}, "the json of structured_outputs cannot be used"),
        ({"json": {"$ref": "http://example.com/a.json"}}, "the json of structured_outputs cannot be used"),
        ({"json": {"$ref": "file:///etc/passwd"}}, "the json of structured_outputs cannot be used"),
        ({"json": {"type": "string", "pattern": "("}}, "the json of structured_outputs cannot be used"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 4}}, "the json of structured_outputs cannot be used"),
        ({"json": PRODUCT}, "too large|too long|too big"),
        ({"json": '{"items":' * 400 + "{}" + "}" * 400}, "recursion limit"),
        ({"json": {"enum": [f"value{i}" for i in range(18_000)]}}, None),
        ({"json": {"type": "array", "minItems": 10**6, "maxItems": 10**12}}, None),
        ({"json": {"type": "string", "pattern": "^((a{1,999}){1,999}){1,999}$"}}, None),
        ({"choice": [f"{'x' * 20}{i}" for i in range(MAX_CHOICES)]}, None),
        ({"regex": "x" * MAX_CHARACTERS}, None),
        ({"regex": "(a|b)*a(a|b){500}"}, None),
        ({"regex": r"(\w{1,100}){1,100}\p{L}{1,5000}"}, None),
    ],
)
def test_hostile_forms_give_one_line_in_bounded_time(form, message):
    """Those without a message may be accepted; what they cost to follow is bounded elsewhere."""
    started = time.perf_counter()
    refusal = refusal_of(StructuredOutputs(**form))
    assert time.perf_counter() - started < 20 * CPU_SECONDS
    assert "\n" not in refusal
    assert len(refusal) < 400
    assert message is None or re.search(message, refusal)
    assert checked_grammar(StructuredOutputs(choice=["a"])), "the next one is served"


def refusal_of(form: StructuredOutputs) -> str:
    """Why it cannot be used; an empty string if it can."""
    try:
        checked_grammar(form)
    except RequestError as error:
        return str(error)
    return ""


def test_the_grammar_of_a_schema_keeps_the_order_of_its_properties():
    schema = {"type": "object", "properties": {"z": {"const": 1}, "a": {"const": 2}}, "required": ["z", "a"]}
    grammar = checked_grammar(StructuredOutputs(json=json.dumps(schema)))
    assert accepts(grammar, '{"z":1,"a":2}')
    assert not accepts(grammar, '{"a":2,"z":1}')
